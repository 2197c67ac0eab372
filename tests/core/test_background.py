"""Work that is not urgent: where it may run, and how its share follows what becomes of urgent requests."""

from __future__ import annotations

from script import MS, Script

from cwd.core import background
from cwd.core.world import ACTION_EXEC, OUT_ACTION
from cwd.errors import Code

URGENT, LATER = 4 * MS, 60_000 * MS


def execs(records):
    return [out for out in records if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]


def crowded_world():
    """Two GPUs that run background each, and an urgent request that was refused because of it: the two EXECs."""
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
    assert script.ask(10, slo=URGENT, model=script.urgent) == Code.DEADLINE_UNREACHABLE
    script.take()
    return script, running


def test_background_leaves_a_gpu_to_urgent_work_once_that_was_refused():
    """The GPU that still runs background goes on with it; the one that has ended waits for urgent requests, though idle."""
    script, (first, second) = crowded_world()
    assert script.done(first) == 0
    assert script.ask(2, slo=LATER) == 0
    assert [out["gpu"] for out in execs(script.tick())] == [second["gpu"]]
    assert script.ask(3, slo=LATER) == 0
    assert not execs(script.tick())
    assert script.ask(11, slo=URGENT, model=script.urgent) == 0
    (answer,) = execs(script.tick())
    assert (answer["gpu"], script.ids(answer)) == (first["gpu"], [11])


def test_urgent_answers_in_time_give_the_share_back():
    """A thousand of them make up for one refusal."""
    script, (first, second) = crowded_world()
    counters = script.world.counters[0]
    assert counters["background_share"] == background.GPU_UNITS
    assert script.done(first) == 0 and script.done(second, later=0) == 0
    # until the refusal is forgotten a batch would wait for more
    script.tick(later=100 * MS)
    for number in range(background.GPU_UNITS):
        assert script.ask(100 + number, slo=20 * MS, model=script.urgent) == 0
        (out,) = execs(script.tick())
        assert script.done(out) == 0
        script.take()
    assert counters["background_share"] == 2 * background.GPU_UNITS


def test_one_cause_counts_once():
    """Requests that come while the same batches run are refused for the same reason."""
    script, _ = crowded_world()
    for number in range(20, 40):
        assert script.ask(number, slo=URGENT, model=script.urgent) == Code.DEADLINE_UNREACHABLE
    assert script.world.counters[0]["background_share"] == background.GPU_UNITS
