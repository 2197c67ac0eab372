"""The prediction cache beside a naive one: whose answers, how many bytes, who leaves; and who executes for whom."""

from __future__ import annotations

import gc
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import BadRequest, Code, DeadlineUnreachable, ExecutionFailed
from cwd.selection.cache import ARRAY_BYTES, ENTRY_BYTES, USES_MAX, Found, PredictionCache

NO_DIMS = (0, 0, 0, 0)
MODEL = ("m", 1, 7, 1)
SMALL = ENTRY_BYTES + ARRAY_BYTES + 8 + 8  # an int64 in, a float64 out


def put(cache, value, outputs=None, model=MODEL, now=0, ttl=0):
    """Ask for `value`, and have it executed where that is due; how it was found."""
    payload = np.array([value], np.int64)
    key = cache.key(model, NO_DIMS, payload)
    found, what = cache.ask(key, NO_DIMS, payload, ttl, SimpleNamespace(deadline_ns=10**9), now)
    if found is Found.LEAD:
        assert cache.answered(what, outputs or {"y": np.array([value / 2])}, now) == []
    elif found is Found.HIT and outputs is None:
        assert what["y"].tolist() == [value / 2]
    return found


class NaiveClock:
    """CLOCK with use counts over a list: the hand walks, and new ones take its place."""

    def __init__(self, room):
        self.room, self.ring, self.uses = room, [], {}

    def ask(self, value):
        if value in self.uses:
            self.uses[value] = min(self.uses[value] + 1, USES_MAX)
            return True
        if len(self.ring) == self.room:
            while self.uses[self.ring[0]]:
                self.uses[self.ring[0]] -= 1
                self.ring.append(self.ring.pop(0))
            del self.uses[self.ring.pop(0)]
        self.ring.append(value)
        self.uses[value] = 0
        return False


def test_a_zipf_stream_hits_as_often_as_the_policys_simulation():
    random = np.random.default_rng(5)
    weights = 1 / np.arange(1, 2001) ** 0.9
    stream = random.choice(2000, 20_000, p=weights / weights.sum()).tolist()
    cache, naive = PredictionCache(100 * SMALL), NaiveClock(100)
    hits = [naive.ask(value) for value in stream]
    assert [put(cache, value) is Found.HIT for value in stream] == hits
    assert 0.25 < cache.facts()["hit_ratio"] == sum(hits) / len(hits)
    assert cache.evictions == cache.misses - 100 and len(cache) == 100


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 700)), max_size=80), st.integers(0, 8 * SMALL), st.booleans())
def test_the_bound_holds_whatever_comes(stream, bytes_max, compare):
    cache = PredictionCache(bytes_max, compare=compare)
    for value, size in stream:
        put(cache, value, {"y": np.zeros(size), "z": np.zeros((2, 0))})
        assert 0 <= cache.bytes <= bytes_max
        assert cache.bytes == sum(entry.bytes for entry in cache._ring.values())
    cache.invalidate("m")
    assert cache.bytes == len(cache) == 0 and not cache._of_model and not cache._flights


@pytest.mark.parametrize("elements, outputs", [(0, 1), (1, 1), (100, 1), (1, 4), (5000, 2)])
def test_what_is_counted_is_no_less_than_what_it_takes(elements, outputs):
    cache = PredictionCache(1 << 40)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for value in range(500):
            put(cache, value, {f"y{i}": np.full((1, elements), value, "f4") for i in range(outputs)},
                ("m" + str(value % 7), 1, 7, 1))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache) == 500 and taken <= cache.bytes <= 2.5 * taken


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_equal_hashes_never_mix_answers(stream):
    """Every input has the same hash; executions end at once, or some asks later."""
    cache = PredictionCache(10 * SMALL, digest=lambda head, payload: b"0" * 16)
    flying, joined = [], []

    def land():
        value, flight = flying.pop(0)
        for seat in cache.answered(flight, {"y": np.array([value / 2])}, 0):
            assert seat.value == value
            joined.remove(seat)

    for value, at_once in stream:
        payload = np.array([value], np.int64)
        seat = SimpleNamespace(deadline_ns=5, value=value)
        found, what = cache.ask(cache.key(MODEL, NO_DIMS, payload), NO_DIMS, payload, 0, seat, 0)
        if found is Found.HIT:
            assert what["y"].tolist() == [value / 2]
        elif found is Found.LEAD:
            flying.append((value, what))
        elif found is Found.JOIN:
            joined.append(seat)
        if at_once and flying:
            land()
    while flying:
        land()
    assert not joined and not cache._flights


def test_dims_and_versions_are_part_of_the_key():
    cache = PredictionCache(1 << 20)
    payload = np.zeros(6, np.int64)
    keys = {cache.key(model, dims, payload) for model in (MODEL, ("m", 2, 7, 1), ("m", 1, 8, 1), ("m", 1, 7, 2), ("n", 1, 7, 1))
            for dims in ((6, 0, 0, 0), (0, 6, 0, 0))}
    assert len(keys) == 10 and cache.key(MODEL, NO_DIMS, payload) != PredictionCache(0).key(MODEL, NO_DIMS, payload)


def test_what_a_caller_writes_to_an_answer_stays_with_it():
    cache = PredictionCache(1 << 20)
    outputs = {"y": np.array([3.0])}
    assert put(cache, 6, outputs) is Found.LEAD
    outputs["y"][0] = 99
    payload = np.array([6], np.int64)
    for _ in range(2):
        found, what = cache.ask(cache.key(MODEL, NO_DIMS, payload), NO_DIMS, payload, 0, SimpleNamespace(deadline_ns=1), 0)
        assert found is Found.HIT and what["y"].tolist() == [3.0]
        what["y"][0] = 99


