"""How much processor time a process has used, all its threads together; ours or another's."""

from __future__ import annotations

import time

_SCHEDULER_CLOCK = 2  # of the three clocks that Linux keeps for a process: the exact one, user and system together


def process_cpu_ns(pid: int | None = None) -> int:
    """Nanoseconds of processor time of the process so far; `OSError` if there is no such process."""
    if pid is None:
        return time.process_time_ns()
    return time.clock_gettime_ns((~pid << 3) | _SCHEDULER_CLOCK)
