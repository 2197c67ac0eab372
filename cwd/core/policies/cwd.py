"""cwd's own: earliest latest start with room to spare, densest batch under overload, background kept off some GPUs.

Without overload the model whose head must start first goes first, in the densest batch that keeps its deadline. While
the GPU turns requests away, the densest batch of its most urgent models goes first, past heads that it would make late,
and only those are taken in who join a batch or can wait for one to fill at their model's rate (admission.py). Work
that is due beyond half a second runs where nothing urgent can, on as many GPUs as urgent requests can spare
(background.py), and is never compared with urgent work.
Sources: Clockwork (OSDI'20) for windows and the timeline, Shepherd (NSDI'23) for density under overload, Symphony for
batches that wait; ours are exact margins, refusal at arrival by marginal cost, and a share found by feedback.
"""

from __future__ import annotations

from cwd.core import background, batches, lanes, memory, ordered, price, ready, residency, shortlist
from cwd.core.admission import pressed
from cwd.core.estimate import exec_ns, exec_tail_ns, margin_ns
from cwd.core.world import FOREVER_NS, LANE_EXEC, MARGIN_SEND, NONE
from cwd.jit import inner_kernel

#: how long until a GPU that may not run background looks again whether it may
LOOK_NS = 2_000_000
GUARD_NS = 1_000_000
COMPARED = 64


@inner_kernel
def next_batch(world, gpu, now_ns):
    """(copy, first request, batch index, rows); copy -1: nothing now."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    if pressed(world, now_ns, gpu) or world.settings[0]["batch_delay_ns"] & 8 != 0:
        copy = ready.most_urgent(world, now_ns, gpu)
        if copy != NONE and ready.urgent(world, now_ns, copy):
            return _dearest(world, now_ns, gpu, copy, start_ns)
    for _ in range(ready.STEPS_MAX):
        copy = ready.most_urgent(world, now_ns, gpu)
        if copy == NONE:
            return NONE, NONE, NONE, 0
        if not ready.urgent(world, now_ns, copy):
            return _background(world, now_ns, gpu)
        first, b, rows = ready.fit(world, now_ns, gpu, copy, start_ns, 1)
        if b != NONE:
            return copy, first, b, rows
        # nothing of it can be in time here; it comes back with its next head or arrival
        residency.deactivate(world, copy)
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE, NONE, NONE, 0


@inner_kernel
def _background(world, now_ns, gpu):
    """The densest batch of what is not urgent, if the GPU may run it."""
    if not background.allowed(world, gpu):
        lanes.look_again(world, gpu, now_ns + LOOK_NS)
        return NONE, NONE, NONE, 0
    return ready.best(world, now_ns, gpu, batches.DENSEST)


@inner_kernel
def _offer(world, now_ns, gpu, m, start_ns, knob):
    """(first, batch index, rows, batch_ns, passed)."""
    model = world.models[m]
    program = world.programs[model["program"]]
    kind = world.gpus[gpu]["kind"]
    best_first, best, best_rows, best_ns, best_left = NONE, NONE, 0, 1, 0
    r, left = model["queue_head"], model["queued"]
    for b in range(program["n_batches"]):
        r, left = batches.pass_over(world, now_ns, gpu, m, b, start_ns, r, left)
        if r == NONE:
            break
        batch_ns = exec_ns(world, now_ns, model["program"], kind, b, world.requests[r]["size_class"])
        size = program["batches"][b]
        rows = left if left < size else size
        if program["n_classes"] > 1:
            rows = batches.count_rows(world, r, rows)
        if best != NONE and left < best_left and price.cheaper(world, best_rows, best_ns):
            break
        if best == NONE or rows * best_ns >= best_rows * batch_ns:
            best_first, best, best_rows, best_ns, best_left = r, b, rows, batch_ns, left
        if size >= left:
            break
    return best_first, best, best_rows, best_ns


@inner_kernel
def _ripens_ns(world, now_ns, gpu, m, first, rows, batch_ns, start_ns, worthy, knob):
    """0 if the batch gains nothing by waiting; else until when it may wait for more."""
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    size_class = world.requests[first]["size_class"]
    gap_ns = memory.gap_ns(world, now_ns, m)
    end_ns = batches.latest_end_ns(world, now_ns, gpu, first) - GUARD_NS - (knob >> 8)
    ripe_ns = 0
    for b in range(program["n_batches"]):
        size = program["batches"][b]
        if size <= rows:
            continue
        larger_ns = exec_ns(world, now_ns, program_index, kind, b, size_class)
        latest_ns = end_ns - exec_tail_ns(world, now_ns, program_index, kind, b, size_class)
        if knob & 32 != 0:
            if start_ns > latest_ns:
                break
        elif start_ns + gap_ns * (size - rows) > latest_ns:
            break
        if size * batch_ns > rows * larger_ns:
            ripe_ns = latest_ns
    return ripe_ns


@inner_kernel
def _dearest(world, now_ns, gpu, copy, start_ns):
    best, best_first, best_batch, best_rows, best_ns = NONE, NONE, NONE, 0, 1
    look_ns = FOREVER_NS
    soon, soon_first, soon_batch, soon_rows, soon_wait = NONE, NONE, NONE, 0, 16
    knob = world.settings[0]["batch_delay_ns"]
    shortlist.clear(world)
    for _ in range(COMPARED):
        if copy == NONE or not ready.urgent(world, now_ns, copy):
            break
        m = world.copies[copy]["model"]
        first, b, rows, batch_ns = _offer(world, now_ns, gpu, m, start_ns, knob)
        if b != NONE:
            worthy = price.cheaper(world, rows, batch_ns)
            ripe_ns = _ripens_ns(world, now_ns, gpu, m, first, rows, batch_ns, start_ns, worthy, knob)
            if worthy and ripe_ns <= start_ns:
                latest_ns = batches.latest_end_ns(world, now_ns, gpu, first) - exec_tail_ns(
                    world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"], b,
                    world.requests[first]["size_class"])
                shortlist.put(world, copy, first, b, rows, batch_ns, latest_ns)
            elif ripe_ns <= start_ns or knob & 1 != 0:
                if rows * best_ns > best_rows * batch_ns:
                    best, best_first, best_batch, best_rows, best_ns = copy, first, b, rows, batch_ns
            else:
                look_ns = ripe_ns if ripe_ns < look_ns else look_ns
                wait = (ripe_ns - start_ns) * 16 // memory.gap_ns(world, now_ns, m)
                if knob & 128 != 0 and wait < soon_wait:
                    soon, soon_first, soon_batch, soon_rows, soon_wait = copy, first, b, rows, wait
        copy = ordered.successor(world.copy_nodes, copy)
    i = shortlist.choose(world, start_ns)
    if i != NONE:
        row = world.shortlist[i]
        return row["copy"], row["first"], row["batch"], row["rows"]
    if best == NONE and soon != NONE:
        return soon, soon_first, soon_batch, soon_rows
    if best == NONE and look_ns < FOREVER_NS:
        lanes.look_again(world, gpu, look_ns - margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND))
    return best, best_first, best_batch, best_rows
