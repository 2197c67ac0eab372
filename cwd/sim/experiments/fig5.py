"""Clockwork's figure 5: 15 ResNet-50, one V100, 16 closed-loop clients each, SLOs from 10 to 500 ms.

The paper's batch of 16 takes 20 ms, its table's 17.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_CLOSED
from cwd.units import NS_PER_MS, NS_PER_S

MODELS, CLIENTS = 15, 16


def points(quick: bool = False, b16_ms: float = 20.0, seconds: float = 30.0) -> Iterator[Point]:
    """One row per SLO."""
    resnet = profile(RESNET50).with_batch(16, round(b16_ms * NS_PER_MS))
    for slo_ms in (25, 100) if quick else (10, 25, 50, 100, 250, 500):
        load = Load(SOURCE_CLOSED, models=MODELS, in_flight=CLIENTS, slo_ns=slo_ms * NS_PER_MS)
        yield Point({"slo_ms": slo_ms}, Scenario(
            (resnet,), (0,) * MODELS, (load,), warmup_ns=(2 if quick else 10) * NS_PER_S,
            measure_ns=round((min(seconds, 5) if quick else seconds) * NS_PER_S)))
