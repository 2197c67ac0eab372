"""Work that is not urgent, and how many GPUs it may have: fewer when it makes urgent requests late, more when it does not.

A request is background while it is due beyond the horizon of the backlog's buckets, about half a second. A batch that is
long for urgent requests must not run everywhere at once, and what waits for a GPU cannot be helped by order. How many
GPUs must stay free follows from nothing that is known beforehand, so it is found: each urgent request answered in time
adds a little to background's share, each refusal for want of time, while background runs, takes one GPU away.
"""

from __future__ import annotations

from cwd.core.world import BUCKET_BITS, BUCKETS
from cwd.jit import inner_kernel

#: a GPU, in the units of the share: a thousand urgent answers in time make up for one refusal
GPU_UNITS = 1000
#: refusals within this time of each other have one cause
CAUSE_NS = 20_000_000


@inner_kernel
def is_background(now_ns, due_ns):
    """Whether a request with that due time is not urgent."""
    return due_ns - now_ns > BUCKETS << BUCKET_BITS


@inner_kernel
def allowed(world, gpu):
    """Whether background may run on the GPU now: it does already, or its share leaves room for one more."""
    if world.gpus[gpu]["background"] > 0:
        return world.counters[0]["background_gpus"] * GPU_UNITS <= world.counters[0]["background_share"]
    return (world.counters[0]["background_gpus"] + 1) * GPU_UNITS <= world.counters[0]["background_share"]


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
    if counters["background_gpus"] == 0 or now_ns - counters["crowded_ns"] < CAUSE_NS:
        return
    counters["crowded_ns"] = now_ns
    share = counters["background_gpus"] * GPU_UNITS
    if share > counters["background_share"]:
        share = counters["background_share"]
    counters["background_share"] = share - GPU_UNITS if share > GPU_UNITS else 0


@inner_kernel
def relieved(world):
    """An urgent request was answered in time."""
    counters = world.counters[0]
    if counters["background_share"] < counters["gpus_up"] * GPU_UNITS:
        counters["background_share"] += 1
