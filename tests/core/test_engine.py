"""Scripts of events and what the core must leave in its outbox: codes, windows, order, retries, unknown copies."""

from __future__ import annotations

import numpy as np
import pytest
from script import MS, T0, US, Script, only

from cwd.core import engine
from cwd.core.world import (
    ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, FOREVER_NS, OUT_ACTION, OUT_RELEASE, OUT_REPLY, Config,
)
from cwd.errors import Code, CwdError

def test_cold_request_is_loaded_executed_and_answered():
    """The whole path, with every time in the reply."""
    s = Script()
    assert s.ask(5) == 0
    load = only(s.tick(), kind=OUT_ACTION, verb=ACTION_LOAD, pages=7, model=s.model, expected_ns=10 * MS, first=-1)
    assert load["earliest_ns"] == T0 and load["latest_ns"] > T0 and load["expire_ns"] > load["latest_ns"]
    assert s.done(load, pages_free=13) == 0
    run = only(s.tick(), kind=OUT_ACTION, verb=ACTION_EXEC, batch=1, rows=1, expected_ns=3 * MS)
    assert s.ids(run) == [5]
    # it may not start so late that the answer would be
    assert run["latest_ns"] + run["expected_ns"] < T0 + 100 * MS
    assert s.done(run, result=77) == 0
    reply, release = s.tick()
    assert (reply["kind"], reply["status"], reply["request_id"], reply["payload"]) == (OUT_REPLY, 0, 5, 5)
    assert (reply["result"], reply["row"], reply["batch"], reply["gpu"], reply["cold"]) == (77, 0, 1, 0, 1)
    assert reply["load_ns"] == 10 * MS + 300 * US and reply["exec_ns"] == 3 * MS
    assert reply["total_ns"] == s.now - T0 and reply["queued_ns"] == s.now - T0 - 3 * MS - 100 * US
    assert (release["kind"], release["result"], release["payload"]) == (OUT_RELEASE, 77, -1)
    assert s.done(run) == engine.STALE and s.take() == []
    # the model's expiry timer is lazy: it goes off once more, finds nothing, and is not set again
    assert s.tick(later=100 * MS) == []
    assert engine.next_timer(s.world, s.now) == FOREVER_NS


@pytest.mark.parametrize("change, code", [
    (dict(slo=0), Code.BAD_SLO), (dict(slo=-5), Code.BAD_SLO), (dict(slo=1 << 60), Code.BAD_SLO),
    (dict(model=1), Code.UNKNOWN_MODEL), (dict(model=-3), Code.UNKNOWN_MODEL), (dict(model=7 << 40), Code.UNKNOWN_MODEL),
    (dict(size_class=2), Code.UNKNOWN_SIZE), (dict(size_class=-1), Code.UNKNOWN_SIZE),
    (dict(request_id=1), Code.DUPLICATE_REQUEST), (dict(slo=2 * MS), Code.SLO_BELOW_EXECUTION),
    (dict(slo=5 * MS, size_class=1), Code.SLO_BELOW_EXECUTION),
])
def test_faults_of_a_request_are_refused_at_once(change, code):
    """One reply with the code and the payload handle; the request that was there before is not disturbed."""
    s = Script()
    s.hold()
    assert s.ask(1) == 0
    arguments = dict(request_id=2) | change
    assert s.ask(**arguments) == code
    only(s.take(), kind=OUT_REPLY, status=code, request_id=arguments["request_id"], result=-1)
    assert s.ids(only(s.tick(), verb=ACTION_EXEC, rows=1)) == [1]


def test_what_comes_too_late_is_not_told_that_its_slo_is_too_short():
    """An SLO of 100 ms of which 1 ms is left at arrival, or less than nothing: coming again helps, so it has EXPIRED."""
    s = Script()
    s.hold()
    for number, left_ns in enumerate((MS, 0, -50 * MS), 1):
        assert s.ask(number, slo=100 * MS, deadline=s.now + left_ns) == Code.DEADLINE_EXPIRED
        assert only(s.take(), kind=OUT_REPLY, request_id=number)["status"] == Code.DEADLINE_EXPIRED
    assert s.ask(7, slo=2 * MS, deadline=s.now + MS) == Code.SLO_BELOW_EXECUTION
    assert s.ask(8, slo=100 * MS, deadline=s.now + 50 * MS) == 0


