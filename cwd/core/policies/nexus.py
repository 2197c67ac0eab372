"""Nexus's duty cycles (SOSP'19): each GPU serves its models in rounds, in batches planned from their rates.

Once in an epoch the GPU's models are packed into a round: a model's batch is the largest whose first request is in time
although it waits for the last; the shortest of their periods is the round's; a model is in if all batches of a round,
made anew for that period, fit into it (squishy bin packing). A model runs when its batch is there or its round has
passed, in order of who ran longest ago. A batch drops the requests at the head that its planned size would make late.
Departures: models are on GPUs by demand (loads.py), the packing only decides who is served in rounds; who does not fit
gets the time that is left, until the next turn of one that does. Rates may rise within an epoch, and a batch leaves those
behind for whom it has no room: whoever would be late by the next turn is served in time that is left, too; and nobody
waits for a turn while the table of requests has little room left, since others would be turned away. The epoch is 1 s
(theirs 30 s); sessions are models (theirs have one SLO each: ours take the SLO last asked for); at most 32 models of a GPU,
the last used, are packed.
"""

from __future__ import annotations

from cwd.core import batches, lanes, memory, ordered, queues, ready
from cwd.core.admission import end_margin_ns
from cwd.core.estimate import exec_tail_ns, margin_ns
from cwd.core.world import COPY_READY, FOREVER_NS, LANE_EXEC, MARGIN_SEND, NONE
from cwd.jit import inner_kernel

EPOCH_NS = 1_000_000_000
#: most models that are packed into one GPU's round
SESSIONS_MAX = 32


@inner_kernel
def _gap_ns(world, now_ns, m):
    """Time between two requests of a model for each of its GPUs."""
    copies = world.models[m]["copies_ready"]
    return memory.gap_ns(world, now_ns, m) * (copies if copies > 1 else 1)


@inner_kernel
def _slo_ns(world, now_ns, gpu, m):
    """A model's SLO, less all that is not waiting for the batch and its execution."""
    kind = world.gpus[gpu]["kind"]
    margins_ns = end_margin_ns(world, now_ns, kind) + margin_ns(world, now_ns, kind, MARGIN_SEND)
    return world.memory[m]["slo_ns"] - world.settings[0]["client_ns"] - margins_ns


@inner_kernel
def _period_ns(world, now_ns, gpu, m):
    """How often a model alone on the GPU would run: 0 if never in time, its execution's length if it fills the GPU."""
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    gap_ns, slo_ns = _gap_ns(world, now_ns, m), _slo_ns(world, now_ns, gpu, m)
    best_ns = 0
    for b in range(program["n_batches"]):
        size = program["batches"][b]
        took_ns = exec_tail_ns(world, now_ns, program_index, kind, b, 0)
        if took_ns == 0 or took_ns > slo_ns:
            break
        filled_ns = size * gap_ns
        if filled_ns <= took_ns and 2 * took_ns <= slo_ns:
            best_ns = took_ns
        elif (size - 1) * gap_ns + took_ns <= slo_ns or b == 0:
            best_ns = slo_ns - took_ns if slo_ns - took_ns < filled_ns else filled_ns
            best_ns = best_ns if best_ns > took_ns else took_ns
    return best_ns


@inner_kernel
def _quota_for(world, now_ns, gpu, m, cycle_ns):
    """How many requests of a model a round has to serve, and how long they take; at most what SLO / 2 allows."""
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    gap_ns, slo_ns = _gap_ns(world, now_ns, m), _slo_ns(world, now_ns, gpu, m)
    rows = (cycle_ns + gap_ns - 1) // gap_ns
    took_ns = 0
    for b in range(program["n_batches"]):
        next_ns = exec_tail_ns(world, now_ns, program_index, kind, b, 0)
        if b > 0 and (next_ns == 0 or 2 * next_ns > slo_ns):
            return program["batches"][b - 1], took_ns
        took_ns = next_ns
        if program["batches"][b] >= rows:
            return rows, took_ns
    return program["batches"][program["n_batches"] - 1], took_ns


@inner_kernel
def quota(world, copy):
    """Requests of the copy's model in each round of its GPU; 0 if it has no place there."""
    row = world.copies[copy]
    return row["quota"] if row["packed_ns"] == world.gpus[row["gpu"]]["planned_ns"] else 0


@inner_kernel
def _fits(world, now_ns, gpu, cycle_ns):
    """Whether one batch of each model that has a place takes no longer than the round; sets their quotas."""
    total_ns = 0
    copy = world.gpus[gpu]["lru_last"]
    for _ in range(SESSIONS_MAX):
        if copy == NONE:
            break
        row = world.copies[copy]
        if quota(world, copy) > 0:
            row["quota"], took_ns = _quota_for(world, now_ns, gpu, row["model"], cycle_ns)
            total_ns += took_ns
        copy = row["lru_previous"]
    return total_ns <= cycle_ns


