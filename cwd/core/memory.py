"""What policies remember of a model: how fast requests come and how many are lost, what its batches took, whom it passed over.

Only kept where a policy asks for it."""

from __future__ import annotations

from cwd.core import ordered, price
from cwd.core.world import NONE
from cwd.jit import inner_kernel, lean_kernel

#: the gap between arrivals follows each new one by 1 / 2**GAP_BITS, as shares of requests do, which are in parts of ONE
GAP_BITS, ONE = 5, 1 << 16
#: 2**33 ns: the half-life of work done, 8.6 s
WORK_BITS = 33
#: it fades in so many steps per half-life, each of 8.4 ms
_STEP_BITS = 10
_AGE_BITS = WORK_BITS - _STEP_BITS


@inner_kernel
def forget(world, m):
    """A model is new in its slot."""
    row = world.memory[m]
    row["arrived_ns"] = row["gap_ns"] = row["slo_ns"] = row["limit"] = row["small_ns"] = row["large_ns"] = 0
    row["passed_key"] = row["passed_tie"] = 0
    row["used"] = m
    row["work_ns"] = row["faded_ns"] = row["owed"] = row["soon"] = row["waited_ns"] = row["lost"] = 0


@inner_kernel
def arrived(world, now_ns, r):
    """Request `r` came."""
    request = world.requests[r]
    row = world.memory[request["model"]]
    gap_ns = now_ns - row["arrived_ns"]
    if row["arrived_ns"] == 0:
        gap_ns = request["slo_ns"]
    else:
        most_ns = worth_ns(world, request["model"])
        row["soon"] += ((ONE if gap_ns < most_ns else 0) - row["soon"]) >> GAP_BITS
        row["waited_ns"] += ((gap_ns if gap_ns < most_ns else most_ns) - row["waited_ns"]) >> GAP_BITS
    if row["gap_ns"] == 0:
        row["gap_ns"] = gap_ns
    else:
        row["gap_ns"] += (gap_ns - row["gap_ns"]) >> GAP_BITS
    row["arrived_ns"] = now_ns
    row["slo_ns"] = request["slo_ns"]


@inner_kernel
def worth_ns(world, m):
    """How long a GPU may wait for one more request of the model: the time that goes by for each that is served, shared by
    the model's GPUs, of which only one gets it."""
    copies = world.models[m]["copies_ready"]
    return price.each_ns(world) // (copies if copies > 0 else 1)


@inner_kernel
def ended(world, m, in_time):
    """A request of the model was answered in time (1), or was refused or given up for want of time (0)."""
    row = world.memory[m]
    row["lost"] += ((0 if in_time == 1 else ONE) - row["lost"]) >> GAP_BITS


@inner_kernel
def loses(world, m):
    """Whether more than one of the model's requests was lost of late."""
    return world.memory[m]["lost"] > ONE >> GAP_BITS


@lean_kernel
def work_ns(world, now_ns, m):
    """GPU time that the model was given, each piece counting half as much after a half-life: 12 to 17 s of its mean."""
    row = world.memory[m]
    age_ns = now_ns - row["faded_ns"]
    halvings = age_ns >> WORK_BITS
    if halvings > 60:
        return 0
    left = row["work_ns"] >> halvings
    steps = (age_ns >> _AGE_BITS) & ((1 << _STEP_BITS) - 1)
    # evenly from one halving to the next
    return left - ((left * steps) >> (_STEP_BITS + 1))


@lean_kernel
def worked(world, now_ns, m, took_ns):
    """The model was given so much GPU time."""
    row = world.memory[m]
    row["work_ns"] = work_ns(world, now_ns, m) + took_ns
    # by whole steps, or what comes often would never fade
    row["faded_ns"] += (now_ns - row["faded_ns"]) >> _AGE_BITS << _AGE_BITS


@inner_kernel
def gap_ns(world, now_ns, m):
    """Time between two requests of a model, at least 1; while none comes it grows with the silence."""
    row = world.memory[m]
    silent_ns = now_ns - row["arrived_ns"]
    gap = row["gap_ns"] if row["gap_ns"] > silent_ns else silent_ns
    return gap if gap > 0 else 1


@inner_kernel
def use(world, m):
    """The model is used: more recently than all others. A model never used is as recent as its slot is high."""
    counters = world.counters[0]
    counters["sequence"] += 1
    world.memory[m]["used"] = len(world.models) + counters["sequence"]


@inner_kernel
def first_left(world, m):
    """The model's first request that was not passed over; -1 if there is none."""
    row = world.memory[m]
    return ordered.at_least(world.request_nodes, world.models[m]["queue_root"], row["passed_key"], row["passed_tie"])


@inner_kernel
def pass_over(world, now_ns, m, first):
    """Pass over who waits before request `first` (-1: all): they wait for their replies alone. The order is of arrival."""
    row, node = world.memory[m], world.request_nodes[first]
    if first == NONE:
        row["passed_key"], row["passed_tie"] = now_ns, world.counters[0]["sequence"] + 1
    else:
        row["passed_key"], row["passed_tie"] = node["key"], node["tie"]
