"""Copies ahead of need: how work fades, what a copy is worth and who leaves, when a model gets another copy, what loads first."""

from __future__ import annotations

import naive_copies as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, Script

from cwd.core import engine, memory, worth
from cwd.core.check import members
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, COPY_READY, NONE, OUT_ACTION

SECOND = 1_000 * MS


def actions(records, verb):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == verb]


@given(st.lists(st.tuples(st.integers(0, 30 * SECOND), st.integers(1, 100 * MS)), min_size=1, max_size=30))
def test_work_fades_as_the_naive_twin_says(pieces):
    world, twin, now = Script(policy="cwd").world, naive.NaiveWork(), 0
    for gap, piece in pieces:
        now += gap
        assert memory.work_ns(world, now, 0) == twin.at(now) >= 0
        memory.worked(world, now, 0, piece)
        twin.add(now, piece)
    assert memory.work_ns(world, now, 0) >= pieces[-1][1]
    assert memory.work_ns(world, now + (61 << memory.WORK_BITS), 0) == 0


def test_what_comes_often_fades_all_the_same():
    """A millisecond of work each 5 ms, so 200 ms a second, comes to at most 17.2 s of it, however long that lasts."""
    world = Script(policy="cwd").world
    for k in range(20_000):
        memory.worked(world, k * 5 * MS, 0, MS)
    assert 12 * 200 * MS < memory.work_ns(world, 100 * SECOND, 0) < 18 * 200 * MS


def test_of_several_copies_each_is_worth_less_than_its_share():
    values = [int(worth.share_ns(1 << 40, copies)) for copies in range(1, 50)]
    assert values[0] == 1 << 40 and all(a >= 2 * b for a, b in zip(values, values[1:])) and values[-1] == 0


def naive_worth(world, now, copy):
    """What a copy is worth by its model's rows, with executions of 3 ms and LOADs of 10."""
    model, row = world.models[world.copies[copy]["model"]], world.memory[world.copies[copy]["model"]]
    done = naive.NaiveWork()
    done.left, done.since = int(row["work_ns"]), int(row["faded_ns"])
    value = max(done.at(now), naive.rare(3 * MS, now - int(row["arrived_ns"])))
    return naive.per_page(naive.share(value, int(model["copies_count"])), 10 * MS, int(model["pages"]))


def leavers(world):
    """The copies of GPU 0 that may leave, from the one used longest ago on."""
    found, copy = [], int(world.gpus[0]["lru_first"])
    while copy != NONE:
        row = world.copies[copy]
        if row["state"] == COPY_READY and row["running"] == 0 and world.models[row["model"]]["queued"] == 0:
            found.append(copy)
        copy = int(row["lru_next"])
    return found


def naive_victim(world, now, limit):
    """The copy of GPU 0 that may leave and is worth least, the first of equals from the one used longest ago; -1: none."""
    found = leavers(world)
    worths = [naive_worth(world, now, copy) for copy in found]
    assert worths == [worth.of_copy(world, now, copy) for copy in found]
    return found[worths.index(min(worths))] if found and min(worths) < limit else NONE


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200), st.booleans(), st.booleans()), min_size=1, max_size=6),
       st.sampled_from([1, 10 ** 9, 10 ** 12, 1 << 62]))
def test_the_cheapest_leaves(models, limit):
    """Models by seconds since their last request, ms of work, whether there is a second copy, and a queued request."""
    script = Script(policy="cwd", gpus=2, pages=50)
    script.now += 100 * SECOND
    for silent, work, twice, queued in models:
        model = script.add()
        script.hold(model)
        if twice:
            script.hold(model, gpu=1)
        if queued:
            assert script.ask(model & 255, model=model, slo=10 * SECOND) == 0
        row = script.world.memory[model & 255]
        row["arrived_ns"], row["work_ns"], row["faded_ns"] = script.now - silent * SECOND, work * MS, script.now
    assert worth.cheapest(script.world, script.now, 0, limit) == naive_victim(script.world, script.now, limit)
    room = int(script.world.gpus[0]["pages_free"]) + sum(
        int(script.world.copies[copy]["pages"]) for copy in leavers(script.world)
        if naive_worth(script.world, script.now, copy) < limit)
    for pages in (1, room - 1, room, room + 1):
        assert worth.could_free(script.world, script.now, 0, pages, limit) == (pages <= room)


