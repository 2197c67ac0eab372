"""A recorded run in the simulator: durations in turn, deadlines kept, the core taken up where it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cwd.core import engine
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, SLOT_MASK, Config, make_world
from cwd.errors import Code, CwdError
from cwd.sim.recorded import ARRIVAL, TAKEN, Durations, RecordedRun

MS = 1_000_000
NOW_NS = 5_000 * MS
CONFIG = Config(models_max=8, programs_max=2, requests_max=256, gpus_max=2, copies_max=16, actions_max=128, clients_max=4,
                kinds_max=1, classes_max=2, events_max=64)
#: what is expected, by batch size 1, 2, 4; the larger size class takes twice that
EXEC_NS = (4 * MS, 6 * MS, 10 * MS)
DELAYS_NS = np.array([100_000, 150_000, 200_000])


def idle_core(config=CONFIG):
    """One GPU with room for two of three models, of which it has the first."""
    core = make_world(config)
    for program, classes in ((0, 2), (1, 1)):
        engine.program_added(core, program, np.array([1, 2, 4], np.int64), 3, classes)
        for b, exec_ns in enumerate(EXEC_NS):
            for size_class in range(classes):
                engine.estimate_seed(core, program, 0, b, size_class, exec_ns * (1 + size_class))
        engine.load_seed(core, program, 0, 3 * MS)
    engine.gpu_joined(core, NOW_NS, 0, 0, 10)
    models = [int(engine.model_added(core, NOW_NS, program, 5)) for program in (0, 0, 1)]
    for program in (0, 1):
        engine.program_prepared(core, NOW_NS, 0, program, 1)
    engine.gpu_resident(core, NOW_NS, 0, models[0])
    engine.tick(core, NOW_NS)
    core.counters[0]["outbox_count"] = 0
    return core, models


def requests(models, count, gap_ns, slo_ns=60 * MS):
    rows = np.zeros(count, ARRIVAL)
    rows["at_ns"] = NOW_NS + MS + np.arange(count) * gap_ns
    rows["model"] = [models[i % len(models)] for i in range(count)]
    rows["size_class"] = [i % 2 if i % len(models) < 2 else 0 for i in range(count)]
    rows["slo_ns"], rows["deadline_ns"] = slo_ns, rows["at_ns"] + slo_ns
    return rows


def taken(stretch: int = 1, executions: int = 500):
    rows = []
    for program, classes in ((0, 2), (1, 1)):
        rows += [(ACTION_LOAD, program, 0, 0, 3 * MS * stretch)]
        rows += [(ACTION_EXEC, program, batch, size_class, exec_ns * (1 + size_class) * stretch)
                 for batch, exec_ns in zip((1, 2, 4), EXEC_NS, strict=True) for size_class in range(classes)] * executions
    return np.array(rows, TAKEN)


def play(count=120, gap_ns=5 * MS, durations=None, which=(0, 1, 2)):
    core, models = idle_core()
    durations = np.zeros(0, TAKEN) if durations is None else durations
    return RecordedRun(CONFIG, core, NOW_NS, requests([models[i] for i in which], count, gap_ns), durations, DELAYS_NS).play()


def test_a_load_that_can_be_served_is_served_and_every_action_is_counted():
    outcome = play(durations=taken())
    assert (outcome.status == Code.OK).all()
    execs = outcome.issued[outcome.issued["verb"] == ACTION_EXEC]
    loads = outcome.issued[outcome.issued["verb"] == ACTION_LOAD]
    # the second and third model are loaded; the one that was there is not
    assert execs["rows"].sum() == 120 and 2 <= len(loads) and loads["model"][0] != execs["model"][0]
    assert outcome.taken + outcome.repeated == len(execs) + len(loads) and outcome.never_run == 0
    # one LOAD per program was recorded
    assert outcome.repeated == max(len(loads) - 2, 0)


def test_what_was_never_run_takes_what_is_expected():
    expected, recorded = play(), play(durations=taken())
    assert expected.never_run == len(expected.issued[np.isin(expected.issued["verb"], (ACTION_EXEC, ACTION_LOAD))])
    assert (expected.status == recorded.status).all() and (expected.issued == recorded.issued).all()


def test_longer_durations_make_some_late_or_refused():
    quick, slow = play(300, 3 * MS, taken()), play(300, 3 * MS, taken(stretch=4))
    assert (quick.status == Code.OK).sum() > 1.5 * (slow.status == Code.OK).sum() > 0
    assert set(slow.status.tolist()) <= {Code.OK, Code.DEADLINE_UNREACHABLE, Code.DEADLINE_EXPIRED, Code.DEADLINE_MISSED}


def test_requests_keep_their_applications():
    """The core tells executions that depend on data apart by them."""
    config = dataclasses.replace(CONFIG, policy="orloj")
    core, models = idle_core(config)
    arrivals = requests(models, 60, 5 * MS)
    arrivals["app"] = [3 + i % 4 for i in range(60)]
    outcome = RecordedRun(config, core, NOW_NS, arrivals, taken(), DELAYS_NS).play()
    assert (outcome.status == Code.OK).any()
    programs = [core.models[model & SLOT_MASK]["program"] for model in models]
    asked = {(programs[i % 3], 3 + i % 4) for i in range(60)}
    assert core.counters[0]["apps"] == len(asked)


def test_the_same_again():
    one, two = play(200, 2 * MS, taken()), play(200, 2 * MS, taken())
    assert (one.status == two.status).all() and (one.issued == two.issued).all()


def test_durations_come_in_turn_and_start_again():
    rows = np.array([(ACTION_EXEC, 0, 1, 0, 7), (ACTION_EXEC, 0, 2, 0, 9), (ACTION_EXEC, 0, 1, 0, 8)], TAKEN)
    durations, key, found = Durations(rows), (ACTION_EXEC, 0, 1, 0), []
    for _ in range(5):
        found.append(durations.peek(key, 99))
        durations.begun(key)
    durations.begun((ACTION_LOAD, 0, 0, 0))
    assert found == [7, 8, 7, 8, 7] and durations.peek((ACTION_LOAD, 0, 0, 0), 99) == 99
    assert (durations.taken, durations.repeated, durations.never_run) == (2, 3, 1)


def test_a_core_that_is_busy_cannot_be_taken_up():
    core, models = idle_core()
    engine.request_arrived(core, NOW_NS, 0, 1, models[0], 0, 0, 60 * MS, 0, -1)
    with pytest.raises(CwdError, match="1 requests and 0 actions were under way"):
        RecordedRun(CONFIG, core, NOW_NS, requests(models, 3, MS), taken(), DELAYS_NS)