def test_refusals_that_depend_on_the_cluster():
    """No worker with the program, not profiled, and a deadline that a LOAD cannot meet, with the time it could."""
    s = Script()
    assert s.ask(1, slo=12 * MS) == Code.DEADLINE_UNREACHABLE
    refused = only(s.take(), status=Code.DEADLINE_UNREACHABLE)
    # with that SLO it is accepted: the promise is exact
    assert 13 * MS < refused["served_ns"] < 16 * MS
    assert s.ask(1, slo=refused["served_ns"] - 1) == Code.DEADLINE_UNREACHABLE
    assert s.ask(1, slo=refused["served_ns"]) == 0
    engine.program_added(s.world, 1, np.array([1], np.int64), 1, 1)
    other = int(engine.model_added(s.world, s.now, 1, 3))
    assert s.ask(3, model=other) == Code.NO_WORKER
    engine.program_prepared(s.world, s.now, 0, 1, 1)
    assert s.ask(3, model=other) == Code.MODEL_NOT_READY
    engine.gpu_lost(s.world, s.now, 0)
    assert s.ask(4) == Code.NO_WORKER
    s.take()


def test_edf_order_and_padding():
    """Three requests in order of deadline, not arrival, in one padded batch of four."""
    s = Script()
    s.hold()
    blocker = s.add()
    s.hold(blocker)
    assert s.ask(9, model=blocker) == 0
    s.tick()
    for request_id, slo in ((1, 90), (2, 50), (3, 70)):
        assert s.ask(request_id, slo=slo * MS) == 0
    run = only(s.tick(later=2 * MS), verb=ACTION_EXEC, batch=4, rows=3)
    assert s.ids(run) == [2, 3, 1]


def test_who_fills_a_batch_is_let_in_where_who_begins_one_is_not():
    """The lane is taken for 20 ms. A second request of a model adds 1 ms, the first of another 3 ms: too much for 25 ms.

    From then on the GPU is pressed: whoever comes must leave the time for the 6 ms that its batch takes when full.
    """
    script = Script(pages=40)
    other = script.add()
    script.hold()
    script.hold(other)
    assert engine.lane_reserve(script.world, script.now, 0, 20 * MS) >= 0
    assert script.ask(1, slo=25 * MS) == 0
    assert script.ask(2, slo=25 * MS, model=other) == Code.DEADLINE_UNREACHABLE
    assert script.ask(3, slo=28 * MS) == 0
    assert script.ask(4, slo=31 * MS, model=other) == Code.DEADLINE_UNREACHABLE
    assert script.ask(5, slo=32 * MS, model=other) == 0
    assert script.ask(6, slo=31 * MS) == 0
    served = [out["served_ns"] for out in script.take() if out["kind"] == OUT_REPLY]
    assert served == [26 * MS + 800 * US, 31 * MS + 200 * US]


def test_a_batch_has_the_class_of_its_head():
    """A smaller request is padded into a larger head's batch; a larger one waits for its own turn."""
    s = Script()
    s.hold()
    blocker = s.add()
    s.hold(blocker)
    s.ask(9, model=blocker)
    s.tick()
    s.ask(1, slo=60 * MS, size_class=0)
    s.ask(2, slo=61 * MS, size_class=1)
    s.ask(3, slo=62 * MS, size_class=0)
    first = only(s.tick(later=2 * MS), verb=ACTION_EXEC, size_class=0, batch=2, rows=2)
    assert s.ids(first) == [1, 3]
    second = only(s.tick(later=4 * MS), verb=ACTION_EXEC, size_class=1, batch=1, expected_ns=6 * MS)
    assert s.ids(second) == [2]


def test_hopeless_requests_are_dropped_before_their_deadline():
    """A request is queued for a cold model when the only GPU is drained: it is given up at its last moment, not later."""
    s = Script()
    s.ask(1, slo=100 * MS)
    s.take()
    engine.gpu_draining(s.world, s.now, 0)
    s.tick()
    # armed for the last LOAD in time; with no GPU left that could load it, once more for the last execution in time
    records = []
    for _ in range(2):
        assert records == []
        records = s.tick(later=int(engine.next_timer(s.world, s.now)) - s.now)
    dropped = only(records, status=Code.DEADLINE_EXPIRED)
    assert 80 * MS < dropped["total_ns"] < 98 * MS