def test_the_only_copy_of_a_rare_model_outlasts_the_second_of_a_busier_one():
    script = Script(policy="cwd", gpus=2, pages=50)
    rare, busy = script.add(), script.add()
    for model, gpu in ((rare, 0), (busy, 0), (busy, 1)):
        script.hold(model, gpu)
    for model, work in ((rare, 30), (busy, 100)):
        row = script.world.memory[model & 255]
        row["arrived_ns"], row["work_ns"], row["faded_ns"] = script.now, work * MS, script.now
    cheapest = worth.cheapest(script.world, script.now, 0, 1 << 62)
    assert script.world.copies[cheapest]["model"] == busy & 255


def serve(script, model, count, first=0):
    """Requests one after another, each answered before the next; the LOADs and UNLOADs on the way."""
    moved = []
    for number in range(count):
        assert script.ask(first + number, model=model) == 0
        records = script.tick()
        moved += actions(records, ACTION_LOAD) + actions(records, ACTION_UNLOAD)
        (out,) = actions(records, ACTION_EXEC)
        assert script.done(out) == 0
        script.take()
        for move in [*moved]:
            if move["action"] is not None:
                script.done(move, later=0)
                move["action"] = None
    return moved


def test_a_busy_model_is_spread_where_there_is_room():
    """Nobody was refused or waited; and the policies that do not spread have one copy."""
    for policy, copies in (("cwd", 3), ("clockwork", 1)):
        script = Script(policy=policy, gpus=3, pages=20)
        script.hold()
        moved = serve(script, script.model, 12)
        assert sorted(move["gpu"] for move in moved) == list(range(1, copies))
        assert script.world.models[script.model & 255]["copies_ready"] == copies


def test_a_model_is_spread_at_the_cost_of_what_is_not_asked_for():
    """The GPU is full: a model without requests leaves, one that is as busy stays."""
    script = Script(policy="cwd", gpus=2, pages=7)
    other = script.add()
    script.hold()
    script.hold(other, gpu=1)
    row = script.world.memory[other & 255]
    row["arrived_ns"], row["work_ns"], row["faded_ns"] = script.now, SECOND, script.now
    assert serve(script, script.model, 12) == []
    row["arrived_ns"], row["work_ns"], script.now = script.now, 0, script.now + 60 * SECOND
    moved = serve(script, script.model, 12, first=100)
    assert [(move["verb"], move["gpu"]) for move in moved] == [(ACTION_LOAD, 1), (ACTION_UNLOAD, 1)]


def test_what_saves_most_requests_is_loaded_first():
    """While the lane is busy two requests wait for one model and one, of more work, for another."""
    for policy, expected in (("cwd", 0), ("clockwork", 1)):
        script = Script(policy=policy)
        many, heavy = script.add(), script.add()
        assert script.ask(1) == 0
        (busy,) = actions(script.tick(), ACTION_LOAD)
        assert script.ask(2, model=heavy, size_class=1) == 0
        assert script.ask(3, model=many) == 0 and script.ask(4, model=many) == 0
        assert not actions(script.tick(), ACTION_LOAD)
        assert script.done(busy) == 0
        loads = actions(script.tick(), ACTION_LOAD)
        assert loads and loads[0]["model"] == (many, heavy)[expected]


