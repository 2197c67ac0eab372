"""A naive cluster in virtual time around the real core: GPUs with two FIFO lanes, seeded durations, losses, failures.

It is host and workers in one, and it checks as it goes: one end per request and per payload, no execution without
residency, no page that is not there, no output after its deadline, every index right after every event.
"""

from __future__ import annotations

import dataclasses
import heapq
import random

import numpy as np

from cwd.core import engine
from cwd.core.check import NAMES, check
from cwd.core.world import (
    ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, FOREVER_NS, OUT_ACTION, OUT_REPLY, Config, make_world,
)
from cwd.errors import Code

US, MS = 1_000, 1_000_000
BATCHES = np.array([1, 2, 4, 8, 16], np.int64)
EXEC_NS = [2_730 * US, 4_050 * US, 5_870 * US, 9_930 * US, 17_300 * US]
LOAD_NS = 8_300 * US
PAGES = 7


@dataclasses.dataclass
class Faults:
    """Chances per action: never delivered, result lost, refused by the device, ten times slower."""

    undelivered: float = 0.0
    lost: float = 0.0
    failed: float = 0.0
    slow: float = 0.0


@dataclasses.dataclass
class Gpu:
    """What a worker knows: its pages, when its lanes are free, and which incarnation it is."""

    pages_total: int
    life: int = 0
    heard_at: int = 0
    resident: dict = dataclasses.field(default_factory=dict)
    free_at: dict = dataclasses.field(default_factory=lambda: {"exec": 0, "load": 0})

    @property
    def pages_free(self) -> int:
        return self.pages_total - sum(self.resident.values())


