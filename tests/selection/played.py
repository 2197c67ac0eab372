"""What tests of runs share: an app ready for use, and inputs whose answers show whose they are."""

from __future__ import annotations

import numpy as np

from cwd.selection.apps import App, Member
from cwd.selection.run import Asked, Run
from cwd.selection.state import Choice


class Played:
    """An app whose answers are added up, with the share that arrived as confidence."""

    def __init__(self, members=1, **fields):
        self.app = App("app", tuple(Member(f"m{i}") for i in range(members)),
                       **{"policy": "exp4", "combine": "mean", **fields})

    def combine(self, outputs, choice):
        found = sum(array["y"] for array in outputs.values())
        return {"y": found}, sum(choice.weights[member] for member in outputs)

    def default(self):
        return self.app.default_outputs()


def everybody(members):
    """The choice that asks all."""
    return Choice(tuple(range(members)), (1.0,) * members, (1.0 / members,) * members)


def answer_of(member, value):
    """What a member says of an input."""
    return {"y": np.array([1000.0 * member + value])}


def asked(cache, member, value, version=1):
    """A member's input, whose bytes are `value`."""
    payload = np.array([value], np.int64)
    return Asked(cache.key((f"m{member}", version, 7, 1), (0, 0, 0, 0), payload), (0, 0, 0, 0), payload)


def begun(serving, value, now_ns, deadline_ns, cache=None, request_id=1):
    """A run of all members, started."""
    members = len(serving.app.members)
    run = Run(serving, everybody(members), request_id, now_ns, deadline_ns)
    inputs = None if cache is None else {member: asked(cache, member, value) for member in range(members)}
    run.start(now_ns, cache, inputs)
    return run
