"""The lanes between the io thread and the threads that work: records, rings, and waiting for the right moment.

A lane's thread sleeps without the GIL in `lane_wait` until the agenda says START, does the work in Python, writes how
it ended into `lane.done` and waits again. What the agenda refuses never reaches Python. Between threads there are only
rings with one producer and one consumer, and the entries: rows of message tables that the io thread lends to a lane
with an action and gets back with its result. It must not know what the work is.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inline, inner_kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_acquire, load_i4, pause, store_release
from cwd.net.sync import (
    Ring,
    make_ring,
    ring_advance,
    ring_arm,
    ring_bell,
    ring_claim,
    ring_disarm,
    ring_peek,
    ring_publish,
)
from cwd.net.wake import eventfd_clear, eventfd_signal, make_eventfd, spin_until, wait_fd
from cwd.net.zmq import message, message_alloc, message_close, message_data, message_size, message_table
from cwd.tables import Tables
from cwd.wire.messages import DIMS
from cwd.worker import agenda as ag

OK = int(Code.OK)
TOO_LATE = int(Code.TOO_LATE)
ABANDONED = int(Code.ABANDONED)
DEVICE_ERROR = int(Code.DEVICE_ERROR)

#: What `lane_wait` returns.
START = 1
STOP = 2

#: Words of a lane's `control`: written by the io thread and by Python.
_SESSION, _STOP = 0, 8

RESULT = np.dtype(
    [
        ("action", "i8"),
        ("epoch", "i8"),
        ("session", "i8"),
        ("received_ns", "i8"),
        ("begin_ns", "i8"),
        ("end_ns", "i8"),
        ("device_ns", "i8"),
        ("pages_free", "i8"),
        ("kind", "i4"),
        ("entry", "i4"),
        ("status", "i4"),
        ("rows_done", "i4"),
    ],
    align=True,
)


DONE = np.dtype([("status", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"), ("device_ns", "i8"), ("pages_free", "i8"),
                 ("rows_done", "i8")], align=True)


class Entries(Tables):
    """Where the messages of actions live while a lane has them; the io thread alone hands entries out."""

    frames: np.ndarray  # u1 [n * (1 + rows_max), 64]: frame 0 and the payload frames of each entry
    outputs: np.ndarray  # u1 [n * rows_max, 64]: what the exec thread answers
    dims: np.ndarray  # u4 [n, rows_max * 4]
    used: np.ndarray  # i4 [n]: frames that are in use
    free: np.ndarray  # i4 [n]: a stack
    counts: np.ndarray  # i8 [2]: depth of the stack; the entry that the next message is read into


class Lane(Tables):
    """One lane: `actions` from the io thread, `results` back to it."""

    actions: Ring  # ACTION
    results: Ring  # RESULT
    agenda: ag.Agenda  # one lane; the lane's thread's own
    action: np.ndarray  # ACTION [1]: what runs; the lane's thread's own
    done: np.ndarray  # DONE [1]: how it ended, filled before the next `lane_wait`
    control: np.ndarray  # i8 [16]: see _SESSION
    fds: np.ndarray  # i8 [2]: the lane's eventfd, the io thread's eventfd


def make_entries(n: int, rows_max: int) -> Entries:
    entries = Entries(
        frames=message_table(n * (1 + rows_max)), outputs=message_table(n * rows_max),
        dims=np.zeros((n, rows_max * DIMS), np.uint32), used=np.zeros(n, np.int32), free=np.arange(n, dtype=np.int32),
        counts=np.zeros(2, np.int64))
    entries.counts[:] = n - 1, n - 1  # the last one is the first to read into
    return entries


def make_lane(agenda_max: int, io_fd: int) -> Lane:
    """A lane with its own eventfd, whose agenda holds `agenda_max` waiting actions."""
    capacity = 1 << (agenda_max + 2).bit_length()
    return Lane(actions=make_ring(ag.ACTION, capacity), results=make_ring(RESULT, 2 * capacity),
                agenda=ag.make_agenda(1, capacity), action=np.zeros(1, ag.ACTION), done=np.zeros(1, DONE),
                control=np.zeros(16, np.int64), fds=np.array([make_eventfd(), io_fd], np.int64))


@inner_kernel
def lane_queue(lane, action):
    """The io thread hands over an action; False if the ring is full (which counting prevents)."""
    index = ring_claim(lane.actions)
    if index < 0:
        return False
    ag.copy_action(action, lane.actions.records[index])
    ring_publish(lane.actions)
    if ring_bell(lane.actions) != 0:
        eventfd_signal(lane.fds[0])
    return True


@inner_kernel
def lane_session(lane, session):
    """The io thread: what is older than `session` is to be dropped."""
    store_release(lane.control, _SESSION, session)
    eventfd_signal(lane.fds[0])


@lean_kernel
def lane_stop(lane):
    """Any thread: `lane_wait` returns STOP, as soon as what runs is done."""
    store_release(lane.control, _STOP, 1)
    eventfd_signal(lane.fds[0])


@lean_kernel
def lane_wait(lane, spin_ns):
    """The lane's thread: tell how what it did has ended, if anything was started; then sleep until an action may start
    (START: it is in `lane.action[0]`) or the lane ends (STOP)."""
    action, done = lane.action[0], lane.done[0]
    if lane.agenda.lanes[0]["running"] != -1:
        ag.agenda_done(lane.agenda, 0)
        _result(lane, action, done["status"], done["begin_ns"], done["end_ns"], done["device_ns"], done["pages_free"],
                done["rows_done"])
    while True:
        _take_in(lane)
        if load_acquire(lane.control, _STOP) != 0:
            return STOP
        now_ns = monotonic_ns()
        verdict, until_ns = ag.agenda_next(lane.agenda, 0, now_ns, action)
        if verdict == ag.START:
            return START
        if verdict == ag.REFUSE:
            _refuse(lane, action, TOO_LATE)
        elif verdict == ag.DROP:
            _refuse(lane, action, ABANDONED)
        elif verdict == ag.WAIT and until_ns - now_ns <= spin_ns:
            spin_until(until_ns)
        else:
            _sleep(lane, until_ns, spin_ns)


@inner_kernel
def _take_in(lane):
    """Move what came from the ring into the agenda; the newest session that is known decides what is stale."""
    state = lane.agenda.lanes[0]
    index = ring_peek(lane.actions)
    while index >= 0:
        action = lane.actions.records[index]
        if action["session"] > state["session"]:
            ag.agenda_session(lane.agenda, 0, action["session"])
        code = ag.agenda_push(lane.agenda, 0, action)
        if code != OK:
            _refuse(lane, action, code)
        ring_advance(lane.actions)
        index = ring_peek(lane.actions)
    session = load_acquire(lane.control, _SESSION)
    if session > state["session"]:
        ag.agenda_session(lane.agenda, 0, session)


@inner_kernel
def _sleep(lane, until_ns, spin_ns):
    """Sleep until something comes, or shortly before `until_ns`."""
    if ring_arm(lane.actions) == 0:
        return
    timeout_ns = np.int64(-1)
    if until_ns != ag.NEVER:
        timeout_ns = max(until_ns - spin_ns - monotonic_ns(), 0)
    wait_fd(lane.fds[0], timeout_ns)
    ring_disarm(lane.actions)
    eventfd_clear(lane.fds[0])


@inner_kernel
def _refuse(lane, action, status):
    """Tell the io thread that an action never began."""
    _result(lane, action, status, 0, 0, 0, -1, 0)


@inner_kernel
def _result(lane, action, status, begin_ns, end_ns, device_ns, pages_free, rows_done):
    """Push a RESULT and wake the io thread. The ring has room: results are never more than entries."""
    index = ring_claim(lane.results)
    while index < 0:
        pause()
        index = ring_claim(lane.results)
    row = lane.results.records[index]
    row["action"] = action["action"]
    row["epoch"] = action["epoch"]
    row["session"] = action["session"]
    row["received_ns"] = action["received_ns"]
    row["begin_ns"] = begin_ns
    row["end_ns"] = end_ns
    row["device_ns"] = device_ns
    row["pages_free"] = pages_free
    row["kind"] = action["kind"]
    row["entry"] = action["entry"]
    row["status"] = status
    row["rows_done"] = rows_done
    ring_publish(lane.results)
    if ring_bell(lane.results) != 0:
        eventfd_signal(lane.fds[1])


@inner_kernel
def entry_take(entries):
    """The io thread: keep the entry that was read into and go on with another: its index, or -1: none left."""
    depth = entries.counts[0]
    if depth == 0:
        return np.int64(-1)
    kept = np.int64(entries.counts[1])
    entries.counts[0] = depth - 1
    entries.counts[1] = entries.free[depth - 1]
    return kept


@inner_kernel
def entry_give(entries, entry):
    """The io thread: the entry's action is answered; its frames are released."""
    entry_close(entries, entry)
    entries.free[entries.counts[0]] = entry
    entries.counts[0] += 1


