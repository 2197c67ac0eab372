"""How long executions take, as distributions per application, and what follows from them for a batch.

They are kept for a policy that picks by them always, for others where executions scatter (`watch`).
A histogram is over the *stretch*: measured duration over profiled duration of the batch size, so that all sizes speak
of the same thing. A batch takes as long as its longest member, so what is measured is a maximum. It is shared out by
expectation: each member was as long as that with the chance that its histogram gives it, given that one was, and else
anything below: over many batches this finds who takes long (expectation maximization, one step for each batch).
A batch's distribution is then the product of its members': one application's, and for the others the average of the
program's, one factor each. All in fixed point; nothing here knows of deadlines.
"""

from __future__ import annotations

from cwd.core import hashmap
from cwd.core.estimate import exec_row
from cwd.core.world import BINS, NONE
from cwd.jit import inner_kernel, lean_kernel

#: one sample, in the units of `counts`
SAMPLE = 1024
#: a stretch of 1
STRETCH = 4096
#: certainty
CERTAIN = 65536
#: samples of a histogram at which all are halved
SAMPLES_MAX = 1024
#: what a new one starts with, little: what is below the longest of a batch is learned from nothing else for long
FIRST = SAMPLE // 4
#: how many requests of an application that ran alone count ALONE times: in a batch one only knows who it may have been
ALONE_FIRST, ALONE = 32, 4
#: what makes a program dynamic, how much a scattered execution adds to that, and the most that there can be: see `watch`
SCATTERED, SCATTER, SCATTER_MAX = 4096, 256, 32768
#: of the first 2**OFF_BITS executions that are far off their profile every fourth is followed by one of a single request,
#: of the rest one in 2**OFF_BITS is: see `asks`
OFF_BITS = 8
#: odds are built anew after 2**REFRESH_BITS changes
REFRESH_BITS = 4


@lean_kernel
def bin_of(stretch):
    """The bin of a stretch: 8 per octave, linear inside one."""
    value, bits = stretch >> 4, 0
    while value >> bits > 0:
        bits += 1
    index = 8 * (bits - 4) + ((value >> (bits - 4)) & 7) - 24 if bits >= 7 else 0
    return index if index < BINS else BINS - 1


@inner_kernel
def _share(sums, part, counts):
    """What of the sums goes with a part of the counts. Rounded each on its own, a bin with few counts would soon have a
    mean far outside of it."""
    return sums * part // counts if counts > 0 else 0


@inner_kernel
def _start(row, like):
    """Begin a histogram like another one, or with a stretch of 1 if that is empty."""
    total = like["total"]
    row["total"] = row["alone"] = row["probed"] = row["version"] = 0
    for j in range(BINS):
        counts, sums = like["counts"][j], like["sums"][j]
        row["counts"][j] = counts * FIRST // total if total > 0 else 0
        row["sums"][j] = _share(sums, row["counts"][j], counts)
        row["total"] += row["counts"][j]
    if row["total"] == 0:
        j = bin_of(STRETCH)
        row["counts"][j] = row["total"] = FIRST
        row["sums"][j] = FIRST * STRETCH


@lean_kernel
def key(program, app):
    """Where `app_map` has the histogram of an application with a program."""
    return hashmap.mix(app) ^ (program << 32)


@inner_kernel
def tag(world, r):
    """Find a request's histogram: its application's with the program, or the program's if there are too many."""
    request = world.requests[r]
    program = world.models[request["model"]]["program"]
    average = world.histograms[program]
    if average["total"] == 0:
        _start(average, average)
    at = key(program, request["app"])
    row = hashmap.get(world.app_map, at)
    if row == NONE:
        counters = world.counters[0]
        row = len(world.programs) + counters["apps"]
        if row >= len(world.histograms):
            row = program
        else:
            counters["apps"] += 1
            hashmap.put(world.app_map, at, row)
            _start(world.histograms[row], average)
    request["tag"] = row


