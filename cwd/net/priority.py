"""Scheduling priority of threads that must be prompt: they work for microseconds, and others wait for them."""

from __future__ import annotations

import contextlib
import os


def set_nice(nice: int) -> None:
    """Give the calling thread, and those it starts, this nice value; nothing changes where the system does not allow it.

    A controller that shares its core, or an io thread that shares one with executions, otherwise answers a time slice
    late: that is milliseconds, and the margins of every deadline grow by it.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
