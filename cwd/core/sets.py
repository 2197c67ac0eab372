"""Batches as sets, for programs whose execution time depends on data that nobody sees: which requests belong together.

A batch takes as long as its longest member, so one request of a slow application makes fifteen quick ones late. The
applications that wait are put into groups of like mean latency; for each run of neighbouring groups and each batch size
those neighbours in the queue are the candidate that gain most. A batch's latency is distributed as the largest of its
members', each by its own group (histograms.py): a product of powers. Its worth is the sum of its members' chances to be
in time, each a little less the longer it could still wait, per mean time on the GPU.

Requests are looked at in queue order, `LOOK` of them. All is integers and bounded; `world.sets` is scratch, nothing in
it is read before it was written by the same call.
"""

from __future__ import annotations

from cwd.core import batches, histograms, ordered, queues
from cwd.core.estimate import DECAY_BITS, exec_row
from cwd.core.histograms import CERTAIN, STRETCH
from cwd.core.world import BINS, NONE, SETS_GROUPS, SETS_LOOK, SETS_TAGS
from cwd.jit import inner_kernel, lean_kernel

#: 2**30 ns: slack that halves the value of running now
HALF_LIFE_BITS = 30
#: 2**(-i/16), in 2**20ths
HALVINGS = (1048576, 1004120, 961548, 920782, 881744, 844361, 808563, 774282,
            741455, 710020, 679917, 651091, 623487, 597053, 571740, 547500)
#: requests of an application that run alone at first, and one more after so many that did not
PROBES, PROBE_EVERY = 8, 1024
#: two applications are alike if their means differ by less than an eighth
ALIKE_NUMERATOR, ALIKE_DENOMINATOR = 9, 8
#: neighbours gain nearly as much as others if they gain all but one part in 2**NEARLY_BITS
NEARLY_BITS = 5
#: most requests that one look at a model gives up
GIVE_UP_MAX = 8


@lean_kernel
def decayed(slack_ns, half_life_bits):
    """2**(-slack / 2**half_life_bits), in 2**20ths; 0 if the slack is negative."""
    if slack_ns < 0:
        return 0
    sixteenths = slack_ns >> (half_life_bits - 4)
    return HALVINGS[sixteenths & 15] >> (sixteenths >> 4) if sixteenths < 16 * 20 else 0


@inner_kernel
def profiled_ns(world, gpu, m, b, size_class):
    """What a batch takes at a stretch of 1; 0: not profiled."""
    return world.estimates[exec_row(world, world.models[m]["program"], world.gpus[gpu]["kind"], b, size_class)]["profiled_ns"]


@inner_kernel
def give_up(world, now_ns, gpu, m, start_ns):
    """Give up the model's first requests that even their application's shortest execution alone would make late.

    Returns how many, at most GIVE_UP_MAX: the rest when the model is looked at again.
    """
    program = world.models[m]["program"]
    for given_up in range(GIVE_UP_MAX):
        r = world.models[m]["queue_head"]
        if r == NONE or world.models[m]["copies_count"] != 1:
            return given_up
        request, row = world.requests[r], world.histograms[_tag(world, program, r)]
        alone_ns = profiled_ns(world, gpu, m, 0, request["size_class"])
        latest_ns = batches.latest_end_ns(world, now_ns, gpu, r)
        if start_ns + histograms.least(row) * alone_ns // STRETCH <= latest_ns:
            return given_up
        if start_ns + alone_ns <= latest_ns and _unmeasured(world, now_ns, gpu, program, request["size_class"]):
            histograms.doubt(row)
            return given_up
        queues.drop(world, now_ns, r, batches.DEADLINE_EXPIRED)
    return GIVE_UP_MAX


@inner_kernel
def _unmeasured(world, now_ns, gpu, program, size_class):
    """Whether nothing of the program has been executed for a half-life: what was learned of it may be wrong by now."""
    for b in range(world.programs[program]["n_batches"]):
        row = world.estimates[exec_row(world, program, world.gpus[gpu]["kind"], b, size_class)]
        if now_ns - row["updated_ns"] < (1 << DECAY_BITS):
            return False
    return True


@inner_kernel
def _tag(world, program, r):
    """The request's histogram, or its program's while that is empty."""
    tag = world.requests[r]["tag"]
    return tag if world.histograms[tag]["total"] > 0 else program


# -- groups ------------------------------------------------------------------------------------------------------------


@inner_kernel
def _gather(world, now_ns, gpu, m, start_ns):
    """Note the model's first requests, all of the first one's size class or smaller, with slack and application."""
    scratch, program = world.sets[0], world.models[m]["program"]
    scratch["tags"] = scratch["count"] = 0
    r = world.models[m]["queue_head"]
    size_class = world.requests[r]["size_class"]
    for _ in range(SETS_LOOK):
        if r == NONE:
            break
        world.requests[r]["picked"] = 0
        if world.requests[r]["size_class"] <= size_class:
            i, tag = scratch["count"], _tag(world, program, r)
            scratch["rows"][i] = r
            scratch["slacks"][i] = batches.latest_end_ns(world, now_ns, gpu, r) - start_ns
            scratch["places"][i] = _place(scratch, tag, program)
            scratch["count"] += 1
        r = ordered.successor(world.request_nodes, r)
    return size_class