@lean_kernel
def middle(row):
    """The mean stretch of a histogram that is not empty."""
    sums = 0
    for j in range(BINS):
        sums += row["sums"][j]
    return sums // row["total"]


@lean_kernel
def least(row):
    """The least stretch of a histogram that is not empty, but for one in 64."""
    so_far = 0
    for j in range(BINS):
        so_far += row["counts"][j]
        if 64 * so_far > row["total"]:
            return row["sums"][j] // row["counts"][j] if row["counts"][j] > 0 else 0
    return 0


@lean_kernel
def doubt(row):
    """A histogram by which nobody can be served: a request in 32 takes as long as profiled after all."""
    more, j = row["total"] >> 5, bin_of(STRETCH)
    more = more if more > FIRST else FIRST
    row["counts"][j] += more
    row["sums"][j] += more * STRETCH
    row["total"] += more
    row["version"] += 1 << REFRESH_BITS


@inner_kernel
def up_to(row, j):
    """Samples in the bins up to j."""
    total = 0
    for i in range(j + 1):
        total += row["counts"][i]
    return total


@inner_kernel
def likelihood(row, j):
    """The chance of a member with this histogram to be in bin j if it is not above, in 65536ths; never 0."""
    prior = SAMPLE // 16
    return (row["counts"][j] + prior) * CERTAIN // (up_to(row, j) + prior)


@lean_kernel
def add(row, j, stretch, share):
    """Take in one member of a batch whose longest had this stretch: `share` of SAMPLE that it was as long, else below."""
    rest, below = SAMPLE - share, up_to(row, j - 1)
    total = 0
    for i in range(BINS):
        if i < j and below > 0:
            more = row["counts"][i] * rest // below
            row["sums"][i] += _share(row["sums"][i], more, row["counts"][i])
            row["counts"][i] += more
        if i == j:
            row["counts"][i] += share if below > 0 else SAMPLE
            row["sums"][i] += (share if below > 0 else SAMPLE) * stretch
        total += row["counts"][i]
    if total > SAMPLES_MAX * SAMPLE:
        total = 0
        for i in range(BINS):
            half = row["counts"][i] >> 1
            row["sums"][i] = _share(row["sums"][i], half, row["counts"][i])
            row["counts"][i] = half
            total += half
    row["total"] = total
    row["version"] += 1


@lean_kernel
def _alone(row, j, stretch):
    """A request ran alone, so its length is known."""
    if row["alone"] < ALONE_FIRST:
        for _ in range(ALONE - 1):
            add(row, j, stretch, SAMPLE)
    row["alone"] += 1
    row["probed"] = row["version"]


@inner_kernel
def _asking(program):
    """Whether the next execution has to be of one request; that one moves the count on, far off or not."""
    return program["off"] > 0 and program["off"] & (3 if program["off"] >> OFF_BITS == 0 else (1 << OFF_BITS) - 1) == 0


@inner_kernel
def watch(world, a, own_ns):
    """Whether the action's program is dynamic: whether its executions scatter, each against the one before it.

    Of executions of one request one in sixteen that is twice as long, or half as long, keeps a program dynamic, SCATTERED /
    SCATTER of them make it so; of larger batches, whose longest are more alike, fewer do. What is slow for a while, or was
    profiled wrongly, is off when that begins and when it ends. `own_ns` is by the device's own clock: on a CPU that has more
    work than it can do executions scatter on the wall's clock, whatever their data.
    """
    action = world.actions[a]
    program = world.programs[action["program"]]
    row = world.estimates[exec_row(world, action["program"], world.gpus[action["gpu"]]["kind"], action["batch_index"],
                                   action["size_class"])]
    before_ns, profiled_ns = row["own_ns"], row["profiled_ns"]
    row["own_ns"] = own_ns
    if 2 * own_ns > 3 * profiled_ns or 2 * profiled_ns > 3 * own_ns or (action["rows"] == 1 and _asking(program)):
        program["off"] += 1
    if before_ns > 0 and (own_ns > 2 * before_ns or before_ns > 2 * own_ns):
        program["scatter"] = min(program["scatter"] + SCATTER, SCATTER_MAX)
        if program["scatter"] >= SCATTERED:
            program["dynamic"] = 1
    else:
        program["scatter"] -= SCATTER // 16 // action["rows"] + 1
        if program["scatter"] <= 0:
            program["scatter"] = program["dynamic"] = 0
    return program["dynamic"]


