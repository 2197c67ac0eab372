"""Actions: issuing them, and what their ends mean for requests, copies and pages.

Each action ends once: by its result, by its expiry (result lost), or with its GPU. A LOAD or UNLOAD whose fate is not
known leaves its copy UNKNOWN, and an UNLOAD behind it in the same lane settles that: whether it says done or
NOT_RESIDENT, the pages are free. A refused UNLOAD is *parked*: out of its lane, tried again when its timer goes off.
"""

from __future__ import annotations

from cwd.core import background, floor, lanes, outbox, price, queues, residency
from cwd.core.admission import want
from cwd.core.estimate import (
    exec_ns, exec_row, exec_tail_ns, load_ns, load_row, margin_ns, observe, observe_margin, observe_recent,
)
from cwd.core.presets import BY_ARRIVAL
from cwd.core.world import (
    ACTION_EXEC, ACTION_FREE, ACTION_LOAD, ACTION_UNLOAD, COPY_DRAINING, COPY_LOADING, COPY_READY, COPY_UNKNOWN,
    COPY_UNLOADING, FOREVER_NS, GPU_UP, LANE_EXEC, LANE_LOAD, MARGIN_EARLY, MARGIN_END, MARGIN_RESULT, MARGIN_SEND,
    MODEL_READY, NONE, SLOT_BITS, Code,
)
from cwd.jit import inner_kernel

OK = int(Code.OK)
DEADLINE_EXPIRED = int(Code.DEADLINE_EXPIRED)
DEADLINE_MISSED = int(Code.DEADLINE_MISSED)
WORKER_LOST = int(Code.WORKER_LOST)
EXECUTION_FAILED = int(Code.EXECUTION_FAILED)
UNKNOWN_MODEL = int(Code.UNKNOWN_MODEL)
NOT_RESIDENT = int(Code.NOT_RESIDENT)
ALREADY_RESIDENT = int(Code.ALREADY_RESIDENT)
NOT_PREPARED = int(Code.NOT_PREPARED)
NOT_HERE = int(Code.NOT_HERE)
DEVICE_ERROR = int(Code.DEVICE_ERROR)
RESULT_LOST = int(Code.RESULT_LOST)
TOO_LATE = int(Code.TOO_LATE)
BAD_BATCH = int(Code.BAD_BATCH)
CORRUPT = int(Code.CORRUPT)
#: an execution that depends on data is given so many times its expected duration more until it counts as lost
DYNAMIC_GRACE = 16
#: first guess for an UNLOAD, which only gives pages back
UNLOAD_NS = 50_000


@inner_kernel
def create(world, now_ns, verb, gpu, lane, copy, expected_ns):
    """A new action at the end of its lane, its window open from now; -1 if the table is full."""
    counters = world.counters[0]
    a = counters["free_action"]
    # a quarter of the table is kept for UNLOADs, which settle doubts and must not fail
    crowded = verb != ACTION_UNLOAD and 4 * counters["actions_live"] >= 3 * len(world.actions)
    if a == NONE or crowded:
        return NONE
    action = world.actions[a]
    counters["free_action"] = action["next"]
    counters["actions_live"] += 1
    action["generation"] = (action["generation"] + 1) & 0x3FFFFFFF
    action["state"] = verb
    action["gpu"] = gpu
    action["lane"] = lane
    action["copy"] = copy
    action["model"] = world.copies[copy]["model"] if copy != NONE else 0
    action["program"] = world.models[action["model"]]["program"]
    action["batch_index"] = action["batch"] = action["size_class"] = action["rows"] = action["parked"] = 0
    action["first"] = NONE
    action["issued_ns"] = action["earliest_ns"] = now_ns
    action["expected_ns"] = expected_ns
    lanes.append(world, now_ns, a)
    action["latest_ns"] = action["start_ns"] + world.settings[0]["latest_slack_ns"]
    return a


