"""Feed the core and write the log: every call of the engine that the controller makes goes through here.

That is what makes a log replayable: there is no other way to the core, so what it was told is what was logged, in
order. A function here is an engine function with one record beside it. When the ring is full a record is lost and
counted, and a GAP says so as soon as there is room.

Constants are passed by name (`NONE`, `ZERO`): numba compiles a callee again for every literal that it is called with.
"""

from __future__ import annotations

import numpy as np

from cwd.controller.record import Kind
from cwd.core import engine
from cwd.core.estimate import margin_ns
from cwd.core.world import MARGIN_RESULT
from cwd.jit import inner_kernel, lean_kernel
from cwd.net.sync import ring_claim, ring_publish

ARRIVED = int(Kind.ARRIVED)
CANCELLED = int(Kind.CANCELLED)
CLIENT_GONE = int(Kind.CLIENT_GONE)
DONE = int(Kind.DONE)
JOINED = int(Kind.JOINED)
RESIDENT = int(Kind.RESIDENT)
LOST = int(Kind.LOST)
DRAINING = int(Kind.DRAINING)
PROGRAM = int(Kind.PROGRAM)
PREPARED = int(Kind.PREPARED)
SEED = int(Kind.SEED)
LOAD_SEED = int(Kind.LOAD_SEED)
MODEL_ADDED = int(Kind.MODEL_ADDED)
MODEL_REMOVED = int(Kind.MODEL_REMOVED)
RESERVED = int(Kind.RESERVED)
TICK = int(Kind.TICK)
WANTED = int(Kind.WANTED)
CLOSING = int(Kind.CLOSING)
ACTION = int(Kind.ACTION)
REPLY = int(Kind.REPLY)
RELEASE = int(Kind.RELEASE)
REFUSED = int(Kind.REFUSED)
GAP = int(Kind.GAP)
NONE = -1


@inner_kernel
def _claim(host):
    """Index of a cleared record of the ring, or -1 if it is full."""
    at = ring_claim(host.log)
    if at >= 0:
        row = host.log.records[at]
        row["flag"] = row["status"] = 0
        row["gpu"] = row["model"] = NONE
        row["id"] = row["a"] = row["b"] = row["c"] = row["d"] = row["e"] = row["f"] = row["g"] = row["h"] = 0
    return at


@inner_kernel
def open_record(host, now_ns, kind):
    """Index of the record to fill and `close_record`, or -1: nothing is logged, or the ring is full (counted)."""
    state = host.state[0]
    if state["log"] == 0:
        return NONE
    at = _claim(host)
    if at >= 0 and state["log_gap"] > 0:
        row = host.log.records[at]
        row["now_ns"], row["kind"], row["a"] = now_ns, GAP, state["log_gap"]
        ring_publish(host.log)
        state["log_gap"] = 0
        at = _claim(host)
    if at < 0:
        state["log_gap"] += 1
        state["log_lost"] += 1
        return NONE
    row = host.log.records[at]
    row["now_ns"], row["kind"] = now_ns, kind
    return at


@inner_kernel
def log_simple(host, now_ns, kind, gpu, model, identifier, a, b):
    """A record of the common columns."""
    at = open_record(host, now_ns, kind)
    if at >= 0:
        row = host.log.records[at]
        row["gpu"], row["model"], row["id"], row["a"], row["b"] = gpu, model, identifier, a, b
        ring_publish(host.log)


@inner_kernel
def feed_arrived(host, world, now_ns, client, request, model, size_class, deadline_ns, slo_ns, app, payload):
    code = engine.request_arrived(world, now_ns, client, request, model, size_class, deadline_ns, slo_ns, app, payload)
    at = open_record(host, now_ns, ARRIVED)
    if at >= 0:
        row = host.log.records[at]
        row["status"], row["model"], row["id"], row["a"], row["b"] = code, model, request, client, deadline_ns
        row["c"], row["d"], row["e"], row["f"] = slo_ns, size_class, app, payload
        ring_publish(host.log)


@inner_kernel
def feed_cancelled(host, world, now_ns, client, request):
    log_simple(host, now_ns, CANCELLED, NONE, NONE, request, client, NONE)
    engine.request_cancelled(world, now_ns, client, request)


@inner_kernel
def feed_client_gone(host, world, now_ns, client):
    log_simple(host, now_ns, CLIENT_GONE, NONE, NONE, NONE, client, NONE)
    engine.client_gone(world, now_ns, client)


@lean_kernel
def feed_done(host, world, now_ns, gpu, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload,
              sent_ns):
    """0, or STALE: then the core did not know the action any more and nothing changed."""
    # as it was before this result is learned from
    way_ns = margin_ns(world, now_ns, max(world.gpus[gpu]["kind"], 0), MARGIN_RESULT)
    stale = engine.action_done(
        world, now_ns, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload)
    if stale != 0:
        host.state[0]["results_stale"] += 1
    at = open_record(host, now_ns, DONE)
    if at >= 0:
        row = host.log.records[at]
        row["flag"], row["status"], row["gpu"], row["id"] = stale, status, gpu, action
        row["a"], row["b"], row["c"], row["d"], row["e"] = begin_ns, end_ns, device_ns, rows_done, pages_free
        row["f"], row["g"], row["h"] = payload, sent_ns, way_ns
        ring_publish(host.log)
    return stale


@lean_kernel
def feed_joined(host, world, now_ns, gpu, kind, pages_total):
    log_simple(host, now_ns, JOINED, gpu, NONE, NONE, kind, pages_total)
    engine.gpu_joined(world, now_ns, gpu, kind, pages_total)


