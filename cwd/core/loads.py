"""Which models to load: their unserved demand, whether a LOAD would come in time, making room, and the plan."""

from __future__ import annotations

from cwd.core import actions, lanes, ordered, queues, residency, worth
from cwd.core.admission import want
from cwd.core.presets import BY_RECENT
from cwd.core.queues import COPIES_LOOK, load_need_ns
from cwd.core.world import (
    COPY_LOADING, COPY_READY, FOREVER_NS, GPU_UP, LANE_EXEC, LANE_LOAD, MODEL_READY, NONE,
)
from cwd.jit import inner_kernel

#: most requests of a queue that are asked whether a LOAD would save them
SAVED_LOOK = 4
#: most models that one look at one GPU considers loading
LOADS_LOOK = 16
#: as published: what a GPU is good for, their default SLO; and what it is always believed to have to do
CAPACITY_NS, OUTSTANDING_NS = 100_000_000, 1_000_000


@inner_kernel
def horizon_ns(world, m):
    """How long a model's GPUs may be busy before another copy is worth a LOAD: its head's SLO, or the configured one."""
    horizon = world.settings[0]["load_horizon_ns"]
    head = world.models[m]["queue_head"]
    if head != NONE and world.requests[head]["slo_ns"] < horizon:
        horizon = world.requests[head]["slo_ns"]
    return horizon


@inner_kernel
def busy_ns(world, now_ns, m):
    """How long the least busy GPU that has or loads the model is busy; FOREVER_NS if none has it."""
    best_ns = FOREVER_NS
    copy = world.models[m]["copies"]
    last = copy
    for _ in range(COPIES_LOOK):
        if copy == NONE:
            break
        row = world.copies[copy]
        gpu = row["gpu"]
        if world.gpus[gpu]["state"] == GPU_UP and (row["state"] == COPY_READY or row["state"] == COPY_LOADING):
            free_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC) - now_ns + world.gpus[gpu]["backlog_ns"]
            if free_ns < best_ns:
                best_ns = free_ns
        copy = row["next"]
        if copy == last:
            break
    return best_ns


@inner_kernel
def missed(world, now_ns, m):
    """Whether a request was refused lately that another copy would have saved, and none has been loaded since."""
    model = world.models[m]
    return (model["state"] == MODEL_READY and model["missed_ns"] > 0
            and now_ns - model["missed_ns"] <= world.settings[0]["load_horizon_ns"])


