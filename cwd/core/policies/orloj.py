"""Orloj (arXiv 2209.00159), reconstructed: priorities from distributions of batch latency, per application.

A request's score in a batch size is what is lost on average by not running it now but when the next chance comes, per
time on the GPU: each outcome of the batch's latency counts with its chance, halved for each HALF_LIFE_BITS of slack
that it leaves, and not at all once it is too late. Of a model's requests those are candidates whose batch would be in
time on average (alone: possibly). The largest size that can be filled with candidates is taken, with the best scores;
of the models the one with the largest sum runs.
As published, a worker gets its next batch when the last one is over, where durations scatter; and who could not be in
time even if alone and as quick as its application has ever been is given up when the lane opens.
Departures: the paper's text was not at hand, this follows its abstract and what others say of it; solo times are not
measured by running requests again alone, but inferred from batches (histograms.py); scores are computed when a lane
opens, not kept in hulls with milestones; the chance to run next is a constant half-life; a batch has one size class,
that of its first candidate; a model's first 32 requests and a GPU's 24 most urgent models are looked at, fewer models
where queues are deep; while durations do not scatter, the next batch goes out a little before the last one should be over.
"""

from __future__ import annotations

from cwd.core import batches, histograms, lanes, ordered, ready, sets
from cwd.core.estimate import exec_row
from cwd.core.world import LANE_EXEC, NONE
from cwd.jit import inner_kernel, lean_kernel

#: requests of a model that are looked at
LOOK = 32
#: and of all models of a GPU together: where queues are deep, fewer models are compared
LOOKS_MAX = 192
#: what giving one up costs in looks
GIVE_UP_LOOKS = 4
#: 2**30 ns: slack that halves the value of running now
HALF_LIFE_BITS = 30


@lean_kernel
def score(odds, profiled_ns, slack_ns):
    """The value of running now with `slack_ns` from start to deadline: chances times decay, per microsecond."""
    value = 0
    for j in range(odds["count"]):
        latency_ns = odds["stretches"][j] * profiled_ns // histograms.STRETCH
        value += odds["chances"][j] * sets.decayed(slack_ns - latency_ns, HALF_LIFE_BITS)
    return value // ((odds["mean"] * profiled_ns // histograms.STRETCH) // 1000 + 1)


@inner_kernel
def _gather(world, m, before_ns):
    """Note the model's first requests in the scratch table, once for all batch sizes: `rows`, `slacks` if started by
    `before_ns`, in `places` their histograms, in `listed` their size classes."""
    scratch, count = world.sets[0], 0
    r = world.models[m]["queue_head"]
    for _ in range(LOOK):
        if r == NONE:
            break
        request = world.requests[r]
        request["picked"] = 0
        scratch["rows"][count] = r
        scratch["slacks"][count] = request["due_ns"] - before_ns
        scratch["places"][count] = request["tag"]
        scratch["listed"][count] = request["size_class"]
        count += 1
        r = ordered.successor(world.request_nodes, r)
    scratch["count"] = count


@inner_kernel
def _candidates(world, program, kind, b, rows):
    """Score those gathered that are candidates for a batch size, all of one class, and sort them into `best`, ties to the
    more urgent; how many, or 0 if there are less than `rows`."""
    scratch, found, size_class = world.sets[0], 0, NONE
    # neighbours mostly share their application and their class: what follows from those is found once
    tag, its_class, profiled_ns, least_ns = NONE, NONE, 0, 0
    for i in range(scratch["count"]):
        if found + scratch["count"] - i < rows:
            return 0
        if scratch["places"][i] != tag or scratch["listed"][i] != its_class:
            tag, its_class = scratch["places"][i], scratch["listed"][i]
            profiled_ns = world.estimates[exec_row(world, program, kind, b, its_class)]["profiled_ns"]
            histograms.refresh(world, tag, program, b)
            stretch = world.odds[tag, b]["mean"] if b > 0 else world.odds[tag, b]["stretches"][0]
            least_ns = stretch * profiled_ns // histograms.STRETCH
        slack_ns = scratch["slacks"][i]
        if (size_class == NONE or its_class == size_class) and profiled_ns > 0 and least_ns <= slack_ns:
            size_class = its_class
            scratch["gains"][i] = score(world.odds[tag, b], profiled_ns, slack_ns)
            _insert(scratch, found, i)
            found += 1
    return found if found >= rows else 0


@inner_kernel
def _insert(scratch, found, i):
    """Put `i` into `best`, which has `found` by score, behind its equals: scores mostly fall along a queue."""
    at = found
    while at > 0 and scratch["gains"][scratch["best"][at - 1]] < scratch["gains"][i]:
        scratch["best"][at] = scratch["best"][at - 1]
        at -= 1
    scratch["best"][at] = i


@inner_kernel
def _pick(world, rows):
    """Mark the `rows` best scores; the first of them in the queue, and their sum."""
    scratch, first, total = world.sets[0], LOOK, 0
    for c in range(rows):
        i = scratch["best"][c]
        world.requests[scratch["rows"][i]]["picked"] = 1
        total += scratch["gains"][i]
        first = i if i < first else first
    return scratch["rows"][first], total


@inner_kernel
def _propose(world, now_ns, gpu, m, start_ns):
    """A model's batch, its requests picked: (first, batch index, rows, sum of scores); (-1, -1, 0, 0): none."""
    program, kind = world.models[m]["program"], world.gpus[gpu]["kind"]
    sizes = world.programs[program]
    _gather(world, m, start_ns + batches.end_margin_ns(world, now_ns, kind))
    for i in range(sizes["n_batches"]):
        b = sizes["n_batches"] - 1 - i
        rows = sizes["batches"][b]
        if rows <= world.sets[0]["count"] and _candidates(world, program, kind, b, rows) > 0:
            first, total = _pick(world, rows)
            return first, b, rows, total
    return NONE, NONE, 0, 0


@inner_kernel
def next_batch(world, gpu, now_ns):
    """The batch with the largest sum of scores over the most urgent models."""
    start_ns = lanes.available_ns(world, now_ns, gpu, LANE_EXEC)
    best, best_first, best_batch, best_rows, most = NONE, NONE, NONE, 0, -1
    copy, looks = ready.most_urgent(world, now_ns, gpu), LOOKS_MAX
    for _ in range(ready.COMPARED):
        if copy == NONE or looks <= 0:
            break
        m = world.copies[copy]["model"]
        looks -= min(world.models[m]["queued"], LOOK) + GIVE_UP_LOOKS * sets.give_up(world, now_ns, gpu, m, start_ns)
        if world.models[m]["queue_head"] != NONE:
            first, b, rows, total = _propose(world, now_ns, gpu, m, start_ns)
            if b != NONE and total > most:
                best, best_first, best_batch, best_rows, most = copy, first, b, rows, total
        copy = ordered.successor(world.copy_nodes, copy)
    return best, best_first, best_batch, best_rows
