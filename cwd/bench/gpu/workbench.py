"""What the steps share: the rig, what was found so far, and the models, which are made when first wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwd.bench.gpu.rig import Rig
from cwd.bench.gpu.timing import Deadline

if TYPE_CHECKING:
    from cwd.bench.gpu.models import Instances
    from cwd.models.repository import Repository


class Workbench:
    """`folder` is for the repository of models and for sockets; `found` holds the figures of earlier steps, by name."""

    def __init__(self, rig: Rig, folder: Path, say: Callable[[str], None]) -> None:
        self.rig, self.folder, self.say = rig, folder, say
        self.found: dict[str, dict[str, Any]] = {}
        #: seconds that each model took to make
        self.made_s: dict[str, float] = {}
        self._repository: Repository | None = None
        self._instances: dict[str, Instances] = {}

    @property
    def repository(self) -> Repository:
        # imported late: whatever is wrong with the models' packages costs the steps that need them, and no other
        from cwd.models.repository import Repository

        if self._repository is None:
            self._repository = Repository(self.folder / "models", create=True)
        return self._repository

    def instances(self, name: str) -> Instances:
        """One of the models of models.py."""
        from cwd.bench.gpu import models

        if name not in self._instances:
            begin = time.monotonic()
            self.say(f"making {name}")
            entry = models.add(self.repository, name, self.rig.sizes.toy)
            self._instances[name] = models.Instances(self.repository, entry)
            self.made_s[name] = time.monotonic() - begin
        return self._instances[name]

    def cut(self, until: Deadline) -> bool:
        """Whether a step has to leave parts out; a dry run walks through all."""
        return until.over and not self.rig.dry

    def figure(self, step: str, *names: str, default: Any = None) -> Any:
        """A figure of an earlier step, or the default where it is not there."""
        value: Any = self.found.get(step)
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value
