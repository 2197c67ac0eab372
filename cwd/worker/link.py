"""One connection to the controller as a worker sees it, in nopython code: state, heartbeats, decoding, results.

Both hosts of a worker build on it: io.py (one device, whose work other threads do) and backends/emulated.py (hundreds
of devices in one loop). A *session* lasts from a WELCOME to the loss of its connection; what belongs to an earlier
session is dropped. Rare messages (WELCOME, GOODBYE, ERROR, PREPARE) are not understood here: they are handed up.
"""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import load_i8
from cwd.net.zmq import (
    DONTWAIT,
    EAGAIN,
    EINTR,
    SNDMORE,
    message,
    message_data,
    message_size,
    receive_frames,
    send_bytes,
)
from cwd.tables import Tables
from cwd.wire import kernel as wire
from cwd.wire.memory import array_address

OK = int(Code.OK)
MALFORMED = int(Code.MALFORMED)
BAD_BATCH = int(Code.BAD_BATCH)

#: States of a link.
GREETING = 0  # HELLO is to be sent
WAITING = 1  # HELLO was sent
OPEN = 2

SCRATCH_BYTES = 512

#: What `link_read` found.
NOTHING = 0
HANDLED = 1
ACTION = 2
RARE = 3
LOST = 4

LINK = np.dtype(
    [
        ("socket", "i8"),  # libzmq's handle
        ("state", "i8"),
        ("epoch", "i8"),  # the controller's, of WELCOME
        ("session", "i8"),  # counts WELCOMEs; 0 before the first
        ("heartbeat_ns", "i8"),
        ("lost_ns", "i8"),
        ("heard_ns", "i8"),  # when the last message came
        ("asked_ns", "i8"),  # when we last asked for a sign of life
        ("greet_ns", "i8"),  # GREETING: when to try; WAITING: when to give the connection up
        ("broken", "i8"),  # 1: a send failed
        ("seq", "i8"),
        ("loop_max_ns", "i8"),
        ("queued", "i8"),
        ("received", "i8"),  # counters of messages, for people
        ("faults", "i8"),
        ("unsent", "i8"),
    ],
    align=True,
)


class Scratch(Tables):
    """One record of each hot message, and bytes to encode into; of one thread."""

    heartbeat: np.ndarray
    load: np.ndarray
    unload: np.ndarray
    execute: np.ndarray
    profile: np.ndarray
    result: np.ndarray
    exec_result: np.ndarray
    bytes: np.ndarray  # u1[SCRATCH_BYTES]


def make_scratch() -> Scratch:
    return Scratch(
        heartbeat=np.zeros(1, wire.HEARTBEAT), load=np.zeros(1, wire.LOAD), unload=np.zeros(1, wire.UNLOAD),
        execute=np.zeros(1, wire.EXEC), profile=np.zeros(1, wire.PROFILE), result=np.zeros(1, wire.RESULT),
        exec_result=np.zeros(1, wire.EXEC_RESULT), bytes=np.zeros(SCRATCH_BYTES, np.uint8))


@inner_kernel
def link_read(link, scratch, table, first, frames_max, action):
    """Receive one message into the messages first.. of `table` and deal with it: (what, frames or code).

    NOTHING: there was none. HANDLED: done with (a heartbeat, or a fault that was counted). ACTION: `action` was filled
    from it; `frames` includes frame 0, those past frames_max were dropped, and rows is -1 if it is not the number of
    payload frames. RARE: for Python. LOST: the socket is unusable. The messages are the caller's.

    The time is read behind the message: one read before it would say that it was held here while it was still under way,
    and a controller that subtracts that believes a clock sample better than it is.
    """
    frames = receive_frames(link["socket"], table, first, frames_max)
    if frames < 0:
        return (NOTHING if frames == EAGAIN or frames == EINTR else LOST), frames
    now_ns = monotonic_ns()
    link["received"] += 1
    link["heard_ns"] = now_ns
    address = message_data(message(table, first))
    size = message_size(message(table, first))
    kind = wire.peek_type(address, size)
    if kind == wire.TYPE_HEARTBEAT:
        _heartbeat(link, scratch, address, size, now_ns)
        return HANDLED, 0
    if kind == wire.TYPE_PREPARE or kind == wire.TYPE_WELCOME or kind == wire.TYPE_GOODBYE or kind == wire.TYPE_ERROR:
        return RARE, frames
    code = decode_action(scratch, kind, address, size, action)
    if code != OK or link["state"] != OPEN:
        link["faults"] += 1
        return HANDLED, code
    action["received_ns"] = now_ns
    action["session"] = link["session"]
    if kind == wire.TYPE_EXEC and frames - 1 != action["rows"]:
        action["rows"] = -1
    return ACTION, frames