@inner_kernel
def demand_ns(world, now_ns, m):
    """Queued work that the model's copies do not serve inside the horizon: all of it if there is no copy.

    The paper's p = d - sum of d_g * capacity / load_g, for the least loaded of the model's GPUs. 0 or less: no LOAD.
    """
    if world.settings[0]["load_order"] == BY_RECENT:
        return published_demand_ns(world, now_ns, m)
    model = world.models[m]
    if model["state"] != MODEL_READY:
        return 0
    if model["queued"] == 0:
        return 1 if missed(world, now_ns, m) else 0
    busy = busy_ns(world, now_ns, m)
    if busy == FOREVER_NS:
        return model["work_ns"] if model["work_ns"] > 0 else 1
    horizon = horizon_ns(world, m)
    if busy <= horizon:
        return 1 if missed(world, now_ns, m) else 0
    # in microseconds, which a priority needs no finer, the product cannot overflow
    return ((model["work_ns"] >> 10) * ((busy - horizon) >> 10) // ((busy >> 10) + 1) << 10) + 1


@inner_kernel
def published_demand_ns(world, now_ns, m):
    """What of a model's demand its GPUs do not serve by the paper's formula, at least 1: their test for 0 never fires."""
    demand_ns, busy = world.models[m]["work_ns"], busy_ns(world, now_ns, m)
    if busy == FOREVER_NS:
        return demand_ns if demand_ns > 0 else 1
    # in microseconds, which an order needs no finer, the product cannot overflow
    busy_us, over_us = (busy + OUTSTANDING_NS) >> 10, (busy + OUTSTANDING_NS - CAPACITY_NS) >> 10
    unserved_ns = (demand_ns >> 10) * over_us // busy_us << 10
    return unserved_ns if unserved_ns > 0 else 1


@inner_kernel
def leeway_ns(world, now_ns, gpu, m):
    """How long the model, loaded on the GPU now, may wait there for its turn so that one of its first requests is in time.

    -1: nobody would be, or the GPU cannot take it. FOREVER_NS: it is for requests that are still to come.
    """
    model = world.models[m]
    if world.prepared[gpu, model["program"]] == 0:
        return -1
    r, left_ns = model["queue_head"], -1
    if (r == NONE or model["copies_count"] > 0) and missed(world, now_ns, m):
        # a further copy for what may come is not worth anybody's place
        spare = world.gpus[gpu]["pages_free"] - world.gpus[gpu]["pages_hidden"]
        if model["copies_count"] == 0 or spare >= model["pages"]:
            left_ns = FOREVER_NS
    elif r != NONE:
        loaded_ns = lanes.available_ns(world, now_ns, gpu, LANE_LOAD) + load_need_ns(world, now_ns, gpu, model["program"])
        for _ in range(SAVED_LOOK):
            request = world.requests[r]
            left_ns = max(left_ns, request["due_ns"] - request["need_ns"] - loaded_ns)
            r = ordered.successor(world.request_nodes, r)
            if r == NONE:
                break
    # the map of copies is large, so it is asked last
    return left_ns if left_ns >= 0 and residency.find(world, m, gpu) == NONE else -1


@inner_kernel
def make_room_and_load(world, now_ns, gpu, m):
    """Evict the least recently used idle copies until the model fits, and load it. Returns 1 if it was, -1: no room.

    If the policy says so, then copies too that have queued requests: those wait for another LOAD.
    """
    model, place = world.models[m], world.gpus[gpu]
    if world.prepared[gpu, model["program"]] == 0 or residency.find(world, m, gpu) != NONE:
        return 0
    if world.settings[0]["spreads"] == 1:
        made = worth.make_room(world, now_ns, gpu, model["pages"], FOREVER_NS)
        if made != 1:
            return made
        world.counters[0]["replicas"] += 1 if model["copies_count"] > 0 else 0
        return actions.issue_load(world, now_ns, gpu, m)
    wanted = 0
    if not residency.could_free(world, gpu, model["pages"], wanted):
        wanted = world.settings[0]["evict_queued"]
        if wanted == 0 or not residency.could_free(world, gpu, model["pages"], wanted):
            return -1
    copy, steps = place["lru_first"], residency.VICTIMS_MAX
    while place["pages_free"] - place["pages_hidden"] < model["pages"]:
        copy = residency.next_victim(world, copy, steps, wanted)
        if copy == NONE:
            return 0
        after = world.copies[copy]["lru_next"]
        if actions.issue_unload(world, now_ns, copy) == 0:
            return 0
        want(world, now_ns, world.copies[copy]["model"])
        copy = after
    if model["copies_count"] > 0:
        world.counters[0]["replicas"] += 1
    return actions.issue_load(world, now_ns, gpu, m)


@inner_kernel
def plan(world, now_ns, gpu):
    """Issue loads, and the unloads that make room, while the GPU's load lane is open: the models wanted most first."""
    settings = world.settings[0]
    m, hasty, too_large = world.counters[0]["wanted_head"], NONE, FOREVER_NS
    # what has just been loaded waits for the execution that runs, and for another
    wait_ns = 2 * world.counters[0]["usual_ns"] if settings["prices"] == 1 else 0
    for _ in range(LOADS_LOOK):
        if m == NONE or lanes.opens_ns(world, now_ns, gpu, LANE_LOAD) > now_ns:
            break
        after = ordered.successor(world.wanted_nodes, m)
        served = settings["replicate"] == 0 and world.models[m]["copies_count"] > 0
        if served or demand_ns(world, now_ns, m) <= 0:
            queues.unlist(world, m)
        elif world.models[m]["pages"] >= too_large:
            # where there is no room for one, there is none for a larger one
            pass
        else:
            left_ns = leeway_ns(world, now_ns, gpu, m) if settings["load_saves"] == 1 else FOREVER_NS
            if left_ns >= wait_ns:
                if make_room_and_load(world, now_ns, gpu, m) < 0:
                    too_large = world.models[m]["pages"]
            elif hasty == NONE and left_ns >= 0:
                hasty = m
        m = after
    if hasty != NONE and lanes.opens_ns(world, now_ns, gpu, LANE_LOAD) <= now_ns:
        make_room_and_load(world, now_ns, gpu, hasty)
