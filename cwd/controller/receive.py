"""Receive and sort: every message that the loop meets, decoded, checked and fed to the core or handed up to Python.

One function per message type and one `drain_*` per socket. What is wrong with a message is answered with its code, to
a ration, and disturbs nobody else: a request at fault gets a REPLY, anything else an ERROR. This module never sends but
these, and never schedules.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.feed import feed_arrived, feed_cancelled, feed_done, log_refused
from cwd.controller.held import cost_of, hold
from cwd.controller.host import (
    ADMINS,
    ADOPTIONS,
    CLIENTS,
    FRAMES,
    FRAMES_AT,
    NAME_BIT,
    NONE,
    RARE_AT,
    RARE_MAX,
    RARE_MESSAGE,
    RARE_RESULT,
    RESULTS,
    RESULTS_AT,
    WORKERS,
    ZERO,
)
from cwd.controller.limits import take_turn
from cwd.controller.peers import find_peer, key_on, mark_leaving, post, post_error, push_rare
from cwd.controller.shapes import check_shape
from cwd.controller.times import sample_clock, to_controller
from cwd.core.world import SLOT_BITS, SLOT_MASK
from cwd.errors import Code
from cwd.jit import inline, inner_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import address_of
from cwd.net.zmq import (
    EAGAIN,
    EINTR,
    message,
    message_data,
    message_move,
    message_size,
    receive_frames,
    routing_key,
)
from cwd.wire.kernel import (
    TYPE_ADMIN,
    TYPE_CANCEL,
    TYPE_EXEC_RESULT,
    TYPE_GOODBYE,
    TYPE_HEARTBEAT,
    TYPE_HELLO,
    TYPE_INFER,
    TYPE_LIST,
    TYPE_LOOKUP,
    TYPE_RESULT,
    decode_cancel,
    decode_exec_result,
    decode_heartbeat,
    decode_infer,
    decode_result,
    encode_heartbeat,
    encode_reply,
    peek_type,
)

OK = int(Code.OK)
BAD_SLO = int(Code.BAD_SLO)
CREDIT_EXCEEDED = int(Code.CREDIT_EXCEEDED)
DRAINING = int(Code.DRAINING)
MALFORMED = int(Code.MALFORMED)
MODEL_NOT_READY = int(Code.MODEL_NOT_READY)
NOT_INTRODUCED = int(Code.NOT_INTRODUCED)
PAYLOADS_EXCEEDED = int(Code.PAYLOADS_EXCEEDED)
QUEUE_FULL = int(Code.QUEUE_FULL)
RATE_EXCEEDED = int(Code.RATE_EXCEEDED)
STALE_EPOCH = int(Code.STALE_EPOCH)
TOO_LARGE = int(Code.TOO_LARGE)
TOO_MANY_FRAMES = int(Code.TOO_MANY_FRAMES)
UNEXPECTED_TYPE = int(Code.UNEXPECTED_TYPE)
UNKNOWN_MODEL = int(Code.UNKNOWN_MODEL)
UNSUPPORTED_VERSION = int(Code.UNSUPPORTED_VERSION)

RUNNING, INTERRUPTED, BROKEN = 0, 1, 2
#: largest header that Python decodes for a client or an admin: decoding it must fit into a chunk of Python's time
RARE_BYTES_MAX = 8192


@inner_kernel
def stop_code(errno):
    """What the loop does about a failed receive: go on, return to Python, or give up."""
    if errno == EAGAIN:
        return RUNNING
    return INTERRUPTED if errno == EINTR else BROKEN


@inner_kernel
def fault(host, key, slot, code, re_type, re_id):
    """Count what is wrong with a message and answer it."""
    state = host.state[0]
    if code == NOT_INTRODUCED:
        state["not_introduced"] += 1
    else:
        state["malformed"] += 1
    if slot >= 0:
        host.peers[slot]["malformed"] += 1
    post_error(host, key, slot, code, re_type, re_id)


@inner_kernel
def hand_up(host, which, key, slot, kind, header, now_ns):
    """Move a whole message to the rare table; OK, or QUEUE_FULL if Python must make room first (and it is dropped)."""
    if which != WORKERS and message_size(header) > RARE_BYTES_MAX:
        fault(host, key, slot, TOO_LARGE, kind, ZERO)
        return TOO_LARGE
    at = push_rare(host, RARE_MESSAGE, now_ns)
    if at < 0:
        return QUEUE_FULL
    row = host.rare[at]
    row["socket"], row["type"], row["key"], row["peer"] = which, kind, key, slot
    row["generation"] = host.peers[slot]["generation"] if slot >= 0 else 0
    row["role"] = host.peers[slot]["role"] if slot >= 0 else 0
    row["index"] = host.peers[slot]["index"] if slot >= 0 else -1
    message_move(message(host.messages, RARE_AT + at), header)
    return OK


@inner_kernel
def admit(host, which, frames, first, now_ns):
    """Who sent it and what it claims to be: (peer slot or -1, type or 0 if it has been dealt with, key)."""
    state = host.state[0]
    state["received"] += 1
    key = key_on(np.int64(which), routing_key(message(host.messages, first)))
    if key == 0:
        state["bad_identity"] += 1
        return np.int64(-1), np.int64(0), key
    slot = find_peer(host, key)
    if frames < 2:
        fault(host, key, slot, MALFORMED, ZERO, ZERO)
        return slot, np.int64(0), key
    header = message(host.messages, first + 1)
    kind = np.int64(peek_type(message_data(header), message_size(header)))
    if slot < 0:
        if kind == TYPE_HELLO and frames == 2:
            hand_up(host, which, key, slot, kind, header, now_ns)
        else:
            fault(host, key, slot, -kind if kind == -UNSUPPORTED_VERSION else NOT_INTRODUCED, max(kind, 0), ZERO)
        return slot, np.int64(0), key
    peer = host.peers[slot]
    peer["last_heard_ns"] = now_ns
    peer["messages"] += 1
    if kind < 0:
        fault(host, key, slot, -kind, ZERO, ZERO)
        return slot, np.int64(0), key
    return slot, kind, key


@inner_kernel
def heartbeat(host, key, slot, header, now_ns):
    """Answer a question; take a clock sample from an answer."""
    row = host.rows[0]["heartbeat"]
    code = decode_heartbeat(message_data(header), message_size(header), row)
    if code != OK:
        fault(host, key, slot, code, TYPE_HEARTBEAT, ZERO)
        return
    peer = host.peers[slot]
    peer["loop_max_ns"], peer["queued"] = row["loop_max_ns"], row["queued"]
    if row["reply"] != 0:
        sample_clock(host, slot, row["echo_ns"], row["sent_ns"], row["hold_ns"], now_ns)
        return
    row["echo_ns"], row["reply"] = row["sent_ns"], 1
    row["sent_ns"] = monotonic_ns()
    row["hold_ns"] = row["sent_ns"] - now_ns
    row["loop_max_ns"] = host.state[0]["turn_window_max_ns"]
    row["queued"] = host.state[0]["in_flight"]
    size = encode_heartbeat(address_of(host.buffer), len(host.buffer), row)
    if post(host, key, size, ZERO) != 0:
        mark_leaving(host, slot)


@inner_kernel
def refuse(host, slot, request, model, status, earliest_ns, now_ns):
    """Answer a request that the core will not see."""
    state, peer = host.state[0], host.peers[slot]
    state["refused"] += 1
    log_refused(host, now_ns, slot, request, model, status)
    row = host.rows[0]["reply"]
    row["request"], row["status"] = request, status
    row["queued_ns"], row["load_ns"], row["exec_ns"], row["total_ns"], row["earliest_ns"] = 0, 0, 0, 0, earliest_ns
    row["batch"], row["worker"], row["cold"] = 0, 0, 0
    size = encode_reply(address_of(host.buffer), len(host.buffer), row)
    if post(host, peer["key"], size, ZERO) != 0:
        mark_leaving(host, slot)


@inline
def infer(host, world, key, slot, frames, now_ns):
    """One request: check everything that the core does not know about, keep its payload, and tell the core."""
    state, peer, row = host.state[0], host.peers[slot], host.rows[0]["infer"]
    header, payload = message(host.messages, FRAMES_AT + 1), message(host.messages, FRAMES_AT + 2)
    code = decode_infer(message_data(header), message_size(header), row)
    if code != OK:
        fault(host, key, slot, code, TYPE_INFER, ZERO)
        return
    request, handle = row["request"], _version(host, row["model"])
    if frames != 3:
        fault(host, key, slot, TOO_MANY_FRAMES if frames > 3 else MALFORMED, TYPE_INFER, request)
        return
    state["infer"] += 1
    peer["requests"] += 1
    wait_ns = take_turn(host, slot, now_ns)
    if wait_ns > 0:
        refuse(host, slot, request, handle, RATE_EXCEEDED, wait_ns, now_ns)
        return
    size_bytes = np.int64(message_size(payload))
    status = _refusal(host, peer, row, handle, size_bytes)
    if status != OK:
        refuse(host, slot, request, handle, status, ZERO, now_ns)
        return
    model = host.models[handle & SLOT_MASK]
    size_class = check_shape(host.shapes[model["program"]], row["dims"], size_bytes)
    if size_class < 0:
        refuse(host, slot, request, handle, -size_class, ZERO, now_ns)
        return
    at = hold(host, slot, payload, size_bytes, row["dims"])
    if at < 0:
        refuse(host, slot, request, handle, QUEUE_FULL, ZERO, now_ns)
        return
    slo_ns = row["slo_ns"]
    deadline_ns = now_ns + slo_ns
    if 0 < row["deadline_ns"] < deadline_ns:
        deadline_ns = row["deadline_ns"]
    model["requests"] += 1
    peer["in_flight"] += 1
    state["in_flight"] += 1
    feed_arrived(host, world, now_ns, slot, request, handle, size_class, deadline_ns, slo_ns, np.int64(row["app"]), at)


@inner_kernel
def _version(host, handle):
    """The model that a handle of a name stands for now; a model's own handle, and one that is unknown, as it is."""
    at = handle & SLOT_MASK
    if handle < NAME_BIT or at >= len(host.names) or host.names[at]["handle"] != handle:
        return handle
    return host.names[at]["model"]


