"""Batches as sets, against a naive twin, and what the policy does with programs whose executions depend on data."""

from __future__ import annotations

import random

import naive_sets as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script, only

from cwd.core import engine, histograms, sets
from cwd.core.world import ACTION_EXEC, BINS, HISTOGRAM, OUT_ACTION, OUT_REPLY, REQUEST_QUEUED, SETS
from cwd.errors import Code

SIZES = (1, 2, 4, 8)
#: the stretch of a bin, in the twin's units
STRETCHES = [(j + 1) / 8 for j in range(BINS)]

weights = st.dictionaries(st.integers(0, BINS - 1), st.integers(50, 4000), min_size=1, max_size=4)


def table_of(found):
    table = np.zeros(len(found), HISTOGRAM)
    for row, counts in zip(table, found, strict=True):
        for j, count in counts.items():
            row["counts"][j], row["sums"][j] = count, count * (j + 1) * histograms.STRETCH // 8
        row["total"] = row["counts"].sum()
    return table


def searched(found, requests, profiled):
    """The scratch after a search for [(application, slack)]."""
    scratch = np.zeros(1, SETS)[0]
    scratch["count"], scratch["tags"], scratch["n_batches"] = len(requests), len(found), len(profiled)
    for i, (app, slack) in enumerate(requests):
        scratch["rows"][i], scratch["slacks"][i], scratch["places"][i] = i, slack, app
    for app in range(len(found)):
        scratch["tag"][app], scratch["waiting"][app] = app, sum(1 for other, _ in requests if other == app)
    for b, (size, duration) in enumerate(profiled.items()):
        scratch["sizes"][b], scratch["profiled"][b] = size, duration
    sets.group(scratch, table_of(found))
    sets.search(scratch)
    return scratch


@settings(max_examples=60, deadline=None)
@given(found=st.lists(weights, min_size=1, max_size=4), data=st.data())
def test_the_best_set_is_as_good_as_the_naive_ones(found, data):
    """No worse than any neighbours of one group, no better than any of a run; and worth what it is said to be."""
    slacks = st.integers(-5, 300).map(lambda ms: ms * MS)
    requests = data.draw(st.lists(st.tuples(st.integers(0, len(found) - 1), slacks), min_size=1, max_size=12))
    requests.sort(key=lambda request: request[1])
    used = sorted({app for app, _ in requests})
    requests = [(used.index(app), slack) for app, slack in requests]
    found = [found[app] for app in used]
    profiled = {size: (3 + size) * 4 * MS for size in SIZES}
    scratch = searched(found, requests, profiled)
    group_of = {app: int(scratch["group"][app]) for app in range(len(found))}
    waiting = {g: {app: sum(1 for other, _ in requests if other == app) for app in group_of if group_of[app] == g}
               for g in set(group_of.values())}
    lists = {app: [counts.get(j, 0) for j in range(BINS)] for app, counts in enumerate(found)}
    chances = {g: naive.below(lists, of_group, BINS) for g, of_group in waiting.items()}
    single, every = naive.best(requests, group_of, chances, STRETCHES, profiled, 2.0 ** sets.HALF_LIFE_BITS)
    # chances are in 65536ths, rounded once for each factor; the decay goes in sixteenths of a half-life; of neighbours those
    # are taken that gain nearly as much as any
    said = int(scratch["best_worth"]) / 2.0 ** 30 / 2.0 ** 20
    assert single * 0.93 * (1 - 2.0 ** -sets.NEARLY_BITS) - 1e-10 <= said <= every * 1.05 + 1e-10
    if scratch["best_batch"] < 0:
        assert every < 1e-9
        return
    chosen = [requests[scratch["best"][c]] for c in range(scratch["best_rows"])]
    members = {g: sum(1 for app, _ in chosen if group_of[app] == g) for g in {group_of[app] for app, _ in chosen}}
    duration = int(scratch["profiled"][scratch["best_batch"]])
    true = naive.worth(naive.largest(chances, members), STRETCHES, [slack for _, slack in chosen], duration,
                       2.0 ** sets.HALF_LIFE_BITS)
    assert said <= true * 1.05 + 1e-10
    assert scratch["best_rows"] <= SIZES[scratch["best_batch"]]