@inner_kernel
def arm(world, a, grace_ns):
    """Set when the action counts as lost."""
    action = world.actions[a]
    latest_ns = action["latest_ns"] if action["latest_ns"] > action["start_ns"] else action["start_ns"]
    action["expire_ns"] = latest_ns + 2 * action["expected_ns"] + grace_ns
    lanes.set_timer(world, world.settings[0]["action_timer"] + a, action["expire_ns"])


@inner_kernel
def free(world, a):
    counters = world.counters[0]
    action = world.actions[a]
    lanes.set_timer(world, world.settings[0]["action_timer"] + a, FOREVER_NS)
    background.ends(world, a)
    action["state"] = ACTION_FREE
    action["next"] = counters["free_action"]
    counters["free_action"] = a
    counters["actions_live"] -= 1


# -- issuing -----------------------------------------------------------------------------------------------------------


@inner_kernel
def issue_exec(world, now_ns, copy, batch_index, size_class, first, rows_max):
    """Run a batch: up to `rows_max` queued requests from `first` on in queue order, those that fit the size class.

    If the first is picked: of those the ones that are.

    Returns how many were taken (0: no room in the table of actions).
    """
    row = world.copies[copy]
    gpu, m = row["gpu"], row["model"]
    kind = world.gpus[gpu]["kind"]
    expected = exec_ns(world, now_ns, world.models[m]["program"], kind, batch_index, size_class)
    free_ns = world.lanes[2 * gpu + LANE_EXEC]["available_ns"]
    a = create(world, now_ns, ACTION_EXEC, gpu, LANE_EXEC, copy, expected)
    if a == NONE:
        return 0
    action = world.actions[a]
    action["batch_index"] = batch_index
    action["batch"] = world.programs[action["program"]]["batches"][batch_index]
    action["size_class"] = size_class
    due_ns = _take_rows(world, a, first, rows_max)
    if background.is_background(now_ns, due_ns):
        background.begins(world, a)
    elif world.settings[0]["prices"] == 1:
        # what is owed runs at any price, and says nothing about it
        if floor.owed(world, m) <= 0:
            price.paid(world, action["rows"], expected, action["start_ns"] - free_ns if action["idle"] == 1 else 0)
        floor.served(world, m, action["rows"])
    tail_ns = exec_tail_ns(world, now_ns, action["program"], kind, batch_index, size_class)
    action["promised_ns"] = action["start_ns"] + tail_ns
    # begun later than planned it may still be in time more often than not
    latest_ns = due_ns - expected - margin_ns(world, now_ns, kind, MARGIN_RESULT)
    dynamic = world.programs[action["program"]]["dynamic"] == 1
    if latest_ns < action["latest_ns"] and world.settings[0]["foresight"] == 1 and not dynamic:
        action["latest_ns"] = latest_ns
    row["running"] += 1
    row["turn_ns"] = now_ns
    world.models[m]["running"] += 1
    residency.touch(world, copy)
    # what depends on data may take long without being lost
    arm(world, a, world.settings[0]["exec_grace_ns"] + (DYNAMIC_GRACE * expected if dynamic else 0))
    if world.settings[0]["queue_order"] == BY_ARRIVAL:
        # who is first now may have less time than who was
        queues.arm_model(world, now_ns, m)
    counters = world.counters[0]
    counters["execs"] += 1
    counters["rows"] += action["rows"]
    outbox.action(world, a)
    return action["rows"]


@inner_kernel
def _take_rows(world, a, first, rows_max):
    """Move requests from their queue into the action; returns the earliest due time among them."""
    action = world.actions[a]
    due_ns, last = FOREVER_NS, NONE
    r = first
    picks = world.requests[first]["picked"]
    while r != NONE and action["rows"] < rows_max:
        request = world.requests[r]
        after = queues.ordered.successor(world.request_nodes, r)
        if request["size_class"] <= action["size_class"] and (picks == 0 or request["picked"] == 1):
            request["picked"] = 0
            queues.dequeue(world, r)
            request["action"] = a
            request["next"] = NONE
            if last == NONE:
                action["first"] = r
            else:
                world.requests[last]["next"] = r
            last = r
            action["rows"] += 1
            if request["due_ns"] < due_ns:
                due_ns = request["due_ns"]
        r = after
    return due_ns


