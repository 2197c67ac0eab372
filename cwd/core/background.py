"""Work that is not urgent, and when it may have a GPU: while urgent requests find GPU time elsewhere within their slack.

A request is background while it is due beyond the horizon of the backlog's buckets, about half a second. What waits for
a GPU that runs a long batch is not helped by order, so before background begins it is asked what urgent requests would
find then: for as long as urgent work will be asked for, the GPUs must come free, within a time half way between what the
least patient can wait and what the batch takes. In less it is not seen for how long the GPU is away; in more those GPUs
count that come free too late for who comes first. So background has no GPUs of its own, and where it runs on several it
ends there one after the other.

How much more than what is asked for must be free, for requests do not come evenly, is found by trial: `care`, a factor.
Each urgent request that is answered in time takes a little off it, each that is lost for want of time, and had background
on some GPU while it waited, adds `COST` times as much, so about one in COST is lost where background could use the time;
and each that is lost without takes as much off. At most care background stops altogether. What is free and what is asked
for is seen on a cell of neighbouring GPUs, so that a look costs the same in a large cluster.

Requests that an idle GPU could not answer in time ask for nothing here, and nothing is learned from their loss, though some
are let in where it is doubted that they take so long (estimate.py).
"""

from __future__ import annotations

from cwd.core import price
from cwd.core.estimate import exec_row, margin_ns
from cwd.core.price import DEMAND_BITS
from cwd.core.world import BUCKET_BITS, BUCKETS, GPU_UP, MARGIN_END, MARGIN_SEND, NONE
from cwd.jit import inner_kernel, lean_kernel

#: urgent answers in time that make up for one request lost
COST = 550
#: a factor of 1, in units of what one answer takes off; the least factor; how much care on top of it stops background
CARE_ONE = 1 << 15
CARE_LEAST, CARE_MAX = CARE_ONE * 3 // 4, 2 * CARE_ONE
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
    if _hopeful(world, now_ns, r):
        counters["slack_ns"] = followed_ns(counters["slack_ns"], request["due_ns"] - now_ns - request["need_ns"])
        counters["urgent_ns"] = price.faded_ns(counters["urgent_ns"], now_ns - counters["urgent_asked_ns"]) + each_ns
        counters["urgent_asked_ns"] = now_ns


@inner_kernel
def _hopeful(world, now_ns, r):
    """Whether request `r` could wait when it came, by the last execution of its program that was measured alone, too: where
    nobody can be in time the estimates are doubted, and the doubt makes nobody hopeful."""
    request = world.requests[r]
    model = world.models[request["model"]]
    gpu, needed_ns = request["home"], request["need_ns"]
    if gpu == NONE and model["copies"] != NONE:
        gpu = world.copies[model["copies"]]["gpu"]
    if gpu != NONE:
        kind = world.gpus[gpu]["kind"]
        row = world.estimates[exec_row(world, model["program"], kind, 0, request["size_class"])]
        alone_ns = row["own_ns"] if row["own_ns"] > 0 else row["profiled_ns"]
        alone_ns += margin_ns(world, now_ns, kind, MARGIN_END) + margin_ns(world, now_ns, kind, MARGIN_SEND)
        needed_ns = max(needed_ns, alone_ns)
    return patient(request["due_ns"] - request["arrival_ns"] - needed_ns, needed_ns)


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
    window_ns = (counters["slack_ns"] + took_ns) // 2
    until_ns = now_ns + window_ns
    first = gpu - gpu % CELL
    up, busy, supply_ns = 0, 0, 0
    for g in range(first, min(first + CELL, len(world.gpus))):
        if world.gpus[g]["state"] == GPU_UP:
            free_ns = max(now_ns, world.lanes[2 * g]["available_ns"]) + (took_ns if g == gpu else 0)
            supply_ns += max(until_ns - free_ns, 0)
            up += 1
            busy += 1 if free_ns > now_ns else 0
    demand_ns = price.faded_ns(counters["urgent_ns"], now_ns - counters["urgent_asked_ns"]) * up // counters["gpus_up"]
    demand_ns = (demand_ns >> 10) * window_ns >> DEMAND_BITS - 10
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
    counters, action = world.counters[0], world.actions[a]
    action["background"] = 1
    counters["background_runs"] += 1
    counters["background_until_ns"] = max(counters["background_until_ns"], action["end_ns"])


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
    if world.models[request["model"]]["copies_ready"] > 0 and _hopeful(world, now_ns, r):
        # what is lost without background too is not lost by it
        ran = counters["background_runs"] > 0 or counters["background_until_ns"] > request["arrival_ns"]
        care = counters["background_care"] + (COST if ran else -COST)
        counters["background_care"] = min(max(care, 0), CARE_MAX)


@inner_kernel
def relieved(world, now_ns):
    """An urgent request was answered in time."""
    counters = world.counters[0]
    counters["background_urgent_ns"] = now_ns
    counters["background_care"] = max(counters["background_care"] - 1, 0)
