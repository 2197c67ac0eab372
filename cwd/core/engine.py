"""The verbs of the core: what a host tells it about requests and results, and the tick that lets the policy plan.

See DESIGN.md for the host's duties. Members (GPUs, programs, models) come and go through `members.py`, whose verbs are
offered here too. Every verb takes the world and, where time matters, `now_ns`, which must never go back.

==========================================================================================================  ============
request_arrived(world, now_ns, client, request_id, model, size_class, deadline_ns, slo_ns, app, payload)    0 or a code
request_cancelled(world, now_ns, client, request_id)                                                        1 if queued
client_gone(world, now_ns, client)
closing(world, now_ns)
action_done(world, now_ns, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload)     0 or STALE
lane_reserve(world, now_ns, gpu, expected_ns)                                                               action or -1
tick(world, now_ns)
next_timer(world, now_ns)                                                                                   when, ns
==========================================================================================================  ============
"""

from __future__ import annotations

from cwd.core import (
    actions, admission, background, estimate, floor, histograms, lanes, loads, members, memory, outbox, policies, price, queues,
)
from cwd.core.world import (
    ACTION_EXEC, ACTION_FREE, ACTION_RESERVED, FOREVER_NS, GPU_UP, LANE_EXEC, LANE_LOAD, MARGIN_LOOK, MODEL_READY,
    NONE, REQUEST_QUEUED, SLOT_BITS, SLOT_MASK, Code,
)
from cwd.jit import inner_kernel, lean_kernel

gpu_joined = members.gpu_joined
gpu_resident = members.gpu_resident
gpu_lost = members.gpu_lost
gpu_draining = members.gpu_draining
program_added = members.program_added
program_prepared = members.program_prepared
estimate_seed = members.estimate_seed
load_seed = members.load_seed
model_added = members.model_added
model_removed = members.model_removed
model_wanted = members.model_wanted

#: what `action_done` returns for an action that is not outstanding (any more): nothing has changed
STALE = 1

OK = int(Code.OK)
BAD_SLO = int(Code.BAD_SLO)
CANCELLED = int(Code.CANCELLED)
DEADLINE_UNREACHABLE = int(Code.DEADLINE_UNREACHABLE)
DEVICE_ERROR = int(Code.DEVICE_ERROR)
DRAINING = int(Code.DRAINING)
DUPLICATE_REQUEST = int(Code.DUPLICATE_REQUEST)
MODEL_NOT_READY = int(Code.MODEL_NOT_READY)
NO_WORKER = int(Code.NO_WORKER)
QUEUE_FULL = int(Code.QUEUE_FULL)
SLO_BELOW_EXECUTION = int(Code.SLO_BELOW_EXECUTION)
DEADLINE_EXPIRED = int(Code.DEADLINE_EXPIRED)
UNKNOWN_MODEL = int(Code.UNKNOWN_MODEL)
UNKNOWN_SIZE = int(Code.UNKNOWN_SIZE)


@inner_kernel
def _fault(world, client, request_id, model, size_class, slo_ns):
    """What is wrong with a request, whatever the load: a code, or 0."""
    m = model & SLOT_MASK
    if slo_ns <= 0 or slo_ns > world.settings[0]["slo_max_ns"]:
        return BAD_SLO
    if model < 0 or m >= len(world.models):
        return UNKNOWN_MODEL
    row = world.models[m]
    if row["state"] != MODEL_READY or row["generation"] != model >> SLOT_BITS:
        return UNKNOWN_MODEL
    program = world.programs[row["program"]]
    if size_class < 0 or size_class >= program["n_classes"]:
        return UNKNOWN_SIZE
    if client < 0 or client >= len(world.clients):
        return QUEUE_FULL
    if queues.lookup(world, client, request_id) != NONE:
        return DUPLICATE_REQUEST
    if program["prepared"] == 0:
        return NO_WORKER
    return 0


@lean_kernel
def request_arrived(world, now_ns, client, request_id, model, size_class, deadline_ns, slo_ns, app, payload):
    """A request came. 0: it is queued, and will be answered once. Else the code of the refusal, already in the outbox.

    `deadline_ns` is absolute, in the clock of `now_ns`; 0 if the client did not say; never later than now + slo.
    """
    code = _fault(world, client, request_id, model, size_class, slo_ns)
    r = NONE
    if code == 0:
        r = queues.create(world, client, request_id)
        if r == NONE:
            code = QUEUE_FULL
    if code != 0:
        outbox.refusal(world, client, request_id, model, size_class, app, payload, code, 0)
        return code
    request = world.requests[r]
    request["model"] = model & SLOT_MASK
    request["payload"] = payload
    request["size_class"] = size_class
    request["app"] = app
    request["arrival_ns"] = now_ns
    request["slo_ns"] = slo_ns
    latest_ns = now_ns + slo_ns
    request["deadline_ns"] = deadline_ns if 0 < deadline_ns < latest_ns else latest_ns
    due_ns, floor_ns = request["deadline_ns"] - world.settings[0]["client_ns"], world.settings[0]["due_floor_ns"]
    request["due_ns"] = due_ns if floor_ns == 0 or due_ns > now_ns + floor_ns else now_ns + floor_ns
    request["attempts"] = 0
    request["action"] = NONE
    request["cold"] = 1 if world.models[request["model"]]["copies_ready"] == 0 else 0
    return _admit(world, now_ns, r)


