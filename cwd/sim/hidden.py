"""What a request's data makes of its execution, where nobody sees it at arrival: modes, each an application's.

A request of a source with modes is of one of them by chance, and draws a *stretch* from its quantiles: how long it would
run alone, over what the profile says. A batch takes its profile times the largest stretch in it. Only the application's
number reaches the core.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from cwd.sim.random import BITS

#: a stretch of 1
STRETCH_BITS = 20
#: shares at which a mode's stretches are given: evenly in the middle, by halves in the tails
SHARES = tuple(sorted({*(i / 32 for i in range(1, 32)), *(2.0 ** -k for k in range(6, 15)),
                       *(1 - 2.0 ** -k for k in range(6, 15))}))


@dataclasses.dataclass(frozen=True)
class Mode:
    """One application's requests: their share of the source's, and the quantiles of their stretch at SHARES."""

    app: int
    share: float
    stretches: tuple[float, ...]


def constant(value: float) -> tuple[float, ...]:
    return (value,) * len(SHARES)


def normal(mean: float, deviation: float, least: float) -> tuple[float, ...]:
    """Quantiles of a normal distribution, none below `least`."""
    return tuple(max(least, mean + deviation * NormalDist().inv_cdf(share)) for share in SHARES)


def lognormal(median: float, sigma: float, least: float) -> tuple[float, ...]:
    return tuple(max(least, median * math.exp(sigma * NormalDist().inv_cdf(share))) for share in SHARES)


def recorded(values: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of what was measured."""
    return tuple(float(value) for value in np.quantile(np.asarray(values, float), SHARES))


def scaled(mode: Mode, by: float) -> Mode:
    return dataclasses.replace(mode, stretches=tuple(value * by for value in mode.stretches))


def tables(modes: Sequence[Mode]) -> tuple[np.ndarray, np.ndarray]:
    """(i8 [modes, 2]: application, share of 2**32 up to and with it; i8 [modes, points, 2]: `random.quantile` tables)."""
    if not modes:
        return np.zeros((1, 2), np.int64), np.zeros((1, 2, 2), np.int64)
    shares = (0.0, *SHARES, 1.0)
    points = np.zeros((len(modes), len(shares), 2), np.int64)
    points[:, :, 0] = [round(share * (1 << BITS)) for share in shares]
    kinds, total, before = np.zeros((len(modes), 2), np.int64), sum(mode.share for mode in modes), 0.0
    for i, mode in enumerate(modes):
        before += mode.share
        kinds[i] = mode.app, round(before / total * (1 << BITS))
        stretches = (mode.stretches[0], *mode.stretches, mode.stretches[-1])
        points[i, :, 1] = [max(1, round(value * (1 << STRETCH_BITS))) for value in stretches]
    return kinds, points


@functools.cache
def _mixture(modes: tuple[Mode, ...], steps: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """(values ascending, share up to and with each) of one request of the source."""
    at = (np.arange(steps) + 0.5) / steps
    shares = (0.0, *SHARES, 1.0)
    values = np.concatenate([np.interp(at, shares, (m.stretches[0], *m.stretches, m.stretches[-1])) for m in modes])
    weights = np.repeat([mode.share for mode in modes], steps)
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(weights[order]) / weights.sum()


def percentile(modes: Sequence[Mode], share: float) -> float:
    """What so many of the source's requests do not exceed."""
    values, shares = _mixture(tuple(modes))
    return float(values[np.searchsorted(shares, share)])


def mean_of_largest(modes: Sequence[Mode], count: int) -> float:
    """The mean of the largest of `count` of the source's requests."""
    values, shares = _mixture(tuple(modes))
    return float((values * np.diff(shares ** count, prepend=0.0)).sum())


def gap_tables(cvs: Sequence[float]) -> np.ndarray:
    """i8 [tables, points, 2]: `gamma_gaps` of each."""
    return np.stack([gamma_gaps(cv) for cv in cvs]) if cvs else np.zeros((1, 2, 2), np.int64)


@functools.cache
def gamma_gaps(cv: float) -> np.ndarray:
    """Quantile table of gaps with a gamma distribution of mean 2**STRETCH_BITS and that coefficient of variation.

    Between two points the table is a line; the whole is scaled so that the mean is exact.
    """
    shape = 1 / (cv * cv)
    tails = [1 - 2.0 ** (-i / 4) for i in range(1, 4 * 24)]
    shares = sorted({0.0, *(i / 16 for i in range(1, 8)), *tails})
    values = [_gamma_quantile(shape, share) for share in shares]
    values.append(values[-1])
    shares.append(1.0)
    mean = sum((b - a) * (u + v) / 2 for a, b, u, v in
               zip(shares, shares[1:], values, values[1:], strict=False))
    return np.array([(round(share * (1 << BITS)), round(value / mean * (1 << STRETCH_BITS)))
                     for share, value in zip(shares, values, strict=True)], np.int64)


def _gamma_quantile(shape: float, share: float) -> float:
    """Where so much of a gamma distribution with that shape and scale 1 lies below, by bisection of the logarithm."""
    if share <= 0.0:
        return 0.0
    return math.exp(_bisect(lambda x: _gamma_above(shape, math.exp(x)) > 1 - share, -700.0, 6.0))


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


def _gamma_above(shape: float, x: float) -> float:
    """How much of a gamma distribution lies above x: a series for small x, Lentz's continued fraction for large."""
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        for n in range(1, 500):
            term *= x / (shape + n)
            total += term
            if term < total * 1e-17:
                break
        return 1 - front * total
    b = x + 1 - shape
    c, d = 1e300, 1 / b
    h = d
    for i in range(1, 500):
        a = -i * (i - shape)
        b += 2
        d = 1 / (a * d + b)
        c = b + a / c
        h *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * h
