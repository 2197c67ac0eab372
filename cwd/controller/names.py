"""Names of models: which of its versions a name stands for, and the handle that clients of the name hold.

A client that looks a name up without a version gets a handle of the name's own, which the loop turns into the handle of
the version that the name stands for at that moment: another version is taken into use for everybody between two
requests, and taken back as fast. A version added while another is in use is a standby until it is taken into use.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cwd.controller.host import NAME_BIT, Host
from cwd.core.world import SLOT_BITS
from cwd.errors import Code, CwdError

if TYPE_CHECKING:
    from cwd.controller.registry import ModelInfo

#: what clients of a name count on
_INTERFACE = ("inputs", "outputs", "axes")


@dataclasses.dataclass
class Name:
    """One name: its slot in the host's table, its handle, the model that it stands for."""

    slot: int
    handle: int
    model: ModelInfo


class Names:
    """All names that have a registered version; the host's table is kept with them."""

    def __init__(self, host: Host) -> None:
        self._table = host.names
        self._names: dict[str, Name] = {}
        self._free = list(range(len(host.names) - 1, -1, -1))

    def find(self, name: str) -> Name | None:
        return self._names.get(name)

    def added(self, model: ModelInfo, in_use: bool) -> None:
        """A version is registered. It is taken into use if it is the name's first, or `in_use`."""
        known = self._names.get(model.name)
        if known is not None:
            if in_use:
                self._point(known, model)
            return
        slot = self._free.pop()  # there are as many slots as models, and each name has a model
        row = self._table[slot]
        row["generation"] += 1
        row["handle"] = NAME_BIT | int(row["generation"]) << SLOT_BITS | slot
        self._names[model.name] = name = Name(slot, int(row["handle"]), model)
        self._point(name, model)

    def removed(self, model: ModelInfo, newest: ModelInfo | None) -> None:
        """A version is gone; `newest` of those that are left takes its place if it was in use."""
        name = self._names[model.name]
        if newest is None:
            self._table[name.slot]["handle"] = -1
            self._free.append(name.slot)
            del self._names[model.name]
        elif name.model is model:
            self._point(name, newest)

    def use(self, model: ModelInfo) -> ModelInfo:
        """Take a registered version into use; the one before. Raises `CwdError` (BAD_MODEL) if clients could not tell."""
        name = self._names[model.name]
        before = name.model
        for key in _INTERFACE:
            if before.manifest.get(key) != model.manifest.get(key):
                raise CwdError(f"{model.key} has other {key} than {before.key}, which clients of {model.name} count on",
                               code=Code.BAD_MODEL)
        self._point(name, model)
        return before

    def _point(self, name: Name, model: ModelInfo) -> None:
        name.model = model
        self._table[name.slot]["model"] = model.handle
