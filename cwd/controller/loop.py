"""The compiled loop: poll, receive, decide, send; and back to Python for what is rare.

One turn takes what has come on the three sockets (a bounded number of messages from each), lets the core tick, and
sends what it decided. When a turn brought nothing the loop sleeps in `zmq_poll` on the sockets, a timerfd that is armed
to whatever is due next, and the wake fd (signals). `run` returns to Python when the slice is over, when something rare
has come, when a signal asks for it, and when the time is over until which a leader may act; it says which.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.beats import beat, next_beat, settle_leaving
from cwd.controller.feed import feed_tick
from cwd.controller.flush import flush
from cwd.controller.host import NONE
from cwd.controller.limits import count_handshakes
from cwd.controller.receive import BROKEN, INTERRUPTED, drain_admins, drain_clients, drain_workers
from cwd.core import engine
from cwd.jit import inline, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import address_of
from cwd.net.wake import timerfd_arm
from cwd.net.zmq import EINTR, has_input, zmq_errno, zmq_poll

#: why `run` came back
SLICE_END, RARE, SIGNAL, CLOSED, FENCED = 0, 1, 2, 3, 4

#: messages taken from one socket in a turn: bounds a turn, and so how long anybody waits for its answer
TURN_CLIENTS = 256
TURN_WORKERS = 128
TURN_ADMINS = 8
#: of how many turns one looks at the admins' socket while the loop does not sleep
ADMIN_EVERY = 16

TIMER_ITEM, WAKE_ITEM = 3, 4


@inline
def turn(host, world, begin_ns):
    """One turn: (messages taken, RUNNING or why to stop)."""
    state = host.state[0]
    taken, stop = drain_workers(host, world, TURN_WORKERS)
    came, stopped = drain_clients(host, world, TURN_CLIENTS)
    taken, stop = taken + came, max(stop, stopped)
    if state["turns"] % ADMIN_EVERY == 0 or taken == 0:
        came, stopped = drain_admins(host, TURN_ADMINS)
        taken, stop = taken + came, max(stop, stopped)
        if state["zap"] != 0 and has_input(state["zap"]):
            state["zap_due"] = 1
    now_ns = monotonic_ns()
    if now_ns >= next_beat(host):
        beat(host, now_ns)
        count_handshakes(host)
    if taken > 0 or engine.next_timer(world, now_ns) <= now_ns or state["fed"] != 0:
        state["fed"] = 0
        feed_tick(host, world, now_ns)
    if world.counters[0]["outbox_count"] > 0 or state["results_used"] > 0:
        flush(host, world, now_ns)
    if state["leaving"] > 0:
        settle_leaving(host, world, monotonic_ns())
    state["turns"] += 1
    spent_ns = monotonic_ns() - begin_ns
    state["busy_ns"] += spent_ns
    state["turn_max_ns"] = max(state["turn_max_ns"], spent_ns)
    state["turn_window_max_ns"] = max(state["turn_window_max_ns"], spent_ns)
    return taken, stop


@inline
def sleep(host, world, until_ns):
    """Wait for a message, the next timer or a wake-up: RUNNING, SIGNAL or CLOSED."""
    state, items = host.state[0], host.items
    now_ns = monotonic_ns()
    due_ns = min(engine.next_timer(world, now_ns), next_beat(host), until_ns, state["valid_until_ns"])
    if due_ns <= now_ns:
        return np.int64(0)
    if due_ns != state["timer_ns"]:
        state["timer_ns"] = due_ns
        timerfd_arm(state["timer_fd"], due_ns)
    state["polls"] += 1
    if zmq_poll(address_of(items), len(items), NONE) < 0:
        errno = -zmq_errno()
        return np.int64(SIGNAL) if errno == EINTR else np.int64(CLOSED)
    if items[TIMER_ITEM]["revents"] != 0:
        state["timer_ns"] = 0  # arming it again is what makes it unreadable
        state["slice_late_max_ns"] = max(state["slice_late_max_ns"], monotonic_ns() - due_ns)
    return np.int64(SIGNAL) if items[WAKE_ITEM]["revents"] != 0 else np.int64(0)


@lean_kernel
def run(host, world, until_ns):
    """Work until `until_ns`, or until Python is needed: why it came back."""
    state = host.state[0]
    while True:
        begin_ns = monotonic_ns()
        if begin_ns >= state["valid_until_ns"]:  # it may have been stopped for long, in the middle of a slice
            return FENCED
        taken, stop = turn(host, world, begin_ns)
        if stop == INTERRUPTED:
            return SIGNAL
        if stop == BROKEN:
            return CLOSED
        if state["rare_used"] > 0 or state["zap_due"] != 0:
            return RARE
        if monotonic_ns() >= until_ns:
            return SLICE_END
        if taken == 0 and state["leaving"] == 0 and state["fed"] == 0:
            why = sleep(host, world, until_ns)
            if why != 0:
                return why
