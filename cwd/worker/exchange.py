"""The exchange with the controller: what the threads of a worker share, and what any of them does at the socket.

Messages come in and become actions in the queues of the lanes; answers go out. The io thread takes messages in; each
thread sends its own answers, so that a result waits for no other thread to wake up. It must not know what an action
does, nor when one may start. Payloads are never copied: they stay in the entry that they were received into, and
outputs are sent from the messages that the exec thread filled.

The lock (`mutex`) guards the socket and every table of an `Exchange`; libzmq lets threads take turns at a socket if a
full fence lies between the turns. The io thread has it whenever it is awake, in Python too, and opens it only to sleep.
A lane's thread has it for one answer. Why this is right:

- Nobody waits in a circle. A thread waits for the lock without the GIL (see net/mutex.py), and nobody asks for it while
  it has the device's lock. So the order is exchange, device, GIL, and each can be waited for by who has those before it.
- No message stays unseen. libzmq's descriptor is readable from its first untaken command until somebody at the socket
  takes the commands; after that nothing tells of the messages that they brought. The io thread reads until there is no
  more, which takes every command, as its last act before it opens the lock: what comes later makes the descriptor
  readable, and poll asks for the state, so it does not matter whether that was before or after poll began. Only a
  lane's thread can take the commands away in between. Therefore its last act at the socket is to ask for input, which
  takes every command: if there is a message, it signals `wake_fd`, and that stays readable until the io thread, awake,
  clears it, which reads the socket afterwards; if there is none, the next command makes the descriptor readable anew.
- A new connection changes the handle, the descriptor, the state and `broken` in one hold of the lock, by the io thread,
  which is the only one that polls the descriptor. A lane's thread finds the old socket or the new one, never half of it.
- An answer belongs to a session. Whether that is still the link's is asked in the same hold of the lock that sends all
  of its frames: none gets into another session, and none between the frames of another message.
- A failed send (the peer does not read, or is gone) sets `broken`, and the sender signals `wake_fd`: the link's timer
  then says now, and the io thread makes a new connection.
- At the end the lanes' threads are joined first. Each has sent its last answer itself, so GOODBYE comes after them all.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.mutex import make_mutex, mutex_lock, mutex_unlock
from cwd.net.native import store_release
from cwd.net.sync import Ring, make_ring, ring_bell, ring_claim, ring_publish
from cwd.net.wake import eventfd_signal, make_eventfd
from cwd.net.zmq import DONTWAIT, SNDMORE, has_input, message, message_close, message_data, send
from cwd.tables import Tables
from cwd.wire.kernel import TYPE_EXEC, TYPE_LOAD, TYPE_UNLOAD
from cwd.worker import agenda as ag
from cwd.worker import entries as en
from cwd.worker import link as ln

OK = int(Code.OK)
ABANDONED = int(Code.ABANDONED)
BAD_BATCH = int(Code.BAD_BATCH)
LANE_FULL = int(Code.LANE_FULL)

#: What `exchange_read` returns: the socket is empty; there may be more; Python must look at the message in the reading
#: entry; the socket is unusable.
EMPTY, MORE, RARE, LOST = 0, 1, 2, 3

#: Messages taken in before the lanes' threads get a chance at the lock.
_TURN_MESSAGES = 64

#: Words of a queue's `control`, for a lane's thread to read at any time.
SESSION, STOP = 0, 8

COUNTS = np.dtype(
    [
        ("agenda_max", "i8"),
        ("exec_out", "i8"),  # actions that the exec lane has not answered yet
        ("load_out", "i8"),
        ("pages_free", "i8"),  # as the lanes last said
        ("stop", "i8"),  # 1: the io thread is to end
        ("turns", "i8"),  # grows whenever the io thread goes on
        ("executed", "i8"),  # for people, from here on
        ("loaded", "i8"),
        ("refused", "i8"),
        ("failed", "i8"),
    ],
    align=True,
)


class Queue(Tables):
    """Actions on their way to a lane's thread, and what else it must learn."""

    actions: Ring  # ACTION; whoever has the lock pushes
    control: np.ndarray  # i8 [16]: see SESSION
    fds: np.ndarray  # i8 [1]: the lane's eventfd


