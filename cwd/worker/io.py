"""The io thread's loop: takes messages in, keeps the connection alive, sleeps. Nopython, of one device.

Python gets control only for what is rare; see `io_run`. What the thread does with a message is exchange.py's.
"""

from __future__ import annotations

import numpy as np

from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.wake import eventfd_clear, wait_fd, wait_fds
from cwd.tables import Tables
from cwd.worker import exchange as ex
from cwd.worker import link as ln

#: What `io_run` returns for: Python must look at the message in the reading entry, say HELLO, reconnect, or end.
RARE, GREET, LOST, STOP = 1, 2, 3, 4

#: `Io.items`
SOCKET, WAKE = 0, 1


class Io(Tables):
    exchange: ex.Exchange
    items: np.ndarray  # POLL_FD [2]: the socket's descriptor, which Python sets with the socket, and wake_fd


@lean_kernel
def io_run(io):
    """Serve the socket until Python is needed: RARE, GREET, LOST or STOP. With the lock, then as before."""
    exchange, link = io.exchange, io.exchange.link[0]
    while exchange.counts[0]["stop"] == 0:
        exchange.counts[0]["turns"] += 1
        now_ns = monotonic_ns()
        read = ex.exchange_read(exchange)
        if read == ex.RARE:
            return RARE
        if read == ex.LOST:
            return LOST
        if ln.link_timer(link) <= now_ns:
            what = ln.link_due(link, exchange.scratch, now_ns)
            if what == ln.RARE:
                return GREET
            if what == ln.LOST:
                return LOST
            continue  # it may have sent something: the socket is read last before a sleep (see exchange.py)
        link["loop_max_ns"] = max(link["loop_max_ns"], monotonic_ns() - now_ns)
        _sleep(io, read == ex.MORE)
    return STOP


@inner_kernel
def _sleep(io, more):
    """Open the lock until there is a message, a signal or the time of a heartbeat; if there is `more`, for a moment."""
    exchange = io.exchange
    timeout_ns = max(ln.link_timer(exchange.link[0]) - monotonic_ns(), 0)
    ex.exchange_unlock(exchange)
    if more:  # a thread that waits for the lock gets it only if this one sleeps
        wait_fd(-1, 1)
    else:
        wait_fds(io.items, timeout_ns)
        if io.items[WAKE]["revents"] != 0:
            eventfd_clear(exchange.fds[0])
    ex.exchange_lock(exchange)
