"""What can be served: programs, models and kinds of GPU, by name and hash for people and peers, by number for the core.

Built from what the repository's reader tells. Each method is one small step, so that whoever drives it can stop between
two. A model has a handle from the moment it is registered; it is *ready* while a connected worker's kind has a profile
of its program, the program is prepared there, and its page image does not wait to be staged. This module must not know
sockets or files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cwd.controller import feed
from cwd.controller.host import Host
from cwd.controller.names import Names
from cwd.controller.shapes import set_shape
from cwd.core.world import BATCHES_MAX, SLOT_MASK, Config, World
from cwd.errors import SENTENCES, Code, CwdError
from cwd.net.clock import monotonic_ns


@dataclasses.dataclass
class ProgramInfo:
    """A program of the core. `profiles` is by kind; any of `models` names it, for PREPARE."""

    index: int
    hash: bytes
    batches: list[int]
    n_classes: int
    profiles: dict[str, Any]
    #: kinds whose profile the core has been given
    seeded: set[str] = dataclasses.field(default_factory=set)
    #: what an instance takes; 0 before the first
    pages: int = 0
    models: dict[str, ModelInfo] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class ModelInfo:
    """A registered model; `staging` counts the workers that are still to fetch its page image."""

    handle: int
    name: str
    version: int
    program: ProgramInfo
    image: bytes
    pages: int
    manifest: dict[str, Any]
    staging: int = 0
    #: slots of workers that could not stage it
    failed: set[int] = dataclasses.field(default_factory=set)

    @property
    def key(self) -> str:
        return f"{self.name}/{self.version}"


class Registry:
    """The tables, and the core told of every change."""

    def __init__(self, host: Host, world: World, core: Config, page_bytes: int) -> None:
        self._host, self._world, self._core = host, world, core
        self.page_bytes = page_bytes
        self.programs: dict[bytes, ProgramInfo] = {}
        self.models: dict[str, ModelInfo] = {}
        self.by_handle: dict[int, ModelInfo] = {}
        self.by_image: dict[bytes, ModelInfo] = {}
        self.names = Names(host)
        self._versions: dict[str, list[int]] = {}
        #: kind -> its number in the core; how many workers of it are connected
        self.kinds: dict[str, int] = {}
        self.connected: dict[str, int] = {}
        #: largest pool that a worker has offered; 0 before the first
        self.pages_max = 0

    def find(self, name: str, version: int = 0) -> ModelInfo | None:
        """The model; the version that the name stands for, for 0."""
        if version:
            return self.models.get(f"{name}/{version}")
        known = self.names.find(name)
        return known.model if known else None

    def versions(self, name: str) -> list[ModelInfo]:
        """All registered versions of a model, oldest first."""
        return [self.models[f"{name}/{version}"] for version in self._versions.get(name, ())]

    def page(self, after: int, limit: int) -> tuple[list[ModelInfo], int]:
        """Up to `limit` models in the order of their slots, behind the one with handle `after` (0: from the first),
        and the handle to go on after; 0 at the end."""
        table = self._host.models
        first = (after & SLOT_MASK) + 1 if after else 0
        used = np.flatnonzero(table["handle"][first:] >= 0)
        page = [self.by_handle[int(table[first + at]["handle"])] for at in used[:limit]]
        return page, page[-1].handle if len(used) > limit else 0

    def add_program(self, facts: dict[str, Any]) -> ProgramInfo:
        """Register a program, or take in new profiles of a known one. Raises `CwdError` (REGISTRY_FULL, BAD_MODEL)."""
        known = self.programs.get(facts["hash"])
        if known is not None:
            for kind, profile in facts["profiles"].items():
                if known.profiles.get(kind) != profile:
                    known.profiles[kind] = profile
                    known.seeded.discard(kind)
            for kind in self.kinds:
                self._seed(known, kind)
            self._refresh(known)
            return known
        index = len(self.programs)
        n_classes = len(facts["shape"]["classes"])
        if index >= self._core.programs_max:
            raise CwdError(f"the table of programs is full ({index})", code=Code.REGISTRY_FULL)
        if n_classes > self._core.classes_max or len(facts["batches"]) > BATCHES_MAX:
            raise CwdError(
                f"a program of {n_classes} size classes and {len(facts['batches'])} batch sizes; at most "
                f"{self._core.classes_max} and {BATCHES_MAX} are served", code=Code.BAD_MODEL)
        program = ProgramInfo(index, facts["hash"], facts["batches"], n_classes, dict(facts["profiles"]))
        set_shape(self._host.shapes, index, facts["shape"])
        feed.feed_program(
            self._host, self._world, monotonic_ns(), index, np.array(program.batches, np.int64), n_classes)
        self.programs[program.hash] = program
        for kind in self.kinds:
            self._seed(program, kind)
        return program

    def add_model(self, facts: dict[str, Any]) -> ModelInfo:
        """Register a model. Raises `CwdError`: MODEL_EXISTS, REGISTRY_FULL, MODEL_TOO_LARGE, BAD_MODEL.

        `facts["in_use"]`: its name stands for this version from now on, and not only if it has no other.
        """
        key = f"{facts['name']}/{facts['version']}"
        if key in self.models:
            raise CwdError(f"{key} is registered already", code=Code.MODEL_EXISTS)
        program = self.programs.get(facts["program"])
        if program is None:
            raise CwdError(f"{key}: its program was refused", code=Code.BAD_MODEL)
        pages = max(1, -(-facts["image_bytes"] // self.page_bytes))
        if self.pages_max and pages > self.pages_max:
            raise CwdError(f"{key} needs {pages} pages of {self.page_bytes} bytes, and the largest pool has "
                           f"{self.pages_max}", code=Code.MODEL_TOO_LARGE)
        if pages != program.pages:
            program.pages = pages
            for kind in program.seeded:
                self._seed_load(program, kind)
        handle = int(feed.feed_model(self._host, self._world, monotonic_ns(), program.index, pages))
        if handle < 0:
            raise CwdError(f"{key}: {SENTENCES[Code(-handle)]}", code=Code(-handle))
        model = ModelInfo(handle, facts["name"], facts["version"], program, facts["image"], pages, facts["manifest"])
        self.models[key] = self.by_handle[handle] = self.by_image[model.image] = model
        program.models[key] = model
        versions = self._versions.setdefault(model.name, [])
        versions.append(model.version)
        versions.sort()
        self.names.added(model, facts.get("in_use", False))
        row = self._host.models[handle & SLOT_MASK]
        row["handle"], row["program"], row["requests"] = handle, program.index, 0
        row["image"] = np.frombuffer(model.image, np.uint8)
        row["ready"] = self._servable(program)
        return model

    def remove_model(self, model: ModelInfo) -> None:
        """Take a model out: its queued requests are answered, its pages are freed by the core."""
        self._host.models[model.handle & SLOT_MASK]["handle"] = -1
        feed.feed_model_removed(self._host, self._world, monotonic_ns(), model.handle)
        del self.models[model.key], self.by_handle[model.handle], model.program.models[model.key]
        if self.by_image.get(model.image) is model:
            del self.by_image[model.image]
        self._versions[model.name].remove(model.version)
        left = self.versions(model.name)
        if not left:
            del self._versions[model.name]
        self.names.removed(model, left[-1] if left else None)

    def kind_joined(self, kind: str, pages_total: int) -> int:
        """A worker of this kind is here: the kind's number in the core. Raises `CwdError` (PEERS_FULL) for one too many."""
        if kind not in self.kinds:
            if len(self.kinds) >= self._core.kinds_max:
                raise CwdError(f"a worker of a new kind {kind!r}; {len(self.kinds)} kinds are the most",
                               code=Code.PEERS_FULL)
            self.kinds[kind] = len(self.kinds)
            self.connected[kind] = 0
        self.connected[kind] += 1
        self.pages_max = max(self.pages_max, pages_total)
        if self.connected[kind] == 1:
            for program in self.programs.values():
                self._seed(program, kind)
            self._refresh_all()
        return self.kinds[kind]

    def kind_left(self, kind: str) -> None:
        """A worker of this kind is gone."""
        self.connected[kind] -= 1
        if self.connected[kind] == 0:
            self._refresh_all()

    def _refresh_all(self) -> None:
        for program in self.programs.values():
            self._refresh(program)

    def set_staging(self, model: ModelInfo, change: int) -> None:
        """One worker more or less has the model's image still to stage."""
        model.staging += change
        if self.by_handle.get(model.handle) is model:
            self._host.models[model.handle & SLOT_MASK]["ready"] = self._staged(model) and self._servable(model.program)

    def ready(self, model: ModelInfo) -> bool:
        """Whether a client that looks the model up may use it at once."""
        return bool(self._host.models[model.handle & SLOT_MASK]["ready"]
                    and self._world.programs[model.program.index]["prepared"] > 0)

    def servable(self) -> int:
        """How many models are `ready`."""
        table = self._host.models
        return int(np.count_nonzero((table["handle"] > 0) & (table["ready"] != 0)
                                    & (self._world.programs["prepared"][table["program"]] > 0)))

    def why_not_ready(self, model: ModelInfo) -> tuple[Code, str]:
        """A code and one line for a model that is not ready."""
        connected = [kind for kind, count in self.connected.items() if count]
        if not connected:
            return Code.MODEL_NOT_READY, f"{model.key}: no worker is connected"
        if not self._servable(model.program):
            return Code.NOT_PROFILED, f"{model.key}: not profiled on {', '.join(connected)}"
        if model.staging == 0 and not self._staged(model):
            return Code.NOT_HERE, f"{model.key}: no worker could read its weights"
        return Code.MODEL_NOT_READY, f"{model.key}: its program is being prepared, or its weights are being read"

    def _staged(self, model: ModelInfo) -> bool:
        """No worker has its image still to fetch, and not all of them have failed to."""
        return model.staging == 0 and len(model.failed) < max(1, sum(self.connected.values()))

    def _servable(self, program: ProgramInfo) -> bool:
        """A connected worker's kind has its profile; with no worker at all it is the core that says NO_WORKER."""
        connected = [kind for kind, count in self.connected.items() if count]
        return not connected or any(kind in program.profiles for kind in connected)

    def _refresh(self, program: ProgramInfo) -> None:
        """Recompute `ready` of the program's models."""
        table = self._host.models
        mine = (table["program"] == program.index) & (table["handle"] >= 0)
        table["ready"][mine] = self._servable(program)
        for model in program.models.values() if self._servable(program) else ():
            if model.staging or model.failed:
                table[model.handle & SLOT_MASK]["ready"] = self._staged(model)

    def _seed(self, program: ProgramInfo, kind: str) -> None:
        """Give the core the profile of a program on a kind, once."""
        profile = program.profiles.get(kind)
        if profile is None or kind in program.seeded:
            return
        number, now_ns = self.kinds[kind], monotonic_ns()
        for batch, size_class, exec_ns in profile["exec"]:
            if batch in program.batches and size_class < program.n_classes:
                feed.feed_seed(self._host, self._world, now_ns, program.index, number, program.batches.index(batch),
                               size_class, exec_ns)
        program.seeded.add(kind)
        self._seed_load(program, kind)

    def _seed_load(self, program: ProgramInfo, kind: str) -> None:
        if program.pages:
            profile = program.profiles[kind]  # its pages may have another size than ours
            load_ns = -(-program.pages * self.page_bytes * profile["load_ns_per_page"] // profile["page_bytes"])
            feed.feed_load_seed(
                self._host, self._world, monotonic_ns(), program.index, self.kinds[kind], max(load_ns, 1))