@inner_kernel
def issue_load(world, now_ns, gpu, m):
    """Load a model for which there is room; returns 1, or 0 if a table is full."""
    copy = residency.create(world, m, gpu, COPY_LOADING)
    if copy == NONE:
        return 0
    expected = load_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"])
    a = create(world, now_ns, ACTION_LOAD, gpu, LANE_LOAD, copy, expected)
    if a == NONE:
        residency.destroy(world, copy)
        return 0
    world.copies[copy]["action"] = a
    arm(world, a, world.settings[0]["load_grace_ns"])
    world.counters[0]["loads"] += 1
    world.models[m]["missed_ns"] = 0
    queues.unlist(world, m)
    outbox.action(world, a)
    return 1


@inner_kernel
def issue_unload(world, now_ns, copy):
    """Unload a copy on which nothing runs; its pages count as free from here on. Returns 1, or 0 if the table is full."""
    row = world.copies[copy]
    a = create(world, now_ns, ACTION_UNLOAD, row["gpu"], LANE_LOAD, copy, UNLOAD_NS)
    if a == NONE:
        return 0
    residency.set_state(world, copy, COPY_UNLOADING)
    residency.deactivate(world, copy)
    residency.uncharge(world, copy)
    row["action"] = a
    world.actions[a]["latest_ns"] = FOREVER_NS >> 1
    action = world.actions[a]
    action["expire_ns"] = action["end_ns"] + world.settings[0]["load_grace_ns"]
    lanes.set_timer(world, world.settings[0]["action_timer"] + a, action["expire_ns"])
    world.counters[0]["unloads"] += 1
    outbox.action(world, a)
    return 1


# -- ends --------------------------------------------------------------------------------------------------------------


@inner_kernel
def measure(world, now_ns, a, begin_ns, end_ns):
    """Learn from an action that ran."""
    action = world.actions[a]
    kind = world.gpus[action["gpu"]]["kind"]
    took_ns = end_ns - begin_ns
    if begin_ns <= 0 or took_ns <= 0:
        return
    observe_margin(world, now_ns, kind, MARGIN_RESULT, now_ns - end_ns)
    if action["idle"] == 1:
        observe_margin(world, now_ns, kind, MARGIN_SEND, begin_ns - action["issued_ns"])
    row = NONE
    if action["state"] == ACTION_EXEC:
        # a promise about what depends on data says nothing about margins
        dynamic = world.programs[action["program"]]["dynamic"] == 1
        observe_margin(world, now_ns, kind, MARGIN_END, now_ns - (end_ns if dynamic else action["promised_ns"]))
        if not dynamic:
            observe_margin(world, now_ns, kind, MARGIN_EARLY, action["end_ns"] - end_ns)
        row = exec_row(world, action["program"], kind, action["batch_index"], action["size_class"])
    elif action["state"] == ACTION_LOAD:
        row = load_row(world, action["program"], kind)
    if row != NONE and world.settings[0]["estimates_recent"] == 1:
        observe_recent(world.estimates[row], took_ns)
    elif row != NONE:
        observe(world.estimates[row], now_ns, took_ns)


@inner_kernel
def end_exec(world, now_ns, a, status, begin_ns, end_ns, result):
    """An execution ended: answer its requests, or queue them again if there is time and it was not their fault."""
    action = world.actions[a]
    copy = action["copy"]
    world.copies[copy]["running"] -= 1
    world.models[action["model"]]["running"] -= 1
    r, index = action["first"], 0
    while r != NONE:
        after = world.requests[r]["next"]
        if status == OK:
            _answer(world, now_ns, r, a, begin_ns, end_ns, result, index)
        else:
            retry(world, now_ns, r, status)
        r = after
        index += 1
    if status == NOT_RESIDENT and world.copies[copy]["state"] == COPY_READY and world.copies[copy]["running"] == 0:
        doubt(world, now_ns, copy)