@inner_kernel
def decode_action(scratch, kind, address, size, action):
    """Fill the record `action` from the frame of an EXEC, LOAD, UNLOAD or PROFILE; OK or a code."""
    action["entry"] = -1
    action["rows"] = 0
    action["kind"] = kind
    if kind == wire.TYPE_EXEC:
        return _decode_exec(scratch.execute[0], address, size, action)
    if kind == wire.TYPE_LOAD:
        return _decode_load(scratch.load[0], address, size, action)
    if kind == wire.TYPE_UNLOAD:
        return _decode_unload(scratch.unload[0], address, size, action)
    if kind == wire.TYPE_PROFILE:
        return _decode_profile(scratch.profile[0], address, size, action)
    return MALFORMED


@inner_kernel
def _decode_exec(row, address, size, action):
    code = wire.decode_exec(address, size, row)
    if code == OK:
        _common(row, action)
        action["batch"] = row["batch"]
        action["size_class"] = row["size_class"]
        action["rows"] = row["rows_n"]
        action["rows_at"] = row["rows_at"]
    return code


@inner_kernel
def _decode_load(row, address, size, action):
    code = wire.decode_load(address, size, row)
    if code == OK:
        _common(row, action)
        action["program"] = row["program_index"]
        action["pages"] = row["pages"]
        at = array_address(row["image"])
        action["image_low"] = load_i8(at)
        action["image_high"] = load_i8(at + 8)
    return code


@inner_kernel
def _decode_unload(row, address, size, action):
    code = wire.decode_unload(address, size, row)
    if code == OK:
        _common(row, action)
    return code


@inner_kernel
def _decode_profile(row, address, size, action):
    code = wire.decode_profile(address, size, row)
    if code == OK:
        _common(row, action)
        action["program"] = row["program_index"]
        action["batch"] = row["batch"]
        action["size_class"] = row["size_class"]
        action["repeats"] = row["repeats"]
    return code


@inner_kernel
def _common(row, action):
    """The fields that every action has."""
    action["action"] = row["action"]
    action["epoch"] = row["epoch"]
    action["earliest_ns"] = row["earliest_ns"]
    action["latest_ns"] = row["latest_ns"]
    action["expected_ns"] = row["expected_ns"]
    action["model"] = row["model"]


@inner_kernel
def _heartbeat(link, scratch, address, size, now_ns):
    """Answer a question in place; an answer has done its work by being heard."""
    row = scratch.heartbeat[0]
    if wire.decode_heartbeat(address, size, row) != OK:
        link["faults"] += 1
        return
    if row["reply"] == 0:
        sent_ns = row["sent_ns"]
        _send_heartbeat(link, scratch, 1, sent_ns, now_ns)


@inner_kernel
def link_ask(link, scratch, now_ns):
    """Ask the controller for a sign of life."""
    link["asked_ns"] = now_ns
    _send_heartbeat(link, scratch, 0, 0, now_ns)