def test_a_late_result_is_no_answer():
    """An execution that ended after the deadline: DEADLINE_MISSED and no output."""
    s = Script()
    s.hold()
    s.ask(1, slo=20 * MS)
    run = only(s.tick(), verb=ACTION_EXEC)
    assert s.done(run, later=30 * MS, result=5) == 0
    reply, release = s.tick()
    assert (reply["status"], reply["result"]) == (Code.DEADLINE_MISSED, -1) and release["result"] == 5


@pytest.mark.parametrize("status, final", [
    (Code.TOO_LATE, None), (Code.LANE_FULL, None), (Code.ABANDONED, None), (Code.NOT_PREPARED, None),
    (Code.DEVICE_ERROR, Code.EXECUTION_FAILED), (Code.BAD_BATCH, Code.EXECUTION_FAILED),
])
def test_refused_executions_are_tried_again_and_failures_are_not(status, final):
    """A refusal sends the request back to its queue, up to attempts_max; a failure answers it."""
    s = Script()
    s.hold()
    s.ask(1)
    for attempt in range(3):
        run = only(s.tick(), verb=ACTION_EXEC, rows=1)
        assert s.done(run, status, later=MS) == 0
        if final is not None:
            only(s.tick(), kind=OUT_REPLY, status=final)
            return
    only(s.tick(), kind=OUT_REPLY, status=Code.WORKER_LOST if status == Code.TOO_LATE else Code.EXECUTION_FAILED)


def test_executions_of_which_nothing_is_heard_are_the_workers_fault():
    """Attempts up to attempts_max, each of them without a result: the worker is as good as lost, the model has not failed."""
    s = Script()
    s.hold()
    s.ask(1, slo=5_000 * MS)
    run = only(s.tick(), verb=ACTION_EXEC, rows=1)
    for _ in range(2):
        run = only(s.tick(later=run["expire_ns"] - s.now), verb=ACTION_EXEC, rows=1)
    only(s.tick(later=run["expire_ns"] - s.now), kind=OUT_REPLY, status=Code.WORKER_LOST)


def test_a_last_attempt_whose_worker_is_lost_is_the_workers_fault():
    """Nothing is heard of two attempts; in the middle of the third their GPU is given up. Another one is there, and idle."""
    s = Script(gpus=2)
    s.hold()
    s.ask(1, slo=5_000 * MS)
    run = only(s.tick(), verb=ACTION_EXEC, gpu=0)
    for _ in range(2):
        run = only(s.tick(later=run["expire_ns"] - s.now), verb=ACTION_EXEC, gpu=0)
    engine.gpu_lost(s.world, s.now, 0)
    only(s.tick(), kind=OUT_REPLY, status=Code.WORKER_LOST)


def test_a_lost_load_is_settled_by_an_unload():
    """No result of a LOAD: the copy is unknown, an UNLOAD asks, and whatever it says the pages are free again."""
    s = Script(pages=7)
    s.ask(1, slo=5_000 * MS)
    load = only(s.tick(), verb=ACTION_LOAD)
    unload = only(s.tick(later=load["expire_ns"] - s.now), verb=ACTION_UNLOAD, model=s.model)
    # the late result changes nothing
    assert s.done(load, pages_free=0) == engine.STALE
    assert s.done(unload, Code.NOT_RESIDENT, pages_free=7) == 0
    again = only(s.tick(), verb=ACTION_LOAD, model=s.model)
    assert again["action"] != load["action"]
    s.done(again)
    only(s.tick(), verb=ACTION_EXEC)


def test_a_refused_unload_is_parked_and_tried_again():
    """Its pages are charged again, so that nothing is loaded into them; the next UNLOAD frees them."""
    s = Script(pages=7)
    s.hold()
    other = s.add()
    s.ask(1, model=other, slo=5_000 * MS)
    unload, load = s.tick()
    assert (unload["verb"], load["verb"]) == (ACTION_UNLOAD, ACTION_LOAD)
    s.done(unload, Code.IN_USE, later=MS)
    s.done(load, Code.NO_PAGES, later=MS, pages_free=0)
    s.tick()
    timer = int(engine.next_timer(s.world, s.now))
    again = only(s.tick(later=timer - s.now), verb=ACTION_UNLOAD, model=s.model)
    s.done(again, later=MS, pages_free=7)
    only(s.tick(), verb=ACTION_LOAD, model=other)