class Exchange(Tables):
    mutex: np.ndarray  # the lock: see the top
    link: np.ndarray  # LINK [1]
    scratch: ln.Scratch
    entries: en.Entries
    action: np.ndarray  # ACTION [1]: what was read last, or what Python asks to queue
    exec_queue: Queue
    load_queue: Queue
    counts: np.ndarray  # COUNTS [1]
    fds: np.ndarray  # i8 [1]: wake_fd, the io thread's eventfd


def make_exchange(agenda_max: int, rows_max: int, pages: int) -> Exchange:
    """An exchange without a connection. It owns three eventfds: `exchange_fds`."""
    counts = np.zeros(1, COUNTS)
    counts["agenda_max"], counts["pages_free"] = agenda_max, pages
    # two lanes of agenda_max waiting actions and a running one each, one to read into, and some to spare
    return Exchange(mutex=make_mutex(), link=np.zeros(1, ln.LINK), scratch=ln.make_scratch(),
                    entries=en.make_entries(2 * agenda_max + 8, rows_max), action=np.zeros(1, ag.ACTION),
                    exec_queue=_make_queue(agenda_max), load_queue=_make_queue(agenda_max), counts=counts,
                    fds=np.array([make_eventfd()], np.int64))


def _make_queue(agenda_max: int) -> Queue:
    return Queue(actions=make_ring(ag.ACTION, queue_capacity(agenda_max)), control=np.zeros(16, np.int64),
                 fds=np.array([make_eventfd()], np.int64))


def queue_capacity(agenda_max: int) -> int:
    """A power of two that holds whatever a lane has not answered yet: `agenda_max` waiting actions and a running one."""
    return 1 << (agenda_max + 2).bit_length()


def exchange_fds(exchange: Exchange) -> list[int]:
    """The eventfds, for who closes them: the io thread's, the exec lane's, the load lane's."""
    return [int(part.fds[0]) for part in (exchange, exchange.exec_queue, exchange.load_queue)]


# any thread, without the lock


@lean_kernel
def exchange_lock(exchange):
    mutex_lock(exchange.mutex)


@lean_kernel
def exchange_unlock(exchange):
    mutex_unlock(exchange.mutex)


@lean_kernel
def exchange_stop(exchange):
    """The io thread is to end."""
    mutex_lock(exchange.mutex)
    exchange.counts[0]["stop"] = 1
    mutex_unlock(exchange.mutex)
    eventfd_signal(exchange.fds[0])


@lean_kernel
def queue_stop(queue):
    """The lane's thread is to end as soon as what runs is done."""
    store_release(queue.control, STOP, 1)
    eventfd_signal(queue.fds[0])


@inner_kernel
def exchange_answer(exchange, action, status, begin_ns, end_ns, device_ns, pages_free, rows_done):
    """A lane's thread: send how an ACTION ended, unless its session is over, and give its entry back."""
    mutex_lock(exchange.mutex)
    link, counts, entry = exchange.link[0], exchange.counts[0], np.int64(action["entry"])
    link["queued"] -= 1
    if pages_free >= 0:
        counts["pages_free"] = pages_free
    if _loads(action):
        counts["load_out"] -= 1
    else:
        counts["exec_out"] -= 1
    _count(counts, action["kind"], status, begin_ns)
    wake = False
    if action["session"] != link["session"] or link["state"] != ln.OPEN:
        en.entry_drop_outputs(exchange.entries, entry, rows_done)
    else:
        sent = ln.link_answer(
            link, exchange.scratch, action["kind"], action["action"], action["epoch"], action["received_ns"], status,
            begin_ns, end_ns, device_ns, counts["pages_free"], rows_done)
        _send_outputs(exchange, entry, rows_done, sent)
        wake = has_input(link["socket"]) or link["broken"] != 0
    en.entry_give(exchange.entries, entry)
    mutex_unlock(exchange.mutex)
    if wake:
        eventfd_signal(exchange.fds[0])


# with the lock


