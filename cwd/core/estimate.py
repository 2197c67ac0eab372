"""What an action will take: rolling windows of measured durations, with a seed and decay.

One ESTIMATE row per (program, kind of GPU, batch, size class) for executions, per (program, kind) for loads, and per
kind for the margins (send path, result path, an execution's result after its tail). A window of the last WINDOW samples
starts full of its seed and says two things. *Typical*, the mean without the largest few: what lanes are predicted with
and batches compared by, since over many of them errors cancel. *Tail*, the third largest, about the 92nd percentile:
what a deadline is held against, since there they do not. Two bad samples never count. Three do, until others take their
place; where samples are rare, what is above the floor, which is the least of seed and window, halves with each 1.1 s. A
seed that is itself too high, so that it turns everybody away, is doubted: refusals lower it step by step until one
request is tried. So whatever was measured or claimed, the core tries again after a while: nothing is locked out for good.
"""

from __future__ import annotations

from cwd.core.world import BATCHES_MAX, FOREVER_NS, MARGINS, WINDOW
from cwd.jit import inner_kernel, lean_kernel

#: samples of a window above the tail
BAD_SAMPLES = 2
#: samples that an estimate by the most recent looks at, and the quantile that it takes, percent
RECENT, RECENT_PERCENT = 10, 99
#: 2**30 ns: the half-life of what is above the floor of a window that is not filled anew within it
DECAY_BITS = 30


@inner_kernel
def _faded(row, age_ns, value_ns):
    """What is left of a value of the window after a time without samples."""
    if age_ns < (1 << DECAY_BITS):
        return value_ns
    floor = row["low_ns"] if row["low_ns"] < row["seed_ns"] else row["seed_ns"]
    halvings = age_ns >> DECAY_BITS
    if halvings > 60:
        return floor
    return floor + ((value_ns - floor) >> halvings)


@lean_kernel
def tail(row, now_ns):
    """What it takes at most but for one time in a dozen, ns; 0 if there is neither a seed nor a sample."""
    return _faded(row, now_ns - row["updated_ns"], row["tail_ns"])


@lean_kernel
def typical(row, now_ns):
    """What it takes on average, without the worst, ns; 0 if there is neither a seed nor a sample."""
    return _faded(row, now_ns - row["updated_ns"], row["typical_ns"])


@lean_kernel
def careful(row, now_ns):
    """What whoever waits on purpose leaves time for, ns; 0 as `tail`.

    Waiting until the last moment, one does not get the second chance for whose sake the tail forgets. So a single bad
    sample counts, and what was not measured for a half-life may take twice as long as it is left at: the seed may be wrong.
    """
    tail_ns = tail(row, now_ns)
    if row["updated_ns"] == 0 or now_ns - row["updated_ns"] >= (1 << DECAY_BITS):
        return 2 * tail_ns
    largest_ns = tail_ns
    for i in range(WINDOW):
        if row["samples"][i] > largest_ns:
            largest_ns = row["samples"][i]
    return largest_ns if largest_ns < 2 * tail_ns else 2 * tail_ns


@lean_kernel
def seed(row, duration_ns):
    """Start the window anew, as if `duration_ns` had been measured WINDOW times."""
    for i in range(WINDOW):
        row["samples"][i] = duration_ns
    row["seed_ns"] = row["low_ns"] = row["typical_ns"] = row["tail_ns"] = row["profiled_ns"] = duration_ns
    row["position"] = row["count"] = row["doubted_ns"] = row["since_ns"] = 0


@inner_kernel
def doubt(row, now_ns):
    """A refusal rests on this estimate alone: lower its floor by a quarter, once in a half-life without a sample."""
    half_life_ns = 1 << DECAY_BITS
    if now_ns - row["updated_ns"] >= half_life_ns and now_ns - row["doubted_ns"] >= half_life_ns:
        row["doubted_ns"] = now_ns
        row["seed_ns"] -= row["seed_ns"] >> 2
        row["low_ns"] -= row["low_ns"] >> 2


@lean_kernel
def observe(row, now_ns, sample_ns):
    """Take in one measured duration."""
    if row["count"] == 0 and row["seed_ns"] == 0:
        seed(row, sample_ns)
    if row["doubted_ns"] != 0:
        # the doubt has been settled: what was measured is as good a seed as any
        row["doubted_ns"] = 0
        if sample_ns > row["seed_ns"]:
            row["seed_ns"] = sample_ns
    _fade(row, now_ns)
    position = row["position"]
    row["samples"][position] = sample_ns
    row["position"] = (position + 1) & (WINDOW - 1)
    row["count"] += 1
    row["updated_ns"] = now_ns
    # a sample that cannot raise the tail may wait for the next scan
    if sample_ns > row["tail_ns"] or (position & 3) == 3:
        _scan(row)


