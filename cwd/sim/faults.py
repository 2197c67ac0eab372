"""Faults: what goes wrong, when and for how long. They are planned before the run; chance in them has its own stream.

A GPU whose worker dies comes back empty; one whose connection breaks keeps its pages and finishes what runs. The
controller hears of either later than it happens, as it does in life from the heartbeats.
"""

from __future__ import annotations

import numpy as np

from cwd.core import engine, heap
from cwd.core.heap import NONE
from cwd.core.world import SLOT_MASK
from cwd.jit import inner_kernel
from cwd.sim import sources
from cwd.sim.events import free_message, push, take_call
from cwd.sim.gpus import step
from cwd.sim.random import below
from cwd.sim.world import EVENT_FAULT, EVENT_JOINED, EVENT_LOST, STREAM_FAULTS
from cwd.worker import agenda as ag
from cwd.worker import residency as rs

#: kinds of fault and what `value` means: worker dead or connection lost (value2: ns until the controller knows; until_ns:
#: when it is back), results lost (ppm), results late (ns more), actions swallowed (ppm), slow (permille of the time),
#: device errors and refused unloads (ppm), a burst of `value` requests at once from `source`, overload (permille of the
#: scaled sources' rate), model number `value` removed, and added anew in the end
DEAD, CUT, LOST_RESULTS, LATE_RESULTS, SWALLOWED, SLOW, DEVICE_FAILS, BURST, OVERLOAD, REMOVED = range(1, 11)
#: how long until a model that finds no room is added again
AGAIN_NS = 50_000_000


@inner_kernel
def begin_or_end(sim, fault, ending, now_ns):
    """Fault number `fault` begins (or ends); 1 if the core was told something."""
    row = sim.faults[fault]
    kind = row["kind"]
    value = row["value"]
    if kind == BURST:
        return _burst(sim, row, now_ns)
    if kind == OVERLOAD:
        sim.state[0]["rate_permille"] = 1000 if ending else value
        return _lasts(sim, fault, ending, now_ns)
    if kind == REMOVED:
        return _add(sim, fault, now_ns) if ending else _remove(sim, fault, now_ns)
    gpu = sim.gpus[row["gpu"]]
    if kind == DEAD or kind == CUT:
        if ending == 0:
            _lose(sim, row["gpu"], kind, now_ns)
            push(sim, now_ns + row["value2"], EVENT_LOST, row["gpu"], gpu["life"], 0)
            push(sim, max(row["until_ns"], now_ns + row["value2"]), EVENT_JOINED, row["gpu"], gpu["life"], 0)
    elif kind == LOST_RESULTS:
        gpu["lost_ppm"] = 0 if ending else value
    elif kind == LATE_RESULTS:
        gpu["late_ns"] = 0 if ending else value
    elif kind == SWALLOWED:
        gpu["undelivered_ppm"] = 0 if ending else value
    elif kind == SLOW:
        gpu["slow_permille"] = 1000 if ending else value
    else:
        gpu["failed_ppm"] = 0 if ending else value
    return _lasts(sim, fault, ending, now_ns)


@inner_kernel
def _lasts(sim, fault, ending, now_ns):
    """Plan the end of a fault that has just begun; 0."""
    until_ns = sim.faults[fault]["until_ns"]
    if ending == 0 and until_ns > now_ns:
        push(sim, until_ns, EVENT_FAULT, fault, 1, 0)
    return 0


@inner_kernel
def _remove(sim, fault, now_ns):
    """Take the model out of the registry, unless another fault did; 1 if the core was told."""
    row = sim.faults[fault]
    model = sim.models[row["value"]]
    if model < 0:
        row["until_ns"] = 0
        return 0
    core = sim.core.models[model & SLOT_MASK]
    row["program"], row["pages"] = core["program"], core["pages"]
    engine.model_removed(sim.core, now_ns, model)
    sim.models[row["value"]] = NONE
    _lasts(sim, fault, 0, now_ns)
    return 1


@inner_kernel
def _add(sim, fault, now_ns):
    """Add the model under a new handle, now or as soon as there is room; 1."""
    row = sim.faults[fault]
    model = engine.model_added(sim.core, now_ns, row["program"], row["pages"])
    if model < 0:
        push(sim, now_ns + AGAIN_NS, EVENT_FAULT, fault, 1, 0)
    else:
        sim.models[row["value"]] = model
    return 1


@inner_kernel
def _burst(sim, row, now_ns):
    source = sim.sources[row["source"]]
    for _ in range(row["value"]):
        call = take_call(sim)
        if call == NONE:
            return 1
        request = sim.calls[call]
        request["source"], request["tries"] = row["source"], 0
        request["sent_ns"] = request["first_ns"] = now_ns
        request["deadline_ns"] = now_ns + source["slo_ns"]
        request["model"] = source["model"] + below(sim.random, STREAM_FAULTS, source["models"])
        sources.choose_mode(sim, call, STREAM_FAULTS)
        sources.arrive(sim, call, now_ns)
    return 1


@inner_kernel
def _lose(sim, g, kind, now_ns):
    """The connection is gone, and with it all that is on its way or waits; if the worker died, its pages too."""
    gpu = sim.gpus[g]
    gpu["life"] += 1
    gpu["up"] = 0
    for lane in (2 * g, 2 * g + 1):
        ag.agenda_session(sim.agenda, lane, gpu["life"])
        step(sim, lane, now_ns)
    if kind == DEAD:
        for lane in (2 * g, 2 * g + 1):
            _kill(sim, lane)
        rows = sim.residency.residents[g]
        for index in range(len(rows)):
            if rows[index]["state"] != rs.FREE:
                rs.resident_give(sim.residency, g, index)
    rs.residency_session(sim.residency, g, gpu["life"])


@inner_kernel
def _kill(sim, lane):
    """What runs in the lane never ends."""
    row, state = sim.lanes[lane], sim.state[0]
    if row["finish_ns"] < ag.NEVER:
        free_message(sim, np.int64(row["message"]))
        row["finish_ns"] = ag.NEVER
        ag.agenda_done(sim.agenda, lane)
    state["timers"] = heap.drop(sim.timers, state["timers"], len(sim.sources) + lane)


@inner_kernel
def controller_hears(sim, g, life, joined, now_ns):
    """The controller learns that a GPU was lost, or greets it again; news of an earlier loss mean nothing. 1 if told."""
    gpu = sim.gpus[g]
    if life != gpu["life"]:
        return 0
    if joined == 0:
        if gpu["told"] == 1:
            engine.gpu_lost(sim.core, now_ns, g)
            gpu["told"] = 0
        return 1
    gpu["up"] = 1
    join(sim, g, now_ns)
    return 1


@inner_kernel
def join(sim, g, now_ns):
    """A worker says HELLO: its pages, its programs, and the images that it still holds, which are adopted."""
    gpu = sim.gpus[g]
    engine.gpu_joined(sim.core, now_ns, g, 0, gpu["pages"])
    for program in range(len(sim.loads)):
        engine.program_prepared(sim.core, now_ns, g, program, 1)
    gpu["told"] = 1
    rows = sim.residency.residents[g]
    for index in range(len(rows)):
        row = rows[index]
        if row["state"] == rs.ORPHAN and engine.gpu_resident(sim.core, now_ns, g, row["image_low"]) == 0:
            rs.resident_adopt(sim.residency, g, row["image_low"], row["image_low"], row["image_high"], row["pages"])