@inner_kernel
def _answer(world, now_ns, r, a, begin_ns, end_ns, result, index):
    request, action = world.requests[r], world.actions[a]
    missed = now_ns > request["deadline_ns"]
    arrival_ns = request["arrival_ns"]
    record = queues.finish(world, now_ns, r, DEADLINE_MISSED if missed else OK, 0)
    if missed:
        world.counters[0]["missed"] += 1
    elif not background.is_background(arrival_ns, request["due_ns"]):
        background.relieved(world, now_ns)
    if record == NONE:
        return
    out = world.outbox[record]
    out["queued_ns"] = begin_ns - arrival_ns if begin_ns > arrival_ns else 0
    out["exec_ns"] = end_ns - begin_ns if end_ns > begin_ns else 0
    ready_ns = world.copies[action["copy"]]["ready_ns"]
    if out["cold"] == 1 and ready_ns > arrival_ns:
        out["load_ns"] = ready_ns - arrival_ns
    out["batch"] = action["batch"]
    out["rows"] = action["rows"]
    out["gpu"] = action["gpu"]
    out["action"] = (action["generation"] << SLOT_BITS) | a
    if not missed:
        out["result"] = result
        out["row"] = index


@inner_kernel
def retry(world, now_ns, r, status):
    """A request's action came to nothing: queue it again while that can help, else answer it."""
    request = world.requests[r]
    m = request["model"]
    model = world.models[m]
    request["attempts"] += 1
    if model["state"] != MODEL_READY:
        queues.finish(world, now_ns, r, UNKNOWN_MODEL, 0)
    elif status == DEVICE_ERROR or status == BAD_BATCH:
        queues.finish(world, now_ns, r, EXECUTION_FAILED, 0)
    elif world.programs[model["program"]]["prepared"] == 0:
        queues.finish(world, now_ns, r, WORKER_LOST, 0)
    elif now_ns > request["deadline_ns"]:
        queues.finish(world, now_ns, r, DEADLINE_MISSED, 0)
    elif queues.last_moment_ns(world, now_ns, r) < now_ns:
        queues.finish(world, now_ns, r, WORKER_LOST if status == WORKER_LOST else DEADLINE_EXPIRED, 0)
    elif request["attempts"] >= world.settings[0]["attempts_max"]:
        # not heard of again, heard of too late, or gone: the worker, or the way to it, is at fault, and not the model
        lost = status == RESULT_LOST or status == TOO_LATE or status == WORKER_LOST
        queues.finish(world, now_ns, r, WORKER_LOST if lost else EXECUTION_FAILED, 0)
    else:
        world.counters[0]["requeued"] += 1
        queues.enqueue(world, now_ns, r)
        want(world, now_ns, m)


@inner_kernel
def doubt(world, now_ns, copy):
    """A copy's state is not known: an UNLOAD will tell."""
    residency.set_state(world, copy, COPY_UNKNOWN)
    residency.deactivate(world, copy)
    if issue_unload(world, now_ns, copy) == 0:
        outbox.broken(world, outbox.BROKEN_COPY)


@inner_kernel
def end_load(world, now_ns, a, status):
    action = world.actions[a]
    copy, m = action["copy"], action["model"]
    world.copies[copy]["action"] = NONE
    if status == OK or status == ALREADY_RESIDENT:
        residency.set_state(world, copy, COPY_READY)
        world.copies[copy]["ready_ns"] = now_ns
        residency.touch(world, copy)
        if world.models[m]["state"] != MODEL_READY:
            issue_unload(world, now_ns, copy)
        elif world.gpus[action["gpu"]]["state"] != GPU_UP:
            residency.set_state(world, copy, COPY_DRAINING)
            want(world, now_ns, m)
        elif world.models[m]["queued"] > 0:
            queues.unlist(world, m)
            residency.activate(world, copy)
            queues.activate_copies(world, now_ns, m)
            queues.arm_model(world, now_ns, m)
    elif status == RESULT_LOST:
        doubt(world, now_ns, copy)
    else:
        residency.destroy(world, copy)
        _load_failed(world, now_ns, m, status)


