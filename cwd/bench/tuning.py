"""`cwd bench tuning`: where the defaults of exp3 and exp4 are from, on texts and seeds that `cwd bench selection` is not of.

Every combination of the grid is played on the same streams: other texts than those that figures are reported on (SST's
sentences), other teachers and students, accuracies and a moment of change drawn at random, and not one kind of change but
two by turns: the best student degrades, or the worst becomes the best. The least mean regret is the best. `cwd.selection`
has that as its defaults; ADOPTED says on what they were chosen, and `cwd bench selection` prints it beside its own source.
The other policies have their defaults from the papers that they cite, and nothing of them was tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from cwd.bench.streams import Stream, play
from cwd.bench.students import WANTED, Population, population
from cwd.errors import Code, CwdError
from cwd.selection.policies import make_policy

#: what the defaults in cwd/selection/policies.py were chosen on, by `run` below
ADOPTED: dict[str, Any] = {"source": "tokens_sst.npz", "seeds": list(range(1000, 1016)), "steps": 10_000,
                           "sha256": "7cde4d4aa00c1e44f8fddb6f0e5eff2b2c0e1ca6d7b193b591f6dcccef683bc9"}
GRID: dict[str, dict[str, tuple[float, ...]]] = {
    # with less gamma a log would soon say nothing of members that are hardly asked
    "exp3": {"eta": (0.01, 0.02, 0.05, 0.1, 0.2), "share": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3), "gamma": (0.02, 0.05, 0.1)},
    "exp4": {"eta": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), "share": (1e-4, 1e-3, 1e-2, 1e-1)},
}
#: of the first stream; `cwd bench selection` counts its own from 0
FIRST_SEED = 1000
#: what students' accuracies are drawn from, how good one is that has degraded, and by how much one overtakes the best
_WANTED, _DEGRADED, _AHEAD = (0.5, 0.9), (0.3, 0.5), (0.04, 0.08)
#: the part of a stream before something changes
_CHANGES_AT = (0.25, 0.75)


def run(tokens: str = "", steps: int = 10_000, streams: int = 16, seed: int = FIRST_SEED,
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The regret of exp3 and exp4 for every combination of a grid of parameters; the defaults are the best of it.

    `--tokens` is an npz of token texts (arrays ids and offsets); the defaults were chosen on SST's.
    """
    progress("labelling the texts")
    if streams < 1 or steps < 100:
        raise CwdError(f"{streams} streams of {steps}; at least 1 of 100", code=Code.BAD_ARGUMENT)
    drawn = [drawn_stream(tokens, steps, seed + number) for number in range(streams)]
    people = drawn[0][0]
    facts: dict[str, Any] = {"source": people.source, "sha256": people.sha256, "steps": steps,
                             "seeds": list(range(seed, seed + streams))}
    for name, grid in GRID.items():
        rows = []
        for values in product(*grid.values()):
            parameters = dict(zip(grid, values, strict=True))
            progress(f"{name} {parameters}")
            policy = make_policy(name, parameters)
            regrets = [(play(policy, stream)[0] - stream.oracle()).sum() for _, stream in drawn]
            rows.append({**parameters, "regret": float(np.mean(regrets)), "lowest": min(regrets), "highest": max(regrets)})
        rows.sort(key=lambda row: row["regret"])
        best = {word: rows[0][word] for word in grid}
        defaults = {word: make_policy(name).parameters()[word] for word in grid}
        facts[name] = {"best": best, "defaults": defaults, "defaults_are_best": best == defaults, "grid": rows}
    return facts


def drawn_stream(tokens: str, steps: int, seed: int) -> tuple[Population, Stream]:
    """A stream with accuracies, a change and its moment that the seed decides: an even one degrades the best student."""
    randoms = np.random.default_rng((seed, 2))
    wanted = randoms.uniform(*_WANTED, len(WANTED))
    degraded = int(wanted.argmax()), float(randoms.uniform(*_DEGRADED))
    better = int(wanted.argmin()), float(wanted.max() + randoms.uniform(*_AHEAD))
    people = population(tokens, seed, tuple(wanted), better if seed % 2 else degraded)
    return people, Stream(people, steps, seed, int(steps * randoms.uniform(*_CHANGES_AT)))
