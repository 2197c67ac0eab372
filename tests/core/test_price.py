"""The price of GPU time, the floor, and the shortlist: against their twins, and what they do for a policy."""

from __future__ import annotations

import random
from fractions import Fraction

import naive_prices as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script, only

from cwd.core import batches as of_model
from cwd.core import engine, floor, memory, offers, price, shortlist
from cwd.core.world import ACTION_EXEC, OUT_ACTION, OUT_REPLY, SHORTLIST, SLOT_MASK, Config
from cwd.errors import Code, CwdError
from cwd.jit import lean_kernel

SMALL = settings(max_examples=80, deadline=None)
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}
MODELS = 3

batches = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(1, 4), st.integers(1, 16)), max_size=12)


@SMALL
@given(batches, st.integers(0, 20))
def test_the_shortlist_chooses_as_its_twin_does(batches, start):
    table = np.zeros(16, SHORTLIST)
    count = 0
    for i, (latest, took, copies, rows) in enumerate(batches):
        count = shortlist.put(table, count, i, 0, 0, rows, took, latest, copies)
    chosen = int(shortlist.choose(table, count, start))
    twin = naive.next_to_run([(latest, took, took // copies, rows) for latest, took, copies, rows in batches], start)
    assert (int(table[chosen]["copy"]) if chosen >= 0 else None) == twin


@pytest.mark.parametrize(("copies", "chosen"), [((1, 1), 1), ((1, 2), 0), ((2, 1), 1), ((2, 2), 0)])
def test_of_equals_that_cannot_both_start_in_time_the_one_goes_that_can_wait_unless_it_may_run_elsewhere(copies, chosen):
    """The first has to start at once; the second within 3, when half of the first's 10 are not over either."""
    table = np.zeros(2, SHORTLIST)
    for i in range(2):
        assert shortlist.put(table, i, i, 0, 0, 4, 10, 3 * i, copies[i]) == i + 1
    assert int(shortlist.choose(table, 2, 0)) == chosen


def test_a_full_shortlist_takes_no_more():
    table = np.zeros(2, SHORTLIST)
    count = 0
    for i in range(3):
        count = shortlist.put(table, count, i, 0, 0, 1, 1, 10 - i, 1)
    assert count == 2 and [int(row["copy"]) for row in table] == [1, 0]


@SMALL
@given(st.integers(1 << 10, 1 << 34), st.integers(1, 32), st.integers(1, 1 << 33), st.integers(0, 1 << 30))
def test_the_price_moves_as_its_twin_does(before, rows, batch_ns, idle_ns):
    assert price.moved_ns(before, rows, batch_ns, idle_ns) == naive.price_after(
        before, rows, batch_ns, idle_ns, price.DEARER, 1 << price.DOUBLING_BITS, price.LONGEST_NS, 10)


def test_the_price_of_what_costs_the_same_never_falls_further_below_than_is_forgiven():
    """Executions of 17.3 ms for 16 requests each, from twice that price: it goes down to their cost and stays there."""
    now, cost, lowest = 2 * 17_300_000 // 16, 17_300_000 // 16, 1 << 62
    for _ in range(2_000):
        now = int(price.moved_ns(now, 16, 17_300_000, 0))
        lowest = min(lowest, now)
    assert lowest <= cost < lowest + (lowest >> price.SWING_BITS)


def test_the_price_settles_where_the_dear_have_their_part_of_the_time():
    """Requests cost 1 to 2 ms alike often, with time alike: about one in DEARER costs more than the price; idle time
    raises it over all of them, to twice the dearest at most."""
    chance, now = random.Random(5), 5 * MS
    for _ in range(20_000):
        now = int(price.moved_ns(now, 1, chance.randrange(MS, 2 * MS), 0))
    assert 1.9 * MS < now < 2.02 * MS
    for _ in range(2_000):
        now = int(price.moved_ns(now, 1, chance.randrange(MS, 2 * MS), MS))
    assert 3 * MS < now < 4.1 * MS


@SMALL
@given(st.integers(0, 1 << 40), st.integers(0, 1 << 28))
def test_work_asked_for_fades_evenly(work_ns, age_ns):
    left = Fraction(max((1 << price.DEMAND_BITS) - age_ns, 0), 1 << price.DEMAND_BITS) * work_ns
    assert 0 <= price.faded_ns(work_ns, age_ns) - left < 1026


def test_what_is_asked_for_settles_at_its_rate():
    """1 ms of work every 2 ms is half a GPU."""
    demand_ns = 0
    for _ in range(1_000):
        demand_ns = int(price.faded_ns(demand_ns, 2 * MS)) + MS
    assert demand_ns == pytest.approx((1 << price.DEMAND_BITS) / 2, rel=0.02)


@lean_kernel
def busy(world, now_ns):
    return price.busy(world, now_ns)


@SMALL
@given(st.integers(1, 4), st.integers(0, 1 << 30), st.integers(0, 1 << 28))
def test_gpus_are_busy_if_a_sixth_of_their_time_is_not_left(gpus, demand_ns, age_ns):
    script = Script(policy="cwd", gpus=gpus)
    script.world.counters["demand_ns"], script.world.counters["asked_ns"] = demand_ns, script.now - age_ns
    left = max(Fraction((1 << price.DEMAND_BITS) - age_ns, 1 << price.DEMAND_BITS), Fraction(0)) * demand_ns
    limit = Fraction(gpus << price.DEMAND_BITS) * 5 / 6
    if abs(left - limit) > 1026:
        assert bool(busy(script.world, script.now)) == (left > limit)


def run_next(arrivals, price_ns, mood, apart_us):
    """The first EXEC of `cwd` as (model, batch, ids) after requests (model, slo) came so far apart while the lane was
    taken, and what its twin would run."""
    script = Script(pages=50, policy="cwd", admission=0, objective="goodput")
    models = [script.model, *(script.add() for _ in range(MODELS - 1))]
    for model in models:
        script.hold(model)
    held = int(engine.lane_reserve(script.world, script.now, 0, 450 * MS))
    queues, last = {model: [] for model in range(MODELS)}, {}
    for number, (model, slo_us) in enumerate(arrivals):
        script.now += apart_us * US
        script.ask(number, slo=slo_us * US, model=models[model])
        queues[model].append((script.now + slo_us * US - 200 * US - 400 * US, script.now, number))
        last[model] = script.now
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    script.world.memory["gap_ns"] = gap = (1 + len(arrivals) % 4) * MS
    script.world.counters["price_ns"], script.world.counters["usual_ns"] = price_ns, 500 * US
    script.world.counters["demand_ns"] = (1 << price.DEMAND_BITS) * ("eager", "busy", "full").index(mood) * 15 // 16
    script.world.counters["asked_ns"] = script.now
    for queue in queues.values():
        queue.sort(key=lambda r: (r[0], r[1]))
        while queue and queue[0][0] - TOOK[1] - 200 * US < script.now:
            queue.pop(0)
            mood = "short"
    runs = [out for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]
    chosen = (models.index(runs[0]["model"]), runs[0]["batch"], tuple(script.ids(runs[0]))) if runs else None
    gaps = {model: max(gap, script.now - at) for model, at in last.items()}
    return chosen, naive.priced(queues, script.now + 200 * US, TOOK, price_ns, gaps, 500 * US, mood)


arrivals = st.lists(st.tuples(st.integers(0, MODELS - 1), st.integers(3_700, 50_000)), min_size=1, max_size=12)


@SMALL
@given(arrivals, st.integers(1, 4 * MS), st.sampled_from(["eager", "busy", "full"]), st.sampled_from([100, 1_000, 3_000]))
def test_cwd_chooses_as_its_twin_does(arrivals, price_ns, mood, apart_us):
    chosen, twin = run_next(arrivals, price_ns, mood, apart_us)
    assert (chosen in twin) if twin else chosen is None


@lean_kernel
def ripe_ns(world, now_ns, m, first, batch_ns, start_ns, patient):
    return offers.ripe_ns(world, now_ns, 0, m, first, 1, batch_ns, start_ns, patient)


@SMALL
@given(st.integers(20, 200), st.integers(0, 5))
def test_without_patience_the_first_waits_for_half_of_the_time_that_it_can(slo_ms, waited_ms):
    """One request of a model that is asked for each millisecond: a batch of two, which is denser, would fill in time."""
    script = Script(pages=50, policy="cwd")
    script.hold(script.model)
    came_ns = script.now
    assert script.ask(1, slo=slo_ms * MS, model=script.model) == 0
    script.world.memory["gap_ns"] = MS
    script.now += waited_ms * MS
    m = script.model & SLOT_MASK
    first = int(script.world.models[m]["queue_head"])
    until_ns, sooner_ns = (int(ripe_ns(script.world, script.now, m, first, TOOK[1], script.now, patient))
                           for patient in (True, False))
    assert script.now < until_ns < came_ns + slo_ms * MS - TOOK[1]
    assert sooner_ns == came_ns + (until_ns - came_ns) // 2


@lean_kernel
def paid_ns(world, rows, batch_ns, idle_ns):
    price.paid(world, rows, batch_ns, idle_ns)
    return price.each_ns(world)


def test_what_goes_by_for_each_that_is_served_counts_idle_time():
    """Turns of 4 requests in 6 ms and one in 3 ms after 6 ms without work: 15 ms for 5 of them, whoever was last."""
    script = Script(policy="cwd")
    for turn in range(400):
        each_ns = int(paid_ns(script.world, *((4, 6 * MS, 0) if turn % 2 else (1, 3 * MS, 6 * MS))))
    assert each_ns == pytest.approx(3 * MS, rel=0.1)


@SMALL
@given(st.lists(st.tuples(st.integers(1, 8_000), st.booleans()), min_size=1, max_size=60), st.integers(1, 6), st.integers(1, 2))
def test_how_soon_requests_follow_and_how_many_are_lost_is_as_in_the_twin(arrivals, each_ms, copies):
    script = Script(pages=50, policy="cwd", gpus=2, requests_max=128)
    for gpu in range(copies):
        script.hold(gpu=gpu)
    script.world.counters["spent_ns"], script.world.counters["spent_rows"] = each_ms * MS, 1 << price.ROWS_BITS
    held = [int(engine.lane_reserve(script.world, script.now, gpu, 600 * MS)) for gpu in range(2)]
    most_ns, soon, waited, lost, ends = each_ms * MS // copies, [], [], [], []
    for number, (gap_us, late) in enumerate(arrivals):
        script.now += gap_us * US
        if number > 0:
            soon.append(memory.ONE if gap_us * US < most_ns else 0)
            waited.append(min(gap_us * US, most_ns))
        code = script.ask(number, slo=5 * MS if late else 2_000 * MS)
        assert code == (Code.DEADLINE_UNREACHABLE if late else 0)
        (lost if late else ends).append(memory.ONE)
    row = script.world.memory[script.model & SLOT_MASK]
    assert (int(row["soon"]), int(row["waited_ns"])) == (naive.smoothed(soon), naive.smoothed(waited))
    assert int(row["lost"]) == naive.smoothed(lost) and len(lost) + len(ends) == len(arrivals) and len(held) == 2


@lean_kernel
def company_ns(world, now_ns, first, rows, b):
    took_ns = (3 * MS, 4 * MS, 6 * MS)[b]
    return offers.company_ns(world, now_ns, 0, world.requests[first]["model"], first, rows, took_ns)


@lean_kernel
def latest_ns(world, now_ns, first, b):
    return of_model.wait_until_ns(world, now_ns, 0, first, b)


@SMALL
@given(st.integers(1, 4), st.integers(0, 8_000), st.integers(0, memory.ONE), st.integers(0, 4_000),
       st.sampled_from([0, memory.ONE // 32, memory.ONE // 32 + 1, memory.ONE]), st.integers(20, 40))
def test_a_batch_waits_for_company_as_its_twin_does(rows, each_us, soon, waited_us, lost, slo_ms):
    script = Script(pages=50, policy="cwd")
    script.hold()
    for number in range(rows):
        assert script.ask(number, slo=slo_ms * MS) == 0
    script.world.counters["spent_ns"], script.world.counters["spent_rows"] = each_us * US, 1 << price.ROWS_BITS
    row = script.world.memory[script.model & SLOT_MASK]
    row["soon"], row["waited_ns"], row["lost"] = soon, waited_us * US, lost
    first = int(script.world.models[script.model & SLOT_MASK]["queue_head"])
    b = (rows + 1) // 2 if rows < 4 else 2
    latest = {size: int(latest_ns(script.world, script.now, first, i)) for i, size in enumerate(TOOK)}
    twin = naive.company(rows, (1, 2, 4)[b], TOOK, each_us * US, (Fraction(soon, memory.ONE), waited_us * US),
                         Fraction(lost, memory.ONE), script.now, latest)
    assert int(company_ns(script.world, script.now, first, rows, b)) == (twin or 0)


def with_company(lost, waited_ms):
    """A world in which the GPU has nothing to do but one request that just came, to a model whose requests follow soon."""
    script = Script(pages=50, policy="cwd")
    script.hold()
    script.world.counters["spent_ns"], script.world.counters["spent_rows"] = 5 * MS, 1 << price.ROWS_BITS
    row = script.world.memory[script.model & SLOT_MASK]
    row["soon"], row["waited_ns"], row["lost"] = memory.ONE, waited_ms * MS, lost
    assert script.ask(1, slo=30 * MS) == 0
    return script


@pytest.mark.parametrize(("lost", "waited_ms"), [(0, 1), (memory.ONE // 32, 1), (memory.ONE // 2, 4)])
def test_nobody_waits_for_company_where_nobody_is_lost_or_the_next_comes_late(lost, waited_ms):
    assert only(with_company(lost, waited_ms).tick(), verb=ACTION_EXEC, rows=1)


def test_who_waits_for_company_goes_with_it_and_alone_after_a_silence():
    """A request is worth 5 ms, of which a batch of two takes 1 ms longer: 4 ms after the last that came it is over, less the
    way there."""
    for others in (0, 1, 2):
        script = with_company(memory.ONE // 2, 1)
        assert script.tick() == []
        for number in range(others):
            script.now += 2 * MS
            assert script.ask(2 + number, slo=30 * MS) == 0 and script.tick() == []
        look_ns = int(engine.next_timer(script.world, script.now))
        # of three, who are in a batch of four already, the next one takes nothing more
        assert look_ns == script.now + (5 if others == 2 else 4) * MS - 200 * US
        assert only(script.tick(later=look_ns - script.now), verb=ACTION_EXEC, rows=1 + others)
    script = with_company(memory.ONE // 2, 1)
    for number in range(3):
        assert script.ask(2 + number, slo=30 * MS) == 0
    assert only(script.tick(), verb=ACTION_EXEC, rows=4)


class Books:
    """What one model is owed, from the records alone."""

    def __init__(self):
        self.share = self.owed = 0

    def asked(self):
        self.owed = min(self.owed + self.share * floor.PART // floor.PARTS, floor.OWED_MAX * floor.ONE)

    def read(self, records):
        """Executions take one per request off, outcomes move the share; returns the executions."""
        for out in records:
            if out["kind"] == OUT_REPLY:
                self.share += ((floor.ONE if out["status"] == Code.OK else 0) - self.share) >> floor.SHARE_BITS
            elif out["kind"] == OUT_ACTION:
                self.owed = max(self.owed - out["rows"] * floor.ONE, -floor.AHEAD_MAX * floor.ONE)
        return [out for out in records if out["kind"] == OUT_ACTION]


@SMALL
@given(st.lists(st.sampled_from(["ask", "late", "run"]), min_size=1, max_size=60))
def test_what_a_model_is_owed_is_as_in_the_books(steps):
    """Arrivals add a part of the overall share, executions take one per request off, outcomes move the share."""
    script, books = Script(pages=50, policy="cwd", requests_max=128), Books()
    script.hold()
    for number, step in enumerate(steps):
        if step == "run":
            for out in books.read(script.tick()):
                script.done(out)
        else:
            held = int(engine.lane_reserve(script.world, script.now, 0, 450 * MS)) if step == "late" else -1
            books.asked()
            assert script.ask(number, slo=500 * MS if step == "ask" else 10 * MS) in (0, Code.DEADLINE_UNREACHABLE)
            if held >= 0:
                engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
        books.read(script.take())
        assert (int(script.world.counters[0]["share"]), int(script.world.memory[0]["owed"])) == (books.share, books.owed)


def test_a_model_that_is_owed_goes_before_what_is_cheaper():
    """Two models with full batches; the one that is owed runs first, with the goodput objective the first to start."""
    for objective, first in (("fair", 1), ("goodput", 0)):
        script = Script(pages=50, policy="cwd", objective=objective)
        models = [script.model, script.add()]
        for model in models:
            script.hold(model)
        held = int(engine.lane_reserve(script.world, script.now, 0, 100 * MS))
        for number in range(8):
            script.ask(number, slo=(200 + 50 * (number % 2)) * MS, model=models[number % 2])
        script.world.memory[1]["owed"] = floor.ONE
        script.world.counters["price_ns"] = 10 * MS
        engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
        run = only([out for out in script.tick() if out["kind"] == OUT_ACTION], rows=4)
        assert models.index(run["model"]) == first


def test_a_model_that_ran_out_of_turn_does_not_hide_those_behind_it():
    """Three models with full batches: the second is owed most and runs first, then the third, before the first in line."""
    script = Script(pages=50, policy="cwd")
    models = [script.model, script.add(), script.add()]
    for model in models:
        script.hold(model)
    held = int(engine.lane_reserve(script.world, script.now, 0, 100 * MS))
    for number in range(12):
        script.ask(number, slo=(200 + 50 * (number % 3)) * MS, model=models[number % 3])
    script.world.counters["price_ns"] = 10 * MS
    script.world.memory["owed"][:3] = [0, 2 * floor.ONE, floor.ONE]
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    order, out = [], script.tick()
    while len(order) < 3:
        run = only([record for record in out if record["kind"] == OUT_ACTION], rows=4)
        order.append(models.index(run["model"]))
        script.done(run)
        out = script.take() + script.tick()
    assert order == [1, 2, 0]


def test_who_is_owed_or_about_worth_the_price_is_let_in_where_there_is_no_plan():
    """The GPU has work for longer than the deadline: refused, unless the model is owed, or no dearer than what is served: a
    request costs 1.5 ms in a batch of 4, and a price of 1.48 ms is not a 64th below that."""
    late = Code.DEADLINE_UNREACHABLE
    for owed, price_ns, code in ((0, 0, late), (floor.ONE, 0, 0), (0, 4 * MS, 0), (0, 1_480 * US, 0), (0, 1_470 * US, late)):
        script = Script(pages=50, policy="cwd")
        other = script.add()
        script.hold()
        script.hold(other)
        for number in range(20):
            assert script.ask(number, slo=400 * MS, model=other) == 0
        engine.lane_reserve(script.world, script.now, 0, 20 * MS)
        script.world.memory[0]["owed"] = owed
        script.world.counters["price_ns"] = price_ns
        script.world.counters["share"] = 0
        assert script.ask(50, slo=21 * MS) == code


def test_an_objective_has_a_name():
    assert Config(policy="cwd").objective == "fair"
    with pytest.raises(CwdError, match="objective"):
        Config(policy="cwd", objective="speed")
