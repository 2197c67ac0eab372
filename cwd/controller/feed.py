"""Feed the core and write the log: every call of the engine that the controller makes goes through here.

That is what makes a log replayable: there is no other way to the core, so what it was told is what was logged, in
order. A function here is an engine function with one record beside it. When the ring is full a record is lost and
counted, and a GAP says so as soon as there is room.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.record import Kind
from cwd.core import engine
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.sync import ring_push

ARRIVED = int(Kind.ARRIVED)
CANCELLED = int(Kind.CANCELLED)
CLIENT_GONE = int(Kind.CLIENT_GONE)
DONE = int(Kind.DONE)
JOINED = int(Kind.JOINED)
RESIDENT = int(Kind.RESIDENT)
LOST = int(Kind.LOST)
GPU_DRAINING = int(Kind.DRAINING)
PROGRAM = int(Kind.PROGRAM)
PREPARED = int(Kind.PREPARED)
SEED = int(Kind.SEED)
LOAD_SEED = int(Kind.LOAD_SEED)
MODEL_ADDED = int(Kind.MODEL_ADDED)
MODEL_REMOVED = int(Kind.MODEL_REMOVED)
RESERVED = int(Kind.RESERVED)
TICK = int(Kind.TICK)
ACTION = int(Kind.ACTION)
REPLY = int(Kind.REPLY)
RELEASE = int(Kind.RELEASE)
REFUSED = int(Kind.REFUSED)
GAP = int(Kind.GAP)


@inner_kernel
def log_record(host, now_ns, kind, flag, status, gpu, model, identifier, a, b, c, d, e, f, g, h):
    """One record into the ring, or a count of those that found it full."""
    state = host.state[0]
    if state["log"] == 0:
        return
    row = host.rows[0]["log"]
    if state["log_gap"] > 0:
        row["now_ns"], row["kind"], row["a"] = now_ns, GAP, state["log_gap"]
        if not ring_push(host.ring, row):
            state["log_gap"] += 1
            state["log_lost"] += 1
            return
        state["log_gap"] = 0
    row["now_ns"], row["kind"], row["flag"], row["status"], row["gpu"] = now_ns, kind, flag, status, gpu
    row["model"], row["id"] = model, identifier
    row["a"], row["b"], row["c"], row["d"] = a, b, c, d
    row["e"], row["f"], row["g"], row["h"] = e, f, g, h
    if not ring_push(host.ring, row):
        state["log_gap"] += 1
        state["log_lost"] += 1


@inner_kernel
def feed_arrived(host, world, now_ns, client, request, model, size_class, deadline_ns, slo_ns, app, payload):
    code = engine.request_arrived(world, now_ns, client, request, model, size_class, deadline_ns, slo_ns, app, payload)
    log_record(host, now_ns, ARRIVED, 0, code, -1, model, request, client, deadline_ns, slo_ns, size_class, app, payload,
               0, 0)
    return code


@inner_kernel
def feed_cancelled(host, world, now_ns, client, request):
    log_record(host, now_ns, CANCELLED, 0, 0, -1, -1, request, client, 0, 0, 0, 0, 0, 0, 0)
    return engine.request_cancelled(world, now_ns, client, request)


@inner_kernel
def feed_client_gone(host, world, now_ns, client):
    log_record(host, now_ns, CLIENT_GONE, 0, 0, -1, -1, 0, client, 0, 0, 0, 0, 0, 0, 0)
    engine.client_gone(world, now_ns, client)


@lean_kernel
def feed_done(host, world, now_ns, gpu, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload):
    """0, or STALE: then the core did not know the action any more and nothing changed."""
    stale = engine.action_done(
        world, now_ns, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload)
    if stale != 0:
        host.state[0]["results_stale"] += 1
    log_record(host, now_ns, DONE, stale != 0, status, gpu, -1, action, begin_ns, end_ns, device_ns, rows_done,
               pages_free, payload, 0, 0)
    return stale


@lean_kernel
def feed_joined(host, world, now_ns, gpu, kind, pages_total):
    log_record(host, now_ns, JOINED, 0, 0, gpu, -1, 0, kind, pages_total, 0, 0, 0, 0, 0, 0)
    engine.gpu_joined(world, now_ns, gpu, kind, pages_total)


@lean_kernel
def feed_resident(host, world, now_ns, gpu, models):
    """The models (i8[n] of handles) that a GPU said it holds."""
    for i in range(len(models)):
        code = engine.gpu_resident(world, now_ns, gpu, models[i])
        log_record(host, now_ns, RESIDENT, 0, code, gpu, models[i], 0, 0, 0, 0, 0, 0, 0, 0, 0)


@inner_kernel
def feed_lost(host, world, now_ns, gpu):
    log_record(host, now_ns, LOST, 0, 0, gpu, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    engine.gpu_lost(world, now_ns, gpu)


@inner_kernel
def feed_gpu_draining(host, world, now_ns, gpu):
    log_record(host, now_ns, GPU_DRAINING, 0, 0, gpu, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    engine.gpu_draining(world, now_ns, gpu)


@lean_kernel
def feed_program(host, world, now_ns, program, batches, n_classes):
    """`batches` is i8[n]; the log packs four to a column."""
    packed = (_four(batches, 0), _four(batches, 4), _four(batches, 8))
    log_record(host, now_ns, PROGRAM, 0, 0, -1, -1, program, len(batches), n_classes, packed[0], packed[1], packed[2],
               0, 0, 0)
    return engine.program_added(world, program, batches, len(batches), n_classes)


@inner_kernel
def _four(batches, first):
    packed = np.int64(0)
    for i in range(first, min(first + 4, len(batches))):
        packed |= batches[i] << (16 * (i - first))
    return packed


@lean_kernel
def feed_prepared(host, world, now_ns, gpu, program, ok):
    log_record(host, now_ns, PREPARED, ok, 0, gpu, -1, program, 0, 0, 0, 0, 0, 0, 0, 0)
    engine.program_prepared(world, now_ns, gpu, program, ok)


@lean_kernel
def feed_seed(host, world, now_ns, program, kind, batch_index, size_class, exec_ns):
    log_record(host, now_ns, SEED, 0, 0, -1, -1, program, kind, batch_index, size_class, exec_ns, 0, 0, 0, 0)
    engine.estimate_seed(world, program, kind, batch_index, size_class, exec_ns)


@lean_kernel
def feed_load_seed(host, world, now_ns, program, kind, load_ns):
    log_record(host, now_ns, LOAD_SEED, 0, 0, -1, -1, program, kind, load_ns, 0, 0, 0, 0, 0, 0)
    engine.load_seed(world, program, kind, load_ns)


@lean_kernel
def feed_model(host, world, now_ns, program, pages):
    """The model's handle, or minus the code that refuses it."""
    handle = engine.model_added(world, now_ns, program, pages)
    log_record(host, now_ns, MODEL_ADDED, 0, 0, -1, handle, program, pages, 0, 0, 0, 0, 0, 0, 0)
    return handle


