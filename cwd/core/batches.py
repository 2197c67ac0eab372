"""Which of a model's queued requests could run together on a GPU that is free at some time, and in what batch size.

A batch has the size class of its first request and takes others, in queue order, of that class or a smaller one (they
are padded up); a larger one waits until it is first. Policies choose among what this file finds.
"""

from __future__ import annotations

from cwd.core import ordered, queues
from cwd.core.admission import end_margin_ns
from cwd.core.estimate import careful_margin_ns, exec_careful_ns, exec_ns, exec_tail_ns
from cwd.core.world import MARGIN_END, NONE, SETS_LOOK
from cwd.jit import inner_kernel

DEADLINE_EXPIRED = queues.DEADLINE_EXPIRED
#: most hopeless requests that one look passes over
SKIPS_MAX = 64
#: what `pick` looks for
DENSEST, LARGEST, FILLED = 0, 1, 2


@inner_kernel
def latest_end_ns(world, now_ns, gpu, r):
    """When an execution of request `r` on the GPU must be over at the latest."""
    return world.requests[r]["due_ns"] - end_margin_ns(world, now_ns, world.gpus[gpu]["kind"])


@inner_kernel
def wait_until_ns(world, now_ns, gpu, first, batch_index):
    """By when a batch of the size that waits on purpose, with request `first` in it, has to start.

    What was measured may have faded while it waits, so this leaves more time than what starts at once needs. And the request
    is given up by what was believed when it came.
    """
    request, kind = world.requests[first], world.gpus[gpu]["kind"]
    program = world.models[request["model"]]["program"]
    took_ns = exec_careful_ns(world, now_ns, program, kind, batch_index, request["size_class"])
    needs_ns = careful_margin_ns(world, now_ns, kind, MARGIN_END) + took_ns
    return request["due_ns"] - (needs_ns if needs_ns > request["need_ns"] else request["need_ns"])


@inner_kernel
def first_in_time(world, now_ns, gpu, m, start_ns):
    """The model's first request that would be in time, alone and started at `start_ns`; -1 if there is none.

    One that would not is given up here if this GPU has the only copy; else it is passed over: another may save it.
    """
    model = world.models[m]
    kind = world.gpus[gpu]["kind"]
    r = model["queue_head"]
    alone_ns, size_class, margin_ns = 0, NONE, end_margin_ns(world, now_ns, kind)
    for _ in range(SKIPS_MAX):
        if r == NONE:
            break
        request = world.requests[r]
        if request["size_class"] != size_class:
            size_class = request["size_class"]
            alone_ns = exec_tail_ns(world, now_ns, model["program"], kind, 0, size_class)
        if start_ns + alone_ns <= request["due_ns"] - margin_ns:
            return r
        after = ordered.successor(world.request_nodes, r)
        if model["copies_count"] == 1:
            queues.drop(world, now_ns, r, DEADLINE_EXPIRED)
        r = after
    return NONE


@inner_kernel
def count_rows(world, first, rows_max):
    """How many requests from `first` on a batch of its size class could take, up to `rows_max`."""
    size_class = world.requests[first]["size_class"]
    rows, r = 0, first
    for _ in range(2 * rows_max):
        if r == NONE or rows >= rows_max:
            break
        if world.requests[r]["size_class"] <= size_class:
            rows += 1
        r = ordered.successor(world.request_nodes, r)
    return rows


@inner_kernel
def rows_at_hand(world, program, r, left, size):
    """How many rows a batch of a size would have from request `r` on, with which `left` wait."""
    rows = left if left < size else size
    return count_rows(world, r, rows) if program["n_classes"] > 1 else rows


@inner_kernel
def class_of(world, first):
    """The size class of a batch from `first` on: the request's own, or the largest of those that are picked with it."""
    size_class = world.requests[first]["size_class"]
    r = first if world.requests[first]["picked"] == 1 else NONE
    for _ in range(SETS_LOOK):
        if r == NONE:
            break
        if world.requests[r]["picked"] == 1 and world.requests[r]["size_class"] > size_class:
            size_class = world.requests[r]["size_class"]
        r = ordered.successor(world.request_nodes, r)
    return size_class


@inner_kernel
def densest(world, now_ns, gpu, m, first, start_ns):
    """The batch index with the most requests per time that keeps the deadline of `first`, and the rows it takes.

    Sizes above the requests at hand are looked at too (one more, padded); ties go to the larger. (-1, 0): none fits.
    """
    model = world.models[m]
    program = world.programs[model["program"]]
    kind = world.gpus[gpu]["kind"]
    end_ns = latest_end_ns(world, now_ns, gpu, first)
    size_class = world.requests[first]["size_class"]
    at_hand = count_rows(world, first, program["batches"][program["n_batches"] - 1]) if model["queued"] > 1 else 1
    best, best_rows, best_ns = NONE, 0, 1
    for b in range(program["n_batches"]):
        tail_ns = exec_tail_ns(world, now_ns, model["program"], kind, b, size_class)
        if tail_ns > 0 and start_ns + tail_ns <= end_ns:
            batch_ns = exec_ns(world, now_ns, model["program"], kind, b, size_class)
            rows = at_hand if at_hand < program["batches"][b] else program["batches"][b]
            if best == NONE or rows * best_ns >= best_rows * batch_ns:
                best, best_rows, best_ns = b, rows, batch_ns
        if program["batches"][b] >= at_hand:
            break
    return best, best_rows


