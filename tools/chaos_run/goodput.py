"""Goodput over time, and when it was back after a fault: pure arithmetic over send times and outcomes.

Requests are due at fixed times, so a window of so many of them is one of fixed length, and a share of it is a rate. A
window of 60 resolves 1/60; a level of 95 % forgives 3 of 60. With the 99 % and more that are in time when nothing happens
at all, 4 out of 60 fail by chance in less than one window of 300, so what decides is the fault and not the sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: consecutive requests of one group
WINDOW = 60
#: of the level before
BACK = 0.95
#: the level before a fault is that of the requests due in so many seconds before it
BEFORE_S = 3.0

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Requests that share a way to the controller: when each was due (sorted) and had ended, from the begin; `good`: in time."""

    name: str
    at_s: Floats
    done_s: Floats
    good: Flags

    def share(self, begin_s: float, end_s: float) -> float:
        """In time, of those due in [begin, end); NaN if there were none."""
        low, high = np.searchsorted(self.at_s, (begin_s, end_s))
        return float(self.good[low:high].mean()) if high > low else float("nan")


@dataclass(frozen=True)
class Recovery:
    """`level`: the share before the fault. `after_s`: from its end until goodput was back; None if it never was."""

    group: str
    level: float
    after_s: float | None
    #: the share from then on until the next fault
    kept: float
    #: the smallest share of any window from the fault's begin on
    lowest: float


def recovery(group: Group, begin_s: float, end_s: float, until_s: float) -> Recovery:
    """When the first window of requests due after the fault's end is at `BACK` of the level before; the window begins there.

    `until_s`: the next fault's begin; windows end before it. `begin_s == end_s` is a fault without a length.
    """
    level = group.share(begin_s - BEFORE_S, begin_s)
    shares, starts_s = _windows(group, begin_s, until_s)
    lowest = float(shares.min()) if len(shares) else float("nan")
    back = np.flatnonzero((starts_s >= end_s) & (shares >= BACK * level))
    if not len(back):
        return Recovery(group.name, level, None, float("nan"), lowest)
    at_s = float(starts_s[back[0]])
    # a request that fails where the good window begins is still the fault's
    return Recovery(group.name, level, round(max(at_s - end_s, 0.0), 3), group.share(at_s, until_s), lowest)


def _windows(group: Group, begin_s: float, until_s: float) -> tuple[Floats, Floats]:
    """(shares, when the first request of each is due) of every window of `WINDOW` requests in [begin, until)."""
    low, high = np.searchsorted(group.at_s, (begin_s, until_s))
    good = np.concatenate(([0], np.cumsum(group.good[low:high])))
    shares = (good[WINDOW:] - good[:-WINDOW]) / WINDOW
    return shares, group.at_s[low:high][:len(shares)]


def served_again_s(groups: list[Group], since_s: float) -> float | None:
    """When, in each group, one of the requests due after `since_s` had been answered in time: the time of the last group."""
    found = []
    for group in groups:
        good = group.good & (group.at_s > since_s)
        if not good.any():
            return None
        found.append(float(group.done_s[good].min()))
    return max(found) if found else None
