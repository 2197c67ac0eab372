"""`cwd bench selection`: how fast each policy finds the best of five models, and the next best when that one degrades.

A stream of texts, labels of a fixed teacher, five students of known accuracy (students.py); half way the best student
degrades. After each answer the label comes as feedback. Nothing is served: this is about choices alone. Beside the policies
stand *static*, which keeps to the model that is best at the start, and *oracle*, which knows at every moment which single
model is best; regret is what a policy lost more than the oracle. Means over several streams, each with its own seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.students import Population, population
from cwd.selection.combine import combine
from cwd.selection.policies import Policy, make_policy

#: drawn and listed in this order
POLICIES = ("static", "epsilon_greedy", "ucb1", "thompson", "exp3", "exp4")
#: points of a curve
_POINTS = 100
#: the end of each half, where a policy should have settled
_SETTLED_PART = 0.2
#: a policy has recovered when so many answers in a row are right as often as the new best model, less this
_WINDOW, _MARGIN = 500, 0.05


def run(tokens: str = "", steps: int = 20_000, streams: int = 5, seed: int = 0, picture: str = "",
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """How fast each selection policy finds the best of five models, and the next best when that one degrades.

    `--tokens` is an npz of token texts (arrays ids and offsets); without it they are made up. `--picture` writes a PNG of
    the regret curves.
    """
    progress("labelling the texts")
    people = population(tokens, seed)
    lost: dict[str, list[np.ndarray]] = {}
    asked: dict[str, list[np.ndarray]] = {}
    for number in range(streams):
        stream = Stream(people, steps, seed=1 + seed + number)
        lost.setdefault("oracle", []).append(stream.wrong[np.arange(steps), stream.best_at])
        lost.setdefault("best_member", []).append(stream.wrong[:, stream.wrong.mean(axis=0).argmin()])
        for name in POLICIES:
            progress(f"stream {number + 1} of {streams}, {name}")
            losses, members = play(policy_of(name, people), stream)
            lost.setdefault(name, []).append(losses)
            asked.setdefault(name, []).append(members)
    facts = facts_of(people, steps, streams, seed, {name: np.stack(rows) for name, rows in lost.items()},
                     {name: np.stack(rows) for name, rows in asked.items()})
    if picture:
        from cwd.bench.regret import draw

        draw(Path(picture), facts)
    return facts


class Stream:
    """Texts in the order in which they come, and what each student says of them."""

    def __init__(self, people: Population, steps: int, seed: int) -> None:
        texts = np.random.default_rng(seed).integers(0, len(people.labels), steps)
        half = steps // 2
        self.seed = seed
        self.labels = people.labels[texts]
        self.answers = np.concatenate([people.answers[texts[:half]], people.degraded_answers[texts[half:]]])
        #: f64[steps, students], 1 for a wrong answer
        self.wrong = (self.answers != self.labels[:, None]).astype(np.float64)
        #: i64[steps], the student that is best then
        self.best_at = np.repeat([people.accuracies.argmax(), people.degraded_accuracies.argmax()], [half, steps - half])


def policy_of(name: str, people: Population) -> Policy:
    """The policy with its defaults; static keeps to the best at the start."""
    return make_policy(name, {"member": int(people.accuracies.argmax())} if name == "static" else {})


def play(policy: Policy, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(losses f64[steps], members asked i64[steps], -1 where all were) of one policy on one stream."""
    randoms = random.Random(stream.seed)
    wrong, answers, labels = stream.wrong.tolist(), stream.answers, stream.labels
    state = policy.start(len(wrong[0]))
    losses, members = np.empty(len(wrong)), np.full(len(wrong), -1)
    for step, row in enumerate(wrong):
        choice = policy.choose(state, randoms.random())
        if len(choice.members) == 1:
            members[step] = choice.members[0]
            losses[step] = row[choice.members[0]]
        else:
            said = combine("vote", dict(enumerate(answers[step])), choice.weights)
            losses[step] = float(said.output != labels[step])
        state = policy.observe(state, choice, {member: row[member] for member in choice.members})
    return losses, members


def facts_of(people: Population, steps: int, streams: int, seed: int, lost: dict[str, np.ndarray],
             asked: dict[str, np.ndarray]) -> dict[str, Any]:
    """Accuracies, shares of the best model, recoveries and curves; `lost` and `asked` are [streams, steps]."""
    half = steps // 2
    settled = slice(half - int(half * _SETTLED_PART), half), slice(steps - int(half * _SETTLED_PART), steps)
    best = int(people.accuracies.argmax()), int(people.degraded_accuracies.argmax())
    at = np.unique(np.linspace(0, steps, _POINTS + 1).astype(int))[1:]
    recovered = 1.0 - people.degraded_accuracies[best[1]] + _MARGIN
    facts: dict[str, Any] = {
        "source": people.source, "texts": len(people.labels), "steps": steps, "streams": streams, "seed": seed,
        "degrades_at": half, "models": people.accuracies.tolist(), "models_degraded": people.degraded_accuracies.tolist(),
        "best_member_accuracy": float(1.0 - lost["best_member"].mean()),
        "oracle_accuracy": float(1.0 - lost["oracle"].mean())}
    for name in POLICIES:
        rows = lost[name]
        row = {"accuracy": float(1.0 - rows.mean()), "accuracy_before": float(1.0 - rows[:, :half].mean()),
               "accuracy_after": float(1.0 - rows[:, half:].mean()), "accuracy_final": float(1.0 - rows[:, settled[1]].mean()),
               "regret": float((rows - lost["oracle"]).sum(axis=1).mean()),
               "recovery_steps": [recovery(row[half:], recovered) for row in rows]}
        if (asked[name] >= 0).all():
            row["best_share_before"] = float((asked[name][:, settled[0]] == best[0]).mean())
            row["best_share_final"] = float((asked[name][:, settled[1]] == best[1]).mean())
        facts[name] = row
    curves = {name: (rows - lost["oracle"]).cumsum(axis=1).mean(axis=0)[at - 1].round(3).tolist()
              for name, rows in lost.items() if name != "best_member"}
    return {**facts, "curves": {"steps": at.tolist(), "regret": curves}}


def recovery(losses: np.ndarray, wanted: float) -> int:
    """After how many steps a window of them begins that lost no more than `wanted` in the mean; -1 if none does."""
    window = min(_WINDOW, len(losses))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    good = sums[window:] - sums[:-window] <= wanted * window
    return int(good.argmax()) if good.any() else -1
