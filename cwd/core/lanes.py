"""The two lanes of a GPU: what is outstanding there, and when each will be free.

A lane is a FIFO of actions with predicted start and end. A result corrects the prediction of what follows it. Also
here: a GPU's timer (its next look at its lanes) and the heap of GPUs by when their load lanes come free.
"""

from __future__ import annotations

from cwd.core import heap
from cwd.core.estimate import margin_ns
from cwd.core.outbox import BROKEN_LANE, broken
from cwd.core.world import (
    FOREVER_NS, GPU_UP, LANE_EXEC, LANE_LOAD, MARGIN_EARLY, MARGIN_LOOK, MARGIN_SEND, NONE,
)
from cwd.jit import inner_kernel


@inner_kernel
def available_ns(world, now_ns, gpu, lane):
    """When an action sent now could start."""
    soonest = now_ns + margin_ns(world, now_ns, world.gpus[gpu]["kind"], MARGIN_SEND)
    predicted = world.lanes[2 * gpu + lane]["available_ns"]
    return predicted if predicted > soonest else soonest


@inner_kernel
def ahead_ns(world, now_ns, gpu, lane):
    """How long before a lane comes free the next action is sent, so that the lane never waits.

    The way to the worker; of an execution, no longer than it must be, how late the host looks and how much earlier than
    expected executions end: what is decided later is decided knowing more.
    """
    settings, kind = world.settings[0], world.gpus[gpu]["kind"]
    way_ns = margin_ns(world, now_ns, kind, MARGIN_SEND)
    if lane != LANE_EXEC:
        return settings["load_ahead_ns"] + way_ns
    return (settings["schedule_ahead_ns"] + way_ns + margin_ns(world, now_ns, kind, MARGIN_LOOK)
            + margin_ns(world, now_ns, kind, MARGIN_EARLY))


@inner_kernel
def opens_ns(world, now_ns, gpu, lane):
    """From when on the lane takes another action: <= now_ns if it is open, FOREVER_NS if only a result can open it."""
    row = world.lanes[2 * gpu + lane]
    if row["count"] == 0:
        return now_ns
    settings = world.settings[0]
    head = world.actions[row["first"]]
    if row["count"] >= settings["lane_depth"]:
        return FOREVER_NS
    if now_ns > head["end_ns"] + head["expected_ns"] + settings["stuck_ns"]:
        return FOREVER_NS
    # when an execution whose length depends on its data will be over is not known before it is
    if lane == LANE_EXEC and world.programs[head["program"]]["dynamic"] == 1:
        return FOREVER_NS
    return row["available_ns"] - ahead_ns(world, now_ns, gpu, lane)


@inner_kernel
def append(world, now_ns, a):
    """Put action `a` at the end of its lane and predict its start and end."""
    action = world.actions[a]
    gpu, lane = action["gpu"], action["lane"]
    row = world.lanes[2 * gpu + lane]
    action["idle"] = 1 if row["count"] == 0 else 0
    action["start_ns"] = available_ns(world, now_ns, gpu, lane)
    at_once = action["idle"] == 1 and world.settings[0]["begins_at_once"] == 1
    action["end_ns"] = (now_ns if at_once else action["start_ns"]) + action["expected_ns"]
    action["lane_next"] = NONE
    action["lane_previous"] = row["last"]
    if row["last"] == NONE:
        row["first"] = a
    else:
        world.actions[row["last"]]["lane_next"] = a
    row["last"] = a
    row["count"] += 1
    row["available_ns"] = action["end_ns"]
    if lane == LANE_LOAD:
        rank_load_lane(world, gpu)


@inner_kernel
def remove(world, a, end_ns):
    """Take action `a` out of its lane; what follows the head is predicted anew from `end_ns`."""
    action = world.actions[a]
    gpu = action["gpu"]
    row = world.lanes[2 * gpu + action["lane"]]
    after, previous = action["lane_next"], action["lane_previous"]
    if previous == NONE:
        row["first"] = after
    else:
        world.actions[previous]["lane_next"] = after
        end_ns = world.actions[previous]["end_ns"]
    if after == NONE:
        row["last"] = previous
    else:
        world.actions[after]["lane_previous"] = previous
    row["count"] -= 1
    if row["count"] < 0:
        broken(world, BROKEN_LANE)
    while after != NONE:
        follower = world.actions[after]
        follower["start_ns"] = end_ns
        end_ns += follower["expected_ns"]
        follower["end_ns"] = end_ns
        after = follower["lane_next"]
    row["available_ns"] = end_ns
    if action["lane"] == LANE_LOAD:
        rank_load_lane(world, gpu)


@inner_kernel
def rank_load_lane(world, gpu):
    """Keep the heap of load lanes in order; a GPU that takes no work is not in it."""
    counters = world.counters[0]
    if world.gpus[gpu]["state"] == GPU_UP:
        key = world.lanes[2 * gpu + LANE_LOAD]["available_ns"]
        counters["loads_count"] = heap.put(world.load_lanes, counters["loads_count"], gpu, key)
    else:
        counters["loads_count"] = heap.drop(world.load_lanes, counters["loads_count"], gpu)


@inner_kernel
def set_timer(world, timer, at_ns):
    """Arm timer `timer` (FOREVER_NS: disarm it)."""
    counters = world.counters[0]
    if at_ns == FOREVER_NS:
        counters["timers_count"] = heap.drop(world.timers, counters["timers_count"], timer)
    else:
        counters["timers_count"] = heap.put(world.timers, counters["timers_count"], timer, at_ns)


@inner_kernel
def wake(world, gpu):
    """Have the next tick plan for this GPU."""
    row = world.gpus[gpu]
    if row["dirty"] == 0 and row["state"] == GPU_UP:
        counters = world.counters[0]
        row["dirty"] = 1
        row["dirty_next"] = NONE
        if counters["dirty_last"] == NONE:
            counters["dirty_first"] = gpu
        else:
            world.gpus[counters["dirty_last"]]["dirty_next"] = gpu
        counters["dirty_last"] = gpu


@inner_kernel
def next_dirty(world):
    """Take the next GPU to plan for off the list, or -1."""
    counters = world.counters[0]
    gpu = counters["dirty_first"]
    if gpu != NONE:
        row = world.gpus[gpu]
        row["dirty"] = 0
        counters["dirty_first"] = row["dirty_next"]
        if row["dirty_next"] == NONE:
            counters["dirty_last"] = NONE
    return gpu


@inner_kernel
def look_again(world, gpu, at_ns):
    """Have the policy look at the GPU at a time of its own, if nothing brings it there before."""
    if at_ns < world.gpus[gpu]["look_ns"]:
        world.gpus[gpu]["look_ns"] = at_ns


@inner_kernel
def arm(world, now_ns, gpu):
    """Set the GPU's timer to when a lane opens for which there may be work, or to when the policy wants to look.

    An open lane has been looked at.
    """
    at_ns = FOREVER_NS
    if world.gpus[gpu]["state"] == GPU_UP:
        look_ns = world.gpus[gpu]["look_ns"]
        if look_ns > now_ns:
            at_ns = look_ns
        if world.gpus[gpu]["ready_root"] != NONE:
            opens = opens_ns(world, now_ns, gpu, LANE_EXEC)
            if now_ns < opens < at_ns:
                at_ns = opens
        if world.counters[0]["wanted_root"] != NONE:
            opens = opens_ns(world, now_ns, gpu, LANE_LOAD)
            if now_ns < opens < at_ns:
                at_ns = opens
    set_timer(world, world.settings[0]["gpu_timer"] + gpu, at_ns)
