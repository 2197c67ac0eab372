"""The heap of events against a sorted list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cwd.sim.events import pop, push
from cwd.sim.profile import Profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.sim.world import EVENTS_FULL, SOURCE_TRACE

SIM = build(Scenario((Profile("one", (1, 1, 1, 1, 1), 1, 1),), (0,), (Load(SOURCE_TRACE, trace=np.zeros((0, 2), np.int64)),),
                     pages=1, config=dict(requests_max=8, events_max=8)))


@given(steps=st.lists(st.one_of(st.integers(0, 20), st.none()), max_size=80))
def test_events_come_by_time_and_then_in_order(steps):
    SIM.state["events"] = 0
    naive, pushed = [], 0
    for at in steps:
        if at is not None:
            pushed += 1
            push(SIM, at, 1, pushed, 2 * pushed, 3 * pushed)
            naive.append((at, pushed))
            naive.sort()
        elif naive:
            first = SIM.events[0]
            assert (int(first["at_ns"]), int(first["a"])) == naive.pop(0)
            assert first["b"] == 2 * first["a"] and first["c"] == 3 * first["a"]
            pop(SIM)
    assert SIM.state[0]["events"] == len(naive)
    while naive:
        assert int(SIM.events[0]["a"]) == naive.pop(0)[1]
        pop(SIM)


def test_a_full_heap_is_a_violation_and_no_overrun():
    SIM.state["events"] = 0
    for i in range(len(SIM.events)):
        push(SIM, i, 1, 0, 0, 0)
    assert SIM.state[0]["violation"] == 0
    push(SIM, 0, 1, 0, 0, 0)
    assert SIM.state[0]["violation"] == EVENTS_FULL and SIM.state[0]["events"] == len(SIM.events)
    SIM.state["violation"] = SIM.state["events"] = 0
