"""Which version a member is just now, for the cache: what was looked up, and when that should be asked again.

Sans-IO. A name may be pointed at another version at any time (`cwd model use`), and clients do not notice. So members are
asked for by the version that the key names; and it is looked up again every second, without anybody waiting for it.
"""

from __future__ import annotations

from cwd.client.model import Model
from cwd.selection.apps import Member
from cwd.selection.cache import ModelKey
from cwd.units import NS_PER_S

#: after so long it is asked again, and after so long nobody relies on it any more
AGAIN_NS, STALE_NS = NS_PER_S, 5 * NS_PER_S
_KEPT_MAX = 65536


class Versions:
    """Models of exact versions, by member."""

    def __init__(self) -> None:
        self._found: dict[Member, tuple[Model, int, int]] = {}
        self._asking: set[Member] = set()

    def get(self, member: Member, epoch: int, now_ns: int) -> Model | None:
        """The model, if it was found under this epoch of the controller, and not too long ago."""
        found = self._found.get(member)
        if found is None or found[1] != epoch or now_ns - found[2] > STALE_NS:
            return None
        return found[0]

    def due(self, member: Member, now_ns: int) -> bool:
        """Whether somebody should look it up again; says so to one who asks, until `put` or `missed`."""
        found = self._found.get(member)
        if member in self._asking or found is None or now_ns - found[2] < AGAIN_NS:
            return False
        self._asking.add(member)
        return True

    def put(self, member: Member, model: Model, epoch: int, now_ns: int) -> None:
        """The controller said that `member` is `model`, a model of an exact version."""
        self._asking.discard(member)
        if len(self._found) >= _KEPT_MAX:
            self._found.clear()
        self._found[member] = model, epoch, now_ns

    def forget(self, member: Member) -> None:
        """The controller does not know that version any more."""
        self._found.pop(member, None)

    def missed(self, member: Member) -> None:
        """It could not be looked up; what was known becomes stale by itself."""
        self._asking.discard(member)


def key_of(model: Model) -> ModelKey:
    """What the cache knows a model by."""
    return model.name, model.version, model.handle, model.epoch