@inner_kernel
def asks(world, m):
    """Whether one of the model's requests has to run alone now, to tell whether its program is dynamic.

    The longest of sixteen are as long as each other: large batches of a dynamic program do not scatter, they only take
    longer than profiled, as those of any program do that was profiled wrongly.
    """
    return _asking(world.programs[world.models[m]["program"]])


@inner_kernel
def learn(world, a, took_ns, own_ns):
    """Execution `a` took so long, by the device's own clock `own_ns`: share that out among its requests' applications, and
    their program's average."""
    action = world.actions[a]
    kind = world.gpus[action["gpu"]]["kind"]
    profiled_ns = world.estimates[
        exec_row(world, action["program"], kind, action["batch_index"], action["size_class"])]["profiled_ns"]
    if profiled_ns <= 0:
        return
    if watch(world, a, own_ns) == 0 and world.settings[0]["picks"] == 0:
        return
    average = world.histograms[action["program"]]
    if average["total"] == 0:
        # what is learned first may be the longest there is: alone it would turn everybody away
        _start(average, average)
    stretch = took_ns * STRETCH // profiled_ns
    stretch = stretch if stretch < 1024 * STRETCH else 1024 * STRETCH
    j = bin_of(stretch)
    none = CERTAIN
    r = action["first"]
    while r != NONE:
        none = none * (CERTAIN - likelihood(world.histograms[world.requests[r]["tag"]], j)) // CERTAIN
        r = world.requests[r]["next"]
    r = action["first"]
    if action["rows"] == 1:
        _alone(world.histograms[world.requests[r]["tag"]], j, stretch)
    while r != NONE:
        row = world.requests[r]["tag"]
        share = likelihood(world.histograms[row], j) * SAMPLE // (CERTAIN - none)
        share = share if share < SAMPLE else SAMPLE
        if row != action["program"]:
            add(world.histograms[row], j, stretch, share)
        add(world.histograms[action["program"]], j, stretch, share)
        r = world.requests[r]["next"]


@lean_kernel
def combine(own, others, odds, size):
    """The latency of a batch of `size` with one request of the histogram `own` and the rest of `others`, as ODDS."""
    mine = rest = count = weighted = before = 0
    for j in range(BINS):
        mine += own["counts"][j]
        rest += others["counts"][j]
        chance = CERTAIN * mine // own["total"]
        factor = CERTAIN * rest // others["total"]
        for _ in range(size - 1):
            chance = chance * factor // CERTAIN
        if chance > before:
            counts = own["counts"][j] + others["counts"][j]
            odds["chances"][count] = chance - before
            odds["stretches"][count] = (own["sums"][j] + others["sums"][j]) // counts
            weighted += (chance - before) * odds["stretches"][count]
            count += 1
            before = chance
    odds["count"] = count
    odds["mean"] = weighted // CERTAIN


@inner_kernel
def refresh(world, tag, program, batch_index):
    """Build the odds of an application in a batch size anew, if enough was learned since."""
    own, others = world.histograms[tag], world.histograms[program]
    odds = world.odds[tag, batch_index]
    built = ((own["version"] + others["version"]) >> REFRESH_BITS) + 1
    if odds["built"] != built:
        odds["built"] = built
        combine(own, others, odds, world.programs[program]["batches"][batch_index])
