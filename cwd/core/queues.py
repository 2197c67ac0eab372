"""Requests: their rows, their model's queue in order of due time, the backlog of their home GPU, their end.

`due_ns` is the deadline less the reply's way to the client; `need_ns` is what issuing at the last moment takes: send,
execute alone, margins, result. A request is given up at due - need, when nothing can save it any more, never at its
deadline. Its *home* is the GPU that admission counted on; any GPU with a copy may take it. A model's timer goes off at
its head's last moment at the latest; it may be early, then it is set again.
"""

from __future__ import annotations

from cwd.core import background, floor, hashmap, lanes, memory, ordered, outbox, residency
from cwd.core.estimate import load_ns, load_row, margin_ns
from cwd.core.presets import BY_ARRIVAL, BY_RECENT, BY_SAVED
from cwd.core.world import (
    BUCKET_BITS, BUCKETS, COPY_LOADING, COPY_READY, FOREVER_NS, LANE_EXEC, MARGIN_RESULT, MARGIN_SEND, NONE,
    REQUEST_FREE, REQUEST_QUEUED, REQUEST_RUNNING, Code,
)
from cwd.jit import inner_kernel, lean_kernel

DEADLINE_UNREACHABLE = int(Code.DEADLINE_UNREACHABLE)
DEADLINE_EXPIRED = int(Code.DEADLINE_EXPIRED)
DEADLINE_MISSED = int(Code.DEADLINE_MISSED)
OK = int(Code.OK)

#: most copies that one event looks at; a model with more of them takes turns
COPIES_LOOK = 8
#: most requests that one look at a model's timer gives up
EXPIRED_MAX = 64
#: scale of `saved_per_load`
SAVED_BITS = 40
#: probes for a (client, request id) whose hashes collide
PROBES = 4


@inner_kernel
def map_key(client, request_id, probe):
    return hashmap.mix(request_id) ^ hashmap.mix((client << 3) + probe + 1) ^ (request_id << 3)


@lean_kernel
def lookup(world, client, request_id):
    """The live request of a client by its id, or -1."""
    for probe in range(PROBES):
        r = hashmap.get(world.request_map, map_key(client, request_id, probe))
        if r == NONE:
            return NONE
        if world.requests[r]["client"] == client and world.requests[r]["request_id"] == request_id:
            return r
    return NONE


@inner_kernel
def create(world, client, request_id):
    """A row for a new request, findable by its id and by its client; -1 if the table is full."""
    counters = world.counters[0]
    r = counters["free_request"]
    if r == NONE:
        return NONE
    key = map_key(client, request_id, 0)
    probe = 1
    while hashmap.get(world.request_map, key) != NONE:
        if probe == PROBES:
            return NONE
        key = map_key(client, request_id, probe)
        probe += 1
    request = world.requests[r]
    counters["free_request"] = request["next"]
    counters["requests_live"] += 1
    hashmap.put(world.request_map, key, r)
    request["key"] = key
    request["tag"] = request["picked"] = 0
    request["client"] = client
    request["request_id"] = request_id
    owner = world.clients[client]
    request["client_previous"] = NONE
    request["client_next"] = owner["first"]
    if owner["first"] != NONE:
        world.requests[owner["first"]]["client_previous"] = r
    owner["first"] = r
    owner["count"] += 1
    return r


@inner_kernel
def crowded(world):
    """Whether so few rows for requests are left, a quarter, that nobody may wait on purpose: others would be turned away."""
    return 4 * world.counters[0]["requests_live"] >= 3 * len(world.requests)


@inner_kernel
def homeless(world):
    """Whether a model that is nowhere waits for its LOAD: it may need the pages that others keep who wait on purpose."""
    m = world.counters[0]["wanted_head"]
    return m != NONE and world.models[m]["copies_count"] == 0


@inner_kernel
def disown(world, r):
    """Cut a request off its client: nobody can find it, and nobody is told how it ends."""
    request = world.requests[r]
    owner = world.clients[request["client"]]
    if request["client_previous"] == NONE:
        owner["first"] = request["client_next"]
    else:
        world.requests[request["client_previous"]]["client_next"] = request["client_next"]
    if request["client_next"] != NONE:
        world.requests[request["client_next"]]["client_previous"] = request["client_previous"]
    owner["count"] -= 1
    hashmap.remove(world.request_map, request["key"])
    request["client"] = NONE


