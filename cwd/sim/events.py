"""What is to happen: the heap of events, the rows of calls and messages, the messages' delay, and the first violation."""

from __future__ import annotations

import numpy as np

from cwd.core.heap import NONE
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim.random import draw, quantile
from cwd.sim.world import CALLS_FULL, EVENTS_FULL, MESSAGE_FREE, MESSAGES_FULL


@inner_kernel
def violate(sim, number, a, b):
    """Stop the run: an invariant does not hold. The first violation stays."""
    state = sim.state[0]
    if state["violation"] == 0:
        state["violation"], state["violation_a"], state["violation_b"] = number, a, b


@inner_kernel
def _before(events, i, at_ns, sequence):
    if events[i]["at_ns"] != at_ns:
        return events[i]["at_ns"] < at_ns
    return events[i]["sequence"] < sequence


@inner_kernel
def _copy(source, target):
    target["at_ns"], target["sequence"], target["kind"] = source["at_ns"], source["sequence"], source["kind"]
    target["a"], target["b"], target["c"] = source["a"], source["b"], source["c"]


@lean_kernel
def push(sim, at_ns, kind, a, b, c):
    """Have something happen at `at_ns`, after what was already to happen then."""
    state, events = sim.state[0], sim.events
    i = state["events"]
    if i >= len(events):
        violate(sim, EVENTS_FULL, i, kind)
        return
    state["events"] = i + 1
    state["sequence"] += 1
    sequence = state["sequence"]
    while i > 0:
        parent = (i - 1) >> 2
        if _before(events, parent, at_ns, sequence):
            break
        _copy(events[parent], events[i])
        i = parent
    row = events[i]
    row["at_ns"], row["sequence"], row["kind"], row["a"], row["b"], row["c"] = at_ns, sequence, kind, a, b, c


@lean_kernel
def pop(sim):
    """Take the first event away; there is one."""
    state, events = sim.state[0], sim.events
    count = state["events"] - 1
    state["events"] = count
    if count == 0:
        return
    at_ns, sequence = events[count]["at_ns"], events[count]["sequence"]
    i = 0
    while 4 * i + 1 < count:
        best = 4 * i + 1
        for child in range(best + 1, min(best + 4, count)):
            if _before(events, child, events[best]["at_ns"], events[best]["sequence"]):
                best = child
        if not _before(events, best, at_ns, sequence):
            break
        _copy(events[best], events[i])
        i = best
    if i != count:
        _copy(events[count], events[i])


@inner_kernel
def take_call(sim):
    """A free row of `calls`, or NONE (a violation: the tables are large enough for all that can wait)."""
    state = sim.state[0]
    call = np.int64(state["free_call"])
    if call == NONE:
        violate(sim, CALLS_FULL, 0, 0)
        return call
    state["free_call"] = sim.calls[call]["next"]
    state["calls_live"] += 1
    sim.live[call] = 1
    sim.calls[call]["loops"] = 0
    return call


@inner_kernel
def free_call(sim, call):
    state, row = sim.state[0], sim.calls[call]
    sim.live[call] = 0
    row["next"] = state["free_call"]
    state["free_call"] = call
    state["calls_live"] -= 1


@inner_kernel
def take_message(sim):
    state = sim.state[0]
    message = np.int64(state["free_message"])
    if message == NONE:
        violate(sim, MESSAGES_FULL, 0, 0)
        return message
    state["free_message"] = sim.messages[message]["next"]
    state["messages_live"] += 1
    return message


@inner_kernel
def free_message(sim, message):
    state, row = sim.state[0], sim.messages[message]
    row["state"] = MESSAGE_FREE
    row["next"] = state["free_message"]
    state["free_message"] = message
    state["messages_live"] -= 1


@inner_kernel
def delay_ns(sim, stream):
    """A message's way through the network."""
    base_ns = sim.state[0]["network_ns"]
    if base_ns == 0:
        return base_ns
    return base_ns + quantile(sim.network_noise, draw(sim.random, stream))
