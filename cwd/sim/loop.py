"""The kernel of the simulator: one instant after another, keeping the host's duties (core/DESIGN.md).

All that is due at an instant is taken first, fed to the core where it concerns it, then the core ticks, then its
outbox is carried out. The core is also ticked at exactly the time for which it asks.
"""

from __future__ import annotations

import numpy as np

from cwd.core import engine
from cwd.core.heap import NONE
from cwd.core.world import ACTION_EXEC, FOREVER_NS, SLOT_MASK
from cwd.errors import Code
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim import faults, gpus, replies, sources, truth
from cwd.sim.events import free_message, pop, violate
from cwd.sim.world import (
    ACTION_ENDED_TWICE, BROKEN_CORE, EVENT_ACTION, EVENT_FAULT, EVENT_LOST, EVENT_REQUEST, EVENT_RESULT, MESSAGE_HELD,
)

OK = int(Code.OK)

#: why `run` came back: the time is up, so many instants were played, an invariant does not hold
UNTIL, STEPS, BROKEN = 0, 1, 2


@inner_kernel
def _next_ns(sim):
    """When something happens next."""
    state, at_ns = sim.state[0], FOREVER_NS
    if state["timers"] > 0:
        at_ns = min(at_ns, sim.timers[0]["key"])
    if state["events"] > 0:
        at_ns = min(at_ns, sim.events[0]["at_ns"])
    return at_ns


@lean_kernel
def run(sim, until_ns, instants):
    """Play up to `until_ns`, at most so many instants (those at which the core was called); why it came back."""
    state = sim.state[0]
    played = 0
    while played < instants:
        at_ns = min(_next_ns(sim), engine.next_timer(sim.core, state["now_ns"]))
        if at_ns > until_ns:
            state["now_ns"] = until_ns
            return UNTIL
        played += _instant(sim, max(at_ns, state["now_ns"]))
        if state["violation"] != 0:
            return BROKEN
    return STEPS


@inner_kernel
def _instant(sim, now_ns):
    """Everything that is due now; 1 if the core was called."""
    state, core = sim.state[0], sim.core
    state["now_ns"] = now_ns
    fed = np.int64(0)
    while fed < state["events_max"]:
        if state["timers"] > 0 and sim.timers[0]["key"] <= now_ns:
            fed += _timer(sim, sim.timers[0]["id"], now_ns)
        elif state["events"] > 0 and sim.events[0]["at_ns"] <= now_ns:
            fed += _event(sim, now_ns)
        else:
            break
    if fed == 0 and engine.next_timer(core, now_ns) > now_ns:
        return 0
    engine.tick(core, now_ns)
    if core.counters[0]["broken"] != 0:
        violate(sim, BROKEN_CORE, core.counters[0]["broken"], 0)
        return 1
    replies.flush(sim, now_ns)
    state["instants"] += 1
    if truth.due(sim):
        truth.look(sim)
    return 1


@inner_kernel
def _timer(sim, timer, now_ns):
    """A source's request has arrived, or a lane must be looked at; how many events the core was fed."""
    if timer < len(sim.sources):
        sources.due(sim, timer, now_ns)
        return 1
    gpus.step(sim, timer - len(sim.sources), now_ns)
    return 0


@inner_kernel
def _event(sim, now_ns):
    """Take the first event; how many events the core was fed."""
    row = sim.events[0]
    kind, a, b = np.int64(row["kind"]), np.int64(row["a"]), np.int64(row["b"])
    pop(sim)
    if kind == EVENT_REQUEST:
        sources.arrive(sim, a, now_ns)
        return 1
    if kind == EVENT_ACTION:
        gpus.arrive(sim, a, now_ns)
        return 0
    if kind == EVENT_RESULT:
        return _result(sim, a, now_ns)
    if kind == EVENT_FAULT:
        return faults.begin_or_end(sim, a, b, now_ns)
    return faults.controller_hears(sim, a, b, 0 if kind == EVENT_LOST else 1, now_ns)


@inner_kernel
def _result(sim, message, now_ns):
    """A result has reached the controller; it keeps the outputs until the core lets them go."""
    row, core = sim.messages[message], sim.core
    if row["life"] != sim.gpus[row["gpu"]]["life"]:
        free_message(sim, message)
        return 0
    executed = row["verb"] == ACTION_EXEC and row["status"] == OK
    handle, rows_done = (message, row["rows"]) if executed else (np.int64(NONE), np.int64(0))
    row["state"] = MESSAGE_HELD
    device_ns = row["end_ns"] - row["begin_ns"]
    stale = engine.action_done(core, now_ns, row["action"], row["status"], row["begin_ns"], row["end_ns"], device_ns,
                               rows_done, row["pages_free"], handle)
    if stale != 0:
        free_message(sim, message)
        return 1
    issued = sim.issued[row["action"] & SLOT_MASK]
    if issued["action"] != row["action"] or issued["settled"] != 0:
        violate(sim, ACTION_ENDED_TWICE, row["action"], issued["action"])
    issued["settled"] = 1
    if handle == NONE:
        free_message(sim, message)
    return 1