def test_a_ttl_and_a_new_answer_in_the_old_ones_place():
    cache = PredictionCache(1 << 20)
    assert put(cache, 1, now=0) is Found.LEAD
    assert put(cache, 1, now=99, ttl=100) is Found.HIT and put(cache, 1, now=100, ttl=100) is Found.LEAD
    assert put(cache, 1, now=199, ttl=100) is Found.HIT and put(cache, 1, now=10**9) is Found.HIT
    assert len(cache) == 1 and cache.bytes == SMALL


def test_invalidation_by_version_also_of_what_is_under_way():
    cache = PredictionCache(1 << 20)
    for version in (1, 2):
        for value in range(3):
            put(cache, value, model=("m", version, 7, 1))
    payload = np.array([9], np.int64)
    key = cache.key(("m", 1, 7, 1), NO_DIMS, payload)
    first, other = SimpleNamespace(deadline_ns=5), SimpleNamespace(deadline_ns=6)
    _, flight = cache.ask(key, NO_DIMS, payload, 0, first, 0)
    assert cache.ask(key, NO_DIMS, payload, 0, other, 0)[0] is Found.JOIN
    assert cache.invalidate("m", 1) == 3 and len(cache) == 3 and cache.invalidated == 3
    # who asks after it starts anew, and who asked before is answered
    found, again = cache.ask(key, NO_DIMS, payload, 0, first, 0)
    assert found is Found.LEAD and again is not flight
    assert cache.answered(flight, {"y": np.array([0.0])}, 0) == [other] and len(cache) == 3
    assert cache.answered(again, {"y": np.array([1.0])}, 0) == [] and len(cache) == 4
    assert cache.invalidate("m") == 4 and cache.invalidate("nobody") == 0


def seats(cache, *deadlines):
    """Equal requests one after the other, as [(how found, flight, seat)]."""
    payload = np.array([1], np.int64)
    found = []
    for deadline_ns in deadlines:
        seat = SimpleNamespace(deadline_ns=deadline_ns)
        found.append((*cache.ask(cache.key(MODEL, NO_DIMS, payload), NO_DIMS, payload, 0, seat, 0), seat))
    return found


def test_who_has_less_time_than_the_leader_executes_too():
    cache = PredictionCache(1 << 20)
    (_, flight, _), (second, _, joiner), (third, _, _), (fourth, _, last) = seats(cache, 50, 60, 20, 30)
    assert (second, third, fourth) == (Found.JOIN, Found.LEAD, Found.JOIN)
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [joiner, last]
    # the other execution ends for nobody
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [] and cache.ended(flight, 20, None) == ([], None)


def test_an_execution_without_an_answer_is_handed_on_to_the_one_with_most_time():
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, short), (_, _, long), (_, _, equal) = seats(cache, 50, 60, 90, 50)
    refused = DeadlineUnreachable("no")
    assert cache.ended(flight, 50, refused) == ([equal], long)
    assert cache.ended(flight, 90, None) == ([], short)
    cache.leave(flight, short)
    assert cache.ended(flight, 60, refused) == ([], None) and not cache._flights
    assert len(cache) == 0 and put(cache, 1) is Found.LEAD  # no error was kept


def test_who_has_another_execution_in_time_waits_for_that_one():
    """Two lead; the one with more time is refused, and then the other: nobody is told, or leads, before there is need."""
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, first), (second, _, _), (third, _, middle) = seats(cache, 100, 100, 50, 60)
    assert (second, third) == (Found.LEAD, Found.JOIN)
    assert cache.ended(flight, 100, DeadlineUnreachable("no")) == ([], None)
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [first, middle]


@pytest.mark.parametrize("error", [None, DeadlineUnreachable("no")])
def test_who_would_wait_for_an_execution_beyond_its_deadline_leads(error):
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, last), (_, _, _), (_, _, middle), (_, _, equal) = seats(cache, 100, 120, 50, 60, 50)
    # none of those for whom the execution until 100 may come too late is left to wait for it, but for whom 60 will do
    assert cache.ended(flight, 50, error) == (([equal], middle) if error else ([], equal))
    assert flight.leads == [100, 60 if error else 50]
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [last] + [middle] * (not error)


def test_after_a_cancel_the_one_with_least_time_leads_for_all():
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, middle), (_, _, last), (_, _, equal) = seats(cache, 50, 60, 90, 50)
    assert cache.ended(flight, 50, None) == ([], equal) and cache.ended(flight, 50, None) == ([], middle)
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [last]


def test_an_slo_that_the_controller_does_not_take_is_one_requests_own():
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, second), (_, _, third) = seats(cache, 50, 60, 50)
    assert cache.ended(flight, 50, BadRequest("too long", code=Code.BAD_SLO)) == ([], third)
    assert cache.answered(flight, {"y": np.array([0.5])}, 0) == [second]


def test_an_error_that_all_would_meet_is_told_to_all_and_not_kept():
    cache = PredictionCache(1 << 20)
    (_, flight, _), (_, _, second), (_, _, third) = seats(cache, 50, 60, 70)
    assert cache.ended(flight, 50, ExecutionFailed("no")) == ([second, third], None)
    assert len(cache) == 0 and put(cache, 1) is Found.LEAD


@settings(max_examples=30)
@given(st.integers(0, 3))
def test_without_room_equal_requests_still_share(room):
    cache = PredictionCache(room)
    (_, flight, _), (second, _, joiner) = seats(cache, 50, 60)
    assert second is Found.JOIN and cache.answered(flight, {"y": np.array([0.5])}, 0) == [joiner]
    assert len(cache) == 0 and put(cache, 1) is Found.LEAD