@inner_kernel
def _admit(world, now_ns, r):
    """Queue the request if a plan keeps its deadline; else refuse it and say after how long it could be answered."""
    request = world.requests[r]
    m = request["model"]
    if world.settings[0]["learns"] == 1:
        memory.arrived(world, now_ns, r)
    urgent = not background.is_background(now_ns, request["due_ns"])
    if world.settings[0]["fair"] == 1 and urgent:
        floor.asked(world, m)
    done_ns, busy_ns, loader = admission.place(world, now_ns, r)
    program = world.models[m]["program"]
    dynamic = world.programs[program]["dynamic"] == 1
    gpu = request["home"] if request["home"] != NONE else loader
    if world.settings[0]["prices"] == 1 and gpu != NONE and not dynamic and urgent:
        each_ns = admission.filled_each_ns(world, now_ns, r, gpu)
        price.asked(world, now_ns, each_ns)
        background.asked(world, now_ns, r, each_ns)
    late = world.settings[0]["admission"] == 1 and not dynamic and done_ns > request["due_ns"]
    if late or done_ns == FOREVER_NS or request["need_ns"] == 0:
        copy_helps = loader != NONE and (busy_ns == FOREVER_NS or admission.in_time_there(world, now_ns, r, loader))
        let_in = world.settings[0]["prices"] == 1 and request["need_ns"] > 0 and admission.let_in(world, now_ns, r, loader)
        code = 0 if let_in else _refuse(world, now_ns, r, done_ns)
        if copy_helps and (code == DEADLINE_UNREACHABLE or (code == 0 and busy_ns < FOREVER_NS)):
            _miss(world, now_ns, m, loader)
        if code != 0:
            return code
    world.counters[0]["accepted"] += 1
    request["tag"] = program
    if world.settings[0]["picks"] == 1 or dynamic:
        histograms.tag(world, r)
    queues.enqueue(world, now_ns, r)
    if busy_ns == FOREVER_NS or (loader != NONE and busy_ns > loads.horizon_ns(world, m)):
        queues.enlist(world, m, loads.demand_ns(world, now_ns, m))
        if loader != NONE:
            lanes.wake(world, loader)
    return 0


@inner_kernel
def _miss(world, now_ns, m, loader):
    """A request came too late for its model to be loaded: have it loaded for the next one, when nothing else is.

    Without this a model whose LOAD takes longer than its clients' SLO would never be loaded, or never on a second GPU.
    """
    world.models[m]["missed_ns"] = now_ns
    if world.models[m]["wanted"] == 0:
        queues.enlist(world, m, 1)
    lanes.wake(world, loader)


@inner_kernel
def _refuse(world, now_ns, r, done_ns):
    request = world.requests[r]
    program = world.models[request["model"]]["program"]
    best = admission.best_need_ns(world, now_ns, program, request["size_class"])
    client_ns = world.settings[0]["client_ns"]
    served_ns = done_ns - now_ns + client_ns if done_ns < FOREVER_NS else 0
    code = DEADLINE_UNREACHABLE
    if best == 0:
        code, served_ns = MODEL_NOT_READY, 0
    elif now_ns + best > request["due_ns"]:
        # an SLO that was long enough when the request was sent is no fault of it: it came too late
        code = SLO_BELOW_EXECUTION if best > request["slo_ns"] - client_ns else DEADLINE_EXPIRED
        for kind in range(world.settings[0]["kinds_max"]):
            estimate.doubt(
                world.estimates[estimate.exec_row(world, program, kind, 0, request["size_class"])], now_ns)
    elif request["home"] != NONE:
        queues.press(world, now_ns, request["model"], request["home"])
    if code == DEADLINE_UNREACHABLE and not background.is_background(now_ns, request["due_ns"]):
        background.crowded(world, now_ns, r)
    world.counters[0]["refused"] += 1
    queues.finish(world, now_ns, r, code, served_ns)
    return code


@lean_kernel
def request_cancelled(world, now_ns, client, request_id):
    """A client takes a request back: 1 if it was still queued and is answered CANCELLED now, else 0."""
    if client < 0 or client >= len(world.clients):
        return 0
    r = queues.lookup(world, client, request_id)
    if r == NONE or world.requests[r]["state"] != REQUEST_QUEUED:
        return 0
    queues.drop(world, now_ns, r, CANCELLED)
    return 1


