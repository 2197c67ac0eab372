"""Selection policies: held against their papers' formulas, replayed, joined and left; states as bytes."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from naive_weights import NaiveExp3, NaiveExp4

from cwd.errors import CwdError
from cwd.selection.policies import POLICIES, make_policy
from cwd.selection.posterior import best_probabilities
from cwd.selection.state import MEMBERS_MAX, Choice, State, one_of

DRAWS = st.floats(0.0, 1.0, exclude_max=True)
LOSSES = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
VARIANTS = [("static", {}), ("static", {"member": 1}), ("static", {"ensemble": True}), ("epsilon_greedy", {}),
            ("epsilon_greedy", {"epsilon": 0.3, "discount": 0.9}), ("ucb1", {}), ("ucb1", {"discount": 0.9}), ("thompson", {}),
            ("thompson", {"discount": 0.9}), ("exp3", {}), ("exp3", {"gains": True}), ("exp3", {"gamma": 0.0, "share": 0.0}),
            ("exp4", {}), ("exp4", {"share": 0.0})]


def told(choice: Choice, losses: list[float]) -> dict[int, float]:
    return {member: losses[member] for member in choice.members}


@given(members=st.integers(2, 6), eta=st.sampled_from([0.01, 0.3, 2.0]), gamma=st.sampled_from([0.0, 0.05, 1.0]),
       share=st.sampled_from([0.0, 1e-5, 0.1]), gains=st.booleans(), steps=st.lists(st.tuples(DRAWS, LOSSES), max_size=40))
@settings(max_examples=60, deadline=None)
def test_exp3_is_its_formula(members: int, eta: float, gamma: float, share: float, gains: bool,
                             steps: list[tuple[float, float]]) -> None:
    # gains without gamma learn nothing, and are refused
    gains = gains and gamma > 0.0
    policy = make_policy("exp3", {"eta": eta, "gamma": gamma, "share": share, "gains": gains})
    naive = NaiveExp3(members, eta, gamma, share, gains)
    state = policy.start(members)
    for draw, loss in steps:
        choice = policy.choose(state, draw)
        wanted = naive.probabilities()
        assert choice.probabilities == pytest.approx([float(p) for p in wanted], rel=1e-9, abs=1e-200)
        (member,) = choice.members
        state = policy.observe(state, choice, {member: loss})
        naive.observe(member, loss)
        total = max(naive.weights)
        logs = [float((weight / total).ln()) for weight in naive.weights]
        assert state.log_weights == pytest.approx(logs, rel=1e-9, abs=1e-9)


@given(eta=st.sampled_from([0.02, 0.5, 10.0]), share=st.sampled_from([0.0, 0.005, 0.5]),
       rows=st.lists(st.lists(st.one_of(st.none(), LOSSES), min_size=4, max_size=4), max_size=40))
@settings(max_examples=60, deadline=None)
def test_exp4_is_its_formula_whoever_is_missing(eta: float, share: float, rows: list[list[float | None]]) -> None:
    policy = make_policy("exp4", {"eta": eta, "share": share})
    naive, state = NaiveExp4(4, eta, share), policy.start(4)
    for row in rows:
        choice = policy.choose(state, 0.0)
        assert choice.members == (0, 1, 2, 3) and choice.probabilities == (1.0,) * 4
        assert choice.weights == pytest.approx([float(w) for w in naive.shares()], rel=1e-9, abs=1e-200)
        losses = {member: loss for member, loss in enumerate(row) if loss is not None}
        state = policy.observe(state, choice, losses)
        if losses:
            naive.observe(losses)


@given(st.lists(st.tuples(DRAWS, st.sampled_from([0.0, 0.25, 1.0])), max_size=60), st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=40, deadline=None)
def test_greedy_and_ucb_are_their_formulas(steps: list[tuple[float, float]], epsilon: float) -> None:
    for name, parameters in (("epsilon_greedy", {"epsilon": epsilon}), ("ucb1", {})):
        policy = make_policy(name, parameters)
        state = policy.start(4)
        seen: list[list[Fraction]] = [[] for _ in range(4)]
        for draw, loss in steps:
            means = [sum(row, Fraction(0)) / len(row) if row else Fraction(0) for row in seen]
            count = sum(map(len, seen))
            if name == "ucb1":
                scores = [float(1 - mean) + math.sqrt(2 * math.log(count) / len(row)) if row else math.inf
                          for mean, row in zip(means, seen, strict=True)]
            else:
                scores = [float(1 - mean) for mean in means]
            best = [member for member, score in enumerate(scores) if score >= max(scores) - 1e-12]
            choice = policy.choose(state, draw)
            part = epsilon if name == "epsilon_greedy" else 0.0
            assert choice.probabilities == pytest.approx(
                [(1 - part) * (member in best) / len(best) + part / 4 for member in range(4)])
            (member,) = choice.members
            seen[member].append(Fraction(loss))
            state = policy.observe(state, choice, {member: loss})


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
@example(500, 3, 480, 9)
def test_thompson_asks_two_as_their_posteriors_say(won: int, lost: int, other_won: int, other_lost: int) -> None:
    """P(Beta(a, b) > Beta(c, d)) of whole numbers has a closed form."""
    a, b, c, d = won + 1, lost + 1, other_won + 1, other_lost + 1

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    exact = math.fsum(math.exp(log_beta(c + i, d + b) - math.log(b + i) - log_beta(1 + i, b) - log_beta(c, d))
                      for i in range(a))
    found = best_probabilities((float(won + lost), float(other_won + other_lost)), (float(lost), float(other_lost)))
    assert found[0] == pytest.approx(exact, abs=2e-3)
    assert math.fsum(found) == pytest.approx(1.0)


def test_thompson_asks_five_as_their_posteriors_say() -> None:
    plays, losses = np.array([100.0, 200.0, 50.0, 300.0, 10.0]), np.array([30.0, 50.0, 20.0, 75.0, 1.0])
    drawn = np.random.default_rng(0).beta(plays - losses + 1, losses + 1, (200_000, 5)).argmax(axis=1)
    counted = np.bincount(drawn, minlength=5) / len(drawn)
    assert best_probabilities(tuple(plays), tuple(losses)) == pytest.approx(counted, abs=5e-3)
    # with ten million observations the posteriors are needles
    sharp = best_probabilities((1e7, 1e7, 1e7), (3e6, 3.0005e6, 3.2e6))
    assert sharp == pytest.approx((0.5965, 0.4035, 0.0), abs=3e-3)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_equal_numbers_give_equal_bytes(name: str, parameters: dict[str, object]) -> None:
    def played(seed: int) -> tuple[list[Choice], bytes]:
        randoms = random.Random(seed)
        policy = make_policy(name, parameters)
        state, choices = policy.start(4), []
        for _ in range(200):
            choices.append(policy.choose(state, randoms.random()))
            state = policy.observe(state, choices[-1], told(choices[-1], [randoms.random() for _ in range(4)]))
            state = State.from_bytes(state.to_bytes())
        return choices, state.to_bytes()

    assert played(1) == played(1)
    assert played(1)[1] != played(2)[1]
    assert make_policy(name, make_policy(name, parameters).parameters()) == make_policy(name, parameters)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_probabilities_are_what_is_done(name: str, parameters: dict[str, object]) -> None:
    """Over all draws, members are asked as often as the choice says."""
    policy = make_policy(name, parameters)
    state = policy.start(3)
    for draw in (0.1, 0.7, 0.4, 0.95, 0.2):
        choice = policy.choose(state, draw)
        state = policy.observe(state, choice, told(choice, [0.9, 0.3, 0.5]))
    draws = [(k + 0.5) / 4096 for k in range(4096)]
    choices = [policy.choose(state, draw) for draw in draws]
    assert len({choice.probabilities for choice in choices}) == 1
    shares = [sum(member in choice.members for choice in choices) / 4096 for member in range(3)]
    assert shares == pytest.approx(choices[0].probabilities, abs=2 / 4096)
    assert all(math.fsum(choice.weights) == pytest.approx(1.0) for choice in choices)
    assert all(choice.weights[member] == 1.0 for choice in choices if len(choice.members) == 1 for member in choice.members)


@given(st.lists(st.sampled_from([0.0, 1e-300, 0.2, 0.3, 1.0]), min_size=1, max_size=6).filter(lambda row: sum(row) > 0), DRAWS)
@settings(deadline=None)
def test_a_member_without_probability_is_never_asked(row: list[float], draw: float) -> None:
    (member,) = one_of(tuple(row), draw).members
    assert row[member] > 0.0


@pytest.mark.parametrize(("name", "parameters"), [("exp3", {}), ("exp3", {"gains": True}), ("exp4", {})])
def test_a_share_too_small_for_a_float_is_next_to_nothing(name: str, parameters: dict[str, object]) -> None:
    policy = make_policy(name, {**parameters, "share": 5e-324})
    state = State(name, 1, (0.0, -1e8, -1e8), (0.0,) * 3, (0.0,) * 3)
    choice = policy.choose(state, 0.0)
    after = policy.observe(state, choice, told(choice, [1.0, 1.0, 1.0]))
    assert max(after.log_weights) == 0.0 and all(map(math.isfinite, after.log_weights))


@pytest.mark.parametrize(("name", "parameters"), [
    ("exp3", {"eta": 10.0, "gamma": 0.0, "share": 0.0}), ("exp3", {"eta": 10.0, "gamma": 0.0, "share": 1e-5}), ("exp3", {}),
    ("exp3", {"gains": True}), ("exp4", {"eta": 10.0, "share": 0.0}), ("exp4", {})])
def test_weights_never_over_or_underflow(name: str, parameters: dict[str, object]) -> None:
    """As after ten million steps, and on from there: one member always right, then always wrong."""
    policy = make_policy(name, parameters)
    far = State(name, 10**7, (0.0, -1e8, -1e8, -2e8), (0.0,) * 4, (0.0,) * 4)
    for state in (policy.start(4), far):
        randoms = random.Random(7)
        for step in range(4000):
            choice = policy.choose(state, randoms.random())
            losses = [0.0, 1.0, 1.0, 1.0] if step < 2000 else [1.0, 1.0, 0.0, 1.0]
            state = policy.observe(state, choice, told(choice, losses))
        assert max(state.log_weights) == 0.0 and all(math.isfinite(weight) for weight in state.log_weights)
        assert State.from_bytes(state.to_bytes()) == state
    # a choice that was made under other parameters, with a probability of next to nothing
    rare = Choice((1,), (1.0, 5e-324, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0))
    for loss in (0.0, 1.0):
        after = policy.observe(policy.start(4), rare, {1: loss})
        assert math.isfinite(math.fsum(after.log_weights)) and math.fsum(policy.choose(after, 0.5).weights) == 1.0


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_a_new_member_starts_like_the_mean_and_can_leave(name: str, parameters: dict[str, object]) -> None:
    policy = make_policy(name, parameters)
    state = policy.start(3)
    for draw in (0.1, 0.5, 0.9, 0.3):
        choice = policy.choose(state, draw)
        state = policy.observe(state, choice, told(choice, [1.0, 0.0, 0.5]))
    more = policy.joined(state)
    weights = [math.exp(weight) for weight in more.log_weights]
    if name.startswith("exp"):
        assert weights[3] == pytest.approx(sum(weights[:3]) / 3)
    elif sum(state.plays):
        assert more.plays[3] == 1.0 and more.losses[3] == pytest.approx(sum(state.losses) / sum(state.plays))
    assert policy.left(more, 3) == state
    assert len(policy.choose(more, 0.5).weights) == 4
    for member in range(4):
        less = policy.left(more, member)
        assert less == policy.left(more.ordered([*(k for k in range(4) if k != member), member]), 3)
        assert max(less.log_weights) == 0.0
    alone = policy.left(policy.left(policy.left(more, 0), 0), 0)
    assert policy.choose(alone, 0.5).members == (0,)


def test_members_join_before_anything_was_seen() -> None:
    for name in POLICIES:
        policy = make_policy(name)
        assert policy.joined(policy.start(1)) == policy.start(2)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(CwdError):
        State.from_bytes(data)


def test_a_state_that_was_tampered_with_is_refused() -> None:
    good = make_policy("exp3").start(3)
    for bad in (State("exp3", -1, *[(0.0,)] * 3), State("exp3", 0, (0.5,), (0.0,), (0.0,)), State("exp3", 0, (), (), ()),
                State("exp3", 0, (math.nan,), (0.0,), (0.0,)), State("exp3", 0, (0.0,), (math.inf,), (0.0,)),
                State("exp3", 0, (0.0,), (0.0, 0.0), (0.0,)), State("exp3", 0, (0,), (0.0,), (0.0,)),
                State("exp3", 0, (-math.inf, -math.inf), (0.0,) * 2, (0.0,) * 2)):
        with pytest.raises(CwdError):
            State.from_bytes(bad.to_bytes())
    with pytest.raises(CwdError, match="version"):
        State.from_bytes(good.to_bytes().replace(b"\x96\x01", b"\x96\x02", 1))


def test_what_makes_no_sense_is_one_clear_error() -> None:
    for name, parameters in (("exp5", {}), ("exp3", {"eat": 1}), ("exp3", {"eta": -1}), ("exp3", {"gamma": "x"}),
                             ("exp3", {"gains": "no"}), ("exp3", {"gains": True, "gamma": 0.0}),
                             ("exp4", {"share": math.nan}), ("static", {"member": 1.5}), ("static", {"ensemble": 1}),
                             ("epsilon_greedy", {"epsilon": True}), ("ucb1", {"discount": 0.1})):
        with pytest.raises(CwdError):
            make_policy(name, parameters)
    policy = make_policy("exp3")
    state = policy.start(3)
    choice = policy.choose(state, 0.0)
    (asked,) = choice.members
    for losses in ({asked + 1: 0.5}, {asked: 1.5}, {asked: -0.1}, {asked: math.nan}):
        with pytest.raises(CwdError):
            policy.observe(state, choice, losses)
    for call in (lambda: policy.start(0), lambda: policy.start(MEMBERS_MAX + 1), lambda: policy.choose(state, 1.0),
                 lambda: policy.left(state, 3), lambda: policy.left(policy.start(1), 0),
                 lambda: policy.joined(policy.start(MEMBERS_MAX)), lambda: make_policy("exp4").choose(state, 0.0),
                 lambda: policy.observe(policy.start(2), choice, {}), lambda: state.ordered([0, 1, 1]),
                 lambda: make_policy("static", {"member": 3}).start(3)):
        with pytest.raises(CwdError):
            call()
    assert policy.observe(state, choice, {}) is state


def test_decimals_are_precise_enough_to_be_a_twin() -> None:
    """The twin can fail: another eta gives other weights."""
    naive, other = NaiveExp3(2, 0.1, 0.05, 0.0), NaiveExp3(2, 0.1000001, 0.05, 0.0)
    for twin in (naive, other):
        twin.observe(0, 1.0)
    assert naive.weights != other.weights and all(isinstance(weight, Decimal) for weight in naive.weights)
