"""clockwork-paper where it differs from the rest: strategies as noted, its estimates, timeline, polls and LOADs."""

from __future__ import annotations

import naive_policies as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script, only

from cwd.core import engine, estimate, ordered
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ESTIMATE, NODE, OUT_ACTION, OUT_REPLY
from cwd.errors import Code

SMALL = settings(max_examples=40, deadline=None)
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}
MODELS = 3
PAPER = "clockwork-paper"


def execs(records):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]


def play(arrivals):
    """[(time, model, batch, ids)] of all that was sent when requests (gap, model, slo) come and all goes as expected."""
    script = Script(pages=50, policy=PAPER, requests_max=128)
    models = [script.model, *(script.add() for _ in range(MODELS - 1))]
    for model in models:
        script.hold(model)
    script.tick()
    twin = naive.Infer5(MODELS, TOOK, 5 * MS, MS)
    coming, running, sent, expected = list(arrivals), [], [], []
    at = script.now
    for number, (gap, model, slo) in enumerate(arrivals):
        at += gap
        coming[number] = (at, model, slo)
    number = 0
    while number < len(coming) or running:
        times = [int(engine.next_timer(script.world, script.now))]
        if number < len(coming):
            times.append(coming[number][0])
        if running:
            times.append(running[0][1])
        script.now = max(min(times), script.now)
        if running and running[0][1] <= script.now:
            out, end = running.pop(0)
            engine.action_done(script.world, script.now, out["action"], 0, end - TOOK[out["batch"]], end, 0, out["rows"],
                               -1, -1)
            twin.ended(end)
        elif number < len(coming) and coming[number][0] <= script.now:
            _, model, slo = coming[number]
            assert script.ask(number, slo=slo, model=models[model]) == 0
            # our margin of an execution's end is 1 ns
            twin.arrived(model, script.now + max(slo - 5 * MS, 10 * MS) - 1, number)
            number += 1
        for out in execs(script.tick()):
            begin = max(script.now, running[-1][1] if running else 0)
            running.append((out, begin + TOOK[out["batch"]]))
            sent.append((script.now, models.index(out["model"]), out["batch"], tuple(script.ids(out))))
        expected += [(script.now, *choice) for choice in twin.look(script.now)]
    return sent, expected


@SMALL
@given(st.lists(st.tuples(st.integers(0, 4 * MS), st.integers(0, MODELS - 1), st.integers(5 * MS, 40 * MS)),
                min_size=1, max_size=60))
def test_all_that_is_sent_is_what_queues_per_size_would_send(arrivals):
    sent, expected = play(arrivals)
    assert sent == expected


def test_a_burst_gives_batches_of_every_size():
    """The twin's test above would also hold if nothing were ever batched."""
    sent, expected = play([(0, 0, 60 * MS)] * 7 + [(0, 1, 30 * MS)] * 3)
    assert sent == expected and {choice[2] for choice in sent} == {1, 2, 4}


def test_who_is_passed_over_waits_for_the_reply_alone():
    """Three requests of which the first two come too late for a batch of two at 19 ms: answered when due, not before."""
    script = Script(policy=PAPER)
    script.hold()
    held = int(engine.lane_reserve(script.world, script.now, 0, 50 * MS))
    for number, slo in enumerate((20 * MS, 40 * MS, 40 * MS)):
        script.ask(number, slo=slo)
    script.now += 12 * MS
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    out = only(script.tick(), verb=ACTION_EXEC, rows=2)
    assert script.ids(out) == [1, 2]
    later = int(engine.next_timer(script.world, script.now)) - script.now
    assert later == 3 * MS + 1
    assert [(o["request_id"], o["status"]) for o in script.tick(later=later) if o["kind"] == OUT_REPLY] == [
        (0, Code.DEADLINE_EXPIRED)]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40))
