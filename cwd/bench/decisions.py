"""What single decisions cost, policy by policy: the clock read around each call, with 4,026 models and full queues.

Clockwork's 61 varieties, 66 models of each, on 12 GPUs that hold about half of them. So many requests are kept queued:
one comes for each that has left, to a model by chance (even, or by Zipf's law). Its SLO is between a
quarter of a second and 8 s by chance; refused it comes again at once with twice that, which is how policies with
admission are kept at the same queue as those without. Half of what waits is so short that all of it cannot be served:
requests are refused and given up all the time, GPUs are pressed, models are loaded and leave.

Actions take what was expected of them, in virtual time. Each arrival, and each time at which results or timers are due,
is followed by a tick, which plans for every GPU that they concern: that tick is the decision. Ticks that find no lane
open are cheap, so those that issued an action are counted apart, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cwd.bench.histogram import BUCKETS, bucket_of, quantile_ns
from cwd.bench.stand_in import ENDS, PENDING, RANDOM, perform, random, spread
from cwd.core import engine, heap
from cwd.core.presets import PRESETS
from cwd.core.world import TIMER, Config, World, make_world
from cwd.jit import inline, lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.sim.profile import BATCHES, V100_PAGES, v100

US, MS = 1_000, 1_000_000
VARIETIES, COPIES, GPUS = 61, 66, 12
#: SLOs are SLO_NS << 0 to SLO_NS << SLO_BITS by chance, a refused request's up to SLO_NS << TRIES
SLO_NS, SLO_BITS, TRIES = 250 * MS, 5, 9
#: what a decision may take, in 99 of 100 cases
BOUND_US = 20
#: what is timed: every tick, those of them that issued an action, and what the core is told in between
TICK, ISSUING, ARRIVAL, RESULT, KINDS = 0, 1, 2, 3, 4
#: one row: what the driver has done, behind the places of `perform`
_NEXT_ID, _RUNNING, _FEWEST, _MOST, _TICKS, _GPUS = range(4, 10)


@lean_kernel
def _note(histogram, most_ns, kind, took_ns):
    histogram[kind, bucket_of(took_ns)] += 1
    if took_ns > most_ns[kind]:
        most_ns[kind] = took_ns


@lean_kernel
def clock_cost(histogram, most_ns, times):
    """Time nothing, so many times: what reading the clock adds to each measurement."""
    for _ in range(times):
        begin_ns = monotonic_ns()
        _note(histogram, most_ns, 0, monotonic_ns() - begin_ns)


@inline
def _results(world, now_ns, pending, ends, state, histogram, most_ns):
    """Report the actions that have ended by now."""
    while state[ENDS] > 0 and ends[0]["key"] <= now_ns:
        a = ends[0]["id"]
        state[ENDS] = heap.drop(ends, state[ENDS], a)
        row = pending[a]
        state[_RUNNING] -= row["rows"]
        begin_ns = monotonic_ns()
        engine.action_done(world, now_ns, row["action"], 0, row["begin_ns"], row["end_ns"], 0, row["rows"], -1, -1)
        _note(histogram, most_ns, RESULT, monotonic_ns() - begin_ns)


@inline
def _arrival(world, now_ns, models, targets, state, histogram, most_ns):
    """One more request; refused it comes again at once, with twice the time."""
    model = models[targets[random(state) % len(targets)]]
    doublings = random(state) % (SLO_BITS + 1)
    code = 1
    while code != 0 and doublings <= TRIES:
        state[_NEXT_ID] += 1
        begin_ns = monotonic_ns()
        code = engine.request_arrived(
            world, now_ns, state[_NEXT_ID] & 63, state[_NEXT_ID], model, 0, 0, SLO_NS << doublings, 0, -1)
        _note(histogram, most_ns, ARRIVAL, monotonic_ns() - begin_ns)
        doublings += 1


@lean_kernel
def _dirty(world):
    """How many GPUs the next tick will plan for."""
    gpu, count = world.counters[0]["dirty_first"], 0
    while gpu >= 0:
        count += 1
        gpu = world.gpus[gpu]["dirty_next"]
    return count


@lean_kernel
def _issued(world):
    counters = world.counters[0]
    return counters["execs"] + counters["loads"] + counters["unloads"]


@inline
def _tick(world, now_ns, pending, ends, free_at, state, histogram, most_ns):
    """Have the core decide, and carry it out."""
    state[_GPUS] += _dirty(world)
    rows, before = world.counters[0]["rows"], _issued(world)
    begin_ns = monotonic_ns()
    engine.tick(world, now_ns)
    took_ns = monotonic_ns() - begin_ns
    _note(histogram, most_ns, TICK, took_ns)
    if _issued(world) > before:
        _note(histogram, most_ns, ISSUING, took_ns)
    state[_TICKS] += 1
    perform(world, now_ns, pending, ends, free_at, state)
    state[_RUNNING] += world.counters[0]["rows"] - rows


@lean_kernel
def _drive(world, now_ns, ticks, queued, models, targets, pending, ends, free_at, state, histogram, most_ns):
    """Play so many ticks, and return the time reached."""
    for _ in range(ticks):
        if world.counters[0]["requests_live"] - state[_RUNNING] < queued:
            _arrival(world, now_ns, models, targets, state, histogram, most_ns)
        else:
            due_ns = engine.next_timer(world, now_ns)
            if state[ENDS] > 0 and ends[0]["key"] < due_ns:
                due_ns = ends[0]["key"]
            now_ns = max(due_ns, now_ns)
            _results(world, now_ns, pending, ends, state, histogram, most_ns)
            waiting = world.counters[0]["requests_live"] - state[_RUNNING]
            state[_FEWEST] = min(state[_FEWEST], waiting)
            state[_MOST] = max(state[_MOST], waiting)
        _tick(world, now_ns, pending, ends, free_at, state, histogram, most_ns)
    return now_ns


def make(policy: str, varieties: int, copies: int, gpus: int, requests_max: int) -> tuple[World, np.ndarray]:
    """A world with nothing loaded yet, and the handles of its models, variety after variety."""
    profiles = tuple(v100().values())[:varieties]
    world = make_world(Config(
        policy=policy, models_max=varieties * copies, programs_max=varieties, requests_max=requests_max, gpus_max=gpus,
        copies_max=gpus * V100_PAGES // min(profile.pages for profile in profiles) + gpus, actions_max=128 * gpus,
        clients_max=64))
    now_ns = 1000 * MS
    for program, profile in enumerate(profiles):
        engine.program_added(world, program, np.array(BATCHES, np.int64), len(BATCHES), 1)
        for batch_index, exec_ns in enumerate(profile.exec_ns):
            engine.estimate_seed(world, program, 0, batch_index, 0, exec_ns)
        engine.load_seed(world, program, 0, profile.load_ns)
    handles = np.array([engine.model_added(world, now_ns, program, profile.pages)
                        for program, profile in enumerate(profiles) for _ in range(copies)], np.int64)
    for gpu in range(gpus):
        engine.gpu_joined(world, now_ns, gpu, 0, V100_PAGES)
        for program in range(varieties):
            engine.program_prepared(world, now_ns, gpu, program, 1)
    return world, handles


class Drive:
    """A world under one policy, and its driver; `play` goes on where it stopped."""

    def __init__(self, policy: str, *, zipf: bool = False, queued: int = 10_000, gpus: int = GPUS, copies: int = COPIES,
                 varieties: int = VARIETIES) -> None:
        self.world, handles = make(policy, varieties, copies, gpus, 2 * queued)
        pending, ends = np.zeros(len(self.world.actions), PENDING), np.zeros(len(self.world.actions), TIMER)
        ends["place"] = -1
        self.state = np.zeros(10, np.int64)
        self.state[RANDOM] = 12345
        self.histogram, self.most_ns = np.zeros((KINDS, BUCKETS), np.int64), np.zeros(KINDS, np.int64)
        # so that popularity has nothing to do with size
        shuffled = np.random.default_rng(0).permutation(handles)
        self._arguments = (queued, shuffled, spread(len(handles), zipf), pending, ends, np.zeros(2 * gpus, np.int64),
                           self.state, self.histogram, self.most_ns)
        self._now_ns = 2000 * MS

    def fill(self) -> None:
        """Play until so many requests wait."""
        while self.state[_MOST] == 0:
            self.play(1000)

    def play(self, ticks: int) -> None:
        """Measure so many decisions afresh; raises `AssertionError` if the core is broken."""
        self.histogram[:] = 0
        self.most_ns[:] = self.state[_TICKS] = self.state[_GPUS] = self.state[_MOST] = 0
        self.state[_FEWEST] = 1 << 40
        self._now_ns = _drive(self.world, self._now_ns, ticks, *self._arguments)
        if self.world.counters[0]["broken"]:
            raise AssertionError(f"invariant {self.world.counters[0]['broken']} broken")

    @property
    def facts(self) -> dict[str, Any]:
        """Of the last `play`."""
        found: dict[str, Any] = {"queued_least": int(self.state[_FEWEST]), "queued_most": int(self.state[_MOST]),
                                 "ticks": int(self.state[_TICKS]), "issuing": int(self.histogram[ISSUING].sum()),
                                 "gpus_per_tick": round(int(self.state[_GPUS]) / int(self.state[_TICKS]), 2)}
        for kind, name in ((TICK, "tick"), (ISSUING, "issuing"), (ARRIVAL, "arrival"), (RESULT, "result")):
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                found[f"{name}_{label}_us"] = round(quantile_ns(self.histogram[kind], share) / US, 2)
            found[f"{name}_max_us"] = round(int(self.most_ns[kind]) / US, 2)
        return found


def measure(policy: str, *, zipf: bool = False, queued: int = 10_000, ticks: int = 50_000) -> dict[str, Any]:
    """One row: the decisions of one policy, after half as many that are not measured."""
    drive = Drive(policy, zipf=zipf, queued=queued)
    drive.fill()
    drive.play(ticks // 2)
    counters = drive.world.counters[0]
    before = {name: int(counters[name]) for name in ("execs", "rows", "loads", "refused", "dropped")}
    drive.play(ticks)
    done = {name: int(counters[name]) - value for name, value in before.items()}
    return {"policy": policy, "popularity": "zipf" if zipf else "even", **drive.facts,
            "mean_batch": round(done["rows"] / max(done["execs"], 1), 2), "execs": done["execs"], "loads": done["loads"],
            "refused": done["refused"], "given_up": done["dropped"]}


def clock_ns(times: int = 200_000) -> float:
    """What reading the clock twice adds to a measurement, ns: the median."""
    histogram, most_ns = np.zeros((1, BUCKETS), np.int64), np.zeros(1, np.int64)
    clock_cost(histogram, most_ns, times)
    return quantile_ns(histogram[0], 0.5)


def run(policies: Sequence[str] = (), queued: int = 10_000, ticks: int = 50_000) -> dict[str, Any]:
    """A row per policy (all, if none is named) with even and one with Zipf's popularity; times include `clock_ns`.

    Raises `CwdError` for a policy that is not there.
    """
    rows = [measure(policy, zipf=zipf, queued=queued, ticks=ticks)
            for policy in policies or PRESETS for zipf in (False, True)]
    return {"models": VARIETIES * COPIES, "gpus": GPUS, "queued": queued, "bound_us": BOUND_US, "clock_ns": clock_ns(),
            "worst_tick_p99_us": max(row["tick_p99_us"] for row in rows),
            "worst_issuing_p99_us": max(row["issuing_p99_us"] for row in rows), "rows": rows}
