"""What an action will take: rolling windows of measured durations, with a seed and decay.

One ESTIMATE row per (program, kind of GPU, batch, size class) for executions, per (program, kind) for loads, and per
kind for the margins (send path, result path, execution over its estimate). A window starts full of its seed; the
estimate is the second largest of the last WINDOW samples, so a single bad sample never counts. Two do: then the part
above the floor, which is the least of seed and window, halves with each 1.1 s in which no sample came. A seed that is
itself too high, so that it turns everybody away, is doubted: refusals lower it step by step until one request is tried.
So whatever was measured or claimed, the core tries again after a while: nothing is locked out for good.
"""

from __future__ import annotations

from cwd.core.world import BATCHES_MAX, MARGINS, WINDOW
from cwd.jit import inner_kernel, lean_kernel

#: 2**30 ns: the half-life of what a silent window says above its floor
DECAY_BITS = 30


@lean_kernel
def read(row, now_ns):
    """The estimate now, ns; 0 if there is neither a seed nor a sample."""
    floor = row["low_ns"] if row["low_ns"] < row["seed_ns"] else row["seed_ns"]
    age = now_ns - row["updated_ns"]
    if age < (1 << DECAY_BITS):
        return row["high_ns"]
    halvings = age >> DECAY_BITS
    if halvings > 60:
        return floor
    return floor + ((row["high_ns"] - floor) >> halvings)


@lean_kernel
def seed(row, duration_ns):
    """Start the window anew, as if `duration_ns` had been measured WINDOW times."""
    for i in range(WINDOW):
        row["samples"][i] = duration_ns
    row["seed_ns"] = row["low_ns"] = row["high_ns"] = duration_ns
    row["position"] = row["count"] = row["doubted_ns"] = 0


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
    position = row["position"]
    row["samples"][position] = sample_ns
    row["position"] = (position + 1) & (WINDOW - 1)
    row["count"] += 1
    row["updated_ns"] = now_ns
    # a sample that cannot raise the estimate may wait for the next scan
    if sample_ns > row["high_ns"] or (position & 3) == 3:
        _scan(row)


@inner_kernel
def _scan(row):
    largest, second, least = -1, -1, row["samples"][0]
    for i in range(WINDOW):
        sample = row["samples"][i]
        if sample > largest:
            second = largest
            largest = sample
        elif sample > second:
            second = sample
        if sample < least:
            least = sample
    row["high_ns"] = second
    row["low_ns"] = least


@inner_kernel
def exec_row(world, program, kind, batch_index, size_class):
    """Index of an execution's row in `estimates`."""
    settings = world.settings[0]
    pair = program * settings["kinds_max"] + kind
    return (pair * BATCHES_MAX + batch_index) * settings["classes_max"] + size_class


@inner_kernel
def exec_ns(world, now_ns, program, kind, batch_index, size_class):
    """Duration of an execution, ns; 0 if that combination is not profiled."""
    return read(world.estimates[exec_row(world, program, kind, batch_index, size_class)], now_ns)


@inner_kernel
def load_row(world, program, kind):
    settings = world.settings[0]
    return settings["load_base"] + program * settings["kinds_max"] + kind


@inner_kernel
def load_ns(world, now_ns, program, kind):
    """Duration of a LOAD of a model of the program, ns."""
    return read(world.estimates[load_row(world, program, kind)], now_ns)


@inner_kernel
def margin_ns(world, now_ns, kind, which):
    """One of the measured margins of a kind of GPU, ns, capped so that one stall does not stop the service."""
    settings = world.settings[0]
    margin = read(world.estimates[settings["margin_base"] + kind * MARGINS + which], now_ns)
    return margin if margin < settings["margin_max_ns"] else settings["margin_max_ns"]


@inner_kernel
def observe_margin(world, now_ns, kind, which, sample_ns):
    row = world.estimates[world.settings[0]["margin_base"] + kind * MARGINS + which]
    observe(row, now_ns, sample_ns if sample_ns > 0 else 0)
