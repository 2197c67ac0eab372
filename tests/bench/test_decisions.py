"""The bench of single decisions: its JSON, that it keeps the queue it promises, and that decisions are bounded in steps."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from cwd.bench import decisions
from cwd.cli.main import run as cwd
from cwd.core.presets import PRESETS

#: calls of kernels in 99 of 100 ticks, at most, whatever waits
STEPS = 4_000


def test_the_bench_is_one_object_with_a_row_per_policy_and_popularity(capfd):
    arguments = ["--models-list", "20", "--requests", "300", "--policies", "cwd", "--policies", "fifo", "--queued", "60",
                 "--ticks", "200"]
    assert cwd(["bench", "kernel", "--json", *arguments]) == 0
    facts = json.loads(capfd.readouterr()[0])
    assert [row["models"] for row in facts["rows"]] == [20] and facts["rows"][0]["ns_per_request"] > 0
    found = facts["decisions"]
    assert found["queued"] == 60 and found["models"] == 4026 and found["bound_us"] == 20 and found["clock_ns"] > 0
    assert [(row["policy"], row["popularity"]) for row in found["rows"]] == [
        (policy, popularity) for policy in ("cwd", "fifo") for popularity in ("even", "zipf")]
    for row in found["rows"]:
        assert row["ticks"] == 200 >= row["issuing"] > 0 and row["queued_least"] == row["queued_most"] == 60
        for kind in ("tick", "issuing", "arrival", "result"):
            assert 0 <= row[f"{kind}_p50_us"] <= row[f"{kind}_p99_us"] <= 1.05 * row[f"{kind}_max_us"]
    assert found["worst_tick_p99_us"] == max(row["tick_p99_us"] for row in found["rows"])


def test_an_unknown_policy_is_one_line(capfd):
    assert cwd(["bench", "kernel", "--models-list", "20", "--requests", "30", "--policies", "nosuch"]) != 0
    assert "no policy 'nosuch'" in capfd.readouterr()[1]


@pytest.mark.parametrize("policy", PRESETS)
def test_so_many_requests_wait_at_every_look(policy):
    drive = decisions.Drive(policy, queued=500, gpus=2, copies=2)
    drive.fill()
    drive.play(2000)
    facts = drive.facts
    assert facts["ticks"] == 2000 and facts["queued_least"] == facts["queued_most"] == 500
    assert 0 < facts["issuing"] < 2000 and int(drive.world.counters[0]["execs"]) > 0


def steps(policy: str, queued: int, copies: int) -> int:
    """The 99th percentile of the calls that a tick makes, in plain Python."""
    drive = decisions.Drive(policy, zipf=True, queued=queued, gpus=3, copies=copies, varieties=16)
    drive.fill()
    drive.play(queued)
    counts: list[int] = []

    def count(frame, event, argument):
        counts[-1] += event == "call"

    tick = decisions.engine.tick

    def counted(world, now_ns):
        counts.append(0)
        sys.setprofile(count)
        try:
            tick(world, now_ns)
        finally:
            sys.setprofile(None)

    decisions.engine.tick = counted
    try:
        drive.play(600)
    finally:
        decisions.engine.tick = tick
    return sorted(counts)[len(counts) * 99 // 100]


@pytest.mark.slow
def test_a_decision_takes_no_more_steps_however_much_waits():
    """Half of the policies in each of two processes, without the JIT."""
    here = pathlib.Path(__file__).resolve()
    program = "import json, sys, test_decisions as t; print(json.dumps({p: t.steps(p, 1500, 40) for p in sys.argv[1:]}))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": f"{here.parents[2]}:{here.parent}"}
    names = sorted(PRESETS)
    halves = [subprocess.Popen([sys.executable, "-c", program, *names[i::2]], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=environment) for i in range(2)]
    found = {}
    for half in halves:
        out, err = half.communicate(timeout=170)
        assert half.returncode == 0, err
        found.update(json.loads(out))
    assert set(found) == set(PRESETS)
    assert all(0 < most <= STEPS for most in found.values()), found
