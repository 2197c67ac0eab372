"""Which members of an app answer a prediction: static, epsilon_greedy, ucb1, thompson, exp3 and exp4.

Pure functions over a `State`: no clock, no random source, no store. Randomness comes in as one number per choice, and what
happened as losses in [0, 1], so that a run with the same numbers gives the same choices, and a log replays exactly.

    policy = make_policy("exp3", {"eta": 0.05})
    state = policy.start(5)
    choice = policy.choose(state, draw)                  # whom to ask, with which probability, what their votes weigh
    state = policy.observe(state, choice, {2: 1.0})      # the losses of those that were asked and have answered

Three families. *static* never learns. *Counting* policies (epsilon_greedy, ucb1, thompson) keep each member's mean loss;
with `discount` below 1 old losses fade, without it these are the published rules, which assume that members do not change.
*Weighing* policies (exp3, exp4) keep a weight for each member, in logarithms, so that millions of steps neither over- nor
underflow; they assume nothing, and a fixed share of all weight that goes round lets them follow a change.

All but static and exp4 ask one member. A new member starts like the mean of those that are there (Clipper's rule).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

from cwd.errors import Code, CwdError
from cwd.selection.posterior import best_probabilities
from cwd.selection.state import MEMBERS_MAX, Choice, State, one_of

#: the largest step of a log weight: far past anything that could be told from zero, and finite
_STEP_MAX = 1e9
#: a member with less is not asked in any number of lifetimes
_PROBABILITY_MIN = 1e-300


@dataclass(frozen=True)
class Policy:
    """What all policies share; subclasses say `probabilities` (of asking each member) and `learned`."""

    name: ClassVar[str] = ""
    #: whether its choices depend on what was observed; of one that does not no state need be looked up
    learns: ClassVar[bool] = True

    def parameters(self) -> dict[str, Any]:
        """What `make_policy` takes to make this policy again."""
        return asdict(self)

    def start(self, members: int) -> State:
        """The state before anything was observed, of 1 to MEMBERS_MAX members."""
        if not 1 <= members <= MEMBERS_MAX:
            raise CwdError(f"{members} members; an app has 1 to {MEMBERS_MAX}", code=Code.BAD_ARGUMENT)
        zeros = (0.0,) * members
        return State(self.name, 0, zeros, zeros, zeros)

    def probabilities(self, state: State) -> tuple[float, ...]:
        """How probable it is that each member is asked."""
        raise NotImplementedError

    def choose(self, state: State, draw: float) -> Choice:
        """Whom to ask; `draw` is a number in [0, 1) from outside, an equal one gives an equal choice."""
        self._check(state)
        return one_of(self.probabilities(state), draw)

    def observe(self, state: State, choice: Choice, losses: Mapping[int, float]) -> State:
        """The state after the losses (in [0, 1]) of members that `choice` asked; those that did not answer are left out."""
        self._check(state)
        if len(choice.probabilities) != len(state):
            raise CwdError(f"a choice among {len(choice.probabilities)} members, a state of {len(state)}",
                           code=Code.BAD_ARGUMENT)
        for member, loss in losses.items():
            if member not in choice.members:
                raise CwdError(f"a loss of member {member}, which was not asked", code=Code.BAD_ARGUMENT)
            if not 0.0 <= loss <= 1.0:
                raise CwdError(f"a loss of {loss!r} is not in [0, 1]", code=Code.BAD_ARGUMENT)
        if not losses:
            return state
        return self.learned(state, choice, {member: float(losses[member]) for member in sorted(losses)})

    def learned(self, state: State, choice: Choice, losses: dict[int, float]) -> State:
        """`observe` after its checks, with one loss at least."""
        raise NotImplementedError

    def joined(self, state: State) -> State:
        """The state with one more member, the last: with the mean weight, and as much experience as one mean loss."""
        self._check(state)
        if len(state) >= MEMBERS_MAX:
            raise CwdError(f"an app has at most {MEMBERS_MAX} members", code=Code.BAD_ARGUMENT)
        plays = math.fsum(state.plays)
        known = plays > 0.0
        mean_loss = min(1.0, math.fsum(state.losses) / plays) if known else 0.0
        return State(state.policy, state.steps, (*state.log_weights, self.log_weight_of_new(state)),
                     (*state.plays, 1.0 if known else 0.0), (*state.losses, mean_loss))

    def log_weight_of_new(self, state: State) -> float:
        """The logarithm of the mean weight."""
        return min(0.0, math.log(math.fsum(map(math.exp, state.log_weights)) / len(state)))

    def left(self, state: State, member: int) -> State:
        """The state without one member; those after it move up."""
        self._check(state)
        if not (0 <= member < len(state) and len(state) > 1):
            raise CwdError(f"member {member} cannot leave an app of {len(state)}", code=Code.BAD_ARGUMENT)
        weights, plays, losses = (column[:member] + column[member + 1:]
                                  for column in (state.log_weights, state.plays, state.losses))
        return State(state.policy, state.steps, _topped(weights), plays, losses)

    def _check(self, state: State) -> None:
        if state.policy != self.name:
            raise CwdError(f"a state of the policy {state.policy} given to {self.name}", code=Code.BAD_ARGUMENT)


@dataclass(frozen=True)
class Counting(Policy):
    """Policies that keep how often each member was seen and what it lost.

    With `discount` below 1 an observation fades by that factor with each later one (Garivier and Moulines 2011, section
    3.1, for UCB; Raj and Kalyani 2017 for Thompson sampling): 0.999 remembers about the last thousand.
    """

    discount: float = 1.0

    def __post_init__(self) -> None:
        _within(self, "discount", 0.5, 1.0)

    def learned(self, state: State, choice: Choice, losses: dict[int, float]) -> State:
        """One more play for each loss."""
        plays, sums = list(state.plays), list(state.losses)
        if self.discount < 1.0:
            plays, sums = ([value * self.discount for value in column] for column in (plays, sums))
        for member, loss in losses.items():
            plays[member] += 1.0
            sums[member] += loss
        return State(state.policy, state.steps + 1, state.log_weights, tuple(plays), tuple(sums))


@dataclass(frozen=True)
class Static(Counting):
    """Always the same: one `member`, or with `ensemble` all of them with equal votes. Losses are counted for people alone.

    `member` is a place among the app's members; `AppStore.unlink` moves it along. A state whose member has left goes on with
    the first of the others.
    """

    name: ClassVar[str] = "static"
    learns: ClassVar[bool] = False
    member: int = 0
    ensemble: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "member", 0, MEMBERS_MAX - 1)
        if not (isinstance(self.member, int) and isinstance(self.ensemble, bool)):
            raise CwdError("static: member is a whole number, ensemble is true or false", code=Code.BAD_ARGUMENT)

    def start(self, members: int) -> State:
        state = super().start(members)
        if self.ensemble:
            return state
        if self.member >= members:
            raise CwdError(f"static: there is no member {self.member} among {members}", code=Code.BAD_ARGUMENT)
        weights = tuple(0.0 if member == self.member else -math.inf for member in range(members))
        return State(state.policy, 0, weights, state.plays, state.losses)

    def probabilities(self, state: State) -> tuple[float, ...]:
        return _fixed_choice(state.log_weights).probabilities

    def choose(self, state: State, draw: float) -> Choice:
        self._check(state)
        return _fixed_choice(state.log_weights)

    def log_weight_of_new(self, state: State) -> float:
        return 0.0 if self.ensemble else -math.inf


@lru_cache(maxsize=1024)
def _fixed_choice(log_weights: tuple[float, ...]) -> Choice:
    """All members with a weight, which are equal."""
    asked = tuple(member for member, weight in enumerate(log_weights) if weight > -math.inf)
    return Choice(asked, tuple(1.0 if member in asked else 0.0 for member in range(len(log_weights))),
                  tuple(1.0 / len(asked) if member in asked else 0.0 for member in range(len(log_weights))))


@dataclass(frozen=True)
class EpsilonGreedy(Counting):
    """The member with the least mean loss, or with probability `epsilon` any (Sutton and Barto, 2nd edition, section 2.2).

    A member that was never seen counts as one without loss, so that each is tried.
    """

    name: ClassVar[str] = "epsilon_greedy"
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "epsilon", 0.0, 1.0)

    def probabilities(self, state: State) -> tuple[float, ...]:
        means = [loss / plays if plays > 0.0 else 0.0 for plays, loss in zip(state.plays, state.losses, strict=True)]
        return _mixed(_ties(means), self.epsilon)


@dataclass(frozen=True)
class Ucb1(Counting):
    """The member whose loss could be least: mean - sqrt(exploration ln n / plays), each once at first.

    UCB1 of Auer, Cesa-Bianchi and Fischer 2002 (figure 1, where exploration is 2), on the gains 1 - loss. Its choice is
    certain but for ties: logs of it say nothing of other policies.
    """

    name: ClassVar[str] = "ucb1"
    exploration: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "exploration", 0.0, 100.0)

    def probabilities(self, state: State) -> tuple[float, ...]:
        log_plays = math.log(max(1.0, math.fsum(state.plays)))
        bounds = [loss / plays - math.sqrt(self.exploration * log_plays / plays) if plays > 0.0 else -math.inf
                  for plays, loss in zip(state.plays, state.losses, strict=True)]
        return _ties(bounds)


@dataclass(frozen=True)
class Thompson(Counting):
    """Each member with the probability that it is the best, given what was seen (Thompson 1933).

    Beta posteriors from a uniform prior, as in algorithm 1 of Agrawal and Goyal 2012; a loss between 0 and 1 counts as that
    part of a failure, which has the mean of the coin that their algorithm 2 tosses. The probabilities are integrated, not
    sampled, and the choice is drawn by exactly them: one number is enough, and what is logged is what was done.
    """

    name: ClassVar[str] = "thompson"

    def probabilities(self, state: State) -> tuple[float, ...]:
        return best_probabilities(state.plays, state.losses)


@dataclass(frozen=True)
class Weighing(Policy):
    """Policies that keep a weight for each member.

    After each observation every member gives away the part `share` of its weight, and all get an equal portion of what was
    given (fixed share: Herbster and Warmuth 1998, section 5; with bandits it is Exp3.S of Auer et al. 2002, section 8).
    Without it a member that was bad for an hour needs an hour to come back. The defaults of `eta`, `share` and `gamma` are the
    least regret of a grid on streams of 10,000 predictions by five members, of which one changes (`cwd bench tuning`).
    """

    eta: float
    share: float

    def __post_init__(self) -> None:
        _within(self, "eta", 0.0, 10.0)
        _within(self, "share", 0.0, 0.5)

    def weights(self, state: State) -> tuple[float, ...]:
        """The weights, adding up to 1."""
        parts = [math.exp(weight) for weight in state.log_weights]
        total = math.fsum(parts)
        return tuple(part / total for part in parts)

    def reweighed(self, state: State, steps: dict[int, float]) -> State:
        """The state with `steps` added to log weights, and then shared."""
        weights = _stepped(state.log_weights, steps)
        if self.share > 0.0:
            weights = _topped(weights)
            weights = _shared(weights, 1.0 - self.share, self.share * math.fsum(map(math.exp, weights)) / len(weights))
        return State(state.policy, state.steps + 1, _topped(weights), state.plays, state.losses)


@dataclass(frozen=True)
class Exp3(Weighing):
    """One member, by its weight, and with probability `gamma` any; the loss of the one counts for all the times it was not.

    w <- w exp(-eta loss / p), p = (1 - gamma) w / sum(w) + gamma / n. The loss form of Clipper's paper (section 5.1) and of
    Bubeck and Cesa-Bianchi 2012 (section 3.1), with the uniform part of Auer, Cesa-Bianchi, Freund and Schapire 2002
    (section 3), which bounds 1 / p and so what one unlucky draw can do, and with the fixed share of their Exp3.S. Without
    it recovery takes the longer, the longer all went well: a weight that has fallen for a day has a day to rise. In the loss
    form the member in use is punished as soon as it degrades; gains would wait until a better one is drawn by chance.

    `gains` takes the update of Auer et al. (Exp3.S, figure 4) instead, for which their bounds are: with W the sum before,
    w <- w exp(gamma (1 - loss) / (p n)) + e share W / n; eta is not used.
    """

    name: ClassVar[str] = "exp3"
    eta: float = 0.1
    share: float = 1e-7
    gamma: float = 0.05
    gains: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "gamma", 0.0, 1.0)
        if not isinstance(self.gains, bool):
            raise CwdError("exp3: gains is true or false", code=Code.BAD_ARGUMENT)
        if self.gains and self.gamma == 0.0:
            raise CwdError("exp3: with gains, gamma is how fast it learns, and not 0", code=Code.BAD_ARGUMENT)

    def probabilities(self, state: State) -> tuple[float, ...]:
        return _mixed(self.weights(state), self.gamma)

    def learned(self, state: State, choice: Choice, losses: dict[int, float]) -> State:
        asked = {member: max(choice.probabilities[member], _PROBABILITY_MIN) for member in losses}
        if self.gains:
            return self._gained(state, {member: self.gamma * (1.0 - loss) / (asked[member] * len(state))
                                        for member, loss in losses.items()})
        return self.reweighed(state, {member: -self.eta * loss / asked[member] for member, loss in losses.items()})

    def _gained(self, state: State, steps: dict[int, float]) -> State:
        """Exp3.S: the portion that all get is of the weights as they were, and nobody gives it away."""
        portion = math.e * self.share * math.fsum(map(math.exp, state.log_weights)) / len(state)
        weights = _stepped(state.log_weights, steps)
        if self.share > 0.0:
            weights = _shared(_topped(weights), 1.0, portion * math.exp(-max(weights)))
        return State(state.policy, state.steps + 1, _topped(weights), state.plays, state.losses)


@dataclass(frozen=True)
class Exp4(Weighing):
    """All members, their votes by weight; each is judged by its own loss: w <- w exp(-eta loss).

    As in Clipper's paper (section 5.2), where every member's loss is seen: this is Hedge of Freund and Schapire 1997, with
    a fixed share. Before it, members that did not answer keep their weight, and those that did share what they had together
    (Freund, Schapire, Singer and Warmuth 1997, "specialists"): who is late often is neither punished nor favoured by it.
    The defaults leave the weaker members with votes: a group whose errors differ is right more often than its best.
    """

    name: ClassVar[str] = "exp4"
    eta: float = 0.05
    share: float = 1e-2

    def probabilities(self, state: State) -> tuple[float, ...]:
        return (1.0,) * len(state)

    def choose(self, state: State, draw: float) -> Choice:
        self._check(state)
        return Choice(tuple(range(len(state))), (1.0,) * len(state), self.weights(state))

    def learned(self, state: State, choice: Choice, losses: dict[int, float]) -> State:
        steps = {member: -self.eta * loss for member, loss in losses.items()}
        if len(losses) < len(state):
            top = max(state.log_weights[member] for member in losses)
            before = {member: math.exp(state.log_weights[member] - top) for member in losses}
            after = math.fsum(part * math.exp(steps[member]) for member, part in before.items())
            kept = math.log(math.fsum(before.values()) / after)
            steps = {member: step + kept for member, step in steps.items()}
        return self.reweighed(state, steps)


POLICIES: dict[str, type[Policy]] = {kind.name: kind for kind in (Static, EpsilonGreedy, Ucb1, Thompson, Exp3, Exp4)}


def make_policy(name: str, parameters: Mapping[str, Any] | None = None) -> Policy:
    """The policy of that name; raises `CwdError` (BAD_ARGUMENT) for a name or parameter that there is not."""
    kind = POLICIES.get(name)
    if kind is None:
        raise CwdError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}", code=Code.BAD_ARGUMENT)
    given = dict(parameters or {})
    known = {field.name: field.type for field in fields(kind)}
    for word in given:
        if word not in known:
            raise CwdError(f"{name} has no parameter {word!r}; it has {', '.join(known)}", code=Code.BAD_ARGUMENT)
    return kind(**given)


def _within(policy: Policy, word: str, low: float, high: float) -> None:
    """Refuse a parameter that is not a number from `low` to `high`."""
    value = getattr(policy, word)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CwdError(f"{policy.name}: {word} is a number from {low:g} to {high:g}, not {value!r}", code=Code.BAD_ARGUMENT)


def _stepped(log_weights: tuple[float, ...], steps: dict[int, float]) -> tuple[float, ...]:
    weights = list(log_weights)
    for member, step in steps.items():
        weights[member] += max(-_STEP_MAX, min(_STEP_MAX, step))
    return tuple(weights)


def _shared(log_weights: tuple[float, ...], kept: float, portion: float) -> tuple[float, ...]:
    """The part `kept` of each weight and the same `portion` for all; what is too little for a float stays above nothing."""
    return tuple(math.log(max(kept * math.exp(weight) + portion, _PROBABILITY_MIN)) for weight in log_weights)


def _topped(log_weights: tuple[float, ...]) -> tuple[float, ...]:
    """The same weights with 0 as the largest; where all are gone (a static member left), the first."""
    top = max(log_weights)
    if top == -math.inf:
        return (0.0, *log_weights[1:])
    return log_weights if top == 0.0 else tuple(weight - top for weight in log_weights)


def _ties(scores: list[float]) -> tuple[float, ...]:
    """An equal probability for each member with the least score."""
    least = min(scores)
    part = 1.0 / scores.count(least)
    return tuple(part if score == least else 0.0 for score in scores)


def _mixed(probabilities: tuple[float, ...], part: float) -> tuple[float, ...]:
    """`part` of the choice is uniform, the rest as given."""
    uniform = part / len(probabilities)
    return tuple((1.0 - part) * probability + uniform for probability in probabilities)
