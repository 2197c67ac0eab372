"""A workload for where no trace is: popularity and lengths shaped like the public ones, from a seed.

Azure Functions 2019 is heavy-tailed to the extreme: of 250 functions ten make nine tenths of the calls, and a third is
called at most once an hour. Rates drawn from a lognormal with a sigma of 4 look like that. Real counts are lumpier.
"""

from __future__ import annotations

import numpy as np

from cwd.workload.traces import CountTrace

RATE_SIGMA = 4.0
#: a share of the functions are timers, called every so many minutes
TIMER_SHARE = 0.3
TIMER_MINUTES = (5, 15, 60)


def synthetic_trace(functions: int = 250, minutes: int = 60, per_second: float = 20.0, seed: int = 0) -> CountTrace:
    """Counts of `functions` functions in `minutes` minutes, `per_second` calls in the mean over all of them."""
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(0.0, RATE_SIGMA, functions)
    timers = rng.random(functions) < TIMER_SHARE
    period = rng.choice(TIMER_MINUTES, functions)
    phase = rng.integers(0, 60, functions)
    calls = (np.arange(minutes) + phase[:, None]) % period[:, None] == 0
    rates[timers] = 0.0
    remaining = per_second * 60 * minutes - calls[timers].sum()
    expected = np.outer(rates / rates.sum() * max(remaining, 0) / minutes, np.ones(minutes))
    counts = np.where(timers[:, None], calls, rng.poisson(expected)).astype(np.int64)
    return CountTrace(counts, tuple(f"synthetic{index:04d}" for index in range(functions)), 0)
