"""What another policy would have lost, told from a feedback log of this one.

Each logged prediction says with which probability each member was asked, so that what was seen can be weighted to stand
for what was not. Three estimates of the mean loss, all from the same records:

- *ips*, inverse propensity (Horvitz and Thompson 1952): unbiased, and wild where the policies differ much;
- *snips*, the same divided by the mean weight (Swaminathan and Joachims 2015): calmer, biased by O(1/n);
- *dr*, doubly robust (Dudík, Langford and Li 2011): each member's mean loss so far, corrected by the weighted surprises;
  unbiased too, since the means are of earlier records alone, and mostly the best of the three.

A policy that learns is run on the log while it is evaluated: a record becomes part of its own history with such a
probability that the history is distributed as if the policy had run (rejection sampling; Dudík, Erhan, Langford and Li
2012, algorithm 1), and a record's weight is that probability. So what comes out is the mean over the first steps of it.
Where all members were asked, nothing has to be guessed or rejected. An ensemble can only be evaluated there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from cwd.errors import Code, CwdError
from cwd.selection.combine import combine
from cwd.selection.entry import Entry, fitted
from cwd.selection.feedback import History
from cwd.selection.losses import Loss, ZeroOne
from cwd.selection.observation import Observation
from cwd.selection.policies import Policy
from cwd.selection.state import Choice


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean loss with its confidence interval (normal approximation)."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a log says of a policy."""

    #: predictions whose feedback could be used, and those that could not: a member was asked and its loss is not known
    records: int
    incomplete: int
    #: steps that the policy made of them; a policy that does not learn makes all
    learned: int
    #: so many records of a log by the policy itself would say as much as these
    effective: float
    #: the mean probability with which the policy asks members that the log could not have asked: what no estimate knows
    unsupported: float
    #: what the log's own answers lost
    logged: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def evaluate(told: Iterable[History], policy: Policy, *, learn: bool = True, steps: int | None = None, seed: int = 0,
             confidence: float = 0.95, kind: str = "vote", loss: Loss | None = None) -> Evaluation:
    """What `policy` would have lost on the predictions of a log (`feedback.histories`), context by context.

    `learn` False keeps it in the state in which it starts. In each context it is judged on the first `steps` steps of its own;
    None is as many as the log makes, which are more where it has learned less. `kind` and `loss` are how an ensemble's answers
    are combined and judged. Raises `CwdError` where the log cannot say: no usable records, or an ensemble and a log of single
    choices.
    """
    if not 0.0 < confidence < 1.0:
        raise CwdError(f"a confidence of {confidence!r} is not between 0 and 1", code=Code.BAD_ARGUMENT)
    tally = _Tally()
    randoms = random.Random(seed)
    for history in told:
        run = _Run(policy, learn, randoms, kind, loss or ZeroOne())
        for observation in history.observations:
            if steps is not None and run.learned >= steps:
                break
            if set(observation.losses) == set(observation.choice.members) and observation.losses:
                run.step(observation, tally)
            else:
                tally.incomplete += 1
        tally.learned += run.learned
    return tally.evaluation(NormalDist().inv_cdf(0.5 + confidence / 2.0))


@dataclass
class _Tally:
    """Sums over records, and what each contributed."""

    incomplete: int = 0
    learned: int = 0
    unsupported: float = 0.0
    #: (weight of the record, importance weight, weighted loss, doubly robust loss) of each record
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    logged: list[float] = field(default_factory=list)
    #: of each member by name: how often its loss was seen, and their sum; a first half is taken for granted
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def mean_loss(self, member: str) -> float:
        """The member's mean loss in earlier records."""
        count, total = self.seen.get(member, (0.0, 0.0))
        return (total + 0.5) / (count + 1.0)

    def add_seen(self, observation: Observation) -> None:
        """What later records may know of this one."""
        self.logged.append(_logged_loss(observation))
        for member, lost in observation.losses.items():
            count, total = self.seen.get(observation.members[member], (0.0, 0.0))
            self.seen[observation.members[member]] = (count + 1.0, total + lost)

    def evaluation(self, deviations: float) -> Evaluation:
        """The means and their intervals."""
        if not self.rows:
            raise CwdError("the log has no feedback that could be used", code=Code.BAD_ARGUMENT)
        of_ips = [(weight, value) for weight, _, value, _ in self.rows]
        of_dr = [(weight, value) for weight, _, _, value in self.rows]
        # a ratio of two means: each record's loss counts as often as its importance weight says
        of_snips = [(weight * importance, value / importance) for weight, importance, value, _ in self.rows
                    if importance > 0.0]
        shares = [weight for weight, _ in of_snips]
        if math.fsum(shares) <= 0.0:
            raise CwdError("the log shows nothing of the members that the policy would ask", code=Code.BAD_ARGUMENT)
        return Evaluation(
            len(self.rows), self.incomplete, self.learned,
            math.fsum(shares) ** 2 / math.fsum(share * share for share in shares),
            self.unsupported / len(self.rows), _estimate([(1.0, value) for value in self.logged], deviations),
            _estimate(of_ips, deviations), _estimate(of_snips, deviations), _estimate(of_dr, deviations))


