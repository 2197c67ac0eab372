"""Compiles the core's entry points, by a short life of a tiny world that calls each of them once."""

from __future__ import annotations

import numpy as np

from cwd.core import engine, estimate, hashmap, heap, ordered, queues
from cwd.core.world import ESTIMATE, FOREVER_NS, NODE, OUT_ACTION, SLOT, TIMER, Config, World, make_world

MS = 1_000_000


def warm() -> None:
    """Call every kernel of the core that Python or another package may call."""
    _structures()
    world = make_world(Config(
        models_max=4, programs_max=1, requests_max=8, gpus_max=2, copies_max=8, actions_max=16, clients_max=2,
        events_max=8))
    now_ns = 1000 * MS
    engine.program_added(world, 0, np.array([1, 2], np.int64), 2, 1)
    for batch_index in range(2):
        engine.estimate_seed(world, 0, 0, batch_index, 0, MS)
    engine.load_seed(world, 0, 0, MS)
    engine.gpu_joined(world, now_ns, 0, 0, 2)
    engine.program_prepared(world, now_ns, 0, 0, 1)
    model = int(engine.model_added(world, now_ns, 0, 1))
    engine.gpu_resident(world, now_ns, 0, model)
    engine.request_arrived(world, now_ns, 0, 1, model, 0, 0, 100 * MS, 0, -1)
    engine.tick(world, now_ns)
    _finish_all(world, now_ns + 2 * MS)
    queues.lookup(world, 0, 1)
    engine.request_cancelled(world, now_ns, 0, 1)
    engine.client_gone(world, now_ns, 0)
    engine.lane_reserve(world, now_ns, 0, MS)
    engine.next_timer(world, now_ns)
    engine.model_wanted(world, now_ns, model)
    engine.closing(world, now_ns)
    engine.model_removed(world, now_ns, model)
    engine.gpu_draining(world, now_ns, 0)
    engine.gpu_lost(world, now_ns, 0)


def _finish_all(world: World, now_ns: int) -> None:
    counters = world.counters[0]
    for out in world.outbox[:counters["outbox_count"]].copy():
        if out["kind"] == OUT_ACTION:
            engine.action_done(
                world, now_ns, int(out["action"]), 0, now_ns - MS, now_ns, 0, int(out["rows"]), -1, -1)
    counters["outbox_count"] = 0


def _structures() -> None:
    table = np.zeros(8, SLOT)
    table["value"] = -1
    hashmap.put(table, 1, 2)
    hashmap.get(table, 1)
    hashmap.remove(table, 1)
    row = np.zeros(1, ESTIMATE)[0]
    estimate.seed(row, MS)
    estimate.observe(row, MS, MS)
    estimate.tail(row, MS)
    estimate.typical(row, MS)
    timers = np.zeros(4, TIMER)
    timers["place"] = -1
    count = heap.put(timers, 0, 1, FOREVER_NS)
    heap.drop(timers, count, 1)
    nodes = np.zeros(4, NODE)
    root = ordered.insert(nodes, -1, 0, 1, 1)
    ordered.first(nodes, root)
    ordered.successor(nodes, 0)
    ordered.before(nodes, 0, 1)
    ordered.remove(nodes, root, 0)
