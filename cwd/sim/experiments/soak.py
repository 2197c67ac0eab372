"""A small world by chance, and everything that can go wrong in it: what the seed says, checked after every instant."""

from __future__ import annotations

import random
from collections.abc import Iterator

from cwd.sim import faults as f
from cwd.sim.experiments import Point
from cwd.sim.profile import Profile
from cwd.sim.scenario import Fault, Load, Scenario
from cwd.sim.world import SOURCE_BURST, SOURCE_CLOSED, SOURCE_MMPP, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S, NS_PER_US

MODELS_MAX, GPUS_MAX = 8, 3
#: the end, without clients and faults but for a few easy requests from EASY_S before the end on
QUIET_S, EASY_S = 10, 6
EASY_SLO_NS = 3 * NS_PER_S


def points(quick: bool = False, seconds: float = 60.0, faults: bool = True, seed: int = 0) -> Iterator[Point]:
    """One row: the world of the seed. After its faults it must serve a few easy requests, and then nothing may be left."""
    dice = random.Random(seed)
    length_s = max(min(seconds, 14.0) if quick else seconds, QUIET_S + 1.0)
    busy_ns = round((length_s - QUIET_S) * NS_PER_S)
    gpus, models = dice.randint(1, GPUS_MAX), dice.randint(1, MODELS_MAX)
    profiles = tuple(_profile(dice, i) for i in range(dice.randint(1, 3)))
    programs = tuple(dice.randrange(len(profiles)) for _ in range(models))
    largest = max(profiles[program].pages for program in programs)
    loads = tuple(_load(dice, models, busy_ns) for _ in range(dice.randint(1, 3)))
    easy_ns = round((length_s - EASY_S) * NS_PER_S)
    easy = Load(SOURCE_BURST, models=models, group=2, slo_ns=EASY_SLO_NS, start_ns=easy_ns,
                stop_ns=easy_ns + 2 * NS_PER_S, period_ns=200 * NS_PER_MS, count=1)
    planned = tuple(_fault(dice, gpus, models, len(loads), busy_ns) for _ in range(dice.randint(0, 10) if faults else 0))
    scenario = Scenario(
        profiles, programs, (*loads, easy), groups=("tight", "loose", "easy"), gpus=gpus,
        pages=largest + dice.randint(0, 3 * largest), faults=planned,
        profile_permille=dice.choice((1000, 1000, 500, 2000)) if faults else 1000,
        clock_error_ns=dice.choice((0, 20, 200)) * NS_PER_US, warmup_ns=0, measure_ns=round(length_s * NS_PER_S),
        config=dict(requests_max=dice.choice((8, 64, 256)), events_max=128, actions_max=dice.choice((32, 128))))
    yield Point({"models": models, "gpus": gpus, "tenants": len(loads), "faults": len(planned)}, scenario, settles=True)


def _profile(dice: random.Random, number: int) -> Profile:
    """Executions from 1 ms on that cost between a tenth and the whole of the first per further row."""
    first, share = dice.uniform(1, 12), dice.uniform(0.1, 1.0)
    exec_ns = tuple(round(first * (1 + share * (batch - 1)) * NS_PER_MS) for batch in (1, 2, 4, 8, 16))
    return Profile(f"random{number}", exec_ns, round(dice.uniform(0.5, 30) * NS_PER_MS), dice.randint(1, 9))


def _load(dice: random.Random, models: int, busy_ns: int) -> Load:
    first = dice.randrange(models)
    group = dice.randrange(2)
    slo_ns = round(dice.uniform(5, 150) * NS_PER_MS) if group == 0 else round(dice.uniform(0.2, 3) * NS_PER_S)
    shape = dict(model=first, models=dice.randint(1, models - first), group=group, slo_ns=slo_ns, stop_ns=busy_ns,
                 tries_max=dice.choice((0, 0, 1, 5)))
    kind = dice.choice((SOURCE_POISSON, SOURCE_POISSON, SOURCE_MMPP, SOURCE_BURST, SOURCE_CLOSED))
    if kind == SOURCE_POISSON:
        return Load(kind, rate_rps=dice.uniform(1, 80), **shape)
    if kind == SOURCE_MMPP:
        return Load(kind, rate_rps=dice.uniform(1, 10), rate2_rps=dice.uniform(50, 300), dwell_ns=2 * NS_PER_S,
                    dwell2_ns=NS_PER_S // 4, **shape)
    if kind == SOURCE_BURST:
        return Load(kind, period_ns=round(dice.uniform(0.1, 2) * NS_PER_S), count=dice.randint(1, 40),
                    gap_ns=dice.choice((0, 1_000, 100_000)), **shape)
    return Load(kind, in_flight=dice.randint(1, 3), **{**shape, "slo_ns": max(slo_ns, 60 * NS_PER_MS)})


def _fault(dice: random.Random, gpus: int, models: int, loads: int, busy_ns: int) -> Fault:
    kind = dice.choice((f.DEAD, f.CUT, f.LOST_RESULTS, f.LATE_RESULTS, f.SWALLOWED, f.SLOW, f.DEVICE_FAILS, f.BURST,
                        f.OVERLOAD, f.REMOVED))
    at_ns = dice.randrange(busy_ns)
    until_ns = min(at_ns + round(dice.uniform(0.05, 3) * NS_PER_S), busy_ns)
    value, value2 = {
        f.DEAD: (0, dice.randrange(NS_PER_S)), f.CUT: (0, dice.randrange(NS_PER_S)),
        f.LOST_RESULTS: (dice.randrange(300_000), 0), f.LATE_RESULTS: (dice.randrange(700 * NS_PER_MS), 0),
        f.SWALLOWED: (dice.randrange(300_000), 0), f.SLOW: (dice.choice((500, 1500, 10_000)), 0),
        f.DEVICE_FAILS: (dice.randrange(300_000), 0), f.BURST: (dice.randint(2, 60), 0),
        f.OVERLOAD: (dice.choice((3_000, 10_000)), 0), f.REMOVED: (dice.randrange(models), 0),
    }[kind]
    return Fault(at_ns, kind, dice.randrange(gpus), dice.randrange(loads), until_ns, value, value2)
