"""Clockwork's figure 8: isolation. 6 GPUs, 6 models with SLOs at 200 r/s each, beside batch clients without SLO.

The batch clients are closed loops: none, 12 models with 16 requests in flight each, or 48 with 4. `on_time` is of the
models with SLOs, `batch_rps` the others' goodput.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.experiments.fig7 import GPUS, SLOS_MS
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import NO_SLO_NS, Load, Scenario
from cwd.sim.world import SOURCE_CLOSED, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

SENSITIVE, RATE_RPS = 6, 200.0


def points(quick: bool = False, seconds: float = 20.0) -> Iterator[Point]:
    """One row per kind of batch clients and SLO."""
    resnet = profile(RESNET50)
    for batch, in_flight in ((0, 0), (12, 16)) if quick else ((0, 0), (12, 16), (48, 4)):
        for slo_ms in (6.5, 15) if quick else SLOS_MS:
            loads = tuple(Load(SOURCE_POISSON, model=m, rate_rps=RATE_RPS, slo_ns=round(slo_ms * NS_PER_MS))
                          for m in range(SENSITIVE))
            if batch:
                loads += (Load(SOURCE_CLOSED, model=SENSITIVE, models=batch, group=1, in_flight=in_flight,
                               slo_ns=NO_SLO_NS),)
            yield Point({"slo_ms": slo_ms, "models": SENSITIVE + batch, "tenants": batch}, Scenario(
                (resnet,), (0,) * (SENSITIVE + batch), loads, groups=("sensitive", "batch"), batch_groups=(1,),
                gpus=GPUS, warmup_ns=(2 if quick else 10) * NS_PER_S,
                measure_ns=round((min(seconds, 3) if quick else seconds) * NS_PER_S)))
