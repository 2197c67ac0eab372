"""Losses: from 0 to 1 whatever comes, and what they are for answers that people can check by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cwd.errors import CwdError
from cwd.selection.combine import combine
from cwd.selection.losses import LOSSES, make_loss


@pytest.mark.parametrize(("name", "parameters", "answer", "label", "wanted"), [
    ("zero_one", {}, [0.1, 0.7, 0.2], 1, 0.0),
    ("zero_one", {}, [[0.1, 0.7, 0.2]], 2, 1.0),
    ("zero_one", {}, np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1], 0.5),
    ("zero_one", {}, 3, 3, 0.0),
    ("zero_one", {}, "cat", "dog", 1.0),
    ("absolute", {"scale": 10.0}, [4.0], 9, 0.5),
    ("absolute", {}, 4.0, -9.0, 1.0),
    ("squared", {"scale": 10.0}, [[4.0]], [9.0], 0.25),
    ("squared", {}, [0.0, 0.5], [0.0, 0.0], 0.125),
    ("log", {}, [0.25, 0.75], 0, math.log(4) / 5),
    ("log", {"bound": 1.0}, [0.0, 1.0], 0, 1.0),
    ("log", {"logits": True}, [[0.0, 0.0]], [1], math.log(2) / 5),
    ("log", {"logits": True, "bound": 2.0}, [1e30, 0.0], 0, 0.0),
    ("absolute", {}, math.nan, 0.0, 1.0),
    # classes alone
    ("log", {}, 3, 3, 0.0),
    ("log", {"logits": True}, [3, 1], [3, 0], 0.5),
    # scores where probabilities were promised
    ("log", {}, [7.0, -3.0], 0, 1.0),
    ("log", {}, [7.0, -3.0], 1, 1.0),
    ("log", {}, [math.inf, 0.0], 0, 1.0),
    ("log", {}, [1.0002, 0.0], 0, 0.0),
])
def test_by_hand(name: str, parameters: dict[str, object], answer: object, label: object, wanted: float) -> None:
    assert make_loss(name, parameters)(np.asarray(answer), label) == pytest.approx(wanted)


@given(st.sampled_from(["absolute", "squared", "log", "zero_one"]), st.booleans(),
       hnp.arrays(st.sampled_from([np.float32, np.float64]), (2, 3)), st.lists(st.integers(0, 2), min_size=2, max_size=2),
       hnp.arrays(np.float64, (2, 3)))
@settings(deadline=None)
def test_always_between_0_and_1(name: str, logits: bool, answer: np.ndarray, classes: list[int], numbers: np.ndarray) -> None:
    loss = make_loss(name, {"logits": logits} if name == "log" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.0 <= loss(answer, classes if name in ("log", "zero_one") else numbers) <= 1.0


def test_what_does_not_fit_is_one_clear_error() -> None:
    for name, parameters in (("hinge", {}), ("squared", {"scale": 0}), ("log", {"bound": "x"}), ("log", {"logits": 1}),
                             ("zero_one", {"scale": 1})):
        with pytest.raises(CwdError):
            make_loss(name, parameters)
    for name, answer, label in (("zero_one", [0.1, 0.9], "cat"), ("zero_one", [[0.1, 0.9]] * 2, [1]), ("log", [1, 2], 0),
                                ("log", [0.5, 0.5], 2), ("log", [0.5, 0.5], 0.5),
                                ("absolute", "cat", 1), ("squared", [1.0], [1, 2]),
                                ("absolute", np.zeros(0), np.zeros(0))):
        with pytest.raises(CwdError):
            make_loss(name)(np.asarray(answer), label)
    with pytest.raises(CwdError, match="the label is a text, and the classes are numbers"):
        make_loss("zero_one")(np.asarray([0.1, 0.9]), "cat")
    for name in LOSSES:
        assert make_loss(name, make_loss(name).parameters()) == make_loss(name)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_vote_makes_of_scores_has_a_loss(name: str) -> None:
    """Feedback judges the members' answers and the one that was given, by one and the same loss."""
    scores = {0: np.float32([[0.2, 0.8]]), 1: np.float32([[0.4, 0.6]])}
    voted = combine("vote", scores, [0.5, 0.5]).output
    assert [make_loss(name)(voted, label) for label in (1, 0)] == [0.0, 1.0]
