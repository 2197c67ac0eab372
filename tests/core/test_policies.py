"""What each policy runs next, against its naive twin; and what the engine does differently for one."""

from __future__ import annotations

import naive_policies as naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, T0, US, Script, only

from cwd.core import engine, estimate
from cwd.core.presets import PRESETS
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, MARGIN_END, OUT_ACTION, OUT_REPLY, Config
from cwd.errors import Code, CwdError

SMALL = settings(max_examples=60, deadline=None)
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}
MODELS = 3


def quotas_of(script):
    """Quotas of the round, by model."""
    return {int(copy["model"]): int(copy["quota"]) for copy in script.world.copies
            if copy["state"] and copy["packed_ns"] == script.world.gpus[0]["planned_ns"]}


def run_next(policy, arrivals):
    """The first EXEC as (model, batch, ids) after requests (model, slo) came 100 us apart while the lane was taken.

    Also the queues that it chose from, the start that it counted with, whether somebody was given up before, quotas, and
    by model when the request that came first was due.
    """
    script = Script(pages=50, policy=policy, admission=0)
    models = [script.model, *(script.add() for _ in range(MODELS - 1))]
    for model in models:
        script.hold(model)
    held = int(engine.lane_reserve(script.world, script.now, 0, 500 * MS))
    preset, client_ns = PRESETS[policy], int(script.world.settings[0]["client_ns"])
    queues = {model: [] for model in range(MODELS)}
    for number, (model, slo_us) in enumerate(arrivals):
        script.now += 100 * US
        script.ask(number, slo=slo_us * US, model=models[model])
        due = script.now + max(slo_us * US - client_ns, preset.due_floor_ns)
        queues[model].append((due - preset.end_ns, script.now, number))
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    # what nexus would have learned from more traffic
    script.world.memory["gap_ns"], script.world.memory["slo_ns"] = (1 + len(arrivals) % 4) * MS, 20 * MS
    need = TOOK[1] + preset.send_ns if preset.foresight else -preset.end_ns
    lost = False
    first_due = {model: queue[0][0] for model, queue in queues.items() if queue}
    for queue in queues.values():
        queue.sort(key=lambda r: r[1] if preset.queue_order else (r[0], r[1]))
        while queue and queue[0][0] - need < script.now:
            queue.pop(0)
            lost = True
    runs = [out for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]
    chosen = None
    if runs:
        chosen = (models.index(runs[0]["model"]), runs[0]["batch"], tuple(script.ids(runs[0])))
    return chosen, queues, script.now + preset.send_ns, lost, quotas_of(script), first_due


arrivals = st.lists(st.tuples(st.integers(0, MODELS - 1), st.integers(3_700, 16_000)), min_size=1, max_size=12)


@pytest.mark.parametrize("policy", ["fifo", "edf", "clockwork", "clockwork-paper", "shepherd", "symphony", "clipper", "orloj",
                                    "nexus"])
@SMALL
@given(arrivals)
def test_a_policy_chooses_as_its_twin_does(policy, arrivals):
    chosen, queues, start, lost, quotas, first_due = run_next(policy, arrivals)
    if policy == "fifo":
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[1], False)
    elif policy == "edf":
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[0], False)
    elif policy == "clockwork" and not lost:
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[0], True)
    elif policy == "clockwork":
        twin = naive.densest_of_all(queues, start, TOOK)
    elif policy == "clockwork-paper":
        twin = naive.strategies(queues, first_due, start, TOOK)
    elif policy == "shepherd":
        twin = naive.largest(queues, start, TOOK)
    elif policy == "clipper":
        twin = naive.one_of_the_first(queues)
    elif policy == "nexus":
        twin = naive.window(queues, start, TOOK, quotas)
    elif policy == "orloj":
        twin = naive.filled_with_candidates(queues, start, TOOK)
    else:
        twin = naive.deferred(queues, start, TOOK, 100 * US)
    assert (chosen in twin) if twin else chosen is None


