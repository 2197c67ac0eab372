"""Why was this request refused? Answered a second time, from the event log alone, by slow and obvious means.

Walks the log once and keeps what was public knowledge at each moment: which GPUs were there, which programs prepared,
which weights loaded, what was under way, and every duration seeded or measured. A refusal is upheld if the condition that
its code names held then. Where the core's estimate is not a single figure here (it is a rolling quantile there), the
bound that favours the refusal least wrongly is taken: a refusal made while there was room is always found out. Imports
nothing of the core.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cwd.controller.record import COLUMNS, Kind
from cwd.controller.telemetry import read_header, read_log
from cwd.errors import Code

LOAD, UNLOAD, EXEC, RESERVED = 1, 2, 3, 4
FOREVER_NS = 1 << 62
PRESSED_NS = 100_000_000
#: the host's own refusals: the request was at fault, or a table was full; nothing of them is the scheduler's
HOST_CODES = {code for code in Code if 200 <= code < 300} | {Code.CREDIT_EXCEEDED, Code.QUEUE_FULL, Code.NO_WORKER,
                                                             Code.DRAINING, Code.MODEL_NOT_READY, Code.RATE_EXCEEDED,
                                                             Code.PAYLOADS_EXCEEDED}


@dataclasses.dataclass
class Durations:
    """Everything ever seeded or measured of one thing."""

    low_ns: int = 0
    high_ns: int = 0

    def add(self, ns: int) -> None:
        self.low_ns = min(self.low_ns, ns) if self.high_ns else ns
        self.high_ns = max(self.high_ns, ns)


class Naive:
    """The world as the log tells it, up to one record."""

    def __init__(self, header: dict[str, Any]) -> None:
        core = header["core"]
        self.requests_max = core["requests_max"]
        self.attempts_max = core["attempts_max"]
        #: the way to the worker and what comes after a promised end are measured, and capped; then the way to the client
        self.margins_ns = 2 * core["margin_max_ns"] + core["client_ns"]
        self.load_margins_ns = 2 * core["margin_max_ns"]
        #: on a pressed GPU the margin of the end counts once more, for what runs now
        self.margin_max_ns = core["margin_max_ns"]
        self.gpus: dict[int, int] = {}
        self.prepared: set[tuple[int, int]] = set()
        self.batches: dict[int, list[int]] = {}
        self.programs_of: dict[int, int] = {}
        self.exec: dict[tuple[int, int, int, int], Durations] = {}
        self.load: dict[tuple[int, int], Durations] = {}
        self.under_way: dict[int, dict[str, int]] = {}
        #: requests that each EXEC under way took
        self.took: dict[int, list[tuple[int, int]]] = {}
        self.loaded: set[tuple[int, int]] = set()
        self.live: dict[tuple[int, int], dict[str, int]] = {}
        self.lost_at_ns: list[int] = []
        #: executions that a worker refused or could not do: when it was heard, of which model, and what was said
        self.refused: list[tuple[int, int, int]] = []
        #: when a request was last turned away or given up for want of time
        self.pressed_at_ns = -FOREVER_NS

    def full_ns(self, program: int, kind: int, size_class: int) -> int:
        """What the largest batch takes: who begins one on a GPU that turns others away must leave it the time."""
        return max((took.high_ns for (of, on, _, size), took in self.exec.items()
                    if (of, on, size) == (program, kind, size_class)), default=0)

    def alone(self, program: int, kind: int, size_class: int) -> Durations:
        return self.exec.get((program, kind, 0, size_class), Durations())

    def best_alone(self, program: int, size_class: int, high: bool) -> int:
        """The least over kinds of GPU, by their high or low figures; 0 if it is profiled on none."""
        found = [self.alone(program, kind, size_class) for kind in set(self.gpus.values())]
        return min((each.high_ns if high else each.low_ns for each in found if each.high_ns), default=0)

    def queued_ns(self, but: tuple[int, int]) -> int:
        """All requests that wait, one after the other, each alone."""
        return sum(self.best_alone(self.programs_of[row["model"]], row["size_class"], True)
                   for key, row in self.live.items() if key != but and not row["running"])

    def lane_ns(self, gpu: int, load: bool) -> int:
        return sum(row["expected_ns"] for row in self.under_way.values()
                   if row["gpu"] == gpu and (row["verb"] in (LOAD, UNLOAD)) == load)

    def attempts(self, row: dict[str, int], now_ns: int) -> tuple[int, bool]:
        """How many of its model's executions came to nothing since it is there, and whether one was late or not heard of."""
        said = [status for at_ns, model, status in self.refused
                if model == row["model"] and row["arrival_ns"] <= at_ns <= now_ns]
        silent = sum(1 for action in self.under_way.values() if action["verb"] == EXEC and action["model"] == row["model"]
                     and action["latest_ns"] + action["expected_ns"] < now_ns)
        return len(said) + silent, silent > 0 or Code.TOO_LATE in said

    def done_within_ns(self, key: tuple[int, int], row: dict[str, int], now_ns: int) -> int:
        """Within how long any sensible plan has answered the request, at the latest."""
        pressed = now_ns - self.pressed_at_ns <= PRESSED_NS
        program = self.programs_of[row["model"]]
        queued_ns = self.queued_ns(key)
        best_ns = FOREVER_NS
        for gpu, kind in self.gpus.items():
            alone_ns = self.alone(program, kind, row["size_class"]).high_ns
            if (gpu, program) not in self.prepared or not alone_ns:
                continue
            own_ns = self.full_ns(program, kind, row["size_class"]) + self.margin_max_ns if pressed else alone_ns
            busy_ns = self.lane_ns(gpu, False) + queued_ns + own_ns + self.margins_ns
            if (gpu, row["model"]) not in self.loaded:
                load = self.load.get((program, kind))
                busy_ns += self.lane_ns(gpu, True) + (load.high_ns if load else 0) + self.load_margins_ns
            best_ns = min(best_ns, busy_ns)
        return best_ns


