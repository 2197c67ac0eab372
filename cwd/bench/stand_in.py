"""GPUs and clients for benchmarks of the core alone: actions take in virtual time exactly what was expected of them."""

from __future__ import annotations

import numpy as np

from cwd.core import heap
from cwd.core.world import ACTION_EXEC, OUT_ACTION, OUT_REPLY
from cwd.jit import lean_kernel

US = 1_000

#: an action that is under way
PENDING = np.dtype([(name, np.int64) for name in (
    "action", "verb", "rows", "begin_ns", "end_ns", "next")], align=True)


@lean_kernel
def random(state):
    """One step of a 31-bit linear congruential generator in state[0]; enough to spread requests over models."""
    state[0] = (state[0] * 1103515245 + 12345) & 0x7FFFFFFF
    return state[0] >> 4


@lean_kernel
def perform(world, now_ns, pending, ends, free_at, state):
    """Take the outbox: remember when each action will have ended, count the replies."""
    counters = world.counters[0]
    for i in range(counters["outbox_count"]):
        out = world.outbox[i]
        if out["kind"] == OUT_REPLY:
            state[2 if out["status"] == 0 else 3] += 1
        elif out["kind"] == OUT_ACTION:
            a = out["action"] & 0xFFFFFFFF
            lane = 2 * out["gpu"] + (0 if out["verb"] == ACTION_EXEC else 1)
            begin_ns = free_at[lane] if free_at[lane] > now_ns + 100 * US else now_ns + 100 * US
            free_at[lane] = begin_ns + out["expected_ns"]
            row = pending[a]
            row["action"] = out["action"]
            row["verb"] = out["verb"]
            row["rows"] = out["rows"]
            row["begin_ns"] = begin_ns
            row["end_ns"] = free_at[lane]
            state[1] = heap.put(ends, state[1], a, free_at[lane] + 100 * US)
    counters["outbox_count"] = 0


def spread(models: int, zipf: bool) -> np.ndarray:
    """Which model the n-th draw means: uniform over all, or so that draws follow a Zipf law of exponent 1."""
    if not zipf:
        return np.arange(models, dtype=np.int64)
    weights = 1.0 / np.arange(1, models + 1)
    edges = np.cumsum(weights) / weights.sum()
    return np.searchsorted(edges, (np.arange(1 << 18) + 0.5) / (1 << 18)).astype(np.int64)
