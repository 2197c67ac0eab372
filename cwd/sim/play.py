"""Play a scenario: run the kernel in pieces, look at the whole world in between, and stop at what must not be."""

from __future__ import annotations

import time
from collections.abc import Callable

from cwd.core.presets import PRESETS
from cwd.errors import InvariantError
from cwd.sim import checks, loop, truth
from cwd.sim.scenario import Scenario, small
from cwd.sim.world import SimWorld
from cwd.units import NS_PER_S

#: virtual time between two progress reports
PIECE_NS = NS_PER_S

INSTANTS_MAX = 1 << 60

Progress = Callable[[int, int], None]


def advance(sim: SimWorld, scenario: Scenario, until_ns: int, start_ns: int = 0, end_ns: int = 0,
            progress: Progress | None = None) -> int:
    """Play up to `until_ns`; the kernel looks at the whole world as often as the scenario says, and so do we at the end.

    Returns the processor time that the kernel took, ns: the machine's, not the world's. Raises `InvariantError` with
    policy, seed, time and number of the instant at the first violation. `start_ns` and `end_ns` are of the whole run, for
    `progress`.
    """
    state = sim.state[0]
    piece_ns, took_ns = int(state["now_ns"]), 0
    while piece_ns < until_ns:
        piece_ns = min(piece_ns + PIECE_NS, until_ns)
        begun_ns = time.thread_time_ns()
        ended = loop.run(sim, piece_ns, INSTANTS_MAX)
        took_ns += time.thread_time_ns() - begun_ns
        if ended != loop.UNTIL:
            look(sim, scenario)
        if progress is not None:
            progress(piece_ns - start_ns, end_ns - start_ns)
    look(sim, scenario)
    return took_ns


def look(sim: SimWorld, scenario: Scenario) -> None:
    """Raise `InvariantError` if the world is not as it must be."""
    if not checks.violation(sim):
        truth.look(sim)
    # plain Python costs minutes in a world of thousands of models, and has its say in small ones
    found = checks.violation(sim) or (checks.check(sim) if small(scenario) else "")
    if found:
        _stop(sim, scenario, found)


def refuse_rest(sim: SimWorld, scenario: Scenario) -> None:
    """Raise `InvariantError` if anything is left to do, or the last group was not served wholly in time.

    A policy whose models keep their pages while they wait must serve it wholly only where all fit side by side.
    """
    pages = sum(scenario.profiles[program].pages for program in scenario.models)
    found = checks.rest(sim, PRESETS[scenario.policy].keeps_pages == 0 or pages <= scenario.pages)
    if found:
        _stop(sim, scenario, found)


def _stop(sim: SimWorld, scenario: Scenario, found: str) -> None:
    state = sim.state[0]
    at_s = (int(state["now_ns"]) - NS_PER_S) / NS_PER_S
    instant = int(state["instants"])
    raise InvariantError(f"policy {scenario.policy}, seed {scenario.seed}, {at_s:.9f} s, instant {instant}: {found}")


def start_measuring(sim: SimWorld) -> None:
    """From here on what reaches the clients is counted; what was counted before is forgotten."""
    for name in sim.groups.dtype.names:
        if name != "batch":
            sim.groups[name] = 0
    sim.served["answered"] = sim.served["on_time"] = 0
    sim.histogram[:] = 0
    counters = sim.core.counters[0]
    state = sim.state[0]
    state["execs_before"], state["rows_before"] = counters["execs"], counters["rows"]
    state["measuring"], state["measured_ns"] = 1, state["now_ns"]
