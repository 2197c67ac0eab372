"""What policies learn, against naive twins: batch limits, rounds, histograms per application, scores."""

from __future__ import annotations

import random

import naive_learning as naive
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script, only

from cwd.core import engine, histograms
from cwd.core.policies import nexus, orloj
from cwd.core.world import ACTION_EXEC, BINS, HISTOGRAM, ODDS, OUT_ACTION
from cwd.errors import Code

#: these tests look when an execution ends and not when they are asked to: late, but not so late that two are sent at once
COARSE = dict(margin_max_ns=400 * US)
SMALL = settings(max_examples=50, deadline=None)
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}


def serve(script, took_ns):
    """End the one EXEC that a tick issues after `took_ns`; returns its record."""
    run = only([out for out in script.tick() if out["kind"] == OUT_ACTION], verb=ACTION_EXEC)
    begin = script.now
    script.now += took_ns
    assert engine.action_done(
        script.world, script.now, run["action"], 0, begin, script.now, 0, run["rows"], -1, -1) == 0
    return run


@SMALL
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=25))
def test_clipper_raises_its_limit_by_one_and_lowers_it_by_a_tenth(script):
    """Bursts of requests, batches that are in time or not: each batch has the rows that the twin's limit allows."""
    world, twin, number = Script(policy="clipper", pages=50, **COARSE), naive.NaiveAimd(4), 0
    world.hold()
    for burst, slow in script:
        for _ in range(burst):
            number += 1
            assert world.ask(number, slo=50 * MS) == 0
        while burst > 0:
            run = serve(world, 51 * MS if slow else 2 * MS)
            assert run["rows"] == min(burst, twin.rows())
            twin.learn(run["rows"], 51 * MS if slow else 2 * MS, 50 * MS)
            # what is overdue by now is given up
            burst = 0 if slow else burst - run["rows"]
            world.take()
        world.now += 100 * MS
        world.tick()


def test_a_delayed_batch_waits_for_more_but_not_longer():
    """A limit of 4: two requests wait for the delay, four do not wait."""
    world = Script(policy="clipper", batch_delay_ns=5 * MS)
    world.hold()
    world.world.memory["limit"] = 4 * 1024
    world.ask(1)
    world.now += MS
    world.ask(2)
    assert world.tick() == []
    assert engine.next_timer(world.world, world.now) == world.now + 4 * MS
    run = only(world.tick(later=4 * MS), verb=ACTION_EXEC, rows=2)
    world.done(run)
    world.tick()
    for number in range(4):
        world.ask(10 + number)
    only(world.tick(), verb=ACTION_EXEC, rows=4)


def test_the_line_of_latency_comes_to_rest_at_the_99th_percentile():
    """Latencies of 10 ms + 1 ms per row, up to a fifth more: the limit is where all but one in a hundred are in time."""
    dice = random.Random(1)
    world = Script(policy="clipper-quantile", requests_max=64)
    world.hold()
    for number in range(2000):
        for k in range(dice.choice((1, 2, 4))):
            world.ask(4 * number + k, slo=16_000 * US)
        serve(world, (10 * MS + MS * (1 if number < 1000 else 2)) + dice.randrange(2 * MS))
        world.now += 40 * MS
        world.tick()
    # 12 to 14 ms whatever the size: a line that is flat and near the top
    row = world.world.memory[0]
    assert 13 * MS < row["small_ns"] < 15 * MS and 13 * MS < row["large_ns"] < 15 * MS
    assert row["limit"] == 4 * 1024


@SMALL
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([2, 4, 30, 49])), max_size=25), st.sampled_from([4, 5, 50]))
def test_clippers_line_moves_as_its_twin_says(bursts, slo_ms):
    """Bursts of requests whose executions take so many ms; the SLO for the limit may be less than they are given."""
    script, twin, number = Script(policy="clipper-quantile", pages=50, **COARSE), naive.NaiveLine(TOOK), 0
    script.hold()
    for burst, took in bursts:
        for _ in range(burst):
            number += 1
            assert script.ask(number, slo=500 * MS) == 0
        script.world.requests["slo_ns"] = slo_ms * MS
        while burst > 0:
            run = serve(script, took * MS)
            assert run["rows"] == min(burst, twin.limit)
            twin.learn(run["batch"], took * MS, slo_ms * MS)
            row = script.world.memory[0]
            assert (int(row["small_ns"]), int(row["large_ns"])) == (twin.small, twin.large)
            burst -= run["rows"]
            script.take()
        script.now += 100 * MS
        script.tick()


sessions = st.lists(st.tuples(st.integers(1, 40), st.integers(8, 60)), min_size=1, max_size=5)


