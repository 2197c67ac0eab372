"""Work that is not urgent: where it may run, and how the number of its GPUs follows what becomes of urgent requests."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, Script

from cwd.core import background
from cwd.core.world import ACTION_EXEC, OUT_ACTION, Config, make_world
from cwd.errors import Code
from cwd.jit import lean_kernel

URGENT, LATER = 4 * MS, 60_000 * MS
SECOND = 1_000 * MS


def execs(records):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]


def crowded_world():
    """Two GPUs that run background each, and so many urgent requests refused because of it that it must yield one."""
    script = Script(gpus=2, pages=50, policy="cwd")
    script.urgent = script.add()
    for gpu in range(2):
        script.hold(script.model, gpu)
        script.hold(script.urgent, gpu)
    running = []
    for number in range(2):
        assert script.ask(number, slo=LATER) == 0
        running += execs(script.tick())
    assert sorted(out["gpu"] for out in running) == [0, 1]
    for number in range(11):
        assert script.world.counters[0]["background_level"] == 2
        assert script.ask(10 + number, slo=URGENT, model=script.urgent) == Code.DEADLINE_UNREACHABLE
    assert script.world.counters[0]["background_level"] == 1
    script.take()
    return script, running


def test_background_leaves_a_gpu_to_urgent_work_once_that_was_refused_too_often():
    """The GPU that still runs background goes on with it; the one that has ended waits for urgent requests, though idle."""
    script, (first, second) = crowded_world()
    assert script.done(first) == 0
    assert script.ask(2, slo=LATER) == 0
    assert [out["gpu"] for out in execs(script.tick())] == [second["gpu"]]
    assert script.ask(3, slo=LATER) == 0
    assert not execs(script.tick())
    assert script.ask(30, slo=URGENT, model=script.urgent) == 0
    (answer,) = execs(script.tick())
    assert (answer["gpu"], script.ids(answer)) == (first["gpu"], [30])


def test_of_background_who_is_due_first_goes_first():
    """Though four of another model together would take less time each, and there are always four more."""
    script = Script(pages=50, policy="cwd")
    popular = script.add()
    for model in (script.model, popular):
        script.hold(model)
    assert script.ask(1, slo=LATER) == 0
    (running,) = execs(script.tick())
    assert script.ask(2, slo=LATER) == 0
    for number in range(12):
        assert script.ask(10 + number, slo=LATER + (1 + number) * MS, model=popular) == 0
    order = []
    for _ in range(4):
        script.done(running)
        (running,) = execs(script.tick())
        order.append(script.ids(running))
    assert order == [[2], [10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]


def test_what_failed_is_tried_again_later_and_whoever_has_no_urgent_work_any_more_gets_all():
    script, _ = crowded_world()
    counters = script.world.counters[0]
    assert not allowed(script.world, script.now, 0)
    # without urgent requests for a second it has all, whatever was too much before
    assert allowed(script.world, script.now + SECOND, 0) and counters["background_level"] == 1
    relieve(script.world, script.now + 7 * SECOND)
    assert not allowed(script.world, script.now + 7 * SECOND, 0) and counters["background_level"] == 1
    relieve(script.world, script.now + 9 * SECOND)
    assert allowed(script.world, script.now + 9 * SECOND, 0) and counters["background_level"] == 2
    # the trial fails: the next one has twice as long to wait
    for _ in range(4):
        crowd(script.world, script.now + 10 * SECOND)
    assert counters["background_level"] == 1
    for seconds, level in ((25, 1), (27, 2)):
        relieve(script.world, script.now + seconds * SECOND)
        allowed(script.world, script.now + seconds * SECOND, 0)
        assert counters["background_level"] == level


@lean_kernel
def allowed(world, now_ns, gpu):
    return background.allowed(world, now_ns, gpu)


@lean_kernel
def crowd(world, now_ns):
    background.crowded(world, now_ns)


@lean_kernel
def relieve(world, now_ns):
    background.relieved(world, now_ns)


@dataclasses.dataclass
class Naive:
    """The rule in words: GPUs that may run background, by what urgent requests have lost."""

    level: int
    gpus: int
    running: int
    credit: int = 10 * 500
    failed: int = 0
    trial: bool = False
    wait_s: int = 0
    raise_ns: int = 0
    yielded_ns: int = 0
    urgent_ns: int = 0

    def _hold(self, now_ns):
        self.raise_ns = now_ns + (self.wait_s if self.level + 1 == self.failed else 1) * SECOND

    def crowded(self, now_ns):
        self.urgent_ns = now_ns
        if self.running == 0 or now_ns < self.yielded_ns + 100 * MS:
            return
        self.credit -= 500
        if self.credit >= 0:
            return
        if not self.trial:
            self.level = min(self.level, self.running)
        self.wait_s = min(max(self.wait_s * (2 if self.trial else 1), 8), 128)
        self.failed, self.level = self.level, max(self.level - 1, 0)
        self.trial, self.yielded_ns, self.credit = False, now_ns, 10 * 500
        self._hold(now_ns)

    def relieved(self, now_ns):
        self.urgent_ns = now_ns
        self.credit = min(self.credit + 1, 40 * 500)

    def allowed(self, now_ns):
        if now_ns >= self.urgent_ns + SECOND:
            return True
        patient = now_ns >= self.raise_ns + 128 * SECOND
        if self.level < self.gpus and now_ns >= self.raise_ns and (self.credit >= 3 * 500 or patient):
            if self.trial and self.level >= self.failed:
                self.wait_s = 0
            self.level, self.trial = self.level + 1, True
            self.credit = min(self.credit, 3 * 500)
            self._hold(now_ns)
        return self.running + 1 <= self.level


steps = st.lists(st.tuples(st.sampled_from(["crowded", "relieved", "allowed", "running"]), st.integers(1, 40),
                           st.sampled_from([MS, 200 * MS, 3 * SECOND, 200 * SECOND])), max_size=60)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_the_number_of_gpus_follows_its_twin(script):
    """Refusals, answers, questions and numbers of GPUs that run background, up to forty of a kind at a time."""
    gpus, now_ns = 4, 1_000 * SECOND
    world = make_world(Config(policy="cwd", gpus_max=gpus, models_max=1, programs_max=1, requests_max=1, copies_max=1,
                              actions_max=1, clients_max=1, events_max=1))
    counters = world.counters[0]
    counters["gpus_up"] = counters["background_level"] = gpus
    counters["background_credit"] = background.CREDIT_NEW
    twin = Naive(gpus, gpus, 0)
    for what, times, later_ns in script:
        for _ in range(times):
            if what == "crowded":
                crowd(world, now_ns)
                twin.crowded(now_ns)
            elif what == "relieved":
                for _ in range(50):
                    relieve(world, now_ns)
                    twin.relieved(now_ns)
            elif what == "allowed":
                assert allowed(world, now_ns, 0) == twin.allowed(now_ns)
            else:
                twin.running = counters["background_gpus"] = min(times % (gpus + 1), twin.level)
            now_ns += later_ns // times
        found = [int(counters[f"background_{name}"]) for name in ("level", "credit", "failed", "trial", "raise_ns")]
        assert found == [twin.level, twin.credit, twin.failed, int(twin.trial), twin.raise_ns]
    assert np.all(world.gpus["background"] == 0)
