"""Whether a request can be served in time by the best plan at hand, on which GPU, and if not, when it could have been.

The plans looked at: each GPU that has the model or is loading it (a few of them in turn, if many), behind the queued
work that is due earlier; and a LOAD on one of the GPUs whose load lanes come free first. Each request counts for what
it adds to the batches of its own model: a whole execution if it is the first to wait, little if it fills a batch that
runs anyway. So under overload those are let in who make batches full; and whoever comes to a pressed GPU must leave
the time for their batch to become full. Nothing is changed here except the request's own row.
"""

from __future__ import annotations

from cwd.core import floor, memory, price, residency
from cwd.core.estimate import exec_ns, exec_row, exec_tail_ns, margin_ns
from cwd.core.lanes import available_ns, wake
from cwd.core.queues import COPIES_LOOK, enlist, last_moment_ns, load_need_ns
from cwd.core.world import (
    BUCKET_BITS, BUCKETS, COPY_LOADING, COPY_READY, COPY_UNKNOWN, COPY_UNLOADING, FOREVER_NS, GPU_UP,
    LANE_EXEC, LANE_LOAD, MARGIN_END, MARGIN_RESULT, MARGIN_SEND, NONE,
)
from cwd.jit import inner_kernel

#: how long a refusal for want of time, or a request given up, marks a GPU as pressed
PRESSED_NS = 100_000_000


@inner_kernel
def end_margin_ns(world, now_ns, kind):
    """From when an execution should be over, started as predicted, until the result can be counted on."""
    return margin_ns(world, now_ns, kind, MARGIN_END)


@inner_kernel
def need_ns(world, now_ns, kind, program, size_class):
    """From issuing a request alone to an idle GPU that has its model until the result is here; 0: not profiled."""
    alone_ns = exec_tail_ns(world, now_ns, program, kind, 0, size_class)
    if alone_ns == 0:
        return 0
    return alone_ns + end_margin_ns(world, now_ns, kind) + margin_ns(world, now_ns, kind, MARGIN_SEND)


@inner_kernel
def best_need_ns(world, now_ns, program, size_class):
    """The least `need_ns` over all kinds of GPU; 0: profiled on none."""
    best = 0
    for kind in range(world.settings[0]["kinds_max"]):
        need = need_ns(world, now_ns, kind, program, size_class)
        if need > 0 and (best == 0 or need < best):
            best = need
    return best


@inner_kernel
def pressed(world, now_ns, gpu):
    """Whether the GPU has to turn requests away or give them up, so that some are lost whatever it does."""
    return now_ns - world.gpus[gpu]["pressed_ns"] < PRESSED_NS


@inner_kernel
def _filled_ns(world, now_ns, kind, program, size_class, rows):
    """What a batch takes by the time it has so many rows: it grows through the program's sizes, evenly between two."""
    sizes = world.programs[program]
    smaller, smaller_ns = 0, 0
    for b in range(sizes["n_batches"]):
        size = sizes["batches"][b]
        batch_ns = exec_ns(world, now_ns, program, kind, b, size_class)
        if rows <= size:
            return smaller_ns + (batch_ns - smaller_ns) * (rows - smaller) // (size - smaller)
        smaller, smaller_ns = size, batch_ns
    return smaller_ns


@inner_kernel
def _best_batch(world, now_ns, kind, program, size_class, slack_ns, gap_ns):
    """Index of the densest batch size (requests per time) that fits into the slack behind one like it just begun.

    Or, if `gap_ns` between two arrivals is known (not 0), after the time that it takes to fill.

    Not the largest: a model could then always add to what it has waiting, and others would never get in.
    """
    sizes = world.programs[program]
    slack_ns -= margin_ns(world, now_ns, kind, MARGIN_SEND) + end_margin_ns(world, now_ns, kind)
    best, best_ns = 0, exec_ns(world, now_ns, program, kind, 0, size_class)
    for b in range(1, sizes["n_batches"]):
        batch_ns = exec_ns(world, now_ns, program, kind, b, size_class)
        wait_ns = batch_ns if gap_ns == 0 else gap_ns * (sizes["batches"][b] - 1)
        if batch_ns == 0 or wait_ns + exec_tail_ns(world, now_ns, program, kind, b, size_class) > slack_ns:
            break
        if sizes["batches"][b] * best_ns > sizes["batches"][best] * batch_ns:
            best, best_ns = b, batch_ns
    return best


@inner_kernel
def backlog_before_ns(world, now_ns, gpu, due_ns):
    """Work queued for a GPU that is due no later than `due_ns` (up to the width of a bucket)."""
    first, last = now_ns >> BUCKET_BITS, due_ns >> BUCKET_BITS
    if last - first >= BUCKETS:
        return world.gpus[gpu]["backlog_ns"]
    total = 0
    for bucket in range(first, last + 1):
        total += world.backlog[gpu, bucket & (BUCKETS - 1)]
    return total


