"""Clockwork's figure 6: thousands of models on one GPU, SLO 100 ms, until the bus is full.

One more of 3600 "major" ResNet-50 is asked for each second, 1000 r/s in all, evenly split; one "minor" has 200 r/s
throughout. The row of minute m is of the minute around it, in which 60 m of them are active; `groups` has the two apart.
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
#: Clockwork (OSDI'20), digitised; the minor one had 171 to 192 r/s in the first five minutes
PUBLISHED = [{"minute": minute, "group": "major", "goodput_rps": goodput_rps} for minute, goodput_rps in (
    (1, 397), (5, 303), (10, 291), (20, 282), (30, 249), (45, 207), (59, 186))]
PUBLISHED += [{"minute": minute, "group": "minor", "goodput_rps": 200} for minute in (10, 20, 30, 45, 59)]


def points(quick: bool = False, minutes: int = 59) -> Iterator[Point]:
    """Rows of one run. Quick: ten times as many new models a second, until minute 30 after three."""
    rows, period_ns = (3, NS_PER_S // 10) if quick else (minutes, NS_PER_S)
    names = tuple((10 if quick else 1) * (1 + row) for row in range(rows))
    loads = (Load(SOURCE_POISSON, model=0, models=MAJORS, group=0, rate_rps=MAJOR_RPS, slo_ns=SLO_NS, period_ns=period_ns,
                  start_ns=LEAD_IN_NS),
             Load(SOURCE_POISSON, model=MAJORS, group=1, rate_rps=MINOR_RPS, slo_ns=SLO_NS))
    yield Point({"models": MAJORS + 1}, Scenario(
        (profile(RESNET50),), (0,) * (MAJORS + 1), loads, groups=("major", "minor"),
        warmup_ns=LEAD_IN_NS + 30 * NS_PER_S, measure_ns=rows * 60 * NS_PER_S), minute_ns=60 * NS_PER_S, minutes=names)
