"""What one client may send: its rate, and what comes of asking for entrance. Compiled; the loop calls it.

The rate is kept as one time per client: when it would send next if it kept to its rate. A request moves that time on by
the interval; who is ahead of it by more than a burst has to wait. This module must not know messages.
"""

from __future__ import annotations

import zmq

from cwd.controller.host import FRAMES, FRAMES_AT
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.native import load_u2, load_u4
from cwd.net.zmq import message, message_data, message_size, receive_frames

_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
#: the peer offered another mechanism than CURVE: it has no key
_NO_KEY = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
#: bytes of a monitor's first frame: an event (u16) and its value (u32)
_EVENT_BYTES = 6
#: events taken from one socket's monitor at a time
_EVENTS_MAX = 1024


@lean_kernel
def take_turn(host, slot, now_ns):
    """A client sends a request: 0 if it may, else after how many nanoseconds it might."""
    state, peer = host.state[0], host.peers[slot]
    every_ns = state["rate_every_ns"]
    if every_ns == 0:
        return 0
    due_ns = max(peer["due_ns"], now_ns)
    wait_ns = due_ns - now_ns - state["rate_ahead_ns"]
    if wait_ns > 0:
        state["rate_refused"] += 1
        return wait_ns
    peer["due_ns"] = due_ns + every_ns
    return 0


@inner_kernel
def count_handshakes(host):
    """Take what the monitors of the three sockets have to tell, if there are any, and count it."""
    state = host.state[0]
    if state["zap"] != 0:
        _count(host, state["monitor_client"])
        _count(host, state["monitor_worker"])
        _count(host, state["monitor_admin"])


@inner_kernel
def _count(host, monitor):
    state = host.state[0]
    for _ in range(_EVENTS_MAX):
        if receive_frames(monitor, host.messages, FRAMES_AT, FRAMES) < 0:
            return
        event = message(host.messages, FRAMES_AT)
        if message_size(event) != _EVENT_BYTES:
            continue
        kind = load_u2(message_data(event))
        if kind == _ACCEPTED:
            state["connections"] += 1
        elif kind & _FAILED != 0:
            if load_u4(message_data(event) + 2) == _NO_KEY:
                state["key_missing"] += 1
            else:
                state["handshake_failed"] += 1