@inner_kernel
def exchange_read(exchange):
    """Take messages from the socket: EMPTY, MORE, RARE or LOST."""
    link, entries, action = exchange.link[0], exchange.entries, exchange.action[0]
    frames_max = 1 + en.rows_max(entries)
    for _ in range(_TURN_MESSAGES):
        entry = np.int64(entries.counts[1])
        entry_frames = entry * frames_max
        what, frames = ln.link_read(link, exchange.scratch, entries.frames, entry_frames, frames_max, action)
        if what == ln.NOTHING:
            return EMPTY
        if what == ln.LOST:
            return LOST
        entries.used[entry] = min(max(frames, 1), frames_max)
        if what == ln.RARE:
            return RARE
        if what == ln.ACTION:
            exchange_queue(exchange)
        else:
            en.entry_close(entries, entry)
    return MORE


@lean_kernel
def exchange_queue(exchange):
    """Queue `action`, whose frames are in the reading entry, or refuse it at once."""
    link, entries, counts, action = exchange.link[0], exchange.entries, exchange.counts[0], exchange.action[0]
    load = _loads(action)
    rows = np.int64(action["rows"])
    outstanding = counts["load_out"] if load else counts["exec_out"]
    code = OK
    if action["epoch"] != link["epoch"]:
        code = ABANDONED
    elif action["kind"] == TYPE_EXEC and (rows < 1 or rows > en.rows_max(entries)):
        code = BAD_BATCH
    elif outstanding > counts["agenda_max"]:  # that many wait, and one runs
        code = LANE_FULL
    reading = np.int64(entries.counts[1])
    entry = en.entry_take(entries) if code == OK else np.int64(-1)
    if entry < 0:
        counts["refused"] += 1
        ln.link_refuse(link, exchange.scratch, action, code if code != OK else LANE_FULL, counts["pages_free"])
        en.entry_close(entries, reading)
        return
    action["entry"] = entry
    link["queued"] += 1
    if action["kind"] == TYPE_EXEC:
        frame = message_data(message(entries.frames, entry * (1 + en.rows_max(entries))))
        en.entry_dims(entries, entry, frame + np.int64(action["rows_at"]), rows)
    if load:
        counts["load_out"] += 1
        _push(exchange.load_queue, action)
    else:
        counts["exec_out"] += 1
        _push(exchange.exec_queue, action)


@lean_kernel
def exchange_session(exchange):
    """A new session has begun: the lanes drop what is older."""
    session = np.int64(exchange.link[0]["session"])
    for k in range(2):
        queue = exchange.exec_queue if k == 0 else exchange.load_queue
        store_release(queue.control, SESSION, session)
        eventfd_signal(queue.fds[0])


@inner_kernel
def _push(queue, action):
    """Hand an action over. The ring has room: whatever is not answered yet fits."""
    ag.copy_action(action, queue.actions.records[ring_claim(queue.actions)])
    ring_publish(queue.actions)
    if ring_bell(queue.actions) != 0:
        eventfd_signal(queue.fds[0])


@inner_kernel
def _loads(action):
    """Is the action the load lane's?"""
    return action["kind"] == TYPE_LOAD or action["kind"] == TYPE_UNLOAD


@inner_kernel
def _count(counts, kind, status, begin_ns):
    """Counters for people."""
    if begin_ns == 0:
        counts["refused"] += 1
    elif status != OK:
        counts["failed"] += 1
    elif kind == TYPE_EXEC:
        counts["executed"] += 1
    elif kind == TYPE_LOAD:
        counts["loaded"] += 1


@inner_kernel
def _send_outputs(exchange, entry, rows, go):
    """Send an entry's output messages, or close them if not `go`; a failed send breaks the session."""
    link = exchange.link[0]
    first = entry * en.rows_max(exchange.entries)
    for row in range(rows):
        m = message(exchange.entries.outputs, first + row)
        flags = DONTWAIT | SNDMORE if row + 1 < rows else DONTWAIT
        if go and send(link["socket"], m, flags) < 0:
            link["broken"] = 1
            go = False
        if not go:
            message_close(m)
