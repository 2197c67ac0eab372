"""Azure's functions as a population from a seed: how often each is called, minute by minute, for as long as is wanted.

The public sample has 250 functions, the trace that Clockwork replayed some 46,000. What is published of it, by Shahrad et
al. (ATC'20, sections 3.2 to 3.4) and by Clockwork (OSDI'20, section 6.5 and figure 9), and how it is met here:

- *Popularity*: 45 % are called at most once an hour, 81 % at most once a minute. A lognormal of calls a day goes through
  these two points (sigma 4.08; synthetic.py has 4). Those above are a power law from there on, with the exponent that
  takes all together to the 9,638 calls a second of Clockwork's six hours. Then 99.4 % of the calls are for the fifth that is
  called more than once a minute (published: 99.6), and 94 % for the upper 4 % (91 in the sample). Nobody is called less than
  once a day, or would not be in a day's trace.
- *The head*: how large the largest are is not published (of all of Azure they are 8 orders of magnitude above the
  smallest). It is cut at 23 calls a second, since `clockwork-paper` then comes near to what Clockwork measured under this
  load, nothing late: mean batch 1.5 (theirs 1.9), median 11 ms (17-21, with the transfer of inputs), p99 18 (25-50), 1.9 %
  cold requests (1.3). Cut at 17, where the lognormal itself would come to the same sum, it has batches of 1.9, 19 and
  31 ms, but gives up 0.03 %; cut at 116 batches of 1.2, 7 and 14 ms.
- *Timers*: 15.6 % of the functions with 2.0 % of the calls, so they are taken from outside the most popular 2 %. A timer
  is called as often as it was drawn, but in step: in one minute of its period of 5, 15 or 60 minutes or more, half of them
  on the clock's round minute and the others in one of their own.
- *What follows timers*: 58 % of the calls come from queues and events. 58 % of the other functions share a spike at each
  fifth, fifteenth and sixtieth minute, as high as takes the whole near Clockwork's highest minute (11.8 of 9.6 thousand).
- *Bursts*: 40 % have gaps with a coefficient of variation above 1. As many, but for the most popular, are on for a third
  of the time, in spells of ten minutes, and called three times as often then. The least minute is then 8.8 thousand
  (Clockwork's: 8.4).
- *Rare functions* come of themselves: a third fires at most once in two hours, some not at all in a given run.

The day's swell is left out: six hours of a plateau are meant. Inside a minute calls are for the user to place (Clockwork:
Poisson).
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FUNCTIONS = 46_000
CALLS_RPS = 9_638.0
DAY = 1440
#: most calls a day of one function
CALLS_MAX = 2e6
#: (share of the functions, calls a day at most)
HOURLY, MINUTELY = (0.45, 24.0), (0.81, 1440.0)
TIMER_SHARE, TIMER_RANK_MIN = 0.156, 0.02
TIMER_MINUTES = np.array([1, 5, 15, 60, 180, 360, 720, 1440])
ROUND_SHARE = 0.5
FOLLOWER_SHARE = 0.58
#: (every so many minutes, how much more followers are called then)
SPIKES = ((5, 0.06), (15, 0.05), (60, 0.04))
BURSTY_SHARE, BURSTY_RANK_MIN, BURST_ON, BURST_MINUTES = 0.40, 0.002, 1 / 3, 10
#: functions whose minutes are made at a time
CHUNK = 2_000

Floats = NDArray[np.float64]


def daily_calls(functions: int = FUNCTIONS) -> Floats:
    """Calls a day of each function, the most popular first."""
    normal = NormalDist()
    low, high = normal.inv_cdf(HOURLY[0]), normal.inv_cdf(MINUTELY[0])
    sigma = np.log(MINUTELY[1] / HOURLY[1]) / (high - low)
    rank = (np.arange(functions) + 0.5) / functions
    body = np.exp(np.log(HOURLY[1]) + sigma * (np.array([normal.inv_cdf(1 - share) for share in rank]) - low))
    body, above = np.maximum(body, 1.0), np.maximum((1 - MINUTELY[0]) / rank, 1.0)
    total = CALLS_RPS * 60 * DAY * functions / FUNCTIONS
    least, most = 0.1, 10.0
    for _ in range(64):
        exponent = (least + most) / 2
        daily = np.where(above > 1, np.minimum(MINUTELY[1] * above ** exponent, CALLS_MAX), body)
        least, most = (exponent, most) if daily.sum() < total else (least, exponent)
    return daily


def minute_calls(daily: Floats, first_minute: int, minutes: int, seed: int) -> Iterator[Floats]:
    """Expected calls of each function in the minutes of the day from `first_minute` on, f8 [up to CHUNK, minutes], in turn."""
    rng = np.random.default_rng(seed)
    for begin in range(0, len(daily), CHUNK):
        mine = daily[begin:begin + CHUNK]
        rank = (begin + np.arange(len(mine))) / len(daily)
        share = np.where(rank >= TIMER_RANK_MIN, TIMER_SHARE / (1 - TIMER_RANK_MIN), 0.0)
        timer = rng.random(len(mine)) < share
        clock = first_minute + np.arange(minutes)
        others = _others(rank, clock, rng)
        yield (mine / DAY)[:, None] * np.where(timer[:, None], _timers(mine, clock, rng), others)


def _timers(daily: Floats, clock: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """How many times its mean a timer is called in each minute: its period's length in one of them, else 0."""
    # the longest period that is not longer than what its calls a day leave between two
    period = TIMER_MINUTES[np.searchsorted(TIMER_MINUTES, DAY / daily, side="right").clip(1) - 1]
    phase = np.where(rng.random(len(daily)) < ROUND_SHARE, 0, rng.integers(0, DAY, len(daily)))
    return np.where((clock[None, :] - phase[:, None]) % period[:, None] == 0, period[:, None], 0).astype(np.float64)


def _others(rank: Floats, clock: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """The same for the other functions: spikes of those that follow timers, times the spells of the bursty ones."""
    functions, spikes, mean = len(rank), np.ones(len(clock)), 1.0
    for period, height in SPIKES:
        spikes += np.where(clock % period == 0, height / FOLLOWER_SHARE, 0.0)
        mean += height / FOLLOWER_SHARE / period
    follows = rng.random(functions) < FOLLOWER_SHARE
    factors = np.where(follows[:, None], spikes[None, :] / mean, 1.0)
    bursty = (rng.random(functions) < BURSTY_SHARE) & (rank >= BURSTY_RANK_MIN)
    on = rng.random(functions) < BURST_ON
    ends, begins = 1 / BURST_MINUTES, BURST_ON / (1 - BURST_ON) / BURST_MINUTES
    for minute in range(len(clock)):
        factors[bursty, minute] *= np.where(on[bursty], 1 / BURST_ON, 0.0)
        on ^= rng.random(functions) < np.where(on, ends, begins)
    return factors
