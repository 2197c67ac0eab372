"""A stream of texts whose labels come as feedback, and what a selection policy loses on it. Nothing is served."""

from __future__ import annotations

import random

import numpy as np

from cwd.bench.students import Population
from cwd.selection.combine import combine
from cwd.selection.policies import Policy


class Stream:
    """Texts in the order in which they come, and what each student says of them; from `changes_at` on one has changed."""

    def __init__(self, people: Population, steps: int, seed: int, changes_at: int | None = None) -> None:
        # a pair, so that the order owes nothing to a population of the same seed
        texts = np.random.default_rng((seed, 1)).integers(0, len(people.labels), steps)
        self.changes_at = steps // 2 if changes_at is None else changes_at
        self.seed = seed
        #: i64[steps]
        self.labels = people.labels[texts]
        #: i64[steps, students]
        self.answers = np.concatenate([people.answers[texts[:self.changes_at]], people.later_answers[texts[self.changes_at:]]])
        #: f64[steps, students], 1 for a wrong answer
        self.wrong = (self.answers != self.labels[:, None]).astype(np.float64)
        #: i64[steps], the student that is best then
        self.best_at = np.repeat([people.accuracies.argmax(), people.later_accuracies.argmax()],
                                 [self.changes_at, steps - self.changes_at])

    def oracle(self) -> np.ndarray:
        """f64[steps]: what the student loses that is best at each moment."""
        return self.wrong[np.arange(len(self.wrong)), self.best_at]


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