class _Run:
    """The evaluated policy in one context."""

    def __init__(self, policy: Policy, learn: bool, randoms: random.Random, kind: str, loss: Loss) -> None:
        self._policy, self._learn, self._randoms = policy, learn and policy.learns, randoms
        self._kind, self._loss = kind, loss
        self._entry: Entry | None = None
        #: steps of its own
        self.learned = 0

    def step(self, observation: Observation, tally: _Tally) -> None:
        """Judge the policy by one record, and perhaps let it learn from it."""
        state = fitted(self._entry, self._policy, observation.members)
        choice = self._policy.choose(state, self._randoms.random())
        judge = self._judge_ensemble if len(choice.members) > 1 else self._judge_single
        kept = judge(observation, choice, tally)
        self.learned += kept is not None
        tally.unsupported += math.fsum(
            p for p, q in zip(choice.probabilities, observation.choice.probabilities, strict=True) if q <= 0.0) / (
            math.fsum(choice.probabilities))
        tally.add_seen(observation)
        if kept is not None and self._learn:
            losses = {member: observation.losses[member] for member in kept.members}
            self._entry = Entry(0, self._policy.name, self._policy.parameters(), observation.members,
                                self._policy.observe(state, kept, losses))

    def _judge_ensemble(self, observation: Observation, choice: Choice, tally: _Tally) -> Choice:
        """What the combined answer would have lost, exactly: all that it needs is in the record."""
        lacking = [observation.members[member] for member in choice.members if member not in observation.answers]
        if lacking or observation.label is None:
            raise CwdError(f"{self._policy.name} needs all members' answers and the label; the log lacks "
                           f"{', '.join(lacking) or 'the label'}", code=Code.BAD_ARGUMENT)
        answers = {member: observation.answers[member] for member in choice.members}
        lost = self._loss(combine(self._kind, answers, choice.weights).output, observation.label)
        tally.rows.append((1.0, 1.0, lost, lost))
        return choice

    def _judge_single(self, observation: Observation, choice: Choice, tally: _Tally) -> Choice | None:
        """Weigh what was seen; what becomes part of the policy's own history, None if this record does not."""
        wanted, asked = choice.probabilities, observation.choice.probabilities
        model = [tally.mean_loss(name) for name in observation.members]
        # by each one's own chance to have been asked; where several were, their weights add up
        ratios = {member: wanted[member] / asked[member] for member in observation.losses}
        lost = math.fsum(ratio * observation.losses[member] for member, ratio in ratios.items())
        robust = math.fsum(p * value for p, value in zip(wanted, model, strict=True)) + math.fsum(
            ratio * (observation.losses[member] - model[member]) for member, ratio in ratios.items())
        importance = math.fsum(ratios.values())
        if not self._learn or len(observation.losses) == len(wanted):
            tally.rows.append((1.0, importance, lost, robust))
            return choice
        if len(observation.losses) > 1:
            raise CwdError("a policy that learns cannot be run on a log of ensembles of some of the members",
                           code=Code.BAD_ARGUMENT)
        # accepted in proportion to wanted / asked, whose largest value is known before it is seen who was asked
        largest = max((p / q for p, q in zip(wanted, asked, strict=True) if q > 0.0), default=0.0)
        tally.rows.append((1.0 / largest if largest > 0.0 else 0.0, importance, lost, robust))
        (member,) = observation.losses
        if self._randoms.random() * largest >= ratios[member]:
            return None
        return Choice((member,), wanted, tuple(1.0 if k == member else 0.0 for k in range(len(wanted))))


def _logged_loss(observation: Observation) -> float:
    """What the answer that was given lost; where that was not noted, the mean of those that were asked."""
    if observation.loss is not None:
        return observation.loss
    return math.fsum(observation.losses.values()) / len(observation.losses)


def _estimate(rows: list[tuple[float, float]], deviations: float) -> Estimate:
    """The weighted mean of (weight, value), and so many standard errors to both sides."""
    total = math.fsum(weight for weight, _ in rows)
    mean = math.fsum(weight * value for weight, value in rows) / total
    error = math.sqrt(math.fsum((weight * (value - mean)) ** 2 for weight, value in rows)) / total
    return Estimate(mean, mean - deviations * error, mean + deviations * error)