@inner_kernel
def _load_failed(world, now_ns, m, status):
    """A LOAD was refused or failed: its model's requests wait for another one, unless that would fail as well."""
    model = world.models[m]
    if model["queued"] == 0 or model["copies_count"] > 0:
        return
    if status == DEVICE_ERROR or status == NOT_HERE or status == NOT_PREPARED or status == CORRUPT:
        while model["queue_head"] != NONE:
            queues.drop(world, now_ns, model["queue_head"], EXECUTION_FAILED)
        return
    queues.arm_model(world, now_ns, m)
    want(world, now_ns, m)


@inner_kernel
def end_unload(world, now_ns, a, status):
    """Returns 1 if the action lives on, parked."""
    action = world.actions[a]
    copy = action["copy"]
    if status == OK or status == NOT_RESIDENT:
        world.copies[copy]["action"] = NONE
        m = action["model"]
        residency.destroy(world, copy)
        want(world, now_ns, m)
        return 0
    residency.set_state(world, copy, COPY_UNKNOWN)
    residency.recharge(world, copy)
    if status == RESULT_LOST:
        world.copies[copy]["action"] = NONE
        doubt(world, now_ns, copy)
        return 0
    action["parked"] = 1
    lanes.set_timer(world, world.settings[0]["action_timer"] + a, now_ns + world.settings[0]["load_grace_ns"])
    return 1


@inner_kernel
def end(world, now_ns, a, status, begin_ns, end_ns, result):
    """Settle action `a`, which is in its lane."""
    action = world.actions[a]
    verb, gpu = action["state"], action["gpu"]
    finished_ns = end_ns if now_ns >= end_ns > 0 else now_ns
    if status == OK:
        measure(world, now_ns, a, begin_ns, end_ns)
    lanes.remove(world, a, finished_ns)
    parked = 0
    if verb == ACTION_EXEC:
        end_exec(world, now_ns, a, status, begin_ns, end_ns, result)
    elif verb == ACTION_LOAD:
        end_load(world, now_ns, a, status)
    elif verb == ACTION_UNLOAD:
        parked = end_unload(world, now_ns, a, status)
    if parked == 0:
        free(world, a)
    lanes.wake(world, gpu)


@inner_kernel
def discard(world, now_ns, a):
    """End a LOAD or UNLOAD of a GPU that is lost; its copy is for the caller to destroy."""
    world.copies[world.actions[a]["copy"]]["action"] = NONE
    lanes.remove(world, a, now_ns)
    free(world, a)


@inner_kernel
def collect(world, now_ns, a, rest):
    """End an action in the exec lane of a lost GPU; returns its requests, linked in front of `rest`."""
    action = world.actions[a]
    first, last = action["first"], action["first"]
    if action["state"] == ACTION_EXEC:
        world.copies[action["copy"]]["running"] -= 1
        world.models[action["model"]]["running"] -= 1
    lanes.remove(world, a, now_ns)
    free(world, a)
    if first == NONE:
        return rest
    while world.requests[last]["next"] != NONE:
        last = world.requests[last]["next"]
    world.requests[last]["next"] = rest
    return first


@inner_kernel
def expire(world, now_ns, a):
    """The action's timer went off: its result is lost, or it was parked and is tried again."""
    world.counters[0]["expired"] += 1
    action = world.actions[a]
    if action["parked"] == 1:
        copy = action["copy"]
        world.copies[copy]["action"] = NONE
        free(world, a)
        doubt(world, now_ns, copy)
    else:
        end(world, now_ns, a, RESULT_LOST, 0, 0, NONE)