@inner_kernel
def _start_ns(world, now_ns, copy):
    """When the GPU of a copy could start something now, behind its lane; FOREVER_NS if it cannot."""
    row = world.copies[copy]
    gpu = row["gpu"]
    if world.gpus[gpu]["state"] != GPU_UP or (row["state"] != COPY_READY and row["state"] != COPY_LOADING):
        return FOREVER_NS
    start_ns = available_ns(world, now_ns, gpu, LANE_EXEC)
    if row["state"] == COPY_LOADING:
        kind = world.gpus[gpu]["kind"]
        loaded_ns = (world.actions[row["action"]]["end_ns"] + margin_ns(world, now_ns, kind, MARGIN_RESULT)
                     + margin_ns(world, now_ns, kind, MARGIN_SEND))
        if loaded_ns > start_ns:
            start_ns = loaded_ns
    return start_ns


@inner_kernel
def _best_copy(world, now_ns, m, due_ns, exact):
    """The model's GPU that would start first behind its backlog (`exact`: what is due earlier alone), and when."""
    best, best_ns = NONE, FOREVER_NS
    copy = world.models[m]["copies"]
    last = copy
    for _ in range(COPIES_LOOK):
        if copy == NONE:
            break
        start_ns = _start_ns(world, now_ns, copy)
        if start_ns < FOREVER_NS:
            gpu = world.copies[copy]["gpu"]
            if exact:
                start_ns += backlog_before_ns(world, now_ns, gpu, due_ns)
            else:
                start_ns += world.gpus[gpu]["backlog_ns"]
            if start_ns < best_ns:
                best, best_ns = gpu, start_ns
        copy = world.copies[copy]["next"]
        if copy == last:
            break
    return best, best_ns


@inner_kernel
def best_load(world, now_ns, m, due_ns):
    """The GPU, of a few whose load lanes come free first, where a LOAD of the model would be done first, and when."""
    best, best_ns, best_free_ns = NONE, FOREVER_NS, FOREVER_NS
    program = world.models[m]["program"]
    looks = world.counters[0]["loads_count"]
    if looks > COPIES_LOOK:
        looks = COPIES_LOOK
    for i in range(looks):
        gpu = world.load_lanes[i]["id"]
        if world.prepared[gpu, program] == 0:
            continue
        copy = residency.find(world, m, gpu)
        if copy != NONE and world.copies[copy]["state"] != COPY_UNLOADING and world.copies[copy]["state"] != COPY_UNKNOWN:
            continue
        if world.gpus[gpu]["pages_total"] < world.models[m]["pages"]:
            continue
        done_ns = available_ns(world, now_ns, gpu, LANE_LOAD) + load_need_ns(world, now_ns, gpu, program)
        free_ns = available_ns(world, now_ns, gpu, LANE_EXEC) + backlog_before_ns(world, now_ns, gpu, due_ns)
        if free_ns > done_ns:
            done_ns = free_ns
        # of lanes that are as good, the GPU with less to do
        if done_ns < best_ns or (done_ns == best_ns and free_ns < best_free_ns):
            best, best_ns, best_free_ns = gpu, done_ns, free_ns
    return best, best_ns


@inner_kernel
def _settle(world, now_ns, r, gpu, home):
    """Note what admission counted on; returns how long after the work ahead of it the request would be answered."""
    request = world.requests[r]
    kind = world.gpus[gpu]["kind"]
    model = world.models[request["model"]]
    program, size_class = model["program"], request["size_class"]
    gap_ns = memory.gap_ns(world, now_ns, request["model"]) if world.settings[0]["gathers"] == 1 else 0
    full = _best_batch(world, now_ns, kind, program, size_class, request["due_ns"] - now_ns, gap_ns)
    # copies share the queue
    ahead = model["queued"] // model["copies_ready"] if model["copies_ready"] > 1 else model["queued"]
    place = 0
    if model["queued"] > 0 and world.requests[model["queue_head"]]["due_ns"] <= request["due_ns"]:
        place = ahead % world.programs[program]["batches"][full]
    request["home"] = home
    request["need_ns"] = need_ns(world, now_ns, kind, program, size_class)
    filled_ns = _filled_ns(world, now_ns, kind, program, size_class, place)
    own_ns = _filled_ns(world, now_ns, kind, program, size_class, place + 1) - filled_ns
    if world.settings[0]["costs_alone"] == 1:
        own_ns = world.estimates[exec_row(world, program, kind, 0, size_class)]["seed_ns"]
    request["cost_ns"] = own_ns if own_ns > 1 else 1
    if full > 0 and pressed(world, now_ns, gpu):
        # the whole batch must fit, or its first requests would let it run only when it is small; and once more the
        # margin, since what runs now may end later than predicted
        own_ns = exec_ns(world, now_ns, program, kind, full, size_class) - filled_ns + end_margin_ns(world, now_ns, kind)
    own_ns -= exec_ns(world, now_ns, program, kind, 0, size_class)
    own_ns += exec_tail_ns(world, now_ns, program, kind, 0, size_class)
    return own_ns + end_margin_ns(world, now_ns, kind)


