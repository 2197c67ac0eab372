"""Simulated GPUs: they do what actions say, by the worker's own agenda, pages and rules, in virtual time.

An action takes what its program's true profile says, times the largest stretch of its requests (hidden.py), plus
noise, times what a fault makes of it. Results go back
through the network, on the controller's clock as it knows it (the GPU's `clock_error_ns` is what it gets wrong).
"""

from __future__ import annotations

import numpy as np

from cwd.core import heap
from cwd.core.heap import NONE
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, ACTION_UNLOAD
from cwd.errors import Code
from cwd.jit import inner_kernel
from cwd.sim.events import delay_ns, free_message, push, violate
from cwd.sim.hidden import STRETCH_BITS
from cwd.sim.random import chance, draw, quantile
from cwd.sim.world import (
    EVENT_ACTION, EVENT_RESULT, EXEC_WITHOUT_WEIGHTS, MESSAGE_BACK, MESSAGE_ON_GPU, MESSAGE_OUT, REFUSED_ACTION,
    STREAM_FAULTS, STREAM_NETWORK, STREAMS_FIXED,
)
from cwd.worker import agenda as ag
from cwd.worker import residency as rs
from cwd.worker import rules

OK = int(Code.OK)
TOO_LATE = int(Code.TOO_LATE)
NOT_RESIDENT = int(Code.NOT_RESIDENT)
DEVICE_ERROR = int(Code.DEVICE_ERROR)
IN_USE = int(Code.IN_USE)
EXEC_LANE, LOAD_LANE = 0, 1
UNLOAD_NS = 5_000


@inner_kernel
def send(sim, message, now_ns):
    """An action leaves for its GPU; it arrives unless a fault swallows it. A connection keeps the order."""
    row = sim.messages[message]
    gpu = sim.gpus[row["gpu"]]
    if gpu["up"] == 0 or chance(sim.random, STREAM_FAULTS, gpu["undelivered_ppm"]):
        free_message(sim, message)
        return
    row["state"], row["life"] = MESSAGE_OUT, gpu["life"]
    at_ns = max(now_ns + delay_ns(sim, STREAM_NETWORK), gpu["heard_ns"])
    gpu["heard_ns"] = at_ns
    push(sim, at_ns, EVENT_ACTION, message, 0, 0)


@inner_kernel
def arrive(sim, message, now_ns):
    """An action has reached its GPU."""
    row, action = sim.messages[message], sim.action[0]
    g = np.int64(row["gpu"])
    gpu = sim.gpus[g]
    if row["life"] != gpu["life"]:
        free_message(sim, message)
        return
    row["state"] = MESSAGE_ON_GPU
    action["action"], action["epoch"], action["session"] = row["action"], 0, gpu["life"]
    action["earliest_ns"] = row["earliest_ns"] + gpu["clock_error_ns"]
    action["latest_ns"] = row["latest_ns"] + gpu["clock_error_ns"]
    action["expected_ns"], action["received_ns"] = row["expected_ns"], now_ns
    action["model"] = action["image_low"] = row["model"]
    action["image_high"] = 1
    action["program"], action["pages"], action["repeats"] = row["program"], row["pages"], 0
    action["entry"], action["kind"], action["batch"] = message, row["verb"], row["batch"]
    action["size_class"], action["rows"], action["rows_at"] = row["size_class"], row["rows"], 0
    lane = 2 * g + (EXEC_LANE if row["verb"] == ACTION_EXEC else LOAD_LANE)
    code = ag.agenda_push(sim.agenda, lane, action)
    if code != OK:
        _answer(sim, message, now_ns, np.int64(code), 0, 0)
        return
    step(sim, lane, now_ns)


@inner_kernel
def step(sim, lane, now_ns):
    """End what is over and start what may start, in one lane; and say when to look again."""
    row, taken = sim.lanes[lane], sim.taken[0]
    until_ns = np.int64(ag.NEVER)
    while True:
        if row["finish_ns"] <= now_ns:
            _finish(sim, lane, now_ns)
        verdict, until_ns = ag.agenda_next(sim.agenda, lane, now_ns, taken)
        if verdict == ag.START:
            ag.copy_action(taken, sim.running[lane])
            _begin(sim, lane, now_ns)
            if row["finish_ns"] > now_ns:
                break
        elif verdict == ag.REFUSE:
            _answer(sim, np.int64(taken["entry"]), now_ns, TOO_LATE, 0, 0)
        elif verdict == ag.DROP:
            free_message(sim, np.int64(taken["entry"]))
        else:
            break
    look_ns = min(row["finish_ns"], until_ns)
    timer = len(sim.sources) + lane
    state = sim.state[0]
    if look_ns < ag.NEVER:
        state["timers"] = heap.put(sim.timers, state["timers"], timer, look_ns)
    else:
        state["timers"] = heap.drop(sim.timers, state["timers"], timer)