def statuses(records):
    return [(out["request_id"], out["status"]) for out in records if out["kind"] == OUT_REPLY]


def test_without_admission_a_late_request_waits_for_its_last_moment():
    """A lane that is taken for 50 ms and 40 ms of time: refused with admission, queued and given up without."""
    for admission in (1, 0):
        script = Script(policy="clockwork", admission=admission)
        script.hold()
        engine.lane_reserve(script.world, script.now, 0, 50 * MS)
        code = script.ask(1, slo=40 * MS)
        if admission:
            assert code == Code.DEADLINE_UNREACHABLE
            continue
        assert code == 0 and script.tick() == []
        later = int(engine.next_timer(script.world, script.now)) - script.now
        assert 30 * MS < later < 40 * MS
        assert statuses(script.tick(later=later)) == [(1, Code.DEADLINE_EXPIRED)]


def test_as_published_a_request_is_answered_5_ms_before_its_deadline_and_run_until_then():
    """No foresight: given up when overdue by the internal deadline; an action may start 5 ms late, whatever is due."""
    script = Script(policy="clockwork-paper")
    script.hold()
    held = int(engine.lane_reserve(script.world, script.now, 0, 200 * MS))
    script.ask(1, slo=100 * MS)
    script.ask(2, slo=300 * MS)
    assert script.tick() == []
    later = int(engine.next_timer(script.world, script.now)) - script.now
    assert later == 95 * MS + 1
    assert statuses(script.tick(later=later)) == [(1, Code.DEADLINE_EXPIRED)]
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    run = only(script.tick(), verb=ACTION_EXEC, rows=1)
    assert run["latest_ns"] == script.now + MS + 5 * MS


def test_as_published_an_slo_below_the_floor_is_run_and_missed():
    """4 ms for 3 ms of execution: due 10 ms after arrival, so it is run, and late."""
    script = Script(policy="clockwork-paper")
    script.hold()
    assert script.ask(1, slo=4 * MS) == 0
    run = only(script.tick(), verb=ACTION_EXEC)
    script.done(run, later=5 * MS)
    assert statuses(script.tick()) == [(1, Code.DEADLINE_MISSED)]


def test_as_published_margins_are_not_measured():
    """Results that come 4 ms late change what clockwork counts with, and nothing here."""
    ends = []
    for policy in ("clockwork", "clockwork-paper"):
        script = Script(policy=policy)
        script.hold()
        for number in range(40):
            script.ask(number, slo=200 * MS)
            run = only(script.tick(), verb=ACTION_EXEC)
            script.now += 4 * MS
            script.done(run)
            script.tick()
        script.ask(99, slo=200 * MS)
        run = only(script.tick(), verb=ACTION_EXEC)
        action = script.world.actions[run["action"] & 0xFFFFFFFF]
        ends.append(int(action["start_ns"]) - script.now)
    assert ends[0] > 3 * MS and ends[1] == MS


@pytest.mark.parametrize("policy, verbs", [
    ("clockwork", []), ("clockwork-paper", [ACTION_UNLOAD, ACTION_LOAD])])
def test_as_published_a_model_with_queued_requests_may_have_to_leave(policy, verbs):
    """Room for one model; its lane is taken, so its request waits while another model is asked for."""
    script = Script(policy=policy, pages=7)
    other = script.add()
    script.hold()
    engine.lane_reserve(script.world, script.now, 0, 50 * MS)
    assert script.ask(1, slo=900 * MS) == 0
    assert script.ask(2, slo=900 * MS, model=other) == 0
    assert [out["verb"] for out in script.tick() if out["kind"] == OUT_ACTION] == verbs
    if verbs:
        assert script.world.models[0]["wanted"] == 1


