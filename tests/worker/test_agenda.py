"""The agenda's window rules, against the naive twin and by example."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_agenda import NaiveLane

from cwd.worker import agenda as real

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 60), st.integers(-5, 30), st.integers(1, 2)),
        st.tuples(st.just("next"), st.integers(0, 12)),
        st.tuples(st.just("done")),
        st.tuples(st.just("session"), st.integers(1, 2)),
    ),
    max_size=60,
)


def started(agenda, lane, now_ns):
    out = np.zeros(1, real.ACTION)
    verdict, until_ns = real.agenda_next(agenda, lane, now_ns, out[0])
    return int(verdict), int(until_ns), int(out["action"][0])


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 4))
def test_every_sequence_of_events_gives_the_naive_twins_verdicts(steps, capacity):
    """Two lanes get the same events with other ids: they must not disturb each other either."""
    agenda = real.make_agenda(2, capacity)
    naive = NaiveLane(capacity), NaiveLane(capacity)
    now_ns, last_id = 0, 0
    for step in steps:
        for lane in (0, 1):
            if step[0] == "push":
                last_id += 1
                fields = {"action": last_id, "session": step[3], "earliest_ns": step[1], "latest_ns": step[1] + step[2]}
                assert real.agenda_push(agenda, lane, real.make_action(**fields)[0]) == naive[lane].push(fields)
            elif step[0] == "next":
                verdict, until_ns, left = started(agenda, lane, now_ns)
                wanted = naive[lane].next(now_ns)
                assert (verdict, until_ns) == wanted[:2]
                assert wanted[2] is None or left == wanted[2]
            elif step[0] == "done":
                real.agenda_done(agenda, lane)
                naive[lane].done()
            else:
                real.agenda_session(agenda, lane, step[1])
                naive[lane].session = step[1]
            assert agenda.lanes[lane]["count"] == len(naive[lane].waiting)
        if step[0] == "next":
            now_ns += step[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), min_size=1, max_size=12), st.data())
def test_starts_are_in_order_of_arrival_inside_their_window_and_alone(windows, data):
    agenda = real.make_agenda(1, len(windows))
    real.agenda_session(agenda, 0, 7)
    for index, (earliest_ns, length_ns) in enumerate(windows):
        fields = {"action": index, "session": 7, "earliest_ns": earliest_ns, "latest_ns": earliest_ns + length_ns}
        assert real.agenda_push(agenda, 0, real.make_action(**fields)[0]) == real.OK
    left, now_ns, busy = [], 0, False
    while len(left) < len(windows) or busy:
        verdict, until_ns, action = started(agenda, 0, now_ns)
        if verdict == real.WAIT:
            assert until_ns > now_ns
            now_ns = until_ns
        elif verdict == real.BUSY or (verdict == real.EMPTY and busy):
            now_ns += data.draw(st.integers(0, 30))
            real.agenda_done(agenda, 0)
            busy = False
        else:
            left.append(action)
            earliest_ns, length_ns = windows[action]
            inside = earliest_ns <= now_ns <= earliest_ns + length_ns
            assert inside == (verdict == real.START)
            assert not busy
            busy = verdict == real.START
    assert left == sorted(left)


def test_every_field_of_an_action_survives_the_ring():
    agenda = real.make_agenda(1, 2)
    action = np.zeros(1, real.ACTION)
    for index, name in enumerate(real.ACTION.names):
        action[name] = index + 1
    action["latest_ns"] = real.NEVER
    real.agenda_session(agenda, 0, int(action["session"][0]))
    assert real.agenda_push(agenda, 0, action[0]) == real.OK
    out = np.zeros(1, real.ACTION)
    assert real.agenda_next(agenda, 0, 100, out[0])[0] == real.START
    assert out[0] == action[0]


def test_a_running_model_is_in_use_until_done():
    agenda = real.make_agenda(1, 2)
    real.agenda_session(agenda, 0, 1)
    real.agenda_push(agenda, 0, real.make_action(action=1, session=1, model=5)[0])
    assert not real.agenda_uses(agenda, 0, 5)
    assert started(agenda, 0, 0)[0] == real.START
    assert real.agenda_uses(agenda, 0, 5) and not real.agenda_uses(agenda, 0, 6)
    real.agenda_done(agenda, 0)
    assert not real.agenda_uses(agenda, 0, 5)
