"""Far more than the GPUs can do: open loops on 16 varieties of models that all fit, from half to five times capacity.

Capacity is what batches of 16 would give, with every model asked for equally often. The load where Shepherd's authors
found Clockwork's policy wanting (NSDI'23): under overload its batches stayed small. `--bursty`: each model's requests
come as a two-state MMPP, a tenth of the time at five times the mean rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from cwd.sim.experiments import Point
from cwd.sim.profile import BATCHES, Profile, v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_MMPP, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

MODELS = 16
BURST_SHARE, BURST_RATE = 0.1, 5.0
BURST_NS = 200 * NS_PER_MS


def points(quick: bool = False, gpus: int = 12, slo_ms: float = 100.0, bursty: bool = False, tries: int = 0,
           seconds: float = 20.0) -> Iterator[Point]:
    """One row per load factor. `tries`: how often clients send a refused request again."""
    profiles = varieties(MODELS)
    capacity = capacity_rps(profiles, gpus)
    for factor in (1.0, 5.0) if quick else (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0):
        rate = capacity * factor / MODELS
        loads = tuple(_load(m, rate, round(slo_ms * NS_PER_MS), bursty, tries) for m in range(MODELS))
        yield Point({"load_factor": factor, "slo_ms": slo_ms, "rate_rps": round(capacity * factor)}, Scenario(
            profiles, tuple(range(MODELS)), loads, gpus=gpus, warmup_ns=(2 if quick else 5) * NS_PER_S,
            measure_ns=round((min(seconds, 3) if quick else seconds) * NS_PER_S)))


def varieties(count: int) -> tuple[Profile, ...]:
    """So many models of the table, evenly chosen."""
    table = list(v100().values())
    return tuple(table[i * len(table) // count] for i in range(count))


def capacity_rps(profiles: tuple[Profile, ...], gpus: int) -> float:
    """Requests per second in full batches of the largest size, each model as often as any other."""
    per_request_ns = sum(profile.exec_ns[-1] / BATCHES[-1] for profile in profiles) / len(profiles)
    return gpus * NS_PER_S / per_request_ns


def _load(model: int, rate: float, slo_ns: int, bursty: bool, tries: int) -> Load:
    if not bursty:
        return Load(SOURCE_POISSON, model=model, rate_rps=rate, slo_ns=slo_ns, tries_max=tries)
    calm = rate * (1 - BURST_SHARE * BURST_RATE) / (1 - BURST_SHARE)
    return Load(SOURCE_MMPP, model=model, rate_rps=calm, rate2_rps=rate * BURST_RATE, slo_ns=slo_ns, tries_max=tries,
                dwell_ns=round(BURST_NS * (1 - BURST_SHARE) / BURST_SHARE), dwell2_ns=BURST_NS)
