"""Work that is not urgent, and when it may have a GPU: while urgent requests find GPU time elsewhere within their slack.

A request is background while it is due beyond the horizon of the backlog's buckets, about half a second. What waits for
a GPU that runs a long batch is not helped by order, so before background begins it is asked what urgent requests would
find then: in the time that the least patient of them can wait, the GPUs must come free for as long as urgent work will
be asked for in it. So background has no GPUs of its own, and where it runs on several it ends there one after the other.

How much more than what is asked for must be free, for requests do not come evenly, is found by trial: `care`, a factor.
Each urgent request that is answered in time takes a little off it, each that is lost for want of time while background
runs adds `COST` times as much, so about one in COST is lost where background could use the time; and each that is lost
while none runs takes as much off. At most care background stops altogether. What is free and what is asked for is seen
on a cell of neighbouring GPUs, so that a look costs the same in a large cluster.
"""

from __future__ import annotations

from cwd.core import price
from cwd.core.price import DEMAND_BITS
from cwd.core.world import BUCKET_BITS, BUCKETS, GPU_UP
from cwd.jit import inner_kernel, lean_kernel

#: urgent answers in time that make up for one request lost
COST = 550
#: a factor of 1, in units of what one answer takes off; the least factor; and how much care on top of it stops background
CARE_ONE = 1 << 15
CARE_LEAST, CARE_MAX = CARE_ONE * 5 // 8, 2 * CARE_ONE
#: so long without an urgent request, and background may run everywhere
QUIET_NS = 1_000_000_000
#: a longer slack than the least seen is believed by and by: 1 / 2**SLACK_BITS of the difference with each request
SLACK_BITS = 8
#: who can wait less than 1 / 2**PATIENT_BITS of the time that it takes cannot wait
PATIENT_BITS = 4
#: GPUs that are looked at together
CELL = 32
#: soonest look at a GPU again, and latest
LOOK_MIN_NS, LOOK_MAX_NS = 50_000, 2_000_000


@inner_kernel
def is_background(now_ns, due_ns):
    """Whether a request with that due time is not urgent."""
    return due_ns - now_ns > BUCKETS << BUCKET_BITS


@lean_kernel
def patient(slack_ns, need_ns):
    """Whether a request that takes so long can wait at all: who cannot is lost as soon as anything else runs."""
    return slack_ns > need_ns >> PATIENT_BITS


@inner_kernel
def asked(world, now_ns, r, each_ns):
    """Urgent request `r` came, which would take so much time in the batch that fills at its model's rate."""
    counters, request = world.counters[0], world.requests[r]
    slack_ns = request["due_ns"] - now_ns - request["need_ns"]
    if patient(slack_ns, request["need_ns"]):
        counters["slack_ns"] = followed_ns(counters["slack_ns"], slack_ns)
        counters["urgent_ns"] = price.faded_ns(counters["urgent_ns"], now_ns - counters["urgent_asked_ns"]) + each_ns
        counters["urgent_asked_ns"] = now_ns


@lean_kernel
def followed_ns(least_ns, slack_ns):
    """The least slack of late, one more seen: down at once, up by and by; 0: none seen yet."""
    if least_ns == 0 or slack_ns < least_ns:
        return slack_ns
    return least_ns + (slack_ns - least_ns >> SLACK_BITS)


@inner_kernel
def may_run_ns(world, now_ns, gpu, took_ns):
    """From when on background may have the GPU for so long: <= now_ns if at once, else when it should be asked again."""
    counters = world.counters[0]
    if now_ns - counters["background_urgent_ns"] >= QUIET_NS:
        return now_ns
    if counters["background_care"] >= CARE_MAX:
        return now_ns + LOOK_MAX_NS
    until_ns = now_ns + counters["slack_ns"]
    first = gpu - gpu % CELL
    up, busy, supply_ns = 0, 0, 0
    for g in range(first, min(first + CELL, len(world.gpus))):
        if world.gpus[g]["state"] == GPU_UP:
            free_ns = max(now_ns, world.lanes[2 * g]["available_ns"]) + (took_ns if g == gpu else 0)
            supply_ns += max(until_ns - free_ns, 0)
            up += 1
            busy += 1 if free_ns > now_ns else 0
    demand_ns = price.faded_ns(counters["urgent_ns"], now_ns - counters["urgent_asked_ns"]) * up // counters["gpus_up"]
    demand_ns = (demand_ns >> 10) * counters["slack_ns"] >> DEMAND_BITS - 10
    short_ns = demand_ns * (CARE_LEAST + counters["background_care"]) // CARE_ONE - supply_ns
    # while time passes, no more comes free than what is busy now
    return now_ns + min(max(short_ns // busy, LOOK_MIN_NS), LOOK_MAX_NS) if short_ns > 0 else now_ns


@inner_kernel
def waits(world, gpu):
    """Whether background waits for the GPU, so that none of its time is to spare, and so short that urgent requests can
    wait twice as long: then they may as well wait for each other."""
    background_ns = world.gpus[gpu]["background_ns"]
    return 0 < 2 * background_ns < world.counters[0]["slack_ns"]


@inner_kernel
def begins(world, a):
    """Action `a` is background."""
    world.actions[a]["background"] = 1
    world.counters[0]["background_runs"] += 1


@inner_kernel
def ends(world, a):
    """Action `a` has ended, whatever it was."""
    world.counters[0]["background_runs"] -= world.actions[a]["background"]
    world.actions[a]["background"] = 0


@inner_kernel
def crowded(world, now_ns, r):
    """Urgent request `r` is lost for want of time."""
    counters, request = world.counters[0], world.requests[r]
    counters["background_urgent_ns"] = now_ns
    # what its model has to be loaded for, or what came with no time to wait, is not lost because of background
    hopeful = patient(request["due_ns"] - request["arrival_ns"] - request["need_ns"], request["need_ns"])
    if world.models[request["model"]]["copies_ready"] > 0 and hopeful:
        # what is lost without background too is not lost by it
        care = counters["background_care"] + (COST if counters["background_runs"] > 0 else -COST)
        counters["background_care"] = min(max(care, 0), CARE_MAX)


@inner_kernel
def relieved(world, now_ns):
    """An urgent request was answered in time."""
    counters = world.counters[0]
    counters["background_urgent_ns"] = now_ns
    counters["background_care"] = max(counters["background_care"] - 1, 0)
