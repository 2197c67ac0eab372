"""Hidden durations: the tables of modes and gaps, and that batches take as long as the longest of their requests."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.core import histograms
from cwd.errors import CwdError
from cwd.sim import command, hidden, loop, play
from cwd.sim.experiments import orloj
from cwd.sim.hidden import Mode
from cwd.sim.profile import Profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.sim.stats import percentile_ns
from cwd.sim.world import SOURCE_BURST, SOURCE_GAMMA, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

FAST = Profile("fast", (NS_PER_MS // 10,) * 5, NS_PER_MS, 1)
#: small worlds are looked at whole after every instant, so tables are no larger than they must be
TABLES = dict(requests_max=256, events_max=256)
SLOW = Profile("slow", tuple(10 * NS_PER_MS for _ in range(5)), NS_PER_MS, 1)


def drawn(table, rng, count):
    return np.interp(rng.random(count) * 2.0 ** 32, table[:, 0], table[:, 1]) / 2 ** hidden.STRETCH_BITS


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_are_those_of_numpy(cv):
    rng = np.random.default_rng(1)
    ours, theirs = drawn(hidden.gamma_gaps(cv), rng, 400_000), rng.gamma(1 / cv ** 2, cv ** 2, 400_000)
    assert ours.mean() == pytest.approx(1.0, rel=0.03)
    assert ours.std() == pytest.approx(cv, rel=0.05)
    for share in (0.5, 0.9, 0.99):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), rel=0.08, abs=1e-3)


def test_what_is_known_of_a_mixture_is_what_sampling_says():
    modes, rng = orloj.WORKLOADS["skew2"], np.random.default_rng(2)
    values = np.where(rng.random(320_000) < 0.9, rng.normal(8, 0.8, 320_000), rng.normal(80, 8, 320_000))
    assert hidden.percentile(modes, 0.99) == pytest.approx(np.quantile(values, 0.99), rel=0.02)
    assert hidden.mean_of_largest(modes, 1) == pytest.approx(values.mean(), rel=0.02)
    assert hidden.mean_of_largest(modes, 16) == pytest.approx(values.reshape(-1, 16).max(axis=1).mean(), rel=0.02)


def test_the_tables_draw_what_the_modes_say():
    kinds, points = hidden.tables(orloj.WORKLOADS["bi2"])
    assert kinds.tolist() == [[1, 1 << 31], [2, 1 << 32]]
    values = drawn(points[1], np.random.default_rng(3), 100_000)
    assert values.mean() == pytest.approx(50, rel=0.01) and values.std() == pytest.approx(5, rel=0.03)


def play_one(load, profile, seconds=10):
    sim = build(Scenario((profile,), (0,), (load,), pages=4, noise="none", policy="fifo", warmup_ns=0,
                         measure_ns=seconds * NS_PER_S, clock_error_ns=0, seed=4, config=TABLES))
    play.start_measuring(sim)
    assert loop.run(sim, int(sim.state[0]["now_ns"]) + seconds * NS_PER_S, 1 << 40) == loop.UNTIL
    return sim


def test_a_gamma_source_has_its_rate():
    sim = play_one(Load(SOURCE_GAMMA, rate_rps=400.0, gap_cv=2.0), FAST, seconds=30)
    assert abs(int(sim.groups[0]["offered"]) - 12_000) < 1_000


def test_modes_have_their_shares_and_a_batch_takes_the_longest_of_it():
    """Bursts of sixteen, of which a quarter take three times as long: an execution takes 10 ms or 30, and most take 30."""
    modes = (Mode(1, 0.75, hidden.constant(1.0)), Mode(2, 0.25, hidden.constant(3.0)))
    sim = play_one(Load(SOURCE_BURST, count=16, period_ns=200 * NS_PER_MS, slo_ns=150 * NS_PER_MS, modes=modes), SLOW)
    stretches = sim.calls["stretch"][sim.calls["stretch"] > 0]
    assert set(stretches.tolist()) <= {1 << hidden.STRETCH_BITS, 3 << hidden.STRETCH_BITS}
    assert sim.core.counters[0]["rows"] > 4 * sim.core.counters[0]["execs"]
    took = {round(int(ns) / NS_PER_MS) for row in sim.core.estimates[:5] for ns in row["samples"]}
    # what is old fades, but never below the profile
    assert (min(took), max(took)) == (10, 30)
    # all of a batch are late or in time together, so the mean latency tells: more than half waited for a long one
    assert 30 * NS_PER_MS < percentile_ns(sim.histogram[0], 0.5)


def test_an_application_is_what_the_core_sees():
    load = Load(SOURCE_POISSON, rate_rps=200.0, modes=(Mode(7, 0.5, hidden.constant(1.0)), Mode(9, 0.5, hidden.constant(4.0))))
    sim = build(Scenario((FAST,), (0,), (load,), pages=4, policy="orloj", seed=5, config=TABLES))
    play.start_measuring(sim)
    loop.run(sim, 5 * NS_PER_S, 1 << 40)
    assert sim.core.counters[0]["apps"] == 2
    first = len(sim.core.programs)
    means = sorted(int(histograms.middle(sim.core.histograms[first + i])) / histograms.STRETCH for i in range(2))
    assert means == [pytest.approx(1.0, rel=0.15), pytest.approx(4.0, rel=0.15)]


def test_a_first_execution_that_is_the_longest_turns_nobody_away():
    """Of this seed the one that makes the program dynamic takes longer, alone, than the clients can wait."""
    facts = command.run("orloj", "cwd", 4, objective="goodput", workloads="logn", c1="0.1", multiples="1.5", rhos="1", cvs="4",
                        requests=2_000)
    assert facts["rows"][0]["on_time"] > 0.3


def test_quick_is_one_setting_of_each_workload_and_texts_want_a_folder(tmp_path):
    assert [point.swept["workload"] for point in orloj.points(quick=True)] == list(orloj.WORKLOADS)
    for corpus, mean in zip(orloj.CORPORA, (10, 25, 60), strict=True):
        np.savez(tmp_path / corpus, lengths=np.array([2, mean - 5, mean, mean + 5], np.uint16))
    (point,) = orloj.points(quick=True, workloads="texts", texts=str(tmp_path))
    assert [mode.app for mode in point.scenario.loads[0].modes] == [1, 2, 3]
    with pytest.raises(CwdError, match="tokens_trec"):
        next(orloj.points(workloads="texts", texts=str(tmp_path / "nosuch")))


@pytest.mark.parametrize("options, text", [
    ({"workloads": "nosuch"}, "no workload 'nosuch'"), ({"c1": "2"}, "c1"), ({"rhos": "x"}, "rhos"), ({"cvs": "0"}, "cvs")])
def test_settings_that_cannot_be(options, text):
    with pytest.raises(CwdError, match=text):
        list(orloj.points(**options))
