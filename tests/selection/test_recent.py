"""What is remembered of predictions: the newest, within its bytes and its time; and what versions members are."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwd.client.model import Model
from cwd.selection.apps import Member
from cwd.selection.recent import Prediction, Recent
from cwd.selection.state import Choice
from cwd.selection.versions import AGAIN_NS, STALE_NS, Versions


def predicted(made_ns=0, elements=0, members=1, answered=1):
    return Prediction("app", "app#1", "", tuple(f"m{i}" for i in range(members)), Choice((0,), (1.0,) * members, (1.0,) * members),
                      {member: np.zeros(elements) for member in range(answered)}, None, made_ns)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300), st.integers(0, 20)), max_size=60), st.integers(0, 12_000))
def test_the_newest_stay_within_bytes_and_time(steps, room):
    """Beside a list from which the oldest are taken until the rest fits. An id may come again."""
    recent, naive, now = Recent(room, 50), [], 0
    for request_id, elements, later in steps:
        now += later
        alone = Recent(1 << 40, 50)
        alone.add(0, predicted(now, elements))
        recent.add(request_id, predicted(now, elements))
        if alone.bytes <= room:
            naive = [each for each in naive if each[0] != request_id] + [(request_id, now, alone.bytes)]
        while naive and (sum(size for *_, size in naive) > room or now - naive[0][1] >= 50):
            naive.pop(0)
        for known in range(10):
            found = recent.get(known, now)
            assert (found.made_ns if found else None) == next((at for each, at, _ in naive if each == known), None)
        assert recent.bytes == sum(size for *_, size in naive) <= room and len(recent) == len(naive)


@pytest.mark.parametrize("members, answered, elements", [(1, 1, 1), (1, 1, 1000), (4, 4, 1), (64, 1, 1), (64, 64, 10), (256, 1, 1)])
def test_what_is_counted_is_no_less_than_what_it_takes(members, answered, elements):
    recent, names = Recent(1 << 40, 1), tuple(f"m{i}" for i in range(members))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(200):
            answers = {member: np.zeros(elements) for member in range(answered)}
            # as where a policy learns: every choice is one of its own
            probabilities, weights = (tuple((number + 1) / (member + k) for member in range(members)) for k in (3, 5))
            choice = Choice((0,), probabilities, weights)
            recent.add(number, Prediction("app", "app#1", f"user {number}", names, choice, answers, np.zeros(elements), 0))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(recent) == 200 and taken <= recent.bytes <= 3 * taken


def test_what_a_name_stands_for_is_asked_again_by_one_and_relied_on_for_a_while():
    versions, name, other = Versions(), Member("m"), Member("n")
    found = Model(7, {"name": "m", "version": 3, "axes": [], "exact": False, "size_classes": [[]], "batch_sizes": [1],
                      "inputs": [], "outputs": []})
    assert versions.get(name, 1, 0) is None and not versions.due(name, 0)
    versions.put(name, found, 1, 0)
    assert versions.get(name, 1, STALE_NS) is found and versions.get(name, 1, STALE_NS + 1) is None
    assert versions.get(name, 2, 0) is None and versions.get(other, 1, 0) is None
    assert not versions.due(name, AGAIN_NS - 1)
    assert [versions.due(name, AGAIN_NS) for _ in range(3)] == [True, False, False]
    versions.missed(name)
    assert [versions.due(name, AGAIN_NS) for _ in range(2)] == [True, False]
    versions.put(name, found, 1, AGAIN_NS)
    assert not versions.due(name, 2 * AGAIN_NS - 1) and versions.due(name, 2 * AGAIN_NS)
    versions.forget(name)
    assert versions.get(name, 1, 0) is None
