"""cwd's own: batches that are full for their rate of arrivals and worth the price of GPU time, then the densest.

Each of a GPU's most urgent models offers its densest batch (offers.py). Of those that will hardly grow the one goes
first that is owed most to its model (floor.py); then the others, where requests are lost only those that are worth the
price of GPU time (price.py), by when they have to start, less the least dense if not all can start in time
(shortlist.py); then the densest of the rest. While the GPUs have time to spare nobody waits to grow; while all is served
all the same, nobody for more than half of the time that they have, and no GPU for that alone; a model that loses requests
which follow each other closely waits for the next one, for as long as that is worth of GPU time. Work that is due
beyond half a second runs where nothing urgent can, while the GPUs come free in time for urgent requests (background.py),
and is never compared with them; where it waits and takes less than half of their slack, they wait for each other.
Sources: Clockwork (OSDI'20) for windows and the timeline, Shepherd (NSDI'23) for density under overload, Symphony for
batches that wait, Moore and Hodgson for who gives way; ours are exact margins, refusal at arrival by marginal cost, the
price, the floor, background where urgent requests keep their GPU time, and sets of requests that belong together, by the exact
latency of their applications, where Orloj scores requests (sets.py): for programs whose executions depend on data.
"""

from __future__ import annotations

from cwd.core import background, batches, floor, histograms, lanes, offers, ordered, price, ready, residency, sets, shortlist
from cwd.core.admission import pressed
from cwd.core.estimate import exec_ns, exec_tail_ns, margin_ns
from cwd.core.world import FOREVER_NS, LANE_EXEC, MARGIN_SEND, NONE, SHORTLIST_MAX
from cwd.jit import inner_kernel


@inner_kernel
def next_batch(world, gpu, now_ns):
    """(copy, first request, batch index, rows); copy -1: nothing now."""
    copy = ready.most_urgent(world, now_ns, gpu)
    if copy == NONE:
        world.gpus[gpu]["background_ns"] = 0
        return NONE, NONE, NONE, 0
    if dynamic(world, copy):
        return _as_set(world, now_ns, gpu, copy, lanes.available_ns(world, now_ns, gpu, LANE_EXEC))
    choice, first, b, rows = _urgent(world, now_ns, gpu, copy)
    if choice == NONE:
        return _background(world, now_ns, gpu)
    return choice, first, b, rows


@inner_kernel
def _urgent(world, now_ns, gpu, copy):
    """What goes first of the most urgent models, from `copy` on."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    short = pressed(world, now_ns, gpu)
    waits = background.waits(world, gpu)
    eager = not short and not waits and not price.busy(world, now_ns)
    # while nobody is lost, nobody waits for company for long, and no GPU for that alone
    patient = short or waits or price.spare_ns(world, now_ns) < 0
    best, best_first, best_batch, best_rows, best_ns = NONE, NONE, NONE, 0, 1
    due, due_first, due_batch, due_rows, due_owed = NONE, NONE, NONE, 0, 0
    count, look_ns = 0, FOREVER_NS
    for _ in range(SHORTLIST_MAX):
        if copy == NONE:
            break
        after = ordered.successor(world.copy_nodes, copy)
        if world.models[ready.model_of(world, copy)]["queued"] == 0:
            # its requests went out of turn, and it would hide those behind it
            residency.deactivate(world, copy)
            copy = after
            continue
        if not ready.urgent(world, now_ns, copy):
            break
        if dynamic(world, copy):
            # it is served when it is the most urgent
            copy = after
            continue
        m = ready.model_of(world, copy)
        first, b, rows, batch_ns = offers.best(world, now_ns, gpu, m, start_ns)
        if b == NONE:
            # nothing of it can be in time here; it comes back with its next head or arrival
            residency.deactivate(world, copy)
        elif histograms.asks(world, m):
            return copy, first, 0, 1
        else:
            owed = floor.owed(world, m)
            ripe_ns = offers.ripe_ns(world, now_ns, gpu, m, first, rows, batch_ns, start_ns, patient)
            company_ns = offers.company_ns(world, now_ns, gpu, m, first, rows, batch_ns)
            if company_ns > start_ns:
                look_ns = company_ns if company_ns < look_ns else look_ns
            elif ripe_ns <= start_ns and owed > 0:
                if owed > due_owed:
                    due, due_first, due_batch, due_rows, due_owed = copy, first, b, rows, owed
            elif eager or (ripe_ns <= start_ns and (not short or price.worth_it(world, rows, batch_ns))):
                tail_ns = exec_tail_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"], b,
                                       world.requests[first]["size_class"])
                latest_ns = batches.latest_end_ns(world, now_ns, gpu, first) - tail_ns
                copies = world.models[m]["copies_ready"]
                count = shortlist.put(world.shortlist, count, copy, first, b, rows, batch_ns, latest_ns, copies)
            elif ripe_ns > start_ns and patient:
                look_ns = ripe_ns if ripe_ns < look_ns else look_ns
            elif best == NONE or rows * best_ns > best_rows * batch_ns:
                best, best_first, best_batch, best_rows, best_ns = copy, first, b, rows, batch_ns
        copy = after
    if copy == NONE:
        world.gpus[gpu]["background_ns"] = 0
    if due != NONE:
        return due, due_first, due_batch, due_rows
    i = shortlist.choose(world.shortlist, count, start_ns)
    if i != NONE:
        row = world.shortlist[i]
        return row["copy"], row["first"], row["batch"], row["rows"]
    if best == NONE and look_ns < FOREVER_NS:
        lanes.look_again(world, gpu, look_ns - margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND))
    elif best == NONE and copy != NONE and ready.urgent(world, now_ns, copy):
        # of more models than were looked at the others are next
        lanes.look_again(world, gpu, now_ns + 1)
    return best, best_first, best_batch, best_rows


@inner_kernel
def dynamic(world, copy):
    """Whether how long the model's executions take depends on data."""
    return world.programs[world.models[ready.model_of(world, copy)]["program"]]["dynamic"] == 1


