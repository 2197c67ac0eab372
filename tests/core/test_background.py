"""Work that is not urgent: that it runs while urgent requests find GPU time elsewhere in time, and not otherwise."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script

from cwd.core import background, price
from cwd.core.world import ACTION_EXEC, GPU_ABSENT, GPU_UP, OUT_ACTION, Config, make_world
from cwd.errors import Code
from cwd.jit import lean_kernel

URGENT, LATER = 20 * MS, 60_000 * MS
SECOND = 1_000 * MS


def execs(records):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]


class Shared(Script):
    """GPUs that have one model with urgent requests and one with background."""

    def __init__(self, gpus=2):
        super().__init__(gpus=gpus, pages=50, policy="cwd")
        self.urgent, self.number = self.add(), 0
        for gpu in range(gpus):
            self.hold(self.model, gpu)
            self.hold(self.urgent, gpu)

    def come(self, model, slo):
        self.number += 1
        return self.ask(self.number, slo=slo, model=model)

    def ask_for(self, gpus_tenths):
        """Have urgent work asked for that takes so many tenths of a GPU, by requests that can wait 10 ms."""
        counters = self.world.counters[0]
        counters["slack_ns"], counters["background_urgent_ns"] = 10 * MS, self.now
        counters["urgent_ns"], counters["urgent_asked_ns"] = (gpus_tenths << price.DEMAND_BITS) // 10, self.now


def test_background_runs_on_all_gpus_while_nothing_urgent_comes():
    script = Shared()
    script.now += background.QUIET_NS
    for _ in range(2):
        assert script.come(script.model, LATER) == 0
        script.tick()
    assert script.world.counters[0]["background_runs"] == 2


@pytest.mark.parametrize(("tenths", "runs"), [(10, 2), (20, 1), (40, 0)])
def test_background_leaves_the_time_that_urgent_requests_ask_for(tenths, runs):
    """Three quarters of it at least, half way between the 10 ms that they can wait and the 3 that background takes: each
    execution of it takes 3 of two GPUs' 13."""
    script = Shared()
    for _ in range(2):
        script.ask_for(tenths)
        assert script.come(script.model, LATER) == 0
        script.tick()
    assert script.world.counters[0]["background_runs"] == runs


def test_what_waits_for_room_is_looked_at_again_without_an_event():
    script = Shared()
    script.ask_for(40)
    assert script.come(script.model, LATER) == 0
    assert not execs(script.tick())
    script.now += 2 * background.QUIET_NS
    assert len(execs(script.tick())) == 1


def test_urgent_requests_go_first():
    script = Shared(gpus=1)
    assert script.come(script.model, LATER) == 0
    assert script.come(script.urgent, URGENT) == 0
    (out,) = execs(script.tick())
    assert script.ids(out) == [2]