class MiniWorld:
    """A world of `models` instances of one program with two size classes, on `gpus` GPUs of `pages` pages."""

    def __init__(self, seed=0, policy="clockwork", gpus=2, models=6, pages=20, faults=None, checked=True, **config):
        sizes = dict(models_max=models + 2, programs_max=2, requests_max=256, gpus_max=gpus, copies_max=64,
                     actions_max=128, clients_max=8, events_max=64)
        sizes.update(config)
        self.world = make_world(Config(policy=policy, **sizes))
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.checked = checked
        self.now = 1_000 * MS
        self.events: list = []
        self.sequence = 0
        self.live: dict[tuple[int, int], dict] = {}
        self.payloads: set[int] = set()
        self.results: set[int] = set()
        self.replies: list[dict] = []
        self.refused: list[dict] = []
        self.actions: set[int] = set()
        self.log: list[bytes] = []
        self.gpus = [Gpu(pages) for _ in range(gpus)]
        engine.program_added(self.world, 0, BATCHES, len(BATCHES), 2)
        for b, duration_ns in enumerate(EXEC_NS):
            for size_class in range(2):
                engine.estimate_seed(self.world, 0, 0, b, size_class, duration_ns * (1 + size_class))
        engine.load_seed(self.world, 0, 0, LOAD_NS)
        for gpu in range(gpus):
            self.join(gpu)
        self.models = [int(engine.model_added(self.world, self.now, 0, PAGES)) for _ in range(models)]

    # -- what happens ------------------------------------------------------------------------------------------------

    def join(self, gpu: int) -> None:
        assert engine.gpu_joined(self.world, self.now, gpu, 0, self.gpus[gpu].pages_total) == 0
        engine.program_prepared(self.world, self.now, gpu, 0, 1)
        for model in self.gpus[gpu].resident:
            if engine.gpu_resident(self.world, self.now, gpu, model):
                del self.gpus[gpu].resident[model]
                break

    def lose(self, gpu: int) -> None:
        """The worker dies; a new one takes its place at once, with empty pages."""
        engine.gpu_lost(self.world, self.now, gpu)
        self.settle()
        self.gpus[gpu] = Gpu(self.gpus[gpu].pages_total, self.gpus[gpu].life + 1)
        self.join(gpu)
        self.settle()

    def request(self, client: int, request_id: int, model: int, slo_ns: int, size_class: int = 0) -> int:
        self.sequence += 1
        payload = self.sequence
        self.payloads.add(payload)
        key = (client, request_id)
        fresh = key not in self.live
        if fresh:
            self.live[key] = {"deadline": self.now + slo_ns, "payload": payload, "model": model}
        code = engine.request_arrived(
            self.world, self.now, client, request_id, model, size_class, 0, slo_ns, 7, payload)
        assert fresh or code != 0, "a duplicate was accepted"
        self.settle(tick=False)
        return int(code)

    def at(self, when: int, what) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (when, self.sequence, what))

    def run(self, until: int) -> None:
        """Let time pass, with a tick after each event and whenever the core asks for one."""
        while True:
            self.settle()
            timer = int(engine.next_timer(self.world, self.now))
            event = self.events[0][0] if self.events else FOREVER_NS
            when = min(timer, event)
            if when > until:
                self.now = until
                return
            self.now = max(self.now, when)
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()

    def settle(self, tick: bool = True) -> None:
        if tick:
            engine.tick(self.world, self.now)
        counters = self.world.counters[0]
        count = int(counters["outbox_count"])
        records = self.world.outbox[:count].copy()
        counters["outbox_count"] = 0
        if count:
            self.log.append(records.tobytes())
        for out in records:
            out = {name: int(out[name]) for name in out.dtype.names}
            if out["kind"] == OUT_ACTION:
                self._send(out)
            elif out["kind"] == OUT_REPLY:
                self._reply(out)
            else:
                self._release(out)
        if self.checked:
            number = check(self.world)
            assert number == 0, f"invariant {number}: {NAMES[number]} at {self.now}"

    # -- what the core wants -------------------------------------------------------------------------------------------

    def _reply(self, out: dict) -> None:
        key = (out["client"], out["request_id"])
        mine = self.live.get(key)
        self._let_go(out["payload"])
        if out["status"] == Code.DUPLICATE_REQUEST:
            assert mine is not None and mine["payload"] != out["payload"]
            return
        assert mine is not None, f"a second reply to {key}"
        assert mine["payload"] == out["payload"]
        del self.live[key]
        if out["status"] == Code.OK:
            assert self.now <= mine["deadline"], "an output after its deadline"
            assert out["result"] in self.results and 0 <= out["row"] < out["rows"] <= out["batch"]
        else:
            assert out["result"] == -1
        self.replies.append({**out, "at": self.now, "deadline": mine["deadline"]})

    def _let_go(self, payload: int) -> None:
        if payload != -1:
            assert payload in self.payloads, "a payload let go twice"
            self.payloads.remove(payload)

    def _release(self, out: dict) -> None:
        self._let_go(out["payload"])
        if out["result"] != -1:
            self.results.remove(out["result"])

    def _send(self, out: dict) -> None:
        assert out["action"] not in self.actions, "an action id was used twice"
        self.actions.add(out["action"])
        if out["verb"] == ACTION_EXEC:
            rows, r = 0, out["first"]
            while r != -1:
                assert self.world.requests[r]["size_class"] <= out["size_class"]
                rows, r = rows + 1, int(self.world.requests[r]["next"])
            assert rows == out["rows"] <= out["batch"]
        gpu = out["gpu"]
        if self.random.random() < self.faults.undelivered:
            return
        life = self.gpus[gpu].life
        # a connection keeps the order
        arrives = max(self.gpus[gpu].heard_at, self.now + 60 * US + self.random.randrange(60 * US))
        self.gpus[gpu].heard_at = arrives
        self.at(arrives, lambda: self._perform(out, gpu, life))

    def _perform(self, out: dict, gpu: int, life: int) -> None:
        """A worker takes an action when it arrives; its lanes are FIFO, so the start is known at once."""
        worker = self.gpus[gpu]
        if worker.life != life:
            return
        lane = "exec" if out["verb"] == ACTION_EXEC else "load"
        begin = max(self.now, worker.free_at[lane], out["earliest_ns"])
        # the fifo of a lane is kept by performing at the start: a later arrival finds free_at moved on
        worker.free_at[lane] = begin
        self.at(begin, lambda: self._start(out, gpu, life, lane))
        duration = self._duration(out)
        out["duration"] = duration
        if begin <= out["latest_ns"]:
            worker.free_at[lane] = begin + duration

    def _duration(self, out: dict) -> int:
        if out["verb"] == ACTION_UNLOAD:
            return 5 * US
        base = LOAD_NS if out["verb"] == ACTION_LOAD else (
            EXEC_NS[BATCHES.tolist().index(out["batch"])] * (1 + out["size_class"]))
        slow = 10 if self.random.random() < self.faults.slow else 1
        return base * slow + self.random.randrange(base // 50)

    def _start(self, out: dict, gpu: int, life: int, lane: str) -> None:
        worker = self.gpus[gpu]
        if worker.life != life:
            return
        status, model, duration = int(Code.OK), out["model"], out["duration"]
        if self.now > out["latest_ns"]:
            status, duration = int(Code.TOO_LATE), 0
        elif self.random.random() < self.faults.failed:
            status = int(self.random.choice([Code.DEVICE_ERROR, Code.LANE_FULL, Code.IN_USE]))
        elif out["verb"] == ACTION_EXEC:
            assert model in worker.resident, "an execution without residency"
        elif out["verb"] == ACTION_LOAD:
            assert model not in worker.resident, "a second LOAD"
            if worker.pages_free < out["pages"]:
                assert self.faults.failed or self.faults.undelivered, "a LOAD without room"
                status = int(Code.NO_PAGES)
            else:
                worker.resident[model] = out["pages"]
        elif model not in worker.resident:
            assert self.faults != Faults(), "an UNLOAD of what is not there"
            status = int(Code.NOT_RESIDENT)
        else:
            del worker.resident[model]
        assert worker.pages_free >= 0
        begin = self.now
        self.at(begin + duration, lambda: self._finish(out, gpu, life, status, begin))

    def _finish(self, out: dict, gpu: int, life: int, status: int, begin: int) -> None:
        if self.gpus[gpu].life != life or self.random.random() < self.faults.lost:
            return
        end, pages_free = self.now, self.gpus[gpu].pages_free
        self.at(end + 50 * US + self.random.randrange(100 * US), lambda: self._result(out, status, begin, end, pages_free))

    def _result(self, out: dict, status: int, begin: int, end: int, pages_free: int) -> None:
        result, rows = -1, 0
        if out["verb"] == ACTION_EXEC and status == Code.OK:
            self.sequence += 1
            result, rows = self.sequence, out["rows"]
            self.results.add(result)
        before = self.world.counters[0]["outbox_count"]
        stale = engine.action_done(
            self.world, self.now, out["action"], status, begin, end, 0, rows,
            -1 if out["verb"] == ACTION_EXEC else pages_free, result)
        if stale:
            assert before == self.world.counters[0]["outbox_count"]
            self.results.discard(result)
        self.settle(tick=False)

    # -- questions -----------------------------------------------------------------------------------------------------

    def finished(self) -> None:
        """Everything has ended: no request, no payload, no result is left."""
        assert not self.live and not self.payloads and not self.results
        assert self.world.counters[0]["requests_live"] == 0

    def count(self, status: Code) -> int:
        return sum(1 for reply in self.replies if reply["status"] == status)
