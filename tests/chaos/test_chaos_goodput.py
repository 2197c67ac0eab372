"""When goodput was back after a fault: against outages made up, whose ends are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.chaos_run.goodput import WINDOW, Group, recovery, served_again_s

RATE = 80.0


def group(*outages, seconds=30.0, share=1.0, seed=1):
    """Requests at a fixed rate; those due in an outage (begin, end) fail, of the others `share` are in time."""
    at_s = np.arange(round(seconds * RATE)) / RATE
    good = np.random.default_rng(seed).random(len(at_s)) < share
    for begin, end in outages:
        good &= ~((at_s >= begin) & (at_s < end))
    return Group("g", at_s, at_s + 0.01, good)


def test_no_outage_no_recovery_to_wait_for():
    found = recovery(group(), 10.0, 11.0, 17.0)
    assert found.level == 1.0 and found.after_s == pytest.approx(0, abs=0.02) and found.kept == found.lowest == 1.0


@given(st.floats(0.1, 4.0), st.floats(0.0, 1.0))
def test_the_end_of_an_outage_is_found(outage_s, length_s):
    found = recovery(group((10.0, 10.0 + length_s + outage_s)), 10.0, 10.0 + length_s, 20.0)
    # 3 of 60 are forgiven, and the requests come in steps of 1 / RATE
    assert outage_s - 4 / RATE <= found.after_s <= outage_s + 1 / RATE
    assert found.kept >= 0.99 and found.lowest <= 1 - min(outage_s * RATE - 1, WINDOW) / WINDOW + 1e-9


def test_an_outage_that_does_not_end():
    found = recovery(group((10.0, 30.0)), 10.0, 10.5, 17.0)
    assert found.after_s is None and math.isnan(found.kept)


def test_a_part_that_stays_lost_is_no_recovery():
    """One of ten requests fails for ever after the fault: the level is not reached."""
    lost = group()
    lost.good[(lost.at_s >= 10) & (np.arange(len(lost.at_s)) % 10 == 0)] = False
    assert recovery(lost, 10.0, 10.5, 17.0).after_s is None


def test_a_relapse_is_seen():
    found = recovery(group((10.0, 11.0), (13.0, 16.0)), 10.0, 10.5, 17.0)
    assert found.after_s < 1.0 and found.kept < 0.6


def test_a_window_does_not_reach_into_the_next_fault():
    assert recovery(group((10.0, 12.0), (12.5, 20.0)), 10.0, 10.5, 12.5).after_s is None


def test_sampling_noise_does_not_decide():
    """At 99 % in time, a fault that does nothing is recovered from at once in nearly all of 500 runs, and soon in all."""
    after = [recovery(group(share=0.99, seed=seed), 10.0, 11.0, 17.0).after_s for seed in range(500)]
    assert None not in after
    assert sum(value > 0.02 for value in after) <= 15 and max(after) < 2.0


def test_served_again_waits_for_the_last_group():
    quick, slow = group((10.0, 11.0)), group((10.0, 12.5))
    assert served_again_s([quick], 10.0) == pytest.approx(11.01, abs=0.03)
    assert served_again_s([quick, slow], 10.0) == pytest.approx(12.51, abs=0.03)
    assert served_again_s([quick, group((10.0, 30.0))], 10.0) is None
