"""`cwd bench selection`: how fast each policy finds the best of five models, and the next best when that one degrades.

A stream of texts, labels of a fixed teacher, five students of known accuracy (students.py); half way the best student
degrades. After each answer the label comes as feedback. Nothing is served: this is about choices alone. Beside the policies
stand *static*, which keeps to the model that is best at the start, and *oracle*, which knows at every moment which single
model is best; regret is what a policy lost more than the oracle.

Policies have their defaults, which were not chosen here but on other texts and seeds (tuning.py): `tuned_on` and
`reported_on` say on which, and `held_out` whether they have nothing in common. Each stream has a seed, and with it a teacher,
students and an order of its own; figures are means over the streams, and `spread` has the lowest and the highest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.streams import Stream, play
from cwd.bench.students import Population, population
from cwd.bench.tuning import ADOPTED
from cwd.errors import Code, CwdError
from cwd.selection.policies import Policy, make_policy

#: drawn and listed in this order
POLICIES = ("static", "epsilon_greedy", "ucb1", "thompson", "exp3", "exp4")
#: points of a curve
_POINTS = 100
#: the end of each half, where a policy should have settled
_SETTLED_PART = 0.2
#: a policy has recovered when so many answers in a row are right as often as the new best model, less this
_WINDOW, _MARGIN = 500, 0.05
#: with fewer, a half has no end to settle in
_STEPS_MIN = 10


def run(tokens: str = "", steps: int = 20_000, streams: int = 10, seed: int = 0, picture: str = "",
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """How fast each selection policy finds the best of five models, and the next best when that one degrades.

    Policies have their defaults. Those of exp3 and exp4 were chosen by `cwd bench tuning` on other texts and seeds, the others'
    are their papers'; `held_out` says that nothing of what is reported was chosen on.

    `--tokens` is an npz of token texts (arrays ids and offsets); without it they are made up. `--picture` writes a PNG of
    the regret curves.
    """
    if streams < 1 or steps < _STEPS_MIN:
        raise CwdError(f"{streams} streams of {steps}; at least 1 of {_STEPS_MIN}", code=Code.BAD_ARGUMENT)
    crowds: list[Population] = []
    lost: dict[str, list[np.ndarray]] = {}
    asked: dict[str, list[np.ndarray]] = {}
    for number in range(streams):
        progress(f"stream {number + 1} of {streams}, labelling the texts")
        people = population(tokens, seed + number)
        crowds.append(people)
        stream = Stream(people, steps, seed + number)
        lost.setdefault("oracle", []).append(stream.oracle())
        lost.setdefault("best_member", []).append(stream.wrong[:, stream.wrong.mean(axis=0).argmin()])
        for name in POLICIES:
            progress(f"stream {number + 1} of {streams}, {name}")
            losses, members = play(policy_of(name, people), stream)
            lost.setdefault(name, []).append(losses)
            asked.setdefault(name, []).append(members)
    facts = {**origin(crowds[0], list(range(seed, seed + streams)), steps),
             **facts_of(crowds, {name: np.stack(rows) for name, rows in lost.items()},
                        {name: np.stack(rows) for name, rows in asked.items()})}
    if picture:
        from cwd.bench.regret import draw

        draw(Path(picture), facts)
    return facts


def policy_of(name: str, people: Population) -> Policy:
    """The policy with its defaults; static keeps to the best at the start."""
    return make_policy(name, {"member": int(people.accuracies.argmax())} if name == "static" else {})


def origin(people: Population, seeds: list[int], steps: int) -> dict[str, Any]:
    """On what parameters were chosen, on what they are judged here, and whether neither knows anything of the other."""
    reported = {"source": people.source, "sha256": people.sha256, "texts": len(people.labels), "seeds": seeds, "steps": steps}
    return {"tuned_on": ADOPTED, "reported_on": reported,
            "held_out": people.sha256 != ADOPTED["sha256"] and not set(seeds) & set(ADOPTED["seeds"])}


def facts_of(crowds: list[Population], lost: dict[str, np.ndarray], asked: dict[str, np.ndarray]) -> dict[str, Any]:
    """Accuracies, shares of the best model, recoveries and curves; `lost` and `asked` are [streams, steps] of each policy."""
    streams, steps = lost["oracle"].shape
    half = steps // 2
    accuracies, later = (np.stack([getattr(people, name) for people in crowds]) for name in ("accuracies", "later_accuracies"))
    at = np.unique(np.linspace(0, steps, _POINTS + 1).astype(int))[1:]
    facts: dict[str, Any] = {
        "steps": steps, "streams": streams, "degrades_at": half,
        "models": accuracies.mean(axis=0).tolist(), "models_degraded": later.mean(axis=0).tolist(),
        "best_member_accuracy": float(1.0 - lost["best_member"].mean()),
        "oracle_accuracy": float(1.0 - lost["oracle"].mean())}
    for name in POLICIES:
        facts[name] = summary(_measures(lost[name], lost["oracle"], asked[name], accuracies, later))
    behind = {name: (rows - lost["oracle"]).cumsum(axis=1)[:, at - 1] for name, rows in lost.items() if name != "best_member"}
    return {**facts, "curves": {
        "steps": at.tolist(), "regret": {name: rows.mean(axis=0).round(3).tolist() for name, rows in behind.items()},
        "lowest": {name: rows.min(axis=0).tolist() for name, rows in behind.items()},
        "highest": {name: rows.max(axis=0).tolist() for name, rows in behind.items()}}}


def _measures(lost: np.ndarray, oracle: np.ndarray, asked: np.ndarray, accuracies: np.ndarray, later: np.ndarray
              ) -> dict[str, np.ndarray]:
    """Of one policy, each [streams]: `lost`, `oracle` and `asked` are [streams, steps], the accuracies [streams, students]."""
    steps = lost.shape[1]
    half = steps // 2
    settled = max(1, int(half * _SETTLED_PART))
    before, final = slice(half - settled, half), slice(steps - settled, steps)
    found = {"accuracy": 1.0 - lost.mean(axis=1), "accuracy_before": 1.0 - lost[:, :half].mean(axis=1),
             "accuracy_after": 1.0 - lost[:, half:].mean(axis=1), "accuracy_final": 1.0 - lost[:, final].mean(axis=1),
             "regret": (lost - oracle).sum(axis=1),
             "recovery_steps": np.array([recovery(row[half:], 1.0 - best + _MARGIN)
                                         for row, best in zip(lost, later.max(axis=1), strict=True)])}
    if (asked >= 0).all():
        found["best_share_before"] = (asked[:, before] == accuracies.argmax(axis=1)[:, None]).mean(axis=1)
        found["best_share_final"] = (asked[:, final] == later.argmax(axis=1)[:, None]).mean(axis=1)
    return found


def summary(measures: dict[str, np.ndarray]) -> dict[str, Any]:
    """The mean of each, and as `spread` its lowest and highest; recoveries one by one, since some policies never do."""
    means = {name: float(values.mean()) for name, values in measures.items() if name != "recovery_steps"}
    return {**means, "recovery_steps": measures["recovery_steps"].tolist(),
            "spread": {name: [float(measures[name].min()), float(measures[name].max())] for name in means}}


def recovery(losses: np.ndarray, wanted: float) -> int:
    """After how many steps a window of them begins that lost no more than `wanted` in the mean; -1 if none does."""
    window = min(_WINDOW, len(losses))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    good = sums[window:] - sums[:-window] <= wanted * window
    return int(good.argmax()) if good.any() else -1