def test_in_order_of_arrival_who_follows_with_less_time_is_given_up_in_time():
    """The first has a second, the second 60 ms: when the first is taken, the model's timer is for the second."""
    script = Script(policy="fifo", pages=20)
    script.hold()
    script.ask(1, slo=1_000 * MS, size_class=0)
    script.ask(2, slo=60 * MS, size_class=1)
    only(script.tick(), verb=ACTION_EXEC, rows=1)
    engine.lane_reserve(script.world, script.now, 0, 500 * MS)
    answered = []
    while not answered:
        answered = statuses(script.tick(later=int(engine.next_timer(script.world, script.now)) - script.now))
        assert script.now < T0 + 60 * MS
    assert answered == [(2, Code.DEADLINE_EXPIRED)]


def test_symphony_looks_again_when_its_batch_is_ripe():
    """One request with 100 ms: nothing goes out, until a batch of two would be late; a full batch goes at once."""
    script = Script(policy="symphony")
    script.hold()
    script.ask(1)
    assert script.tick() == []
    look = int(engine.next_timer(script.world, script.now))
    # deadline, reply's way, end margin, two rows, jitter, way there; nothing was measured, so two rows may take twice as long
    assert look == script.now + 100 * MS - 200 * US - 400 * US - 8 * MS - 100 * US - 200 * US
    assert only(script.tick(later=look - script.now), verb=ACTION_EXEC, rows=1)
    script = Script(policy="symphony")
    script.hold()
    for number in range(4):
        script.ask(number)
    assert only(script.tick(), verb=ACTION_EXEC, rows=4)


def test_symphony_waits_by_what_was_measured_lately_and_by_no_margin_below_the_configured_one():
    script = Script(policy="symphony")
    script.hold()
    base = int(script.world.settings[0]["margin_base"])
    for number in range(40):
        for batch_index, took_ms in ((0, 3), (1, 5 if number == 20 else 4)):
            row = batch_index * int(script.world.settings[0]["classes_max"])
            estimate.observe(script.world.estimates[row], script.now, took_ms * MS)
        estimate.observe(script.world.estimates[base + MARGIN_END], script.now, 10 * US)
    script.ask(1)
    assert script.tick() == []
    look = int(engine.next_timer(script.world, script.now))
    assert look == script.now + 100 * MS - 200 * US - 400 * US - 5 * MS - 100 * US - 200 * US


def test_symphony_waits_no_longer_than_until_its_request_is_given_up():
    """A request came while executions took 50 ms; they do so no more, but it is given up by what was believed then."""
    script = Script(policy="symphony")
    script.hold()
    tails = script.world.estimates["tail_ns"]
    tails[0] = 50 * MS
    script.ask(1, slo=500 * MS)
    tails[0] = 3 * MS
    records = script.tick()
    assert records == []
    while not records:
        records = script.tick(later=int(engine.next_timer(script.world, script.now)) - script.now)
    assert only(records, verb=ACTION_EXEC, rows=1)


def test_symphony_waits_for_nobody_while_a_model_is_nowhere():
    """Two models for whom there is room for one: the second finds it as soon as the first has run."""
    script = Script(policy="symphony", pages=10)
    script.hold()
    script.ask(1, slo=2_000 * MS)
    assert script.tick() == []
    other = script.add()
    script.ask(2, slo=2_000 * MS, model=other)
    script.done(only(script.tick(later=MS), verb=ACTION_EXEC, rows=1))
    script.take()
    assert [out["verb"] for out in script.tick()] == [ACTION_UNLOAD, ACTION_LOAD]


@pytest.mark.parametrize("policy", ["symphony", "nexus"])
def test_who_waits_on_purpose_leaves_others_room_in_the_table(policy):
    """Of four rows three are taken by requests that could wait for seconds: a batch goes out, and nobody is turned away."""
    script = Script(policy=policy, requests_max=4)
    script.hold()
    if policy == "nexus":
        # the first of a round finds that its turn has long come
        script.ask(100, slo=3_000 * MS)
        script.done(only(script.tick(), verb=ACTION_EXEC, rows=1))
        script.take()
    for number in range(2):
        script.now += 100 * MS
        script.ask(number, slo=3_000 * MS)
        # of a round as planned more are needed, and its end is far
        script.world.copies["quota"] = 7
        assert script.tick() == []
    script.ask(2, slo=3_000 * MS)
    assert only(script.tick(), verb=ACTION_EXEC, rows=3)


