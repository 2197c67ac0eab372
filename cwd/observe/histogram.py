"""A histogram with fixed bounds, fed with arrays; counts and sums are exact for integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.units import NS_PER_MS, NS_PER_S, NS_PER_US


class Histogram:
    """`counts[i]` values were at most `bounds[i]` and above the bound before; the last of `counts` are above all."""

    __slots__ = ("bounds", "counts", "sum", "scale")

    def __init__(self, bounds: Any, scale: float = 1.0) -> None:
        self.bounds = np.asarray(bounds)
        self.counts = np.zeros(len(self.bounds) + 1, np.int64)
        #: of the values, in their own unit
        self.sum: int | float = 0
        #: a value times it is what is shown
        self.scale = scale

    def add(self, values: NDArray[Any]) -> None:
        if len(values):
            self.counts += np.bincount(np.searchsorted(self.bounds, values, "left"), minlength=len(self.counts))
            self.sum += values.sum().item()

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values are, in what is shown, linear within a bucket; 0 if there are none."""
        total = self.counts.sum()
        if total == 0:
            return 0.0
        edges = np.concatenate([[0], np.cumsum(self.counts)])
        at = min(int(np.searchsorted(edges[1:], share * total, "left")), len(self.bounds) - 1)
        low, high = (float(self.bounds[at - 1]) if at else 0.0), float(self.bounds[at])
        part = (share * total - edges[at]) / max(self.counts[at], 1)
        return (low + (high - low) * min(max(part, 0.0), 1.0)) * self.scale


#: dense where SLOs of served networks are, 5 ms to half a second
_DURATION_MS = (.1, .2, .5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 22.5, 25, 27.5, 30, 35, 40, 45, 50, 55, 60, 65, 70,
                75, 80, 85, 90, 95, 100, 105, 110, 125, 150, 175, 200, 225, 250, 300, 350, 400, 450, 500, 600, 800, 1000, 2000,
                5000, 10000, 30000, 60000)
_WORK_MS = (.05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000)
_ERROR_US = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 500000)
#: total time over SLO
RATIOS = (.1, .2, .3, .4, .5, .6, .7, .8, .85, .9, .95, .97, .99, 1.0, 1.01, 1.03, 1.05, 1.1, 1.5, 2.0)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


def _seconds(bounds: Any, unit_ns: int) -> Histogram:
    return Histogram([round(bound * unit_ns) for bound in bounds], 1 / NS_PER_S)


def durations() -> Histogram:
    """Of whole requests, ns."""
    return _seconds(_DURATION_MS, NS_PER_MS)


def work() -> Histogram:
    """Of executions, LOADs and ways, ns."""
    return _seconds(_WORK_MS, NS_PER_MS)


def errors() -> Histogram:
    """Of how far a prediction was off, ns."""
    return _seconds(_ERROR_US, NS_PER_US)
