"""Carry out what the core decided: every record of its outbox becomes a message, or frees what was held for it.

Called once all sockets were drained and the core has ticked: decide first, then do the I/O. A send that fails is
counted and never repeated: an action that did not go out is settled by the core's own timer, a peer that is gone is
removed at the turn's end.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.feed import log_action, log_release, log_reply
from cwd.controller.held import release
from cwd.controller.host import (
    HELD_AT,
    OUTGOING_AT,
    RESULTS_AT,
    ROLE_CLIENT,
    ZERO,
)
from cwd.controller.peers import mark_leaving, post, post_frame
from cwd.controller.times import to_worker
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, OUT_ACTION, OUT_REPLY, SLOT_MASK
from cwd.errors import Code
from cwd.jit import inline, inner_kernel, lean_kernel
from cwd.net.native import address_of
from cwd.net.zmq import EAGAIN, message, message_close, message_copy
from cwd.wire.kernel import encode_exec_head, encode_load, encode_reply, encode_unload, put_row

OK = int(Code.OK)
#: adoption is never too late: until it is done the worker could not execute the model anyway
ADOPT_LATEST_NS = 60_000_000_000


@inner_kernel
def flush(host, world, now_ns):
    """Send everything in the outbox and empty it, then let go of the turn's result payloads."""
    state, counters = host.state[0], world.counters[0]
    for i in range(counters["outbox_count"]):
        out = world.outbox[i]
        kind = out["kind"]
        if kind == OUT_ACTION:
            _send_action(host, world, out, now_ns)
        elif kind == OUT_REPLY:
            _send_reply(host, out, now_ns)
        else:
            log_release(host, now_ns, out)
            release(host, out["payload"])
    counters["outbox_count"] = 0
    for i in range(state["results_used"]):
        message_close(message(host.messages, RESULTS_AT + i))
    state["results_used"] = 0


@inner_kernel
def _send_action(host, world, out, now_ns):
    state = host.state[0]
    log_action(host, now_ns, out)
    state["actions"] += 1
    slot = host.gpus[out["gpu"]]["peer"]
    if slot < 0:
        return
    host.gpus[out["gpu"]]["actions"] += 1
    verb = out["verb"]
    if verb == ACTION_EXEC:
        _send_exec(host, world, slot, out)
        return
    if verb == ACTION_LOAD:
        row = host.rows[0]["load"]
        _action_head(host, slot, row, out)
        row["program_index"], row["pages"] = out["program"], out["pages"]
        image, known = row["image"], host.models[out["model"] & SLOT_MASK]["image"]
        for k in range(16):
            image[k] = known[k]
        size = encode_load(address_of(host.buffer), len(host.buffer), row)
    else:
        _action_head(host, slot, host.rows[0]["unload"], out)
        size = encode_unload(address_of(host.buffer), len(host.buffer), host.rows[0]["unload"])
    _post_action(host, slot, size, ZERO)


@inline
def _action_head(host, slot, row, out):
    """The fields that all actions share, on the worker's clock."""
    row["action"], row["epoch"], row["model"] = out["action"], host.state[0]["epoch"], out["model"]
    row["earliest_ns"] = to_worker(host, slot, out["earliest_ns"])
    row["latest_ns"] = to_worker(host, slot, out["latest_ns"])
    row["expected_ns"] = out["expected_ns"]


@inner_kernel
def _post_action(host, slot, size, more):
    """0, or -errno: the action is lost, and the peer too unless its queue was merely full."""
    if size <= 0:
        host.state[0]["send_failed"] += 1
        return np.int64(-1)
    code = post(host, host.peers[slot]["key"], size, more)
    if code != 0 and code != EAGAIN:
        mark_leaving(host, slot)
    return code


@inner_kernel
def _send_exec(host, world, slot, out):
    """EXEC: the requests' dims as rows, and a shared copy of each payload as a frame."""
    rows = out["rows"]
    row = host.rows[0]["exec"]
    _action_head(host, slot, row, out)
    row["batch"], row["size_class"] = out["batch"], out["size_class"]
    address = address_of(host.buffer)
    at = np.int64(encode_exec_head(address, len(host.buffer), row, rows))
    if at > 0:
        request = out["first"]
        for _ in range(rows):
            at = put_row(address, at, host.held[world.requests[request]["payload"]]["dims"])
            request = world.requests[request]["next"]
    if _post_action(host, slot, at, rows > 0) != 0:
        return
    outgoing = message(host.messages, OUTGOING_AT)
    key = host.peers[slot]["key"]
    request = out["first"]
    for i in range(rows):
        message_copy(outgoing, message(host.messages, HELD_AT + world.requests[request]["payload"]))
        if post_frame(host, key, outgoing, i + 1 < rows) != 0:
            message_close(outgoing)
            mark_leaving(host, slot)
            return
        request = world.requests[request]["next"]


@inner_kernel
def _send_reply(host, out, now_ns):
    """REPLY with its output, if it has one; then the request's payload is not needed any more."""
    state = host.state[0]
    log_reply(host, now_ns, out)
    release(host, out["payload"])
    state["replies"] += 1
    status = out["status"]
    if status == OK:
        state["replies_ok"] += 1
    slot = out["client"]
    peer = host.peers[slot]
    if peer["role"] != ROLE_CLIENT:
        return
    peer["in_flight"] -= 1
    state["in_flight"] -= 1
    peer["answered"] += 1
    if peer["leaving"] != 0:
        return
    row = host.rows[0]["reply"]
    row["request"], row["status"], row["cold"] = out["request_id"], status, out["cold"]
    row["queued_ns"], row["load_ns"], row["exec_ns"] = out["queued_ns"], out["load_ns"], out["exec_ns"]
    row["total_ns"], row["earliest_ns"], row["batch"] = out["total_ns"], out["served_ns"], out["batch"]
    row["worker"] = max(out["gpu"], 0)
    payload = status == OK and out["result"] >= 0 and out["row"] >= 0
    size = encode_reply(address_of(host.buffer), len(host.buffer), row)
    code = post(host, peer["key"], size, payload) if size > 0 else np.int64(-1)
    if code == 0 and payload:
        code = post_frame(host, peer["key"], message(host.messages, RESULTS_AT + out["result"] + out["row"]), ZERO)
    if code != 0:
        mark_leaving(host, slot)


@lean_kernel
def adopt(host, world, now_ns, slot, models, action):
    """LOADs of models (i8[n] of handles) that the worker said are on its device: it finds them there and is done.

    The core has not asked for them, so they carry action ids that it never gives out, from `action` on. How many were sent.
    """
    row = host.rows[0]["load"]
    row["epoch"] = host.state[0]["epoch"]
    row["earliest_ns"], row["latest_ns"] = 0, to_worker(host, slot, now_ns + ADOPT_LATEST_NS)
    row["expected_ns"] = 0
    for i in range(len(models)):
        at = models[i] & SLOT_MASK
        known = host.models[at]
        row["action"], row["model"], row["program_index"] = action + i, models[i], known["program"]
        row["pages"] = world.models[at]["pages"]
        image, theirs = row["image"], known["image"]
        for k in range(16):
            image[k] = theirs[k]
        size = encode_load(address_of(host.buffer), len(host.buffer), row)
        if _post_action(host, slot, size, ZERO) != 0:
            return i
    return len(models)
