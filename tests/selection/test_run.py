"""Runs of applications, sans-IO: exactly one result whatever comes in which order, and one execution for equal requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import Played, answer_of, begun

from cwd.errors import (
    BadRequest, Cancelled, Code, CreditExceeded, DeadlineMissed, DeadlineUnreachable, ExecutionFailed,
)
from cwd.selection.cache import PredictionCache
from cwd.selection.result import AppResult

ERRORS = (DeadlineUnreachable, DeadlineMissed, ExecutionFailed, CreditExceeded, Cancelled)


def test_all_answer():
    run = begun(Played(3), 5, 100, 1000)
    assert run.to_call == [0, 1, 2]
    for member in (2, 0):
        run.answered(member, answer_of(member, 5), 200)
        assert not run.done
    run.answered(1, answer_of(1, 5), 300)
    result = run.result
    assert run.done and result["y"].tolist() == [3015.0] and result.total_ns == 200 and run.error is None
    assert (result.members_asked, result.members_answered, result.confidence) == (3, 3, 1.0)
    assert not result.default and not result.reason and result.answered == ("m0", "m1", "m2")


def test_the_deadline_ends_it_with_what_has_arrived():
    run = begun(Played(8), 5, 0, 1000)
    for member in range(7):
        run.answered(member, answer_of(member, 5), 10)
    run.tick(999)
    assert not run.done
    run.tick(1000)
    assert run.done and (run.result.members_asked, run.result.members_answered) == (8, 7)
    assert run.result.confidence == 7 / 8 and run.result["y"].tolist() == [21035.0]
    before = run.result
    run.answered(7, answer_of(7, 5), 1500)  # too late for this one
    assert run.result is before


@pytest.mark.parametrize("default", [None, "[4.5]"])
def test_nobody_answers(default):
    run = begun(Played(2, default=default), 5, 0, 1000)
    run.failed(1, DeadlineUnreachable("busy"), 10)
    run.tick(1000)
    if default is None:
        assert run.result is None and run.error.code == Code.DEADLINE_UNREACHABLE
    else:
        assert run.error is None and run.result.default and run.result["output"].tolist() == [4.5]
        assert (run.result.reason, run.result.explanation) == ("DEADLINE_UNREACHABLE", "busy")
        assert run.result.facts()["default"] and run.result.members_answered == 0


def test_the_output_of_an_answer_with_several_says_which_there_are():
    run = begun(Played(1), 5, 0, 1000)
    run.answered(0, answer_of(0, 5), 10)
    assert run.result.output is run.result["y"]
    result = AppResult("app", 1, {"y": np.zeros(1), "z": np.ones(1)}, ("m0",), ("m0",), 5)
    with pytest.raises(ValueError, match="2 outputs, and not one: y, z"):
        result.output
    assert result["z"].tolist() == [1.0]


def test_a_fault_of_the_request_gets_no_default():
    run = begun(Played(1, default="1"), 5, 0, 1000)
    run.failed(0, BadRequest("no such shape", code=Code.BAD_SHAPE), 10)
    assert run.result is None and run.error.code == Code.BAD_SHAPE


@pytest.mark.parametrize("answers, default", [(3, False), (2, True)])
def test_too_little_confidence(answers, default):
    run = begun(Played(4, default="-1", confidence_min=0.75), 5, 0, 1000)
    for member in range(answers):
        run.answered(member, answer_of(member, 5), 10)
    run.tick(1000)
    assert run.result.default is default and run.result.confidence == answers / 4
    assert run.result.reason == ("LOW_CONFIDENCE" if default else "") and run.result.members_answered == answers


def test_a_thousand_equal_requests_cost_one_execution():
    serving, cache = Played(1), PredictionCache(1 << 20)
    woken = []
    runs = [begun(serving, 5, now, 10_000 + now, cache, request_id=now) for now in range(1000)]
    for run in runs:
        run.wake = lambda run=run: woken.append(run)
    assert [len(run.to_call) for run in runs] == [1] + [0] * 999
    runs[0].answered(0, answer_of(0, 5), 2000)
    assert all(run.done and run.result["y"].tolist() == [5.0] for run in runs) and woken == runs[1:]
    assert len({run.result.request_id for run in runs}) == 1000 and len({id(run.result["y"]) for run in runs}) == 1000
    assert [run.result.cached for run in runs] == [0] + [1] * 999
    assert (cache.misses, cache.joins, cache.hits) == (1, 999, 0)
    later = begun(serving, 5, 3000, 4000, cache)
    assert later.done and later.result.cached == 1 and cache.hits == 1


def test_each_who_joined_keeps_its_own_deadline():
    serving, cache = Played(1), PredictionCache(1 << 20)
    leader, soon, late = (begun(serving, 5, 0, deadline, cache) for deadline in (100, 150, 300))
    soon.tick(150)
    assert soon.error.code == Code.DEADLINE_MISSED and not late.done
    leader.tick(100)
    leader.failed(0, DeadlineMissed("late"), 160)
    assert late.to_call == [0] and not late.done
    late.answered(0, answer_of(0, 5), 200)
    assert late.result["y"].tolist() == [5.0] and not soon.result and not cache._flights


def test_a_cancel_stops_only_what_nobody_else_waits_for():
    serving, cache = Played(2), PredictionCache(1 << 20)
    first = begun(serving, 5, 0, 1000, cache)
    first.to_call.clear()  # the shell has begun both
    other = begun(serving, 5, 0, 2000, cache)
    assert first.cancel(10) == [] and first.error.code == Code.CANCELLED
    for member in (0, 1):
        first.answered(member, answer_of(member, 5), 20)
    assert other.result["y"].tolist() == [1010.0]
    alone = begun(serving, 6, 0, 1000, cache)
    alone.to_call.clear()
    assert sorted(alone.cancel(10)) == [0, 1] and alone.cancel(10) == []
    for member in (0, 1):
        alone.failed(member, Cancelled(), 20)
    assert not cache._flights


def test_a_leader_that_was_never_begun_hands_on():
    serving, cache = Played(1), PredictionCache(1 << 20)
    first, second = begun(serving, 5, 0, 1000, cache), begun(serving, 5, 0, 2000, cache)
    assert first.to_call == [0] and first.cancel(5) == [] and not first.to_call
    assert second.to_call == [0] and not second.done


class Shell:
    """Executes in any order, and holds what was promised: one result for each run, one end for each execution."""

    def __init__(self, cache):
        self.cache, self.runs, self.flying, self.now, self.executions = cache, [], [], 0, 0

    def begin(self, members, value, patience, default):
        serving = Played(members, default=default)
        run = begun(serving, value, self.now, self.now + patience, self.cache, request_id=len(self.runs))
        self.runs.append((run, value, []))
        run.wake = lambda: self.took(run)
        self.took(run)

    def took(self, run):
        for member in run.to_call:
            self.flying.append((run, member, next(value for each, value, _ in self.runs if each is run)))
            self.executions += 1
        run.to_call.clear()

    def end(self, index, error):
        run, member, value = self.flying.pop(index % len(self.flying))
        if error is None:
            run.answered(member, answer_of(member, value), self.now)
        else:
            run.failed(member, error("no"), self.now)

    def look(self):
        for run, value, ends in self.runs:
            run.tick(self.now)
            end = run.result or run.error
            if end is not None and not ends:
                ends.append(end)
            assert run.done == bool(ends) and (not ends or ends[0] is end)
            assert (run.result is None) or (run.error is None)
            if run.result is not None and not run.result.default:
                assert run.result["y"].tolist() == [sum(1000.0 * m + value for m in run.outputs)]


STEP = st.one_of(
    st.tuples(st.just("begin"), st.integers(1, 3), st.integers(0, 2), st.integers(1, 50), st.sampled_from([None, "0"])),
    st.tuples(st.just("end"), st.integers(0, 99), st.sampled_from([None, None, *ERRORS])),
    st.tuples(st.just("wait"), st.integers(1, 30)), st.tuples(st.just("cancel"), st.integers(0, 99)))


@settings(max_examples=200)
@given(st.lists(STEP, max_size=60), st.sampled_from([None, 0, 4000, 1 << 20]), st.booleans())
def test_any_order_gives_each_run_exactly_one_result(steps, room, collide):
    digest = (lambda head, payload: b"0" * 16) if collide else None
    shell = Shell(None if room is None else PredictionCache(room, digest=digest))
    for kind, *values in steps:
        if kind == "begin":
            shell.begin(*values)
        elif kind == "end" and shell.flying:
            shell.end(*values)
        elif kind == "wait":
            shell.now += values[0]
        elif kind == "cancel" and shell.runs:
            run = shell.runs[values[0] % len(shell.runs)][0]
            stopped = run.cancel(shell.now)
            for index in [i for i, (each, member, _) in enumerate(shell.flying) if each is run and member in stopped][::-1]:
                shell.end(index, Cancelled)
        shell.look()
    shell.now += 1000
    shell.look()
    assert all(run.done for run, _, _ in shell.runs)
    while shell.flying:
        shell.end(0, None)
        shell.look()
    if shell.cache is not None:
        assert not shell.cache._flights and shell.cache.bytes <= room


def test_outputs_of_joiners_are_their_own():
    serving, cache = Played(1), PredictionCache(1 << 20)
    leader, other = begun(serving, 5, 0, 1000, cache), begun(serving, 5, 0, 1000, cache)
    outputs = answer_of(0, 5)
    leader.answered(0, outputs, 1)
    outputs["y"][0] = np.nan
    assert other.outputs[0]["y"].tolist() == [5.0]


@pytest.mark.parametrize("default", [None, "[4.5]"])
def test_an_answer_that_is_too_late_is_none(default):
    for late, margin in ((100, 100), (101, 100), (5000, 0)):
        run = begun(Played(3, default=default), 5, 0, 1000)
        run.margin_ns = margin
        for member in (0, 1):
            run.answered(member, answer_of(member, 5), 10)
        run.tick(1000 + late)
        if margin == 0 or late <= margin:
            assert run.result.members_answered == 2 and run.result.missing == ("m2",) and not run.result.default
        elif default is None:
            assert run.result is None and run.error.code == Code.DEADLINE_MISSED
        else:
            assert run.result.default and run.result.reason == "DEADLINE_MISSED"