@settings(max_examples=60, deadline=None)
@given(st.lists(weights, min_size=1, max_size=8))
def test_applications_of_like_means_are_one_group(found):
    scratch = searched(found, [(app, 100 * MS) for app in range(len(found))], {1: 3 * MS})
    means = [(app, int(histograms.middle(row))) for app, row in enumerate(table_of(found))]
    assert {app: int(scratch["group"][app]) for app, _ in means} == naive.groups_of(means)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, histograms.CERTAIN), st.integers(0, 64))
def test_powers_of_a_chance(chance, count):
    exact = (chance / histograms.CERTAIN) ** count * histograms.CERTAIN
    assert exact - 2 * count - 1 <= int(sets.raised(chance, count)) <= exact + 1


class Dynamic(Script):
    """One program whose executions take their profile times the longest of their requests' applications, by `times`."""

    def __init__(self, times, **config):
        # this host looks when an execution ends and not when it is asked to: late, but not so late that two are sent at once
        super().__init__(policy="cwd", requests_max=64, margin_max_ns=400 * US, **config)
        self.times, self.number = times, 0
        #: what the device's own clock says of an execution, from its profile and what it took: none
        self.own = lambda profiled_ns, took_ns: 0
        self.hold()

    def come(self, app, slo=200 * MS, size_class=0):
        self.number += 1
        return int(engine.request_arrived(
            self.world, self.now, 1, self.number, self.model, size_class, 0, slo, app, self.number))

    def rows(self, out):
        found, r = [], out["first"]
        while r != -1:
            found.append(r)
            r = int(self.world.requests[r]["next"])
        return found

    def apps(self, out):
        return [int(self.world.requests[r]["app"]) for r in self.rows(out)]

    def serve(self):
        """Issue and end one execution; the applications in it, [] if there is none."""
        runs = [out for out in self.tick() if out["kind"] == OUT_ACTION]
        if not runs:
            return []
        run = only(runs, verb=ACTION_EXEC)
        apps, begin = self.apps(run), self.now
        self.now += int({1: 3, 2: 4, 4: 6}[run["batch"]] * MS * max(self.times[app] for app in apps))
        device_ns = self.own({1: 3, 2: 4, 4: 6}[run["batch"]] * MS, self.now - begin)
        assert engine.action_done(
            self.world, self.now, run["action"], 0, begin, self.now, device_ns, run["rows"], -1, -1) == 0
        self.take()
        return apps

    def teach(self, rounds=200):
        dice = random.Random(3)
        for _ in range(rounds):
            for _ in range(1 + dice.randrange(3)):
                self.come(dice.choice(sorted(self.times)))
            while self.serve():
                pass
            self.now += 30 * MS
            self.tick()


def test_a_set_has_room_for_the_largest_of_its_requests():
    """Requests of two sizes: what runs is what was found to be best, all of it, and nobody stays behind marked."""
    world, dice, mixed = Dynamic({1: 1.0, 2: 8.0}), random.Random(5), 0
    world.teach()
    assert world.world.programs[0]["dynamic"] == 1
    for _ in range(60):
        for _ in range(6):
            world.come(dice.choice((1, 2)), slo=400 * MS, size_class=dice.randrange(2))
        while True:
            (run, *none) = [out for out in world.tick() if out["kind"] == OUT_ACTION] or [None]
            if run is None:
                break
            rows = [world.world.requests[r] for r in world.rows(run)]
            classes = {int(row["size_class"]) for row in rows}
            mixed += 1 if len(classes) > 1 else 0
            assert not none and run["size_class"] == max(classes)
            assert run["rows"] == len(rows) == world.world.sets[0]["best_rows"]
            waiting = world.world.requests[world.world.requests["state"] == REQUEST_QUEUED]
            assert not waiting["picked"].any()
            world.done(run, later=run["expected_ns"])
            world.take()
        world.now += 60 * MS
        world.tick()
    assert mixed > 10


def test_what_does_not_scatter_is_never_dynamic():
    world = Dynamic({1: 1.0, 2: 1.2})
    world.teach()
    assert world.world.programs[0]["dynamic"] == 0 and world.world.histograms["total"].sum() == 0