@inner_kernel
def _pack(world, now_ns, gpu):
    """Plan the GPU's round: who has a place in it, and how long it is."""
    place = world.gpus[gpu]
    place["planned_ns"] = now_ns
    cycle_ns = FOREVER_NS
    copy = place["lru_last"]
    for _ in range(SESSIONS_MAX):
        if copy == NONE:
            break
        row = world.copies[copy]
        m = row["model"]
        if row["state"] == COPY_READY and now_ns - world.memory[m]["arrived_ns"] < EPOCH_NS:
            period_ns = _period_ns(world, now_ns, gpu, m)
            if period_ns > 0:
                shorter_ns = period_ns if period_ns < cycle_ns else cycle_ns
                row["quota"], row["packed_ns"] = 1, now_ns
                if _fits(world, now_ns, gpu, shorter_ns):
                    cycle_ns = shorter_ns
                else:
                    row["quota"] = 0
                    _fits(world, now_ns, gpu, cycle_ns)
        copy = row["lru_previous"]
    place["cycle_ns"] = cycle_ns


@inner_kernel
def _window(world, now_ns, gpu, m, rows_max, start_ns):
    """The first request and the batch for up to `rows_max`: who its size would make late is left out.

    Smaller sizes where the rest would do with one; they may let more in again.
    """
    model = world.models[m]
    sizes = world.programs[model["program"]]["batches"]
    b = batches.index_for(world, model["program"], rows_max)
    first, left = batches.pass_over(world, now_ns, gpu, m, b, start_ns, model["queue_head"], model["queued"])
    while b > 0 and left <= sizes[b - 1]:
        b -= 1
        first, left = batches.pass_over(world, now_ns, gpu, m, b, start_ns, model["queue_head"], model["queued"])
    if first == NONE:
        return NONE, NONE, 0
    rows = left if left < rows_max else rows_max
    return first, b, batches.count_rows(world, first, rows if rows < sizes[b] else sizes[b])


@inner_kernel
def _wait_until_ns(world, now_ns, gpu, m):
    """Until when the model's queue, less than a batch of the round, may wait for its turn."""
    model = world.models[m]
    if model["queue_head"] == NONE:
        return FOREVER_NS
    b = batches.index_for(world, model["program"], model["queued"])
    return batches.wait_until_ns(world, now_ns, gpu, model["queue_head"], b)


@inner_kernel
def _next_turn(world, now_ns, gpu, start_ns):
    """The first batch of the round whose turn it is, in order of who ran longest ago; if it is nobody's turn, of who would
    be late by theirs. And when the next of either begins."""
    turn_ns, late = FOREVER_NS, NONE
    crowded = queues.crowded(world)
    copy = ready.most_urgent(world, now_ns, gpu)
    for _ in range(ready.COMPARED):
        if copy == NONE:
            break
        row = world.copies[copy]
        rows_max = quota(world, copy)
        if rows_max > 0:
            due_ns = row["turn_ns"] + world.gpus[gpu]["cycle_ns"]
            if crowded or start_ns >= due_ns or world.models[row["model"]]["queued"] >= rows_max:
                first, b, rows = _window(world, now_ns, gpu, row["model"], rows_max, start_ns)
                if first != NONE:
                    return copy, first, b, rows, start_ns
            else:
                until_ns = _wait_until_ns(world, now_ns, gpu, row["model"])
                if until_ns <= start_ns:
                    late = copy if late == NONE else late
                    until_ns = due_ns
                due_ns = until_ns if until_ns < due_ns else due_ns
                turn_ns = due_ns if due_ns < turn_ns else turn_ns
        copy = ordered.successor(world.copy_nodes, copy)
    if late != NONE:
        first, b, rows = _window(world, now_ns, gpu, world.copies[late]["model"], quota(world, late), start_ns)
        if first != NONE:
            return late, first, b, rows, start_ns
    return NONE, NONE, NONE, 0, turn_ns


@inner_kernel
def _in_between(world, now_ns, gpu, start_ns, turn_ns):
    """The first batch of a model without a place in the round that is over before the next turn."""
    copy = world.gpus[gpu]["ready_head"]
    kind = world.gpus[gpu]["kind"]
    for _ in range(ready.COMPARED):
        if copy == NONE:
            break
        m = world.copies[copy]["model"]
        if quota(world, copy) == 0:
            first, b, rows, _ = batches.pick(world, now_ns, gpu, m, start_ns, batches.LARGEST)
            if b != NONE:
                size_class = world.requests[first]["size_class"]
                took_ns = exec_tail_ns(world, now_ns, world.models[m]["program"], kind, b, size_class)
                if start_ns + took_ns <= turn_ns:
                    return copy, first, b, rows
        copy = ordered.successor(world.copy_nodes, copy)
    return NONE, NONE, NONE, 0


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The batch whose turn it is, else one that fits in before the next turn."""
    if now_ns - world.gpus[gpu]["planned_ns"] >= EPOCH_NS or world.gpus[gpu]["planned_ns"] == 0:
        _pack(world, now_ns, gpu)
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    copy, first, b, rows, turn_ns = _next_turn(world, now_ns, gpu, start_ns)
    if copy == NONE:
        copy, first, b, rows = _in_between(world, now_ns, gpu, start_ns, turn_ns)
    if copy == NONE and turn_ns < FOREVER_NS:
        lanes.look_again(world, gpu, turn_ns - margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND))
    return copy, first, b, rows
