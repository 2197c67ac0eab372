"""The compiled simulator against its naive twin: the same requests give the same outbox, record by record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_sim import NaiveSim, naive_hash, trace_of

from cwd.core.presets import PRESETS
from cwd.sim import checks, loop
from cwd.sim.profile import Profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.sim.world import SOURCE_TRACE
from cwd.units import NS_PER_MS, NS_PER_S

PROFILES = (Profile("small", tuple(NS_PER_MS * n for n in (2, 3, 5, 9, 17)), 5 * NS_PER_MS, 2),
            Profile("large", tuple(NS_PER_MS * n for n in (7, 9, 13, 21, 37)), 12 * NS_PER_MS, 5))
MODELS = (0, 0, 1, 1, 0)

#: odd instants, so that nothing of one chain of events falls on the same nanosecond as another's by design
requests = st.lists(st.tuples(st.integers(0, 400_000).map(lambda us: us * 1_000 + us % 997), st.integers(0, 4)),
                    min_size=1, max_size=60, unique_by=lambda request: request[0])


@pytest.mark.parametrize("policy", sorted(PRESETS))
@settings(max_examples=25, deadline=None)
@given(requests=requests, gpus=st.integers(1, 2), pages=st.integers(5, 12), slo_ms=st.integers(10, 120))
def test_it_does_what_its_naive_twin_does(policy, requests, gpus, pages, slo_ms):
    load = Load(SOURCE_TRACE, trace=trace_of(requests), slo_ns=slo_ms * NS_PER_MS)
    scenario = Scenario(PROFILES, MODELS, (load,), gpus=gpus, pages=pages, policy=policy, noise="none", clock_error_ns=0,
                        config=dict(requests_max=128, events_max=64))
    sim, twin = build(scenario), build(scenario)
    naive = NaiveSim(twin.core, PROFILES, twin.models.tolist(), gpus, pages, scenario.network_ns)
    for at, model in sorted(requests):
        naive.request(NS_PER_S + at, model, load.slo_ns)
    until = 4 * NS_PER_S
    naive.run(until)
    sim.state["measuring"] = 1
    assert loop.run(sim, until, 1 << 40) == loop.UNTIL, checks.violation(sim)
    assert sim.state[0]["records"] == len(naive.records)
    assert sim.state[0]["hash"] == naive_hash(naive.records)
    in_time = sum(status == 0 and at <= NS_PER_S + sorted(requests)[number - 1][0] + load.slo_ns
                  for number, status, at in naive.replies)
    assert sim.groups[0]["on_time"] == in_time and sim.groups[0]["offered"] == len(requests)
    assert checks.check(sim) == ""