@lean_kernel
def feed_model_removed(host, world, now_ns, model):
    log_record(host, now_ns, MODEL_REMOVED, 0, 0, -1, model, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return engine.model_removed(world, now_ns, model)


@lean_kernel
def feed_reserved(host, world, now_ns, gpu, expected_ns):
    """The id of an action of the host's own on the exec lane, or -1."""
    action = engine.lane_reserve(world, now_ns, gpu, expected_ns)
    log_record(host, now_ns, RESERVED, 0, 0, gpu, -1, action, expected_ns, 0, 0, 0, 0, 0, 0, 0)
    return action


@inner_kernel
def feed_tick(host, world, now_ns):
    log_record(host, now_ns, TICK, 0, 0, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    engine.tick(world, now_ns)


@inner_kernel
def log_refused(host, now_ns, client, request, model, status):
    log_record(host, now_ns, REFUSED, 0, status, -1, model, request, client, 0, 0, 0, 0, 0, 0, 0)


@inner_kernel
def log_out(host, now_ns, out, action, reply):
    """One record of the outbox; `action` or `reply` says which kind it is, else it is a release."""
    if action:
        log_record(host, now_ns, ACTION, out["verb"], 0, out["gpu"], out["model"], out["action"], out["program"],
                   out["pages"], out["batch"], out["size_class"], out["earliest_ns"], out["latest_ns"],
                   out["expected_ns"], out["rows"])
    elif reply:
        log_record(host, now_ns, REPLY, out["cold"], out["status"], out["gpu"], out["model"], out["request_id"],
                   out["client"], out["queued_ns"], out["load_ns"], out["exec_ns"], out["total_ns"], out["served_ns"],
                   out["batch"], out["action"])
    else:
        log_record(host, now_ns, RELEASE, 0, 0, -1, -1, 0, out["payload"], 0, 0, 0, 0, 0, 0, 0)