def fields(record: Any) -> dict[str, int]:
    """A record as a dictionary with its columns under their names."""
    names = COLUMNS[Kind(int(record["kind"]))]
    found = {name: int(record[name]) for name in ("now_ns", "status", "gpu", "model")}
    found.update({column: int(record[column]) for column in ("id", *"abcdefgh")})
    found.update({meaning: int(record[column]) for column, meaning in names.items()})
    return found


def rederive(path: Path) -> tuple[dict[str, int], list[str]]:
    """(refusals upheld, by code; a line for each that is not) of the log at `path`."""
    folder = next(iter(sorted(path.glob("log-*.cwdlog"))))
    return judge(read_header(folder)[0], read_log(path))


def judge(header: dict[str, Any], log: Any) -> tuple[dict[str, int], list[str]]:
    world = Naive(header)
    upheld: dict[str, int] = {}
    wrong: list[str] = []
    for record in log:
        row = fields(record)
        kind = Kind(int(record["kind"]))
        if kind in (Kind.REPLY, Kind.REFUSED):
            code = Code(row["status"])
            fault = _fault_of_reply(world, code, row) if kind is Kind.REPLY else (
                "" if code in HOST_CODES else "the host alone never decides that")
            if fault:
                wrong.append(f"request {row['request']} of client {row['client']} at {row['now_ns']}: {code.name}: {fault}")
            elif code is not Code.OK:
                upheld[code.name] = upheld.get(code.name, 0) + 1
        _follow(world, kind, row)
    return upheld, wrong


def _fault_of_reply(world: Naive, code: Code, row: dict[str, int]) -> str:
    """What speaks against a refusal; "" if it is upheld. State is as of the moment before the record."""
    key = (row["client"], row["request"])
    request = world.live.get(key)
    if code is Code.OK or code in (Code.CANCELLED, Code.DEADLINE_MISSED, Code.EXECUTION_FAILED):
        return "" if request else "nobody asked"
    if request is None:
        return "nobody asked"
    then = request["before"]
    if code is Code.QUEUE_FULL:
        return "" if then["live"] >= world.requests_max else f"{then['live']} of {world.requests_max} requests were there"
    if code is Code.NO_WORKER:
        return "a worker was ready for it" if then["prepared"] else ""
    if code is Code.WORKER_LOST:
        if any(request["arrival_ns"] <= at_ns <= row["now_ns"] for at_ns in world.lost_at_ns):
            return ""
        attempts, unheard = world.attempts(request, row["now_ns"])
        return "" if unheard and attempts >= world.attempts_max else f"no worker was lost, and it was tried {attempts} times"
    if 200 <= code < 300 or code is Code.DRAINING:
        return ""
    slack_ns = request["deadline_ns"] - request["arrival_ns"]
    if code is Code.SLO_BELOW_EXECUTION:
        return "" if slack_ns < then["alone_high_ns"] + world.margins_ns else (
            f"{slack_ns} ns is longer than it ever took: {then['alone_high_ns']} ns")
    if code is Code.DEADLINE_UNREACHABLE:
        if slack_ns < then["alone_low_ns"]:
            return f"its SLO of {slack_ns} ns is below the execution itself: that has a code of its own"
        if 0 < row["earliest_ns"] <= slack_ns:
            return f"it could have been answered after {row['earliest_ns']} ns of {slack_ns}, by the reply's own word"
        return "" if then["done_within_ns"] > slack_ns else f"done within {then['done_within_ns']} of {slack_ns} ns"
    if code is Code.DEADLINE_EXPIRED:
        left_ns = request["deadline_ns"] - (request["arrival_ns"] + row["total_ns"])
        needed_ns = world.done_within_ns(key, request, row["now_ns"])
        return "" if needed_ns > left_ns else f"given up with {left_ns} ns left, and {needed_ns} ns were enough"
    return "no rule for this code"


