"""`cwd bench kernel`: what a request costs inside the core alone, at 100, 4,000 and 100,000 models.

One nopython loop is the host and the GPUs at once: requests arrive at a constant rate in virtual time, each batch of
events is followed by a tick, actions in the outbox are "executed" in exactly the time that was expected of them. So
what is measured is request_arrived, its share of tick, and action_done, plus this loop's own work, which is measured
apart (`loop_ns`) and not subtracted.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cwd.bench import decisions
from cwd.bench.stand_in import ANSWERED, ENDS, NOT_ANSWERED, PENDING, RANDOM, perform, random, spread
from cwd.core import engine, heap
from cwd.core.world import FOREVER_NS, TIMER, Config, World, make_world
from cwd.jit import lean_kernel

US, MS = 1_000, 1_000_000
#: ResNet50 on a V100, as in the paper's table
EXEC_NS = (2_730 * US, 4_050 * US, 5_870 * US, 9_930 * US, 17_300 * US)
LOAD_NS = 8_320 * US
PAGES = 7
SLO_NS = 100 * MS
#: behind what `perform` has in `state`
_NEXT_ID = 4


@lean_kernel
def _results(world, now_ns, pending, ends, state):
    """Report the actions that have ended by now."""
    while state[ENDS] > 0 and ends[0]["key"] <= now_ns:
        a = ends[0]["id"]
        state[ENDS] = heap.drop(ends, state[ENDS], a)
        row = pending[a]
        engine.action_done(world, now_ns, row["action"], 0, row["begin_ns"], row["end_ns"], 0, row["rows"], -1, -1)


@lean_kernel
def _drive(world, now_ns, requests, gap_ns, models, targets, pending, ends, free_at, state):
    """Feed `requests` arrivals, `gap_ns` apart, with results and timers in between; returns the time reached."""
    next_id = state[_NEXT_ID]
    arrival_ns = now_ns
    for _ in range(requests):
        arrival_ns += gap_ns
        # what is due before the arrival, one batch of events at a time
        while True:
            due_ns = engine.next_timer(world, now_ns)
            if state[ENDS] > 0 and ends[0]["key"] < due_ns:
                due_ns = ends[0]["key"]
            if due_ns > arrival_ns:
                break
            if due_ns > now_ns:
                now_ns = due_ns
            _results(world, now_ns, pending, ends, state)
            engine.tick(world, now_ns)
            perform(world, now_ns, pending, ends, free_at, state)
        now_ns = arrival_ns
        next_id += 1
        model = models[targets[random(state) % len(targets)]]
        engine.request_arrived(world, now_ns, next_id & 63, next_id, model, 0, 0, SLO_NS, 0, -1)
        engine.tick(world, now_ns)
        perform(world, now_ns, pending, ends, free_at, state)
    state[_NEXT_ID] = next_id
    return now_ns


def _world(models: int, gpus: int, resident: bool) -> tuple[World, np.ndarray]:
    """`models` models on `gpus` GPUs; all resident (each on one GPU), or a tenth of them fitting."""
    fitting = -(-models // gpus) if resident else max(2, models // gpus // 10)
    world = make_world(Config(
        models_max=models, programs_max=1, requests_max=16384, gpus_max=gpus, copies_max=models + gpus,
        actions_max=max(1024, 128 * gpus), clients_max=64))
    now_ns = 1000 * MS
    engine.program_added(world, 0, np.array([1, 2, 4, 8, 16], np.int64), 5, 1)
    for batch_index, duration_ns in enumerate(EXEC_NS):
        engine.estimate_seed(world, 0, 0, batch_index, 0, duration_ns)
    engine.load_seed(world, 0, 0, LOAD_NS)
    handles = np.array([engine.model_added(world, now_ns, 0, PAGES) for _ in range(models)], np.int64)
    for gpu in range(gpus):
        engine.gpu_joined(world, now_ns, gpu, 0, PAGES * fitting)
        engine.program_prepared(world, now_ns, gpu, 0, 1)
    if resident:
        for i, handle in enumerate(handles):
            engine.gpu_resident(world, now_ns, i % gpus, int(handle))
    return world, handles


def measure(models: int, *, gpus: int = 16, rps: int = 4_000, requests: int = 200_000, resident: bool = True,
            zipf: bool = False) -> dict[str, Any]:
    """ns per request of the core's cycle in one configuration, best of three runs of a third each."""
    world, handles = _world(models, gpus, resident)
    pending = np.zeros(len(world.actions), PENDING)
    ends = np.zeros(len(world.actions), TIMER)
    ends["place"] = -1
    free_at = np.zeros(2 * gpus, np.int64)
    state = np.zeros(_NEXT_ID + 1, np.int64)
    state[RANDOM] = 12345
    targets = spread(models, zipf)
    now_ns, gap_ns = 2000 * MS, 1_000_000_000 // rps
    arguments = (gap_ns, handles, targets, pending, ends, free_at, state)
    now_ns = _drive(world, now_ns, max(1, requests // 10), *arguments)
    best = FOREVER_NS
    for _ in range(3):
        begun = time.thread_time_ns()
        now_ns = _drive(world, now_ns, requests // 3, *arguments)
        best = min(best, (time.thread_time_ns() - begun) // (requests // 3))
    counters = world.counters[0]
    if counters["broken"]:
        raise AssertionError(f"invariant {counters['broken']} broken")
    answered, refused = int(state[ANSWERED]), int(state[NOT_ANSWERED])
    return {
        "models": models, "gpus": gpus, "rps": rps, "resident": resident, "zipf": zipf, "requests": requests,
        "ns_per_request": int(best), "answered": answered, "refused": refused,
        "mean_batch": round(int(counters["rows"]) / max(1, int(counters["execs"])), 2),
        "loads": int(counters["loads"]), "execs": int(counters["execs"]),
    }


def run(models_list: tuple[int, ...] = (100, 4000, 100_000), requests: int = 200_000, policies: tuple[str, ...] = (),
        queued: int = 10_000, ticks: int = 50_000) -> dict[str, Any]:
    """All rows, how the largest number of models compares with the smallest (uniform, all resident), and `decisions`.

    Those are single ticks with `queued` requests waiting, of each policy (decisions.py).
    """
    rows = [measure(models, requests=requests) for models in models_list]
    extra = [measure(models, requests=requests, zipf=True) for models in models_list]
    cold = [measure(models, requests=requests // 4, rps=1_200, resident=False, zipf=True) for models in models_list]
    return {
        "rows": rows, "zipf": extra, "with_loads": cold,
        "ratio_last_to_first": round(rows[-1]["ns_per_request"] / rows[0]["ns_per_request"], 2),
        "decisions": decisions.run(policies, queued, ticks),
    }
