"""Where requests come from: open-loop sources, each with its next request in a heap, and closed loops that wait.

A source's time is its client's; the request reaches the controller a network's delay later, in the source's order.
"""

from __future__ import annotations

from cwd.core import engine, heap
from cwd.core.heap import NONE
from cwd.core.world import FOREVER_NS
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim.events import delay_ns, push, take_call
from cwd.sim.hidden import STRETCH_BITS
from cwd.sim.random import below, draw, exponential, quantile
from cwd.sim.world import (
    EVENT_REQUEST, SOURCE_BURST, SOURCE_CLOSED, SOURCE_GAMMA, SOURCE_MINUTES, SOURCE_MMPP, SOURCE_POISSON, SOURCE_TRACE,
    STREAM_CLIENTS, STREAMS_FIXED,
)

MINUTE_NS = 60_000_000_000
#: longer means are not told apart
MEAN_MAX_NS = 1 << 49


@inner_kernel
def stream_of(sim, source):
    return STREAMS_FIXED + len(sim.gpus) + source


@lean_kernel
def start(sim, source):
    """Have the source begin at its start_ns: arm it, or send a closed loop's first requests."""
    row = sim.sources[source]
    row["heard_ns"] = row["next_ns"] = row["start_ns"]
    if row["kind"] == SOURCE_CLOSED:
        for i in range(row["models"] * row["in_flight"]):
            call = take_call(sim)
            if call == NONE:
                return
            sim.calls[call]["source"], sim.calls[call]["loops"] = source, 1
            sim.calls[call]["model"] = row["model"] + i // row["in_flight"]
            issue(sim, call, row["start_ns"])
        return
    if row["kind"] == SOURCE_MMPP:
        row["switch_ns"] = row["start_ns"] + exponential(sim.random, stream_of(sim, source), sim.logs, row["dwell_ns"])
    _advance(sim, source)
    _arm(sim, source)


@inner_kernel
def _arm(sim, source):
    """Put the source into the heap, at the time at which its next request reaches the controller."""
    row, state = sim.sources[source], sim.state[0]
    if row["next_ns"] >= row["stop_ns"]:
        state["timers"] = heap.drop(sim.timers, state["timers"], source)
        return
    row["heard_ns"] = max(row["heard_ns"], row["next_ns"] + delay_ns(sim, STREAM_CLIENTS))
    state["timers"] = heap.put(sim.timers, state["timers"], source, row["heard_ns"])


@inner_kernel
def _advance(sim, source):
    """Set `next_ns` to when the source's next request is sent."""
    row, kind = sim.sources[source], sim.sources[source]["kind"]
    stream = stream_of(sim, source)
    if kind == SOURCE_POISSON:
        mean_ns = row["mean_ns"]
        if row["scaled"] == 1:
            mean_ns = mean_ns * 1000 // sim.state[0]["rate_permille"]
        row["next_ns"] += exponential(sim.random, stream, sim.logs, mean_ns)
    elif kind == SOURCE_MMPP:
        _advance_mmpp(sim, row, stream)
    elif kind == SOURCE_TRACE:
        at = row["position"]
        row["next_ns"] = row["start_ns"] + sim.trace[at, 0] if at < row["count"] else FOREVER_NS
    elif kind == SOURCE_BURST:
        burst, place = row["position"] // row["count"], row["position"] % row["count"]
        row["next_ns"] = row["start_ns"] + burst * row["period_ns"] + place * row["gap_ns"]
        row["position"] += 1
    elif kind == SOURCE_MINUTES:
        _advance_minutes(sim, row, stream)
    elif kind == SOURCE_GAMMA:
        row["next_ns"] += _gamma(sim, row, stream)


@inner_kernel
def _gamma(sim, row, stream):
    """A gap with a gamma distribution, of the source's mean."""
    value, mean_ns = quantile(sim.gaps[row["gaps"]], draw(sim.random, stream)), row["mean_ns"]
    if row["scaled"] == 1:
        mean_ns = mean_ns * 1000 // sim.state[0]["rate_permille"]
    fraction = (1 << STRETCH_BITS) - 1
    return (mean_ns >> STRETCH_BITS) * value + (((mean_ns & fraction) * value) >> STRETCH_BITS)


@inner_kernel
def choose_mode(sim, call, stream):
    """What the request is: its application, and what its data makes of its execution."""
    request = sim.calls[call]
    row = sim.sources[request["source"]]
    request["app"], request["stretch"] = row["group"], 1 << STRETCH_BITS
    if row["modes"] == 0:
        return
    mode, u = row["mode"], draw(sim.random, stream)
    while mode + 1 < row["mode"] + row["modes"] and sim.modes[mode, 1] <= u:
        mode += 1
    request["app"] = sim.modes[mode, 0]
    request["stretch"] = quantile(sim.stretches[mode], draw(sim.random, stream))