@SMALL
@given(sessions)
def test_nexus_packs_rounds_as_its_twin_does(sessions):
    """Sessions of a gap and an SLO each; the last used is packed first."""
    script = Script(policy="nexus", pages=60)
    models = [script.model, *(script.add() for _ in sessions[1:])]
    slack = 200 * US + 400 * US + 200 * US
    for model in models:
        script.hold(model)
    held = int(engine.lane_reserve(script.world, script.now, 0, 500 * MS))
    for m, (gap, slo) in enumerate(sessions):
        script.ask(m, slo=slo * MS, model=models[m])
        script.world.memory[m]["gap_ns"] = gap * MS
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    script.tick()
    order = [(m, sessions[m][0] * MS, sessions[m][1] * MS - slack) for m in reversed(range(len(sessions)))]
    quotas, cycle = naive.pack(TOOK, order)
    assert cycle is None or script.world.gpus[0]["cycle_ns"] == cycle
    found = {int(copy["model"]): int(copy["quota"]) for copy in script.world.copies
             if copy["state"] and copy["packed_ns"] == script.now and copy["quota"]}
    assert found == quotas
    assert nexus.EPOCH_NS > 500 * MS


def histogram(weights):
    row = np.zeros(1, HISTOGRAM)[0]
    for j, weight in weights:
        row["counts"][j] += weight
        row["sums"][j] += weight * (100 + 50 * j)
    row["total"] = row["counts"].sum()
    return row


some_weights = st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(1, 5000)), min_size=1, max_size=8)


@SMALL
@given(some_weights, st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(0, 1024)), max_size=60), st.booleans())
def test_a_histogram_learns_as_its_twin_does(weights, learned, full):
    row = histogram([(j, 40 * weight) for j, weight in weights] if full else weights)
    twin = naive.NaiveHistogram((int(x) for x in row["counts"]), (int(x) for x in row["sums"]))
    for number, (j, share) in enumerate(learned):
        histograms.add(row, j, 100 + 50 * j, share)
        twin.add(j, 100 + 50 * j, share)
        assert row["counts"].tolist() == twin.counts and row["sums"].tolist() == twin.sums
        assert row["total"] == sum(twin.counts) and row["version"] == number + 1
    if row["total"] > 0:
        assert histograms.middle(row) == sum(twin.sums) // sum(twin.counts)
        assert histograms.least(row) == twin.least()


@SMALL
@given(st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 60)), min_size=1, max_size=12))
def test_what_a_batch_took_is_shared_out_as_the_twin_does(bursts):
    """Bursts of requests by application, and what their batches take, ms."""
    script, number = Script(policy="orloj", pages=50, **COARSE), 0
    script.hold()
    twin = naive.NaiveApplications(BINS, int(histograms.bin_of(4096)), 4096)
    for apps, took in bursts:
        for app in apps:
            number += 1
            assert engine.request_arrived(script.world, script.now, 1, number, script.model, 0, 0, 900 * MS, app, -1) == 0
            twin.came(app)
        while script.world.models[0]["queued"] > 0:
            run = only([out for out in script.tick() if out["kind"] == OUT_ACTION], verb=ACTION_EXEC)
            taken, r = [], run["first"]
            while r != -1:
                taken.append(int(script.world.requests[r]["app"]))
                r = int(script.world.requests[r]["next"])
            begin, script.now = script.now, script.now + took * MS
            engine.action_done(script.world, script.now, run["action"], 0, begin, script.now, 0, run["rows"], -1, -1)
            script.take()
            stretch = took * MS * 4096 // TOOK[run["batch"]]
            twin.ran(taken, int(histograms.bin_of(stretch)), stretch)
        found = {app: script.world.histograms[2 + i] for i, app in enumerate(twin.apps)}
        for row, other in ((script.world.histograms[0], twin.average), *((found[app], twin.apps[app]) for app in twin.apps)):
            assert row["counts"].tolist() == other.counts and row["sums"].tolist() == other.sums


@SMALL
@given(st.lists(st.sampled_from([2, 3, 4, 5, 9]), min_size=1, max_size=24), st.integers(0, 40))
def test_a_program_is_dynamic_while_its_executions_scatter_as_the_twin_says(took_ms, before):
    """Requests one after another that took so many ms, from so much scatter on, in steps of 128."""
    script = Script(policy="cwd", pages=50, **COARSE)
    script.hold()
    twin, program = naive.NaiveScatter(), script.world.programs[0]
    program["scatter"] = twin.scatter = 128 * before
    program["dynamic"] = twin.dynamic = int(twin.scatter >= 4096)
    for number, took in enumerate(took_ms):
        assert script.ask(number, slo=400 * MS) == 0
        serve(script, took * MS)
        script.take()
        twin.ran(took * MS)
        assert (int(program["scatter"]), bool(program["dynamic"])) == (twin.scatter, twin.dynamic)


