"""The core's own check, compiled: every index of the core derived again, after every instant of a small world.

`core.check` says the same in plain Python and is this file's twin in the tests; it takes milliseconds where this takes
microseconds, and a soak is millions of instants. The numbers are those of `core.check`.
"""

from __future__ import annotations

from cwd.core import ordered
from cwd.core.background import CARE_MAX
from cwd.core.check import (
    ACTIONS, BACKGROUND, BACKLOG, CLIENTS, COPIES, FREE_LISTS, HISTOGRAMS, LANES, PAGES, PRICES, QUEUES, READY_SETS, REQUEST_MAP,
    TIMERS, WANTED,
)
from cwd.core.floor import AHEAD_MAX, ONE, OWED_MAX
from cwd.core.hashmap import get as map_get
from cwd.core.histograms import SCATTERED
from cwd.core.queues import lookup
from cwd.core.world import (
    ACTION_EXEC, ACTION_FREE, ACTION_LOAD, ACTION_UNLOAD, BUCKETS, COPY_FREE, COPY_LOADING, COPY_READY, COPY_UNKNOWN,
    COPY_UNLOADING, GPU_ABSENT, GPU_UP, MODEL_FREE, MODEL_READY, NONE, REQUEST_QUEUED, REQUEST_RUNNING,
)
from cwd.jit import inner_kernel, lean_kernel
from cwd.sim.rows import count_used


@lean_kernel
def broken_index(world, notes):
    """The number of the first broken invariant, or 0. What waits or runs is then at the end of `notes.requests.order`."""
    counters, marks = world.counters[0], notes.marks
    if counters["broken"] != 0:
        return counters["broken"]
    used = count_used(world.requests, counters["free_request"], counters["requests_live"], notes.requests)
    if used < 0 or not _free_lists(world):
        return FREE_LISTS
    live = notes.requests.order[len(world.requests) - used:]
    if not _queues(world, live):
        return QUEUES
    if not _backlog(world, live, marks):
        return BACKLOG
    if not _clients(world, live):
        return CLIENTS
    if not _request_map(world, live):
        return REQUEST_MAP
    if not _actions(world, live, marks):
        return ACTIONS
    if not _dirty(world) or not _lanes(world):
        return LANES
    if not _copies(world, marks):
        return COPIES
    if not _pages(world):
        return PAGES
    if not _ready_sets(world):
        return READY_SETS
    if not _wanted(world):
        return WANTED
    if not _timers(world):
        return TIMERS
    if not _histograms(world):
        return HISTOGRAMS
    if not _background(world):
        return BACKGROUND
    return 0 if _prices(world) else PRICES


@inner_kernel
def _free_list(table, first, live):
    """Whether the free rows are linked from `first` on, each once, and the others are `live`."""
    free, i = 0, first
    while i != NONE and free <= len(table):
        if table[i]["state"] != 0:
            return False
        free += 1
        i = table[i]["next"]
    used = 0
    for k in range(len(table)):
        used += 1 if table[k]["state"] != 0 else 0
    return free + live == len(table) and used == live


@inner_kernel
def _free_lists(world):
    counters, up = world.counters[0], 0
    for gpu in range(len(world.gpus)):
        up += 1 if world.gpus[gpu]["state"] == GPU_UP else 0
    return (_free_list(world.models, counters["free_model"], counters["models_live"])
            and _free_list(world.copies, counters["free_copy"], counters["copies_live"])
            and _free_list(world.actions, counters["free_action"], counters["actions_live"])
            and up == counters["gpus_up"])


@inner_kernel
def _linked(nodes, i):
    """Whether a node's children know it and rank below it."""
    left, right = nodes[i]["left"], nodes[i]["right"]
    if left != NONE and (nodes[left]["parent"] != i or nodes[left]["rank"] > nodes[i]["rank"]):
        return False
    return right == NONE or (nodes[right]["parent"] == i and nodes[right]["rank"] <= nodes[i]["rank"])


@inner_kernel
def _set_size(nodes, root, head):
    """How many nodes a set has, in order; -1 if its links or its order are wrong."""
    if root == NONE:
        return 0 if head == NONE else -1
    if nodes[root]["parent"] != NONE or ordered.first(nodes, root) != head:
        return -1
    count, i = 0, head
    while i != NONE:
        if count >= len(nodes) or not _linked(nodes, i):
            return -1
        count += 1
        after = ordered.successor(nodes, i)
        if after != NONE and not ordered.before(nodes, i, after):
            return -1
        i = after
    return count


