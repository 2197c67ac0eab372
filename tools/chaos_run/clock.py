"""When requests are due: fixed times from a begin that all hosts agree on, turned into each one's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator


def own_ns(wall_ns: int) -> int:
    """A time of the wall clock on this process's monotonic clock."""
    return wall_ns - time.time_ns() + time.monotonic_ns()


async def due(begin_ns: int, rate: float, seconds: float, first: int = 0) -> AsyncIterator[tuple[int, int]]:
    """(number, when it is due) of each request at its time, or as soon after it as this process can. Own clock."""
    for index in range(int(rate * seconds)):
        at_ns = begin_ns + int(index * 1e9 / rate)
        left_ns = at_ns - time.monotonic_ns()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)
        yield first + index, at_ns
