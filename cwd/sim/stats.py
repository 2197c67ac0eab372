"""What is counted, at the client: per group of sources and per model, while the run is being measured."""

from __future__ import annotations

import numpy as np

from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim.world import HISTOGRAM_BITS, HISTOGRAM_BUCKETS

OK = int(Code.OK)
DEADLINE_MISSED = int(Code.DEADLINE_MISSED)


@inner_kernel
def is_refusal(status):
    """Whether a reply refuses the request, at arrival or in the queue; trying again may help."""
    return 100 < status < 110 and status != DEADLINE_MISSED


@inner_kernel
def count_reply(sim, out, request, received_ns, again):
    """A reply has reached its client; `again`: it will send the request once more, so this was not the last word."""
    if sim.state[0]["measuring"] == 0:
        return
    group, served = sim.groups[request["client"]], sim.served[request["model"]]
    status = out["status"]
    group["attempts"] += 1
    if again:
        return
    group["offered"] += 1
    served["answered"] += 1
    if status == OK:
        _count_output(sim, out, request, received_ns)
    elif status == DEADLINE_MISSED:
        group["late"] += 1
    elif is_refusal(np.int64(status)):
        group["refused"] += 1
    else:
        group["failed"] += 1


@inner_kernel
def _count_output(sim, out, request, received_ns):
    group = sim.groups[request["client"]]
    latency_ns = received_ns - request["first_ns"]
    group["answered"] += 1
    group["cold"] += out["cold"]
    if received_ns <= request["deadline_ns"]:
        group["on_time"] += 1
        sim.served[request["model"]]["on_time"] += 1
    else:
        group["late"] += 1
    group["latency_max_ns"] = max(group["latency_max_ns"], latency_ns)
    sim.histogram[request["client"], bucket_of(latency_ns)] += 1


@lean_kernel
def bucket_of(value):
    """The histogram's bucket of a value that is not negative: exact below 2**HISTOGRAM_BITS, then so many per doubling."""
    shift = 0
    while value >> shift >= 2 << HISTOGRAM_BITS:
        shift += 1
    return min((shift << HISTOGRAM_BITS) + (value >> shift), HISTOGRAM_BUCKETS - 1)


def value_of(bucket: int) -> float:
    """The middle of a bucket."""
    shift = max((bucket >> HISTOGRAM_BITS) - 1, 0)
    low = (bucket - (shift << HISTOGRAM_BITS)) << shift
    return low + ((1 << shift) - 1) / 2


def percentile_ns(histogram: np.ndarray, share: float) -> float:
    """The value at that share of i8 [buckets], 0.0 if it is empty."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    rank = min(int(share * total), total - 1)
    return value_of(int(np.searchsorted(np.cumsum(histogram), rank, side="right")))
