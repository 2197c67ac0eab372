"""Records that the core leaves for its host: actions to send, replies to send, payloads to let go.

Writing never fails in a world whose host keeps the rule of DESIGN.md ("The outbox"); if it does not, the world is
marked broken instead of being overrun.
"""

from __future__ import annotations

from cwd.core.world import NONE, OUT_ACTION, OUT_RELEASE, OUT_REPLY, SLOT_BITS
from cwd.jit import inner_kernel

#: values of counters["broken"] that are set as state changes; check.py has more (from 100)
BROKEN_OUTBOX, BROKEN_PAGES, BROKEN_QUEUE, BROKEN_LANE, BROKEN_COPY = 1, 2, 3, 4, 5


@inner_kernel
def broken(world, number):
    """Mark the world as broken; the first number stays."""
    if world.counters[0]["broken"] == 0:
        world.counters[0]["broken"] = number


@inner_kernel
def _next_record(world, kind):
    """Index of a cleared record of `kind`."""
    counters = world.counters[0]
    i = counters["outbox_count"]
    if i >= len(world.outbox):
        broken(world, BROKEN_OUTBOX)
        i = len(world.outbox) - 1
    counters["outbox_count"] = i + 1
    out = world.outbox[i]
    out["kind"] = kind
    out["verb"] = out["program"] = out["pages"] = out["batch"] = out["rows"] = 0
    out["earliest_ns"] = out["latest_ns"] = out["expected_ns"] = out["expire_ns"] = 0
    out["queued_ns"] = out["load_ns"] = out["exec_ns"] = out["total_ns"] = out["served_ns"] = 0
    out["request_id"] = out["status"] = out["action"] = out["model"] = out["size_class"] = 0
    out["cold"] = out["app"] = 0
    out["gpu"] = out["first"] = out["client"] = out["payload"] = out["result"] = out["row"] = NONE
    return i


@inner_kernel
def release(world, payload, result):
    """Let the host close a request's payload, or an EXEC_RESULT's."""
    if payload != NONE or result != NONE:
        out = world.outbox[_next_record(world, OUT_RELEASE)]
        out["payload"] = payload
        out["result"] = result


@inner_kernel
def refusal(world, client, request_id, model, size_class, app, payload, status, served_ns):
    """Answer a request that never got a row of its own."""
    world.counters[0]["refused"] += 1
    out = world.outbox[_next_record(world, OUT_REPLY)]
    out["client"] = client
    out["request_id"] = request_id
    out["model"] = model
    out["size_class"] = size_class
    out["app"] = app
    out["payload"] = payload
    out["status"] = status
    out["served_ns"] = served_ns


@inner_kernel
def reply(world, now_ns, r, status):
    """Answer request `r`; returns the record, for the caller to add what an execution adds."""
    request = world.requests[r]
    i = _next_record(world, OUT_REPLY)
    out = world.outbox[i]
    out["client"] = request["client"]
    out["request_id"] = request["request_id"]
    out["model"] = (world.models[request["model"]]["generation"] << SLOT_BITS) | request["model"]
    out["size_class"] = request["size_class"]
    out["app"] = request["app"]
    out["payload"] = request["payload"]
    out["status"] = status
    out["cold"] = request["cold"]
    out["total_ns"] = now_ns - request["arrival_ns"]
    out["queued_ns"] = out["total_ns"]
    return i


@inner_kernel
def action(world, a):
    """Leave action `a` to be sent."""
    row = world.actions[a]
    out = world.outbox[_next_record(world, OUT_ACTION)]
    out["verb"] = row["state"]
    out["gpu"] = row["gpu"]
    out["action"] = (row["generation"] << SLOT_BITS) | a
    out["model"] = (world.models[row["model"]]["generation"] << SLOT_BITS) | row["model"]
    out["program"] = row["program"]
    out["pages"] = world.models[row["model"]]["pages"]
    out["batch"] = row["batch"]
    out["size_class"] = row["size_class"]
    out["rows"] = row["rows"]
    out["first"] = row["first"]
    out["earliest_ns"] = row["earliest_ns"]
    out["latest_ns"] = row["latest_ns"]
    out["expected_ns"] = row["expected_ns"]
    out["expire_ns"] = row["expire_ns"]
