"""Votes and means: held against naive twins, whatever has arrived and in whatever order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import CwdError
from cwd.selection.combine import classes_of, combine

WEIGHTS = st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any)


@given(WEIGHTS, st.data())
@settings(deadline=None)
def test_a_vote_is_its_twin(weights: list[int], data: st.DataObject) -> None:
    members = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    said = {member: data.draw(st.integers(0, 3), label=f"says {member}") for member in data.draw(st.permutations(sorted(members)))}
    parts = [Fraction(weight, sum(weights)) for weight in weights]
    found = combine("vote", said, [float(part) for part in parts])
    present = sum(parts[member] for member in members)
    if present:
        share = {label: sum(parts[member] for member in members if said[member] == label) for label in said.values()}
        most = max(share.values())
        best = min(label for label in share if share[label] == most)
        # floats may tell apart what is equal in fractions, and the other way round never
        assert found.output == best or share[int(found.output)] == most
        assert found.confidence == pytest.approx(float(most))
    else:
        assert found.confidence == 0.0 and int(found.output) in said.values()
    assert found.members == tuple(sorted(members))
    again = combine("vote", dict(sorted(said.items())), [float(part) for part in parts])
    assert (again.output, again.confidence) == (found.output, found.confidence)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.booleans(), st.data())
@settings(deadline=None)
def test_each_place_has_a_vote_of_its_own(weights: list[int], texts: bool, data: st.DataObject) -> None:
    rows = [data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)) for _ in weights]
    said = {member: np.array([f"class {k}" for k in row] if texts else row) for member, row in enumerate(rows)}
    # powers of two, so that equal shares are equal in floats too
    total = 1 << (sum(weights) - 1).bit_length()
    given = [weight / total for weight in weights]
    found = combine("vote", said, given)
    heaviest = []
    for place in range(4):
        single = combine("vote", {member: array[place] for member, array in said.items()}, given)
        votes = {k: sum(w for w, row in zip(weights, rows, strict=True) if row[place] == k) for k in range(4)}
        best = min(k for k, share in votes.items() if share == max(votes.values()))
        assert str(single.output) == str(found.output[place]) == (f"class {best}" if texts else str(best))
        heaviest.append(single.confidence)
    assert found.confidence == min(heaviest) and found.output.shape == (4,) and found.output.dtype == said[0].dtype


def test_a_vote_on_many_classes_takes_no_more_memory_than_the_answers() -> None:
    """A table of places by classes would here be one of 10^12 numbers."""
    places = np.arange(1_000_000)
    found = combine("vote", {0: places, 1: places + 1, 2: places}, [0.25, 0.5, 0.25])
    assert np.array_equal(found.output, places) and found.confidence == 0.5


@given(WEIGHTS, st.data())
@settings(deadline=None)
def test_a_mean_is_its_twin(weights: list[int], data: st.DataObject) -> None:
    members = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    said = {member: data.draw(st.lists(st.integers(-8, 8), min_size=2, max_size=2)) for member in sorted(members)}
    found = combine("mean", {member: np.array(row, np.float64) for member, row in said.items()},
                    [weight / sum(weights) for weight in weights], scale=20.0)
    total = sum(weights[member] for member in members)
    own = {member: Fraction(weights[member], total) if total else Fraction(1, len(members)) for member in members}
    means = [sum(own[member] * said[member][place] for member in members) for place in range(2)]
    variances = [sum(own[member] * (said[member][place] - means[place]) ** 2 for member in members) for place in range(2)]
    assert found.output == pytest.approx([float(mean) for mean in means])
    assert found.confidence == pytest.approx(max(0.0, 1 - float(max(variances)) ** 0.5 / 20) * total / sum(weights))


def test_missing_members_count_against_the_confidence_alone() -> None:
    weights = [0.125] * 8
    all_agree = combine("vote", {member: 3 for member in range(8)}, weights)
    seven = combine("vote", {member: 3 for member in range(7)}, weights)
    assert int(seven.output) == int(all_agree.output) == 3
    assert (all_agree.confidence, seven.confidence, len(seven.members)) == (1.0, 0.875, 7)
    # whoever has all the weight is missing: an answer, and no confidence in it
    assert combine("vote", {0: 1, 1: 1}, [0.0, 0.0, 1.0]).confidence == 0.0


def test_scores_vote_by_their_highest_and_ties_go_to_the_lower_class() -> None:
    outputs = {0: np.float32([[0.1, 0.9, 0.0], [1, 0, 0]]), 1: np.float32([[0.2, 0.3, 0.5], [0.5, 0.5, 0]])}
    found = combine("vote", outputs, [0.5, 0.5])
    assert found.output.tolist() == [1, 0] and found.output.dtype == np.int64
    assert found.confidence == 0.5
    texts = combine("vote", {0: np.array("cat"), 1: np.array("dog"), 2: np.array("dog")}, [0.4, 0.3, 0.3])
    assert str(texts.output) == "dog" and texts.confidence == pytest.approx(0.6)


def test_a_mean_keeps_its_type() -> None:
    assert combine("mean", {0: np.float32([1.0]), 1: np.float32([2.0])}, [0.5, 0.5]).output.dtype == np.float32
    assert combine("mean", {0: np.int32([1]), 1: np.int32([2])}, [0.5, 0.5]).output.tolist() == [1.5]


def test_what_cannot_be_combined_is_one_clear_error() -> None:
    for kind, outputs, weights in (("vote", {}, [1.0]), ("median", {0: 1}, [1.0]), ("vote", {2: 1}, [0.5, 0.5]),
                                   ("vote", {0: [1, 2], 1: [1]}, [0.5, 0.5]), ("vote", {0: 0.5}, [1.0]),
                                   ("mean", {0: np.array("a")}, [1.0]), ("vote", {0: np.array([1j])}, [1.0]),
                                   ("vote", {0: np.zeros((2, 1))}, [1.0]),
                                   ("vote", {0: np.array(["1"]), 1: np.array([1])}, [0.5, 0.5])):
        with pytest.raises(CwdError):
            combine(kind, outputs, weights)
    with pytest.raises(CwdError):
        combine("mean", {0: 1.0}, [1.0], scale=0.0)
    assert classes_of(np.array([True])).dtype == bool
