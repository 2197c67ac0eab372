"""Clockwork as published (OSDI'20; the scheduler called INFER5), with its constants and its defects, to compare with.

A strategy is a model with a batch size; its latest start is the deadline of its queue's first request that the size
would keep, less its duration. GPUs look at their strategies in the order of latest start *as noted when the model was
last looked at*; the first whose size can be filled decides on the model, which then runs the largest size that it can
fill. Requests that a batch passes over wait for nothing but their reply, which comes at the internal deadline. Whatever
GPU looks first takes a request, however soon another would be free. Any model that is not on a GPU and has requests is
loaded there, most demand first, of equals the one used last, and models with queued requests may have to leave for it.

Departures: one queue, of which each size sees what it keeps (theirs: a queue per size, which other GPUs may have popped
from); sizes are those of the program (theirs: up to 8, in the paper's runs 16); demand per model, without their split
by load, and a model that nobody waits for any more but that runs is not loaded elsewhere; nobody is evicted who is
running (theirs fails such executions); a late lane is not assumed to be 10 ms late at most; the GPU's clock is constant;
and our network sends more than two actions at a time.
"""

from __future__ import annotations

from cwd.core import batches, lanes, loads, memory, ordered, queues, residency
from cwd.core.estimate import exec_ns
from cwd.core.world import COPY_READY, FOREVER_NS, LANE_EXEC, LANE_LOAD, NONE
from cwd.jit import inner_kernel

#: most strategies that one look at one GPU tries, and most requests that a batch size passes over
STEPS_MAX, SKIPS_MAX = 32, 256
#: most models that one look at one GPU considers loading
LOADS_LOOK = 64


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The batch of the first strategy that can be filled: (copy, first request, batch index, rows)."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    for _ in range(STEPS_MAX):
        copy = world.gpus[gpu]["ready_head"]
        if copy == NONE:
            return NONE, NONE, NONE, 0
        row = world.copies[copy]
        m, least = row["model"], row["strategy"]
        residency.deactivate(world, copy)
        if row["state"] != COPY_READY:
            continue
        program = world.programs[world.models[m]["program"]]
        if least == NONE:
            least = program["n_batches"] - 1
        left = _in_time(world, now_ns, gpu, m, 0, start_ns, memory.first_left(world, m))
        memory.pass_over(world, now_ns, m, left)
        first, b = _filled(world, now_ns, gpu, m, start_ns, left)
        if b >= least:
            rows = program["batches"][b]
            memory.pass_over(world, now_ns, m, first)
            _note(world, now_ns, copy, start_ns, _behind(world, first, rows), program["n_batches"])
            return copy, first, b, rows
        _note(world, now_ns, copy, start_ns, left, least)
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE, NONE, NONE, 0


@inner_kernel
def _in_time(world, now_ns, gpu, m, batch_index, start_ns, r):
    """The first request from `r` on that a batch of the size, started at `start_ns`, keeps in time; -1 if there is none."""
    program, kind = world.models[m]["program"], world.gpus[gpu]["kind"]
    for _ in range(SKIPS_MAX):
        if r == NONE:
            break
        batch_ns = exec_ns(world, now_ns, program, kind, batch_index, world.requests[r]["size_class"])
        if batch_ns > 0 and start_ns + batch_ns <= batches.latest_end_ns(world, now_ns, gpu, r):
            return r
        r = ordered.successor(world.request_nodes, r)
    return NONE


@inner_kernel
def _filled(world, now_ns, gpu, m, start_ns, r):
    """The largest batch of requests from `r` on below which all sizes can be filled: (first request, batch index)."""
    program = world.programs[world.models[m]["program"]]
    first, best = NONE, NONE
    for b in range(program["n_batches"]):
        r = _in_time(world, now_ns, gpu, m, b, start_ns, r)
        size = program["batches"][b]
        if r == NONE or batches.count_rows(world, r, size) < size:
            break
        first, best = r, b
    return first, best


@inner_kernel
def _behind(world, first, rows):
    """The request behind a batch of `rows` from `first` on, -1 if it takes the last one."""
    size_class, r = world.requests[first]["size_class"], first
    while r != NONE and rows > 0:
        if world.requests[r]["size_class"] <= size_class:
            rows -= 1
        r = ordered.successor(world.request_nodes, r)
    return r


@inner_kernel
def _note(world, now_ns, copy, start_ns, r, sizes):
    """Put the copy into its GPU's set by the earliest latest start that requests from `r` on have in the first `sizes`
    batch sizes. If none keeps anybody in time it stays outside, until the next request."""
    row = world.copies[copy]
    m, gpu = row["model"], row["gpu"]
    program, kind = world.models[m]["program"], world.gpus[gpu]["kind"]
    latest_ns, strategy = FOREVER_NS, NONE
    for b in range(sizes):
        r = _in_time(world, now_ns, gpu, m, b, start_ns, r)
        if r == NONE:
            break
        request = world.requests[r]
        begin_ns = request["due_ns"] - exec_ns(world, now_ns, program, kind, b, request["size_class"])
        if begin_ns < latest_ns:
            latest_ns, strategy = begin_ns, b
    if strategy != NONE:
        residency.insert(world, copy, latest_ns, strategy)


@inner_kernel
def plan_loads(world, now_ns, gpu):
    """Load what is wanted most of what is not there, while the GPU's load lane is open. Demands are brought up to date
    as they are met, which can only move a model back."""
    m = world.counters[0]["wanted_head"]
    for _ in range(LOADS_LOOK):
        if m == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_LOAD) > now_ns:
            return
        after = ordered.successor(world.wanted_nodes, m)
        if residency.find(world, m, gpu) == NONE:
            demand_ns = loads.published_demand_ns(world, now_ns, m)
            if -demand_ns > world.wanted_nodes[m]["key"]:
                queues.enlist(world, m, demand_ns)
            elif loads.make_room_and_load(world, now_ns, gpu, m) == 1:
                if world.models[m]["copies_count"] < world.counters[0]["gpus_up"]:
                    queues.enlist(world, m, loads.published_demand_ns(world, now_ns, m))
        m = after
