"""Feed a log to a fresh core and compare what it leaves in its outbox with what the log says it did.

    NUMBA_DISABLE_JIT=1 python -m cwd.controller.replay LOG

prints one JSON object: {"events", "actions", "replies", "releases", "differs"} with the first differences as texts.
Works compiled and as plain Python; a log that was written by compiled code and replays in plain Python proves the core's
law (same events, same outbox) for both modes at once.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from cwd.controller.record import Kind
from cwd.controller.telemetry import Records, log_parts, read_header, read_log
from cwd.core import engine
from cwd.core.world import OUT_ACTION, OUT_REPLY, Config, World, make_world
from cwd.errors import Code, CwdError

_DIFFERENCES_MAX = 20

#: log column -> outbox field, per kind
_ACTION = {"flag": "verb", "gpu": "gpu", "model": "model", "id": "action", "a": "program", "b": "pages", "c": "batch",
           "d": "size_class", "e": "earliest_ns", "f": "latest_ns", "g": "expected_ns", "h": "rows"}
_REPLY = {"flag": "cold", "status": "status", "gpu": "gpu", "model": "model", "id": "request_id", "a": "client",
          "b": "queued_ns", "c": "load_ns", "d": "exec_ns", "e": "total_ns", "f": "served_ns", "g": "batch",
          "h": "action"}
_RELEASE = {"a": "payload", "b": "result"}


class Replay:
    """A world that is told a log; `differences` says where it did something else."""

    def __init__(self, config: Config) -> None:
        self.world: World = make_world(config)
        self.differences: list[str] = []
        self.counts = dict.fromkeys(("events", "actions", "replies", "releases"), 0)
        self._compared = 0

    def step(self, number: int, row: Any) -> None:
        """One record of the log."""
        kind = int(row["kind"])
        if kind >= Kind.REFUSED:
            if kind == Kind.GAP:
                self._differ(number, f"{row['a']} records are missing here")
        elif kind >= Kind.ACTION:
            self._compare(number, kind, row)
        else:
            self._end_flush(number)
            self.counts["events"] += 1
            self._feed(number, Kind(kind), row)

    def _end_flush(self, number: int) -> None:
        """The host emptied the outbox once it had begun to log it."""
        if self._compared:
            counters = self.world.counters[0]
            if self._compared != counters["outbox_count"]:
                self._differ(number, f"the core left {counters['outbox_count']} records, the log has {self._compared}")
            counters["outbox_count"] = self._compared = 0

    def _compare(self, number: int, kind: int, row: Any) -> None:
        if self._compared >= self.world.counters[0]["outbox_count"]:
            self._differ(number, f"the log has a {Kind(kind).name} that the core did not leave")
            return
        out = self.world.outbox[self._compared]
        self._compared += 1
        expected = {OUT_ACTION: (Kind.ACTION, _ACTION, "actions"), OUT_REPLY: (Kind.REPLY, _REPLY, "replies")}.get(
            int(out["kind"]), (Kind.RELEASE, _RELEASE, "releases"))
        self.counts[expected[2]] += 1
        if kind != expected[0]:
            self._differ(number, f"the log has a {Kind(kind).name}, the core left a {expected[0].name}")
            return
        for column, name in expected[1].items():
            if row[column] != out[name]:
                self._differ(number, f"{expected[0].name} {name}: {row[column]} in the log, {out[name]} now")

    def _feed(self, number: int, kind: Kind, row: Any) -> None:
        world = self.world
        now, gpu, model, number_of = (int(row[name]) for name in ("now_ns", "gpu", "model", "id"))
        a, b, c, d, e, f = (int(row[name]) for name in "abcdef")
        result, wanted = 0, 0
        if kind == Kind.ARRIVED:
            result, wanted = engine.request_arrived(world, now, a, number_of, model, d, b, c, e, f), int(row["status"])
        elif kind == Kind.CANCELLED:
            engine.request_cancelled(world, now, a, number_of)
        elif kind == Kind.CLIENT_GONE:
            engine.client_gone(world, now, a)
        elif kind == Kind.DONE:
            result = engine.action_done(world, now, number_of, int(row["status"]), a, b, c, d, e, f)
            wanted = int(row["flag"])
        elif kind == Kind.JOINED:
            engine.gpu_joined(world, now, gpu, a, b)
        elif kind == Kind.RESIDENT:
            engine.gpu_resident(world, now, gpu, model)
        elif kind == Kind.LOST:
            engine.gpu_lost(world, now, gpu)
        elif kind == Kind.PROGRAM:
            batches = np.array([(c, d)[at // 4] >> 16 * (at % 4) & 0xFFFF for at in range(a)], np.int64)
            engine.program_added(world, number_of, batches, a, b)
        elif kind == Kind.PREPARED:
            engine.program_prepared(world, now, gpu, number_of, a)
        elif kind == Kind.SEED:
            engine.estimate_seed(world, number_of, a, b, c, d)
        elif kind == Kind.LOAD_SEED:
            engine.load_seed(world, number_of, a, b)
        elif kind == Kind.MODEL_ADDED:
            result, wanted = engine.model_added(world, now, number_of, a), model
        elif kind == Kind.MODEL_REMOVED:
            engine.model_removed(world, now, model)
        elif kind == Kind.RESERVED:
            result, wanted = engine.lane_reserve(world, now, gpu, a), number_of
        elif kind == Kind.TICK:
            engine.tick(world, now)
        elif kind == Kind.DRAINING:
            engine.gpu_draining(world, now, gpu)
        elif kind == Kind.WANTED:
            engine.model_wanted(world, now, model)
        elif kind == Kind.CLOSING:
            engine.closing(world, now)
        if result != wanted:
            self._differ(number, f"{kind.name}: {wanted} in the log, {result} now")

    def _differ(self, number: int, text: str) -> None:
        if len(self.differences) < _DIFFERENCES_MAX:
            self.differences.append(f"record {number}: {text}")


def replay(path: str, limit: int | None = None) -> Replay:
    """Replay the log at `path` (a file or a folder), or its first `limit` records."""
    header, _ = read_header(log_parts(path)[0])
    if header.get("part", 0) != 0:
        raise CwdError(f"{path}: the log's beginning was deleted (log_keep), so it cannot be lived again", code=Code.BAD_ARGUMENT)
    run = Replay(Config(**header["core"]))
    log: Records = read_log(path)[:limit]
    for number, row in enumerate(log):
        run.step(number, row)
    return run


def main() -> int:
    try:
        run = replay(sys.argv[1])
    except (CwdError, IndexError) as error:
        sys.stderr.write(f"replay: {error}\n")
        return 1
    sys.stdout.write(json.dumps({**run.counts, "differs": run.differences}) + "\n")
    return 1 if run.differences else 0


if __name__ == "__main__":
    sys.exit(main())
