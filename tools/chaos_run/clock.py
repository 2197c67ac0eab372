"""When requests are due: fixed times from a begin that all hosts agree on, turned into each one's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine


def own_ns(wall_ns: int) -> int:
    """A time of the wall clock on this process's monotonic clock."""
    return wall_ns - time.time_ns() + time.monotonic_ns()


async def open_loop(ask: Callable[[int, int], Coroutine[None, None, None]], begin_ns: int, rate: float, seconds: float) -> None:
    """`ask(number, when it is due)` for each request at its time, or as soon after it as this process can, whatever becomes
    of those before; returns when all have ended. `rate` per second; times are of the own clock."""
    flying: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        at_ns = begin_ns + int(number * 1e9 / rate)
        left_ns = at_ns - time.monotonic_ns()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)
        task = asyncio.create_task(ask(number, at_ns))
        flying.add(task)
        task.add_done_callback(flying.discard)
    await asyncio.gather(*flying)
