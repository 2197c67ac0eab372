"""Latencies in buckets that are 1/32 of their octave wide: an error of at most 3 %, no allocation, nothing lost.

A histogram is an array i8[BUCKETS] of counts. Values are nanoseconds.
"""

from __future__ import annotations

import numpy as np

from cwd.jit import lean_kernel

_SUB_BITS = 5
_SUB = 1 << _SUB_BITS
_OCTAVES = 42
BUCKETS = _SUB * (_OCTAVES + 1)


@lean_kernel
def bucket_of(value_ns):
    """Index of the bucket that counts `value_ns` (below 0: the first; from 2**46 ns on, about 20 hours: the last)."""
    if value_ns < _SUB:
        return max(value_ns, 0)
    octave = 0
    while value_ns >= 2 * _SUB:
        value_ns >>= 1
        octave += 1
    return min((octave + 1) * _SUB + value_ns - _SUB, BUCKETS - 1)


def bucket_low_ns(index: int) -> int:
    """The smallest value that the bucket counts."""
    octave, sub = divmod(index, _SUB)
    return sub if octave == 0 else (_SUB + sub) << (octave - 1)


def quantile_ns(counts: np.ndarray, quantile: float) -> int:
    """The middle of the bucket in which the quantile (0..1) lies; 0 for an empty histogram."""
    total = int(counts.sum())
    if total == 0:
        return 0
    rank = min(int(quantile * total), total - 1)
    index = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
    return (bucket_low_ns(index) + bucket_low_ns(index + 1) - 1) // 2


def summary_ms(counts: np.ndarray) -> dict[str, float]:
    """{p50, p90, p99, p999, max} in milliseconds."""
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: quantile_ns(counts, point) / 1e6 for name, point in points.items()}
