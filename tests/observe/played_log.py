"""A log played at random by the controller's rules, and the naive twin of who counts it: dicts and lists, one record a time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np

from cwd.controller.record import LOG_MAGIC, RECORD, Kind
from cwd.errors import Code

MS = 1_000_000
MODELS, GPUS = 6, 3
LOAD, UNLOAD, EXEC = 1, 2, 3
REPLIES = (Code.OK, Code.OK, Code.OK, Code.DEADLINE_MISSED, Code.DEADLINE_EXPIRED, Code.CANCELLED, Code.WORKER_LOST,
           Code.EXECUTION_FAILED)


class Player:
    """Writes records; `facts` counts what it wrote, the slow and obvious way."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.rows: list[dict[str, int]] = []
        self.now_ns = 1_000 * MS
        self.open: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.actions: dict[int, tuple[int, int, int, int, int]] = {}
        self.next_action = 0
        self.models: dict[int, int] = {}
        self.resident: dict[int, set[int]] = {}
        self.free: dict[int, int] = {}
        self.total: dict[int, int] = {}
        self.codes: Counter[int] = Counter()
        self.by_model: Counter[tuple[int, int]] = Counter()
        self.ratios: list[float] = []
        self.durations: list[int] = []
        self.queues: list[int] = []
        self.refusals: list[int] = []
        self.batches: list[int] = []
        self.errors: dict[tuple[str, str], list[int]] = {(what, took): [] for what in ("infer", "load", "network")
                                                         for took in ("longer", "shorter")}
        self.networks: list[int] = []
        self.busy: Counter[tuple[int, int]] = Counter()
        self.sent: Counter[int] = Counter()
        self.done: Counter[tuple[int, int]] = Counter()
        self.arrivals = self.cold = self.lost = 0
        for slot in range(MODELS):
            self.add_model(slot)
        for gpu in range(GPUS):
            self.join(gpu)

    def write(self, kind: Kind, **fields: int) -> None:
        self.now_ns += self.random.randrange(1, 2 * MS)
        self.rows.append({"now_ns": self.now_ns, "kind": int(kind), "gpu": -1, "model": -1, **fields})

    def records(self) -> np.ndarray:
        found = np.zeros(len(self.rows), RECORD)
        for at, row in enumerate(self.rows):
            for name, value in row.items():
                found[at][name] = value
        return found

    def step(self) -> None:
        choice = self.random.randrange(100)
        if choice < 35:
            self.arrive()
        elif choice < 60:
            self.reply()
        elif choice < 75:
            self.send()
        elif choice < 92:
            self.result()
        else:
            self.random.choice((self.client_gone, self.refuse, self.gap, self.change_model, self.rejoin, self.tick))()

    # requests

    def _handle(self) -> int:
        return self.models[self.random.choice(list(self.models))]

    def _count(self, handle: int, code: int) -> None:
        self.codes[code] += 1
        self.by_model[handle, code] += 1

    def arrive(self) -> None:
        client, request, handle = self.random.randrange(4), self.random.randrange(8), self._handle()
        slo_ns, code = self.random.randrange(1, 100) * MS, 0
        if (client, request) in self.open:
            code = int(Code.DUPLICATE_REQUEST)
        elif self.random.random() < .1:
            code = int(Code.DEADLINE_UNREACHABLE)
        self.arrivals += 1
        self.write(Kind.ARRIVED, id=request, a=client, c=slo_ns, model=handle, status=code, b=self.now_ns + slo_ns)
        if code:
            self.write(Kind.REPLY, id=request, a=client, model=handle, status=code)
            self._count(handle, code)
            self.refusals.append(0)
        else:
            self.open[client, request] = (handle, slo_ns, self.now_ns)

    def reply(self) -> None:
        if not self.open:
            return
        client, request = self.random.choice(list(self.open))
        handle, slo_ns, arrival_ns = self.open.pop((client, request))
        code, cold = int(self.random.choice(REPLIES)), self.random.randrange(2)
        # total and queue may be anything: bounds of buckets are met, too
        total_ns, queued_ns = self.random.choice((5, 25, 100)) * MS + self.random.randrange(-1, 2), self.random.randrange(9 * MS)
        self.write(Kind.REPLY, id=request, a=client, model=handle, status=code, flag=cold, e=total_ns, b=queued_ns, d=2 * MS)
        self._count(handle, code)
        if code in (Code.OK, Code.DEADLINE_MISSED):
            self.durations.append(total_ns)
            self.queues.append(queued_ns)
            self.ratios.append(total_ns / slo_ns)
            self.cold += cold and code == Code.OK
        else:
            self.refusals.append(total_ns)

    def client_gone(self) -> None:
        gone = self.random.randrange(4)
        self.write(Kind.CLIENT_GONE, a=gone)
        self.open = {key: value for key, value in self.open.items() if key[0] != gone}

    def refuse(self) -> None:
        handle = self.random.choice((self._handle(), -7, 1 << 40, (99 << 32) | 1))
        self.arrivals += 1
        self.write(Kind.REFUSED, id=1, a=0, model=handle, status=int(Code.UNKNOWN_MODEL))
        self._count(handle, int(Code.UNKNOWN_MODEL))
        self.refusals.append(0)

    # actions

    def send(self) -> None:
        if not self.total:
            return
        kind, gpu, handle = self.random.choice((LOAD, UNLOAD, EXEC, EXEC)), self.random.choice(list(self.total)), self._handle()
        slots = {action & 0xFFFFFFFF for action in self.actions}
        slot = next(slot for slot in range(64) if slot not in slots)
        self.next_action += 1
        action = self.next_action << 32 | slot
        predicted_ns, rows = self.random.randrange(1, 20) * MS, self.random.randrange(1, 20)
        self.write(Kind.ACTION, id=action, flag=kind, gpu=gpu, model=handle, g=predicted_ns, h=rows, b=2)
        self.sent[kind] += 1
        self.actions[action] = (kind, gpu, handle, predicted_ns, rows)

    def result(self) -> None:
        if not self.actions:
            return
        action = self.random.choice(list(self.actions))
        kind, gpu, handle, predicted_ns, rows = self.actions.pop(action)
        if self.random.random() < .1:
            return  # lost; its slot is given to another
        stale = self.random.random() < .1
        status = int(self.random.choice((Code.OK, Code.OK, Code.OK, Code.TOO_LATE)))
        took_ns = 0 if status else self.random.randrange(1, 25 * MS)
        end_ns = self.now_ns - self.random.randrange(MS) if took_ns else 0
        free = self.random.randrange(9) if kind != EXEC else -1
        margin_ns = self.random.randrange(2 * MS)
        self.write(Kind.DONE, id=action, flag=int(stale), status=status, gpu=gpu, a=end_ns - took_ns, b=end_ns, e=free,
                   g=end_ns + 1000 if end_ns else 0, h=margin_ns)
        if stale:
            return
        self.done[kind, status] += 1
        if gpu in self.total:
            self.free[gpu] = free if free >= 0 else self.free[gpu]
            if status == 0 and kind == LOAD:
                self.resident[gpu].add(handle)
            elif status == 0 and kind == UNLOAD:
                self.resident[gpu].discard(handle)
        if status:
            return
        self.busy[gpu, int(kind != EXEC)] += took_ns
        self.networks.append(self.now_ns - end_ns - 1000)
        if kind != UNLOAD:
            self._off("infer" if kind == EXEC else "load", took_ns - predicted_ns)
        self._off("network", self.now_ns - end_ns - margin_ns)
        if kind == EXEC:
            self.batches.append(rows)

    def _off(self, what: str, error_ns: int) -> None:
        self.errors[what, "longer" if error_ns >= 0 else "shorter"].append(abs(error_ns))

    # what is rare

    def gap(self) -> None:
        self.lost += 5
        self.write(Kind.GAP, a=5)

    def tick(self) -> None:
        self.write(Kind.TICK)

    def add_model(self, slot: int) -> None:
        generation = (self.models.get(slot, -1) >> 32) + 1
        self.models[slot] = generation << 32 | slot
        self.write(Kind.MODEL_ADDED, model=self.models[slot], a=2)

    def change_model(self) -> None:
        """Another takes a slot; nothing of the old one is under way."""
        handle = self._handle()
        if any(handle in (row[0], row[2]) for row in [*self.open.values(), *self.actions.values()]):
            return
        self.write(Kind.MODEL_REMOVED, model=handle)
        self.add_model(handle & 0xFFFFFFFF)

    def join(self, gpu: int) -> None:
        self.total[gpu] = self.free[gpu] = 8
        self.resident[gpu] = set()
        self.write(Kind.JOINED, gpu=gpu, a=0, b=8)
        if self.random.random() < .5:
            handle = self._handle()
            self.write(Kind.RESIDENT, gpu=gpu, model=handle)
            self.resident[gpu].add(handle)
            self.free[gpu] -= 2

    def rejoin(self) -> None:
        gpu = self.random.randrange(GPUS)
        if gpu not in self.total:
            self.join(gpu)
            return
        self.write(Kind.LOST, gpu=gpu)
        self.actions = {action: row for action, row in self.actions.items() if row[1] != gpu}
        del self.total[gpu], self.free[gpu], self.resident[gpu]


def write_log(folder: Path, records: np.ndarray, names: list[str], epoch: int = 16, part: int = 0) -> Path:
    """A log's file with its header, as the controller's writer makes it."""
    header = {"version": 1, "epoch": epoch, "record_bytes": RECORD.itemsize, "part": part, "cwd": "0",
              "config": {"models_max": 64, "gpus_max": 8, "policy": "cwd", "log": True},
              "started": {"wall_ns": 10**18, "monotonic_ns": 0}}
    text = json.dumps(header).encode()
    path = folder / (f"log-{epoch:016x}.cwdlog" if part == 0 else f"log-{epoch:016x}.{part}.cwdlog")
    path.write_bytes(LOG_MAGIC + len(text).to_bytes(4, "little") + text + records.tobytes())
    (folder / f"log-{epoch:016x}.names").write_text("".join(line + "\n" for line in names))
    return path
