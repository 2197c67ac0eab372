"""Faults in the scheduler itself, planted by hand: each kind is found by a checker, with seed, time and instant."""

from __future__ import annotations

import numpy as np
import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cwd.core import check as core_check
from cwd.core import engine
from cwd.core.world import COPY_READY, REQUEST_QUEUED, REQUEST_RUNNING
from cwd.errors import InvariantError
from cwd.sim import checks, derive, loop, play
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.sim.world import MESSAGE_FREE, MESSAGE_HELD, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.worker import residency as rs

SCENARIO = Scenario((profile(RESNET50),), (0,) * 3, (Load(SOURCE_POISSON, models=3, rate_rps=300.0, slo_ns=60 * NS_PER_MS),),
                    pages=15, seed=4, config=dict(requests_max=64, events_max=64))


@pytest.fixture
def sim():
    """A world of three models on a GPU of two, a second old, at an instant at which executions and requests are about."""
    sim = build(SCENARIO)
    until_ns = 2 * NS_PER_S
    play.advance(sim, SCENARIO, until_ns)
    while not ((sim.core.requests["state"] == REQUEST_RUNNING).any() and (sim.core.requests["state"] == REQUEST_QUEUED).any()):
        assert loop.run(sim, until_ns + NS_PER_S, 1) == loop.STEPS
    assert checks.violation(sim) == checks.check(sim) == ""
    return sim


def stops(sim):
    """How the world is stopped when it is played on."""
    with pytest.raises(InvariantError) as found:
        play.advance(sim, SCENARIO, int(sim.state[0]["now_ns"]) + 5 * NS_PER_S)
    text = str(found.value)
    assert text.startswith("policy clockwork, seed 4, ") and " s, instant " in text and "\n" not in text
    return text


def stops_at_once(sim):
    """How the invariants that are held at any size stop the world, without a look at the whole."""
    sim.state["look_every"] = 0
    assert loop.run(sim, int(sim.state[0]["now_ns"]) + NS_PER_S, 1 << 40) == loop.BROKEN
    return checks.violation(sim)


def test_a_page_with_two_owners(sim):
    owner = sim.residency.page_owner[0]
    taken = np.flatnonzero(owner != -1)
    other = next(page for page in taken if owner[page] != owner[taken[0]])
    owner[taken[0]] = owner[other]
    assert "GPU 0" in checks.check(sim) and "page" in checks.check(sim)
    assert "page" in stops(sim)


def test_a_page_that_the_core_charges_twice(sim):
    sim.core.gpus[0]["pages_free"] -= 1
    assert "pages" in stops(sim)


def test_a_reply_that_is_lost(sim):
    """The core forgets a queued request as if it had answered: its client waits for ever."""
    engine.client_gone(sim.core, int(sim.state[0]["now_ns"]), 0)
    assert "without a reply" in stops(sim)


def test_a_request_that_the_core_never_had(sim):
    call = int(np.flatnonzero(sim.live == 0)[0])
    sim.live[call], sim.calls[call]["request_id"] = 1, 77
    assert "never answered" in checks.check(sim)
    assert "never answered" in stops(sim)


def test_a_second_reply(sim):
    """Two requests of the core share a payload: the second reply finds nobody."""
    queued = np.flatnonzero(sim.core.requests["state"] != 0)
    sim.core.requests[queued[0]]["payload"] = sim.core.requests[queued[1]]["payload"]
    assert "a reply to request" in stops_at_once(sim)


def test_a_late_reply_that_pretends(sim):
    """The core believes in later deadlines than the clients have."""
    sim.gpus[0]["slow_permille"] = 10_000
    live = sim.core.requests["state"] != 0
    sim.core.requests["deadline_ns"][live] += 10 * NS_PER_S
    sim.core.requests["due_ns"][live] += 10 * NS_PER_S
    assert "after its deadline" in stops_at_once(sim)


def test_an_execution_without_weights(sim):
    """A model leaves its GPU behind the core's back."""
    copy = np.flatnonzero((sim.core.copies["state"] == COPY_READY) & (sim.core.copies["running"] > 0))[0]
    m = int(sim.core.copies[copy]["model"])
    rs.resident_give(sim.residency, 0, rs.resident_find(sim.residency, 0, sim.models[m]))
    assert "ready on GPU 0, which has it not" in checks.check(sim)
    assert "weights" in stops_at_once(sim)


def test_a_result_that_settles_twice(sim):
    """An action's result comes again with the outputs of another request's."""
    loop.run(sim, int(sim.state[0]["now_ns"]) + NS_PER_S, 1)
    sim.issued["settled"] = 1
    assert "second result" in stops_at_once(sim)


def test_a_result_that_is_never_let_go(sim):
    live = int(np.flatnonzero(sim.messages["state"] != MESSAGE_FREE)[0])
    sim.messages[live]["state"] = MESSAGE_HELD
    assert "still held" in checks.check(sim)


def test_work_that_is_left_at_the_end(sim):
    assert "the core still has" in checks.rest(sim)


def test_a_broken_index_of_the_core(sim):
    sim.core.counters[0]["requests_live"] += 1
    assert "free lists" in stops(sim)


#: fields that a check derives and that are not links: a wrong link may make any walk endless
FIELDS = {"requests": ("state", "client", "cost_ns", "home", "action"),
          "models": ("state", "queued", "running", "work_ns", "copies_count", "copies_ready", "wanted"),
          "gpus": ("state", "pages_free", "backlog_ns", "copies", "dirty"), "lanes": ("count", "available_ns"),
          "copies": ("state", "model", "gpu", "pages", "running", "active"),
          "actions": ("state", "rows", "batch", "parked", "background"),
          "clients": ("count",), "timers": ("key", "place"), "load_lanes": ("place",), "counters": (
              "requests_live", "models_live", "copies_live", "actions_live", "gpus_up", "timers_count", "apps",
              "background_runs", "background_care"), "histograms": ("total",), "programs": ("scatter", "dynamic")}


@pytest.mark.parametrize("depth", [0, 1, 30])
def test_a_free_row_that_leads_elsewhere(sim, depth):
    """However far down its list: the row behind it is lost, or the list ends there."""
    row = int(sim.core.counters[0]["free_request"])
    for _ in range(depth):
        row = int(sim.core.requests[row]["next"])
    behind = int(sim.core.requests[row]["next"])
    for wrong in (-1, int(sim.core.requests[behind]["next"])):
        sim.core.requests[row]["next"] = wrong
        assert int(derive.broken_index(sim.core, sim.notes)) == core_check.check(sim.core) == core_check.FREE_LISTS
    sim.core.requests[row]["next"] = behind
    assert int(derive.broken_index(sim.core, sim.notes)) == core_check.check(sim.core) == 0
    sim.core.requests[row]["next"] = wrong
    assert "free lists" in stops(sim)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_compiled_check_is_the_cores_own(sim, data):
    """Any one field changed: both find it, or both do not mind."""
    table = data.draw(st.sampled_from(sorted(FIELDS)))
    rows = getattr(sim.core, table)
    used = [i for i in range(len(rows)) if table != "requests" or rows[i]["state"]]
    row, name = data.draw(st.sampled_from(used)), data.draw(st.sampled_from(FIELDS[table]))
    before = int(rows[row][name])
    rows[row][name] = max(before + data.draw(st.sampled_from((-1, 1))), -1)
    try:
        try:
            twin = core_check.check(sim.core)
        except IndexError:
            return
        assert int(derive.broken_index(sim.core, sim.notes)) == twin
    finally:
        rows[row][name] = before
    assert int(derive.broken_index(sim.core, sim.notes)) == 0
