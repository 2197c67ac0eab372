"""What a selection policy remembers (`State`) and what it decides (`Choice`): small frozen records, one entry per member.

Members are numbered 0 to n-1, in the order of the app; which model is which is not known here. A state's bytes are
canonical: equal states have equal bytes, so that stores can compare and swap them, and a log can be held against a store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from cwd.errors import Code, CwdError

#: of `State.to_bytes`; a reader refuses what it does not know
VERSION = 1
#: members of one app; also what a stored state may have
MEMBERS_MAX = 256


@dataclass(frozen=True, slots=True)
class State:
    """What one policy has learned in one context. Never changed: an observation makes another one."""

    #: the name of the policy whose it is
    policy: str
    #: observations so far
    steps: int
    #: natural logarithm of each member's weight, the largest 0; a member that is never asked has -inf
    log_weights: tuple[float, ...]
    #: how often each member's loss was seen, discounted where the policy forgets
    plays: tuple[float, ...]
    #: the sum of those losses, discounted alike
    losses: tuple[float, ...]

    def __len__(self) -> int:
        """The number of members."""
        return len(self.log_weights)

    def to_bytes(self) -> bytes:
        """The one encoding of this state (msgpack)."""
        return msgpack.packb([VERSION, self.policy, self.steps, self.log_weights, self.plays, self.losses])

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """The state that `to_bytes` encoded; raises `CwdError` (CORRUPT) for anything else."""
        try:
            version, policy, steps, *columns = msgpack.unpackb(data, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CwdError(f"not a policy's state: {error}", code=Code.CORRUPT) from error
        if version != VERSION:
            raise CwdError(f"a policy's state of version {version!r}; this cwd reads {VERSION}", code=Code.CORRUPT)
        if not (isinstance(policy, str) and _is_count(steps) and len(columns) == 3 and _are_columns(columns)):
            raise CwdError("not a policy's state: wrong fields", code=Code.CORRUPT)
        return State(policy, steps, *columns)

    def ordered(self, order: Sequence[int]) -> State:
        """The same state with its members in another order: member k was member `order[k]`."""
        if sorted(order) != list(range(len(self))):
            raise CwdError(f"{tuple(order)} is not an order of {len(self)} members", code=Code.BAD_ARGUMENT)
        return State(self.policy, self.steps, *(tuple(column[k] for k in order)
                                                for column in (self.log_weights, self.plays, self.losses)))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy decided for one prediction."""

    #: whom to ask, in rising order
    members: tuple[int, ...]
    #: for each member of the app, how probable it was that it would be asked; what off-policy estimates divide by
    probabilities: tuple[float, ...]
    #: for each member of the app, its weight in the vote or mean; they add up to 1
    weights: tuple[float, ...]


def one_of(probabilities: tuple[float, ...], draw: float) -> Choice:
    """The single member that `draw` (in [0, 1)) falls on when the probabilities are laid end to end."""
    if not 0.0 <= draw < 1.0:
        raise CwdError(f"a draw of {draw!r} is not in [0, 1)", code=Code.BAD_ARGUMENT)
    mark = draw * math.fsum(probabilities)
    chosen, upto = -1, 0.0
    for member, probability in enumerate(probabilities):
        if probability > 0.0:
            chosen, upto = member, upto + probability
            if mark < upto:
                break
    weights = [0.0] * len(probabilities)
    weights[chosen] = 1.0
    return Choice((chosen,), probabilities, tuple(weights))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_columns(columns: list[Any]) -> bool:
    """Three tuples of floats, equally long, of which the log weights have 0 as their largest; NaN is nothing."""
    return (all(isinstance(column, tuple) and all(isinstance(value, float) for value in column) for column in columns)
            and len({len(column) for column in columns}) == 1 and 1 <= len(columns[0]) <= MEMBERS_MAX
            and max(columns[0]) == 0.0 and all(value <= 0.0 for value in columns[0])
            and all(0.0 <= value < math.inf for column in columns[1:] for value in column))
