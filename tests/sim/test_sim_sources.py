"""Sources: how many requests come, when, for whom; closed loops and their pauses; clients that try again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwd.errors import CwdError
from cwd.sim import loop, play
from cwd.sim.faults import DEAD
from cwd.sim.profile import Profile
from cwd.sim.scenario import Fault, Load, Scenario, build
from cwd.sim.sources import share_of
from cwd.sim.world import SOURCE_BURST, SOURCE_CLOSED, SOURCE_MINUTES, SOURCE_MMPP, SOURCE_POISSON, SOURCE_TRACE
from cwd.units import NS_PER_MS, NS_PER_S

FAST = Profile("fast", (NS_PER_MS // 10,) * 5, NS_PER_MS, 1)
#: small worlds are looked at whole after every instant, so tables are no larger than they must be
TABLES = dict(requests_max=256, events_max=256)


def world(load, *, profile=FAST, models=1, seconds=10, **more):
    """Play one source and count."""
    scenario = Scenario((profile,), (0,) * models, (load,), pages=64, warmup_ns=0, measure_ns=seconds * NS_PER_S,
                        clock_error_ns=0, config=TABLES, **more)
    sim = build(scenario)
    play.start_measuring(sim)
    assert loop.run(sim, int(sim.state[0]["now_ns"]) + scenario.measure_ns, 1 << 40) == loop.UNTIL
    return sim


def test_poisson_has_its_rate_and_spreads_over_its_models():
    sim = world(Load(SOURCE_POISSON, models=4, rate_rps=300.0), models=4)
    assert abs(int(sim.groups[0]["offered"]) - 3000) < 200
    assert all(abs(int(n) - 750) < 120 for n in sim.served["answered"])


def test_models_join_one_after_another():
    sim = world(Load(SOURCE_POISSON, models=10, rate_rps=100.0, period_ns=NS_PER_S), models=10)
    counts = sim.served["answered"].tolist()
    # the first has sum(100 / k), the last a tenth of its one second
    assert abs(counts[0] - 293) < 70 and counts[9] < 25 and abs(sum(counts) - 1000) < 120


def test_mmpp_has_the_mean_of_its_two_rates():
    load = Load(SOURCE_MMPP, rate_rps=20.0, rate2_rps=400.0, dwell_ns=300 * NS_PER_MS, dwell2_ns=100 * NS_PER_MS)
    sim = world(load, seconds=30)
    assert abs(int(sim.groups[0]["offered"]) / 30 - 115) < 35


def test_a_trace_is_played_as_it_is():
    trace = np.array([[5, 1], [5, 0], [NS_PER_MS, 2], [2 * NS_PER_S, 1]], np.int64)
    sim = world(Load(SOURCE_TRACE, trace=trace), models=3)
    assert sim.served["answered"].tolist() == [1, 2, 1]


def test_two_traces_lie_one_after_the_other():
    first, second = np.array([[5, 1]], np.int64), np.array([[7, 2], [9, 2]], np.int64)
    loads = (Load(SOURCE_TRACE, trace=first), Load(SOURCE_TRACE, trace=second))
    sim = build(Scenario((FAST,), (0, 0, 0), loads, pages=64))
    play.start_measuring(sim)
    loop.run(sim, 2 * NS_PER_S, 1 << 40)
    assert sim.served["answered"].tolist() == [0, 1, 2]


def test_bursts_come_each_period():
    sim = world(Load(SOURCE_BURST, period_ns=NS_PER_S, count=7, gap_ns=1_000, start_ns=NS_PER_S // 2))
    assert sim.groups[0]["offered"] == 70


def test_minutes_have_their_rates():
    rates = np.array([[60_000_000 * 50, 0, 60_000_000 * 200]], np.int64)
    counts = []
    scenario = Scenario((FAST,), (0,), (Load(SOURCE_MINUTES, count=0),), pages=64, rates=rates, minutes_ns=5 * NS_PER_S,
                        config=TABLES)
    sim = build(scenario)
    for minute in range(4):
        play.start_measuring(sim)
        loop.run(sim, (1 + 5 * (minute + 1)) * NS_PER_S, 1 << 40)
        counts.append(int(sim.groups[0]["offered"]))
    assert abs(counts[0] - 250) < 80 and counts[1] <= 1 and abs(counts[2] - 1000) < 160 and counts[3] <= 1


def test_minutes_of_many_models_have_their_shares():
    """In the first minute all is for the second model, in the next half for each of the others."""
    whole = 1 << 32
    shares = np.array([[0, whole, whole], [whole // 2, whole // 2, whole]], np.int64)
    rates = np.array([[60_000_000 * 100, 60_000_000 * 200]], np.int64)
    loads = tuple(Load(SOURCE_MINUTES, models=3) for _ in range(2))
    scenario = Scenario((FAST,), (0, 0, 0), loads, pages=64, rates=rates, shares=shares, minutes_ns=5 * NS_PER_S,
                        config=TABLES)
    sim = build(scenario)
    found = []
    for minute in range(2):
        play.start_measuring(sim)
        loop.run(sim, (6 + 5 * minute) * NS_PER_S, 1 << 40)
        found.append(sim.served["answered"].tolist())
    assert found[0][0] == found[0][2] == 0 and abs(found[0][1] - 1000) < 160
    assert found[1][1] <= 2 and abs(found[1][0] - 1000) < 160 and abs(found[1][2] - 1000) < 160


@given(st.lists(st.integers(0, 40), min_size=1, max_size=70), st.integers(0, 1 << 32))
def test_a_share_is_found(counts, draw):
    """The first edge above the draw, and never a model without a share."""
    edges = np.cumsum(counts)
    edges[-1] += 1
    u = draw * int(edges[-1]) // ((1 << 32) + 1)
    assert share_of(edges, u) == int(np.searchsorted(edges, u, side="right"))


@pytest.mark.parametrize("load, text", [
    (Load(SOURCE_MINUTES, models=1, rate_rps=1.0, model=5), "models that are not there"),
    (Load(SOURCE_POISSON, model=1, rate_rps=1.0), "models that are not there"),
    (Load(SOURCE_BURST, period_ns=10, count=0), "a burst"), (Load(SOURCE_BURST, period_ns=10, count=3, gap_ns=4), "a burst"),
    (Load(SOURCE_MMPP, rate_rps=1.0, rate2_rps=1.0), "MMPP"),
])
def test_nonsense_is_refused(load, text):
    with pytest.raises(CwdError, match=text):
        build(Scenario((FAST,), (0,), (load,), pages=64))


def test_shares_fit_their_source():
    load = Load(SOURCE_MINUTES, models=2)
    for shares in (None, np.zeros((1, 2), np.int64), np.zeros((2, 3), np.int64)):
        with pytest.raises(CwdError, match="shares"):
            build(Scenario((FAST,), (0, 0), (load,), pages=64, rates=np.zeros((1, 2), np.int64), shares=shares))


def test_sources_stop():
    sim = world(Load(SOURCE_POISSON, rate_rps=100.0, stop_ns=NS_PER_S))
    assert 60 < sim.groups[0]["offered"] < 140
    assert world(Load(SOURCE_CLOSED, in_flight=3, stop_ns=NS_PER_S)).state[0]["timers"] == 0


def test_a_closed_loop_has_so_many_in_flight():
    sim = world(Load(SOURCE_CLOSED, models=2, in_flight=3), models=2, seconds=1)
    assert sim.state[0]["calls_live"] == 6
    assert sim.groups[0]["on_time"] > 1_000


#: the only GPU dies at once: every request is refused with NO_WORKER
NOBODY = (Fault(0, DEAD, until_ns=3600 * NS_PER_S),)


def test_a_refused_client_waits_a_millisecond():
    """Nobody serves: a round trip and the pause, again and again."""
    sim = world(Load(SOURCE_CLOSED, in_flight=1), faults=NOBODY, noise="none", seconds=12)
    tries = int(sim.groups[0]["attempts"])
    assert sim.groups[0]["refused"] == sim.groups[0]["offered"] == tries
    assert tries == pytest.approx(12 * NS_PER_S / 1_200_000, abs=3)


def test_an_open_client_tries_again_and_is_counted_once():
    load = Load(SOURCE_BURST, period_ns=NS_PER_S, count=1, slo_ns=30 * NS_PER_MS, tries_max=4, start_ns=NS_PER_MS)
    group = world(load, faults=NOBODY).groups[0]
    assert group["offered"] == group["refused"] == 10 and group["attempts"] == 50


def test_an_open_client_gives_up_at_its_deadline():
    load = Load(SOURCE_BURST, period_ns=NS_PER_S, count=1, slo_ns=3 * NS_PER_MS, tries_max=100, start_ns=NS_PER_MS)
    group = world(load, faults=NOBODY, noise="none").groups[0]
    assert group["offered"] == 10 and group["attempts"] == 30


def test_policies_meet_the_same_arrivals():
    load = Load(SOURCE_POISSON, rate_rps=500.0, models=2, slo_ns=20 * NS_PER_MS)
    counts = {policy: world(load, models=2, policy=policy, seconds=2).served["answered"].tolist()
              for policy in ("fifo", "clockwork")}
    assert abs(counts["fifo"][0] - counts["clockwork"][0]) <= 2
