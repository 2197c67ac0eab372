"""Clockwork's policy (OSDI'20, sections 5.2 and 5.3), with the defects of the published code corrected.

INFER: the model whose head has the least time left goes first, in the densest batch that keeps the head's deadline
(theirs: the largest that can be filled, from a queue in order of arrival; ours is in order of deadline, and pads). While
the GPU has to refuse or give up requests, so that somebody is lost anyway, the densest of the most urgent models goes
first, past heads that its batch would make late; the published code gives up such heads too, and at any time.
LOAD: the model with the largest demand that its copies do not serve. Demand expires with its requests; a model whose
copies serve it is not loaded (their test compared a pointer); nobody leaves who has queued or running work.
"""

from __future__ import annotations

from cwd.core import actions, batches, lanes, loads, ordered, queues, residency
from cwd.core.admission import pressed
from cwd.core.world import COPY_READY, LANE_EXEC, LANE_LOAD, NONE
from cwd.jit import inner_kernel

#: most steps of one look at one GPU
STEPS_MAX = 64
#: most models that one look at one GPU considers loading
LOADS_LOOK = 16
#: how many of its models a pressed GPU compares
PRESSED_LOOK = 24


@inner_kernel
def _plan_pressed(world, gpu, now_ns):
    """Issue the densest batch of the most urgent models; returns the rows taken."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    best_copy, best_first, best, best_rows, best_ns = NONE, NONE, NONE, 0, 1
    copy = world.gpus[gpu]["ready_head"]
    for _ in range(PRESSED_LOOK):
        if copy == NONE:
            break
        m = world.copies[copy]["model"]
        first, b, rows, batch_ns = batches.densest_late(world, now_ns, gpu, m, start_ns)
        # of equals the more urgent, which was met first
        if b != NONE and rows * best_ns > best_rows * batch_ns:
            best_copy, best_first, best, best_rows, best_ns = copy, first, b, rows, batch_ns
        copy = ordered.successor(world.copy_nodes, copy)
    if best == NONE:
        return 0
    size_class = world.requests[best_first]["size_class"]
    return actions.issue_exec(world, now_ns, best_copy, best, size_class, best_first, best_rows)


@inner_kernel
def plan_infer(world, gpu, now_ns):
    for _ in range(STEPS_MAX):
        copy = world.gpus[gpu]["ready_head"]
        if copy == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_EXEC) > now_ns:
            return
        row = world.copies[copy]
        m = row["model"]
        if world.models[m]["queued"] == 0 or row["state"] != COPY_READY:
            residency.deactivate(world, copy)
        elif residency.urgency(world, copy) > world.copy_nodes[copy]["key"]:
            residency.deactivate(world, copy)
            residency.activate(world, copy)
        elif pressed(world, now_ns, gpu) and _plan_pressed(world, gpu, now_ns) > 0:
            continue
        elif _run(world, gpu, copy, now_ns) == 0:
            # nothing of it can be in time here; it comes back with its next head or arrival
            residency.deactivate(world, copy)


@inner_kernel
def _run(world, gpu, copy, now_ns):
    """Issue the model's densest batch; returns the rows taken."""
    m = world.copies[copy]["model"]
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    first = batches.first_in_time(world, now_ns, gpu, m, start_ns)
    if first == NONE:
        return 0
    b, rows = batches.densest(world, now_ns, gpu, m, first, start_ns)
    if b == NONE:
        return 0
    return actions.issue_exec(world, now_ns, copy, b, world.requests[first]["size_class"], first, rows)


@inner_kernel
def plan_load(world, gpu, now_ns):
    m = world.counters[0]["wanted_head"]
    for _ in range(LOADS_LOOK):
        if m == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_LOAD) > now_ns:
            return
        after = ordered.successor(world.wanted_nodes, m)
        demand = loads.demand_ns(world, now_ns, m)
        if demand <= 0:
            queues.unlist(world, m)
        elif loads.worthwhile(world, now_ns, gpu, m):
            loads.make_room_and_load(world, now_ns, gpu, m)
        m = after