@SMALL
@given(some_weights, some_weights, st.sampled_from([1, 2, 4, 8, 16]))
def test_the_odds_of_a_batch_are_those_of_the_largest_of_its_members(own, others, size):
    mine, rest, odds = histogram(own), histogram(others), np.zeros(1, ODDS)[0]
    histograms.combine(mine, rest, odds, size)
    exact = naive.maximum([int(x) for x in mine["counts"]], [int(x) for x in rest["counts"]], size)
    count = int(odds["count"])
    assert odds["chances"][:count].sum() == histograms.CERTAIN
    found = {int((odds["stretches"][i] - 100) // 50): int(odds["chances"][i]) for i in range(count)}
    for j in range(BINS):
        # one rounding for each factor
        assert abs(found.get(j, 0) - float(exact[j]) * histograms.CERTAIN) <= 2 * (size + 1)
    mean = sum(float(exact[j]) * (100 + 50 * j) for j in range(BINS))
    assert abs(odds["mean"] - mean) <= 2 + mean * size / 500


@SMALL
@given(some_weights, st.integers(-20, 4_000), st.integers(1, 40))
def test_a_score_is_the_value_of_not_waiting_per_time(weights, slack_ms, profiled_ms):
    row, odds = histogram(weights), np.zeros(1, ODDS)[0]
    histograms.combine(row, row, odds, 1)
    outcomes = [(int(odds["chances"][i]) / 65536, int(odds["stretches"][i]) * profiled_ms / 4096)
                for i in range(int(odds["count"]))]
    exact = naive.value(outcomes, slack_ms, 2**30 / MS) / 1000 * 2.0**36
    # the half-life goes in sixteenths, the mean in whole microseconds
    found = int(orloj.score(odds, profiled_ms * MS, slack_ms * MS))
    mean_us = sum(chance * latency for chance, latency in outcomes) * 1000
    tolerance = 0.05 + 2 / mean_us
    assert found <= exact * (1 + tolerance) + 1 and found >= exact * (1 - tolerance) - 1


def test_bins_are_in_order_and_an_eighth_of_an_octave_wide():
    bins = [int(histograms.bin_of(stretch)) for stretch in range(0, 20 * 4096, 7)]
    assert bins == sorted(bins) and bins[0] == 0 and bins[-1] == BINS - 1
    for stretch in (1024, 2048, 4096, 8192, 32768):
        assert histograms.bin_of(2 * stretch) - histograms.bin_of(stretch) == (8 if stretch < 32768 else 7)


members = st.lists(st.tuples(st.integers(300, 30_000), st.integers(1, histograms.SAMPLE)), min_size=1, max_size=12)


@SMALL
@given(members, st.integers(1, 200))
def test_the_mean_of_a_bin_stays_in_the_bin(found, rounds):
    """However often a histogram was added to and halved: sums go with counts."""
    row = np.zeros(1, HISTOGRAM)[0]
    for _ in range(rounds):
        for stretch, share in found:
            histograms.add(row, histograms.bin_of(stretch), stretch, share)
    assert row["total"] == row["counts"].sum() and (row["sums"][row["counts"] == 0] == 0).all()
    for j in range(BINS):
        if row["counts"][j] > 0:
            mine = [stretch for stretch, _ in found if histograms.bin_of(stretch) == j]
            assert min(mine) * 63 // 64 <= row["sums"][j] // row["counts"][j] <= max(mine)


def test_what_batches_took_tells_the_applications_apart():
    """Two applications of 1 and 4 times the profile, always mixed: the histograms find who it is that takes long."""
    dice = random.Random(5)
    script = Script(policy="orloj", requests_max=64)
    script.hold()
    for number in range(400):
        rows = [dice.randrange(3) == 0 for _ in range(4)]
        for k, long in enumerate(rows):
            engine.request_arrived(
                script.world, script.now, 1, 4 * number + k, script.model, 0, 0, 1000 * MS, 200 + long, 1)
        while script.world.models[0]["queued"] > 0:
            run = only([out for out in script.tick() if out["kind"] == OUT_ACTION], verb=ACTION_EXEC)
            apps, r = [], run["first"]
            while r != -1:
                apps.append(int(script.world.requests[r]["app"]))
                r = int(script.world.requests[r]["next"])
            begin = script.now
            script.now += TOOK[run["batch"]] * (4 if 201 in apps else 1)
            engine.action_done(
                script.world, script.now, run["action"], 0, begin, script.now, 0, run["rows"], -1, -1)
            script.take()
        script.now += 50 * MS
        script.tick()
    rows = {app: script.world.histograms[2 + i] for i, app in enumerate((200, 201))}
    means = sorted(int(row["sums"].sum()) / int(row["counts"].sum()) / 4096 for row in rows.values())
    assert 1.0 <= means[0] < 1.25 and 3.4 < means[1] <= 4.0