@inner_kernel
def finish(world, now_ns, r, status, served_ns):
    """End request `r` (not queued any more): reply or release, and its row is free. Returns the record or -1."""
    request = world.requests[r]
    counters = world.counters[0]
    record = NONE
    if request["client"] == NONE:
        outbox.release(world, request["payload"], NONE)
    else:
        record = outbox.reply(world, now_ns, r, status)
        world.outbox[record]["served_ns"] = served_ns
        disown(world, r)
    if world.settings[0]["prices"] == 1 and (
            status == OK or status == DEADLINE_UNREACHABLE or status == DEADLINE_EXPIRED or status == DEADLINE_MISSED):
        floor.ended(world, 1 if status == OK else 0)
        memory.ended(world, request["model"], 1 if status == OK else 0)
    if status == OK:
        counters["answered"] += 1
    elif status == DEADLINE_EXPIRED:
        counters["dropped"] += 1
    else:
        counters["failed"] += 1
    request["state"] = REQUEST_FREE
    request["next"] = counters["free_request"]
    counters["free_request"] = r
    counters["requests_live"] -= 1
    return record


@inner_kernel
def _charge(world, now_ns, r):
    """Count the request's work at its home."""
    request = world.requests[r]
    home = request["home"]
    if home == NONE:
        return
    request["home_epoch"] = world.gpus[home]["epoch"]
    bucket = request["due_ns"] >> BUCKET_BITS
    near = bucket - (now_ns >> BUCKET_BITS) < BUCKETS
    request["bucket"] = bucket & (BUCKETS - 1) if near else BUCKETS
    world.backlog[home, request["bucket"]] += request["cost_ns"]
    world.gpus[home]["backlog_ns"] += request["cost_ns"]


@inner_kernel
def _uncharge(world, r):
    request = world.requests[r]
    home = request["home"]
    if home != NONE and world.gpus[home]["epoch"] == request["home_epoch"]:
        world.backlog[home, request["bucket"]] -= request["cost_ns"]
        world.gpus[home]["backlog_ns"] -= request["cost_ns"]


@inner_kernel
def enqueue(world, now_ns, r):
    """Queue request `r`, whose due, need, cost and home are set, and see that somebody looks at it."""
    request = world.requests[r]
    m = request["model"]
    model = world.models[m]
    counters = world.counters[0]
    request["state"] = REQUEST_QUEUED
    key = request["arrival_ns"] if world.settings[0]["queue_order"] == BY_ARRIVAL else request["due_ns"]
    counters["sequence"] += 1
    model["queue_root"] = ordered.insert(world.request_nodes, model["queue_root"], r, key, counters["sequence"])
    first = model["queue_head"] == NONE or ordered.before(world.request_nodes, r, model["queue_head"])
    model["queued"] += 1
    model["work_ns"] += request["cost_ns"]
    _charge(world, now_ns, r)
    if first:
        model["queue_head"] = r
        arm_model(world, now_ns, m)
    if world.settings[0]["polls"] == 1:
        poll_copies(world, m)
        return
    if first:
        activate_copies(world, now_ns, m)
    if request["home"] != NONE:
        copy = residency.find(world, m, request["home"])
        if copy != NONE and world.copies[copy]["state"] == COPY_READY:
            residency.activate(world, copy)
            lanes.wake(world, request["home"])


@inner_kernel
def dequeue(world, r):
    """Take request `r` out of its model's queue; its row stays."""
    request = world.requests[r]
    model = world.models[request["model"]]
    if model["queue_head"] == r:
        model["queue_head"] = ordered.successor(world.request_nodes, r)
    model["queue_root"] = ordered.remove(world.request_nodes, model["queue_root"], r)
    model["queued"] -= 1
    model["work_ns"] -= request["cost_ns"]
    _uncharge(world, r)
    request["state"] = REQUEST_RUNNING
    if model["queued"] < 0 or model["work_ns"] < 0:
        outbox.broken(world, outbox.BROKEN_QUEUE)
    if model["queued"] == 0:
        unlist(world, request["model"])


