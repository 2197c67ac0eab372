"""Clockwork's figure 11 without the controller's own time: from 10 to 1,000 GPUs, then 100 GPUs at more than they can do.

Models grow with the GPUs: `copies` instances of each of 61 varieties for every 10 GPUs, each asked for equally often.
A load of 1 is what full batches of 16 would serve. Figures are drawn from the rows. `linear`: the least goodput of a GPU
at `load` as a share of that in the smallest world, `linear_full` the same where there is more than can be served.
`kernel_ratio`: what a request costs in the largest world over the smallest, core and simulated GPUs together, the worse
of the two loads. `after_peak`: from the saturating load on (the least at which under 99 % is in time), the least goodput
as a share of the best with less load; `twice` is at twice the saturating load. Theirs came to 103,387 r/s with 110 GPUs,
and fell to 73 % of that with 130.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cwd.sim.experiments import Point
from cwd.sim.experiments.overload import capacity_rps
from cwd.sim.profile import V100_PAGES, v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

VARIETIES = 61
SATURATED = 0.99
#: more than can be served
FULL = 1.5
LOADS = (0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 6.0)
#: a quarter of a V100: so in the smallest world, too, no GPU has room for all models, and they come and go
PAGES = V100_PAGES // 4
#: small worlds are measured for longer, for as many requests as this many GPUs have in the time
GPUS_MEASURED = 100


def points(quick: bool = False, copies: int = 2, slo_ms: float = 100.0, load: float = 0.3, seconds: float = 1.0,
           gpus: tuple[int, ...] = (10, 30, 100, 300, 1000), overloaded_gpus: int = 100) -> Iterator[Point]:
    """A row per number of GPUs at `load` and at 1.5, then one per load on `overloaded_gpus`. Quick: 10 and 20 GPUs."""
    if quick:
        gpus, overloaded_gpus, seconds = (10, 20), 10, min(seconds, 0.1)
    for factor in (load, FULL):
        for count in gpus:
            yield _point(count, factor, copies, slo_ms, seconds)
    for factor in (0.5, 1.0, 2.0) if quick else LOADS:
        yield _point(overloaded_gpus, factor, copies, slo_ms, seconds)


def _point(gpus: int, load: float, copies: int, slo_ms: float, seconds: float) -> Point:
    profiles = tuple(v100().values())[:VARIETIES]
    models = tuple(range(VARIETIES)) * max(copies * gpus // 10, min(copies, 1))
    rate = load * capacity_rps(profiles, gpus)
    measure_ns = round(seconds * max(1.0, GPUS_MEASURED / gpus) * NS_PER_S)
    source = Load(SOURCE_POISSON, models=len(models), rate_rps=rate, slo_ns=round(slo_ms * NS_PER_MS))
    return Point({"gpus": gpus, "models": len(models), "load_factor": load, "rate_rps": round(rate)}, Scenario(
        profiles, models, (source,), gpus=gpus, pages=PAGES, warmup_ns=NS_PER_S, measure_ns=measure_ns,
        # a look at a thousand GPUs takes as long as thousands of requests, and would be measured with them
        look_every=1 << 60, config=dict(requests_max=131072, copies_max=128 * gpus)))


def figures(rows: Sequence[dict[str, Any]], kernel_ns: Sequence[int]) -> dict[str, Any]:
    """The figures and what they are drawn from; `kernel_ns`: per request, by row."""
    sizes = list(dict.fromkeys(row["gpus"] for row in rows[:_grown(rows)]))
    count = len(sizes)
    per_gpu = [row["goodput_rps"] / row["gpus"] for row in rows]
    part, full = slice(0, count), slice(count, 2 * count)
    return {
        "linear": _share(per_gpu[part]), "linear_full": _share(per_gpu[full]),
        "goodput_per_gpu_rps": dict(zip(sizes, (round(value, 2) for value in per_gpu[part]), strict=True)),
        "goodput_per_gpu_full_rps": dict(zip(sizes, (round(value, 2) for value in per_gpu[full]), strict=True)),
        "kernel_ratio": round(max(kernel_ns[at + count - 1] / max(kernel_ns[at], 1) for at in (0, count)), 2),
        "kernel_ns_per_request": dict(zip(sizes, kernel_ns[part], strict=True)),
        "kernel_ns_per_request_full": dict(zip(sizes, kernel_ns[full], strict=True)),
        **_after_peak(rows[2 * count:]),
    }


def _grown(rows: Sequence[dict[str, Any]]) -> int:
    """How many rows there are from the first on before the load changes: one per size of the world."""
    return next((i for i, row in enumerate(rows) if row["load_factor"] != rows[0]["load_factor"]), len(rows))


def _share(values: Sequence[float]) -> float:
    """The least as a share of the first."""
    return round(min(values) / values[0], 4) if values[0] > 0 else 0.0


def _after_peak(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far goodput falls under more and more load; None where the rows do not go so far."""
    goodput = {row["load_factor"]: row["goodput_rps"] for row in rows}
    saturating = next((row["load_factor"] for row in rows if row["on_time"] < SATURATED), None)
    if saturating is None:
        return {"saturating_load": None, "after_peak": None, "twice": None, "peak_rps": max(goodput.values(), default=0.0)}
    shares, best = {}, 0.0
    for load, value in goodput.items():
        best = max(best, value)
        shares[load] = round(value / best, 4) if best > 0 else 0.0
    return {"saturating_load": saturating, "after_peak": min(value for load, value in shares.items() if load >= saturating),
            "twice": shares.get(2 * saturating), "peak_rps": best}
