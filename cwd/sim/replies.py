"""The controller's outbox, carried out: actions leave for their GPUs, replies reach their clients and are counted.

The O(1) invariants that speak of replies and actions are held here, always: one reply per request, outputs only from
an execution that delivered them and never after the deadline, action ids used once.
"""

from __future__ import annotations

import numpy as np

from cwd.core.heap import NONE
from cwd.core.world import ACTION_EXEC, OUT_ACTION, OUT_REPLY, REQUEST_RUNNING, SLOT_MASK
from cwd.errors import Code
from cwd.jit import inner_kernel
from cwd.sim import gpus, sources
from cwd.sim.events import delay_ns, free_call, free_message, take_message, violate
from cwd.sim.stats import count_reply, is_refusal
from cwd.sim.world import (
    ACTION_AGAIN, ACTION_WRONG, MESSAGE_HELD, PAYLOAD_DROPPED, REPLY_LATE, REPLY_TWICE, REPLY_WITHOUT_RESULT,
    REPLY_WRONG, RESULT_TWICE, STREAM_CLIENTS,
)

OK = int(Code.OK)
#: how a client deals with refusals: one that came within SOON_NS is not tried again before PAUSE_NS have passed
SOON_NS, PAUSE_NS = 2_000_000, 1_000_000
_HASH_BITS = 40


@inner_kernel
def flush(sim, now_ns):
    """Carry out the outbox in order and empty it."""
    counters = sim.core.counters[0]
    for i in range(counters["outbox_count"]):
        out = sim.core.outbox[i]
        _hash(sim, out)
        if out["kind"] == OUT_ACTION:
            _send(sim, out, now_ns)
        elif out["kind"] == OUT_REPLY:
            _reply(sim, out, now_ns)
        else:
            _release(sim, out)
    counters["outbox_count"] = 0


@inner_kernel
def _mix(value, field):
    """One step of a hash of 40 bits: small enough that no product overflows."""
    low = (1 << _HASH_BITS) - 1
    return ((value * 1_000_003) & low) ^ (field & low) ^ ((field >> _HASH_BITS) & low)


@inner_kernel
def _hash(sim, out):
    """Take a record into the hash of everything that the core has decided."""
    state = sim.state[0]
    state["records"] += 1
    value = _mix(state["hash"], out["kind"] * 8 + out["verb"])
    value = _mix(_mix(value, out["gpu"]), out["action"])
    value = _mix(_mix(value, out["model"]), out["batch"] * 64 + out["rows"])
    value = _mix(_mix(value, out["earliest_ns"]), out["latest_ns"])
    value = _mix(_mix(value, out["expected_ns"]), out["expire_ns"])
    value = _mix(_mix(value, out["request_id"]), out["status"])
    value = _mix(_mix(value, out["payload"]), out["result"])
    value = _mix(_mix(value, out["queued_ns"]), out["load_ns"])
    value = _mix(_mix(value, out["exec_ns"]), out["total_ns"])
    state["hash"] = _mix(_mix(value, out["served_ns"]), out["row"])


@inner_kernel
def _send(sim, out, now_ns):
    core, slot = sim.core, out["action"] & SLOT_MASK
    issued = sim.issued[slot]
    if issued["action"] >= out["action"]:
        violate(sim, ACTION_AGAIN, out["action"], issued["action"])
    issued["action"], issued["settled"] = out["action"], 0
    if out["verb"] == ACTION_EXEC and not _rows_are_right(core, out):
        violate(sim, ACTION_WRONG, out["action"], out["rows"])
    message = take_message(sim)
    if message == NONE:
        return
    row = sim.messages[message]
    row["gpu"], row["action"], row["verb"], row["model"] = out["gpu"], out["action"], out["verb"], out["model"]
    row["program"], row["pages"], row["batch"], row["rows"] = out["program"], out["pages"], out["batch"], out["rows"]
    row["size_class"], row["earliest_ns"], row["latest_ns"] = out["size_class"], out["earliest_ns"], out["latest_ns"]
    row["expected_ns"] = out["expected_ns"]
    row["stretch"] = _longest(sim, out) if out["verb"] == ACTION_EXEC else 0
    gpus.send(sim, message, now_ns)


@inner_kernel
def _longest(sim, out):
    """The largest stretch of an EXEC's requests."""
    stretch, r = 0, out["first"]
    while r != NONE:
        stretch = max(stretch, sim.calls[sim.core.requests[r]["payload"]]["stretch"])
        r = sim.core.requests[r]["next"]
    return stretch


@inner_kernel
def _rows_are_right(core, out):
    """Whether an EXEC's requests are as many as it says, of its model, running, and no larger than its size class."""
    rows, r = 0, out["first"]
    while r != NONE and rows <= out["rows"]:
        request = core.requests[r]
        if request["state"] != REQUEST_RUNNING or request["model"] != out["model"] & SLOT_MASK:
            return False
        if request["size_class"] > out["size_class"]:
            return False
        rows += 1
        r = request["next"]
    return rows == out["rows"] and 0 < rows <= out["batch"]


@inner_kernel
def _reply(sim, out, now_ns):
    call = np.int64(out["payload"])
    if call < 0 or call >= len(sim.calls) or sim.live[call] != 1:
        violate(sim, REPLY_TWICE, out["request_id"], call)
        return
    request = sim.calls[call]
    if request["request_id"] != out["request_id"] or request["client"] != out["client"]:
        violate(sim, REPLY_WRONG, out["request_id"], request["request_id"])
        return
    if out["status"] == OK:
        _outputs_are_right(sim, out, request, now_ns)
    elif out["result"] != NONE:
        violate(sim, REPLY_WITHOUT_RESULT, out["request_id"], out["result"])
    received_ns = now_ns + delay_ns(sim, STREAM_CLIENTS)
    row = sim.sources[request["source"]]
    refused = is_refusal(np.int64(out["status"]))
    wait_ns = PAUSE_NS if refused and received_ns - request["sent_ns"] <= SOON_NS else 0
    again = (refused and request["loops"] == 0 and request["tries"] < row["tries_max"]
             and received_ns + wait_ns < request["deadline_ns"])
    count_reply(sim, out, request, received_ns, again)
    if request["loops"] == 1:
        sources.issue(sim, call, received_ns + wait_ns)
    elif again:
        sources.issue_again(sim, call, received_ns + wait_ns)
    else:
        free_call(sim, call)


@inner_kernel
def _outputs_are_right(sim, out, request, now_ns):
    """An output comes from a result that has just come, of the action that it names, and in time."""
    if now_ns > request["deadline_ns"]:
        violate(sim, REPLY_LATE, out["request_id"], now_ns - request["deadline_ns"])
    result = out["result"]
    if result < 0 or result >= len(sim.messages) or sim.messages[result]["state"] != MESSAGE_HELD:
        violate(sim, REPLY_WITHOUT_RESULT, out["request_id"], result)
        return
    row = sim.messages[result]
    if (row["action"] != out["action"] or row["status"] != OK or row["model"] != out["model"]
            or out["row"] < 0 or out["row"] >= row["rows"]):
        violate(sim, REPLY_WITHOUT_RESULT, out["request_id"], result)


@inner_kernel
def _release(sim, out):
    """Payloads are let go with their replies here, so a release is a result's, once."""
    if out["payload"] != NONE:
        violate(sim, PAYLOAD_DROPPED, out["payload"], 0)
    result = out["result"]
    if result == NONE:
        return
    if result < 0 or result >= len(sim.messages) or sim.messages[result]["state"] != MESSAGE_HELD:
        violate(sim, RESULT_TWICE, result, 0)
        return
    free_message(sim, result)