@lean_kernel
def entry_close(entries, entry):
    """Release an entry's frames."""
    stride = entries.frames.shape[0] // len(entries.used)
    for k in range(entries.used[entry]):
        message_close(message(entries.frames, entry * stride + k))
    entries.used[entry] = 0


@inline
def rows_max(entries):
    return entries.dims.shape[1] // DIMS


@inner_kernel
def entry_dims(entries, entry, address, n):
    """Copy the dims of n rows, n x 16 bytes at `address` inside frame 0."""
    for row in range(n):
        for k in range(DIMS):
            entries.dims[entry, DIMS * row + k] = load_i4(address + 16 * row + 4 * k)


@lean_kernel
def entry_payloads(entries, entry, n, addresses, sizes):
    """The exec thread: where the payload frames lie, into addresses i8[n] and sizes i8[n]."""
    first = entry * (entries.frames.shape[0] // len(entries.used)) + 1
    for row in range(n):
        m = message(entries.frames, first + row)
        addresses[row] = message_data(m)
        sizes[row] = message_size(m)


@lean_kernel
def entry_outputs(entries, entry, n, sizes, addresses):
    """The exec thread: make n output messages of sizes i8[n]; their addresses, or False: no memory."""
    first = entry * rows_max(entries)
    for row in range(n):
        m = message(entries.outputs, first + row)
        if message_alloc(m, sizes[row]) != 0:
            entry_drop_outputs(entries, entry, row)
            return False
        addresses[row] = message_data(m)
    return True


@lean_kernel
def entry_drop_outputs(entries, entry, n):
    """Close n output messages that will not be sent."""
    first = entry * rows_max(entries)
    for row in range(n):
        message_close(message(entries.outputs, first + row))
