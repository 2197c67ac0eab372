"""What a store keeps for one app and context: the policy's state, whose it is, and how many observations made it.

`after` is the only way in which an entry changes: the same observations in the same order give the same bytes, in a store
and from a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgpack

from cwd.errors import Code, CwdError
from cwd.selection.observation import Observation
from cwd.selection.policies import Policy, make_policy
from cwd.selection.state import State

#: of `Entry.to_bytes`
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One state with its version: 1 after the first observation, and one more after each."""

    version: int
    policy: str
    parameters: Mapping[str, Any]
    members: tuple[str, ...]
    state: State

    def to_bytes(self) -> bytes:
        """The one encoding of this entry (msgpack)."""
        return msgpack.packb([VERSION, self.version, self.policy, sorted(self.parameters.items()), self.members,
                              self.state.to_bytes()])

    @staticmethod
    def from_bytes(data: bytes) -> Entry:
        """The entry that `to_bytes` encoded; raises `CwdError` (CORRUPT) for anything else."""
        try:
            kind, version, policy, parameters, members, state = msgpack.unpackb(data)
            if kind != VERSION:
                raise CwdError(f"a stored state of version {kind!r}; this cwd reads {VERSION}", code=Code.CORRUPT)
            return Entry(version, policy, dict(parameters), tuple(members), State.from_bytes(state))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CwdError(f"not a stored state: {error}", code=Code.CORRUPT) from error


def fitted(entry: Entry | None, policy: Policy, members: Sequence[str]) -> State:
    """The state to choose with for an app that has these members now.

    Without an entry, or with one of another policy, a new state; so too with other parameters of a policy that does not
    learn, since they are all that it goes by. Members that have gone leave it, new ones join it.
    """
    if entry is None or entry.policy != policy.name or not (policy.learns or entry.parameters == policy.parameters()):
        return policy.start(len(members))
    names, state = list(entry.members), entry.state
    if names == list(members):
        return state
    if not set(names) & set(members):
        return policy.start(len(members))
    for name in entry.members:
        if name not in members:
            state = policy.left(state, names.index(name))
            names.remove(name)
    for name in members:
        if name not in names:
            state = policy.joined(state)
            names.append(name)
    return state.ordered([names.index(name) for name in members])


def after(entry: Entry | None, observation: Observation) -> Entry:
    """The entry that follows one more observation; raises `CwdError` where its policy, members or losses make no sense."""
    policy = _policy(observation.policy, tuple(sorted(observation.parameters.items())))
    state = policy.observe(fitted(entry, policy, observation.members), observation.choice, observation.losses)
    return Entry((entry.version if entry else 0) + 1, policy.name, policy.parameters(), observation.members, state)


@lru_cache(maxsize=256)
def _policy(name: str, parameters: tuple[tuple[str, Any], ...]) -> Policy:
    return make_policy(name, dict(parameters))