@inner_kernel
def activate_copies(world, now_ns, m):
    """A model's head is new: tell up to COPIES_LOOK of its GPUs, and have the soonest free one look at once."""
    copy = world.models[m]["copies"]
    if copy == NONE or world.models[m]["queue_head"] == NONE:
        return
    best, best_ns = NONE, FOREVER_NS
    last = copy
    for _ in range(COPIES_LOOK):
        row = world.copies[copy]
        if row["state"] == COPY_READY:
            gpu = row["gpu"]
            residency.activate(world, copy)
            lane = world.lanes[2 * gpu + LANE_EXEC]
            free_ns = (lane["available_ns"] if lane["count"] > 0 else 0) + world.gpus[gpu]["backlog_ns"]
            if free_ns < best_ns:
                best, best_ns = gpu, free_ns
            timer = world.settings[0]["gpu_timer"] + gpu
            if lane["count"] > 0 and world.timers[timer]["place"] == NONE:
                lanes.arm(world, now_ns, gpu)
        copy = row["next"]
        if copy == last:
            break
    if world.models[m]["copies_count"] > COPIES_LOOK:
        world.models[m]["copies"] = copy
    if best != NONE:
        lanes.wake(world, best)


@inner_kernel
def poll_copies(world, m):
    """A request came: have up to COPIES_LOOK of the model's GPUs look, one after another, whoever comes first by chance."""
    copy, looks = world.models[m]["copies"], world.models[m]["copies_count"]
    if looks == 0:
        return
    if looks > COPIES_LOOK:
        looks = COPIES_LOOK
    for _ in range(hashmap.mix(world.counters[0]["sequence"]) % looks):
        copy = world.copies[copy]["next"]
    for _ in range(looks):
        if world.copies[copy]["state"] == COPY_READY:
            residency.activate(world, copy)
            lanes.wake(world, world.copies[copy]["gpu"])
        copy = world.copies[copy]["next"]
    if world.models[m]["copies_count"] > COPIES_LOOK:
        world.models[m]["copies"] = copy


# -- giving up ---------------------------------------------------------------------------------------------------------


@inner_kernel
def load_need_ns(world, now_ns, gpu, program):
    """From issuing a LOAD on a GPU with an idle lane until its result is here."""
    kind = world.gpus[gpu]["kind"]
    return (load_ns(world, now_ns, program, kind) + margin_ns(world, now_ns, kind, MARGIN_SEND)
            + margin_ns(world, now_ns, kind, MARGIN_RESULT))


@inner_kernel
def last_moment_ns(world, now_ns, r):
    """Until when request `r` can still be saved: due - need, and before a LOAD if no GPU has or loads its model.

    Without foresight, or if the length of its execution is not known: until it is overdue. Where a LOAD need not save
    anybody, it is not waited for either: else a model whose LOAD takes longer than its clients' SLO would never be loaded.
    """
    request = world.requests[r]
    model = world.models[request["model"]]
    if world.settings[0]["foresight"] == 0 or world.programs[model["program"]]["dynamic"] == 1:
        return request["due_ns"]
    last_ns = request["due_ns"] - request["need_ns"]
    if model["copies_ready"] > 0 or world.settings[0]["load_saves"] == 0:
        return last_ns
    copy, first = model["copies"], model["copies"]
    for _ in range(COPIES_LOOK):
        if copy == NONE:
            break
        if world.copies[copy]["state"] == COPY_LOADING:
            return last_ns
        copy = world.copies[copy]["next"]
        if copy == first:
            break
    if world.counters[0]["loads_count"] == 0:
        return last_ns
    gpu = world.load_lanes[0]["id"]
    return last_ns - load_need_ns(world, now_ns, gpu, model["program"])


@inner_kernel
def arm_model(world, now_ns, m):
    """See that the model's timer goes off no later than its head's last moment."""
    head = world.models[m]["queue_head"]
    if head == NONE:
        return
    at_ns = last_moment_ns(world, now_ns, head) + 1
    place = world.timers[m]["place"]
    if place == NONE or world.timers[place]["key"] > at_ns:
        lanes.set_timer(world, m, at_ns)


