"""Request payloads kept until their replies: a table of messages, each with its dims, within a budget of bytes.

The core knows a payload by its row here. A row is taken when a request is accepted for the core and given back when the
reply goes out or the core releases it; meanwhile EXEC actions send shared copies of it.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.host import HELD_AT
from cwd.jit import inner_kernel
from cwd.net.zmq import MESSAGE_BYTES, message, message_close, message_move

#: libzmq keeps up to this many bytes inside the 64 of a message; more are allocated with a header of about 100
INLINE_BYTES = 33
ALLOCATED_BYTES = 100


@inner_kernel
def cost_of(size_bytes):
    """Bytes of memory that a held payload takes."""
    return MESSAGE_BYTES if size_bytes <= INLINE_BYTES else MESSAGE_BYTES + ALLOCATED_BYTES + size_bytes


@inner_kernel
def hold(host, slot, payload, size_bytes, dims):
    """Take message `payload` of a client over with its dims: its row, or -1 if the table or the budget is full."""
    state = host.state[0]
    at = state["held_free"]
    cost = cost_of(size_bytes)
    if at < 0 or state["held_bytes"] + cost > state["held_max_bytes"]:
        state["held_full"] += 1
        return np.int64(-1)
    row = host.held[at]
    state["held_free"] = row["next"]
    state["held_used"] += 1
    state["held_bytes"] += cost
    row["bytes"], row["used"] = cost, 1
    row["peer"], row["generation"] = slot, host.peers[slot]["generation"]
    host.peers[slot]["held_bytes"] += cost
    kept = row["dims"]
    for k in range(4):
        kept[k] = dims[k]
    message_move(message(host.messages, HELD_AT + at), payload)
    return at


@inner_kernel
def release(host, at):
    """Let a held payload go; -1 and rows that are free already are left alone."""
    if at < 0 or host.held[at]["used"] == 0:
        return
    state, row = host.state[0], host.held[at]
    message_close(message(host.messages, HELD_AT + at))
    state["held_used"] -= 1
    state["held_bytes"] -= row["bytes"]
    peer = host.peers[row["peer"]]
    if peer["generation"] == row["generation"]:  # else it left, and the slot is another's
        peer["held_bytes"] -= row["bytes"]
    row["used"] = 0
    row["next"] = state["held_free"]
    state["held_free"] = at
