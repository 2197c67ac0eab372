"""Observations for tests of stores and logs, made from numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import strategies as st

from cwd.selection.entry import Entry, after, fitted
from cwd.selection.observation import Observation
from cwd.selection.policies import make_policy
from cwd.selection.states import States

#: makes another handle of one and the same store
Opener = Callable[[], States]

#: members come and go, policies change, contexts share an app
FEEDBACKS = st.lists(st.tuples(
    st.integers(0, 12), st.sampled_from(["", "ann", "bob"]), st.sampled_from(["exp3", "exp4", "thompson"]),
    st.sampled_from([("a:1", "b:1"), ("b:1", "a:1", "c:1"), ("c:2",)]), st.floats(0.0, 1.0, exclude_max=True),
    st.sampled_from([0.0, 0.3, 1.0])), max_size=14)


def observation(number: int, context: str = "", policy: str = "exp3", members: tuple[str, ...] = ("a:1", "b:1", "c:1"),
                draw: float = 0.5, loss: float = 1.0, entry: Entry | None = None, app: str = "app") -> Observation:
    """What feedback number `number` says: `loss` of every member that was asked."""
    made = make_policy(policy)
    choice = made.choose(fitted(entry, made, members), draw)
    return Observation(f"feedback-{number}", app, context, policy, made.parameters(), members, choice,
                       {member: loss for member in choice.members}, loss=loss, label=number % 3, time_ns=number)


class NaiveStore:
    """Entries in a dict and ids in a set."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self.ids: set[str] = set()

    def apply(self, observations: Iterable[Observation]) -> list[bool]:
        """Whether each was new."""
        return [self._apply(one) for one in observations]

    def _apply(self, one: Observation) -> bool:
        if one.feedback_id in self.ids:
            return False
        self.ids.add(one.feedback_id)
        key = (one.app, one.context)
        self.entries[key] = after(self.entries.get(key), one)
        return True