@inner_kernel
def _queues(world, live):
    queued = 0
    for m in range(len(world.models)):
        model = world.models[m]
        if model["state"] == MODEL_FREE:
            continue
        count = _set_size(world.request_nodes, model["queue_root"], model["queue_head"])
        if count != model["queued"]:
            return False
        queued += count
        work_ns, r = 0, model["queue_head"]
        while r != NONE:
            request = world.requests[r]
            if request["state"] != REQUEST_QUEUED or request["model"] != m:
                return False
            work_ns += request["cost_ns"]
            r = ordered.successor(world.request_nodes, r)
        if work_ns != model["work_ns"]:
            return False
    for r in live:
        queued -= 1 if world.requests[r]["state"] == REQUEST_QUEUED else 0
    return queued == 0


@inner_kernel
def _backlog(world, live, marks):
    for gpu in range(len(world.gpus)):
        row = world.gpus[gpu]
        if row["state"] == GPU_ABSENT:
            continue
        for bucket in range(BUCKETS + 1):
            marks[bucket] = 0
        for r in live:
            request = world.requests[r]
            if request["state"] == REQUEST_QUEUED and request["home"] == gpu and request["home_epoch"] == row["epoch"]:
                marks[request["bucket"]] += request["cost_ns"]
        total = 0
        for bucket in range(BUCKETS + 1):
            if marks[bucket] != world.backlog[gpu, bucket]:
                return False
            total += marks[bucket]
        if total != row["backlog_ns"]:
            return False
    return True


@inner_kernel
def _clients(world, live):
    owned = 0
    for client in range(len(world.clients)):
        count, previous, r = 0, NONE, world.clients[client]["first"]
        while r != NONE:
            request = world.requests[r]
            if request["client"] != client or request["client_previous"] != previous or count >= len(world.requests):
                return False
            count += 1
            previous, r = r, request["client_next"]
        if count != world.clients[client]["count"]:
            return False
        owned += count
    for r in live:
        owned -= 1 if world.requests[r]["client"] != NONE else 0
    return owned == 0


@inner_kernel
def _request_map(world, live):
    listed = 0
    for r in live:
        request = world.requests[r]
        if request["client"] != NONE:
            listed += 1
            if lookup(world, request["client"], request["request_id"]) != r:
                return False
    for i in range(len(world.request_map)):
        listed -= 1 if world.request_map[i]["value"] != NONE else 0
    return listed == 0


@inner_kernel
def _actions(world, live, marks):
    """Actions' rows are the running requests; copies and models count their executions."""
    rows_all = 0
    for a in range(len(world.actions)):
        action = world.actions[a]
        if action["state"] == ACTION_FREE:
            continue
        if world.gpus[action["gpu"]]["state"] == GPU_ABSENT:
            return False
        rows, r = 0, action["first"]
        while r != NONE:
            if world.requests[r]["state"] != REQUEST_RUNNING or world.requests[r]["action"] != a or rows > action["rows"]:
                return False
            rows += 1
            r = world.requests[r]["next"]
        if rows != action["rows"]:
            return False
        if action["state"] == ACTION_EXEC and not 0 < rows <= action["batch"]:
            return False
        rows_all += rows
    for r in live:
        rows_all -= 1 if world.requests[r]["state"] == REQUEST_RUNNING else 0
    return rows_all == 0 and _running_counts(world, world.copies, 0, marks) and _running_counts(
        world, world.models, 1, marks)


@inner_kernel
def _running_counts(world, table, of_models, marks):
    for i in range(len(table)):
        marks[i] = 0
    for a in range(len(world.actions)):
        if world.actions[a]["state"] == ACTION_EXEC:
            marks[world.actions[a]["model"] if of_models == 1 else world.actions[a]["copy"]] += 1
    for i in range(len(table)):
        if table[i]["state"] != 0 and table[i]["running"] != marks[i]:
            return False
    return True


