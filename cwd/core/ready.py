"""A GPU's set of copies that may have work, as policies walk it: the most urgent first.

Keys in the set are lower bounds (residency.py); the walk corrects what it meets at the head. Also here: the best batch
over the most urgent models, for policies that compare models with each other.
"""

from __future__ import annotations

from cwd.core import background, batches, lanes, ordered, residency
from cwd.core.world import COPY_READY, LANE_EXEC, NONE
from cwd.jit import inner_kernel

#: most corrections of one look at one GPU
STEPS_MAX = 64
#: how many of its models a GPU compares
COMPARED = 24


@inner_kernel
def most_urgent(world, now_ns, gpu):
    """The first copy of the GPU's set that has work and is where it belongs; -1 if there is none."""
    for _ in range(STEPS_MAX):
        copy = world.gpus[gpu]["ready_head"]
        if copy == NONE:
            return NONE
        if world.models[model_of(world, copy)]["queued"] == 0 or world.copies[copy]["state"] != COPY_READY:
            residency.deactivate(world, copy)
        elif residency.urgency(world, copy) > world.copy_nodes[copy]["key"]:
            residency.deactivate(world, copy)
            residency.activate(world, copy)
        else:
            return copy
    # the rest in the next tick, which is due at once
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE


@inner_kernel
def best(world, now_ns, gpu, rule):
    """The best batch of the most urgent models by one of the rules of `batches.pick`: (copy, first, batch index, rows).

    Of equals the more urgent. (-1, -1, -1, 0): nothing would be in time.
    """
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    best_copy, best_first, best_batch, best_rows = NONE, NONE, NONE, 0
    best_value, best_cost = 0, 1
    copy = most_urgent(world, now_ns, gpu)
    for _ in range(COMPARED):
        if copy == NONE:
            break
        m = model_of(world, copy)
        b = NONE
        # one that could not be the largest need not be looked at
        if rule != batches.LARGEST or batches.most_rows(world, m) > best_value:
            first, b, rows, batch_ns = batches.pick(world, now_ns, gpu, m, start_ns, rule)
        if b != NONE:
            value, cost = batches.worth(world, rule, first, rows, batch_ns)
            if best_copy == NONE or value * best_cost > best_value * cost:
                best_copy, best_first, best_batch, best_rows = copy, first, b, rows
                best_value, best_cost = value, cost
        copy = ordered.successor(world.copy_nodes, copy)
    return best_copy, best_first, best_batch, best_rows


@inner_kernel
def fit(world, now_ns, gpu, copy, start_ns, dense):
    """A batch of one copy's model for its first request that could be in time: (first, batch index, rows), as `first_fit`."""
    m = world.copies[copy]["model"]
    first = batches.first_in_time(world, now_ns, gpu, m, start_ns)
    if first == NONE:
        return NONE, NONE, 0
    if dense == 1:
        b, rows = batches.densest(world, now_ns, gpu, m, first, start_ns)
    else:
        b, rows = batches.largest_in_time(world, now_ns, gpu, m, first, start_ns)
    return first, b, rows


@inner_kernel
def model_of(world, copy):
    """The model of a copy in a GPU's set: ties there break on it, so a walk need not touch the copy's own row."""
    return world.copy_nodes[copy]["tie"]


@inner_kernel
def urgent(world, now_ns, copy):
    """Whether the first request of the model is urgent whose copy in a GPU's set this is."""
    head = world.models[model_of(world, copy)]["queue_head"]
    return head != NONE and not background.is_background(now_ns, world.requests[head]["due_ns"])


@inner_kernel
def first_fit(world, now_ns, gpu, dense):
    """A batch of the most urgent model that could be in time: (copy, first, batch index, rows).

    `dense` 1: the one with the most requests per time; 0: the largest. (-1, -1, -1, 0): nothing would be in time.
    """
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    for _ in range(STEPS_MAX):
        copy = most_urgent(world, now_ns, gpu)
        if copy == NONE:
            return NONE, NONE, NONE, 0
        first, b, rows = fit(world, now_ns, gpu, copy, start_ns, dense)
        if b != NONE:
            return copy, first, b, rows
        # nothing of it can be in time here; it comes back with its next head or arrival
        residency.deactivate(world, copy)
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE, NONE, NONE, 0
