"""One feedback, joined with its prediction: all that is needed to learn from it, now or when a log is replayed.

Members are named here (`resnet50:3`), since apps change: what a policy numbers is the place in `members`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from cwd.errors import Code, CwdError
from cwd.selection.policies import make_policy
from cwd.selection.state import Choice

#: of `Observation.to_bytes`
VERSION = 1
#: of one record in the log; what is larger (labels and answers, mostly) is refused
RECORD_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Observation:
    """What a feedback says of one prediction. `choice`, `losses` and `answers` number the members as `members` does."""

    #: unique in the app; a second observation with the same id changes nothing
    feedback_id: str
    #: the app's name, or whatever tells one life of it from the next
    app: str
    #: the user, session or whatever else has a state of its own; empty for the app's only one
    context: str
    policy: str
    parameters: Mapping[str, Any]
    #: the app's members when the feedback came
    members: tuple[str, ...]
    choice: Choice
    #: of each member whose answer is known, in [0, 1]
    losses: Mapping[int, float]
    #: of the answer that was given, in [0, 1]; None where there was none, or a default
    loss: float | None = None
    #: what those members said, and what was right, if they are short: classes, numbers, texts or lists of them
    answers: Mapping[int, Any] = field(default_factory=dict)
    label: Any = None
    #: wall clock, for people
    time_ns: int = 0

    def to_bytes(self, version: int) -> bytes:
        """The one encoding, with the version of the state that it led to."""
        choice = [list(self.choice.members), list(self.choice.probabilities), list(self.choice.weights)]
        try:
            return msgpack.packb([
                VERSION, version, self.feedback_id, self.app, self.context, self.policy, sorted(self.parameters.items()),
                list(self.members), choice, sorted(self.losses.items()), self.loss, sorted(self.answers.items()), self.label,
                self.time_ns])
        except (TypeError, ValueError, OverflowError) as error:
            raise CwdError(f"a feedback that cannot be logged: {error}", code=Code.BAD_ARGUMENT) from error

    @staticmethod
    def from_bytes(data: bytes) -> tuple[int, Observation]:
        """(version, observation) as `to_bytes` encoded them; raises `CwdError` (CORRUPT) for anything else."""
        try:
            kind, version, *words, parameters, members, choice, losses, loss, answers, label, time_ns = msgpack.unpackb(
                data, strict_map_key=False)
            if kind != VERSION:
                raise CwdError(f"a logged feedback of version {kind!r}; this cwd reads {VERSION}", code=Code.CORRUPT)
            asked, probabilities, weights = choice
            feedback_id, app, context, policy = words
            return version, Observation(
                feedback_id, app, context, policy, dict(parameters), tuple(members),
                Choice(tuple(asked), tuple(probabilities), tuple(weights)), dict(losses), loss, dict(answers), label,
                time_ns)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CwdError(f"not a logged feedback: {error}", code=Code.CORRUPT) from error

    def check(self) -> None:
        """Raise `CwdError` for what cannot be logged or learned from; what passes cannot fail later, in a store or a replay."""
        if not all(isinstance(word, str) for word in (self.feedback_id, self.app, self.context, self.policy)):
            raise CwdError("a feedback's id, app, context and policy are texts", code=Code.BAD_ARGUMENT)
        if not self.feedback_id or not self.app:
            raise CwdError("a feedback has an id and an app", code=Code.BAD_ARGUMENT)
        if len(set(self.members)) != len(self.members):
            raise CwdError(f"a member twice among {', '.join(self.members)}", code=Code.BAD_ARGUMENT)
        count = len(self.members)
        lengths = {len(self.choice.probabilities), len(self.choice.weights)}
        if lengths != {count} or not all(0 <= member < count for member in (*self.choice.members, *self.answers)):
            raise CwdError(f"a choice that is not among {count} members", code=Code.BAD_ARGUMENT)
        if not (all(0.0 <= part <= 1.0 for part in (*self.choice.probabilities, *self.choice.weights))
                and all(self.choice.probabilities[member] > 0.0 for member in self.choice.members)):
            raise CwdError("a choice whose probabilities or weights are not from 0 to 1, or that asked a member against them",
                           code=Code.BAD_ARGUMENT)
        if self.loss is not None and not 0.0 <= self.loss <= 1.0:
            raise CwdError(f"a loss of {self.loss!r} is not in [0, 1]", code=Code.BAD_ARGUMENT)
        if (size := len(self.to_bytes(0))) > RECORD_BYTES_MAX:
            raise CwdError(f"a feedback of {size} bytes; {RECORD_BYTES_MAX} is the most", code=Code.TOO_LARGE)
        policy = make_policy(self.policy, self.parameters)
        policy.observe(policy.start(count), self.choice, self.losses)


def translated(choice: Choice, values: Mapping[int, Any], then: Sequence[str], now: Sequence[str]) -> tuple[
        Choice, dict[int, Any]]:
    """A choice, and values of its members, that number the members `now` and not `then`.

    Who is no longer there is left out; who is new could not have been asked. Where one alone was asked, the probabilities are
    then those of asking each, given that it is one of those who are still there: what was seen must stand for no more.
    """
    places = {name: place for place, name in enumerate(then)}
    come_from = [places.get(name, -1) for name in now]
    goes_to = {old: new for new, old in enumerate(come_from) if old >= 0}
    whole = 1.0
    if len(choice.members) == 1 and len(goes_to) < len(then):
        whole = math.fsum(choice.probabilities[old] for old in goes_to) or 1.0
    moved = Choice(tuple(sorted(goes_to[member] for member in choice.members if member in goes_to)),
                   tuple(choice.probabilities[old] / whole if old >= 0 else 0.0 for old in come_from),
                   tuple(choice.weights[old] if old >= 0 else 0.0 for old in come_from))
    return moved, {goes_to[member]: value for member, value in values.items() if member in goes_to}