@lean_kernel
def client_gone(world, now_ns, client):
    """A client left: what it had queued is released; what runs, runs on and is released then."""
    if client < 0 or client >= len(world.clients):
        return
    r = world.clients[client]["first"]
    while r != NONE:
        after = world.requests[r]["client_next"]
        queued = world.requests[r]["state"] == REQUEST_QUEUED
        queues.disown(world, r)
        if queued:
            queues.drop(world, now_ns, r, CANCELLED)
        r = after


@lean_kernel
def closing(world, now_ns):
    """The host ends before all are served: whoever is still queued is answered DRAINING."""
    for r in range(len(world.requests)):
        if world.requests[r]["state"] == REQUEST_QUEUED:
            queues.drop(world, now_ns, r, DRAINING)


@lean_kernel
def action_done(world, now_ns, action, status, begin_ns, end_ns, device_ns, rows_done, pages_free, payload):
    """A worker's result. 0, or STALE if the action is not outstanding: then nothing has changed.

    `begin_ns`, `end_ns`: in the clock of `now_ns`, 0 if it did not run; the lane is occupied in between. `device_ns`: the
    same by the device's own clock, 0 where there is none. `pages_free`: as told by a RESULT, -1 if not told. `payload`: the
    host's handle of the outputs; it comes back as a release after the replies that point to it.
    """
    a = action & SLOT_MASK
    if action < 0 or a >= len(world.actions):
        return STALE
    row = world.actions[a]
    if row["state"] == ACTION_FREE or row["generation"] != action >> SLOT_BITS or row["parked"] == 1:
        world.counters[0]["stale"] += 1
        return STALE
    if status == OK and row["state"] == ACTION_EXEC and rows_done != row["rows"]:
        status = DEVICE_ERROR
    gpu, lane = row["gpu"], row["lane"]
    if status == OK and row["state"] == ACTION_EXEC and 0 < begin_ns < end_ns:
        took_ns = end_ns - begin_ns
        policies.learn(world, now_ns, a, took_ns, device_ns if device_ns > 0 else took_ns)
    actions.end(world, now_ns, a, status, begin_ns, end_ns, payload)
    outbox.release(world, NONE, payload)
    # only with nothing in flight do the worker's count and ours speak of the same moment
    if lane == LANE_LOAD and pages_free >= 0 and world.lanes[2 * gpu + LANE_LOAD]["count"] == 0:
        hidden = world.gpus[gpu]["pages_free"] - pages_free
        world.gpus[gpu]["pages_hidden"] = hidden if hidden > 0 else 0
    return 0


@lean_kernel
def lane_reserve(world, now_ns, gpu, expected_ns):
    """Hold the exec lane for a PREPARE or PROFILE that the host sends itself; its action id, or -1."""
    if gpu < 0 or gpu >= len(world.gpus) or world.gpus[gpu]["state"] != GPU_UP:
        return NONE
    a = actions.create(world, now_ns, ACTION_RESERVED, gpu, LANE_EXEC, NONE, expected_ns)
    if a == NONE:
        return NONE
    actions.arm(world, a, world.settings[0]["exec_grace_ns"])
    return (world.actions[a]["generation"] << SLOT_BITS) | a


@inner_kernel
def _fire(world, now_ns, timer):
    """Timer `timer`, the first, is due; its owner arms it again or disarms it."""
    settings = world.settings[0]
    if timer >= settings["action_timer"]:
        actions.expire(world, now_ns, timer - settings["action_timer"])
    elif timer >= settings["gpu_timer"]:
        gpu = timer - settings["gpu_timer"]
        late_ns = now_ns - world.timers[0]["key"]
        estimate.observe_margin(world, now_ns, world.gpus[gpu]["kind"], MARGIN_LOOK, late_ns)
        lanes.set_timer(world, timer, FOREVER_NS)
        lanes.wake(world, gpu)
    else:
        members.model_timer(world, now_ns, timer)


@lean_kernel
def tick(world, now_ns):
    """Settle what is overdue, and let the policy plan for each GPU that something has happened to."""
    counters = world.counters[0]
    while counters["timers_count"] > 0 and world.timers[0]["key"] <= now_ns:
        _fire(world, now_ns, world.timers[0]["id"])
    gpu = lanes.next_dirty(world)
    while gpu != NONE:
        if world.gpus[gpu]["state"] == GPU_UP:
            policies.plan(world, gpu, now_ns)
            lanes.arm(world, now_ns, gpu)
        gpu = lanes.next_dirty(world)


@lean_kernel
def next_timer(world, now_ns):
    """When the next tick is due: now if a GPU waits for planning, FOREVER_NS if nothing is pending."""
    if world.counters[0]["dirty_first"] != NONE:
        return now_ns
    return world.timers[0]["key"] if world.counters[0]["timers_count"] > 0 else FOREVER_NS