@inner_kernel
def press(world, now_ns, m, home):
    """A request of the model is lost for want of time: its home is pressed, and where prices are known the GPUs that share
    the model's queue with it, or they would spend on small batches what it is short of."""
    world.gpus[home]["pressed_ns"] = now_ns
    copy = world.models[m]["copies"]
    if world.settings[0]["prices"] == 0 or copy == NONE:
        return
    last = copy
    for _ in range(COPIES_LOOK):
        world.gpus[world.copies[copy]["gpu"]]["pressed_ns"] = now_ns
        copy = world.copies[copy]["next"]
        if copy == last:
            break
    # of more copies the others are next
    world.models[m]["copies"] = copy


@inner_kernel
def drop(world, now_ns, r, status):
    """Give a queued request up."""
    request = world.requests[r]
    if status == DEADLINE_EXPIRED and request["home"] != NONE:
        press(world, now_ns, request["model"], request["home"])
    if status == DEADLINE_EXPIRED and not background.is_background(request["arrival_ns"], request["due_ns"]):
        background.crowded(world, now_ns, r)
    dequeue(world, r)
    finish(world, now_ns, r, status, 0)


@inner_kernel
def expire(world, now_ns, m):
    """The model's timer went off: give up what cannot be saved, set the timer again, show the rest to the GPUs."""
    lanes.set_timer(world, m, FOREVER_NS)
    model = world.models[m]
    dropped = 0
    while model["queue_head"] != NONE and last_moment_ns(world, now_ns, model["queue_head"]) < now_ns:
        if dropped == EXPIRED_MAX:
            # the rest in the next tick, which is due at once
            lanes.set_timer(world, m, now_ns + 1)
            return
        drop(world, now_ns, model["queue_head"], DEADLINE_EXPIRED)
        dropped += 1
    arm_model(world, now_ns, m)
    if dropped > 0:
        activate_copies(world, now_ns, m)


# -- models that want a LOAD -------------------------------------------------------------------------------------------


@inner_kernel
def saved_per_load(world, m):
    """How many requests a LOAD of the model would save for the time that it takes, 2**SAVED_BITS of them in a ns.

    Those that wait are those that one can save, since a request is given up when none can any more.
    """
    if world.counters[0]["loads_count"] == 0:
        return 0
    kind = world.gpus[world.load_lanes[0]["id"]]["kind"]
    # as long as last seen: what orders must not change with time
    taken_ns = world.estimates[load_row(world, world.models[m]["program"], kind)]["tail_ns"]
    return (world.models[m]["queued"] << SAVED_BITS) // (taken_ns if taken_ns > 0 else 1)


@inner_kernel
def enlist(world, m, demand_ns):
    """List a model as wanting a LOAD, by demand or in the policy's order. Updates one that is listed.

    A model without a queue is one that missed a request: it comes behind all that have one.
    """
    unlist(world, m)
    counters = world.counters[0]
    head, order = world.models[m]["queue_head"], world.settings[0]["load_order"]
    if head == NONE:
        counters["sequence"] += 1
        key, tie = FOREVER_NS, counters["sequence"]
    else:
        key = -demand_ns
        if order == BY_ARRIVAL:
            key = world.requests[head]["arrival_ns"]
        elif order == BY_SAVED:
            key = -saved_per_load(world, m)
        # of equal demands the older head goes first, or the model that was used last; both numbers are unique
        tie = -world.memory[m]["used"] if order == BY_RECENT else world.request_nodes[head]["tie"]
        if order == BY_SAVED:
            # the younger: where not all can be saved, those at their last moment are saved least surely
            tie = -tie
    counters["wanted_root"] = ordered.insert(world.wanted_nodes, counters["wanted_root"], m, key, tie)
    if counters["wanted_head"] == NONE or ordered.before(world.wanted_nodes, m, counters["wanted_head"]):
        counters["wanted_head"] = m
    world.models[m]["wanted"] = 1


@inner_kernel
def unlist(world, m):
    if world.models[m]["wanted"] == 0:
        return
    counters = world.counters[0]
    if counters["wanted_head"] == m:
        counters["wanted_head"] = ordered.successor(world.wanted_nodes, m)
    counters["wanted_root"] = ordered.remove(world.wanted_nodes, counters["wanted_root"], m)
    world.models[m]["wanted"] = 0