def test_of_background_who_is_due_first_goes_first():
    """Though four of another model together would take less time each, and there are always four more."""
    script = Script(pages=50, policy="cwd")
    popular = script.add()
    for model in (script.model, popular):
        script.hold(model)
    assert script.ask(1, slo=LATER) == 0
    (running,) = execs(script.tick())
    assert script.ask(2, slo=LATER) == 0
    for number in range(12):
        assert script.ask(10 + number, slo=LATER + (1 + number) * MS, model=popular) == 0
    order = []
    for _ in range(4):
        script.done(running)
        (running,) = execs(script.tick())
        order.append(script.ids(running))
    assert order == [[2], [10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]


@pytest.mark.parametrize(("background_ns", "slack_ns", "waits"), [
    (0, 50 * MS, False), (4 * MS, 8 * MS, False), (4 * MS, 8 * MS + 1, True), (30 * MS, 50 * MS, False)])
def test_urgent_requests_wait_for_each_other_where_background_does_not_take_half_of_their_slack(background_ns, slack_ns, waits):
    script = Shared(gpus=1)
    script.world.gpus[0]["background_ns"], script.world.counters[0]["slack_ns"] = background_ns, slack_ns
    assert bool(waiting(script.world, 0)) == waits


def test_how_long_background_would_take_is_noted_while_it_waits():
    script = Shared(gpus=1)
    script.ask_for(40)
    assert script.come(script.model, LATER) == 0
    script.tick()
    assert script.world.gpus[0]["background_ns"] == 3 * MS
    assert script.come(script.urgent, URGENT) == 0
    script.tick()
    assert script.world.gpus[0]["background_ns"] == 3 * MS


def test_losses_while_background_runs_are_its_fault_and_others_are_not():
    script = Shared(gpus=1)
    counters = script.world.counters[0]
    script.now += background.QUIET_NS
    assert script.come(script.model, LATER) == 0
    (out,) = execs(script.tick())
    need = 3 * MS
    while script.come(script.urgent, need) == Code.SLO_BELOW_EXECUTION:
        need += MS // 4
    assert script.come(script.urgent, need + MS) == Code.DEADLINE_UNREACHABLE
    care = int(counters["background_care"])
    assert care >= background.COST
    assert script.done(out) == 0
    assert counters["background_runs"] == 0
    # another model's LOAD is nobody's fault
    cold = script.add()
    script.come(cold, need)
    assert counters["background_care"] == care


# -- twins -------------------------------------------------------------------------------------------------------------


@lean_kernel
def may_run_ns(world, now_ns, gpu, took_ns):
    return background.may_run_ns(world, now_ns, gpu, took_ns)


@lean_kernel
def waiting(world, gpu):
    return background.waits(world, gpu)


@lean_kernel
def crowd(world, now_ns, r):
    background.crowded(world, now_ns, r)


@lean_kernel
def relieve(world, now_ns):
    background.relieved(world, now_ns)


def room(now, slack, frees, gpu, took, demand, care):
    """In words: the time that the GPUs of the cell are free in the mean of slack and execution, less what is asked for in
    it, times care."""
    first = gpu // background.CELL * background.CELL
    cell = {g: free for g, free in frees.items() if first <= g < first + background.CELL}
    within = (slack + took) // 2
    free = sum(max(now + within - max(now, at) - (took if g == gpu else 0), 0) for g, at in cell.items())
    factor = Fraction(3, 4) + Fraction(care, background.CARE_ONE)
    asked = Fraction(demand, 1 << price.DEMAND_BITS) * within * factor * len(cell) / len(frees)
    busy = sum(1 for g, at in cell.items() if at > now or (g == gpu and took > 0))
    return free - asked, busy


@settings(max_examples=200, deadline=None)
@given(gpus=st.integers(1, 40), slack=st.integers(1, 50 * MS), took=st.integers(1, 30 * MS),
       demand=st.integers(0, 12 << price.DEMAND_BITS), care=st.integers(0, background.CARE_MAX),
       busy=st.lists(st.integers(-5 * MS, 40 * MS), min_size=40, max_size=40), absent=st.sets(st.integers(0, 39)), data=st.data())
def test_room_is_what_the_twin_finds(gpus, slack, took, demand, care, busy, absent, data):
    now = 100 * SECOND
    gpu = data.draw(st.integers(0, gpus - 1))
    absent -= {gpu}
    world = make_world(Config(policy="cwd", gpus_max=gpus, models_max=1, programs_max=1, requests_max=1, copies_max=1,
                              actions_max=1, clients_max=1, events_max=1))
    frees = {g: now + busy[g] for g in range(gpus) if g not in absent}
    for g in range(gpus):
        world.gpus[g]["state"] = GPU_UP if g in frees else GPU_ABSENT
        world.lanes[2 * g]["available_ns"] = now + busy[g]
    counters = world.counters[0]
    counters["gpus_up"], counters["slack_ns"], counters["background_care"] = len(frees), slack, care
    counters["urgent_ns"], counters["urgent_asked_ns"], counters["background_urgent_ns"] = demand, now, now
    found = may_run_ns(world, now, gpu, took)
    if care >= background.CARE_MAX:
        assert found == now + background.LOOK_MAX_NS
        return
    left, count = room(now, slack, frees, gpu, took, demand, care)
    # what is asked for is rounded down to 1024 ns per 2**DEMAND_BITS, and for each step once
    rounding = 64 + (slack + took) // 2 * 40 // 2**10
    if left >= 0:
        assert found == now
    elif left < -rounding:
        assert found > now
        wait = min(max(-left / count, background.LOOK_MIN_NS), background.LOOK_MAX_NS)
        assert abs(found - now - wait) <= rounding + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100 * MS), min_size=1, max_size=50))