def test_pages_that_the_worker_lacks_are_not_planned_with():
    """A worker that reports fewer free pages than expected is believed."""
    s = Script(pages=14)
    s.ask(1)
    load = only(s.tick(), verb=ACTION_LOAD)
    s.done(load, pages_free=3)
    s.tick()
    s.ask(2, model=s.add())
    records = s.tick()
    assert all(out["verb"] != ACTION_LOAD for out in records if out["kind"] == OUT_ACTION)


def test_nobody_leaves_who_has_work():
    """With room for one model, the other waits while the first has requests queued or running, and then gets in."""
    s = Script(pages=7)
    other = s.add()
    s.hold()
    s.ask(1, slo=200 * MS)
    s.ask(2, slo=200 * MS, model=other)
    run = only(s.tick(), verb=ACTION_EXEC, model=s.model)
    s.done(run)
    records = s.tick()
    assert [out["verb"] for out in records if out["kind"] == OUT_ACTION] == [ACTION_UNLOAD, ACTION_LOAD]


def test_a_model_whose_gpus_are_swamped_is_replicated():
    """200 ms of work on one GPU, an idle one beside it: the model is loaded there, with nothing else asking."""
    s = Script(gpus=2, requests_max=256)
    s.hold()
    for i in range(100):
        assert s.ask(i, slo=1_000 * MS) == 0
    verbs = [(out["verb"], out["gpu"]) for out in s.tick() if out["kind"] == OUT_ACTION]
    assert (ACTION_LOAD, 1) in verbs


def test_a_refusal_that_another_copy_would_have_saved_brings_that_copy():
    """The model's GPU is taken for 50 ms, the other is idle: too late for this request, but not for the next."""
    script = Script(gpus=2)
    script.hold()
    assert engine.lane_reserve(script.world, script.now, 0, 50 * MS) >= 0
    assert script.ask(1, slo=10 * MS) == Code.DEADLINE_UNREACHABLE
    loads = [out for out in script.tick() if out["kind"] == OUT_ACTION]
    assert [(out["verb"], out["gpu"]) for out in loads] == [(ACTION_LOAD, 1)]
    assert script.done(loads[0]) == 0
    assert script.ask(2, slo=10 * MS) == 0


def test_a_further_copy_takes_nobodys_place():
    """As before, but the other GPU's pages are taken: its model stays."""
    script = Script(gpus=2, pages=10)
    script.hold()
    script.hold(script.add(), gpu=1)
    assert engine.lane_reserve(script.world, script.now, 0, 50 * MS) >= 0
    assert script.ask(1, slo=10 * MS) == Code.DEADLINE_UNREACHABLE
    assert not [out for out in script.tick() if out["kind"] == OUT_ACTION]


def test_reserved_lanes_hold_back_executions():
    """A PREPARE of 50 ms: a request behind it is planned after it, one with less time is refused."""
    s = Script()
    s.hold()
    action = int(engine.lane_reserve(s.world, s.now, 0, 50 * MS))
    assert action > 0
    assert s.ask(1, slo=40 * MS) == Code.DEADLINE_UNREACHABLE
    assert s.ask(2, slo=80 * MS) == 0
    only(s.tick(), status=Code.DEADLINE_UNREACHABLE)
    s.now += 10 * MS
    engine.action_done(s.world, s.now, action, 0, s.now - 10 * MS, s.now, 0, 0, -1, -1)
    assert s.ids(only(s.tick(), verb=ACTION_EXEC)) == [2]


def test_an_expired_execution_gives_its_requests_another_chance():
    """The result is lost; with time left the request runs again, and the first result, late, changes nothing."""
    s = Script()
    s.hold()
    s.ask(1, slo=2_000 * MS)
    run = only(s.tick(), verb=ACTION_EXEC)
    again = only(s.tick(later=run["expire_ns"] - s.now), verb=ACTION_EXEC, rows=1)
    assert s.done(run, later=0, result=3) == engine.STALE
    s.done(again, result=4)
    assert [out["status"] for out in s.tick() if out["kind"] == OUT_REPLY] == [0]


