"""Compile, or load from the cache, the simulator's kernels: by playing a world of one model for a moment."""

from __future__ import annotations

from cwd.sim import loop, truth
from cwd.sim.profile import Profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.sim.world import SOURCE_POISSON
from cwd.units import NS_PER_MS


def warm() -> None:
    """Every kernel that Python calls."""
    profile = Profile("warm", (NS_PER_MS,) * 5, NS_PER_MS, 1)
    sim = build(Scenario((profile,), (0,), (Load(SOURCE_POISSON, rate_rps=1000.0),), pages=4))
    loop.run(sim, int(sim.state[0]["now_ns"]) + 100 * NS_PER_MS, 1000)
    truth.look(sim)
