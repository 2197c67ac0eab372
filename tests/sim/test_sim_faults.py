"""Worlds with faults: each kind alone, then all by chance; nothing is left in the end, and a seed repeats every byte."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwd.core.presets import PRESETS
from cwd.sim import checks, hidden, loop, play
from cwd.sim import faults as f
from cwd.sim.command import run
from cwd.sim.hidden import STRETCH_BITS, Mode
from cwd.sim.profile import RESNET50, profile
from cwd.sim.scenario import Fault, Load, Scenario, build
from cwd.sim.world import SOURCE_BURST, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

VALUES = {f.DEAD: (0, 300 * NS_PER_MS), f.CUT: (0, 300 * NS_PER_MS), f.LOST_RESULTS: (200_000, 0),
          f.LATE_RESULTS: (400 * NS_PER_MS, 0), f.SWALLOWED: (200_000, 0), f.SLOW: (10_000, 0), f.DEVICE_FAILS: (300_000, 0),
          f.BURST: (50, 0), f.OVERLOAD: (20_000, 0),
          f.REMOVED: (2, 0)}


def scenario(kind=None, policy="clockwork", seed=1):
    """Two seconds of load on two GPUs with the fault in the middle; then a few easy requests."""
    loads = (Load(SOURCE_POISSON, models=4, rate_rps=150.0, slo_ns=100 * NS_PER_MS, stop_ns=2 * NS_PER_S),
             Load(SOURCE_BURST, models=4, group=1, period_ns=100 * NS_PER_MS, count=1, slo_ns=2 * NS_PER_S,
                  start_ns=4 * NS_PER_S, stop_ns=5 * NS_PER_S))
    planned = () if kind is None else (Fault(NS_PER_S // 2, kind, 1, 0, 3 * NS_PER_S // 2, *VALUES[kind]),)
    return Scenario((profile(RESNET50),), (0,) * 4, loads, groups=("all", "easy"), gpus=2, pages=15, policy=policy,
                    seed=seed, faults=planned, warmup_ns=0, measure_ns=10 * NS_PER_S,
                    config=dict(requests_max=128, events_max=128))


def played(given):
    sim = build(given)
    play.start_measuring(sim)
    play.advance(sim, given, int(sim.state[0]["now_ns"]) + given.measure_ns)
    play.refuse_rest(sim, given)
    return sim


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_each_fault_leaves_its_mark_and_nothing_else(kind):
    plain, sim = played(scenario()), played(scenario(kind))
    assert plain.groups[0]["failed"] == 0 and plain.core.counters[0]["requeued"] == 0
    assert sim.state[0]["hash"] != plain.state[0]["hash"]
    counters, group = sim.core.counters[0], sim.groups[0]
    if kind in (f.LOST_RESULTS, f.SWALLOWED, f.LATE_RESULTS):
        assert counters["expired"] > 0
    if kind == f.LATE_RESULTS:
        assert counters["stale"] + counters["missed"] > 0
    if kind == f.DEVICE_FAILS:
        assert group["failed"] > 0
    if kind in (f.BURST, f.OVERLOAD):
        assert group["offered"] > plain.groups[0]["offered"] + 40
    if kind == f.REMOVED:
        # a fourth of a second's 150 requests
        assert 20 < group["failed"] + group["refused"] < 60 and sim.models[2] != plain.models[2]
    if kind in (f.DEAD, f.CUT):
        assert sim.gpus[1]["life"] == 1 and sim.core.gpus[1]["epoch"] == 3
    if kind == f.CUT:
        # its models stayed: fewer loads than after a death
        assert counters["loads"] <= played(scenario(f.DEAD)).core.counters[0]["loads"]


@pytest.mark.parametrize("policy", sorted(PRESETS))
@pytest.mark.parametrize("seed", range(3))
def test_small_worlds_by_chance(policy, seed):
    facts = run("soak", policy, seed, seconds=12.0)
    assert facts["rows"][0]["offered_rps"] > 0


@pytest.mark.parametrize(("policy", "seed"), [
    # a table of eight requests, all of which wait; a profile half as long as the truth; both
    ("symphony", 1), ("symphony", 10), ("nexus", 10), ("symphony", 19), ("symphony", 3),
    # a margin that had faded to the least seen; one left behind by a full batch
    ("symphony", 7), ("nexus", 23),
    # a model for whose pages others waited; a request given up by what was believed when it came
    ("symphony", 79), ("symphony", 30)])
def test_worlds_in_which_who_waited_on_purpose_was_late(policy, seed):
    assert run("soak", policy, seed)["rows"]


def test_overload_ends_when_it_was_planned_to():
    """Twenty times the rate for half a second in each two, and as much as before in the rest."""
    def offered(kind):
        sim = build(scenario(kind))
        counts = []
        for half in range(1, 5):
            play.advance(sim, scenario(kind), int(NS_PER_S + half * NS_PER_S // 2))
            counts.append(int(sim.state[0]["requests"]))
        return [after - before for before, after in zip([0, *counts], counts, strict=False)]

    plain, hit = offered(None), offered(f.OVERLOAD)
    assert hit[0] == plain[0] and min(hit[1:3]) > 4 * max(plain) and hit[3] < 2 * max(plain)


def test_requests_of_a_burst_draw_their_application_and_length_as_all_others():
    """A source whose requests all take four times their profile: so do those of a burst."""
    resnet = profile(RESNET50)
    loads = (Load(SOURCE_POISSON, rate_rps=1.0, slo_ns=NS_PER_S, modes=(Mode(7, 1.0, hidden.constant(4.0)),)),)
    given = Scenario((resnet,), (0,), loads, groups=("all",), gpus=1, pages=15, noise="none", warmup_ns=0,
                     measure_ns=NS_PER_S, faults=(Fault(NS_PER_S // 2, f.BURST, 0, 0, 0, 5, 0),),
                     config=dict(requests_max=64, events_max=64))
    sim = build(given)
    play.advance(sim, given, int(sim.state[0]["now_ns"]) + 4 * NS_PER_S)
    drawn = sim.calls[sim.calls["sent_ns"] > 0]
    assert len(drawn) >= 5 and set(drawn["app"]) == {7} and set(drawn["stretch"]) == {4 << STRETCH_BITS}


def hashes():
    """Of two policies in a world in which a GPU dies, by `scenario`; looked at whole now and then, since that is most of
    what takes long in plain Python."""
    found = []
    for policy in ("clockwork", "fifo"):
        sim = build(dataclasses.replace(scenario(f.DEAD, policy, seed=9), look_every=100))
        assert loop.run(sim, int(sim.state[0]["now_ns"]) + 5 * NS_PER_S // 2, 1 << 40) == loop.UNTIL
        assert checks.violation(sim) == ""
        found.append((f"{int(sim.state[0]['hash']):x}", int(sim.state[0]["records"]), int(sim.state[0]["requests"])))
    return found


def test_a_seed_gives_the_same_bytes_compiled_or_not():
    other = "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
    here = Path(__file__).resolve()
    environment = {**os.environ, "NUMBA_DISABLE_JIT": other, "PYTHONPATH": f"{here.parents[2]}:{here.parent}"}
    code = "import json, test_sim_faults as t; print(json.dumps(t.hashes()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    mine = hashes()
    assert json.loads(done.stdout) == [list(one) for one in mine]
    assert mine[0] != mine[1] and mine[0][1] > 500


def test_a_seed_repeats_every_byte_and_another_does_not():
    first, again = (json.dumps(run("fig5", "clockwork", 3, quick=True)) for _ in range(2))
    assert first == again
    assert json.loads(first)["digest"] != run("fig5", "clockwork", 4, quick=True)["digest"]
