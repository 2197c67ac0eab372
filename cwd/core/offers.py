"""What a model could run next on a GPU, with an eye on what comes: its densest batch, and whether that should still grow."""

from __future__ import annotations

from cwd.core import batches, memory, ordered, price
from cwd.core.estimate import exec_ns, exec_tail_ns
from cwd.core.world import NONE
from cwd.jit import inner_kernel

#: what a head passed over costs, in prices: its own, and another since it could have had company
HEAD_PRICES = 2


@inner_kernel
def best(world, now_ns, gpu, m, start_ns):
    """The model's densest batch in time: (first, batch index, rows, duration); (-1, -1, 0, 1): nothing would be in time.

    Where a smaller one is worth the price of its time, heads that a larger one makes late count as time that it takes; not
    where the larger one would be late for who comes next if it ran after the smaller: there somebody is lost in any case.
    """
    model = world.models[m]
    program = world.programs[model["program"]]
    kind = world.gpus[gpu]["kind"]
    best_first, best_batch, best_rows, best_ns, best_left = NONE, NONE, 0, 1, 0
    r, left = model["queue_head"], model["queued"]
    for b in range(program["n_batches"]):
        r, left = batches.pass_over(world, now_ns, gpu, m, b, start_ns, r, left)
        if r == NONE:
            break
        batch_ns = exec_ns(world, now_ns, model["program"], kind, b, world.requests[r]["size_class"])
        size = program["batches"][b]
        rows = batches.rows_at_hand(world, program, r, left, size)
        cost_ns = batch_ns
        if (best_batch != NONE and price.worth_it(world, best_rows, best_ns)
                and _in_time_behind(world, now_ns, gpu, m, b, best_first, best_rows, start_ns + best_ns)):
            cost_ns += HEAD_PRICES * (best_left - left) * world.counters[0]["price_ns"]
        if best_batch == NONE or rows * best_ns >= best_rows * cost_ns:
            best_first, best_batch, best_rows, best_ns, best_left = r, b, rows, batch_ns, left
        if size >= left:
            break
    return best_first, best_batch, best_rows, best_ns


@inner_kernel
def _in_time_behind(world, now_ns, gpu, m, b, first, rows, start_ns):
    """Whether a batch of the size, started at `start_ns`, keeps the request in time that is `rows` behind `first`."""
    r = first
    for _ in range(rows):
        if r == NONE:
            return True
        r = ordered.successor(world.request_nodes, r)
    if r == NONE:
        return True
    tail_ns = exec_tail_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"], b,
                           world.requests[r]["size_class"])
    return start_ns + tail_ns <= batches.latest_end_ns(world, now_ns, gpu, r)


@inner_kernel
def ripe_ns(world, now_ns, gpu, m, first, rows, batch_ns, start_ns, patient):
    """Until when the batch should wait for more: for the largest denser one that would fill at the model's rate of arrivals
    before it has to start, and as much earlier as one of the model's GPUs usually comes free. 0: there is none.

    If not `patient`, no longer than half of the time that its first request can wait.
    """
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    size_class = world.requests[first]["size_class"]
    gap_ns = memory.gap_ns(world, now_ns, m)
    copies = world.models[m]["copies_ready"]
    end_ns = batches.latest_end_ns(world, now_ns, gpu, first)
    end_ns -= world.counters[0]["usual_ns"] // (copies if copies > 0 else 1)
    until_ns = 0
    for b in range(program["n_batches"]):
        size = program["batches"][b]
        if size <= rows:
            continue
        latest_ns = end_ns - exec_tail_ns(world, now_ns, program_index, kind, b, size_class)
        if start_ns + gap_ns * (size - rows) > latest_ns:
            break
        if size * batch_ns > rows * exec_ns(world, now_ns, program_index, kind, b, size_class):
            until_ns = latest_ns
    if until_ns > 0 and not patient:
        arrival_ns = world.requests[first]["arrival_ns"]
        return arrival_ns + (until_ns - arrival_ns) // 2
    return until_ns


@inner_kernel
def company_ns(world, now_ns, gpu, m, first, rows, batch_ns):
    """Until when the batch should wait for one more request, even if the GPU then has nothing to do; 0: it should not.

    Only where the model's requests are lost: there each that comes in time for the batch is one less. It is worth the GPU
    time that goes by for each that is served, less what the batch then takes longer. A wait ends in vain after as long
    a silence, or when the first request must start; and it begins only if such waits after each of the model's late
    arrivals would have paid together. The mean gap would not tell: of requests that come in bursts most follow each other
    closely, and the few long silences make up the mean, though who waits need not wait for their end.
    """
    row, program_index = world.memory[m], world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    b = batches.index_for(world, program_index, rows + 1)
    if program["batches"][b] <= rows or not memory.loses(world, m):
        return 0
    more_ns = exec_ns(world, now_ns, program_index, kind, b, world.requests[first]["size_class"]) - batch_ns
    worth_ns = memory.worth_ns(world, m) - more_ns // (program["batches"][b] - rows)
    if row["soon"] * worth_ns <= row["waited_ns"] * memory.ONE:
        return 0
    until_ns = batches.wait_until_ns(world, now_ns, gpu, first, b)
    silent_ns = row["arrived_ns"] + worth_ns
    return silent_ns if silent_ns < until_ns else until_ns
