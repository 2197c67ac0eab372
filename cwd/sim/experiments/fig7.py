"""Clockwork's figure 7: how low SLOs can be. 6 GPUs, 12 or 48 ResNet-50, open loops of 600, 1200 or 2400 r/s in all.

Theirs is a ramp; here each SLO (times 1.5 each, from one execution on) has a run of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

GPUS = 6
SLOS_MS = (2.9, 4.4, 6.5, 10, 15, 22, 33, 50)


def points(quick: bool = False, seconds: float = 20.0) -> Iterator[Point]:
    """One row per number of models, rate and SLO."""
    resnet = profile(RESNET50)
    for models in (12,) if quick else (12, 48):
        for rate in (1200,) if quick else (600, 1200, 2400):
            for slo_ms in (4.4, 10, 22) if quick else SLOS_MS:
                loads = tuple(Load(SOURCE_POISSON, model=m, rate_rps=rate / models, slo_ns=round(slo_ms * NS_PER_MS))
                              for m in range(models))
                yield Point({"slo_ms": slo_ms, "rate_rps": rate, "models": models}, Scenario(
                    (resnet,), (0,) * models, loads, gpus=GPUS, warmup_ns=(2 if quick else 10) * NS_PER_S,
                    measure_ns=round((min(seconds, 3) if quick else seconds) * NS_PER_S)))
