"""What the repository holds, as its reader told: kept by a controller that stands by, until it needs tables for it.

Facts only, by hash and by key: a standby that takes in a change replaces what it knew, and cannot have kept a trace of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

LOG = logging.getLogger("cwd.controller")

#: a name and a version
Key = tuple[str, int]
#: what an answer changed: ("program" | "model", facts), ("removed", key) or ("uses", key)
Change = tuple[str, Any]


class Catalogue:
    """The answers to the reader's question `changes`, taken together."""

    def __init__(self) -> None:
        self.programs: dict[bytes, dict[str, Any]] = {}
        self.models: dict[Key, dict[str, Any]] = {}
        #: the version that was chosen for a name, where one was
        self.uses: dict[str, int] = {}
        self._unseen: set[Key] | None = None

    def take(self, told: dict[str, Any]) -> list[Change]:
        """Take one answer in: what is different now."""
        if "fresh" in told:
            self._unseen = set(self.models)
        elif "program" in told:
            return self._program(told["program"])
        elif "model" in told:
            return self._model(told["model"])
        elif "removed" in told:
            return self._remove([tuple(told["removed"])])
        elif "uses" in told:
            return self._use(*told["uses"])
        elif "bad" in told:
            LOG.warning("skipped: %s", told["bad"])
        elif "end" in told:
            gone, self._unseen = sorted(self._unseen or ()), None
            return self._remove(gone)
        return []

    def entries(self) -> Iterator[Change]:
        """All of it as a start needs it: programs, then models with `in_use`, the newest version of each name last."""
        for facts in self.programs.values():
            yield "program", facts
        for key in sorted(self.models):
            yield "model", self._with_use(key)

    def _with_use(self, key: Key) -> dict[str, Any]:
        name, version = key
        chosen = self.uses.get(name, 0)
        return {**self.models[key], "in_use": (name, chosen) not in self.models or chosen == version}

    def _program(self, facts: dict[str, Any]) -> list[Change]:
        if self.programs.get(facts["hash"]) == facts:
            return []
        self.programs[facts["hash"]] = facts
        return [("program", facts)]

    def _model(self, facts: dict[str, Any]) -> list[Change]:
        key = (facts["name"], facts["version"])
        if self._unseen is not None:
            self._unseen.discard(key)
        if self.models.get(key) == facts:
            return []
        changed = [("removed", key)] if key in self.models else []
        self.models[key] = facts
        return [*changed, ("model", self._with_use(key))]

    def _remove(self, keys: list[Any]) -> list[Change]:
        return [("removed", key) for key in keys if self.models.pop(key, None) is not None]

    def _use(self, name: str, version: int) -> list[Change]:
        before = self.uses.pop(name, 0)
        if version:
            self.uses[name] = version
        return [("uses", (name, version))] if version not in (0, before) else []


def changed_name(kind: str, value: Any) -> str:
    """What a change is about, for people."""
    if kind == "program":
        return str(value["hash"].hex())
    name, version = (value["name"], value["version"]) if kind == "model" else value
    return f"{name}/{version}"