@inner_kernel
def place(world, now_ns, r):
    """Find request `r` a plan: sets home, need and cost; returns (answered at, of the best plan; busy: how long the
    model's best GPU is busy, FOREVER_NS if it has none; load GPU: where the model should be loaded, -1 if nowhere).

    The plan keeps the deadline if the first is not after due_ns. FOREVER_NS: there is no plan at all.
    """
    request = world.requests[r]
    m = request["model"]
    due_ns = request["due_ns"]
    request["home"] = NONE
    done_ns, busy_ns = FOREVER_NS, FOREVER_NS
    gpu, start_ns = _best_copy(world, now_ns, m, due_ns, False)
    if gpu != NONE:
        busy_ns = start_ns - now_ns
        done_ns = start_ns + _settle(world, now_ns, r, gpu, gpu)
        if done_ns <= due_ns and busy_ns <= world.settings[0]["load_horizon_ns"]:
            return done_ns, busy_ns, NONE
        if done_ns > due_ns:
            gpu, start_ns = _best_copy(world, now_ns, m, due_ns, True)
            done_ns = start_ns + _settle(world, now_ns, r, gpu, gpu)
    other, loaded_ns = best_load(world, now_ns, m, due_ns)
    if other != NONE and done_ns > due_ns:
        kept = request["home"]
        loaded_ns += _settle(world, now_ns, r, other, NONE)
        if loaded_ns <= due_ns or loaded_ns < done_ns:
            done_ns = loaded_ns
        else:
            _settle(world, now_ns, r, gpu, kept)
    return done_ns, busy_ns, other


@inner_kernel
def filled_each_ns(world, now_ns, r, gpu):
    """What a request takes of a GPU in the batch that fills at its model's rate of arrivals within its slack."""
    request = world.requests[r]
    kind, m = world.gpus[gpu]["kind"], request["model"]
    program = world.models[m]["program"]
    b = _best_batch(world, now_ns, kind, program, request["size_class"], request["due_ns"] - now_ns,
                    memory.gap_ns(world, now_ns, m))
    return exec_ns(world, now_ns, program, kind, b, request["size_class"]) // world.programs[program]["batches"][b]


@inner_kernel
def let_in(world, now_ns, r, loader):
    """Whether a request for which there is no plan is taken all the same, since its model's batches go before others'.

    It is owed one, and the next batch has room; or it is worth its price, or about that, in the densest batch that the slack
    has time for, which by luck may fill, and the batch after the next has room. What others have queued is no reason to
    refuse it: of that as much may be lost, and which model has a full batch when the GPU comes free nobody knows. `loader` is
    where it would be loaded. Nobody is taken who could not be saved by an idle GPU.
    """
    request = world.requests[r]
    m, size_class = request["model"], request["size_class"]
    gpu = request["home"] if request["home"] != NONE else loader
    if gpu == NONE or last_moment_ns(world, now_ns, r) < now_ns:
        return False
    kind, program = world.gpus[gpu]["kind"], world.models[m]["program"]
    sizes = world.programs[program]
    queued, largest = world.models[m]["queued"], sizes["batches"][sizes["n_batches"] - 1]
    if queued < largest and floor.owed(world, m) > 0:
        return True
    if queued >= 2 * largest:
        return False
    b = _best_batch(world, now_ns, kind, program, size_class, request["due_ns"] - now_ns, 1)
    return price.about_worth_it(world, sizes["batches"][b], exec_ns(world, now_ns, program, kind, b, size_class))


@inner_kernel
def in_time_there(world, now_ns, r, gpu):
    """Whether the GPU, if it had the model, could answer the request in time behind its work that is due earlier."""
    request = world.requests[r]
    program, kind = world.models[request["model"]]["program"], world.gpus[gpu]["kind"]
    start_ns = available_ns(world, now_ns, gpu, LANE_EXEC) + backlog_before_ns(world, now_ns, gpu, request["due_ns"])
    return start_ns + need_ns(world, now_ns, kind, program, request["size_class"]) <= request["due_ns"]


@inner_kernel
def want(world, now_ns, m):
    """If a model has requests and no copy that could serve them: list it, and have the GPU look that could load it."""
    model = world.models[m]
    if model["queued"] == 0 or model["copies_ready"] > 0:
        return
    if model["wanted"] == 0:
        enlist(world, m, model["work_ns"])
    gpu, _ = best_load(world, now_ns, m, world.requests[model["queue_head"]]["due_ns"])
    if gpu != NONE:
        wake(world, gpu)