@inner_kernel
def _begin(sim, lane, now_ns):
    """The running action begins: what will it answer, and when?"""
    g, row, action = lane >> 1, sim.lanes[lane], sim.running[lane]
    gpu, kind = sim.gpus[g], action["kind"]
    stream = STREAMS_FIXED + g
    status, index, duration_ns = OK, np.int64(NONE), np.int64(0)
    if kind == ACTION_LOAD:
        status, index, copying = rules.begin_load(sim.residency, g, action, np.int64(action["program"]))
        if copying:
            duration_ns = sim.loads[action["program"]] + quantile(sim.load_noise, draw(sim.random, stream))
    elif kind == ACTION_UNLOAD:
        exec_lane = 2 * g + EXEC_LANE
        if chance(sim.random, STREAM_FAULTS, gpu["failed_ppm"]):
            status = IN_USE  # a device that fails to unload keeps what it has
        else:
            status, index, duration_ns = rules.begin_unload(
                sim.residency, g, sim.agenda, exec_lane, sim.lanes[exec_lane]["finish_ns"], action, now_ns)
        duration_ns = max(duration_ns, UNLOAD_NS)
    else:
        status, program = rules.begin_exec(sim.residency, g, action, action["batch"], False)
        if status == OK:
            duration_ns = _exec_ns(sim, program, action) * sim.messages[action["entry"]]["stretch"] >> STRETCH_BITS
            duration_ns += quantile(sim.exec_noise, draw(sim.random, stream))
    if status == OK and kind != ACTION_UNLOAD:
        duration_ns = max(duration_ns, 1_000) * gpu["slow_permille"] // 1000
        if chance(sim.random, STREAM_FAULTS, gpu["failed_ppm"]):
            status = _fail(sim, g, index)
    elif status != OK:
        duration_ns = np.int64(0)
    row["message"], row["begin_ns"], row["finish_ns"] = action["entry"], now_ns, now_ns + duration_ns
    row["status"], row["resident"] = status, index
    if status != OK and status != DEVICE_ERROR and sim.state[0]["lossless"] == 1:
        violate(sim, EXEC_WITHOUT_WEIGHTS if status == NOT_RESIDENT else REFUSED_ACTION, g, action["model"])


@inner_kernel
def _exec_ns(sim, program, action):
    batch, b = action["batch"], 0
    sizes = sim.core.programs[program]
    while b + 1 < sizes["n_batches"] and sizes["batches"][b] < batch:
        b += 1
    return sim.programs[program, b, action["size_class"]]


@inner_kernel
def _fail(sim, g, index):
    """The device fails: a load's pages are free again."""
    if index != NONE:
        rs.resident_give(sim.residency, g, index)
    return DEVICE_ERROR


@inner_kernel
def _finish(sim, lane, now_ns):
    """The running action is over: settle its pages and send its result, unless the connection it came by is gone."""
    g, row, action = lane >> 1, sim.lanes[lane], sim.running[lane]
    status, kind, index = row["status"], action["kind"], row["resident"]
    if status == OK and kind == ACTION_LOAD:
        rules.end_load(sim.residency, g, index)
    elif status == OK and kind == ACTION_UNLOAD:
        rules.end_unload(sim.residency, g, index)
    elif status == OK and kind == ACTION_EXEC and sim.messages[row["message"]]["life"] == sim.gpus[g]["life"]:
        held = rs.resident_find(sim.residency, g, action["model"])
        if held < 0:
            violate(sim, EXEC_WITHOUT_WEIGHTS, g, action["model"])
    ag.agenda_done(sim.agenda, lane)
    finish_ns = row["finish_ns"]
    row["finish_ns"] = ag.NEVER
    _answer(sim, np.int64(row["message"]), now_ns, status, row["begin_ns"], finish_ns)


@inner_kernel
def _answer(sim, message, now_ns, status, begin_ns, end_ns):
    """A result leaves for the controller. `begin_ns` 0: it never began."""
    row = sim.messages[message]
    g = np.int64(row["gpu"])
    gpu = sim.gpus[g]
    if row["life"] != gpu["life"] or gpu["up"] == 0 or chance(sim.random, STREAM_FAULTS, gpu["lost_ppm"]):
        free_message(sim, message)
        return
    row["state"], row["status"], row["pages_free"] = MESSAGE_BACK, status, rs.pages_free(sim.residency, g)
    error_ns = gpu["clock_error_ns"] if begin_ns > 0 else np.int64(0)
    row["begin_ns"], row["end_ns"] = begin_ns - error_ns, end_ns - error_ns
    at_ns = max(now_ns + delay_ns(sim, STREAM_NETWORK) + gpu["late_ns"], gpu["told_ns"])
    gpu["told_ns"] = at_ns
    push(sim, at_ns, EVENT_RESULT, message, 0, 0)