def _follow(world: Naive, kind: Kind, row: dict[str, int]) -> None:
    """Take one record into account."""
    if kind is Kind.ARRIVED:
        _arrive(world, row)
    elif kind is Kind.REPLY:
        world.live.pop((row["client"], row["request"]), None)
        if row["status"] in (Code.DEADLINE_UNREACHABLE, Code.DEADLINE_EXPIRED):
            world.pressed_at_ns = row["now_ns"]
    elif kind is Kind.CLIENT_GONE:
        world.live = {key: live for key, live in world.live.items() if key[0] != row["client"]}
    elif kind is Kind.ACTION:
        world.under_way[row["action"]] = {**row, "verb": row["action_kind"]}
        if row["action_kind"] == UNLOAD:
            world.loaded.discard((row["gpu"], row["model"]))
        if row["action_kind"] == EXEC:
            world.took[row["action"]] = _mark_running(world, row)
    elif kind is Kind.RESERVED:
        world.under_way[row["action"]] = {**row, "verb": RESERVED}
    elif kind is Kind.DONE and not row["stale"]:
        _settle(world, row)
    elif kind is Kind.JOINED:
        world.gpus[row["gpu"]] = row["kind"]
    elif kind in (Kind.LOST, Kind.DRAINING):
        world.gpus.pop(row["gpu"], None)
        world.prepared = {pair for pair in world.prepared if pair[0] != row["gpu"]}
        world.loaded = {pair for pair in world.loaded if pair[0] != row["gpu"]}
        for action in [key for key, action in world.under_way.items() if action["gpu"] == row["gpu"]]:
            del world.under_way[action]
            _wait_again(world, action)
        world.lost_at_ns += [row["now_ns"]] if kind is Kind.LOST else []
    elif kind is Kind.RESIDENT and row["status"] == 0:
        world.loaded.add((row["gpu"], row["model"]))
    elif kind is Kind.PREPARED:
        (world.prepared.add if row["ok"] else world.prepared.discard)((row["gpu"], row["program"]))
    elif kind is Kind.PROGRAM:
        packed = [row[column] for column in "cde"]
        world.batches[row["program"]] = [each >> 16 * i & 0xFFFF for each in packed for i in range(4)][:row["n_batches"]]
    elif kind is Kind.SEED:
        world.exec.setdefault((row["program"], row["kind"], row["batch_index"], row["size_class"]), Durations()).add(
            row["exec_ns"])
    elif kind is Kind.LOAD_SEED:
        world.load.setdefault((row["id"], row["a"]), Durations()).add(row["b"])
    elif kind is Kind.MODEL_ADDED and row["model"] >= 0:
        world.programs_of[row["model"]] = row["program"]


def _arrive(world: Naive, row: dict[str, int]) -> None:
    """Remember the request, and what was known when it came."""
    latest_ns = row["now_ns"] + row["slo_ns"]
    deadline_ns = row["deadline_ns"] if 0 < row["deadline_ns"] < latest_ns else latest_ns
    key = (row["client"], row["request"])
    program = world.programs_of.get(row["model"], -1)
    request = {**row, "arrival_ns": row["now_ns"], "deadline_ns": deadline_ns, "running": 0}
    request["before"] = {  # type: ignore[assignment]
        "live": len(world.live),
        "prepared": int(any(pair[1] == program for pair in world.prepared)),
        "alone_high_ns": world.best_alone(program, row["size_class"], True),
        "alone_low_ns": world.best_alone(program, row["size_class"], False),
        "done_within_ns": world.done_within_ns(key, request, row["now_ns"]) if program >= 0 and row["status"] else 0,
    }
    world.live[key] = request


def _mark_running(world: Naive, row: dict[str, int]) -> list[tuple[int, int]]:
    """Which requests an EXEC took is not in its record: the earliest deadlines of its model, as EDF has it."""
    waiting = sorted((live["deadline_ns"], key) for key, live in world.live.items()
                     if live["model"] == row["model"] and not live["running"] and live["size_class"] <= row["size_class"])
    taken = [key for _, key in waiting[:row["rows"]]]
    for key in taken:
        world.live[key]["running"] = 1
    return taken


def _wait_again(world: Naive, action: int) -> None:
    """Requests of an EXEC that did not run are queued once more."""
    for key in world.took.pop(action, ()):
        if key in world.live:
            world.live[key]["running"] = 0


def _settle(world: Naive, row: dict[str, int]) -> None:
    action = world.under_way.pop(row["action"], None)
    if action is None or action["verb"] == RESERVED:
        return
    if row["status"] != Code.OK:
        _wait_again(world, row["action"])
        if action["verb"] == EXEC:
            world.refused.append((row["now_ns"], action["model"], row["status"]))
    world.took.pop(row["action"], None)
    kind = world.gpus.get(action["gpu"], -1)
    took_ns = row["end_ns"] - row["begin_ns"]
    if action["verb"] == LOAD:
        if row["status"] == Code.OK:
            world.loaded.add((action["gpu"], action["model"]))
            world.load.setdefault((action["program"], kind), Durations()).add(took_ns)
    elif action["verb"] == EXEC and row["status"] == Code.OK and action["batch"] in world.batches.get(action["program"], []):
        index = world.batches[action["program"]].index(action["batch"])
        world.exec.setdefault((action["program"], kind, index, action["size_class"]), Durations()).add(took_ns)
