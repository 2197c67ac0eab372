"""How long before its deadline an app answers: as long as it lately took, from what was measured alone."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.selection.margin import Margin
from cwd.units import NS_PER_MS, NS_PER_S

MS = NS_PER_MS
SLO = 100 * MS


def fed(margin, *late_ms, since_ns=0, every_ns=50 * MS):
    """The time after that many answers, one every 50 ms."""
    for number, late in enumerate(late_ms):
        margin.observe(round(late * MS), since_ns + number * every_ns)
    return since_ns + len(late_ms) * every_ns


def test_before_anything_is_known():
    margin = Margin()
    assert [margin.of(slo * MS, 0) for slo in (4, 50, 100, 1000)] == [1 * MS, 4 * MS, 4 * MS, 20 * MS]


def test_it_becomes_what_is_measured():
    margin = Margin()
    now = fed(margin, *[0.5] * 40)
    assert margin.of(50 * MS, now) == 1.5 * MS and margin.of(SLO, now) == 2 * MS
    now = fed(margin, *[6.0] * 3, since_ns=now)
    assert margin.of(SLO, now) == 7 * MS and margin.of(20 * MS, now) == 5 * MS


def test_few_measurements_do_not_make_it_shorter_but_longer():
    margin = Margin()
    assert margin.of(SLO, fed(margin, *[0.1] * 20)) == 4 * MS
    assert margin.of(SLO, fed(margin, 9.0, 9.5, since_ns=2 * NS_PER_S)) == 10 * MS


def test_a_single_stall_says_nothing():
    margin = Margin()
    now = fed(margin, *[1.0] * 60, 77.0, *[1.0] * 60)
    assert margin.of(SLO, now) == 2 * MS


def test_who_hears_of_it_in_another_process_is_as_late():
    margin = Margin(processes=2)
    assert margin.of(SLO, fed(margin, *[4.0] * 40)) == 9 * MS


def test_what_is_old_is_forgotten():
    margin = Margin()
    now = fed(margin, *[20.0] * 50)
    assert margin.of(SLO, now) == 21 * MS
    assert margin.of(SLO, now + 31 * NS_PER_S) == 4 * MS
    now = fed(margin, *[20.0] * 50)
    now = fed(margin, *[1.0] * 300, since_ns=now)
    assert margin.of(SLO, now) == 2 * MS


@pytest.mark.parametrize("seed", range(5))
def test_at_most_one_in_a_hundred_comes_later(seed):
    margin, rng = Margin(), np.random.default_rng(seed)
    later, count, now = 0, 20_000, 0
    for _ in range(count):
        now += 10 * MS
        late = int(rng.gamma(2.0, 0.7) * MS)
        later += late > margin.of(SLO, now)
        margin.observe(late, now)
    assert 0 < later < count / 100
