"""Work that is not urgent, and how many GPUs it may have: as many as cost at most two urgent requests in a thousand.

A request is background while it is due beyond the horizon of the backlog's buckets, about half a second. A batch that is
long for urgent requests must not run everywhere at once, and what waits for a GPU cannot be helped by order. How many
GPUs must stay free follows from nothing that is known beforehand, so it is tried. A credit grows with each urgent request
that is answered in time and shrinks with each that is refused for want of time while background runs; when it is used
up, background loses a GPU. After a while it gets one more on trial, with little credit, and each trial that fails makes
the next one wait twice as long. Whole GPUs, since what urgent requests lose grows by leaps: a share between the last
number that costs nothing and the first that costs too much would be the second one for part of the time.
"""

from __future__ import annotations

from cwd.core.world import BUCKET_BITS, BUCKETS
from cwd.jit import inner_kernel

#: urgent answers in time that make up for one refusal
COST = 500
#: most credit: what forty refusals cost; on trial, three; with one GPU less, ten
CREDIT_MAX, CREDIT_TRIAL, CREDIT_NEW = 40 * COST, 3 * COST, 10 * COST
#: how long background keeps a number of GPUs before it gets one more; where that was too many before, at first and at last
HOLD_NS, HOLD_FAILED_NS, HOLD_MAX_NS = 1_000_000_000, 8_000_000_000, 128_000_000_000
#: after it has lost one: how long refusals are still for what ran before
SETTLE_NS = 100_000_000
#: so long without an urgent request, and background has all GPUs
QUIET_NS = 1_000_000_000


@inner_kernel
def is_background(now_ns, due_ns):
    """Whether a request with that due time is not urgent."""
    return due_ns - now_ns > BUCKETS << BUCKET_BITS


@inner_kernel
def joined(world):
    """A GPU has come, free for background until that is seen to cost too much."""
    counters = world.counters[0]
    counters["background_level"] += 1
    counters["background_credit"] = CREDIT_NEW


@inner_kernel
def allowed(world, now_ns, gpu):
    """Whether background may run on the GPU now: it does already, there is room for one more, or nothing is urgent."""
    counters = world.counters[0]
    if now_ns - counters["background_urgent_ns"] >= QUIET_NS:
        return True
    if counters["background_level"] < counters["gpus_up"] and now_ns >= counters["background_raise_ns"]:
        # only if urgent requests have not lost by what it has; those who have none any more lose nothing
        if (counters["background_credit"] >= CREDIT_TRIAL
                or now_ns - counters["background_raise_ns"] >= HOLD_MAX_NS):
            _try_more(world, now_ns)
    more = 0 if world.gpus[gpu]["background"] > 0 else 1
    return counters["background_gpus"] + more <= counters["background_level"]


@inner_kernel
def _try_more(world, now_ns):
    counters = world.counters[0]
    if counters["background_trial"] == 1 and counters["background_level"] >= counters["background_failed"]:
        # what had failed succeeds now
        counters["background_hold_ns"] = 0
    counters["background_trial"] = 1
    counters["background_level"] += 1
    if counters["background_credit"] > CREDIT_TRIAL:
        counters["background_credit"] = CREDIT_TRIAL
    _hold(world, now_ns)


@inner_kernel
def _hold(world, now_ns):
    """Set when background gets another GPU: soon, unless that was too many before."""
    counters = world.counters[0]
    again = counters["background_level"] + 1 == counters["background_failed"]
    counters["background_raise_ns"] = now_ns + (counters["background_hold_ns"] if again else HOLD_NS)


@inner_kernel
def begins(world, a):
    """Action `a` is background."""
    place = world.gpus[world.actions[a]["gpu"]]
    world.actions[a]["background"] = 1
    place["background"] += 1
    if place["background"] == 1:
        world.counters[0]["background_gpus"] += 1


@inner_kernel
def ends(world, a):
    """Action `a` has ended, whatever it was."""
    if world.actions[a]["background"] == 0:
        return
    place = world.gpus[world.actions[a]["gpu"]]
    world.actions[a]["background"] = 0
    place["background"] -= 1
    if place["background"] == 0:
        world.counters[0]["background_gpus"] -= 1


@inner_kernel
def crowded(world, now_ns):
    """An urgent request was refused or given up for want of time."""
    counters = world.counters[0]
    counters["background_urgent_ns"] = now_ns
    if counters["background_gpus"] == 0 or now_ns - counters["background_yield_ns"] < SETTLE_NS:
        return
    counters["background_credit"] -= COST
    if counters["background_credit"] < 0:
        _yield_one(world, now_ns)


@inner_kernel
def _yield_one(world, now_ns):
    counters = world.counters[0]
    if counters["background_trial"] == 0 and counters["background_gpus"] < counters["background_level"]:
        # it had more than it used
        counters["background_level"] = counters["background_gpus"]
    hold_ns = counters["background_hold_ns"] << counters["background_trial"]
    counters["background_hold_ns"] = min(max(hold_ns, HOLD_FAILED_NS), HOLD_MAX_NS)
    counters["background_failed"] = counters["background_level"]
    if counters["background_level"] > 0:
        counters["background_level"] -= 1
    counters["background_trial"], counters["background_yield_ns"] = 0, now_ns
    counters["background_credit"] = CREDIT_NEW
    _hold(world, now_ns)


@inner_kernel
def relieved(world, now_ns):
    """An urgent request was answered in time."""
    counters = world.counters[0]
    counters["background_urgent_ns"] = now_ns
    if counters["background_credit"] < CREDIT_MAX:
        counters["background_credit"] += 1