@lean_kernel
def feed_resident(host, world, now_ns, gpu, models):
    """The models (i8[n] of handles) that a GPU said it holds."""
    for i in range(len(models)):
        log_simple(host, now_ns, RESIDENT, gpu, models[i], NONE, NONE, NONE)
        engine.gpu_resident(world, now_ns, gpu, models[i])


@inner_kernel
def feed_lost(host, world, now_ns, gpu):
    log_simple(host, now_ns, LOST, gpu, NONE, NONE, NONE, NONE)
    engine.gpu_lost(world, now_ns, gpu)


@lean_kernel
def feed_draining(host, world, now_ns, gpu):
    log_simple(host, now_ns, DRAINING, gpu, NONE, NONE, NONE, NONE)
    engine.gpu_draining(world, now_ns, gpu)


@lean_kernel
def feed_program(host, world, now_ns, program, batches, n_classes):
    """`batches` is i8[n]; the log packs four to a column."""
    at = open_record(host, now_ns, PROGRAM)
    if at >= 0:
        row = host.log.records[at]
        row["id"], row["a"], row["b"] = program, len(batches), n_classes
        for i in range(min(len(batches), 4)):
            row["c"] |= batches[i] << (16 * i)
        for i in range(4, min(len(batches), 8)):
            row["d"] |= batches[i] << (16 * (i - 4))
        ring_publish(host.log)
    return engine.program_added(world, program, batches, len(batches), n_classes)


@lean_kernel
def feed_prepared(host, world, now_ns, gpu, program, ok):
    log_simple(host, now_ns, PREPARED, gpu, NONE, program, ok, NONE)
    engine.program_prepared(world, now_ns, gpu, program, ok)


@lean_kernel
def feed_seed(host, world, now_ns, program, kind, batch_index, size_class, exec_ns):
    at = open_record(host, now_ns, SEED)
    if at >= 0:
        row = host.log.records[at]
        row["id"], row["a"], row["b"], row["c"], row["d"] = program, kind, batch_index, size_class, exec_ns
        ring_publish(host.log)
    engine.estimate_seed(world, program, kind, batch_index, size_class, exec_ns)


@lean_kernel
def feed_load_seed(host, world, now_ns, program, kind, load_ns):
    log_simple(host, now_ns, LOAD_SEED, NONE, NONE, program, kind, load_ns)
    engine.load_seed(world, program, kind, load_ns)


@lean_kernel
def feed_model(host, world, now_ns, program, pages):
    """The model's handle, or minus the code that refuses it."""
    handle = np.int64(engine.model_added(world, now_ns, program, pages))
    log_simple(host, now_ns, MODEL_ADDED, NONE, handle, program, pages, NONE)
    return handle


@lean_kernel
def feed_model_removed(host, world, now_ns, model):
    log_simple(host, now_ns, MODEL_REMOVED, NONE, model, NONE, NONE, NONE)
    return engine.model_removed(world, now_ns, model)


@lean_kernel
def feed_wanted(host, world, now_ns, model):
    """1 if a GPU has the model or loads it."""
    log_simple(host, now_ns, WANTED, NONE, model, NONE, NONE, NONE)
    return engine.model_wanted(world, now_ns, model)


@lean_kernel
def feed_closing(host, world, now_ns):
    log_simple(host, now_ns, CLOSING, NONE, NONE, NONE, NONE, NONE)
    engine.closing(world, now_ns)


@lean_kernel
def feed_reserved(host, world, now_ns, gpu, expected_ns):
    """The id of an action of the host's own on the exec lane, or -1."""
    action = np.int64(engine.lane_reserve(world, now_ns, gpu, expected_ns))
    log_simple(host, now_ns, RESERVED, gpu, NONE, action, expected_ns, NONE)
    return action


@inner_kernel
def feed_tick(host, world, now_ns):
    log_simple(host, now_ns, TICK, NONE, NONE, NONE, NONE, NONE)
    engine.tick(world, now_ns)


@inner_kernel
def log_refused(host, now_ns, client, request, model, status):
    """A request that the host turned away itself."""
    at = open_record(host, now_ns, REFUSED)
    if at >= 0:
        row = host.log.records[at]
        row["status"], row["model"], row["id"], row["a"] = status, model, request, client
        ring_publish(host.log)


@inner_kernel
def log_action(host, now_ns, out):
    at = open_record(host, now_ns, ACTION)
    if at >= 0:
        row = host.log.records[at]
        row["flag"], row["gpu"], row["model"], row["id"] = out["verb"], out["gpu"], out["model"], out["action"]
        row["a"], row["b"], row["c"], row["d"] = out["program"], out["pages"], out["batch"], out["size_class"]
        row["e"], row["f"], row["g"], row["h"] = out["earliest_ns"], out["latest_ns"], out["expected_ns"], out["rows"]
        ring_publish(host.log)


@inner_kernel
def log_reply(host, now_ns, out):
    at = open_record(host, now_ns, REPLY)
    if at >= 0:
        row = host.log.records[at]
        row["flag"], row["status"], row["gpu"], row["model"] = out["cold"], out["status"], out["gpu"], out["model"]
        row["id"], row["a"], row["b"], row["c"] = out["request_id"], out["client"], out["queued_ns"], out["load_ns"]
        row["d"], row["e"], row["f"], row["g"] = out["exec_ns"], out["total_ns"], out["served_ns"], out["batch"]
        row["h"] = out["action"]
        ring_publish(host.log)


@inner_kernel
def log_release(host, now_ns, out):
    log_simple(host, now_ns, RELEASE, NONE, NONE, NONE, out["payload"], out["result"])