@inner_kernel
def _fade(row, now_ns):
    """Once in a half-life: let the samples fade, unless the window has been filled anew since the last time."""
    span_ns = now_ns - row["since_ns"]
    if span_ns < (1 << DECAY_BITS):
        return
    if row["count"] < WINDOW:
        for i in range(WINDOW):
            row["samples"][i] = _faded(row, span_ns, row["samples"][i])
        _scan(row)
    row["since_ns"] = now_ns
    row["count"] = 0


@inner_kernel
def _scan(row):
    largest, second, third, least, total = -1, -1, -1, row["samples"][0], 0
    for i in range(WINDOW):
        sample = row["samples"][i]
        total += sample
        if sample > largest:
            largest, second, third = sample, largest, second
        elif sample > second:
            second, third = sample, second
        elif sample > third:
            third = sample
        if sample < least:
            least = sample
    row["tail_ns"] = third
    row["typical_ns"] = (total - largest - second) // (WINDOW - BAD_SAMPLES)
    row["low_ns"] = least


@lean_kernel
def observe_recent(row, sample_ns):
    """Take in one duration where the last RECENT alone count: almost the largest of them, without the seed and for good."""
    row["samples"][row["position"]] = sample_ns
    row["position"] = (row["position"] + 1) % RECENT
    if row["count"] < RECENT:
        row["count"] += 1
    largest, second = row["samples"][0], row["samples"][0]
    for i in range(1, row["count"]):
        sample = row["samples"][i]
        if sample > largest:
            largest, second = sample, largest
        elif i == 1 or sample > second:
            second = sample
    # between the two largest: their ranks are a hundredth of all apart for each sample but one
    weight = 100 - (100 - RECENT_PERCENT) * (row["count"] - 1)
    value = (largest * weight + second * (100 - weight)) // 100
    row["low_ns"] = row["typical_ns"] = row["tail_ns"] = value
    row["updated_ns"] = FOREVER_NS


@inner_kernel
def exec_row(world, program, kind, batch_index, size_class):
    """Index of an execution's row in `estimates`."""
    settings = world.settings[0]
    pair = program * settings["kinds_max"] + kind
    return (pair * BATCHES_MAX + batch_index) * settings["classes_max"] + size_class


@inner_kernel
def exec_ns(world, now_ns, program, kind, batch_index, size_class):
    """Typical duration of an execution, ns; 0 if that combination is not profiled."""
    return typical(world.estimates[exec_row(world, program, kind, batch_index, size_class)], now_ns)


@inner_kernel
def exec_tail_ns(world, now_ns, program, kind, batch_index, size_class):
    """Duration of an execution that a deadline is held against, ns; 0 if that combination is not profiled."""
    return tail(world.estimates[exec_row(world, program, kind, batch_index, size_class)], now_ns)


@inner_kernel
def exec_careful_ns(world, now_ns, program, kind, batch_index, size_class):
    """Duration of an execution that is left time for where it waits on purpose, ns; 0 if that combination is not profiled."""
    return careful(world.estimates[exec_row(world, program, kind, batch_index, size_class)], now_ns)


@inner_kernel
def load_row(world, program, kind):
    settings = world.settings[0]
    return settings["load_base"] + program * settings["kinds_max"] + kind


@inner_kernel
def load_ns(world, now_ns, program, kind):
    """Duration of a LOAD of a model of the program that a deadline is held against, ns."""
    return tail(world.estimates[load_row(world, program, kind)], now_ns)


@inner_kernel
def margin_ns(world, now_ns, kind, which):
    """One of the margins of a kind of GPU, ns: as configured, or measured, and capped lest one stall stop the service."""
    settings = world.settings[0]
    row = world.estimates[settings["margin_base"] + kind * MARGINS + which]
    if settings["margins_fixed"] == 1:
        return row["seed_ns"]
    margin = tail(row, now_ns)
    return margin if margin < settings["margin_max_ns"] else settings["margin_max_ns"]


@inner_kernel
def careful_margin_ns(world, now_ns, kind, which):
    """A margin for what waits on purpose, ns: no less than configured, since where little runs it fades to the least seen."""
    configured_ns = world.estimates[world.settings[0]["margin_base"] + kind * MARGINS + which]["seed_ns"]
    measured_ns = margin_ns(world, now_ns, kind, which)
    return measured_ns if measured_ns > configured_ns else configured_ns


@inner_kernel
def observe_margin(world, now_ns, kind, which, sample_ns):
    """Take in what a margin should have been, ns, unless margins stay as configured."""
    if world.settings[0]["margins_fixed"] == 1:
        return
    row = world.estimates[world.settings[0]["margin_base"] + kind * MARGINS + which]
    observe(row, now_ns, sample_ns if sample_ns > 0 else 0)
