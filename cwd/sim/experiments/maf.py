"""Clockwork's figure 9: a day's invocations of Azure Functions on 4026 models, 61 varieties x 66, 12 GPUs, SLO 100 ms.

Their trace had some 46,000 functions, eleven to a model; population.py makes as many from what is published of them. A
file (`--trace`) with fewer is made to do: each function is one of the file's by chance, turned by a number of minutes of
its own. Calls are scaled to `rate_rps` in the mean of the measured minutes, by default theirs; in a minute they are
Poisson. A row per minute, and in `whole` one of all.

*Which function is on which model* decides whether the load can be served at all. 12 GPUs have 12,000 ms a second, so 9,638
r/s may take 1.245 ms each. Spread evenly (`--mapping random`) a request costs 4.11 ms alone and 2.95 in a batch of 2: 28
GPUs at Clockwork's mean batch of 1.9, and full batches of 16 still take 15.5. Dealt out in turn, round robin (`stripe`), the
popular functions are on the first ten varieties: 33 GPUs in batches of 1, 22.7 of 2, 13.6 of 8. Either is an overload
under any policy, and theirs was none. Their replayer puts the functions in order of calls and neighbours on one model
(`block`: function i of F on model i * M / F), the models in the order of their varieties' names: so 85 % of the calls are
for the copies of cifar_wideresnet16_10, and rare functions are on all the others. Then the load takes 14.8 GPUs in batches
of 1, 10.2 of 2, 7.7 of 4, 6.0 of 8 and 5.6 of 16: all 12 GPUs are busy, and it is no overload.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cwd.errors import Code, CwdError
from cwd.sim.experiments import Point
from cwd.sim.profile import v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_MINUTES
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.workload import population
from cwd.workload.arrivals import ASSIGNMENTS, assign_models
from cwd.workload.traces import CountTrace, read_trace

VARIETIES, COPIES = 61, 66
#: connections that the calls come by, each an even share of them
CLIENTS = 16
MILLIONTHS = 1_000_000
#: of the hour; so a run of ten minutes has each of the spikes once
FIRST_MINUTE = 54


def points(quick: bool = False, trace: str = "", gpus: int = 12, rate_rps: float = 9638.0, slo_ms: float = 100.0,
           mapping: str = "block", minutes: int = 10, requests: int = 0, copies: int = COPIES, seed: int = 0
           ) -> Iterator[Point]:
    """Rows of one run, as long as `minutes` or, if given, `requests` ask. Quick: a sixth of models, GPUs and rate, two minutes."""
    if quick:
        gpus, rate_rps, minutes, copies = 2, rate_rps / 6, 2, copies // 6
    if min(gpus, minutes, copies) < 1 or rate_rps <= 0 or requests < 0:
        raise CwdError("GPUs, minutes, copies and rate must be more than 0", code=Code.BAD_ARGUMENT)
    if mapping not in ASSIGNMENTS:
        raise CwdError(f"{mapping!r} is no mapping: {', '.join(ASSIGNMENTS)}", code=Code.BAD_ARGUMENT)
    if requests > 0:
        minutes = max(round(requests / (rate_rps * 60)), 1)
    profiles = tuple(sorted(list(v100().values())[:VARIETIES], key=lambda profile: profile.name))
    # their varieties follow one another, copy after copy
    models = tuple(program for program in range(len(profiles)) for _ in range(copies))
    name, rates = model_rates(trace, len(models), mapping, minutes + 1, seed & (1 << 64) - 1)
    # the first minute is not measured
    rates *= rate_rps * 60 / rates[:, 1:].sum() * minutes
    loads = tuple(Load(SOURCE_MINUTES, models=len(models), slo_ns=round(slo_ms * NS_PER_MS)) for _ in range(CLIENTS))
    yield Point({"models": len(models), "gpus": gpus, "rate_rps": rate_rps, "trace": name}, Scenario(
        profiles, models, loads, gpus=gpus, rates=np.round(rates.sum(axis=0, keepdims=True) / CLIENTS * MILLIONTHS),
        shares=shares(rates), warmup_ns=60 * NS_PER_S, measure_ns=minutes * 60 * NS_PER_S),
        minute_ns=60 * NS_PER_S)


def model_rates(trace: str, models: int, mapping: str, minutes: int, seed: int) -> tuple[str, np.ndarray]:
    """(what to call it, calls f8 [models, minutes], not scaled); raises `CwdError` for a file that has no counts."""
    functions = population.FUNCTIONS * models // (VARIETIES * COPIES) + 1
    dice = np.random.default_rng(seed)
    if trace:
        name, (daily, pieces) = Path(trace).name, _of_file(trace, functions, minutes, dice)
    else:
        name, daily = "synthetic", population.daily_calls(functions)
        pieces = population.minute_calls(daily, FIRST_MINUTE, minutes, seed)
    which = assign_models(daily, models, mapping, dice)
    rates, at = np.zeros((models, minutes)), 0
    for piece in pieces:
        np.add.at(rates, which[at:at + len(piece)], piece)
        at += len(piece)
    return name, rates


def _of_file(trace: str, functions: int, minutes: int, dice: np.random.Generator) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """(calls in all f8 [functions], calls f8 [functions, minutes] in one piece) of functions drawn from a file."""
    found = read_trace(trace)
    if not isinstance(found, CountTrace):
        raise CwdError(f"{trace}: a trace with counts per minute is wanted", code=Code.BAD_ARGUMENT)
    called = found.counts[found.counts.sum(axis=1) > 0]
    which = dice.integers(len(called), size=functions)
    turned = dice.integers(called.shape[1], size=functions)
    at = (np.arange(minutes)[None, :] + turned[:, None]) % called.shape[1]
    return called.sum(axis=1)[which].astype(np.float64), iter([called[which[:, None], at] * 1.0])


def shares(rates: np.ndarray) -> np.ndarray:
    """Of each minute, up to where of 2**32 a draw means each model or one before it: i8 [minutes, models]."""
    sums = np.cumsum(rates, axis=0)
    edges = np.round(sums / np.maximum(sums[-1], 1e-300) * (1 << 32)).astype(np.int64).T
    edges[:, -1] = 1 << 32
    return np.ascontiguousarray(edges)
