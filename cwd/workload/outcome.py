"""What became of a replay: one row per request, verdicts, and the facts of a report in one dictionary.

Times count from the start of the replay. A request's latency runs from its *intended* send time, so that a replayer that
falls behind makes its own figures worse, never better (no coordinated omission). Knows no socket and no clock.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.errors import Code
from cwd.units import NS_PER_MS, NS_PER_S

Rows = NDArray[np.void]

#: One request of a replay. `status` is a code; durations of the controller are 0 where nothing was executed.
OUTCOME = np.dtype([
    ("at_ns", "<i8"), ("sent_ns", "<i8"), ("done_ns", "<i8"), ("slo_ns", "<i8"), ("model", "<i4"), ("function", "<i4"),
    ("length", "<i4"), ("status", "<u2"), ("batch", "<u2"), ("worker", "<i4"), ("cold", "u1"), ("queued_ns", "<i8"),
    ("load_ns", "<i8"), ("exec_ns", "<i8"), ("total_ns", "<i8"), ("earliest_ns", "<i8"),
])

#: What an action of the log is, as in `cwd.core.world`, which is not imported here because it brings numba.
LOAD, UNLOAD, EXEC = 1, 2, 3

#: A status that no reply has: the request has not been answered yet.
PENDING = 0xFFFF

#: Verdicts of the scheduler: the request was sound and was turned down at once.
REFUSALS = (Code.DEADLINE_UNREACHABLE, Code.DEADLINE_EXPIRED, Code.SLO_BELOW_EXECUTION, Code.QUEUE_FULL,
            Code.CREDIT_EXCEEDED, Code.RATE_EXCEEDED, Code.PAYLOADS_EXCEEDED, Code.NO_WORKER, Code.DRAINING, Code.WORKER_LOST)


class Verdict(enum.IntEnum):
    """Every request has exactly one, so offered is always their sum."""

    ANSWERED_IN_TIME = 0
    LATE = 1
    REFUSED = 2
    FAILED = 3


def verdicts(rows: Rows) -> NDArray[np.uint8]:
    """(requests,): the `Verdict` of each; whatever has neither an answer nor a refusal has failed."""
    latency_ns = rows["done_ns"] - rows["at_ns"]
    result = np.full(len(rows), Verdict.FAILED, np.uint8)
    ok = rows["status"] == Code.OK
    result[ok & (latency_ns <= rows["slo_ns"])] = Verdict.ANSWERED_IN_TIME
    result[ok & (latency_ns > rows["slo_ns"]) | (rows["status"] == Code.DEADLINE_MISSED)] = Verdict.LATE
    result[np.isin(rows["status"], REFUSALS)] = Verdict.REFUSED
    return result


def latency_ms(rows: Rows) -> NDArray[np.float64]:
    """Latencies of the requests that were answered, in ms, from the intended send time."""
    answered = rows[rows["status"] == Code.OK]
    return (answered["done_ns"] - answered["at_ns"]) / NS_PER_MS


def quantiles(values: NDArray[Any], *percents: float) -> dict[str, float]:
    """`{"p50": .., "p99": .., "max": ..}` to four decimals; empty input gives zeros."""
    found = np.percentile(values, percents) if len(values) else np.zeros(len(percents))
    return {"max" if percent == 100 else f"p{percent:g}": round(float(value), 4)
            for percent, value in zip(percents, found, strict=True)}


def count_codes(status: NDArray[np.uint16]) -> dict[str, int]:
    """`{"DEADLINE_EXPIRED": 3}`: how often each code came, most frequent first."""
    codes, counts = np.unique(status, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    known = {int(code) for code in Code}
    return {Code(int(codes[index])).name if int(codes[index]) in known else f"UNANSWERED_{codes[index]}":
            int(counts[index]) for index in order}


def resident_over_time(actions: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(times, models resident after each): from the LOADs and UNLOADs that succeeded, all devices together."""
    done = actions[(actions["status"] == Code.OK) & np.isin(actions["action_kind"], (LOAD, UNLOAD))]
    done = done[np.argsort(done["end_ns"], kind="stable")]
    step = np.where(done["action_kind"] == LOAD, 1, -1)
    return done["end_ns"], np.cumsum(step)


def during(actions: Rows) -> Rows:
    """The actions sent since the replay began; a log may hold what was before."""
    return actions[actions["sent_ns"] >= 0]


def prediction_error_ns(actions: Rows, kind: int) -> NDArray[np.int64]:
    """Actual minus predicted duration of the finished actions of one kind; positive: it took longer."""
    done = actions[(actions["action_kind"] == kind) & (actions["actual_ns"] >= 0)]
    return done["actual_ns"] - done["predicted_ns"]


def summary(rows: Rows, actions: Rows | None = None) -> dict[str, Any]:
    """The facts of a replay. `actions` are rows of the controller's log; what needs them is left out without them."""
    verdict = verdicts(rows)
    count = {kind.name.lower(): int((verdict == kind).sum()) for kind in Verdict}
    span_s = max(int(rows["at_ns"].max()), NS_PER_S) / NS_PER_S if len(rows) else 1.0
    answered = rows[rows["status"] == Code.OK]
    latency = latency_ms(rows)
    facts: dict[str, Any] = {
        "offered": len(rows), **count,
        "refused_by": count_codes(rows["status"][verdict == Verdict.REFUSED]),
        "failed_by": count_codes(rows["status"][verdict == Verdict.FAILED]),
        "cold_starts": int(answered["cold"].sum()),
        "latency_ms": quantiles(latency, 50, 99, 99.9, 100),
        "send_late_ms": quantiles((rows["sent_ns"] - rows["at_ns"]) / NS_PER_MS, 50, 99, 100),
        "seconds": round(span_s, 3),
        "offered_rps": round(len(rows) / span_s, 2),
        "goodput_rps": round(count["answered_in_time"] / span_s, 2),
        "models": len(np.unique(rows["model"])),
    }
    if actions is not None:
        facts.update(_of_actions(actions))
    return facts


def _of_actions(everything: Rows) -> dict[str, Any]:
    """Facts of the actions sent during the replay; what was resident is known from all of them."""
    actions = during(everything)
    executions = actions[(actions["action_kind"] == EXEC) & (actions["status"] == Code.OK)]
    loads = actions[(actions["action_kind"] == LOAD) & (actions["status"] == Code.OK)]
    errors: dict[str, float] = {}
    for name, kind in (("infer", EXEC), ("load", LOAD)):
        error_ms = prediction_error_ns(actions, kind) / NS_PER_MS
        errors[f"{name}_p99_over"] = quantiles(np.maximum(error_ms, 0), 99)["p99"]
        errors[f"{name}_p99_under"] = quantiles(np.maximum(-error_ms, 0), 99)["p99"]
    times, resident = resident_over_time(everything)
    within = resident[max(int(np.searchsorted(times, 0)) - 1, 0):]
    return {
        "executions": len(executions),
        "loads": len(loads),
        "actions_not_done": count_codes(actions["status"][actions["status"] != Code.OK]),
        "mean_batch": round(float(executions["rows"].mean()), 4) if len(executions) else 0.0,
        "resident_max": int(within.max()) if len(within) else 0,
        "prediction_error_ms": errors,
    }