@inner_kernel
def _as_set(world, now_ns, gpu, copy, start_ns):
    """The best set of the requests of a model whose executions depend on data, if it is urgent or background may run."""
    m = world.copies[copy]["model"]
    urgent = ready.urgent(world, now_ns, copy)
    sets.give_up(world, now_ns, gpu, m, start_ns)
    if world.models[m]["queue_head"] != NONE:
        b, rows = sets.propose(world, now_ns, gpu, m, start_ns)
        if b != NONE:
            first = sets.pick(world)
            if urgent or _has_room(world, now_ns, gpu, m, first, b):
                return copy, first, b, rows
            return NONE, NONE, NONE, 0
    # nothing of it can be in time here; it comes back with its next head or arrival
    residency.deactivate(world, copy)
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE, NONE, NONE, 0


@inner_kernel
def _background(world, now_ns, gpu):
    """The first-due model's densest batch of what is not urgent, if the GPU may run it; nothing urgent can run now.

    By density, models that are called rarely would wait until they are urgent; and of clients who have only so many under
    way those few requests would hold up the rest, which then makes small batches.
    """
    copy = world.gpus[gpu]["ready_head"]
    for _ in range(SHORTLIST_MAX):
        if copy == NONE or not ready.urgent(world, now_ns, copy):
            break
        copy = ordered.successor(world.copy_nodes, copy)
    if copy == NONE or dynamic(world, copy) or ready.urgent(world, now_ns, copy):
        return NONE, NONE, NONE, 0
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    first, b, rows = ready.fit(world, now_ns, gpu, copy, start_ns, 1)
    if b == NONE:
        residency.deactivate(world, copy)
        lanes.look_again(world, gpu, now_ns + 1)
    if b == NONE or not _has_room(world, now_ns, gpu, world.copies[copy]["model"], first, b):
        return NONE, NONE, NONE, 0
    return copy, first, b, rows


@inner_kernel
def _has_room(world, now_ns, gpu, m, first, b):
    """Whether the GPU may run a batch that is not urgent now; if not, it looks again."""
    took_ns = exec_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"], b, batches.class_of(world, first))
    world.gpus[gpu]["background_ns"] = took_ns
    from_ns = background.may_run_ns(world, now_ns, gpu, took_ns)
    if from_ns > now_ns:
        lanes.look_again(world, gpu, from_ns)
    return from_ns <= now_ns
