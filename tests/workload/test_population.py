"""The population of functions: what is published of Azure's is what it has."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.workload import population as pop


@pytest.fixture(scope="module")
def daily() -> np.ndarray:
    return pop.daily_calls()


def minutes(daily: np.ndarray, first: int, count: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(pop.minute_calls(daily, first, count, seed)))


def test_popularity(daily: np.ndarray) -> None:
    assert len(daily) == 46_000 and (np.diff(daily) <= 0).all() and daily[-1] >= 1
    assert daily.sum() / 86_400 == pytest.approx(pop.CALLS_RPS, rel=1e-6)
    assert (daily <= 24).mean() == pytest.approx(0.45, abs=0.001)
    assert (daily <= 1440).mean() == pytest.approx(0.81, abs=0.001)
    assert daily[daily > 1440].sum() / daily.sum() == pytest.approx(0.996, abs=0.003)
    assert daily[: len(daily) // 25].sum() / daily.sum() == pytest.approx(0.91, abs=0.04)
    assert daily[0] == pop.CALLS_MAX


def test_fewer_functions_have_the_same_shape(daily: np.ndarray) -> None:
    few = pop.daily_calls(4_600)
    assert few.sum() == pytest.approx(daily.sum() / 10, rel=1e-6)
    assert np.median(few) == pytest.approx(np.median(daily), rel=0.01)


def test_a_day_has_the_calls_of_each_function(daily: np.ndarray) -> None:
    """In the mean, except that bursts may fall on either side."""
    some = daily[::23]
    found = minutes(some, 0, 1440)
    assert found.sum() == pytest.approx(some.sum(), rel=0.03)
    assert (found >= 0).all()


def test_timers_are_as_many_and_call_as_much_as_is_published(daily: np.ndarray) -> None:
    """A timer has one rate in one minute of its period and 0 in the others."""
    rng = np.random.default_rng(1)
    rank = np.arange(len(daily)) / len(daily)
    popular = rank < pop.TIMER_RANK_MIN
    share = pop.TIMER_SHARE / (1 - pop.TIMER_RANK_MIN)
    assert share * daily[~popular].sum() / daily.sum() == pytest.approx(0.02, abs=0.003)
    clock = np.arange(1440)
    factors = pop._timers(np.array([2.0, 24.0, 96.0, 288.0, 5000.0] * 40), clock, rng)
    assert (factors.mean(axis=1) == 1).all()
    for row, period in zip(factors, (720, 60, 15, 5, 1) * 40, strict=False):
        assert (row > 0).sum() == 1440 // period and set(row.tolist()) <= {0.0, float(period)}
    on_the_hour = factors[1::5][:, 0] > 0
    assert 0.3 < on_the_hour.mean() < 0.7


def test_spikes_and_swings_are_as_large_as_theirs(daily: np.ndarray) -> None:
    """Clockwork's minutes are from 8.4 to 11.8 thousand calls a second, 9.6 in the mean; the highest is a full hour's."""
    rps = minutes(daily, 54, 180, seed=3).sum(axis=0) / 60
    assert 9_300 < rps.mean() < 10_000
    assert 8_400 < rps.min() < 9_200 and 10_700 < rps.max() < 11_800
    assert (54 + int(rps.argmax())) % 60 == 0


def test_a_seed_is_a_population(daily: np.ndarray) -> None:
    first, again, other = (minutes(daily[:3000], 0, 20, seed) for seed in (5, 5, 6))
    assert (first == again).all() and (first != other).any()