@inner_kernel
def _refusal(host, peer, row, handle, size_bytes):
    """The code that turns a request away before its shape is looked at, or OK."""
    state = host.state[0]
    if state["draining"] != 0:
        return DRAINING
    if peer["in_flight"] >= state["credits"]:
        return CREDIT_EXCEEDED
    at = handle & SLOT_MASK
    if at >= len(host.models) or host.models[at]["handle"] != handle:
        return UNKNOWN_MODEL
    if host.models[at]["ready"] == 0:
        return MODEL_NOT_READY
    if row["slo_ns"] <= 0 or row["slo_ns"] > state["slo_max_ns"]:
        return BAD_SLO
    if size_bytes > state["payload_max_bytes"]:
        return TOO_LARGE
    if peer["held_bytes"] + cost_of(size_bytes) > state["client_held_max_bytes"]:
        state["held_refused"] += 1
        return PAYLOADS_EXCEEDED
    return OK


@inline
def cancel(host, world, key, slot, header, now_ns):
    row = host.rows[0]["cancel"]
    code = decode_cancel(message_data(header), message_size(header), row)
    if code != OK:
        fault(host, key, slot, code, TYPE_CANCEL, ZERO)
        return
    host.state[0]["cancels"] += 1
    feed_cancelled(host, world, now_ns, slot, row["request"])


