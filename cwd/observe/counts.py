"""Counts and histograms of a controller, from its event log: what metrics, `cwd top` and tests all read.

Sans-IO: it is given batches of records and the names that stand beside the log, and knows no file, clock or socket. A
batch costs some tens of numpy calls whatever its size, so whoever feeds it feeds many records at once. Loops in Python
are over what is rare: GPUs, models and pages that come and go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.controller.record import Kind
from cwd.errors import Code
from cwd.observe import histogram
from cwd.observe.histogram import Histogram
from cwd.observe.pairs import EXEC, LOAD, RESERVED, SLOT_MASK, UNLOAD, OpenActions, OpenRequests
from cwd.observe.verdicts import CODES, IN_TIME, LATE, OUTCOME, OUTCOMES

Records = NDArray[np.void]

#: columns of a model's counts: the outcomes of its requests, and of those in time what they took, in all
MODEL_FIELDS = (*OUTCOMES, "cold", "total_ns", "queued_ns", "exec_ns", "executions", "rows", "busy_ns",
                "worker_lost", "exec_failed")
#: where each is
COLUMN = {name: at for at, name in enumerate(MODEL_FIELDS)}
#: what an action is called
ACTIONS = {LOAD: "load", UNLOAD: "unload", EXEC: "infer", RESERVED: "prepare"}
LANES = ("exec", "load")
#: a lane's number, by the kind of action
_LANE = np.array([0, 1, 1, 0, 0], np.int64)
#: after an UNLOAD with such a result the model is not there
_GONE = (int(Code.OK), int(Code.NOT_RESIDENT))


class Counts:
    """Everything that was counted since the first batch. Times are ns on the controller's clock."""

    def __init__(self, models_max: int = 4096, gpus_max: int = 64) -> None:
        self.now_ns = 0
        self.records = self.lost = self.arrivals = self.cold = 0
        #: replies by code, those of the host included
        self.codes = np.zeros(CODES, np.int64)
        #: requests that were executed, in time or too late
        self.duration, self.queue = histogram.durations(), histogram.durations()
        self.slo_ratio = Histogram(histogram.RATIOS)
        #: how long it took to say no
        self.refusal = histogram.durations()
        self.exec, self.load, self.network = histogram.work(), histogram.work(), histogram.work()
        self.batch = Histogram(histogram.BATCHES)
        #: (what was predicted, whether it took longer or shorter) -> by how much; a network's is its margin
        self.errors = {(what, took): histogram.errors() for what in ("infer", "load", "network")
                       for took in ("longer", "shorter")}
        #: i8[kind of action]; i8[kind of action, code]
        self.sent = np.zeros(max(ACTIONS) + 1, np.int64)
        self.done = np.zeros((max(ACTIONS) + 1, CODES), np.int64)
        #: i8[slots + 1, MODEL_FIELDS]: by the slot of a model's handle; the last row is for handles that nobody has
        self.models = np.zeros((models_max + 1, len(MODEL_FIELDS)), np.int64)
        self.handles = np.full(models_max + 1, -1, np.int64)
        self.registered = np.zeros(models_max + 1, bool)
        self.pages = np.zeros(models_max + 1, np.int64)
        self.busy_ns = np.zeros((gpus_max, len(LANES)), np.int64)
        self.pages_total = np.full(gpus_max, -1, np.int64)
        self.pages_free = np.zeros(gpus_max, np.int64)
        #: which handles are on each GPU
        self.resident: list[set[int]] = [set() for _ in range(gpus_max)]
        self.names: dict[str, dict[int, str]] = {"model": {}, "client": {}, "gpu": {}}
        #: the loop's own counters, if whoever feeds has them; they are in no log
        self.loop: dict[str, int] = {}
        self.requests, self.actions = OpenRequests(), OpenActions()

    def name(self, sort: str, number: int, text: str) -> None:
        """A line of the names beside the log: how a model, a client or a GPU is called."""
        self.names.setdefault(sort, {})[number] = text
        if sort == "model":
            self._know(number)

    def feed(self, batch: Records) -> None:
        """The next records of the log."""
        if not len(batch):
            return
        self.records += len(batch)
        self.now_ns = max(self.now_ns, int(batch["now_ns"].max()))
        kinds = batch["kind"]
        self.arrivals += int(np.isin(kinds, (Kind.ARRIVED, Kind.REFUSED)).sum())
        self.lost += int(batch["a"][kinds == Kind.GAP].sum())
        self._models_come_and_go(batch[np.isin(kinds, (Kind.MODEL_ADDED, Kind.MODEL_REMOVED))])
        slo_ns = self.requests.take(batch)
        self._replies(batch[kinds == Kind.REPLY], slo_ns)
        refused = batch[kinds == Kind.REFUSED]
        self._count_codes(refused)
        self.refusal.add(np.zeros(len(refused), np.int64))
        self.sent += np.bincount(np.minimum(batch["flag"][kinds == Kind.ACTION], RESERVED), minlength=len(self.sent))
        self.sent[RESERVED] += int((kinds == Kind.RESERVED).sum())
        self._results(batch)

    def model_rows(self) -> list[tuple[int, str]]:
        """(slot, "name/version") of every model that is registered."""
        return [(int(slot), self.model_name(int(self.handles[slot]))) for slot in np.flatnonzero(self.registered)]

    def model_name(self, handle: int) -> str:
        return self.names["model"].get(handle, f"#{handle:x}")

    def joined(self) -> list[int]:
        """The numbers of the GPUs that are there."""
        return [int(gpu) for gpu in np.flatnonzero(self.pages_total >= 0)]

    def column(self, name: str) -> NDArray[np.int64]:
        """i8[slots + 1]: one of `MODEL_FIELDS`."""
        return self.models[:, COLUMN[name]]

    # requests

    def _replies(self, replies: Records, slo_ns: NDArray[np.int64]) -> None:
        """Count replies; `slo_ns` is each one's, 0 if it is not known."""
        outcome = self._count_codes(replies)
        ran = (outcome == IN_TIME) | (outcome == LATE)
        total_ns = replies["e"]
        self.refusal.add(total_ns[~ran])
        self.duration.add(total_ns[ran])
        self.queue.add(replies["b"][ran])
        known = ran & (slo_ns > 0)
        self.slo_ratio.add(total_ns[known] / slo_ns[known])
        good = replies[outcome == IN_TIME]
        self.cold += int((good["flag"] != 0).sum())
        slots = self._slots(good["model"])
        for name, values in (("cold", good["flag"] != 0), ("total_ns", good["e"]), ("queued_ns", good["b"]),
                             ("exec_ns", good["d"])):
            self._add(name, slots, values)

    def _count_codes(self, replies: Records) -> NDArray[np.int64]:
        """Count by code and by model; the outcome of each."""
        codes = np.minimum(replies["status"], CODES - 1).astype(np.int64)
        self.codes += np.bincount(codes, minlength=CODES)
        outcome = OUTCOME[codes]
        slots = self._slots(replies["model"])
        np.add.at(self.models, (slots, outcome), 1)
        self._add("worker_lost", slots, codes == Code.WORKER_LOST)
        self._add("exec_failed", slots, codes == Code.EXECUTION_FAILED)
        return outcome

    def _slots(self, handles: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each handle in `models`: the last one for a handle that nobody has."""
        last = len(self.models) - 1
        slots = np.minimum(handles & SLOT_MASK, last)
        return np.where((handles >= 0) & (self.handles[slots] == handles), slots, last)

    def _add(self, name: str, slots: NDArray[np.int64], values: Any) -> None:
        np.add.at(self.models[:, COLUMN[name]], slots, values)

    # actions

    def _results(self, batch: Records) -> None:
        """Results of actions, in order with GPUs that come and go: both change what is on a GPU."""
        done, action = self.actions.take(batch)
        status = np.minimum(done["status"], CODES - 1)
        np.add.at(self.done, (action["kind"], status), 1)
        took_ns = np.where((done["a"] > 0) & (done["b"] > done["a"]), done["b"] - done["a"], 0)
        ran = took_ns > 0
        gpu = np.clip(action["gpu"], 0, len(self.busy_ns) - 1)
        np.add.at(self.busy_ns, (gpu[ran], _LANE[action["kind"][ran]]), took_ns[ran])
        for what, kind, took in (("infer", EXEC, self.exec), ("load", LOAD, self.load)):
            own = (action["kind"] == kind) & (status == Code.OK)
            took.add(took_ns[own])
            self._off(what, took_ns[own], action["predicted_ns"][own])
        own = (action["kind"] == EXEC) & (status == Code.OK)
        self.batch.add(action["rows"][own])
        slots = self._slots(action["model"][own])
        for name, values in (("executions", 1), ("rows", action["rows"][own]), ("busy_ns", took_ns[own])):
            self._add(name, slots, values)
        way = ran & (done["g"] > 0)
        self.network.add(np.maximum(done["now_ns"] - done["g"], 0)[way])
        self._off("network", np.maximum(done["now_ns"] - done["b"], 0)[way], done["h"][way])
        self._gpus_come_and_go(batch, done, action)

    def _off(self, what: str, took_ns: NDArray[np.int64], predicted_ns: NDArray[np.int64]) -> None:
        error_ns = took_ns - predicted_ns
        self.errors[what, "longer"].add(error_ns[error_ns >= 0])
        self.errors[what, "shorter"].add(-error_ns[error_ns < 0])

    # what is rare

    def _models_come_and_go(self, rows: Records) -> None:
        for row in rows:
            handle = int(row["model"])
            if handle < 0 or handle & SLOT_MASK >= len(self.models) - 1:
                continue
            slot = handle & SLOT_MASK
            if row["kind"] == Kind.MODEL_ADDED:
                self._know(handle)
                self.pages[slot] = row["a"]
            elif self.handles[slot] == handle:
                self.registered[slot] = False

    def _know(self, handle: int) -> None:
        slot = handle & SLOT_MASK
        if 0 <= handle and slot < len(self.models) - 1 and self.handles[slot] <= handle:
            self.handles[slot] = handle
            self.registered[slot] = True

    def _gpus_come_and_go(self, batch: Records, done: Records, action: Records) -> None:
        """Pages and models on each GPU, in the order of the log."""
        rare = batch[np.isin(batch["kind"], (Kind.JOINED, Kind.RESIDENT, Kind.LOST))]
        moved = action["kind"] != EXEC
        came, ended, its = rare, done[moved], action[moved]
        # plain tuples: (when, which sort of step, what, GPU, model, pages)
        steps = list(zip(came["now_ns"].tolist(), [0] * len(came), came["kind"].tolist(), came["gpu"].tolist(),
                         came["model"].tolist(), came["b"].tolist(), strict=True))
        what = np.where(np.isin(ended["status"], _GONE) & (its["kind"] == UNLOAD), UNLOAD,
                        np.where((ended["status"] == Code.OK) & (its["kind"] == LOAD), LOAD, 0))
        steps += zip(ended["now_ns"].tolist(), [1] * len(ended), what.tolist(), ended["gpu"].tolist(),
                     its["model"].tolist(), ended["e"].tolist(), strict=True)
        steps.sort(key=_when)
        for _, sort, kind, gpu, model, pages in steps:
            if not 0 <= gpu < len(self.resident):
                continue
            if sort:
                self._moved(gpu, kind, model, pages)
            elif kind == Kind.RESIDENT:
                self.resident[gpu].add(model)
                self.pages_free[gpu] -= self.pages[min(model & SLOT_MASK, len(self.pages) - 1)]
            else:
                self.resident[gpu].clear()
                self.pages_total[gpu] = pages if kind == Kind.JOINED else -1
                self.pages_free[gpu] = max(int(self.pages_total[gpu]), 0)

    def _moved(self, gpu: int, kind: int, model: int, pages_free: int) -> None:
        if pages_free >= 0:
            self.pages_free[gpu] = pages_free  # the worker's own books
        if kind == LOAD:
            self.resident[gpu].add(model)
        elif kind == UNLOAD:
            self.resident[gpu].discard(model)


def _when(step: tuple[int, ...]) -> tuple[int, int]:
    return step[0], step[1]
