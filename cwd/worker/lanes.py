"""The lanes: the threads that work, and waiting for the right moment.

A lane's thread sleeps without the GIL in `lane_wait` until the agenda says START, does the work in Python, writes how
it ended into `lane.done`, sends that with `lane_answer` and waits again. What the agenda refuses never reaches Python.
Where inputs can be staged ahead the thread also learns, while it works (`lane_ahead`) or waits, which EXEC is next.
It must not know what the work is.
"""

from __future__ import annotations

import struct

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_acquire, pause, store_release
from cwd.net.sync import ring_advance, ring_arm, ring_disarm, ring_peek
from cwd.net.wake import eventfd_clear, spin_until, wait_fd
from cwd.tables import Tables
from cwd.wire.kernel import TYPE_EXEC
from cwd.worker import agenda as ag
from cwd.worker import exchange as ex

OK = int(Code.OK)
TOO_LATE = int(Code.TOO_LATE)
ABANDONED = int(Code.ABANDONED)

#: What `lane_wait` returns; STAGED: start what STAGE, or `lane_ahead`, has told of before.
START = 1
STOP = 2
STAGE = 3
STAGED = 4

#: Words of `Lane.pulse`. TURNS grows whenever the thread goes on; BEGAN_NS: since when it is at an action, 0 at none, and
#: what that is (wire.messages.Type), and how long the controller expects it to take.
TURNS, BEGAN_NS, KIND, EXPECTED_NS = 0, 1, 2, 3

#: how long `lane_ahead` looks; the end of an execution is noticed within it
LOOK_NS = 10_000

DONE = np.dtype([("status", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"), ("device_ns", "i8"), ("rows_done", "i8"),
                 ("pages_free", "i8")], align=True)
#: Writes a DONE, all fields at once.
DONE_FIELDS = struct.Struct("=6q")


class Lane(Tables):
    """One lane; all but the exchange is its thread's own, though others may read its pulse."""

    exchange: ex.Exchange
    queue: ex.Queue  # that of the exchange's which is this lane's
    agenda: ag.Agenda  # one lane
    action: np.ndarray  # ACTION [1]: what runs
    done: np.ndarray  # DONE [1]: how it ended; pages_free -1: as before
    ahead: np.ndarray  # ACTION [1]: what was last said to be next; session -1: nothing yet
    stages: np.ndarray  # i8 [1]: 1 if the thread wants to know
    pulse: np.ndarray  # i8 [4]: see TURNS


def make_lane(exchange: ex.Exchange, queue: ex.Queue, *, stages: bool = False) -> Lane:
    return Lane(exchange=exchange, queue=queue, agenda=ag.make_agenda(1, len(queue.actions.records)),
                action=np.zeros(1, ag.ACTION), done=np.zeros(1, DONE), ahead=ag.make_action(session=-1),
                stages=np.array([stages], np.int64), pulse=np.zeros(4, np.int64))


@lean_kernel
def lane_answer(lane):
    """The lane's thread: what was started has ended as `lane.done[0]` says; the answer is libzmq's when this returns."""
    done = lane.done[0]
    ag.agenda_done(lane.agenda, 0)
    ex.exchange_answer(lane.exchange, lane.action[0], done["status"], done["begin_ns"], done["end_ns"],
                       done["device_ns"], done["pages_free"], done["rows_done"])
    store_release(lane.pulse, BEGAN_NS, 0)
    _turned(lane)


@lean_kernel
def lane_wait(lane, spin_ns):
    """The lane's thread: sleep until an action may start (START, STAGED: it is in `lane.action[0]`), one has come that
    will be next (STAGE: it is in `lane.ahead[0]`), or the lane ends (STOP)."""
    action = lane.action[0]
    while True:
        _turned(lane)
        _take_in(lane)
        if load_acquire(lane.queue.control, ex.STOP) != 0:
            return STOP
        now_ns = monotonic_ns()
        verdict, until_ns = ag.agenda_next(lane.agenda, 0, now_ns, action)
        if verdict == ag.START:
            lane.pulse[KIND], lane.pulse[EXPECTED_NS] = action["kind"], action["expected_ns"]
            store_release(lane.pulse, BEGAN_NS, now_ns)
            return STAGED if ag.same_action(action, lane.ahead[0]) else START
        if verdict == ag.REFUSE:
            _refuse(lane, action, TOO_LATE)
        elif verdict == ag.DROP:
            _refuse(lane, action, ABANDONED)
        elif _ahead(lane):
            return STAGE
        elif verdict == ag.WAIT and until_ns - now_ns <= spin_ns:
            spin_until(until_ns)
        else:
            _sleep(lane, until_ns, spin_ns)


@lean_kernel
def lane_ahead(lane):
    """The lane's thread, while the device works: whether an EXEC has come that will be next; it is in `lane.ahead[0]`, once.

    It looks for LOOK_NS without the GIL: where that is taken and given back all the time other threads wait longer for it.
    """
    until_ns = monotonic_ns() + LOOK_NS
    while True:
        _take_in(lane)
        if _ahead(lane):
            return True
        if monotonic_ns() >= until_ns:
            return False
        pause()


@inner_kernel
def _turned(lane):
    """For who watches the thread: it goes on."""
    store_release(lane.pulse, TURNS, lane.pulse[TURNS] + 1)


@inner_kernel
def _ahead(lane):
    return lane.stages[0] != 0 and ag.agenda_ahead(lane.agenda, 0, lane.ahead[0]) and lane.ahead[0]["kind"] == TYPE_EXEC


@inner_kernel
def _take_in(lane):
    """Move what came from the queue into the agenda; the newest session that is known decides what is stale."""
    state, actions = lane.agenda.lanes[0], lane.queue.actions
    index = ring_peek(actions)
    while index >= 0:
        action = actions.records[index]
        if action["session"] > state["session"]:
            ag.agenda_session(lane.agenda, 0, action["session"])
        code = ag.agenda_push(lane.agenda, 0, action)
        if code != OK:
            _refuse(lane, action, code)
        ring_advance(actions)
        index = ring_peek(actions)
    session = load_acquire(lane.queue.control, ex.SESSION)
    if session > state["session"]:
        ag.agenda_session(lane.agenda, 0, session)


@inner_kernel
def _sleep(lane, until_ns, spin_ns):
    """Sleep until something comes, or shortly before `until_ns`."""
    actions, fd = lane.queue.actions, lane.queue.fds[0]
    if ring_arm(actions) == 0:
        return
    timeout_ns = np.int64(-1)
    if until_ns != ag.NEVER:
        timeout_ns = max(until_ns - spin_ns - monotonic_ns(), 0)
    wait_fd(fd, timeout_ns)
    ring_disarm(actions)
    eventfd_clear(fd)


@inner_kernel
def _refuse(lane, action, status):
    """Answer an action that never began."""
    ex.exchange_answer(lane.exchange, action, status, 0, 0, 0, -1, 0)