@inner_kernel
def _dirty(world):
    """Whether the GPUs that the next tick plans for are listed, each once."""
    gpu, last, listed = world.counters[0]["dirty_first"], NONE, 0
    while gpu != NONE and listed <= len(world.gpus) and world.gpus[gpu]["dirty"] == 1:
        gpu, last, listed = world.gpus[gpu]["dirty_next"], gpu, listed + 1
    for g in range(len(world.gpus)):
        listed -= world.gpus[g]["dirty"]
    return gpu == NONE and listed == 0 and world.counters[0]["dirty_last"] == last


@inner_kernel
def _lanes(world):
    inside = 0
    for i in range(len(world.lanes)):
        row = world.lanes[i]
        if world.gpus[i // 2]["state"] == GPU_ABSENT:
            continue
        count, previous, a = 0, NONE, row["first"]
        while a != NONE:
            action = world.actions[a]
            if action["state"] == ACTION_FREE or action["lane_previous"] != previous or count > len(world.actions):
                return False
            if 2 * action["gpu"] + action["lane"] != i or action["parked"] != 0:
                return False
            count += 1
            previous, a = a, action["lane_next"]
        if row["last"] != previous or row["count"] != count:
            return False
        if count > 0 and row["available_ns"] != world.actions[row["last"]]["end_ns"]:
            return False
        inside += count
    for a in range(len(world.actions)):
        action = world.actions[a]
        if action["state"] == ACTION_FREE:
            continue
        if action["parked"] == 0:
            inside -= 1
        elif action["parked"] != 1 or action["state"] != ACTION_UNLOAD:
            return False
    return inside == 0


@inner_kernel
def _expected_verb(state):
    """The action that a copy in that state has."""
    if state == COPY_LOADING:
        return ACTION_LOAD
    return ACTION_UNLOAD if state == COPY_UNLOADING or state == COPY_UNKNOWN else 0


@inner_kernel
def _copies(world, marks):
    live = 0
    for copy in range(len(world.copies)):
        row = world.copies[copy]
        if row["state"] == COPY_FREE:
            continue
        live += 1
        if map_get(world.copy_map, row["model"] * len(world.gpus) + row["gpu"]) != copy:
            return False
        verb = world.actions[row["action"]]["state"] if row["action"] != NONE else 0
        if verb != _expected_verb(row["state"]):
            return False
        if row["running"] != 0 and (row["state"] == COPY_LOADING or row["state"] == COPY_UNLOADING):
            return False
    for i in range(len(world.copy_map)):
        live -= 1 if world.copy_map[i]["value"] != NONE else 0
    if live != 0:
        return False
    return _rings(world, marks)


@inner_kernel
def _rings(world, marks):
    """Whether the models' copies are their rings, as many as they say, and as many READY."""
    for m in range(len(world.models)):
        marks[m] = 0
    for copy in range(len(world.copies)):
        if world.copies[copy]["state"] != COPY_FREE:
            marks[world.copies[copy]["model"]] += 1
    for m in range(len(world.models)):
        if world.models[m]["state"] != MODEL_FREE and not _ring(world, m, marks[m]):
            return False
    return True


@inner_kernel
def _ring(world, m, mine):
    """Whether a model's ring has so many copies, all its own."""
    model, count, ready, copy = world.models[m], 0, 0, world.models[m]["copies"]
    while copy != NONE:
        row = world.copies[copy]
        if (row["state"] == COPY_FREE or row["model"] != m or world.copies[row["next"]]["previous"] != copy
                or count > mine):
            return False
        count += 1
        ready += 1 if row["state"] == COPY_READY else 0
        copy = row["next"] if row["next"] != model["copies"] else NONE
    return count == mine == model["copies_count"] and ready == model["copies_ready"]


@inner_kernel
def _pages(world):
    for gpu in range(len(world.gpus)):
        place = world.gpus[gpu]
        if place["state"] == GPU_ABSENT:
            continue
        count, charged, previous, copy = 0, 0, NONE, place["lru_first"]
        while copy != NONE and count <= len(world.copies):
            row = world.copies[copy]
            if row["gpu"] != gpu or row["lru_previous"] != previous:
                return False
            count += 1
            charged += row["pages"]
            previous, copy = copy, row["lru_next"]
        mine = 0
        for i in range(len(world.copies)):
            mine += 1 if world.copies[i]["state"] != COPY_FREE and world.copies[i]["gpu"] == gpu else 0
        if count != mine or count != place["copies"] or place["lru_last"] != previous:
            return False
        if place["pages_free"] < 0 or place["pages_free"] + charged != place["pages_total"]:
            return False
    return True


@inner_kernel
def _ready_sets(world):
    active = 0
    for copy in range(len(world.copies)):
        row = world.copies[copy]
        if row["state"] != COPY_FREE and row["active"] != 0:
            active += 1
            if row["state"] != COPY_READY:
                return False
    for gpu in range(len(world.gpus)):
        place = world.gpus[gpu]
        if place["state"] == GPU_ABSENT:
            continue
        if _set_size(world.copy_nodes, place["ready_root"], place["ready_head"]) < 0:
            return False
        copy = place["ready_head"]
        while copy != NONE:
            if world.copies[copy]["gpu"] != gpu or world.copies[copy]["active"] == 0:
                return False
            active -= 1
            copy = ordered.successor(world.copy_nodes, copy)
    return active == 0


@inner_kernel
def _wanted(world):
    counters, wanted = world.counters[0], 0
    for m in range(len(world.models)):
        model = world.models[m]
        if model["state"] != MODEL_FREE and model["wanted"] != 0:
            wanted += 1
            if model["queued"] == 0 and model["missed_ns"] == 0:
                return False
    if _set_size(world.wanted_nodes, counters["wanted_root"], counters["wanted_head"]) != wanted:
        return False
    m = counters["wanted_head"]
    while m != NONE:
        if world.models[m]["wanted"] == 0:
            return False
        m = ordered.successor(world.wanted_nodes, m)
    return True


@inner_kernel
def _heap_holds(table, count):
    """Whether the heap's order and places are right."""
    for i in range(count):
        if table[table[i]["id"]]["place"] != i:
            return False
        if i > 0:
            parent = table[(i - 1) >> 2]
            if parent["key"] > table[i]["key"] or (parent["key"] == table[i]["key"] and parent["id"] > table[i]["id"]):
                return False
    for i in range(len(table)):
        count -= 1 if table[i]["place"] != NONE else 0
    return count == 0


@inner_kernel
def _timers(world):
    counters, action_timer = world.counters[0], world.settings[0]["action_timer"]
    if not _heap_holds(world.timers, counters["timers_count"]) or not _heap_holds(
            world.load_lanes, counters["loads_count"]):
        return False
    for gpu in range(len(world.gpus)):
        if (world.load_lanes[gpu]["place"] != NONE) != (world.gpus[gpu]["state"] == GPU_UP):
            return False
    for a in range(len(world.actions)):
        if (world.timers[action_timer + a]["place"] != NONE) != (world.actions[a]["state"] != ACTION_FREE):
            return False
    for m in range(len(world.models)):
        model = world.models[m]
        if model["state"] == MODEL_READY and model["queued"] > 0 and world.timers[m]["place"] == NONE:
            return False
    return True


@inner_kernel
def _histograms(world):
    for i in range(len(world.histograms)):
        row, total = world.histograms[i], 0
        for k in range(len(row["counts"])):
            if row["counts"][k] < 0:
                return False
            total += row["counts"][k]
        if total != row["total"]:
            return False
    for i in range(len(world.programs)):
        scatter, dynamic = world.programs[i]["scatter"], world.programs[i]["dynamic"]
        if scatter < 0 or (scatter == 0 and dynamic != 0) or (scatter >= SCATTERED and dynamic != 1):
            return False
    apps = 0
    for i in range(len(world.app_map)):
        apps += 1 if world.app_map[i]["value"] != NONE else 0
    return apps == world.counters[0]["apps"]


@inner_kernel
def _background(world):
    """Whether the world knows how many actions are background, and takes no more care than there is."""
    counters = world.counters[0]
    running = 0
    for a in range(len(world.actions)):
        if world.actions[a]["state"] != ACTION_FREE:
            running += world.actions[a]["background"]
    return running == counters["background_runs"] and 0 <= counters["background_care"] <= CARE_MAX


@inner_kernel
def _prices(world):
    """Whether the price, the overall share and what models are owed are within their bounds."""
    counters = world.counters[0]
    for m in range(len(world.memory)):
        if not -AHEAD_MAX * ONE <= world.memory[m]["owed"] <= OWED_MAX * ONE:
            return False
    return counters["price_ns"] >= 0 and counters["usual_ns"] >= 0 and 0 <= counters["share"] <= ONE
