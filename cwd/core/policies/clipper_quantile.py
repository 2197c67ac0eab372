"""Clipper's other way to a batch size (NSDI'17, section 4.3): the 99th percentile of latency as a line over batch size.

Each execution pulls the line up if it took longer, 99 times as far as one that took less pulls it down, so that it
comes to rest where one in a hundred is above. The limit is the largest size whose latency on the line is within the
SLO. All else, and the departures, are as for `clipper`; the line starts from the profile, and follows by steps (the
paper fits it anew).
"""

from __future__ import annotations

from cwd.core.estimate import exec_tail_ns
from cwd.core.policies.clipper import ONE
from cwd.jit import inner_kernel

#: the percentile, and how many steps of its weight a whole duration of the smallest batch is
ABOVE, BELOW = 99, 1
STEPS = 1600


@inner_kernel
def line_ns(small_ns, large_ns, largest, size):
    """The line at a batch size, given its values at sizes 1 and `largest`."""
    if largest <= 1:
        return small_ns
    return small_ns + (large_ns - small_ns) * (size - 1) // (largest - 1)


@inner_kernel
def learn(world, now_ns, a, took_ns):
    """An execution took so long: move the line, and find the limit on it."""
    action = world.actions[a]
    program = world.programs[action["program"]]
    last = program["n_batches"] - 1
    largest = program["batches"][last]
    kind = world.gpus[action["gpu"]]["kind"]
    row = world.memory[action["model"]]
    if row["small_ns"] == 0:
        row["small_ns"] = exec_tail_ns(world, now_ns, action["program"], kind, 0, action["size_class"])
        row["large_ns"] = exec_tail_ns(world, now_ns, action["program"], kind, last, action["size_class"])
    step_ns = row["small_ns"] // STEPS + 1
    if took_ns > line_ns(row["small_ns"], row["large_ns"], largest, action["batch"]):
        step_ns *= ABOVE
    else:
        step_ns *= -BELOW
    # each end of the line follows by how near to it the size is
    far = largest - 1 if largest > 1 else 1
    row["small_ns"] += step_ns * (largest - action["batch"]) // far
    row["large_ns"] += step_ns * (action["batch"] - 1) // far
    slo_ns = world.requests[action["first"]]["slo_ns"]
    limit = 1
    for b in range(program["n_batches"]):
        if line_ns(row["small_ns"], row["large_ns"], largest, program["batches"][b]) <= slo_ns:
            limit = program["batches"][b]
    row["limit"] = limit * ONE
