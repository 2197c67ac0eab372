"""Clockwork's figure 8: isolation. 6 GPUs, 6 models with SLOs at 200 r/s each, beside batch clients without SLO.

The batch clients are closed loops: none, 12 models with 16 requests in flight each, or 48 with 4. `on_time` is of the
models with SLOs, `batch_rps` the others' goodput. The paper's scheduler has batches of 8 at most unless told otherwise,
and its figures for 12 tenants are those of `--max-batch 8`.
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
#: Clockwork (OSDI'20), digitised; by tenants: what was in time by SLO, and the others' goodput at the least and the largest
PUBLISHED = [{"tenants": tenants, "slo_ms": slo_ms, "on_time": on_time} for tenants, shares in {
    0: (.11, .63, .96, 1, 1, 1, 1, 1), 12: (.03, .00, .03, .66, .88, 1, 1, 1), 48: (.03, .00, .03, .82, .98, 1, 1, 1),
}.items() for slo_ms, on_time in zip(SLOS_MS, shares, strict=True)]
PUBLISHED += [{"tenants": tenants, "slo_ms": slo_ms, "batch_rps": batch_rps} for tenants, slo_ms, batch_rps in (
    (12, 2.9, 3008), (12, 50, 2560), (48, 2.9, 2228), (48, 50, 2084))]


def points(quick: bool = False, max_batch: int = 16, b1_ms: float = 2.73, seconds: float = 20.0) -> Iterator[Point]:
    """One row per kind of batch clients and SLO."""
    resnet = profile(RESNET50).with_batch(1, round(b1_ms * NS_PER_MS)).up_to(max_batch)
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