def test_a_seed_that_turns_everybody_away_is_tried_in_the_end():
    script = Script()
    script.hold()
    engine.estimate_seed(script.world, 0, 0, 0, 0, 200 * MS)  # the truth is 3 ms
    script.now += 10_000 * MS
    codes = []
    for k in range(64):
        codes.append(script.ask(100 + k, slo=100 * MS))
        script.now += 250 * MS
        if codes[-1] == 0:
            break
        script.take()
    assert set(codes[:-1]) == {Code.SLO_BELOW_EXECUTION} and codes[-1] == 0
    # once in a half-life, not with every refusal
    assert len(codes) > 8
    script.now -= 250 * MS
    (action,) = [out for out in script.tick() if out["kind"] == OUT_ACTION]
    begin = script.now
    script.now += 3 * MS
    engine.action_done(script.world, script.now, action["action"], 0, begin, script.now, 0, 1, 13, -1)
    (reply,) = [out for out in script.take() if out["kind"] == OUT_REPLY]
    assert reply["status"] == Code.OK


@pytest.mark.parametrize("policy", ["clockwork", "fifo"])
def test_a_model_that_loads_too_slowly_for_its_clients_is_loaded_for_the_next_one(policy):
    script = Script(policy=policy)
    # 10 ms of LOAD do not fit into 9 ms, 3 ms of execution do
    assert script.ask(1, slo=9 * MS) == Code.DEADLINE_UNREACHABLE
    (load,) = [out for out in script.tick() if out["kind"] == OUT_ACTION]
    assert load["verb"] == ACTION_LOAD
    script.now += 10 * MS
    engine.action_done(script.world, script.now, load["action"], 0, script.now - 10 * MS, script.now, 0, 0, 13, -1)
    assert script.ask(2, slo=9 * MS) == 0
    # what cannot be in time even with its weights there is no reason to load anything
    other = script.add()
    assert script.ask(3, slo=1 * MS, model=other) == Code.SLO_BELOW_EXECUTION
    assert [out["verb"] for out in script.tick() if out["kind"] == OUT_ACTION] == [ACTION_EXEC]


def test_junk_changes_nothing():
    """Ids that never were, slots out of range: codes, no crash, no change."""
    s = Script()
    for action in (0, -1, 1 << 62, 5, (3 << 32) | 1):
        assert engine.action_done(s.world, s.now, action, 0, 0, 0, 0, 0, -1, -1) == engine.STALE
    assert engine.request_cancelled(s.world, s.now, 99, 1) == 0
    engine.client_gone(s.world, s.now, -1)
    engine.gpu_lost(s.world, s.now, 55)
    assert engine.gpu_joined(s.world, s.now, 0, 0, 5) == Code.BAD_ARGUMENT
    assert engine.gpu_resident(s.world, s.now, 0, 1 << 50) == Code.UNKNOWN_MODEL
    assert engine.model_removed(s.world, s.now, -7) == Code.UNKNOWN_MODEL
    assert engine.lane_reserve(s.world, s.now, 9, MS) == -1
    assert s.ask(1, client=77) == Code.QUEUE_FULL
    s.take()


def test_a_full_registry_says_so():
    """Beyond models_max: minus REGISTRY_FULL; a removed model makes room."""
    s = Script()
    handles = [s.model] + [s.add() for _ in range(7)]
    assert len(set(handles)) == 8 and s.add() == -Code.REGISTRY_FULL
    assert engine.model_removed(s.world, s.now, handles[3]) == 0
    fresh = s.add()
    assert fresh > 0 and fresh not in handles


@pytest.mark.parametrize("field", ["models_max", "requests_max", "schedule_ahead_ns"])
def test_a_bad_configuration_is_one_clear_error(field):
    """Zero and text are no capacities; an unknown policy is named."""
    with pytest.raises(CwdError, match=field):
        Config(**{field: 0})
    with pytest.raises(CwdError, match="nonsense"):
        Config(policy="nonsense")


