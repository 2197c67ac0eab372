"""First come, first served: the plain baseline that the other policies are compared with.

INFER: the model whose head arrived first, as many of its requests as the largest batch takes that keeps the head's
deadline; nothing is weighed against anything else. LOAD: the model whose head arrived first, over the least recently used copies.
"""

from __future__ import annotations

from cwd.core import actions, batches, lanes, loads, ordered, queues, residency
from cwd.core.estimate import exec_tail_ns
from cwd.core.world import COPY_READY, LANE_EXEC, LANE_LOAD, NONE
from cwd.jit import inner_kernel

STEPS_MAX = 64
LOADS_LOOK = 16


@inner_kernel
def plan_infer(world, gpu, now_ns):
    for _ in range(STEPS_MAX):
        copy = world.gpus[gpu]["ready_head"]
        if copy == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_EXEC) > now_ns:
            return
        row = world.copies[copy]
        if world.models[row["model"]]["queued"] == 0 or row["state"] != COPY_READY:
            residency.deactivate(world, copy)
        elif residency.urgency(world, copy) > world.copy_nodes[copy]["key"]:
            residency.deactivate(world, copy)
            residency.activate(world, copy)
        elif _run(world, gpu, copy, now_ns) == 0:
            residency.deactivate(world, copy)


@inner_kernel
def _run(world, gpu, copy, now_ns):
    """Issue the smallest batch that holds all that waits, or the largest that is in time; returns the rows taken."""
    m = world.copies[copy]["model"]
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    first = batches.first_in_time(world, now_ns, gpu, m, start_ns)
    if first == NONE:
        return 0
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    size_class = world.requests[first]["size_class"]
    at_hand = batches.count_rows(world, first, program["batches"][program["n_batches"] - 1])
    end_ns = batches.latest_end_ns(world, now_ns, gpu, first)
    best = NONE
    for b in range(program["n_batches"]):
        tail_ns = exec_tail_ns(world, now_ns, program_index, kind, b, size_class)
        if tail_ns > 0 and start_ns + tail_ns <= end_ns:
            best = b
            if program["batches"][b] >= at_hand:
                break
    if best == NONE:
        return 0
    rows = at_hand if at_hand < program["batches"][best] else program["batches"][best]
    return actions.issue_exec(world, now_ns, copy, best, size_class, first, rows)


@inner_kernel
def plan_load(world, gpu, now_ns):
    m = world.counters[0]["wanted_head"]
    for _ in range(LOADS_LOOK):
        if m == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_LOAD) > now_ns:
            return
        after = ordered.successor(world.wanted_nodes, m)
        if world.models[m]["copies_count"] > 0 or loads.demand_ns(world, now_ns, m) <= 0:
            queues.unlist(world, m)
        else:
            loads.make_room_and_load(world, now_ns, gpu, m)
        m = after
