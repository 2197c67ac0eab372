"""How long before its deadline an app answers with what has arrived: as long as it took lately until its caller heard.

Timers are late, loops are busy, threads wait for their turn: by how much is this process's and this hour's affair. So each
answer that came at its deadline is a measurement. The second longest of the last 256 counts, for one in a hundred may come
later and a single stall says nothing; and none that is older than half a minute, since a start is soon over.
"""

from __future__ import annotations

import heapq
from collections import deque

from cwd.units import NS_PER_MS, NS_PER_S

_SAMPLES = 256
_AGE_NS = 30 * NS_PER_S
#: with fewer measurements than that it is no shorter than so long
_SAMPLES_MIN, _UNKNOWN_NS = 32, 3 * NS_PER_MS
#: for what comes after the measurement
_MORE_NS = NS_PER_MS
#: the share of an SLO that is given up in any case, and at most
_PART_MIN, _PART_MAX = 50, 4


class Margin:
    """Not for two threads at once. Times are those of one monotonic clock."""

    def __init__(self, processes: int = 1) -> None:
        """`processes` that an answer passes until its caller has it, this one included: each is as late as this one."""
        self._processes = processes
        #: (when, how late), oldest first
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)
        self._late_ns = _UNKNOWN_NS

    def observe(self, late_ns: int, now_ns: int) -> None:
        """An answer for which the wait was over at its deadline was there `late_ns` after that."""
        self._samples.append((now_ns, late_ns))
        self._look(now_ns)

    def of(self, slo_ns: int, now_ns: int) -> int:
        """The margin for a request of that SLO, ns."""
        if self._samples and now_ns - self._samples[0][0] > _AGE_NS:
            self._look(now_ns)
        return min(max(self._processes * self._late_ns + _MORE_NS, slo_ns // _PART_MIN), slo_ns // _PART_MAX)

    def _look(self, now_ns: int) -> None:
        samples = self._samples
        while samples and now_ns - samples[0][0] > _AGE_NS:
            samples.popleft()
        longest = heapq.nlargest(2, [late_ns for _, late_ns in samples])
        self._late_ns = longest[1] if len(longest) == 2 else 0
        if len(samples) < _SAMPLES_MIN:
            self._late_ns = max(self._late_ns, _UNKNOWN_NS)
