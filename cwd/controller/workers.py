"""Workers from HELLO to the last PREPARE: joining, numbering programs, adopting what is on the device, staging images.

A worker may serve a program once PREPARE has given it the program's number, even if it has built it long ago. PREPAREs
keep the exec lane, so there is one at a time per worker, issued through the core. Weights that a worker says are on its
device are adopted right after their program: LOADs that the core is not asked about, whose outcome it takes for
granted (it is told that they are resident, and learns by a failed EXEC if one is not). They share the load lane with the
core's, so only as many are outstanding as the worker's agenda holds besides those. This module sends, but knows nothing
of clients.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from cwd.controller import feed
from cwd.controller.flush import adopt
from cwd.controller.host import ADOPTIONS, ROLE_WORKER, Host
from cwd.controller.outgoing import Outgoing
from cwd.controller.peers import add_peer, mark_leaving
from cwd.controller.registry import ModelInfo, ProgramInfo, Registry
from cwd.controller.times import start_clock, to_worker
from cwd.core.world import World
from cwd.errors import SENTENCES, Code, CwdError
from cwd.net.clock import monotonic_ns
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.messages import Type

LOG = logging.getLogger("cwd.controller")

_NO_IMAGE = bytes(16)
#: residents looked up in one step, and models between two looks at the clock
_CHUNK = 64
#: LOADs that adopt, outstanding at a worker
_ADOPTIONS = 16
#: a PREPARE may wait this long behind what runs on the exec lane
_PREPARE_LATEST_NS = 600 * NS_PER_S
#: how long PREPARE takes where the program is built already
_PREPARED_NS = 5 * NS_PER_MS
#: how long reading one page image is expected to take
_STAGED_NS = 100 * NS_PER_MS


@dataclasses.dataclass
class Job:
    """One PREPARE: number a program (`model` None: any of its models names it), or stage a model's image.

    `keeps`: the model is new, and not served before every worker has tried to stage it. A worker that joins must not
    keep the others' models from being served: it gets no work of a program before it has tried to stage its models.
    """

    program: ProgramInfo
    model: ModelInfo | None = None
    keeps: bool = False


@dataclasses.dataclass
class WorkerInfo:
    """A connected worker as its HELLO described it; `images` is None where any image will do."""

    slot: int
    generation: int
    key: int
    gpu: int
    name: str
    kind: str
    device: str
    pages_total: int
    prepares: bool
    programs: set[bytes]
    images: set[bytes] | None
    resident: dict[bytes, list[bytes]]
    numbered: set[bytes] = dataclasses.field(default_factory=set)
    jobs: deque[Job] = dataclasses.field(default_factory=deque)
    job: Job | None = None
    #: programs whose residents were looked up; `resident` has those of models not registered yet
    adopted: set[bytes] = dataclasses.field(default_factory=set)
    #: handles of models to adopt, in order; a program behind its own, which is served once they are on their way
    to_adopt: deque[int | ProgramInfo] = dataclasses.field(default_factory=deque)
    #: adoptions outstanding, and how many may be
    adopting: int = 0
    adopting_max: int = 1
    #: models whose images it could not stage
    failed: list[ModelInfo] = dataclasses.field(default_factory=list)
    #: it gets no more work, and takes leave when it has none
    draining: bool = False


class Workers:
    """All connected workers, by peer slot."""

    def __init__(self, host: Host, world: World, registry: Registry, outgoing: Outgoing, prepare_ns: int,
                 lane_depth: int) -> None:
        self._host, self._world, self._registry, self._outgoing = host, world, registry, outgoing
        self.prepare_ns, self._lane_depth = prepare_ns, lane_depth
        self.by_slot: dict[int, WorkerInfo] = {}
        self._gpus_free = list(range(len(host.gpus) - 1, -1, -1))
        self._adopted = ADOPTIONS
        self._draining: list[WorkerInfo] = []

    def parse(self, name: str, caps: dict[str, Any]) -> WorkerInfo:
        """What HELLO says; raises `CwdError` (MALFORMED) in one line for what section 6 of the protocol forbids."""
        for key, kind in (("kind", str), ("device", str), ("page_bytes", int), ("pages_total", int), ("lanes", list),
                          ("agenda_max", int), ("programs", bytes), ("resident", bytes), ("prepares", bool)):
            if type(caps.get(key)) is not kind:  # exactly: True is an int, and would compile the core anew for bools
                raise CwdError(f"caps: {key} is missing or no {kind.__name__}", code=Code.MALFORMED)
        images, resident = caps.get("images"), caps["resident"]
        if images is not True and not isinstance(images, bytes):
            raise CwdError("caps: images is missing", code=Code.MALFORMED)
        if caps["page_bytes"] != self._registry.page_bytes:
            raise CwdError(f"pages of {caps['page_bytes']} bytes; this controller counts pages of "
                           f"{self._registry.page_bytes}", code=Code.MALFORMED)
        for key in ("pages_total", "agenda_max"):  # u32: what RESULT can say of pages, and all that the core may be told
            if not 1 <= caps[key] < 1 << 32:
                raise CwdError(f"caps: {key} is {caps[key]}, not from 1 to {(1 << 32) - 1}", code=Code.MALFORMED)
        room = caps["agenda_max"] - self._lane_depth
        if room < 1:
            raise CwdError(f"an agenda of {caps['agenda_max']} actions; this controller sends up to "
                           f"{self._lane_depth + 1}", code=Code.MALFORMED)
        by_program: dict[bytes, list[bytes]] = {}
        for at in range(0, len(resident) - 31, 32):
            by_program.setdefault(resident[at + 16:at + 32], []).append(resident[at:at + 16])
        return WorkerInfo(
            -1, 0, 0, -1, name, caps["kind"], caps["device"], caps["pages_total"], caps["prepares"],
            set(_hashes(caps["programs"])), None if images is True else set(_hashes(images)), by_program,
            adopting_max=min(room, _ADOPTIONS))

    def join(self, worker: WorkerInfo, key: int, same_host: bool, now_ns: int, hello_ns: int) -> None:
        """Give the worker a GPU of the core. Raises `CwdError` (PEERS_FULL)."""
        if not self._gpus_free:
            raise CwdError(f"{len(self._host.gpus)} workers are connected already", code=Code.PEERS_FULL)
        kind = self._registry.kind_joined(worker.kind, worker.pages_total)
        gpu = self._gpus_free[-1]
        slot = int(add_peer(self._host, key, ROLE_WORKER, gpu, int(same_host), now_ns))
        if slot < 0:
            self._registry.kind_left(worker.kind)
            raise CwdError("the table of connections is full", code=Code.PEERS_FULL)
        self._gpus_free.pop()
        worker.slot, worker.key, worker.gpu = slot, key, gpu
        worker.generation = int(self._host.peers[slot]["generation"])
        self.by_slot[slot] = worker
        start_clock(self._host, slot, hello_ns, now_ns)
        feed.feed_joined(self._host, self._world, now_ns, gpu, kind, worker.pages_total)

    def settle(self, worker: WorkerInfo) -> Iterator[None]:
        """After WELCOME: queue a PREPARE for every image that is not staged, and behind them for their program, after
        which the worker gets work. A task of small steps."""
        for program in list(self._registry.programs.values()):
            for number, model in enumerate(list(program.models.values()) if worker.images is not None else ()):
                if self.by_slot.get(worker.slot) is not worker:
                    return
                self.want_image(worker, model, keeps=False)
                if number % _CHUNK == 0:
                    yield
            if self.by_slot.get(worker.slot) is not worker:
                return
            self.want_program(worker, program)
            yield
        if self.by_slot.get(worker.slot) is worker:
            self._next(worker)

    def left(self, slot: int, generation: int) -> WorkerInfo | None:
        """The loop has taken the peer out and told the core; its GPU is free again."""
        worker = self.by_slot.get(slot)
        if worker is None or worker.generation != generation:
            return None
        del self.by_slot[slot]
        self._gpus_free.append(worker.gpu)
        self._registry.kind_left(worker.kind)
        if worker.job is not None:
            worker.jobs.append(worker.job)
            worker.job = None
        self._drop_jobs(worker)
        for model in worker.failed:
            model.failed.discard(slot)
            self._registry.set_staging(model, 0)
        return worker

    def _drop_jobs(self, worker: WorkerInfo) -> None:
        for job in worker.jobs:
            if job.model is not None:
                self._registry.set_staging(job.model, -int(job.keeps))
        worker.jobs.clear()

    def drain(self, worker: WorkerInfo) -> None:
        """No new work for a worker; `release_drained` lets it go when what it has is done."""
        if worker.draining:
            return
        worker.draining = True
        self._drop_jobs(worker)
        worker.to_adopt.clear()
        self._draining.append(worker)
        feed.feed_draining(self._host, self._world, monotonic_ns(), worker.gpu)
        LOG.info("worker %s (gpu %d) drains", worker.name, worker.gpu)

    def release_drained(self) -> None:
        """Say GOODBYE to drained workers whose lanes are empty; they end. To be called now and then."""
        for worker in self._draining.copy():
            busy = self._world.lanes[2 * worker.gpu:2 * worker.gpu + 2]["count"].any() or worker.adopting
            if self.by_slot.get(worker.slot) is not worker:
                self._draining.remove(worker)
            elif not busy:
                self._draining.remove(worker)
                self._outgoing.send(worker.key, Type.GOODBYE, code=int(Code.DRAINING), text="the worker was drained")
                mark_leaving(self._host, worker.slot)

    def program_changed(self, program: ProgramInfo) -> None:
        """It may have a profile for more kinds now: have their workers know it."""
        for worker in self.by_slot.values():
            self.want_program(worker, program)
            self._next(worker)

    def model_added(self, model: ModelInfo) -> None:
        """Have every worker know the model's program and image."""
        for worker in self.by_slot.values():
            self.want_program(worker, model.program)
            self.want_image(worker, model, keeps=True)
            if model.program.hash in worker.adopted and model.image in worker.resident[model.program.hash]:
                worker.resident[model.program.hash].remove(model.image)  # it was said before the model was read
                worker.to_adopt.append(model.handle)
                self._adopt_next(worker)
            self._next(worker)

    def want_program(self, worker: WorkerInfo, program: ProgramInfo) -> None:
        if worker.draining or program.hash in worker.numbered or worker.kind not in program.profiles or not program.models:
            return
        worker.numbered.add(program.hash)
        worker.jobs.append(Job(program))

    def want_image(self, worker: WorkerInfo, model: ModelInfo, keeps: bool) -> None:
        known = worker.images is None or model.image in worker.images
        if worker.draining or known or worker.kind not in model.program.profiles:
            return
        worker.images.add(model.image)
        worker.jobs.append(Job(model.program, model, keeps))
        self._registry.set_staging(model, int(keeps))

    def _next(self, worker: WorkerInfo) -> None:
        """Issue the next PREPARE of a worker that has none under way."""
        while worker.job is None and worker.jobs:
            job = worker.jobs.popleft()
            model = job.model or next(iter(job.program.models.values()), None)
            if model is None:
                continue
            now_ns = monotonic_ns()
            expected_ns = self.prepare_ns
            if job.program.hash in worker.programs or not worker.prepares:
                expected_ns = _PREPARED_NS if job.model is None else _STAGED_NS
            action = int(feed.feed_reserved(self._host, self._world, now_ns, worker.gpu, expected_ns))
            if action < 0:
                worker.jobs.appendleft(job)
                LOG.warning("%s: no action left for PREPARE of %s", worker.name, model.key)
                return
            worker.job = job
            self._host.gpus[worker.gpu]["special"] = action
            self._outgoing.send(
                worker.key, Type.PREPARE, action=action, epoch=int(self._host.state[0]["epoch"]),
                earliest_ns=int(to_worker(self._host, worker.slot, now_ns)),
                latest_ns=int(to_worker(self._host, worker.slot, now_ns + _PREPARE_LATEST_NS)),
                expected_ns=expected_ns, name=model.name, version=model.version, program=job.program.hash,
                image=model.image if job.model else _NO_IMAGE, program_index=job.program.index)

    def result(self, news: Any) -> Iterator[None] | None:
        """The RESULT of an action that was sent from here (a row of the rare table)."""
        worker = self.by_slot.get(news["peer"])
        if worker is None or worker.generation != news["generation"]:
            return None
        if news["action"] >= ADOPTIONS:
            worker.adopting = max(worker.adopting - 1, 0)
            self._adopt_next(worker)
            return None
        return self._prepared(worker, news) if worker.job is not None else None

    def _prepared(self, worker: WorkerInfo, news: Any) -> Iterator[None]:
        """A PREPARE is over. A task: what is on the device is looked up in small steps."""
        if worker.job is None:
            return
        job, worker.job = worker.job, None
        status, gpu = news["status"], worker.gpu
        self._host.gpus[gpu]["special"] = -1
        feed.feed_done(self._host, self._world, news["now_ns"], gpu, news["action"], status, news["begin_ns"],
                       news["end_ns"], 0, 0, news["pages_free"], -1, 0)
        if status != Code.OK:
            what = job.model.key if job.model else f"program {job.program.hash.hex()}"
            LOG.warning("%s cannot prepare %s: %s", worker.name, what, _sentence(status))
        if job.model is not None:
            if status != Code.OK:
                job.model.failed.add(worker.slot)
                worker.failed.append(job.model)
            else:
                worker.programs.add(job.program.hash)
            self._registry.set_staging(job.model, -int(job.keeps))
        elif status == Code.OK and not worker.draining:
            worker.programs.add(job.program.hash)
            for _ in self._look_up(worker, job.program):
                yield
                if self.by_slot.get(worker.slot) is not worker:
                    return
            worker.to_adopt.append(job.program)
            self._adopt_next(worker)
        self._next(worker)

    def _look_up(self, worker: WorkerInfo, program: ProgramInfo) -> Iterator[None]:
        """Queue what is on the device for adoption; images of models that are not registered yet wait for `model_added`."""
        images = worker.resident.pop(program.hash, [])
        left = worker.resident[program.hash] = []
        worker.adopted.add(program.hash)
        for at in range(0, len(images), _CHUNK):
            for image in images[at:at + _CHUNK]:
                model = self._registry.by_image.get(image)
                if model is None:
                    left.append(image)
                else:
                    worker.to_adopt.append(model.handle)
            yield

    def _adopt_next(self, worker: WorkerInfo) -> None:
        """Send as many adoptions as may be outstanding, and let a program be served behind its last."""
        waiting = worker.to_adopt
        while waiting and (worker.adopting < worker.adopting_max or not isinstance(waiting[0], int)):
            models = []
            while waiting and isinstance(waiting[0], int) and worker.adopting + len(models) < worker.adopting_max:
                handle = waiting.popleft()
                if handle in self._registry.by_handle:  # else it was removed meanwhile
                    models.append(handle)
            if models:
                handles, now_ns = np.array(models, np.int64), monotonic_ns()
                sent = adopt(self._host, self._world, now_ns, worker.slot, handles, self._adopted)
                self._adopted += len(handles)
                worker.adopting += int(sent)
                feed.feed_resident(self._host, self._world, now_ns, worker.gpu, handles)
            if waiting and not isinstance(waiting[0], int):
                program = waiting.popleft()
                feed.feed_prepared(self._host, self._world, monotonic_ns(), worker.gpu, program.index, 1)


def _hashes(data: bytes) -> Iterator[bytes]:
    return (data[at:at + 16] for at in range(0, len(data) - 15, 16))


def _sentence(code: int) -> str:
    try:
        return SENTENCES[Code(code)]
    except ValueError:
        return f"code {code}"
