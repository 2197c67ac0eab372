"""GPUs and clients for benchmarks of the core alone: actions take in virtual time exactly what was expected of them."""

from __future__ import annotations

import numpy as np

from cwd.core import heap
from cwd.core.world import ACTION_EXEC, OUT_ACTION, OUT_REPLY
from cwd.jit import lean_kernel

#: from a decision to the begin of its action, and from the end to the result
HOP_NS = 100_000
#: places in `state` (i64) that are of this file; a bench may have more behind them
RANDOM, ENDS, ANSWERED, NOT_ANSWERED = range(4)
#: an action that is under way
PENDING = np.dtype([(name, np.int64) for name in (
    "action", "verb", "rows", "begin_ns", "end_ns", "next")], align=True)


@lean_kernel
def random(state):
    """One step of a 31-bit linear congruential generator in state[RANDOM]; enough to spread requests over models."""
    state[RANDOM] = (state[RANDOM] * 1103515245 + 12345) & 0x7FFFFFFF
    return state[RANDOM] >> 4


@lean_kernel
def perform(world, now_ns, pending, ends, free_at, state):
    """Take the outbox: remember when each action will have ended, count the replies.

    `pending` is PENDING[actions], `ends` a heap of state[ENDS] results by the time at which they are told, `free_at` i64[2 * gpus]:
    when each GPU's lane of executions and lane of transfers is free.
    """
    counters = world.counters[0]
    for i in range(counters["outbox_count"]):
        out = world.outbox[i]
        if out["kind"] == OUT_REPLY:
            state[ANSWERED if out["status"] == 0 else NOT_ANSWERED] += 1
        elif out["kind"] == OUT_ACTION:
            a = out["action"] & 0xFFFFFFFF
            lane = 2 * out["gpu"] + (0 if out["verb"] == ACTION_EXEC else 1)
            begin_ns = max(free_at[lane], now_ns + HOP_NS)
            free_at[lane] = begin_ns + out["expected_ns"]
            row = pending[a]
            row["action"] = out["action"]
            row["verb"] = out["verb"]
            row["rows"] = out["rows"]
            row["begin_ns"] = begin_ns
            row["end_ns"] = free_at[lane]
            state[ENDS] = heap.put(ends, state[ENDS], a, free_at[lane] + HOP_NS)
    counters["outbox_count"] = 0


def spread(models: int, zipf: bool) -> np.ndarray:
    """i64[draws]: which model the n-th draw means: uniform over all, or so that draws follow a Zipf law of exponent 1."""
    if not zipf:
        return np.arange(models, dtype=np.int64)
    weights = 1.0 / np.arange(1, models + 1)
    edges = np.cumsum(weights) / weights.sum()
    return np.searchsorted(edges, (np.arange(1 << 18) + 0.5) / (1 << 18)).astype(np.int64)
