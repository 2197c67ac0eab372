"""Copies ahead of need: how work fades, what a copy is worth and who leaves, when a model gets another copy, what loads first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from script import MS, Script

from cwd.core import engine, memory, worth
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD, COPY_READY, NONE, OUT_ACTION

SECOND = 1_000 * MS
STEP_NS = 1 << 23


def actions(records, verb):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == verb]


class NaiveWork:
    """Work that halves in 1024 steps of 8.4 ms, evenly in between."""

    def __init__(self):
        self.left, self.since = 0, 0

    def at(self, now):
        halvings, steps = divmod((now - self.since) // STEP_NS, 1024)
        left = self.left // 2 ** halvings
        return left - left * steps // 2048

    def add(self, now, piece):
        self.left = self.at(now) + piece
        self.since += (now - self.since) // STEP_NS * STEP_NS


@given(st.lists(st.tuples(st.integers(0, 30 * SECOND), st.integers(1, 100 * MS)), min_size=1, max_size=30))
def test_work_fades_as_the_naive_twin_says(pieces):
    world, naive, now = Script(policy="cwd").world, NaiveWork(), 0
    for gap, piece in pieces:
        now += gap
        assert memory.work_ns(world, now, 0) == naive.at(now) >= 0
        memory.worked(world, now, 0, piece)
        naive.add(now, piece)
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


def naive_victim(world, now, limit):
    """The copy of GPU 0 that may leave and is worth least, the first of equals from the one used longest ago; -1: none."""
    found, copy = [], int(world.gpus[0]["lru_first"])
    while copy != NONE:
        row = world.copies[copy]
        if row["state"] == COPY_READY and row["running"] == 0 and world.models[row["model"]]["queued"] == 0:
            found.append(copy)
        copy = int(row["lru_next"])
    worths = [int(worth.of_copy(world, now, copy)) for copy in found]
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
