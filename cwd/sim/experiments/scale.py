"""Clockwork's figure 11 without the controller's own cost: 10 to 150 GPUs, 66 instances of each of 61 varieties.

Virtual time shows what the decisions are worth at scale; how fast they are made is `cwd bench controller`'s question.
The rate is `load` times 1000 r/s per GPU, about what one of theirs served.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.profile import v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

VARIETIES = 61
GPU_RPS = 1000.0


def points(quick: bool = False, copies: int = 66, slo_ms: float = 100.0, load: float = 0.3, seconds: float = 10.0
           ) -> Iterator[Point]:
    """One row per number of GPUs. `copies`: instances of each variety."""
    profiles = tuple(v100().values())[:VARIETIES]
    copies = 4 if quick else copies
    models = tuple(program for program in range(VARIETIES) for _ in range(copies))
    for gpus in (10, 20) if quick else (10, 20, 40, 80, 110, 150):
        rate = load * GPU_RPS * gpus
        loads = tuple(Load(SOURCE_POISSON, model=m, rate_rps=rate / len(models), slo_ns=round(slo_ms * NS_PER_MS))
                      for m in range(len(models)))
        yield Point({"gpus": gpus, "models": len(models), "rate_rps": rate}, Scenario(
            profiles, models, loads, gpus=gpus, warmup_ns=(2 if quick else 10) * NS_PER_S,
            measure_ns=round((min(seconds, 2) if quick else seconds) * NS_PER_S),
            config=dict(requests_max=65536)))
