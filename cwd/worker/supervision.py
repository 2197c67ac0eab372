"""What a worker's supervisor is told, and when: that it takes longer, that it is ready, how it goes, that all is well.

Whoever serves asks `wait_s` how long it may sleep and calls `look` after each sleep. Without a supervisor all of it is
nothing. "All is well" (WATCHDOG) is said only if no thread is stuck; a supervisor that misses it starts the worker anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cwd.net.clock import monotonic_ns
from cwd.net.notify import notify, supervised, watchdog_period_ns
from cwd.units import NS_PER_S

LOG = logging.getLogger("cwd.worker")

#: how often the status is renewed where no watchdog asks for more, and while the worker is not ready yet
STATUS_NS = 10 * NS_PER_S
#: what one step of a start may take, beyond the supervisor's own timeout: compiling kernels, importing torch or building
#: one program; staging one image; being welcomed by a controller that is there
BUILD_NS, STAGE_NS, WAIT_NS = 900 * NS_PER_S, 120 * NS_PER_S, 60 * NS_PER_S


class Supervision:
    """`summary` says how it goes; `count` counts what was executed; `stuck` names a thread that does not go on."""

    def __init__(self, summary: Callable[[], str], count: Callable[[], int], stuck: Callable[[int], str]) -> None:
        self._summary, self._count, self._stuck = summary, count, stuck
        self._watchdog_ns = watchdog_period_ns()
        self.period_ns = (self._watchdog_ns or STATUS_NS) if supervised() else 0
        self._ready = False
        self._due_ns = self._last_ns = monotonic_ns()
        self._last_count = count()
        self._said = ""

    @property
    def wait_s(self) -> float | None:
        """How long the caller may sleep before it looks; None: for ever."""
        return max(self._due_ns - monotonic_ns(), 0) / NS_PER_S if self.period_ns else None

    def ready(self) -> None:
        self._ready = True
        notify(ready=True, watchdog=self._watchdog_ns > 0, status=self._summary())
        self._due_ns = monotonic_ns() + self.period_ns

    def look(self) -> None:
        """Tell the supervisor what is due."""
        now_ns = monotonic_ns()
        if not self.period_ns or now_ns < self._due_ns:
            return
        self._due_ns = now_ns + self.period_ns
        stuck = self._stuck(now_ns)
        if stuck != self._said:
            LOG.error("%s", f"{stuck} does not go on" if stuck else "all threads go on again")
            self._said = stuck
        if stuck:
            notify(status=f"stuck: {stuck}")
        elif self._ready:
            notify(watchdog=self._watchdog_ns > 0, status=f"{self._summary()}, {self._rate(now_ns):.0f} executions/s")
        else:
            notify(status="waiting for the controller", extend_ns=WAIT_NS)

    def _rate(self, now_ns: int) -> float:
        count, passed_ns = self._count(), max(now_ns - self._last_ns, 1)
        rate = (count - self._last_count) * NS_PER_S / passed_ns
        self._last_ns, self._last_count = now_ns, count
        return rate
