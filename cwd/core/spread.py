"""Further copies of busy models, before they are needed: one queue that many GPUs serve is served in time by those at hand.

Of the models that run in each few milliseconds the one with the most work per copy gets another, on the GPU that has
least to do of those with idle load lanes: where there is room, or where it is worth twice what has to leave (worth.py).
So a spread LOAD is in nobody's way, and a model that has become busy is everywhere after a few dozen executions.
"""

from __future__ import annotations

from cwd.core import actions, lanes, memory, residency, worth
from cwd.core.queues import COPIES_LOOK
from cwd.core.world import FOREVER_NS, LANE_EXEC, LANE_LOAD, MODEL_READY, NONE
from cwd.jit import inner_kernel

#: how long models are compared before one of them is spread
COMPARED_NS = 4_000_000
#: what a copy must be worth to take another's place, as a multiple of what that is worth
GAIN = 2
#: a model with less work per copy than this is not worth a LOAD: a thousandth of a GPU
WORK_MIN_NS = 12_000_000


@inner_kernel
def ran(world, now_ns, m, took_ns):
    """A model was given an execution: note its work, and spread the one that needs it most, now and then."""
    memory.worked(world, now_ns, m, took_ns)
    counters, model = world.counters[0], world.models[m]
    best = counters["spread_model"]
    if model["copies_count"] < counters["gpus_up"] and per_copy_ns(world, m) > WORK_MIN_NS and (
            best == NONE or per_copy_ns(world, m) > per_copy_ns(world, best)):
        counters["spread_model"] = m
    if now_ns - counters["spread_ns"] >= COMPARED_NS and counters["spread_model"] != NONE:
        best = counters["spread_model"]
        counters["spread_model"] = NONE
        counters["spread_ns"] = now_ns
        if world.models[best]["state"] == MODEL_READY and world.models[best]["copies_count"] > 0:
            _spread(world, now_ns, best)


@inner_kernel
def per_copy_ns(world, m):
    """A model's work per copy, as of when it last ran."""
    copies = world.models[m]["copies_count"]
    return world.memory[m]["work_ns"] // (copies if copies > 0 else 1)


@inner_kernel
def target(world, now_ns, m):
    """The GPU for another copy of the model, of a few with idle load lanes: with room rather than without, then with least
    to do; -1 if there is none."""
    best, best_room, best_ns = NONE, 0, FOREVER_NS
    looks = world.counters[0]["loads_count"]
    for i in range(looks if looks < COPIES_LOOK else COPIES_LOOK):
        gpu = world.load_lanes[i]["id"]
        place = world.gpus[gpu]
        if (world.lanes[2 * gpu + LANE_LOAD]["count"] > 0 or world.prepared[gpu, world.models[m]["program"]] == 0
                or place["pages_total"] < world.models[m]["pages"] or residency.find(world, m, gpu) != NONE):
            continue
        room = 1 if place["pages_free"] - place["pages_hidden"] >= world.models[m]["pages"] else 0
        free_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC) + place["backlog_ns"]
        if room > best_room or (room == best_room and free_ns < best_ns):
            best, best_room, best_ns = gpu, room, free_ns
    return best


@inner_kernel
def _spread(world, now_ns, m):
    """Load another copy of the model, if a GPU can take it."""
    gpu = target(world, now_ns, m)
    if gpu == NONE:
        return
    limit = worth.of_another(world, now_ns, gpu, m) // GAIN
    if worth.make_room(world, now_ns, gpu, world.models[m]["pages"], limit) == 1:
        world.counters[0]["replicas"] += actions.issue_load(world, now_ns, gpu, m)
