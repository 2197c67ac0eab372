"""The table of connections, in compiled code: find, add, remove; who is on the way out; ERRORs and their ration.

A peer is in the table from its WELCOME until it says GOODBYE, falls silent, or a send meets EHOSTUNREACH. Whoever is
not in the table has not said HELLO. Removal is put off to the turn's end (`leaving`), where the core is told, so that
no function up the stack loses the row it works on. This module must not know what the core does.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.host import (
    ADMINS,
    CLIENTS,
    RARE_GONE,
    RARE_MAX,
    ROLE_CLIENT,
    ROLE_NONE,
    ROLE_WORKER,
    ZERO,
)
from cwd.core import hashmap
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.native import address_of
from cwd.net.zmq import DONTWAIT, EAGAIN, EHOSTUNREACH, EINTR, SNDMORE, send, send_bytes, send_routing_id
from cwd.wire.kernel import encode_error

#: ERRORs per refill (a heartbeat interval) for one peer, and for all that have not said HELLO together
ERRORS_PER_PEER = 32
ERRORS_UNKNOWN = 128
KEY_BITS = 34


@inner_kernel
def key_on(which, routing):
    """The key of a connection of socket `which` from `zmq.routing_key`'s value (0 stays 0: not a generated id)."""
    return routing | (which << KEY_BITS) if routing != 0 else np.int64(0)


@lean_kernel
def socket_of_key(key):
    return key >> KEY_BITS


@inner_kernel
def handle_of(state, which):
    """The libzmq handle of socket `which`."""
    if which == CLIENTS:
        return state["clients"]
    return state["admins"] if which == ADMINS else state["workers"]


@lean_kernel
def find_peer(host, key):
    """The slot of a connection, or -1 if it has not been introduced."""
    return hashmap.get(host.peer_map, key)


@lean_kernel
def add_peer(host, key, role, index, same_host, now_ns):
    """Introduce a connection: its slot, or -1 if the table is full."""
    state = host.state[0]
    slot = state["peer_free"]
    if slot < 0:
        return np.int64(-1)
    peer = host.peers[slot]
    state["peer_free"] = peer["next"]
    state["peers_used"] += 1
    peer["key"], peer["generation"] = key, peer["generation"] + 1
    peer["role"], peer["index"], peer["same_host"] = role, index, same_host
    peer["last_heard_ns"], peer["last_asked_ns"] = now_ns, 0
    peer["in_flight"], peer["leaving"], peer["errors_left"] = 0, 0, ERRORS_PER_PEER
    peer["beat_seq"], peer["queued"], peer["loop_max_ns"] = 0, 0, 0
    peer["messages"], peer["malformed"], peer["requests"], peer["answered"] = 0, 0, 0, 0
    peer["held_bytes"], peer["due_ns"] = 0, 0
    hashmap.put(host.peer_map, key, slot)
    if role == ROLE_WORKER:
        host.gpus[index]["peer"] = slot
        host.gpus[index]["special"] = -1
    return slot


@inner_kernel
def remove_peer(host, slot):
    """Forget a connection and give its slot back. The core has been told."""
    state, peer = host.state[0], host.peers[slot]
    hashmap.remove(host.peer_map, peer["key"])
    if peer["role"] == ROLE_WORKER:
        host.gpus[peer["index"]]["peer"] = -1
        host.gpus[peer["index"]]["special"] = -1
    if peer["role"] == ROLE_CLIENT:
        state["in_flight"] -= peer["in_flight"]
    peer["key"], peer["role"] = 0, ROLE_NONE
    peer["next"] = state["peer_free"]
    state["peer_free"] = slot
    state["peers_used"] -= 1


@lean_kernel
def mark_leaving(host, slot):
    """Have the connection removed at the turn's end."""
    peer = host.peers[slot]
    if peer["key"] != 0 and peer["leaving"] == 0:
        peer["leaving"] = 1
        host.state[0]["leaving"] += 1


@inner_kernel
def push_rare(host, kind, now_ns):
    """A row for Python, to be filled by the caller, or -1: then stop receiving until Python has made room."""
    state = host.state[0]
    at = state["rare_used"]
    # news of a lost peer must never be turned away: the last quarter is theirs
    if at >= RARE_MAX or (at >= RARE_MAX - RARE_MAX // 4 and kind != RARE_GONE):
        return np.int64(-1)
    state["rare_used"] = at + 1
    state["rare"] += 1
    row = host.rare[at]
    row["kind"], row["now_ns"] = kind, now_ns
    return at


@inner_kernel
def post(host, key, size, more):
    """Send the first `size` bytes of `host.buffer` to a connection, as header; 0, or -errno if nothing was sent."""
    state = host.state[0]
    socket = handle_of(state, socket_of_key(key))
    code = send_routing_id(socket, key)
    while code == EINTR:
        code = send_routing_id(socket, key)
    if code < 0:
        _count_failure(state, code)
        return np.int64(code)
    flags = DONTWAIT | SNDMORE if more else DONTWAIT
    code = send_bytes(socket, address_of(host.buffer), size, flags)
    while code == EINTR:
        code = send_bytes(socket, address_of(host.buffer), size, flags)
    if code < 0:  # the id was accepted, so this cannot be for want of room
        _count_failure(state, code)
        return np.int64(code)
    state["sent"] += 1
    return np.int64(0)


@inner_kernel
def post_frame(host, key, m, more):
    """Send message `m` as a further frame after `post`; 0 or -errno, and then `m` is still the caller's to close."""
    state = host.state[0]
    socket = handle_of(state, socket_of_key(key))
    flags = DONTWAIT | SNDMORE if more else DONTWAIT
    code = send(socket, m, flags)
    while code == EINTR:
        code = send(socket, m, flags)
    if code < 0:
        _count_failure(state, code)
        return np.int64(code)
    return np.int64(0)


@inner_kernel
def _count_failure(state, code):
    if code == EAGAIN:
        state["send_again"] += 1
    elif code == EHOSTUNREACH:
        state["send_unreachable"] += 1
    else:
        state["send_failed"] += 1


@inner_kernel
def post_error(host, key, slot, code, re_type, re_id):
    """Answer a connection with ERROR, unless it has used up its ration; `slot` is -1 for one that is not introduced."""
    state = host.state[0]
    if key == 0:
        return
    if slot >= 0:
        left = host.peers[slot]["errors_left"]
        host.peers[slot]["errors_left"] = max(left - 1, 0)
    else:
        left = state["errors_left"]
        state["errors_left"] = max(left - 1, 0)
    if left <= 0:
        state["errors_withheld"] += 1
        return
    size = encode_error(address_of(host.buffer), len(host.buffer), code, re_type, re_id)
    if size > 0 and post(host, key, size, ZERO) == 0:
        state["errors_sent"] += 1