def test_the_devices_own_clock_decides_where_there_is_one():
    """What others do to a device that they share scatters only what the wall's clock says."""
    for own, dynamic in ((lambda profiled_ns, took_ns: profiled_ns, 0), (lambda profiled_ns, took_ns: took_ns, 1)):
        world = Dynamic({1: 1.0, 2: 8.0})
        world.own = own
        world.teach()
        assert world.world.programs[0]["dynamic"] == dynamic


def test_a_change_of_all_durations_does_not_make_a_program_dynamic():
    world = Dynamic({1: 1.0})
    for factor in (1.0, 3.0, 1.0):
        world.times = {1: factor}
        world.teach(60)
        assert world.world.programs[0]["dynamic"] == 0


def always_full(times, rounds):
    """Four requests at a time, of both applications: how many executions had one request."""
    world, alone = Dynamic(times), 0
    for _ in range(rounds):
        for app in (1, 2, 1, 2):
            world.come(app)
        while apps := world.serve():
            alone += 1 if len(apps) == 1 else 0
        world.now += 30 * MS
        world.tick()
    return world, alone


def test_a_program_is_known_as_dynamic_though_its_batches_all_take_as_long():
    world, _ = always_full({1: 1.0, 2: 8.0}, 150)
    assert world.world.programs[0]["dynamic"] == 1


def test_a_program_that_was_profiled_wrongly_runs_requests_alone_a_few_times_only():
    world, alone = always_full({1: 3.0, 2: 3.0}, 600)
    assert world.world.programs[0]["dynamic"] == 0 and 0 < alone < 200
    _, alone = always_full({1: 1.0, 2: 1.0}, 20)
    assert alone == 0


def test_applications_that_differ_are_not_mixed_when_time_is_short():
    world = Dynamic({1: 1.0, 2: 8.0})
    world.teach()
    assert world.world.programs[0]["dynamic"] == 1
    # 30 ms: four quick ones together take 6, with a slow one among them 48
    world.come(2, slo=35 * MS)
    for _ in range(4):
        world.come(1, slo=36 * MS)
    assert world.serve() == [1, 1, 1, 1]
    # 26 ms are left: the slow one, alone 24, is next
    assert world.serve() == [2]


def test_a_dynamic_program_refuses_nobody_who_may_be_quick_and_gives_up_who_cannot_be():
    world = Dynamic({1: 1.0, 2: 8.0})
    world.teach()
    assert world.come(1, slo=6 * MS) == 0 and world.serve() == [1]
    assert world.come(2, slo=12 * MS) == 0
    assert only(world.tick(), kind=OUT_REPLY)["status"] == Code.DEADLINE_EXPIRED


def test_nobody_is_turned_away_for_good_by_what_was_once_learned():
    """All that is known says that nobody can be in time, and is wrong."""
    world = Dynamic({1: 1.0, 2: 8.0})
    world.teach()
    long = 30 * histograms.STRETCH
    for row in world.world.histograms:
        if row["total"] > 0:
            row["counts"], row["sums"] = 0, 0
            row["counts"][histograms.bin_of(long)] = row["total"]
            row["sums"][histograms.bin_of(long)] = row["total"] * long
    assert world.world.programs[0]["dynamic"] == 1
    served = []
    for _ in range(300):
        world.come(1, slo=20 * MS)
        served.append(bool(world.serve()))
        world.now += 30 * MS
        world.tick()
        world.take()
    assert not any(served[:20])
    assert all(served[50:])


def test_a_program_that_stops_scattering_is_served_as_others_again():
    world = Dynamic({1: 1.0, 2: 8.0})
    world.teach()
    world.times = {1: 1.0, 2: 1.0}
    world.teach(3_000)
    assert world.world.programs[0]["dynamic"] == 0


@pytest.mark.parametrize("apps", [1, 2, 12])
def test_more_applications_than_are_told_apart(apps):
    """Every request is answered, whatever its application."""
    world = Dynamic({app: 1.0 + 3 * (app % 2) for app in range(apps)}, apps_max=4)
    world.teach(120)
    for app in range(apps):
        world.come(app, slo=1_000 * MS)
    served = []
    while run := world.serve():
        served += run
    assert sorted(served) == list(range(apps))