def test_a_model_that_is_removed_is_wanted_no_more():
    """It missed a request while another LOAD ran, and so is listed without a queue; its slot is used again at once."""
    s = Script(pages=7)
    other = s.add()
    assert s.ask(1) == 0
    only(s.tick(), verb=ACTION_LOAD)
    assert s.ask(2, slo=8 * MS, model=other) == Code.DEADLINE_UNREACHABLE
    assert s.world.models[other & 0xFFFF]["wanted"] == 1
    assert engine.model_removed(s.world, s.now, other) == 0
    s.take()
    assert s.world.counters[0]["wanted_root"] == -1
    for number in range(2):
        assert s.ask(3 + number, model=s.add()) == 0
    s.take()


def test_a_gpu_that_is_lost_and_comes_back_before_the_next_tick_is_planned_for_once():
    """It was on the list of GPUs to plan for, with another behind it; the list stays whole."""
    s = Script(gpus=2)
    for gpu in range(2):
        s.hold(gpu=gpu)
    assert s.ask(1) == 0
    engine.gpu_lost(s.world, s.now, 0)
    assert engine.gpu_joined(s.world, s.now, 0, 0, 20) == 0
    engine.program_prepared(s.world, s.now, 0, 0, 1)
    s.take()
    assert [out["gpu"] for out in s.tick() if out["verb"] == ACTION_EXEC] == [1]


def test_a_load_that_ends_on_a_draining_gpu_serves_nobody_there():
    """Its request is served by the other GPU, for which the model is wanted again."""
    s = Script(gpus=2)
    assert s.ask(1) == 0
    load = only(s.tick(), verb=ACTION_LOAD)
    engine.gpu_draining(s.world, s.now, load["gpu"])
    assert s.done(load) == 0
    again = only(s.tick(), verb=ACTION_LOAD)
    assert again["gpu"] != load["gpu"]
    assert s.done(again) == 0
    assert s.ids(only(s.tick(), verb=ACTION_EXEC, gpu=again["gpu"])) == [1]


def test_one_look_gives_up_a_bounded_number_of_requests():
    """A hundred that nobody can save any more: the timer goes off again at once for the rest."""
    s = Script(requests_max=128, events_max=128)
    for number in range(100):
        assert s.ask(number, slo=100 * MS) == 0
    engine.gpu_draining(s.world, s.now, 0)
    counts = []
    while s.world.models[0]["queued"] > 0:
        s.now = int(engine.next_timer(s.world, s.now))
        found = [out for out in s.tick() if out["kind"] == OUT_REPLY]
        counts += [len(found)] if found else []
    assert counts == [64, 36]


@pytest.mark.parametrize("policy", ["clockwork", "cwd"])
def test_a_standby_is_loaded_without_a_request_in_place_of_what_was_used_longest_ago(policy):
    s = Script(pages=14, policy=policy)
    old, used, standby = s.add(), s.add(), s.add()
    for model in (old, used):
        s.hold(model)
        s.ask(model, model=model)
        s.done(only(s.tick(later=MS), verb=ACTION_EXEC))
        s.tick()
    assert engine.model_wanted(s.world, s.now, used) == 1 and s.tick() == []
    assert engine.model_wanted(s.world, s.now, standby) == 0
    unload, load = s.tick()
    assert (unload["verb"], unload["model"], load["verb"], load["model"]) == (ACTION_UNLOAD, old, ACTION_LOAD, standby)
    assert engine.model_wanted(s.world, s.now, standby) == 1 and s.tick() == [], "once is enough"
    for unknown in (-1, 7, standby + (1 << 32)):
        assert engine.model_wanted(s.world, s.now, unknown) == 0
    assert s.tick() == []


def test_whoever_is_queued_when_the_host_closes_is_answered_draining():
    s = Script()
    s.hold()
    s.ask(1)
    run = only(s.tick(), verb=ACTION_EXEC)
    cold = s.add()
    asked = {2, 3, 4}
    for request in asked:
        s.ask(request, model=s.model if request < 4 else cold)
    engine.closing(s.world, s.now)
    assert {(out["request_id"], out["status"], out["payload"]) for out in s.take()} == {
        (request, Code.DRAINING, request) for request in asked}
    s.done(run, result=9)
    reply = next(out for out in s.tick() if out["kind"] == OUT_REPLY)
    assert (reply["request_id"], reply["status"]) == (1, 0)
    engine.closing(s.world, s.now)
    assert s.take() == []