@inline
def result(host, world, key, slot, header, now_ns):
    """RESULT of LOAD, UNLOAD, and of what Python sent (PREPARE, PROFILE, LOADs that adopt), which is handed up."""
    state, peer, row = host.state[0], host.peers[slot], host.rows[0]["result"]
    code = decode_result(message_data(header), message_size(header), row)
    if code != OK:
        fault(host, key, slot, code, TYPE_RESULT, ZERO)
        return
    state["results"] += 1
    if row["epoch"] != state["epoch"]:
        state["stale_epoch"] += 1
        return
    gpu, action = peer["index"], row["action"]
    begin_ns = to_controller(host, slot, row["begin_ns"])
    end_ns = to_controller(host, slot, row["end_ns"])
    if host.gpus[gpu]["special"] == action or action >= ADOPTIONS:
        at = push_rare(host, RARE_RESULT, now_ns)
        if at >= 0:
            news = host.rare[at]
            news["peer"], news["generation"], news["index"], news["action"] = slot, peer["generation"], gpu, action
            news["status"], news["begin_ns"], news["end_ns"] = row["status"], begin_ns, end_ns
            news["pages_free"] = row["pages_free"]
        return
    if not _owns(world, action, gpu):
        state["results_stale"] += 1
        return
    feed_done(host, world, now_ns, gpu, action, np.int64(row["status"]), begin_ns, end_ns, row["device_ns"], ZERO,
              np.int64(row["pages_free"]), NONE, to_controller(host, slot, row["sent_ns"]))


@inner_kernel
def _owns(world, action, gpu):
    """Is this action one that was given to this GPU? A worker must not settle another one's."""
    at = action & SLOT_MASK
    if action < 0 or at >= len(world.actions):
        return False
    found = world.actions[at]
    return found["state"] != 0 and found["gpu"] == gpu and found["generation"] == action >> SLOT_BITS


@inline
def exec_result(host, world, key, slot, frames, first, now_ns):
    """EXEC_RESULT with its outputs, which stay in the results table from `first + 2` on until the turn's end."""
    state, peer, row = host.state[0], host.peers[slot], host.rows[0]["exec_result"]
    header = message(host.messages, RESULTS_AT + first + 1)
    code = decode_exec_result(message_data(header), message_size(header), row)
    if code == OK and frames - 2 != row["rows_done"]:
        code = MALFORMED
    if code != OK:
        fault(host, key, slot, code, TYPE_EXEC_RESULT, ZERO)
        return
    state["results"] += 1
    if row["epoch"] != state["epoch"]:
        state["stale_epoch"] += 1
        return
    gpu, action = peer["index"], row["action"]
    if not _owns(world, action, gpu):
        state["results_stale"] += 1
        return
    stale = feed_done(host, world, now_ns, gpu, action, np.int64(row["status"]), to_controller(host, slot, row["begin_ns"]),
                      to_controller(host, slot, row["end_ns"]), row["device_ns"], np.int64(row["rows_done"]), NONE,
                      first + 2 if frames > 2 else np.int64(-1), to_controller(host, slot, row["sent_ns"]))
    if stale == 0:
        state["results_used"] = first + frames


