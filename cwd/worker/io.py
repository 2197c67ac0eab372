"""The io thread's loop: owns the socket, feeds the lanes, sends their results. Nopython, of one device.

It must not know what an action does: that is the lanes' threads'. Python gets control only for what is rare; see
`io_run`. Payload frames are never copied: they stay in the entry that they were received into, and outputs are sent
from the messages that the exec thread filled.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.sync import ring_advance, ring_arm, ring_disarm, ring_peek
from cwd.net.wake import eventfd_clear, timerfd_arm, timerfd_clear
from cwd.net.zmq import DONTWAIT, SNDMORE, message, message_close, message_data, send, zmq_poll
from cwd.tables import Tables
from cwd.wire.kernel import TYPE_EXEC, TYPE_LOAD, TYPE_UNLOAD
from cwd.wire.memory import array_address
from cwd.worker import agenda as ag
from cwd.worker import lanes as la
from cwd.worker import link as ln

OK = int(Code.OK)
ABANDONED = int(Code.ABANDONED)
BAD_BATCH = int(Code.BAD_BATCH)
LANE_FULL = int(Code.LANE_FULL)

#: What Python may order before it calls `io_run` again, in `counts["order"]`: queue the action in `io.action`, whose
#: frames are in the reading entry; begin a new session; send what the lanes have finished and return WAKE.
NO_ORDER, QUEUE, WELCOME, FLUSH = 0, 1, 2, 3

#: What `io_run` returns for: Python must look at the message in the reading entry, say HELLO, reconnect, or look
#: whether it was told to stop.
RARE, GREET, LOST, WAKE = 1, 2, 3, 4

SOCKET, RESULTS, STOP, TIMER = 0, 1, 2, 3
_TURN_MESSAGES = 64

COUNTS = np.dtype(
    [
        ("agenda_max", "i8"),
        ("exec_out", "i8"),  # actions that the exec lane has not answered yet
        ("load_out", "i8"),
        ("pages_free", "i8"),  # as the lanes last said
        ("timer_ns", "i8"),  # what the timer is set to
        ("order", "i8"),
        ("executed", "i8"),  # for people, from here on
        ("loaded", "i8"),
        ("refused", "i8"),
        ("failed", "i8"),
    ],
    align=True,
)


class Io(Tables):
    link: np.ndarray  # LINK [1]
    scratch: ln.Scratch
    entries: la.Entries
    action: np.ndarray  # ACTION [1]
    exec_lane: la.Lane
    load_lane: la.Lane
    items: np.ndarray  # POLL_ITEM [4]: socket, results' eventfd, stop's, timer
    counts: np.ndarray  # COUNTS [1]


def make_io(exec_lane: la.Lane, load_lane: la.Lane, entries: la.Entries, items: np.ndarray, agenda_max: int,
            pages: int) -> Io:
    counts = np.zeros(1, COUNTS)
    counts["agenda_max"], counts["pages_free"] = agenda_max, pages
    return Io(link=np.zeros(1, ln.LINK), scratch=ln.make_scratch(), entries=entries, action=np.zeros(1, ag.ACTION),
              exec_lane=exec_lane, load_lane=load_lane, items=items, counts=counts)


@lean_kernel
def io_run(io):
    """Do as ordered; then serve the socket and the lanes until Python is needed: RARE, GREET, LOST or WAKE."""
    link = io.link[0]
    order = np.int64(io.counts[0]["order"])
    io.counts[0]["order"] = NO_ORDER
    if order == QUEUE:
        _accept(io, io.action[0])
    elif order == WELCOME:
        _welcome(io)
    while True:
        now_ns = monotonic_ns()
        _results(io)
        if order == FLUSH:
            return WAKE
        what = _read(io)
        if what != 0:
            return what
        if ln.link_timer(link) <= now_ns:
            what = ln.link_due(link, io.scratch, now_ns)
            if what == ln.RARE:
                return GREET
            if what == ln.LOST:
                return LOST
        link["loop_max_ns"] = max(link["loop_max_ns"], monotonic_ns() - now_ns)
        if not _sleep(io):
            return WAKE


@inner_kernel
def _sleep(io):
    """Wait for a message, a result, the time of a heartbeat; False if Python wants the thread, or a signal came."""
    results, others = io.exec_lane.results, io.load_lane.results
    if ring_arm(results) == 0:
        return True
    if ring_arm(others) == 0:
        ring_disarm(results)
        return True
    timer_fd = np.int64(io.items[TIMER]["fd"])
    when_ns = ln.link_timer(io.link[0])
    if when_ns != io.counts[0]["timer_ns"]:
        io.counts[0]["timer_ns"] = when_ns
        timerfd_arm(timer_fd, max(when_ns, 1))
    ready = zmq_poll(array_address(io.items), 4, -1)
    ring_disarm(results)
    ring_disarm(others)
    if ready < 0 or io.items[STOP]["revents"] != 0:
        return False
    if io.items[RESULTS]["revents"] != 0:
        eventfd_clear(np.int64(io.items[RESULTS]["fd"]))
    if io.items[TIMER]["revents"] != 0:
        timerfd_clear(timer_fd)
        io.counts[0]["timer_ns"] = -1
    return True


@inner_kernel
def _read(io):
    """Take messages from the socket; RARE, LOST or 0."""
    link, entries, action = io.link[0], io.entries, io.action[0]
    frames_max = 1 + la.rows_max(entries)
    for _ in range(_TURN_MESSAGES):
        entry = np.int64(entries.counts[1])
        entry_frames = entry * frames_max
        what, frames = ln.link_read(link, io.scratch, entries.frames, entry_frames, frames_max, monotonic_ns(), action)
        if what == ln.NOTHING:
            return 0
        if what == ln.LOST:
            return LOST
        entries.used[entry] = min(max(frames, 1), frames_max)
        if what == ln.RARE:
            return RARE
        if what == ln.ACTION:
            _accept(io, action)
        else:
            la.entry_close(entries, entry)
    return 0


@inner_kernel
def _accept(io, action):
    """Queue an action whose frames are in the reading entry, or refuse it at once."""
    link, entries, counts = io.link[0], io.entries, io.counts[0]
    load = action["kind"] == TYPE_LOAD or action["kind"] == TYPE_UNLOAD
    rows = np.int64(action["rows"])
    outstanding = counts["load_out"] if load else counts["exec_out"]
    code = OK
    if action["epoch"] != link["epoch"]:
        code = ABANDONED
    elif action["kind"] == TYPE_EXEC and (rows < 1 or rows > la.rows_max(entries)):
        code = BAD_BATCH
    elif outstanding > counts["agenda_max"]:  # that many wait, and one runs
        code = LANE_FULL
    reading = np.int64(entries.counts[1])
    entry = la.entry_take(entries) if code == OK else np.int64(-1)
    if entry < 0:
        counts["refused"] += 1
        ln.link_refuse(link, io.scratch, action, code if code != OK else LANE_FULL, counts["pages_free"])
        la.entry_close(entries, reading)
        return
    action["entry"] = entry
    link["queued"] += 1
    if action["kind"] == TYPE_EXEC:
        frame = message_data(message(entries.frames, entry * (1 + la.rows_max(entries))))
        la.entry_dims(entries, entry, frame + np.int64(action["rows_at"]), rows)
    if load:
        counts["load_out"] += 1
        la.lane_queue(io.load_lane, action)
    else:
        counts["exec_out"] += 1
        la.lane_queue(io.exec_lane, action)


@inner_kernel
def _welcome(io):
    """A new session has begun: the lanes drop what is older."""
    session = np.int64(io.link[0]["session"])
    la.lane_session(io.exec_lane, session)
    la.lane_session(io.load_lane, session)


@inner_kernel
def _results(io):
    """Send the results that the lanes have pushed, and take their entries back."""
    for k in range(2):
        results = io.exec_lane.results if k == 0 else io.load_lane.results
        index = ring_peek(results)
        while index >= 0:
            _result(io, results.records[index])
            ring_advance(results)
            index = ring_peek(results)


@inner_kernel
def _result(io, row):
    """One result: out to the controller, unless its session is over."""
    link, counts, entry = io.link[0], io.counts[0], np.int64(row["entry"])
    link["queued"] -= 1
    if row["pages_free"] >= 0:
        counts["pages_free"] = row["pages_free"]
    if row["kind"] == TYPE_LOAD or row["kind"] == TYPE_UNLOAD:
        counts["load_out"] -= 1
    else:
        counts["exec_out"] -= 1
    _count(counts, row)
    rows = np.int64(row["rows_done"])
    if row["session"] != link["session"] or link["state"] != ln.OPEN:
        la.entry_drop_outputs(io.entries, entry, rows)
    else:
        sent = ln.link_answer(
            link, io.scratch, row["kind"], row["action"], row["epoch"], row["received_ns"], row["status"],
            row["begin_ns"], row["end_ns"], row["device_ns"], counts["pages_free"], rows)
        _send_outputs(io, entry, rows, sent)
    la.entry_give(io.entries, entry)


@inner_kernel
def _count(counts, row):
    """Counters for people."""
    if row["begin_ns"] == 0:
        counts["refused"] += 1
    elif row["status"] != OK:
        counts["failed"] += 1
    elif row["kind"] == TYPE_EXEC:
        counts["executed"] += 1
    elif row["kind"] == TYPE_LOAD:
        counts["loaded"] += 1


@inner_kernel
def _send_outputs(io, entry, rows, go):
    """Send an entry's output messages, or close them if not `go`; a failed send breaks the session."""
    link = io.link[0]
    first = entry * la.rows_max(io.entries)
    for row in range(rows):
        m = message(io.entries.outputs, first + row)
        flags = DONTWAIT | SNDMORE if row + 1 < rows else DONTWAIT
        if go and send(link["socket"], m, flags) < 0:
            link["broken"] = 1
            go = False
        if not go:
            message_close(m)