@lean_kernel
def _place(scratch, tag, program):
    """The place of an application among those that wait; when there are too many, the last place is the program's."""
    for k in range(scratch["tags"]):
        if scratch["tag"][k] == tag:
            scratch["waiting"][k] += 1
            return k
    k = scratch["tags"]
    if k == SETS_TAGS:
        scratch["tag"][k - 1] = program
        scratch["waiting"][k - 1] += 1
        return k - 1
    scratch["tag"][k], scratch["waiting"][k] = tag, 1
    scratch["tags"] += 1
    return k


@lean_kernel
def group(scratch, table):
    """Sort the applications by their mean latency and give each its group; build the groups' distributions."""
    tags = scratch["tags"]
    for k in range(tags):
        scratch["mean"][k] = histograms.middle(table[scratch["tag"][k]])
        scratch["order"][k] = k
        i = k
        while i > 0 and scratch["mean"][scratch["order"][i - 1]] > scratch["mean"][k]:
            scratch["order"][i] = scratch["order"][i - 1]
            i -= 1
        scratch["order"][i] = k
    g, low = -1, 0
    for i in range(tags):
        k = scratch["order"][i]
        mean = scratch["mean"][k]
        if g < 0 or (mean * ALIKE_DENOMINATOR > low * ALIKE_NUMERATOR and g + 1 < SETS_GROUPS):
            g, low = g + 1, mean
            for j in range(BINS):
                scratch["counts"][g * BINS + j] = scratch["sums"][g * BINS + j] = 0
        scratch["group"][k] = g
        row = table[scratch["tag"][k]]
        for j in range(BINS):
            # sums follow the counts as rounded: each on its own, what is rare would look longer than it ever was
            if row["counts"][j] > 0:
                counts = row["counts"][j] * CERTAIN // row["total"] * scratch["waiting"][k]
                scratch["counts"][g * BINS + j] += counts
                scratch["sums"][g * BINS + j] += counts * (row["sums"][j] // row["counts"][j])
    scratch["groups"] = g + 1
    for g in range(scratch["groups"]):
        total = so_far = sums = 0
        for j in range(BINS):
            total += scratch["counts"][g * BINS + j]
            sums += scratch["sums"][g * BINS + j]
        scratch["quickest"][g] = sums // total
        for j in range(BINS):
            so_far += scratch["counts"][g * BINS + j]
            scratch["below"][g * BINS + j] = CERTAIN * so_far // total


# -- candidates --------------------------------------------------------------------------------------------------------


@lean_kernel
def raised(chance, count):
    """chance**count, in 65536ths."""
    result = CERTAIN
    while count > 0:
        if count & 1:
            result = result * chance // CERTAIN
        chance = chance * chance // CERTAIN
        count >>= 1
    return result


@lean_kernel
def compose(scratch, low, high):
    """The latency of a batch with `members[g]` requests of each group from low to high: the chance of each of
    `outcomes` not to be exceeded is `joint`, its stretch `stretch`; returns the mean stretch."""
    before = weighted = outcomes = 0
    for j in range(BINS):
        chance, counts, sums = CERTAIN, 0, 0
        for g in range(low, high + 1):
            if scratch["members"][g] > 0:
                chance = chance * raised(scratch["below"][g * BINS + j], scratch["members"][g]) // CERTAIN
                counts += scratch["counts"][g * BINS + j]
                sums += scratch["sums"][g * BINS + j]
        if chance > before and counts > 0:
            scratch["joint"][outcomes] = chance
            scratch["stretch"][outcomes] = sums // counts
            weighted += (chance - before) * (sums // counts)
            before = chance
            outcomes += 1
    scratch["outcomes"] = outcomes
    return weighted // CERTAIN


@lean_kernel
def collect(scratch, low, high):
    """List the requests of the groups from low to high in `listed`, in order; how many."""
    found = 0
    for i in range(scratch["count"]):
        if low <= scratch["group"][scratch["places"][i]] <= high:
            scratch["listed"][found] = i
            found += 1
    return found


@lean_kernel
def count(scratch, low, high, first, rows):
    """Set `members` to the listed from `first` on."""
    for g in range(low, high + 1):
        scratch["members"][g] = 0
    for c in range(first, first + rows):
        scratch["members"][scratch["group"][scratch["places"][scratch["listed"][c]]]] += 1


@lean_kernel
def weigh(scratch, listed, profiled, mean):
    """`gains` of the listed: the chance to be in time, decayed by the slack that would be left."""
    at, mean_ns = 0, mean * profiled // STRETCH
    for c in range(listed):
        slack_ns = scratch["slacks"][scratch["listed"][c]]
        # slacks rise along most queues, but not by law
        while at > 0 and scratch["stretch"][at - 1] * profiled // STRETCH > slack_ns:
            at -= 1
        while at < scratch["outcomes"] and scratch["stretch"][at] * profiled // STRETCH <= slack_ns:
            at += 1
        left_ns = slack_ns - mean_ns
        gain = scratch["joint"][at - 1] * decayed(left_ns if left_ns > 0 else 0, HALF_LIFE_BITS) if at > 0 else 0
        scratch["gains"][c] = gain


@lean_kernel
def window(scratch, listed, rows):
    """Of `rows` neighbours among the listed the first that gain as much as any, or nearly: (first, their gain).

    The others can wait longer.
    """
    first_total = 0
    for c in range(rows):
        first_total += scratch["gains"][c]
    most = total = first_total
    for c in range(rows, listed):
        total += scratch["gains"][c] - scratch["gains"][c - rows]
        most = total if total > most else most
    enough = most - (most >> NEARLY_BITS)
    first, total = 0, first_total
    while total < enough:
        total += scratch["gains"][first + rows] - scratch["gains"][first]
        first += 1
    return first, total


@lean_kernel
def density(gain, mean, profiled):
    """What a gain is worth that takes so long."""
    return 16 * gain // (((mean * profiled // STRETCH) >> 10) + 1)


@lean_kernel
def consider(scratch, low, high, b, listed, rows, profiled):
    """The best `rows` of the listed, which are of the groups from low to high, in batch size b: keep them if they are
    worth more than the best so far."""
    if density(rows * CERTAIN << 20, scratch["quickest"][high], profiled) <= scratch["best_worth"]:
        return
    count(scratch, low, high, 0, rows)
    mean = compose(scratch, low, high)
    weigh(scratch, listed, profiled, mean)
    first, gain = window(scratch, listed, rows)
    if low < high and first > 0:
        # the groups are mixed differently there
        count(scratch, low, high, first, rows)
        mean = compose(scratch, low, high)
        weigh(scratch, listed, profiled, mean)
        gain = 0
        for c in range(first, first + rows):
            gain += scratch["gains"][c]
    value = density(gain, mean, profiled)
    if value > scratch["best_worth"]:
        scratch["best_worth"], scratch["best_batch"], scratch["best_rows"] = value, b, 0
        for c in range(first, first + rows):
            # who cannot be in time stays out
            if scratch["gains"][c] > 0:
                scratch["best"][scratch["best_rows"]] = scratch["listed"][c]
                scratch["best_rows"] += 1


@lean_kernel
def search(scratch):
    """The best batch of what was gathered and grouped, over all runs of groups and all sizes: `best`, `best_batch`."""
    scratch["best_worth"], scratch["best_batch"], scratch["best_rows"] = 0, NONE, 0
    for low in range(scratch["groups"]):
        for high in range(low, scratch["groups"]):
            at_hand = collect(scratch, low, high)
            for i in range(scratch["n_batches"]):
                b = scratch["n_batches"] - 1 - i
                # a size that one smaller would do for is not looked at
                if scratch["profiled"][b] > 0 and (b == 0 or scratch["sizes"][b - 1] < at_hand):
                    rows = scratch["sizes"][b] if scratch["sizes"][b] < at_hand else at_hand
                    consider(scratch, low, high, b, at_hand, rows, scratch["profiled"][b])


@lean_kernel
def probe(scratch, table, program):
    """Whether one of the applications that wait has to run alone now, since too little is known of it; if so, `best` is it.

    In batches two applications that are always together look alike, and so would always be together.
    """
    for k in range(scratch["tags"]):
        row = table[scratch["tag"][k]]
        known = row["alone"] >= PROBES and row["version"] - row["probed"] < PROBE_EVERY
        if known or scratch["tag"][k] == program:
            continue
        need_ns = scratch["mean"][k] * scratch["profiled"][0] // STRETCH
        for i in range(scratch["count"]):
            if scratch["places"][i] == k and scratch["slacks"][i] >= need_ns:
                scratch["best"][0], scratch["best_batch"], scratch["best_rows"] = i, 0, 1
                return True
    return False


@inner_kernel
def propose(world, now_ns, gpu, m, start_ns):
    """The model's best batch: (batch index, rows); -1: nothing can be in time. `pick` then picks its requests."""
    scratch = world.sets[0]
    size_class = _gather(world, now_ns, gpu, m, start_ns)
    group(scratch, world.histograms)
    program = world.programs[world.models[m]["program"]]
    scratch["n_batches"] = program["n_batches"]
    for b in range(program["n_batches"]):
        scratch["sizes"][b] = program["batches"][b]
        scratch["profiled"][b] = profiled_ns(world, gpu, m, b, size_class)
    if not probe(scratch, world.histograms, world.models[m]["program"]):
        search(scratch)
    return scratch["best_batch"], scratch["best_rows"]


@inner_kernel
def pick(world):
    """Mark the requests of the best batch of the last proposal; its first."""
    scratch = world.sets[0]
    for c in range(scratch["best_rows"]):
        world.requests[scratch["rows"][scratch["best"][c]]]["picked"] = 1
    return scratch["rows"][scratch["best"][0]]