@inner_kernel
def _advance_mmpp(sim, row, stream):
    """Two Poisson processes that take turns; a gap that a switch cuts short is drawn anew at the other's rate."""
    while True:
        mean_ns = row["mean_ns"] if row["state"] == 0 else row["mean2_ns"]
        next_ns = row["next_ns"] + exponential(sim.random, stream, sim.logs, mean_ns)
        if next_ns < row["switch_ns"]:
            row["next_ns"] = next_ns
            return
        row["next_ns"] = row["switch_ns"]
        row["state"] = 1 - row["state"]
        dwell_ns = row["dwell_ns"] if row["state"] == 0 else row["dwell2_ns"]
        row["switch_ns"] += max(exponential(sim.random, stream, sim.logs, dwell_ns), 1)


@inner_kernel
def _advance_minutes(sim, row, stream):
    """Poisson with another rate each minute; its row of `rates` is `count`."""
    minutes, minute_ns = sim.rates.shape[1], sim.state[0]["minutes_ns"]
    while True:
        minute = (row["next_ns"] - row["start_ns"]) // minute_ns
        if minute >= minutes:
            row["next_ns"] = FOREVER_NS
            return
        end_ns = row["start_ns"] + (minute + 1) * minute_ns
        rate = sim.rates[row["count"], minute]
        if rate > 0:
            mean_ns = min(MINUTE_NS * 1_000_000 // rate, MEAN_MAX_NS)
            next_ns = row["next_ns"] + exponential(sim.random, stream, sim.logs, mean_ns)
            if next_ns < end_ns:
                row["next_ns"] = next_ns
                return
        row["next_ns"] = end_ns


@lean_kernel
def share_of(edges, u):
    """The first whose edge is above `u`: by doubling steps, since the first are drawn most, then by halves."""
    high = 1
    while high < len(edges) and edges[high - 1] <= u:
        high *= 2
    low, high = high // 2, min(high, len(edges))
    while low < high:
        middle = (low + high) // 2
        if edges[middle] <= u:
            low = middle + 1
        else:
            high = middle
    return low


@inner_kernel
def due(sim, source, now_ns):
    """The source's next request has reached the controller."""
    row = sim.sources[source]
    call = take_call(sim)
    if call == NONE:
        return
    request = sim.calls[call]
    request["source"], request["sent_ns"], request["tries"] = source, row["next_ns"], 0
    request["first_ns"], request["deadline_ns"] = row["next_ns"], row["next_ns"] + row["slo_ns"]
    if row["kind"] == SOURCE_TRACE:
        request["model"] = sim.trace[row["position"], 1]
        row["position"] += 1
    elif row["kind"] == SOURCE_MINUTES and row["models"] > 1:
        minute = (row["next_ns"] - row["start_ns"]) // sim.state[0]["minutes_ns"]
        request["model"] = row["model"] + share_of(sim.shares[minute], draw(sim.random, stream_of(sim, source)))
    elif row["models"] > 1:
        models = row["models"]
        if row["kind"] == SOURCE_POISSON and row["period_ns"] > 0:
            models = min(models, 1 + (row["next_ns"] - row["start_ns"]) // row["period_ns"])
        request["model"] = row["model"] + below(sim.random, stream_of(sim, source), models)
    else:
        request["model"] = row["model"]
    choose_mode(sim, call, stream_of(sim, source))
    _advance(sim, source)
    _arm(sim, source)
    arrive(sim, call, now_ns)


@inner_kernel
def issue(sim, call, sent_ns):
    """A closed loop's client sends its next request, with a deadline of its own."""
    row, request = sim.sources[sim.calls[call]["source"]], sim.calls[call]
    if sent_ns >= row["stop_ns"]:
        sim.live[call] = 2  # it has stopped; its row is kept
        return
    sim.live[call] = 2
    request["sent_ns"] = request["first_ns"] = sent_ns
    request["deadline_ns"], request["tries"] = sent_ns + row["slo_ns"], 0
    choose_mode(sim, call, stream_of(sim, request["source"]))
    push(sim, sent_ns + delay_ns(sim, STREAM_CLIENTS), EVENT_REQUEST, call, 0, 0)


@inner_kernel
def issue_again(sim, call, sent_ns):
    """An open-loop client sends a refused request again; its deadline stays."""
    request = sim.calls[call]
    sim.live[call], request["sent_ns"] = 2, sent_ns
    request["tries"] += 1
    push(sim, sent_ns + delay_ns(sim, STREAM_CLIENTS), EVENT_REQUEST, call, 0, 0)


@inner_kernel
def arrive(sim, call, now_ns):
    """Tell the core of a request."""
    request, state = sim.calls[call], sim.state[0]
    row = sim.sources[request["source"]]
    state["request_id"] += 1
    state["requests"] += 1
    sim.live[call] = 1
    request["request_id"], request["client"] = state["request_id"], row["group"]
    engine.request_arrived(sim.core, now_ns, row["group"], request["request_id"], sim.models[request["model"]],
                           row["size_class"], request["deadline_ns"], row["slo_ns"], request["app"], call)