def test_of_equals_the_one_with_more_time_is_loaded_first():
    """One request waits for each of two models; the older goes first only where demand decides."""
    for policy, expected in (("cwd", 1), ("clockwork", 0)):
        script = Script(policy=policy, load_ahead_ns=1)
        models = script.add(), script.add()
        assert script.ask(1) == 0
        (busy,) = actions(script.tick(), ACTION_LOAD)
        for number, model in enumerate(models):
            script.now += MS
            assert script.ask(2 + number, model=model) == 0
        assert not actions(script.tick(), ACTION_LOAD)
        assert script.done(busy) == 0
        loads = actions(script.tick(), ACTION_LOAD)
        assert loads and loads[0]["model"] == models[expected]


class Spreading(Script):
    """Three GPUs with room for two copies, four models that have one each, and the twin beside it."""

    def __init__(self):
        super().__init__(policy="cwd", gpus=3, pages=15, requests_max=64)
        self.twin = naive.NaiveCopies(3, 15, 7, 10 * MS, 3 * MS)
        self.models = [self.model, *(self.add() for _ in range(3))]
        self.moving = []
        for m in range(4):
            self.place(m)

    def place(self, m):
        """Put a copy of a model wherever there is room for one."""
        for gpu in range(3):
            if self.twin.free(gpu) >= 7 and self.twin.idle(gpu):
                self.hold(self.models[m], gpu)
                self.twin.gpus[gpu].append([m, "ready"])
                return

    def arrive(self):
        """What is on its way arrives."""
        for out in self.moving:
            assert self.done(out, later=0) == 0
            gpu, m = out["gpu"], self.models.index(out["model"])
            copy = self.twin.find(gpu, m)
            if out["verb"] == ACTION_LOAD:
                copy[1] = "ready"
                self.twin.touch(gpu, m)
            else:
                self.twin.gpus[gpu].remove(copy)
        self.moving = []
        self.take()

    def run(self, number, m):
        """One request, executed alone: (its GPU, what was sent behind it as (verb, gpu, model))."""
        assert self.ask(number, model=self.models[m]) == 0
        self.twin.asked[m] = self.now
        out, *moved = [out for out in self.tick() if out["kind"] == OUT_ACTION]
        assert (out["verb"], out["rows"], out["expected_ns"]) == (ACTION_EXEC, 1, 3 * MS)
        self.twin.touch(out["gpu"], m)
        self.twin.busy[out["gpu"]] = self.now + 3 * MS
        self.moving += moved
        return out, [(move["verb"], move["gpu"], self.models.index(move["model"])) for move in moved]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7), st.sampled_from([0, 0, 1, 400, 9_000]), st.booleans()),
                min_size=4, max_size=16))
