"""The core's data structures against their naive twins."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveEstimate, NaiveHeap, NaiveLane, NaiveSet, almost_largest
from script import MS, US, Script

from cwd.core import engine, estimate, hashmap, heap, ordered
from cwd.core.check import members
from cwd.core.world import ESTIMATE, NODE, SLOT, TIMER
from cwd.errors import Code

SIZE = 24
SMALL = settings(max_examples=60, deadline=None)
steps = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(-4, 4)), max_size=120)


@SMALL
@given(steps)
def test_ordered_set_is_a_sorted_list(script):
    """Inserting what is out and removing what is in, the treap's order, links, first and successor stay right."""
    nodes, root, naive = np.zeros(SIZE, NODE), -1, NaiveSet()
    for node, key in script:
        if node in naive.nodes():
            root = int(ordered.remove(nodes, root, node))
            naive.remove(node)
        else:
            root = int(ordered.insert(nodes, root, node, key, node * 7))
            naive.insert(node, key, node * 7)
        expected = naive.nodes()
        assert members(nodes, root) == expected
        assert ordered.first(nodes, root) == (expected[0] if expected else -1)
        for at, after in zip(expected, [*expected[1:], -1]):
            assert ordered.successor(nodes, at) == after
        later = [other for (at, tie), other in naive.items if (at, tie) >= (key, node * 7)]
        assert ordered.at_least(nodes, root, key, node * 7) == (later[0] if later else -1)


def test_ordered_set_is_shallow():
    """Ascending keys, the common case of equal SLOs, do not make a list of the tree."""
    nodes, root = np.zeros(4096, NODE), -1
    for i in range(4096):
        root = ordered.insert(nodes, root, i, i, i)
    depth = 0
    for i in range(4096):
        at, steps_up = i, 0
        while nodes[at]["parent"] != -1:
            at, steps_up = int(nodes[at]["parent"]), steps_up + 1
        depth = max(depth, steps_up)
    assert depth < 48


@SMALL
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(-5, 60)), max_size=150))
def test_heap_is_a_dict_with_a_minimum(script):
    """A negative key takes the id out; any other puts it in or changes its key."""
    table, naive, count = np.zeros(SIZE, TIMER), NaiveHeap(), 0
    table["place"] = -1
    for identifier, key in script:
        if key < 0:
            count = int(heap.drop(table, count, identifier))
            naive.drop(identifier)
        else:
            count = int(heap.put(table, count, identifier, key))
            naive.put(identifier, key)
        assert count == len(naive.keys)
        if count:
            assert (table[0]["key"], table[0]["id"]) == naive.top()
        for i in range(count):
            assert table[table[i]["id"]]["place"] == i
            assert naive.keys[int(table[i]["id"])] == table[i]["key"]


_KEYS = st.one_of(st.integers(0, 12), st.sampled_from([1 << 62, -1, -(1 << 63), (1 << 63) - 1, 1 << 31]),
                  st.integers(-(1 << 63), (1 << 63) - 1))


@SMALL
@given(st.lists(st.tuples(_KEYS, st.integers(-1, 99)), max_size=60))
def test_map_is_a_dict_and_leaves_no_tombstones(script):
    """A value of -1 removes; entries not in the dict are not in the table either."""
    table, naive = np.zeros(128, SLOT), {}
    table["value"] = -1
    for key, value in script:
        if value < 0:
            assert hashmap.remove(table, key) == naive.pop(key, -1)
        else:
            assert hashmap.put(table, key, value) == (0 if key in naive else 1)
            naive[key] = value
        assert (table["value"] != -1).sum() == len(naive)
        for known, held in naive.items():
            assert hashmap.get(table, known) == held
    assert hashmap.get(table, 123_456_789_012) == naive.get(123_456_789_012, -1)


def test_map_stays_fast_under_churn():
    """After 100 times its capacity in inserts and removals, half of the table is still empty and nothing is slow."""
    table = np.zeros(64, SLOT)
    table["value"] = -1
    for i in range(3200):
        hashmap.put(table, i * 1_000_003, i)
        if i >= 32:
            assert hashmap.remove(table, (i - 32) * 1_000_003) == i - 32
    assert (table["value"] != -1).sum() == 32


@SMALL
@given(st.integers(1, 10**9), st.lists(st.tuples(st.sampled_from([1, 1, 1, 10**8, 2 * 10**9]), st.integers(0, 10**9)),
                                       max_size=100))
