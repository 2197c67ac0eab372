"""The schedule of faults: every kind in a minute, time to recover in between, and the same again for the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.chaos_run.schedule import LEAD_S, LEADERS_APART_S, LENGTHS_S, RECOVERY_S, Kind, schedule

WORKERS, LINKS = ("w0", "w1", "w2"), ("w0", "w1", "w2", "native", "gateway")


def made(seed, seconds, overlap=False, etcd=False):
    return schedule(seed, seconds, WORKERS, LINKS, overlap, etcd)


@given(st.integers(0, 10**6), st.sampled_from([(60.0, False), (61.5, False), (90.0, False), (160.0, False), (600.0, False),
                                               (70.0, True), (160.0, True), (600.0, True)]))
def test_every_kind_with_time_to_recover(seed, length):
    seconds, etcd = length
    found = made(seed, seconds, etcd=etcd)
    assert {fault.kind for fault in found} == set(Kind) - (set() if etcd else {Kind.KILL_ETCD})
    assert found[0].at_s >= LEAD_S and found[-1].end_s <= seconds - RECOVERY_S + 0.001
    for one, after in zip(found, found[1:], strict=False):
        assert after.at_s - one.end_s >= RECOVERY_S - 0.002, (one, after)
    for fault in found:
        low, high = LENGTHS_S[fault.kind]
        assert low - 0.001 <= fault.length_s <= high + 0.001
        assert (fault.target in WORKERS) if fault.kind is Kind.KILL_WORKER else fault.target in ("", *LINKS)
    kills = [fault.at_s for fault in found if fault.kind is Kind.KILL_LEADER]
    assert all(after - before >= LEADERS_APART_S for before, after in zip(kills, kills[1:], strict=False))


def test_the_same_again_and_another_for_another_seed():
    assert made(1, 600.0) == made(1, 600.0) != made(2, 600.0)
    assert made(1, 60.0) != made(1, 60.0, overlap=True)


def test_every_target_has_its_turn():
    found = made(3, 600.0)
    assert {fault.target for fault in found if fault.kind is Kind.KILL_WORKER} == set(WORKERS)
    cut = {fault.target for fault in found if fault.kind in (Kind.CUT, Kind.CUT_SILENT, Kind.STALL, Kind.DELAY)}
    assert cut == set(LINKS)


def test_overlapping_faults_are_asked_for():
    found = [pair for seed in range(20) for pair in zip(made(seed, 60.0, True), made(seed, 60.0, True)[1:], strict=False)]
    assert any(after.at_s < one.end_s + RECOVERY_S for one, after in found)


def test_too_short_for_every_kind():
    with pytest.raises(ValueError):
        made(1, 59.0)
    with pytest.raises(ValueError):
        made(1, 69.0, etcd=True)
