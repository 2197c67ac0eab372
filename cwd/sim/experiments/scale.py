"""Clockwork's figure 11 without the controller's own time: from 10 to 1,000 GPUs, then 100 GPUs at more than they can do.

Models grow with the GPUs: `copies` instances of each of 61 varieties for every 10 GPUs, each asked for equally often.
A load of 1 is what full batches of 16 would serve. Three figures are drawn from the rows: `linear`, the least goodput of
a GPU in the first rows as a share of the smallest world's; `kernel_ratio`, what a request costs in the largest world over
the smallest, core and simulated GPUs together; and `after_peak`, goodput at twice the saturating load (the least at
which less than 99 % is in time) as a share of the best up to there. Theirs came to 103,387 r/s with 110 GPUs, and fell
to 73 % of that with 130.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cwd.sim.experiments import Point
from cwd.sim.experiments.overload import capacity_rps
from cwd.sim.profile import v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

VARIETIES = 61
SATURATED = 0.99
#: each but the largest with twice its load in the row, too
LOADS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def points(quick: bool = False, copies: int = 2, slo_ms: float = 100.0, load: float = 0.3, seconds: float = 3.0,
           gpus: tuple[int, ...] = (10, 30, 100, 300, 1000), overloaded_gpus: int = 100) -> Iterator[Point]:
    """A row per number of GPUs at `load`, then one per load on `overloaded_gpus`. Quick: 10 and 20 GPUs, three loads."""
    if quick:
        gpus, overloaded_gpus, seconds = (10, 20), 10, min(seconds, 1)
    for count in gpus:
        yield _point(count, load, copies, slo_ms, seconds)
    for factor in (0.5, 1.0, 2.0) if quick else LOADS:
        yield _point(overloaded_gpus, factor, copies, slo_ms, seconds)


def _point(gpus: int, load: float, copies: int, slo_ms: float, seconds: float) -> Point:
    profiles = tuple(v100().values())[:VARIETIES]
    models = tuple(range(VARIETIES)) * max(copies * gpus // 10, min(copies, 1))
    rate = load * capacity_rps(profiles, gpus)
    source = Load(SOURCE_POISSON, models=len(models), rate_rps=rate, slo_ns=round(slo_ms * NS_PER_MS))
    return Point({"gpus": gpus, "models": len(models), "load_factor": load, "rate_rps": round(rate)}, Scenario(
        profiles, models, (source,), gpus=gpus, warmup_ns=2 * NS_PER_S, measure_ns=round(seconds * NS_PER_S),
        config=dict(requests_max=131072, copies_max=4 * len(models) + 64 * gpus)))


def figures(rows: Sequence[dict[str, Any]], kernel_ns: Sequence[int]) -> dict[str, Any]:
    """The three figures and what they are drawn from; `kernel_ns`: per request, by row."""
    base = rows[0]
    grown = [(row, cost) for row, cost in zip(rows, kernel_ns, strict=True) if row["load_factor"] == base["load_factor"]]
    last = max(i for i, (row, _) in enumerate(grown) if row["gpus"] == max(line["gpus"] for line, _ in grown))
    per_gpu = {row["gpus"]: row["goodput_rps"] / row["gpus"] for row, _ in grown[:last + 1]}
    kernel = {row["gpus"]: cost for row, cost in grown[:last + 1]}
    return {
        "linear": round(min(per_gpu.values()) / per_gpu[base["gpus"]], 4),
        "goodput_per_gpu_rps": {count: round(value, 2) for count, value in per_gpu.items()},
        "kernel_ratio": round(list(kernel.values())[-1] / kernel[base["gpus"]], 2), "kernel_ns_per_request": kernel,
        **_after_peak(rows[last + 1:]),
    }


def _after_peak(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Goodput at twice the saturating load over the best; None where the rows do not go so far."""
    goodput = {row["load_factor"]: row["goodput_rps"] for row in rows}
    saturating = next((row["load_factor"] for row in rows if row["on_time"] < SATURATED), None)
    twice = None if saturating is None or 2 * saturating not in goodput else 2 * saturating
    peak = max((value for load, value in goodput.items() if twice is None or load <= twice), default=0.0)
    share = None if twice is None else round(goodput[twice] / peak, 4) if peak > 0 else 0.0
    return {"after_peak": share, "saturating_load": saturating, "peak_rps": peak,
            "twice_saturating_rps": None if twice is None else goodput[twice]}
