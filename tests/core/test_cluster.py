"""The core in a small naive cluster: seeds, faults, lost workers; everything ends once, every index stays right."""

from __future__ import annotations

import random

import pytest
from miniworld import MS, Faults, MiniWorld

from cwd.core import engine
from cwd.core.presets import PRESETS
from cwd.core.world import GPU_UP
from cwd.errors import Code


def drive(world: MiniWorld, rate: float, seconds: float, slo_ns: int, *, seed: int = 1, models=None) -> int:
    """Poisson arrivals over all models, both size classes, eight clients; runs until all has ended."""
    dice = random.Random(seed)
    when, count, end = world.now, 0, world.now + int(seconds * 1e9)
    while True:
        when += int(dice.expovariate(rate) * 1e9)
        if when > end:
            break
        count += 1
        model, size_class = dice.choice(models or world.models), dice.randrange(2)
        world.at(when, lambda i=count, m=model, c=size_class: world.request(i % 8, i, m, slo_ns, c))
    world.run(end + 20_000 * MS)
    world.finished()
    assert len(world.replies) == count
    return count


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("seed", range(2))
def test_a_light_load_is_served_whole(policy, seed):
    """6 models of 7 pages on two GPUs of 20: loads and evictions all the time, and every request is in time.

    Of two that wait for their last moments, as symphony's do, one may find the GPU taken by the other: none is late for it.
    """
    world = MiniWorld(seed=seed, policy=policy)
    count = drive(world, 100, 0.4, 150 * MS, seed=seed)
    assert world.count(Code.OK) >= (count - 1 if policy == "symphony" else count)
    counters = world.world.counters[0]
    assert counters["loads"] >= 6 and counters["stale"] == counters["requeued"] == counters["missed"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_an_overload_is_refused_and_never_late(seed):
    """Three times what two GPUs can do: no reply pretends, and what is served is in batches."""
    world = MiniWorld(seed=seed, models=4, pages=28, checked=False)
    count = drive(world, 1500, 1.0, 100 * MS, seed=seed)
    counters = world.world.counters[0]
    assert counters["missed"] == 0
    assert world.count(Code.OK) + world.count(Code.DEADLINE_UNREACHABLE) + world.count(Code.DEADLINE_EXPIRED) == count
    assert world.count(Code.OK) > 600
    assert counters["rows"] > 2 * counters["execs"]


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("seed", range(2))
def test_losses_failures_and_stalls_leave_nothing_behind(policy, seed):
    """Messages lost on both ways, refusals of the device, tenfold durations: every request still ends exactly once."""
    world = MiniWorld(seed=seed, policy=policy, faults=Faults(undelivered=0.03, lost=0.03, failed=0.03, slow=0.03))
    drive(world, 150, 0.4, 100 * MS, seed=seed)
    # faults over: the service recovers, with all its pages
    world.faults = Faults(slow=1e-12)
    world.run(world.now + 30_000 * MS)
    before = world.count(Code.OK)
    count = drive_more(world, 40)
    assert world.count(Code.OK) - before == count


def drive_more(world: MiniWorld, count: int) -> int:
    for i in range(count):
        world.at(world.now + i * 20 * MS, lambda i=i: world.request(i % 8, 10_000 + i, world.models[i % 6], 200 * MS))
    world.run(world.now + count * 20 * MS + 5_000 * MS)
    world.finished()
    return count


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_worker_takes_no_request_with_it(seed):
    """Workers die under load, with requests queued and running; each is served by the other or told why not."""
    world = MiniWorld(seed=seed)
    dice = random.Random(seed)
    for k in range(6):
        world.at(world.now + (k + 1) * 70 * MS + dice.randrange(20 * MS), lambda: world.lose(dice.randrange(2)))
    count = drive(world, 150, 0.5, 120 * MS, seed=seed)
    codes = {reply["status"] for reply in world.replies}
    assert codes <= {Code.OK, Code.WORKER_LOST, Code.DEADLINE_EXPIRED, Code.DEADLINE_UNREACHABLE, Code.NO_WORKER}
    assert world.count(Code.OK) > count // 2
    assert all(gpu["state"] == GPU_UP for gpu in world.world.gpus)


@pytest.mark.parametrize("policy", PRESETS)
def test_every_policy_survives_overload_eviction_and_lost_workers(policy):
    """Twelve models where nine fit, more than three GPUs can do one by one, two workers lost: each request ends once."""
    world = MiniWorld(seed=4, policy=policy, gpus=3, models=12, pages=21, requests_max=512)
    dice = random.Random(4)
    for k in range(2):
        world.at(world.now + 50 * MS + k * 60 * MS, lambda: world.lose(dice.randrange(3)))
    drive(world, 1000, 0.15, 80 * MS, seed=4)
    codes = {reply["status"] for reply in world.replies}
    assert Code.OK in codes and codes <= {
        Code.OK, Code.DEADLINE_EXPIRED, Code.DEADLINE_UNREACHABLE, Code.DEADLINE_MISSED, Code.WORKER_LOST}
    if world.world.settings[0]["foresight"]:
        assert world.count(Code.DEADLINE_MISSED) == 0


def test_clients_that_vanish_and_cancel():
    """Queued requests of a client that left are released, running ones too once they ended; cancelling answers once."""
    world = MiniWorld(seed=5, models=2)
    for i in range(30):
        world.at(world.now + i * MS, lambda i=i: world.request(i % 2, i, world.models[i % 2], 300 * MS))

    def gone():
        engine.client_gone(world.world, world.now, 0)
        for key in [key for key in world.live if key[0] == 0]:
            del world.live[key]

    def cancel():
        mine = [key for key in world.live if key[0] == 1]
        cancelled = sum(int(engine.request_cancelled(world.world, world.now, *key)) for key in mine)
        assert cancelled > 0
        world.settle()
        assert world.count(Code.CANCELLED) == cancelled
        assert sum(int(engine.request_cancelled(world.world, world.now, *key)) for key in mine) == 0

    world.at(world.now + 12 * MS, gone)
    world.at(world.now + 25 * MS, cancel)
    world.run(world.now + 5_000 * MS)
    world.finished()


def test_models_come_and_go_while_serving():
    """A removed model answers its queue, gives its pages back, and its slot is used again under another handle."""
    world = MiniWorld(seed=7, models=4)
    removed: list[int] = []

    def swap(index):
        old = world.models[index]
        assert engine.model_removed(world.world, world.now, old) == 0
        assert engine.model_removed(world.world, world.now, old) == Code.UNKNOWN_MODEL
        world.settle()
        removed.append(old)
        world.models[index] = int(engine.model_added(world.world, world.now, 0, 7))
        assert world.models[index] > 0 and world.models[index] not in removed
        assert world.request(3, 90_000 + len(removed), old, 100 * MS) == Code.UNKNOWN_MODEL

    for k in range(8):
        world.at(world.now + (k + 1) * 60 * MS, lambda k=k: swap(k % 4))
    dice = random.Random(3)
    for i in range(120):
        world.at(world.now + i * 5 * MS, lambda i=i: world.request(i % 8, i, dice.choice(world.models), 150 * MS))
    world.run(world.now + 5_000 * MS)
    world.finished()
    assert world.count(Code.OK) > 80
    assert world.world.counters[0]["models_live"] == 4
    assert all(model not in gpu.resident for model in removed for gpu in world.gpus)


def test_tiny_tables_refuse_instead_of_growing():
    """A burst beyond the table of requests is QUEUE_FULL at once, and the next one is served again."""
    world = MiniWorld(seed=1, models=2, requests_max=8)
    codes = [world.request(0, i, world.models[0], 500 * MS) for i in range(12)]
    assert codes == [0] * 8 + [Code.QUEUE_FULL] * 4
    world.run(world.now + 1_000 * MS)
    assert world.request(0, 99, world.models[0], 500 * MS) == 0
    world.run(world.now + 1_000 * MS)
    world.finished()
    assert world.count(Code.OK) == 9


def test_draining_gpu_gets_nothing_new():
    """What runs on it ends; later requests go to the other GPU."""
    world = MiniWorld(seed=2, models=1)
    world.request(0, 1, world.models[0], 200 * MS)
    world.run(world.now + 20 * MS)
    first = world.replies[0]["gpu"]
    engine.gpu_draining(world.world, world.now, first)
    for i in range(5):
        world.at(world.now + i * 10 * MS, lambda i=i: world.request(0, 10 + i, world.models[0], 200 * MS))
    world.run(world.now + 1_000 * MS)
    world.finished()
    assert {reply["gpu"] for reply in world.replies[1:]} == {1 - first}
    assert world.count(Code.OK) == 6
