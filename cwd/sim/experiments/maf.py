"""Clockwork's figure 9: a day's invocations of Azure Functions on 4026 models, 61 varieties x 66, 12 GPUs, SLO 100 ms.

Their trace had some 46,000 functions, ten or eleven to a model. A file with fewer is made to do: each model gets
`functions` of them by chance, each turned by a number of minutes of its own, all scaled to the rate that is wanted;
inside a minute requests are Poisson. Scaling makes rare functions less rare. Without a file (`--trace`, else
azure_functions_2019_250f.csv.gz in $CWD_DATA) the trace is the built-in synthetic one, and the rows say so. A row per
minute. The rate by default is the mean of theirs, 9,638 r/s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cwd.errors import Code, CwdError
from cwd.sim.experiments import Point
from cwd.sim.profile import v100
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_MINUTES
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.workload.synthetic import synthetic_trace
from cwd.workload.traces import CountTrace, read_trace

VARIETIES, COPIES = 61, 66
TRACE = "azure_functions_2019_250f.csv.gz"
MILLIONTHS = 1_000_000


def points(quick: bool = False, trace: str = "", gpus: int = 12, rate_rps: float = 9638.0, slo_ms: float = 100.0,
           functions: int = 10, minutes: int = 10, copies: int = COPIES, seed: int = 0) -> Iterator[Point]:
    """Rows of one run. Quick: two minutes, a tenth of the models, two GPUs and an eighth of the rate."""
    if quick:
        gpus, rate_rps, minutes, copies = 2, rate_rps / 8, 2, copies // 10
    if min(functions, minutes, copies) < 1 or rate_rps <= 0:
        raise CwdError("functions, minutes, copies and rate must be more than 0", code=Code.BAD_ARGUMENT)
    seed &= (1 << 64) - 1
    name, found = _counts(trace, seed)
    profiles = tuple(v100().values())[:VARIETIES]
    # their varieties follow one another, copy after copy
    models = tuple(program for program in range(len(profiles)) for _ in range(copies))
    rates = _rates(found, len(models), functions, minutes + 1, rate_rps, np.random.default_rng(seed))
    loads = tuple(Load(SOURCE_MINUTES, model=m, count=m, slo_ns=round(slo_ms * NS_PER_MS)) for m in range(len(models)))
    yield Point({"models": len(models), "gpus": gpus, "rate_rps": rate_rps, "trace": name}, Scenario(
        profiles, models, loads, gpus=gpus, rates=rates, warmup_ns=60 * NS_PER_S, measure_ns=minutes * 60 * NS_PER_S,
        config=dict(requests_max=65536)), minute_ns=60 * NS_PER_S)


def _counts(trace: str, seed: int) -> tuple[str, np.ndarray]:
    """(what to call it, calls [functions, minutes]); raises `CwdError` for a file that has no counts."""
    if not trace and os.environ.get("CWD_DATA"):
        trace = str(Path(os.environ["CWD_DATA"]) / TRACE)
    if not trace:
        return "synthetic", synthetic_trace(functions=2000, minutes=480, seed=seed).counts
    found = read_trace(trace)
    if not isinstance(found, CountTrace):
        raise CwdError(f"{trace}: a trace with counts per minute is wanted", code=Code.BAD_ARGUMENT)
    return Path(trace).name, found.counts


def _rates(counts: np.ndarray, models: int, functions: int, minutes: int, rate_rps: float, dice: np.random.Generator
           ) -> np.ndarray:
    """Millionths of requests per minute, i8 [models, minutes], with `rate_rps` in the mean over all minutes of the trace."""
    called = counts[counts.sum(axis=1) > 0]
    which = dice.integers(len(called), size=(models, functions))
    turned = dice.integers(called.shape[1], size=(models, functions))
    at = (np.arange(minutes)[None, None, :] + turned[:, :, None]) % called.shape[1]
    sums = called[which[:, :, None], at].sum(axis=1)
    mean = called.mean(axis=1)[which].sum()
    return np.round(sums * (rate_rps * 60 / mean * MILLIONTHS)).astype(np.int64)
