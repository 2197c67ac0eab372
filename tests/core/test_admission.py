"""Admission against its naive twin: which plan a request gets, at what cost, and who is refused for what."""

from __future__ import annotations

import naive_admission as naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script

from cwd.core import engine
from cwd.core.world import ACTION_LOAD, OUT_ACTION, OUT_REPLY
from cwd.errors import Code

CODES = {"in": 0, "late": int(Code.DEADLINE_UNREACHABLE), "short": int(Code.SLO_BELOW_EXECUTION)}
#: by model: where it is held; the last is being loaded, the one before is nowhere
HELD = ((0,), (1,), (0, 1), (), ())

arrivals = st.lists(st.tuples(st.integers(0, 4), st.integers(3_300, 70_000), st.sampled_from([0, 0, 0, 1]), st.integers(0, 900)),
                    min_size=1, max_size=28)


@pytest.mark.parametrize("policy", ["clockwork", "cwd"])
@settings(max_examples=80, deadline=None)
@given(arrivals=arrivals, lanes=st.tuples(st.integers(0, 40), st.integers(0, 40)), price_us=st.integers(1, 4_000))
def test_a_request_gets_the_plan_that_its_twin_finds(policy, arrivals, lanes, price_us):
    """Requests (model, SLO in us, size class, us before it) to two GPUs that are busy for some ms; nothing ends meanwhile."""
    script = Script(policy=policy, gpus=2, pages=50, requests_max=64, **({"objective": "goodput"} if policy == "cwd" else {}))
    models = [script.model, *(script.add() for _ in HELD[1:])]
    for m, gpus in enumerate(HELD):
        for gpu in gpus:
            script.hold(models[m], gpu)
    assert script.ask(1000, model=models[-1], slo=900 * MS) == 0
    (load,) = [out for out in script.tick() if out["kind"] == OUT_ACTION]
    assert load["verb"] == ACTION_LOAD
    for gpu, busy in enumerate(lanes):
        if busy > 0:
            assert engine.lane_reserve(script.world, script.now, gpu, busy * MS) >= 0
    script.world.counters["price_ns"] = price_us * US
    world, sent = script.world, script.now + naive.SEND
    gpus = [naive.Gpu(exec_free=sent + busy * MS if busy else 0) for busy in lanes]
    gpus[load["gpu"]].load_free = sent + naive.LOAD
    twins = [naive.Model(dict.fromkeys(held, 0)) for held in HELD]
    twins[-1].copies[load["gpu"]] = sent + naive.LOAD
    twin = naive.Admission(gpus, twins, policy, price_us * US)
    if policy == "cwd":
        twins[-1].came(script.now, 900 * MS)
    twins[-1].queued = [script.now + 900 * MS - naive.CLIENT]
    for number, (m, slo_us, size_class, gap_us) in enumerate(arrivals):
        script.now += gap_us * US
        said, served, home, cost = twin.ask(script.now, m, slo_us * US, size_class)
        assert script.ask(number, model=models[m], slo=slo_us * US, size_class=size_class) == CODES[said]
        if said == "in":
            row = world.requests[engine.queues.lookup(world, 1, number)]
            assert (row["home"], row["cost_ns"]) == (-1 if home is None else home, cost)
            assert row["need_ns"] == twin.need(size_class)
        else:
            (reply,) = [out for out in script.take() if out["kind"] == OUT_REPLY]
            assert reply["served_ns"] == served
        assert (world.models[m]["missed_ns"], world.memory[m]["gap_ns"]) == (twins[m].missed, twins[m].gap)
    for gpu, mine in enumerate(gpus):
        assert world.gpus[gpu]["backlog_ns"] == sum(cost for _, cost, _ in mine.queued)
        assert (world.gpus[gpu]["pressed_ns"] > 0) == mine.pressed
