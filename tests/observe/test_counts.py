"""What is counted from a log, in batches of any size, is what a naive twin counts record by record."""

from __future__ import annotations

import bisect
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_log import GPUS, MODELS, Player

from cwd.controller.record import RECORD
from cwd.observe.counts import MODEL_FIELDS, Counts
from cwd.observe.histogram import Histogram
from cwd.observe.hottest import OTHER, Hottest
from cwd.observe.pairs import OpenRequests
from cwd.observe.verdicts import FAILED, IN_TIME, OUTCOMES, REFUSED, outcome_of


def play(seed: int, steps: int) -> Player:
    player = Player(Random(seed))
    for _ in range(steps):
        player.step()
    return player


def cut(records: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    at = sorted({cut % (len(records) + 1) for cut in cuts})
    return np.split(records, at)


def same(found: Histogram, values: list[Any]) -> None:
    counts = [0] * len(found.counts)
    for value in values:
        counts[bisect.bisect_left(found.bounds.tolist(), value)] += 1
    assert found.counts.tolist() == counts
    assert math.isclose(found.sum, math.fsum(values), rel_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 400), st.lists(st.integers(0, 2000), max_size=20))
def test_counts_as_the_naive_twin(seed: int, steps: int, cuts: list[int]) -> None:
    player = play(seed, steps)
    counts = Counts(16, GPUS)
    for batch in cut(player.records(), cuts):
        counts.feed(batch)
    assert (counts.arrivals, counts.cold, counts.lost) == (player.arrivals, player.cold, player.lost)
    assert counts.records == len(player.rows) and counts.now_ns == player.now_ns
    assert {int(code): int(counts.codes[code]) for code in np.flatnonzero(counts.codes)} == dict(player.codes)
    assert len(counts.requests) == len(player.open)
    for found, values in ((counts.duration, player.durations), (counts.queue, player.queues),
                          (counts.refusal, player.refusals), (counts.slo_ratio, player.ratios),
                          (counts.batch, player.batches), (counts.network, player.networks)):
        same(found, values)
    for key, values in player.errors.items():
        same(counts.errors[key], values)
    for kind in range(1, 4):
        assert counts.sent[kind] == player.sent[kind]
        for status in (0, 401):
            assert counts.done[kind, status] == player.done[kind, status]
    for gpu in range(GPUS):
        assert counts.busy_ns[gpu].tolist() == [player.busy[gpu, 0], player.busy[gpu, 1]]
    assert counts.joined() == sorted(player.total)
    for gpu in player.total:
        assert counts.resident[gpu] == player.resident[gpu] and counts.pages_free[gpu] == player.free[gpu]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 300))
def test_models_are_counted_under_the_handle_that_they_have(seed: int, steps: int) -> None:
    """One record at a time, so that a slot's next owner never shares a batch with the last."""
    player = play(seed, steps)
    counts = Counts(16, GPUS)
    for row in player.records():
        counts.feed(row.reshape(1))
    expected = np.zeros((len(counts.models), len(OUTCOMES)), np.int64)
    for (handle, code), number in player.by_model.items():
        known = 0 <= handle and handle & 0xFFFFFFFF < MODELS and handle >> 32 < 50
        expected[handle & 0xFFFFFFFF if known else -1, outcome_of(code)] += number
    assert counts.models[:, : len(OUTCOMES)].tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(50, 600), st.integers(1, 4), st.integers(1, 60))
def test_series_of_the_hottest_only_grow_and_add_up(seed: int, steps: int, limit: int, size: int) -> None:
    player = play(seed, steps)
    counts = Counts(16, GPUS)
    hottest = Hottest(counts, limit)
    seen: dict[str, np.ndarray] = {}
    records = player.records()
    for batch in np.split(records, range(size, len(records), size)):
        counts.feed(batch)
        hottest.look()
        series = dict(hottest.series())
        assert len(series) <= limit + 1 and OTHER in series
        for name, row in series.items():
            assert (row >= seen.get(name, 0)).all(), name
        assert (sum(series.values()) <= counts.models.sum(axis=0)).all()
        # a series that is gone may come back, from 0
        seen = series
    assert len(MODEL_FIELDS) == counts.models.shape[1]


def test_a_place_goes_only_to_who_is_twice_as_hot() -> None:
    counts = Counts(8, 1)
    for slot in range(3):
        counts.name("model", slot, f"m{slot}/1")
    hottest = Hottest(counts, 1)

    def second(at_s: int, **requests: int) -> list[str]:
        counts.now_ns = at_s * 10**9
        for name, number in requests.items():
            counts.models[int(name[1]), IN_TIME] += number
        hottest.look()
        return [name for name, _ in hottest.series()]

    assert second(1, m0=10) == ["m0/1", OTHER]
    assert second(11, m0=10, m1=15) == ["m0/1", OTHER]  # hotter, but not by twice
    assert second(15, m1=500) == ["m0/1", OTHER]  # not looked yet
    assert second(21) == ["m1/1", OTHER]
    assert second(31) == ["m1/1", OTHER]  # quiet, but nobody is hotter
    assert dict(hottest.series())["m1/1"][IN_TIME] == 0 and dict(hottest.series())[OTHER][IN_TIME] == 525


def test_outcomes() -> None:
    assert [OUTCOMES[outcome_of(code)] for code in (0, 101, 103, 109, 110, 111, 205, 999)] == [
        "in_time", "refused", "late", "cancelled", "refused", "failed", "at_fault", "failed"]
    assert (IN_TIME, REFUSED, FAILED) == (0, 2, 5)


@pytest.mark.parametrize("share, wanted", [(0.0, 0.0), (.5, 1.0), (1.0, 3.0)])
def test_quantiles_are_within_their_bucket(share: float, wanted: float) -> None:
    found = Histogram([1, 3, 9])
    found.add(np.array([1, 1, 2, 3]))
    assert found.quantile(share) == pytest.approx(wanted)
    assert Histogram([1, 2]).quantile(.5) == 0.0


def test_nothing_is_counted_from_nothing() -> None:
    counts = Counts(4, 1)
    counts.feed(np.empty(0, RECORD))
    assert counts.records == 0 and counts.joined() == []


def test_replies_whose_arrival_is_not_known_have_no_slo() -> None:
    """A log read from its middle, or with a gap."""
    rows = np.zeros(4, RECORD)
    rows["kind"], rows["id"], rows["a"] = [33, 33, 1, 33], 7, 1
    rows["c"] = [50, 60, 70, 80]  # of a reply that is no SLO
    assert OpenRequests().take(rows).tolist() == [0, 0, 70]