@inner_kernel
def _cold(host, which, key, slot, kind, frames, expected, now_ns):
    """What is the same on every socket, and the types that Python deals with (`expected`: this one is among them)."""
    header = message(host.messages, FRAMES_AT + 1)
    if kind == TYPE_HEARTBEAT and frames == 2:
        heartbeat(host, key, slot, header, now_ns)
    elif kind == TYPE_GOODBYE and frames == 2:
        mark_leaving(host, slot)
    elif not expected and kind != TYPE_HELLO and kind != TYPE_HEARTBEAT and kind != TYPE_GOODBYE:
        fault(host, key, slot, UNEXPECTED_TYPE, kind, ZERO)
    elif frames > 2:
        fault(host, key, slot, TOO_MANY_FRAMES, kind, ZERO)
    else:
        hand_up(host, which, key, slot, kind, header, now_ns)


@inner_kernel
def room_for_rare(host):
    """True while Python's table can take one message more: else no socket is read until it has been emptied."""
    return host.state[0]["rare_used"] < RARE_MAX - RARE_MAX // 4


@inner_kernel
def drain_clients(host, world, limit):
    """Take up to `limit` messages from the clients: (how many came, RUNNING or why to stop)."""
    state = host.state[0]
    for taken in range(limit):
        if not room_for_rare(host):
            return taken, RUNNING
        frames = receive_frames(state["clients"], host.messages, FRAMES_AT, FRAMES)
        if frames < 0:
            return taken, stop_code(frames)
        now_ns = monotonic_ns()
        slot, kind, key = admit(host, CLIENTS, frames, FRAMES_AT, now_ns)
        if kind == TYPE_INFER:
            infer(host, world, key, slot, frames, now_ns)
        elif kind == TYPE_CANCEL and frames == 2:
            cancel(host, world, key, slot, message(host.messages, FRAMES_AT + 1), now_ns)
            if host.peers[slot]["in_flight"] >= state["credits"]:
                # what it has freed counts when its reply is sent, and the next message may be a request for that place
                return taken + 1, RUNNING
        elif kind != 0:
            expected = kind == TYPE_LOOKUP or kind == TYPE_LIST or kind == TYPE_CANCEL
            _cold(host, CLIENTS, key, slot, kind, frames, expected, now_ns)
    return limit, RUNNING


@inner_kernel
def drain_workers(host, world, limit):
    """As `drain_clients`; stops early when the results table could not take one more message whole."""
    state = host.state[0]
    for taken in range(limit):
        first = state["results_used"]
        room = RESULTS - first
        if room < RESULTS // 2 or not room_for_rare(host):
            return taken, RUNNING
        frames = receive_frames(state["workers"], host.messages, RESULTS_AT + first, room)
        if frames < 0:
            return taken, stop_code(frames)
        now_ns = monotonic_ns()
        slot, kind, key = admit(host, WORKERS, frames, RESULTS_AT + first, now_ns)
        if kind == TYPE_EXEC_RESULT:
            if frames > room:
                fault(host, key, slot, TOO_MANY_FRAMES, kind, ZERO)
            else:
                exec_result(host, world, key, slot, frames, first, now_ns)
        elif kind == TYPE_RESULT and frames == 2:
            result(host, world, key, slot, message(host.messages, RESULTS_AT + first + 1), now_ns)
        elif kind != 0:
            message_move(message(host.messages, FRAMES_AT + 1), message(host.messages, RESULTS_AT + first + 1))
            _cold(host, WORKERS, key, slot, kind, frames, kind == TYPE_RESULT, now_ns)
    return limit, RUNNING


@inner_kernel
def drain_admins(host, limit):
    """As `drain_clients`."""
    state = host.state[0]
    for taken in range(limit):
        if not room_for_rare(host):
            return taken, RUNNING
        frames = receive_frames(state["admins"], host.messages, FRAMES_AT, FRAMES)
        if frames < 0:
            return taken, stop_code(frames)
        now_ns = monotonic_ns()
        slot, kind, key = admit(host, ADMINS, frames, FRAMES_AT, now_ns)
        if kind != 0:
            _cold(host, ADMINS, key, slot, kind, frames, kind == TYPE_ADMIN, now_ns)
    return limit, RUNNING