def test_models_are_spread_as_the_twin_says(steps):
    """Requests one after another, (model, how many, ms before each, whether what is on its way arrives first): after each
    execution what is loaded, where, and who leaves for it."""
    script = Spreading()
    twin = script.twin
    single = [(m, gap, arrives) for m, count, gap, arrives in steps for _ in range(count)]
    for number, (m, gap, arrives) in enumerate(single):
        script.now += gap * MS
        if arrives or gap > 100:
            # what came much later would count as lost
            script.arrive()
        if not any(state == "ready" for gpu in twin.gpus for model, state in gpu if model == m):
            script.arrive()
            if twin.copies(m) == 0:
                script.place(m)
        if twin.copies(m) == 0:
            continue
        out, moved = script.run(number, m)
        chosen = twin.ran(script.now, m, 3 * MS)
        plans = {}
        for gpu in twin.targets(script.now, chosen) if chosen is not None else ():
            leaving = twin.leaving(script.now, gpu, {(out["gpu"], m)}, twin.another(script.now, chosen) // 2)
            plans[gpu] = [] if leaving is None else [
                *((ACTION_UNLOAD, gpu, model) for model in leaving), (ACTION_LOAD, gpu, chosen)]
        assert moved in (list(plans.values()) or [[]])
        for verb, gpu, model in moved:
            if verb == ACTION_LOAD:
                twin.gpus[gpu].append([model, "loading"])
            else:
                twin.find(gpu, model)[1] = "leaving"
        assert script.done(out) == 0
        script.take()


@pytest.mark.parametrize("policy", ["cwd", "clockwork", "fifo"])
@settings(max_examples=40, deadline=None)
@given(arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=24))
def test_who_wants_a_load_is_listed_in_the_twins_order(policy, arrivals):
    """Requests for models that are nowhere, two of which take 25 ms to load and two 10, while the lanes are taken."""
    script = Script(policy=policy)
    engine.program_added(script.world, 1, np.array([1, 2, 4], np.int64), 3, 2)
    for b, took in enumerate((3, 4, 6)):
        engine.estimate_seed(script.world, 1, 0, b, 0, took * MS)
        engine.estimate_seed(script.world, 1, 0, b, 1, 2 * took * MS)
    engine.load_seed(script.world, 1, 0, 25 * MS)
    engine.program_prepared(script.world, script.now, 0, 1, 1)
    models = [script.model, script.add(), *(int(engine.model_added(script.world, script.now, 1, 7)) for _ in range(2))]
    wanted = {}
    for number, (m, size_class) in enumerate(arrivals):
        script.now += MS
        assert script.ask(number, model=models[m], slo=400 * MS, size_class=size_class) == 0
        queued, _, load, head = wanted.get(m, (0, 0, 25 * MS if m > 1 else 10 * MS, number))
        wanted[m] = (queued + 1, int(script.world.models[models[m] & 255]["work_ns"]), load, head)
    listed = members(script.world.wanted_nodes, int(script.world.counters[0]["wanted_root"]))
    assert [models.index(next(h for h in models if h & 255 == m)) for m in listed] == naive.wanted_order(policy, wanted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(15, 90)), min_size=1, max_size=20), st.integers(0, 40),
       st.sampled_from([0, 2, 5, 10, 20]))
def test_what_is_loaded_when_the_lane_comes_free_is_what_the_twin_loads(arrivals, later, usual):
    """Requests (model, SLO in ms) come 400 us apart while another LOAD is under way, which ends some ms later; executions
    usually take so many ms. Who cannot be saved any more is given up first."""
    script = Script(policy="cwd", admission=0, pages=50)
    models = [script.add() for _ in range(4)]
    assert script.ask(1000, slo=900 * MS) == 0
    (under_way,) = actions(script.tick(), ACTION_LOAD)
    for number, (m, slo) in enumerate(arrivals):
        script.now += 400_000
        assert script.ask(number, slo=slo * MS, model=models[m]) == 0
    world = script.world
    world.counters["usual_ns"], world.counters["price_ns"] = usual * MS, MS
    script.now += later * MS
    assert script.done(under_way, later=0) == 0
    needed = 10 * MS + 200_000 + 300_000
    listed = {}
    for m in members(world.wanted_nodes, int(world.counters[0]["wanted_root"])):
        latest = [int(world.requests[r]["due_ns"] - world.requests[r]["need_ns"])
                  for r in members(world.request_nodes, int(world.models[m]["queue_root"]))]
        if latest[-1] - needed >= script.now:
            listed[m] = [at for at in latest if at - needed >= script.now]
    loads = actions(script.tick(), ACTION_LOAD)
    # an execution has been issued meanwhile, and with it moved what is usual
    wait = 2 * int(world.counters[0]["usual_ns"])
    chosen = naive.loaded_first(list(listed.values()), script.now + needed + 200_000, wait)
    assert [out["model"] & 255 for out in loads] == ([] if chosen is None else [list(listed)[chosen]])


def test_a_removed_model_is_not_spread():
    script = Script(policy="cwd", gpus=2, pages=20)
    script.hold()
    serve(script, script.model, 1)
    script.world.counters[0]["spread_model"] = script.model & 255
    gone, script.model = script.model, script.add()
    script.hold(script.model)
    assert engine.model_removed(script.world, script.now, gone) == 0
    script.take()
    moved = serve(script, script.model, 3, first=50)
    assert all(move["model"] == script.model for move in moved)
