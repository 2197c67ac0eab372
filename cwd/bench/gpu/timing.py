"""How the experiments take time: deadlines, distributions, and the device's own clock.

Written against `Gpu`, so that a machine without one walks through the same lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cwd.worker.backends.gpu import Gpu

GB = 10**9
LEAST = 3


class Skip(Exception):
    """A step that this machine cannot do; the text says why."""


class Deadline:
    """A step's time. Loops ask `over`, and parts of a step get a `share` of what is left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def share(self, part: float) -> Deadline:
        """That part (0..1) of what is left."""
        return Deadline(self.left_s * part)


def spread_us(samples_ns: Sequence[int] | np.ndarray) -> dict[str, float]:
    """{n, p50_us, p99_us, p999_us, max_us}: each one of the samples; {"n": 0} of none."""
    ordered = np.sort(np.asarray(samples_ns, np.int64))
    if not len(ordered):
        return {"n": 0}
    last = len(ordered) - 1
    found: dict[str, float] = {"n": len(ordered)}
    for name, parts in (("p50_us", 500), ("p99_us", 990), ("p999_us", 999), ("max_us", 1000)):
        found[name] = float(ordered[-(-last * parts // 1000)]) / 1e3
    return found


def median(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[(len(ordered) - 1) // 2]


def wait(event: Any) -> None:
    """Until an event is done: asking, and letting other threads have the GIL between."""
    while not event.query():
        time.sleep(0)


def sampled(one: Callable[[], int], count: int, until: Deadline) -> list[int]:
    """What `one` says, so many times or as long as there is time; at least a few times."""
    found: list[int] = []
    while len(found) < count and not (until.over and len(found) >= LEAST):
        found.append(one())
    return found


def device_ns(gpu: Gpu, body: Callable[[], object], repeats: int, until: Deadline) -> list[int]:
    """What the calling thread's stream takes for `body`, each time, by the device's clock; as `sampled` has it."""
    begin, end = gpu.event(), gpu.event()

    def one() -> int:
        begin.record()
        body()
        end.record()
        wait(end)
        return int(begin.elapsed_time(end) * 1e6)

    return sampled(one, repeats, until)


def rate_gbps(size_bytes: int, taken_ns: float) -> float:
    """GB/s; 0 where no time was measured."""
    return size_bytes / GB / (taken_ns / 1e9) if taken_ns > 0 else 0.0