def test_an_estimate_is_the_third_largest_of_the_window_and_the_mean_of_the_rest(seed_ns, samples):
    """And fades, with and without samples."""
    row, naive, now = np.zeros(1, ESTIMATE)[0], NaiveEstimate(seed_ns), 0
    estimate.seed(row, seed_ns)
    for gap, sample in samples:
        now += gap
        estimate.observe(row, now, sample)
        naive.observe(now, sample)
        assert estimate.tail(row, now) >= sorted(naive.samples)[-3]
        for later in (now, now + 2**30 - 1, now + 2**30, now + 5 * 2**30, now + 80 * 2**30):
            assert (estimate.tail(row, later), estimate.typical(row, later)) == (naive.tail(later), naive.typical(later))
            assert estimate.careful(row, later) == naive.careful(later) >= naive.tail(later)


@SMALL
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_an_estimate_by_the_last_ten_is_almost_their_largest(durations):
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, 10**6)
    for i, duration in enumerate(durations):
        estimate.observe_recent(row, duration)
        assert estimate.tail(row, 10**15) == estimate.typical(row, 0) == almost_largest(durations[:i + 1])


@SMALL
@given(st.lists(st.tuples(st.integers(0, 400), st.one_of(st.none(), st.integers(0, 9))), max_size=40))
def test_a_lane_predicts_what_follows_what(steps):
    """Actions of 1 ms to 9 are sent (or, None, one of those outstanding ends), some us apart."""
    script, lane, number = Script(pages=50, lane_depth=9), NaiveLane(200 * US), 0
    for gap, expected in steps:
        script.now += gap * US
        if expected is not None:
            name = int(engine.lane_reserve(script.world, script.now, 0, (1 + expected) * MS))
            lane.send(script.now, name, (1 + expected) * MS)
        elif lane.items:
            number += 1
            name = lane.items[number * 7 % len(lane.items)][0]
            lane.end(script.now, name)
            engine.action_done(script.world, script.now, name, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
        found, a = [], int(script.world.lanes[0]["first"])
        while a != -1:
            row = script.world.actions[a]
            found.append((int(row["start_ns"]), int(row["end_ns"])))
            a = int(row["lane_next"])
        assert found == [(start, start + took) for _, start, took in lane.items]
        assert script.world.lanes[0]["available_ns"] == lane.free


def test_two_bad_samples_count_for_nothing_and_three_fade():
    """Stalls do not lock a model out: two outliers are ignored, and three lose half their excess per 1.1 s of silence."""
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, 1_000)
    for now in (1, 2):
        estimate.observe(row, now, 9_000_000)
        assert estimate.tail(row, now) == estimate.typical(row, now) == 1_000
    estimate.observe(row, 3, 9_000_000)
    assert estimate.tail(row, 3) == 9_000_000 and estimate.typical(row, 3) == (29 * 1_000 + 9_000_000) // 30
    later = [int(estimate.tail(row, 3 + (seconds << 30))) for seconds in (4, 8, 40, 400)]
    assert later == sorted(later, reverse=True) and later[-1] == 1_000 and later[0] < 4_600_000


def test_bad_samples_fade_too_where_good_ones_are_rare():
    """A window that takes a minute to fill must not remember a stall for a minute."""
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, 1_000)
    now = 1 << 40
    for _ in range(3):
        estimate.observe(row, now, 9_000_000)
    for _ in range(8):
        now += 2_000_000_000
        estimate.observe(row, now, 1_000)
    assert estimate.tail(row, now) < 50_000


def test_samples_do_not_fade_while_the_window_is_filled_anew():
    """A busy row says what was measured, to the nanosecond."""
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, 1_000)
    for i in range(400):
        estimate.observe(row, (1 << 40) + i * 30_000_000, 5_000 + i % 2)
    assert estimate.tail(row, (1 << 40) + 400 * 30_000_000) == 5_001


def test_an_unseeded_estimate_starts_from_its_first_sample():
    """Where no profile was given the row says 0 (not profiled) until something was measured."""
    row = np.zeros(1, ESTIMATE)[0]
    assert estimate.tail(row, 5) == estimate.typical(row, 5) == 0
    estimate.observe(row, 5, 700)
    assert estimate.tail(row, 5) == estimate.typical(row, 5) == 700
