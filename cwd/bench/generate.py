"""The load generator's loop: canonical INFERs from nopython code, open loop or closed, and what became of them.

It knows the client's side of the wire and nothing of models: handles are given, and loadgen.py drives it. Open loop:
the k-th request is due at a time that depends on the seed alone, and its latency counts from there, sent late or not
(no coordinated omission). Closed loop (rate 0): `inflight_max` requests are kept in flight. Against the bare forwarder
an INFER that comes back counts as an answer with status 0.
"""

from __future__ import annotations

import numpy as np

from cwd.bench.histogram import bucket_of
from cwd.errors import Code
from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import address_of
from cwd.net.wake import timerfd_arm, timerfd_clear
from cwd.net.zmq import (
    DONTWAIT,
    POLLOUT,
    SNDMORE,
    message,
    message_copy,
    message_data,
    message_size,
    poll,
    receive_frames,
    send,
    send_bytes,
)
from cwd.wire.kernel import (
    TYPE_HEARTBEAT,
    TYPE_INFER,
    TYPE_REPLY,
    decode_heartbeat,
    decode_infer,
    decode_reply,
    encode_heartbeat,
    encode_infer,
    peek_type,
)

CODES = 1024
FRAMES = 2
HEADER_BYTES = 256
_BATCH = 64
_OK = int(Code.OK)

#: Everything a run needs to go on where it was.
STATE = np.dtype([
    ("count", "i8"),  # send no more than so many
    ("interval_ns", "f8"),  # mean time between requests; 0: closed loop
    ("poisson", "i8"),
    ("random_models", "i8"),
    ("inflight_max", "i8"),
    ("slo_ns", "i8"),
    ("absolute", "i8"),  # 1: put the deadline into the request too (the same monotonic clock)
    ("due_ns", "f8"),  # when the next request is due
    ("sent", "i8"),
    ("answered", "i8"),
    ("strange", "i8"),  # messages that are no answer to anything in flight
    ("stalled", "i8"),  # sends that met EAGAIN
    ("batch_sum", "i8"),
    ("cold", "i8"),
    ("last_ns", "i8"),  # when the last answer came
    ("random", "u8"),
    ("model_at", "i8"),
], align=True)


@lean_kernel
def generate(socket, items, timer, table, rows, handles, slots, counts, state, until_ns):
    """Send and receive until `until_ns` (monotonic), all is answered, or a signal: 0, or -errno.

    `socket`: handle of a DEALER, `items`: POLL_ITEM[2], it and the timerfd `timer`. `table`: u1[>= 4, 64] messages of
    which the last holds the payload. `rows`: (INFER[2], REPLY[1], HEARTBEAT[2], header u1). `handles`: i8[n]. `slots`:
    i8[power of two > inflight_max, 2] of (request + 1, intended time). `counts`: (i8[CODES], i8[BUCKETS]).
    """
    while True:
        moved = _receive_some(socket, table, rows, slots, counts, state)
        now = monotonic_ns()
        sent = _send_due(socket, table, rows, handles, slots, state, now)
        if now >= until_ns or (state["sent"] >= state["count"] and state["answered"] >= state["sent"]):
            return 0
        if moved == 0 and sent <= 0:
            wake = until_ns
            open_room = state["sent"] < state["count"] and state["sent"] - state["answered"] < state["inflight_max"]
            if open_room and state["interval_ns"] > 0 and sent == 0:
                wake = min(wake, np.int64(state["due_ns"]))
            items[0]["events"] = 1 | (POLLOUT if sent < 0 else 0)
            timerfd_arm(timer, wake)
            ready = poll(items, -1)
            timerfd_clear(timer)
            if ready < 0:
                return ready


