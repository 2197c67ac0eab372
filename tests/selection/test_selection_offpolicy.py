"""Off-policy estimates on synthetic logs, where what a policy would have lost is known or can be played."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from cwd.errors import CwdError
from cwd.selection.combine import combine
from cwd.selection.feedback import History
from cwd.selection.losses import make_loss
from cwd.selection.observation import Observation, translated
from cwd.selection.offpolicy import evaluate
from cwd.selection.policies import Counting, Policy, make_policy
from cwd.selection.state import State

MEMBERS = ("a:1", "b:1", "c:1")
CLASSES = 4
#: how often each member is wrong
WRONG = (0.6, 0.2, 0.4)
UNIFORM = make_policy("epsilon_greedy", {"epsilon": 1.0})


def world(steps: int, seed: int) -> list[tuple[int, list[int]]]:
    """(label, what each member says), so many times."""
    randoms = random.Random(seed)
    rows = []
    for _ in range(steps):
        label = randoms.randrange(CLASSES)
        rows.append((label, [(label + randoms.randrange(1, CLASSES)) % CLASSES if randoms.random() < wrong else label
                             for wrong in WRONG]))
    return rows


def played(policy: Policy, rows: list[tuple[int, list[int]]], seed: int) -> tuple[History, list[float]]:
    """The log that a policy leaves, and what its answers lost."""
    randoms, state, told, lost = random.Random(seed), policy.start(len(MEMBERS)), [], []
    for number, (label, said) in enumerate(rows):
        choice = policy.choose(state, randoms.random())
        answers = {member: said[member] for member in choice.members}
        losses = {member: float(answer != label) for member, answer in answers.items()}
        lost.append(make_loss("zero_one")(combine("vote", answers, choice.weights).output, label))
        told.append(Observation(f"{number}", "app", "", policy.name, policy.parameters(), MEMBERS, choice, losses, lost[-1],
                                answers, label))
        state = policy.observe(state, choice, losses)
    return History("app", "", tuple(told)), lost


@pytest.mark.parametrize("logging", ["exp3", "epsilon_greedy", "thompson"])
def test_fixed_policies_are_estimated_without_bias(logging: str) -> None:
    """Means over many logs of a policy that learns while it logs; and 95 % intervals that hold what they are for."""
    policy = make_policy(logging, {"eta": 0.05, "gamma": 0.3} if logging == "exp3" else {"epsilon": 0.4}
                         if logging == "epsilon_greedy" else {})
    # Thompson sampling soon gives bad members next to no chance: its logs are judged on what it still asks
    members, logs, steps = ((1,), 20, 100) if logging == "thompson" else ((0, 1, 2), 60, 150)
    for member in members:
        target = make_policy("static", {"member": member})
        found = [evaluate([played(policy, world(steps, seed), seed)[0]], target) for seed in range(logs)]
        for name in ("ips", "dr"):
            estimates = [getattr(one, name) for one in found]
            values = np.array([estimate.loss for estimate in estimates])
            assert abs(values.mean() - WRONG[member]) < 3.5 * values.std() / np.sqrt(logs), (member, name)
            holds = np.mean([estimate.low <= WRONG[member] <= estimate.high for estimate in estimates])
            assert holds >= 0.8, (member, name)
        snips = np.array([one.snips.loss for one in found])
        assert abs(snips.mean() - WRONG[member]) < 0.05
        # the doubly robust one is the calmer of the two that are unbiased, where there is much to correct
        if member == 0:
            assert np.std([one.dr.loss for one in found]) < np.std([one.ips.loss for one in found])


def test_a_member_that_left_before_the_feedback_biases_nothing() -> None:
    """What was asked of the others stands for them alone: weights that add up to more would make every loss larger."""
    found = []
    for seed in range(40):
        history, _ = played(UNIFORM, world(150, seed), seed)
        told = []
        for one in history.observations:
            choice, losses = translated(one.choice, one.losses, MEMBERS, MEMBERS[1:])
            told.append(dataclasses.replace(one, members=MEMBERS[1:], choice=choice, losses=losses, answers={}))
        found.append(evaluate([History("app", "", tuple(told))], make_policy("static", {"member": 1})))
    values = np.array([one.ips.loss for one in found])
    assert abs(values.mean() - WRONG[2]) < 3.5 * values.std() / np.sqrt(len(values))
    assert all(one.records + one.incomplete == 150 and one.incomplete > 20 for one in found)


@dataclasses.dataclass(frozen=True)
class Late(Counting):
    """Asks anyone for ten steps, and then member 1 mostly: what it loses in each step is known."""

    name = "late"

    def probabilities(self, state: State) -> tuple[float, ...]:
        return (1 / 3,) * 3 if state.steps < 10 else (0.01, 0.98, 0.01)


def test_each_step_of_a_policy_that_learns_counts_the_same() -> None:
    """However many records it takes until one fits its choice; told from uniform logs."""
    found = [evaluate([played(UNIFORM, world(150, seed), seed)[0]], Late(), steps=20, seed=seed) for seed in range(150)]
    assert {one.learned for one in found} == {20}
    # ten steps took ten records, the other ten three times as many
    assert 35 < np.mean([one.records for one in found]) < 45
    exact = (np.mean(WRONG) + np.dot((0.01, 0.98, 0.01), WRONG)) / 2
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(one, name).loss for one in found])
        assert abs(values.mean() - exact) < 3.5 * values.std() / np.sqrt(len(values)), name
        assert values.std() / np.sqrt(len(values)) < 0.01


def test_a_policy_that_learns_is_run_as_if_it_had_been_there() -> None:
    """Its mean loss over its own first steps, told from uniform logs, is what it loses when it is played."""
    target = make_policy("exp3", {"eta": 0.3, "gamma": 0.05})
    found = [evaluate([played(UNIFORM, world(200, seed), seed)[0]], target, steps=40, seed=seed) for seed in range(150)]
    assert {one.learned for one in found} == {40}
    real = np.array([np.mean(played(target, world(40, 1000 + seed), seed)[1]) for seed in range(600)])
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(one, name).loss for one in found])
        error = np.hypot(values.std() / np.sqrt(len(values)), real.std() / np.sqrt(len(real)))
        assert abs(values.mean() - real.mean()) < 3.5 * error, name
    # far from what it loses before it has learned anything, and from the best member
    assert min(WRONG) + 0.03 < real.mean() < np.mean(WRONG) - 0.03


def test_where_all_were_asked_nothing_is_guessed() -> None:
    ensemble = make_policy("exp4")
    history, lost = played(ensemble, world(200, 5), 5)
    again = evaluate([history], ensemble)
    assert again.ips == again.snips == again.dr == again.logged
    assert again.logged.loss == pytest.approx(np.mean(lost)) and again.records == again.learned == 200
    for member in range(3):
        found = evaluate([history], make_policy("static", {"member": member}))
        exact = np.mean([one.losses[member] for one in history.observations])
        assert found.ips.loss == pytest.approx(exact) and found.dr.loss == pytest.approx(exact)
        assert found.effective == pytest.approx(200) and found.unsupported == 0.0
    # one that learns: the same numbers as when it is played on the same draws
    target = make_policy("ucb1")
    found = evaluate([history], target, seed=3)
    assert found.learned == 200 and found.dr.loss < np.mean(WRONG)


def test_a_policy_on_its_own_log_is_what_was_logged() -> None:
    """Weights of one: whatever the estimate, it is the mean of the log."""
    fixed = make_policy("epsilon_greedy", {"epsilon": 1.0})
    history, lost = played(fixed, world(120, 8), 8)
    found = evaluate([history], fixed, learn=False)
    assert found.ips.loss == pytest.approx(np.mean(lost)) == found.snips.loss == pytest.approx(found.logged.loss)
    assert found.effective == pytest.approx(120)
    narrow, wide = (evaluate([history], fixed, learn=False, confidence=level).ips for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.loss < narrow.high < wide.high


def test_equal_seeds_give_equal_estimates() -> None:
    history = played(UNIFORM, world(100, 1), 1)[0]
    target = make_policy("exp3")
    assert evaluate([history], target, seed=1) == evaluate([history], target, seed=1) != evaluate([history], target, seed=2)
    assert set(evaluate([history], target).facts()) >= {"records", "ips", "snips", "dr", "logged", "effective"}


def test_what_a_log_cannot_say_is_one_clear_error() -> None:
    history, _ = played(UNIFORM, world(30, 1), 1)
    with pytest.raises(CwdError, match="all members' answers"):
        evaluate([history], make_policy("exp4"))
    with pytest.raises(CwdError, match="no feedback"):
        evaluate([], UNIFORM)
    certain, _ = played(make_policy("static", {"member": 2}), world(30, 1), 1)
    with pytest.raises(CwdError, match="shows nothing"):
        evaluate([certain], make_policy("static", {"member": 0}))
    # a part of what it would ask is never in the log: the estimates say how much
    assert evaluate([certain], UNIFORM).unsupported == pytest.approx(2 / 3, abs=0.02)
    with pytest.raises(CwdError):
        evaluate([history], UNIFORM, confidence=1.0)


def test_feedback_without_an_answer_is_counted_and_left_out() -> None:
    history, _ = played(UNIFORM, world(30, 1), 1)
    silent = dataclasses.replace(history.observations[0], losses={}, answers={}, loss=None)
    found = evaluate([History("app", "", (silent, *history.observations))], make_policy("static"))
    assert (found.records, found.incomplete) == (30, 1)
    assert found == dataclasses.replace(evaluate([history], make_policy("static")), incomplete=1)


def test_contexts_are_learned_apart() -> None:
    """Two users for whom different members are right: a policy with a state for each does better than for one history."""
    rows = world(400, 2)
    swapped = [(label, [said[2], said[0], said[1]]) for label, said in rows]
    ann, bob = played(UNIFORM, rows, 1)[0], played(UNIFORM, swapped, 2)[0]
    target = make_policy("epsilon_greedy", {"epsilon": 0.05})
    apart = evaluate([ann, dataclasses.replace(bob, context="bob")], target).dr.loss
    mixed = tuple(one for pair in zip(ann.observations, bob.observations, strict=True) for one in pair)
    assert apart < evaluate([History("app", "", mixed)], target).dr.loss - 0.05