def test_a_recent_estimate_is_the_99th_percentile_of_the_last_ten(samples):
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, 5 * MS)
    for i, sample in enumerate(samples):
        estimate.observe_recent(row, sample)
        last = sorted(samples[max(i - 9, 0):i + 1])
        rank = 99 * (len(last) - 1)
        low, high = last[rank // 100], last[-(-rank // 100)]
        wanted = (high * (rank % 100) + low * (100 - rank % 100)) // 100 if rank % 100 else high
        assert estimate.tail(row, i * 10**12) == estimate.typical(row, 0) == wanted
        assert row["seed_ns"] == 5 * MS


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=20, unique_by=lambda item: item[1]),
       st.integers(0, 6), st.integers(0, 31))
def test_the_first_node_at_least_as_late(items, key, tie):
    nodes, root = np.zeros(32, NODE), -1
    for i, item in enumerate(items):
        root = ordered.insert(nodes, root, i, *item)
    later = [(item, i) for i, item in enumerate(items) if item >= (key, tie)]
    assert ordered.at_least(nodes, root, key, tie) == (min(later)[1] if later else -1)


def test_an_idle_lane_is_expected_to_begin_when_the_action_is_sent():
    """What comes next counts with that, though the first was held against a start 1 ms later."""
    for policy, wait in ((PAPER, 0), ("clockwork", 200 * US)):
        script = Script(policy=policy)
        script.hold()
        script.ask(1)
        out = only(execs(script.tick()))
        lane = script.world.lanes[0]
        assert lane["available_ns"] == script.now + out["expected_ns"] + wait


def test_any_gpu_may_look_first():
    """Eight requests one after another to two GPUs that are both far from busy: not always the one that is free first."""
    script = Script(policy=PAPER, gpus=2)
    for gpu in (0, 1):
        script.hold(gpu=gpu)
    taken = []
    for number in range(8):
        script.ask(number, slo=500 * MS)
        taken.append(only(execs(script.tick()))["gpu"])
        if len(taken) % 2 == 0:
            script.now += 20 * MS
            for a in range(len(script.world.actions)):
                if script.world.actions[a]["state"] == ACTION_EXEC:
                    handle = int(script.world.actions[a]["generation"]) << 32 | a
                    engine.action_done(script.world, script.now, handle, 0, script.now - 3 * MS, script.now, 0, 1, -1, -1)
            script.take()
    pairs = list(zip(taken[::2], taken[1::2], strict=True))
    assert any(a == b for a, b in pairs) and set(taken) == {0, 1}


@pytest.mark.parametrize("used_last", [1, 2])
def test_of_equal_demands_the_model_used_last_is_loaded(used_last):
    """Room for one model, two are asked for."""
    script = Script(policy=PAPER, pages=7)
    others = [script.add(), script.add()]
    script.world.memory[used_last]["used"] = 1_000
    for number, model in enumerate(others):
        script.ask(number, model=model)
    loads = [out["model"] for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_LOAD]
    assert loads == [others[used_last - 1]]


def test_more_requests_are_loaded_for_first():
    script = Script(policy=PAPER, pages=7)
    others = [script.add(), script.add()]
    script.world.memory[2]["used"] = 1_000
    for number, model in enumerate((others[0], others[0], others[1])):
        script.ask(number, model=model)
    loads = [out["model"] for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_LOAD]
    assert loads == [others[0]]


@pytest.mark.parametrize("absent_too", [False, True])
def test_met_demand_is_loaded_for_as_well_but_last(absent_too):
    """A model whose GPU will soon be free is loaded on the other one all the same, unless there is one that is nowhere."""
    script = Script(policy=PAPER, gpus=2)
    script.hold()
    other = script.add()
    engine.lane_reserve(script.world, script.now, 0, 10 * MS)
    for number in range(3):
        script.ask(number, slo=200 * MS)
    if absent_too:
        script.ask(9, slo=200 * MS, model=other)
    loads = [out for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_LOAD]
    assert loads[0]["model"] == (other if absent_too else script.model)
    assert absent_too or loads[0]["gpu"] == 1