@lean_kernel
def _send_due(socket, table, rows, handles, slots, state, now):
    """Send what is due, at most a batch: how many were sent, or -1 if the socket takes no more."""
    infer, header = rows[0][0], rows[3]
    sent = 0
    while sent < _BATCH and state["sent"] < state["count"]:
        if state["sent"] - state["answered"] >= state["inflight_max"]:
            break
        intended = now
        if state["interval_ns"] > 0:
            intended = np.int64(state["due_ns"])
            if intended > now:
                break
        request = state["sent"]
        infer["request"] = request
        infer["model"] = handles[_next_model(state, handles.shape[0])]
        infer["slo_ns"] = state["slo_ns"]
        infer["deadline_ns"] = intended + state["slo_ns"] if state["absolute"] else 0
        slot = request & (slots.shape[0] - 1)
        if slots[slot, 0] != 0:
            break  # a very old request is still in flight: wait for it
        size = encode_infer(address_of(header), HEADER_BYTES, infer)
        if send_bytes(socket, address_of(header), size, DONTWAIT | SNDMORE) < 0:
            state["stalled"] += 1
            return -1
        message_copy(message(table, FRAMES), message(table, FRAMES + 1))
        send(socket, message(table, FRAMES), DONTWAIT)
        slots[slot, 0] = request + 1
        slots[slot, 1] = intended
        state["sent"] += 1
        state["due_ns"] += _next_interval(state)
        sent += 1
    return sent


@lean_kernel
def _next_random(state):
    """53 random bits (splitmix64) as a float in (0, 1]."""
    state["random"] += np.uint64(0x9E3779B97F4A7C15)
    z = state["random"]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (np.float64(z >> np.uint64(11)) + 1.0) / 9007199254740992.0


@lean_kernel
def _next_interval(state):
    if state["poisson"] == 0:
        return state["interval_ns"]
    return -np.log(_next_random(state)) * state["interval_ns"]


@lean_kernel
def _next_model(state, n):
    if state["random_models"]:
        return min(np.int64(_next_random(state) * n), n - 1)
    at = state["model_at"]
    state["model_at"] = at + 1 if at + 1 < n else 0
    return at


@lean_kernel
def _receive_some(socket, table, rows, slots, counts, state):
    """Take in what has come, at most two batches: how many messages."""
    received = 0
    while received < 2 * _BATCH:
        if receive_frames(socket, table, 0, FRAMES) <= 0:
            break
        received += 1
        data, size = message_data(message(table, 0)), message_size(message(table, 0))
        kind = peek_type(data, size)
        if kind == TYPE_REPLY and decode_reply(data, size, rows[1][0]) == _OK:
            reply = rows[1][0]
            _settle(reply["request"], np.int64(reply["status"]), slots, counts, state)
            state["batch_sum"] += reply["batch"]
            state["cold"] += reply["cold"]
        elif kind == TYPE_INFER and decode_infer(data, size, rows[0][1]) == _OK:
            _settle(rows[0][1]["request"], _OK, slots, counts, state)
        elif kind == TYPE_HEARTBEAT and decode_heartbeat(data, size, rows[2][0]) == _OK:
            _answer_heartbeat(socket, rows)
        else:
            state["strange"] += 1
    return received


@lean_kernel
def _settle(request, status, slots, counts, state):
    slot = request & (slots.shape[0] - 1)
    if slots[slot, 0] != request + 1:
        state["strange"] += 1
        return
    now = monotonic_ns()
    slots[slot, 0] = 0
    state["answered"] += 1
    state["last_ns"] = now
    counts[0][min(status, CODES - 1)] += 1
    if status == _OK:
        counts[1][bucket_of(now - slots[slot, 1])] += 1


@lean_kernel
def _answer_heartbeat(socket, rows):
    asked, answer, header = rows[2][0], rows[2][1], rows[3]
    if asked["reply"] != 0:
        return
    now = monotonic_ns()
    answer["seq"] = asked["seq"]
    answer["reply"] = 1
    answer["sent_ns"] = now
    answer["echo_ns"] = asked["sent_ns"]
    answer["hold_ns"] = 0
    size = encode_heartbeat(address_of(header), HEADER_BYTES, answer)
    send_bytes(socket, address_of(header), size, DONTWAIT)
