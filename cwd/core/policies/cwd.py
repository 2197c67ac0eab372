"""cwd's own: earliest latest start with room to spare, densest batch under overload, background kept off some GPUs.

Without overload the model whose head must start first goes first, in the densest batch that keeps its deadline. While
the GPU turns requests away, the densest batch of its most urgent models goes first, past heads that it would make late,
and only those are taken in who join a batch or can wait for one to fill at their model's rate (admission.py). Work
that is due beyond half a second runs where nothing urgent can, on as many GPUs as urgent requests can spare
(background.py), and is never compared with urgent work.
Programs whose executions depend on data (histograms.py) are served in sets of requests that belong together (sets.py).
Sources: Clockwork (OSDI'20) for windows and the timeline, Shepherd (NSDI'23) for density under overload, Symphony for
batches that wait; ours are exact margins, refusal at arrival by marginal cost, a share found by feedback, and sets scored
by the exact latency of their applications, where Orloj scores requests.
"""

from __future__ import annotations

from cwd.core import background, batches, lanes, ready, residency, sets
from cwd.core.admission import pressed
from cwd.core.world import LANE_EXEC, NONE
from cwd.jit import inner_kernel

#: how long until a GPU that may not run background looks again whether it may
LOOK_NS = 2_000_000


@inner_kernel
def next_batch(world, gpu, now_ns):
    """(copy, first request, batch index, rows); copy -1: nothing now."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    copy = ready.most_urgent(world, now_ns, gpu)
    if copy != NONE and dynamic(world, copy):
        return _as_set(world, now_ns, gpu, copy, start_ns)
    if pressed(world, now_ns, gpu):
        if copy != NONE and ready.urgent(world, now_ns, copy):
            copy, first, b, rows = ready.best(world, now_ns, gpu, batches.DENSEST)
            if copy != NONE:
                return copy, first, b, rows
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
def dynamic(world, copy):
    """Whether how long the model's executions take depends on data."""
    return world.programs[world.models[world.copies[copy]["model"]]["program"]]["dynamic"] == 1


@inner_kernel
def _as_set(world, now_ns, gpu, copy, start_ns):
    """The best set of the requests of a model whose executions depend on data, if it is urgent or background may run."""
    if not ready.urgent(world, now_ns, copy) and not background.allowed(world, now_ns, gpu):
        lanes.look_again(world, gpu, now_ns + LOOK_NS)
        return NONE, NONE, NONE, 0
    m = world.copies[copy]["model"]
    sets.give_up(world, now_ns, gpu, m, start_ns)
    if world.models[m]["queue_head"] != NONE:
        b, rows = sets.propose(world, now_ns, gpu, m, start_ns)
        if b != NONE:
            return copy, sets.pick(world), b, rows
    # nothing of it can be in time here; it comes back with its next head or arrival
    residency.deactivate(world, copy)
    lanes.look_again(world, gpu, now_ns + 1)
    return NONE, NONE, NONE, 0


@inner_kernel
def _background(world, now_ns, gpu):
    """The densest batch of what is not urgent, if the GPU may run it."""
    if not background.allowed(world, now_ns, gpu):
        lanes.look_again(world, gpu, now_ns + LOOK_NS)
        return NONE, NONE, NONE, 0
    return ready.best(world, now_ns, gpu, batches.DENSEST)