def test_nexus_serves_whom_a_full_batch_left_behind_before_it_is_too_late():
    """Five wait where the round has room for four: the fifth would be late by the next turn, and the GPU has time."""
    script = Script(policy="nexus")
    script.hold()
    script.ask(0, slo=200 * MS)
    script.done(only(script.tick(), verb=ACTION_EXEC, rows=1))
    script.take()
    gpu = script.world.gpus[0]
    for number in range(1, 6):
        script.ask(number, slo=200 * MS)
    due = script.now + 200 * MS
    gpu["cycle_ns"], script.world.copies["quota"] = 300 * MS, 4
    script.done(only(script.tick(), verb=ACTION_EXEC, rows=4))
    script.take()
    gpu["cycle_ns"], script.world.copies["quota"] = 300 * MS, 4
    records = script.tick()
    assert records == []
    while not records:
        records = script.tick(later=int(engine.next_timer(script.world, script.now)) - script.now)
    assert only(records, verb=ACTION_EXEC, rows=1) and due - 20 * MS < script.now < due - 3 * MS


def test_orloj_leaves_out_who_would_make_the_others_late():
    """A short application and one of four times its length, in turns: the batch of two is of the short ones alone."""
    script = Script(policy="orloj", requests_max=64, margin_max_ns=400 * US)
    script.hold()
    number = 0
    for _ in range(60):
        for app, factor in ((1, 1), (2, 4)):
            number += 1
            engine.request_arrived(script.world, script.now, 1, number, script.model, 0, 0, 500 * MS, app, -1)
            run = only(script.tick(), verb=ACTION_EXEC, rows=1)
            script.now += 3 * MS * factor
            engine.action_done(
                script.world, script.now, run["action"], 0, script.now - 3 * MS * factor, script.now, 0, 1, -1, -1)
            script.take()
    held = int(engine.lane_reserve(script.world, script.now, 0, 50 * MS))
    for k, app in enumerate((2, 1, 2, 1)):
        engine.request_arrived(script.world, script.now, 1, 1000 + k, script.model, 0, 0, (12 + k) * MS, app, -1)
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    run = only([out for out in script.tick() if out["kind"] == OUT_ACTION], verb=ACTION_EXEC)
    assert script.ids(run) == [1001, 1003]


def test_a_table_of_applications_that_is_full_falls_back_on_the_average():
    script = Script(policy="orloj", apps_max=2)
    script.hold()
    for number in range(6):
        engine.request_arrived(script.world, script.now, 1, number, script.model, 0, 0, 100 * MS, 50 + number, -1)
    tags = [int(request["tag"]) for request in script.world.requests[:6]]
    assert tags == [2, 3, 0, 0, 0, 0]
    assert script.world.counters[0]["apps"] == 2
    script.take()


def test_settings_follow_the_policy_unless_given():
    """The preset fills in what is None; what is given holds; nonsense is named."""
    assert Config(policy="clockwork-paper").client_ns == 5 * MS and Config().client_ns == 150 * US
    assert Config(policy="clockwork-paper", client_ns=7).client_ns == 7
    assert Config(policy="clipper", batch_delay_ns=2 * MS).batch_delay_ns == 2 * MS
    assert Config(policy="symphony").admission == 0 and Config(policy="symphony", admission=1).admission == 1
    with pytest.raises(CwdError, match="admission"):
        Config(admission=-1)
    with pytest.raises(CwdError, match="batch_delay_ns"):
        Config(batch_delay_ns="2")
