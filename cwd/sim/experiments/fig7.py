"""Clockwork's figure 7: how low SLOs can be. 6 GPUs, 12 or 48 ResNet-50, open loops of 600, 1200 or 2400 r/s in all.

Theirs is a ramp; here each SLO (times 1.5 each, from one execution on) has a run of its own. At 2400 r/s each GPU has 400,
so that all hangs on what one execution takes: 2.73 ms by the paper's table, of which 366 fit into a second, but it had
380 of 400 answered within 15 ms almost without batches. With `--b1-ms 2.61` (383 a second) there is room for them.
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
#: Clockwork (OSDI'20), digitised; satisfaction by SLO for (rate, models)
PUBLISHED = [
    {"rate_rps": rate, "models": models, "slo_ms": slo_ms, "on_time": on_time}
    for (rate, models), shares in {
        (600, 12): (.12, .83, .99, 1, 1, 1, 1, 1), (600, 48): (.15, .83, .99, 1, 1, 1, 1, 1),
        (1200, 12): (.10, .65, .96, 1, 1, 1, 1, 1), (1200, 48): (.10, .65, .97, 1, 1, 1, 1, 1),
        (2400, 12): (.01, .05, .29, .89, .95, 1, 1, 1), (2400, 48): (.01, .04, .23, .84, .92, .97, .99, .99),
    }.items() for slo_ms, on_time in zip(SLOS_MS, shares, strict=True)]


def points(quick: bool = False, b1_ms: float = 2.73, seconds: float = 20.0) -> Iterator[Point]:
    """One row per number of models, rate and SLO."""
    resnet = profile(RESNET50).with_batch(1, round(b1_ms * NS_PER_MS))
    for models in (12,) if quick else (12, 48):
        for rate in (1200,) if quick else (600, 1200, 2400):
            for slo_ms in (4.4, 10, 22) if quick else SLOS_MS:
                loads = tuple(Load(SOURCE_POISSON, model=m, rate_rps=rate / models, slo_ns=round(slo_ms * NS_PER_MS))
                              for m in range(models))
                yield Point({"slo_ms": slo_ms, "rate_rps": rate, "models": models}, Scenario(
                    (resnet,), (0,) * models, loads, gpus=GPUS, warmup_ns=(2 if quick else 10) * NS_PER_S,
                    measure_ns=round((min(seconds, 3) if quick else seconds) * NS_PER_S)))