@inner_kernel
def _send_heartbeat(link, scratch, reply, echo_ns, heard_ns):
    row = scratch.heartbeat[0]
    link["seq"] += 1
    now_ns = monotonic_ns()
    row["seq"] = link["seq"] & 0xFFFFFFFF
    row["reply"] = reply
    row["sent_ns"] = now_ns
    row["echo_ns"] = echo_ns
    row["hold_ns"] = now_ns - heard_ns if reply else 0
    row["loop_max_ns"] = link["loop_max_ns"]
    row["queued"] = link["queued"]
    link["loop_max_ns"] = 0
    buffer = array_address(scratch.bytes)
    _send(link, buffer, wire.encode_heartbeat(buffer, SCRATCH_BYTES, row), DONTWAIT)


@inner_kernel
def link_answer(link, scratch, kind, action, epoch, received_ns, status, begin_ns, end_ns, device_ns, pages_free,
                rows_done):
    """Send the EXEC_RESULT of an EXEC, or the RESULT of any other `kind` of action; True if the socket took it.

    If True, the caller must send `rows_done` payload frames, the last one without SNDMORE.
    """
    buffer = array_address(scratch.bytes)
    if kind == wire.TYPE_EXEC:
        done = scratch.exec_result[0]
        done["action"] = action
        done["epoch"] = epoch
        done["status"] = status
        done["received_ns"] = received_ns
        done["begin_ns"] = begin_ns
        done["end_ns"] = end_ns
        done["device_ns"] = device_ns
        done["rows_done"] = rows_done
        done["sent_ns"] = monotonic_ns()
        size = wire.encode_exec_result(buffer, SCRATCH_BYTES, done)
        return _send(link, buffer, size, DONTWAIT | SNDMORE if rows_done > 0 else DONTWAIT)
    row = scratch.result[0]
    row["action"] = action
    row["epoch"] = epoch
    row["status"] = status
    row["received_ns"] = received_ns
    row["begin_ns"] = begin_ns
    row["end_ns"] = end_ns
    row["device_ns"] = device_ns
    row["pages_free"] = pages_free
    row["sent_ns"] = monotonic_ns()
    return _send(link, buffer, wire.encode_result(buffer, SCRATCH_BYTES, row), DONTWAIT)


@inner_kernel
def link_refuse(link, scratch, action, status, pages_free):
    """Answer an action (an ACTION record) that never began."""
    link_answer(link, scratch, action["kind"], action["action"], action["epoch"], action["received_ns"], status,
                0, 0, 0, pages_free, 0)


@inner_kernel
def _send(link, buffer, size, flags):
    """Send encoded bytes. EAGAIN says that the connection is gone or the peer does not read: both end the session."""
    if link["state"] != OPEN or size < 0:
        link["unsent"] += 1
        return False
    sent = send_bytes(link["socket"], buffer, size, flags)
    if sent < 0:
        link["unsent"] += 1
        link["broken"] = 1
        return False
    return True


@inner_kernel
def link_timer(link):
    """When `link_due` must be asked next."""
    if link["state"] != OPEN:
        return np.int64(link["greet_ns"])
    if link["broken"] != 0:
        return np.int64(0)
    asked_ns = max(link["asked_ns"], link["heard_ns"])
    return np.int64(min(asked_ns + link["heartbeat_ns"], link["heard_ns"] + link["lost_ns"]))


@inner_kernel
def link_due(link, scratch, now_ns):
    """What time asks for: HANDLED (nothing, or asked), RARE (Python must say HELLO) or LOST (Python must reconnect)."""
    if link["state"] == GREETING:
        return RARE if now_ns >= link["greet_ns"] else HANDLED
    if link["state"] == WAITING:
        return LOST if now_ns >= link["greet_ns"] else HANDLED
    if link["broken"] != 0 or now_ns - link["heard_ns"] >= link["lost_ns"]:
        return LOST
    if now_ns >= max(link["asked_ns"], link["heard_ns"]) + link["heartbeat_ns"]:
        link_ask(link, scratch, now_ns)
    return HANDLED