@inner_kernel
def index_for(world, program, rows):
    """Index of the smallest batch size of a program that holds so many rows; of the largest, if none does."""
    sizes = world.programs[program]
    for b in range(sizes["n_batches"]):
        if sizes["batches"][b] >= rows:
            return b
    return sizes["n_batches"] - 1


@inner_kernel
def largest_in_time(world, now_ns, gpu, m, first, start_ns):
    """The smallest batch that holds all at hand, or the largest that keeps the deadline of `first`; and its rows."""
    program_index = world.models[m]["program"]
    program, kind = world.programs[program_index], world.gpus[gpu]["kind"]
    size_class = world.requests[first]["size_class"]
    at_hand = count_rows(world, first, program["batches"][program["n_batches"] - 1])
    end_ns = latest_end_ns(world, now_ns, gpu, first)
    best = NONE
    for b in range(program["n_batches"]):
        tail_ns = exec_tail_ns(world, now_ns, program_index, kind, b, size_class)
        if tail_ns > 0 and start_ns + tail_ns <= end_ns:
            best = b
            if program["batches"][b] >= at_hand:
                break
    if best == NONE:
        return NONE, 0
    return best, at_hand if at_hand < program["batches"][best] else program["batches"][best]


@inner_kernel
def most_rows(world, m):
    """No batch of the model can have more requests than this."""
    model = world.models[m]
    program = world.programs[model["program"]]
    largest = program["batches"][program["n_batches"] - 1]
    return model["queued"] if model["queued"] < largest else largest


@inner_kernel
def pass_over(world, now_ns, gpu, m, batch_index, start_ns, r, left):
    """The first request from `r` on that a batch of the size, started at `start_ns`, keeps in time; and how many of
    `left` are left from there on. (-1, 0): none."""
    program, kind = world.models[m]["program"], world.gpus[gpu]["kind"]
    tail_ns, size_class, margin_ns = 0, NONE, end_margin_ns(world, now_ns, kind)
    for _ in range(SKIPS_MAX):
        if r == NONE:
            break
        request = world.requests[r]
        if request["size_class"] != size_class:
            size_class = request["size_class"]
            tail_ns = exec_tail_ns(world, now_ns, program, kind, batch_index, size_class)
        if tail_ns > 0 and start_ns + tail_ns <= request["due_ns"] - margin_ns:
            return r, left
        r = ordered.successor(world.request_nodes, r)
        left -= 1
    return NONE, 0


@inner_kernel
def pick(world, now_ns, gpu, m, start_ns, rule):
    """The model's best batch if heads that it would make late are passed over: (first, batch index, rows, duration).

    DENSEST: the most requests per time, ties to the larger. LARGEST: the most requests. FILLED: the largest size that
    can be filled. All in time from the first request on. (-1, -1, 0, 1): nothing would be in time.
    """
    model = world.models[m]
    program = world.programs[model["program"]]
    kind = world.gpus[gpu]["kind"]
    best_first, best, best_rows, best_ns = NONE, NONE, 0, 1
    r, left = model["queue_head"], model["queued"]
    for b in range(program["n_batches"]):
        r, left = pass_over(world, now_ns, gpu, m, b, start_ns, r, left)
        if r == NONE:
            break
        batch_ns = exec_ns(world, now_ns, model["program"], kind, b, world.requests[r]["size_class"])
        size = program["batches"][b]
        rows = rows_at_hand(world, program, r, left, size)
        if rule == FILLED and rows < size:
            break
        if rule == DENSEST:
            better = rows * best_ns >= best_rows * batch_ns
        else:
            better = rows > best_rows
        if best == NONE or better:
            best_first, best, best_rows, best_ns = r, b, rows, batch_ns
        if size >= left:
            break
    return best_first, best, best_rows, best_ns


@inner_kernel
def worth(world, rule, first, rows, batch_ns):
    """What a batch of one model is compared by with those of others: (value, cost), the more value per cost the better.

    DENSEST: requests per time. LARGEST: requests. FILLED: how early it has to start.
    """
    if rule == DENSEST:
        return rows, batch_ns
    if rule == LARGEST:
        return rows, 1
    return batch_ns - world.requests[first]["due_ns"], 1
