"""What policies remember of a model: how fast requests come, and what its batches took. Only kept where one learns."""

from __future__ import annotations

from cwd.jit import inner_kernel

#: the gap between arrivals follows each new one by 1 / 2**GAP_BITS
GAP_BITS = 5


@inner_kernel
def forget(world, m):
    """A model is new in its slot."""
    row = world.memory[m]
    row["arrived_ns"] = row["gap_ns"] = row["slo_ns"] = row["limit"] = row["small_ns"] = row["large_ns"] = row["owed"] = 0


@inner_kernel
def arrived(world, now_ns, r):
    """Request `r` came."""
    request = world.requests[r]
    row = world.memory[request["model"]]
    gap_ns = now_ns - row["arrived_ns"]
    if row["arrived_ns"] == 0:
        gap_ns = request["slo_ns"]
    if row["gap_ns"] == 0:
        row["gap_ns"] = gap_ns
    else:
        row["gap_ns"] += (gap_ns - row["gap_ns"]) >> GAP_BITS
    row["arrived_ns"] = now_ns
    row["slo_ns"] = request["slo_ns"]


@inner_kernel
def gap_ns(world, now_ns, m):
    """Time between two requests of a model, at least 1; while none comes it grows with the silence."""
    row = world.memory[m]
    silent_ns = now_ns - row["arrived_ns"]
    gap = row["gap_ns"] if row["gap_ns"] > silent_ns else silent_ns
    return gap if gap > 0 else 1