def test_the_least_slack_is_followed_down_at_once_and_up_slowly(slacks):
    least = 0
    for slack in slacks:
        before, least = least, int(background.followed_ns(least, slack))
        assert least <= slack
        assert least == slack if before == 0 or slack <= before else before <= least <= before + (slack - before) / 256


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["lost", "answered", "begins", "ends", "comes"]), st.integers(1, 300)), max_size=60))
def test_care_counts_losses_against_answers(steps):
    """One request that can wait, of a model that is loaded; background counts if it had a GPU since the request came."""
    world = make_world(Config(policy="cwd", gpus_max=1, models_max=1, programs_max=1, requests_max=1, copies_max=1,
                              actions_max=1, clients_max=1, events_max=1))
    world.models[0]["copies_ready"] = 1
    world.requests[0]["need_ns"], world.requests[0]["due_ns"] = 4 * MS, 14 * MS
    counters, care, runs, ran = world.counters[0], 0, False, False
    for what, times in steps:
        for _ in range(times):
            if what == "lost":
                crowd(world, SECOND, 0)
                care = min(max(care + (background.COST if ran else -background.COST), 0), background.CARE_MAX)
            elif what == "answered":
                relieve(world, SECOND)
                care = max(care - 1, 0)
        if what == "begins":
            counters["background_runs"], runs, ran = 1, True, True
        elif what == "ends" and runs:
            # just after the last request came
            counters["background_runs"], runs = 0, False
            counters["background_until_ns"] = int(world.requests[0]["arrival_ns"]) + 1
        elif what == "comes":
            world.requests[0]["arrival_ns"] += US
            world.requests[0]["due_ns"] += US
            ran = runs
        assert counters["background_care"] == care


def test_a_doubt_makes_nobody_hopeful():
    """Nobody can be in time, some are tried all the same, and what is lost of them costs background nothing."""
    script = Shared(gpus=1)
    counters = script.world.counters[0]
    slo = 3 * MS
    while script.come(script.urgent, slo + MS // 4) == Code.SLO_BELOW_EXECUTION:
        slo += MS // 4
    script.tick(later=SECOND)
    tried = 0
    for _ in range(40):
        assert script.come(script.model, LATER) == 0
        outs = execs(script.tick())
        tried += script.come(script.urgent, slo) != Code.SLO_BELOW_EXECUTION
        outs += execs(script.tick(later=2 * MS))
        for out in outs:
            # it takes as long as was profiled, whatever is expected by now
            script.done({**out, "expected_ns": 3 * MS})
        script.tick(later=SECOND // 8)
    assert tried > 0
    assert counters["background_care"] == 0


@pytest.mark.parametrize(("slack", "hopeful"), [(US, False), (MS // 4, False), (MS // 4 + 1, True), (10 * MS, True)])
def test_who_cannot_wait_at_all_does_not_count(slack, hopeful):
    assert bool(background.patient(slack, 4 * MS)) == hopeful


def test_a_model_is_owed_nothing_for_requests_that_are_not_urgent():
    script = Shared(gpus=1)
    script.world.counters[0]["share"] = 1 << 28
    for _ in range(4):
        assert script.come(script.model, LATER) == 0
    assert script.world.memory[script.model & 0xFFFF]["owed"] == 0
    assert script.come(script.model, 100 * MS) == 0
    assert script.world.memory[script.model & 0xFFFF]["owed"] > 0


def test_background_that_has_gone_holds_nobody_up():
    """What was noted of it is forgotten as soon as the GPU has nothing to do: the next urgent request runs at once."""
    script = Shared(gpus=1)
    script.now += background.QUIET_NS
    assert script.come(script.model, LATER) == 0
    (out,) = execs(script.tick())
    assert script.world.gpus[0]["background_ns"] > 0
    assert script.done(out) == 0
    script.tick()
    assert script.world.gpus[0]["background_ns"] == 0
