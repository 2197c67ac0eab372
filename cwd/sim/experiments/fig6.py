"""Clockwork's figure 6: thousands of models on one GPU, SLO 100 ms, until the bus is full.

One more of 3600 "major" ResNet-50 is asked for each second, 1000 r/s in all, evenly split; one "minor" has 200 r/s
throughout. A row per minute; `groups` has the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

MAJORS, MAJOR_RPS, MINOR_RPS = 3600, 1000.0, 200.0
SLO_NS = 100 * NS_PER_MS
LEAD_IN_NS = 60 * NS_PER_S


def points(quick: bool = False, minutes: int = 60) -> Iterator[Point]:
    """Rows of one run. Quick: ten times as many new models a second, for three minutes."""
    minutes, period_ns = (3, NS_PER_S // 10) if quick else (minutes, NS_PER_S)
    loads = (Load(SOURCE_POISSON, model=0, models=MAJORS, group=0, rate_rps=MAJOR_RPS, slo_ns=SLO_NS, period_ns=period_ns,
                  start_ns=LEAD_IN_NS),
             Load(SOURCE_POISSON, model=MAJORS, group=1, rate_rps=MINOR_RPS, slo_ns=SLO_NS))
    yield Point({"models": MAJORS + 1}, Scenario(
        (profile(RESNET50),), (0,) * (MAJORS + 1), loads, groups=("major", "minor"), warmup_ns=LEAD_IN_NS,
        measure_ns=minutes * 60 * NS_PER_S), minute_ns=60 * NS_PER_S)
