"""Every index of a world derived again from its rows: `check(world)` is 0, or the number of a broken invariant.

Plain Python, for tests (after every event of a small world) and for a host that samples; it costs time in proportion
to the tables and changes nothing. The numbers go on from those that the core sets itself as it works (outbox.py).
"""

from __future__ import annotations

import numpy as np

from cwd.core import ordered
from cwd.core.background import CARE_MAX
from cwd.core.floor import AHEAD_MAX, ONE, OWED_MAX
from cwd.core.hashmap import get as map_get
from cwd.core.histograms import SCATTERED
from cwd.core.queues import lookup
from cwd.core.world import (
    ACTION_EXEC, ACTION_FREE, ACTION_LOAD, ACTION_UNLOAD, BUCKETS, COPY_FREE, COPY_LOADING, COPY_READY,
    COPY_UNKNOWN, COPY_UNLOADING, GPU_ABSENT, GPU_UP, MODEL_FREE, MODEL_READY, NONE, REQUEST_FREE, REQUEST_QUEUED,
    REQUEST_RUNNING, World,
)

(FREE_LISTS, QUEUES, BACKLOG, CLIENTS, REQUEST_MAP, ACTIONS, LANES, COPIES, PAGES, READY_SETS, WANTED, TIMERS, HISTOGRAMS,
 BACKGROUND, PRICES) = range(101, 116)
NAMES = {
    1: "outbox overrun", 2: "pages below zero", 3: "queue count below zero", 4: "lane count below zero",
    5: "copy in an impossible state",
    FREE_LISTS: "free lists", QUEUES: "queues", BACKLOG: "backlog", CLIENTS: "clients' lists",
    REQUEST_MAP: "request map", ACTIONS: "actions and their rows", LANES: "lanes", COPIES: "copies, rings and counts",
    PAGES: "pages", READY_SETS: "sets of active copies", WANTED: "set of wanted models", TIMERS: "timers",
    HISTOGRAMS: "histograms", BACKGROUND: "background and the care taken of it",
    PRICES: "price, overall share and what models are owed",
}


def check(world: World) -> int:
    """The number of the first broken invariant, or 0."""
    if world.counters[0]["broken"]:
        return int(world.counters[0]["broken"])
    for number, holds in (
        (FREE_LISTS, _free_lists), (QUEUES, _queues), (BACKLOG, _backlog), (CLIENTS, _clients),
        (REQUEST_MAP, _request_map), (ACTIONS, _actions), (LANES, _lanes), (COPIES, _copies), (PAGES, _pages),
        (READY_SETS, _ready_sets), (WANTED, _wanted), (TIMERS, _timers),
        (HISTOGRAMS, _histograms), (BACKGROUND, _background), (PRICES, _prices),
    ):
        if not holds(world):
            return number
    return 0


def _rows(table, free_state=0):
    return np.flatnonzero(table["state"] != free_state).tolist()


def members(nodes, root) -> list[int]:
    """The nodes of an ordered set in order, by its links alone; [-1] if the links are wrong."""
    found, stack, at = [], [], int(root)
    while stack or at != NONE:
        while at != NONE:
            stack.append(at)
            if len(stack) > len(nodes):
                return [NONE]
            at = int(nodes[at]["left"])
        at = stack.pop()
        found.append(at)
        for side in ("left", "right"):
            child = nodes[at][side]
            if child != NONE and (nodes[child]["parent"] != at or nodes[child]["rank"] > nodes[at]["rank"]):
                return [NONE]
        at = int(nodes[at]["right"])
    keys = [(int(nodes[i]["key"]), int(nodes[i]["tie"])) for i in found]
    return found if all(a < b for a, b in zip(keys, keys[1:])) else [NONE]


def _set_is(nodes, root, head, wanted) -> bool:
    found = members(nodes, root)
    return sorted(found) == sorted(wanted) and head == (found[0] if found else NONE)


def _free_lists(world) -> bool:
    counters = world.counters[0]
    for table, free, live in (
        (world.requests, "free_request", "requests_live"), (world.models, "free_model", "models_live"),
        (world.copies, "free_copy", "copies_live"), (world.actions, "free_action", "actions_live"),
    ):
        seen, i = set(), int(counters[free])
        while i != NONE:
            if i in seen or table[i]["state"] != 0:
                return False
            seen.add(i)
            i = int(table[i]["next"])
        if len(seen) + counters[live] != len(table) or len(_rows(table)) != counters[live]:
            return False
    return bool(counters["gpus_up"] == sum(1 for gpu in world.gpus if gpu["state"] == GPU_UP))


def _queues(world) -> bool:
    queued: dict[int, list[int]] = {}
    for r in _rows(world.requests, REQUEST_FREE):
        if world.requests[r]["state"] == REQUEST_QUEUED:
            queued.setdefault(int(world.requests[r]["model"]), []).append(r)
    for m in range(len(world.models)):
        model, mine = world.models[m], queued.get(m, [])
        if model["state"] == MODEL_FREE:
            if mine:
                return False
            continue
        if model["queued"] != len(mine) or model["work_ns"] != sum(world.requests[r]["cost_ns"] for r in mine):
            return False
        if not _set_is(world.request_nodes, model["queue_root"], model["queue_head"], mine):
            return False
    return True


def _backlog(world) -> bool:
    totals: dict[tuple[int, int], int] = {}
    for r in _rows(world.requests):
        request = world.requests[r]
        home = int(request["home"])
        if request["state"] == REQUEST_QUEUED and home != NONE:
            if request["home_epoch"] == world.gpus[home]["epoch"]:
                key = (home, int(request["bucket"]))
                totals[key] = totals.get(key, 0) + int(request["cost_ns"])
    for gpu in range(len(world.gpus)):
        if world.gpus[gpu]["state"] == GPU_ABSENT:
            continue
        mine = [totals.get((gpu, bucket), 0) for bucket in range(BUCKETS + 1)]
        if mine != world.backlog[gpu].tolist() or world.gpus[gpu]["backlog_ns"] != sum(mine):
            return False
    return True


def _clients(world) -> bool:
    owned: dict[int, int] = {}
    for r in _rows(world.requests):
        client = int(world.requests[r]["client"])
        if client != NONE:
            owned[client] = owned.get(client, 0) + 1
    for client in np.flatnonzero((world.clients["first"] != NONE) | (world.clients["count"] != 0)).tolist() + list(owned):
        count, previous, r = 0, NONE, int(world.clients[client]["first"])
        while r != NONE:
            if world.requests[r]["client"] != client or world.requests[r]["client_previous"] != previous:
                return False
            count, previous, r = count + 1, r, int(world.requests[r]["client_next"])
        if count != owned.get(client, 0) or count != world.clients[client]["count"]:
            return False
    return True


def _request_map(world) -> bool:
    live = 0
    for r in _rows(world.requests):
        request = world.requests[r]
        if request["client"] != NONE:
            live += 1
            if lookup(world, request["client"], request["request_id"]) != r:
                return False
    return bool((world.request_map["value"] != NONE).sum() == live)


def _actions(world) -> bool:
    running: set[int] = set()
    copies: dict[int, int] = {}
    models: dict[int, int] = {}
    for a in _rows(world.actions, ACTION_FREE):
        action = world.actions[a]
        if world.gpus[action["gpu"]]["state"] == GPU_ABSENT:
            return False
        rows, r = 0, int(action["first"])
        while r != NONE:
            if r in running or world.requests[r]["state"] != REQUEST_RUNNING or world.requests[r]["action"] != a:
                return False
            running.add(r)
            rows, r = rows + 1, int(world.requests[r]["next"])
        if rows != action["rows"]:
            return False
        if action["state"] == ACTION_EXEC:
            if not 0 < rows <= action["batch"]:
                return False
            copies[int(action["copy"])] = copies.get(int(action["copy"]), 0) + 1
            models[int(action["model"])] = models.get(int(action["model"]), 0) + 1
    if running != {r for r in _rows(world.requests) if world.requests[r]["state"] == REQUEST_RUNNING}:
        return False
    return (all(world.copies[i]["running"] == copies.get(i, 0) for i in _rows(world.copies))
            and all(world.models[i]["running"] == models.get(i, 0) for i in _rows(world.models)))


def _dirty(world) -> bool:
    listed, gpu = [], int(world.counters[0]["dirty_first"])
    while gpu != NONE and len(listed) <= len(world.gpus):
        listed.append(gpu)
        gpu = int(world.gpus[gpu]["dirty_next"])
    marks = world.gpus["dirty"]
    if sorted(listed) != np.flatnonzero(marks).tolist() or not np.isin(marks, (0, 1)).all():
        return False
    return world.counters[0]["dirty_last"] == (listed or [NONE])[-1]


def _lanes(world) -> bool:
    if not _dirty(world):
        return False
    inside: set[int] = set()
    for i in range(len(world.lanes)):
        row = world.lanes[i]
        if world.gpus[i // 2]["state"] == GPU_ABSENT:
            continue
        count, previous, a = 0, NONE, int(row["first"])
        while a != NONE:
            action = world.actions[a]
            if a in inside or action["state"] == ACTION_FREE or action["lane_previous"] != previous:
                return False
            if 2 * action["gpu"] + action["lane"] != i or action["parked"]:
                return False
            inside.add(a)
            count, previous, a = count + 1, a, int(action["lane_next"])
        if row["last"] != previous or row["count"] != count:
            return False
        if count and row["available_ns"] != world.actions[row["last"]]["end_ns"]:
            return False
    outside = [a for a in _rows(world.actions) if a not in inside]
    return all(world.actions[a]["parked"] == 1 and world.actions[a]["state"] == ACTION_UNLOAD for a in outside)


def _copies(world) -> bool:
    live = _rows(world.copies, COPY_FREE)
    for copy in live:
        row = world.copies[copy]
        key = int(row["model"]) * len(world.gpus) + int(row["gpu"])
        if map_get(world.copy_map, key) != copy:
            return False
        verb = world.actions[row["action"]]["state"] if row["action"] != NONE else 0
        expected = {COPY_LOADING: ACTION_LOAD, COPY_UNLOADING: ACTION_UNLOAD, COPY_UNKNOWN: ACTION_UNLOAD}
        if verb != expected.get(int(row["state"]), 0):
            return False
        if row["running"] and row["state"] in (COPY_LOADING, COPY_UNLOADING):
            return False
    if (world.copy_map["value"] != NONE).sum() != len(live):
        return False
    for m in _rows(world.models):
        model = world.models[m]
        mine = {i for i in live if world.copies[i]["model"] == m}
        ring, i = set(), int(model["copies"])
        while i != NONE and i not in ring:
            ring.add(i)
            if world.copies[world.copies[i]["next"]]["previous"] != i:
                return False
            i = int(world.copies[i]["next"])
        ready = sum(1 for i in mine if world.copies[i]["state"] == COPY_READY)
        if ring != mine or model["copies_count"] != len(mine) or model["copies_ready"] != ready:
            return False
    return True


def _pages(world) -> bool:
    for gpu in range(len(world.gpus)):
        place = world.gpus[gpu]
        if place["state"] == GPU_ABSENT:
            continue
        order, previous, copy = [], NONE, int(place["lru_first"])
        while copy != NONE and len(order) <= len(world.copies):
            if world.copies[copy]["gpu"] != gpu or world.copies[copy]["lru_previous"] != previous:
                return False
            order.append(copy)
            previous, copy = copy, int(world.copies[copy]["lru_next"])
        mine = {i for i in _rows(world.copies) if world.copies[i]["gpu"] == gpu}
        if set(order) != mine or len(order) != place["copies"] or place["lru_last"] != previous:
            return False
        charged = sum(int(world.copies[i]["pages"]) for i in mine)
        if place["pages_free"] < 0 or place["pages_free"] + charged != place["pages_total"]:
            return False
    return True


def _ready_sets(world) -> bool:
    active = {i for i in _rows(world.copies) if world.copies[i]["active"]}
    for gpu in range(len(world.gpus)):
        place = world.gpus[gpu]
        if place["state"] == GPU_ABSENT:
            continue
        mine = [i for i in active if world.copies[i]["gpu"] == gpu]
        if not _set_is(world.copy_nodes, place["ready_root"], place["ready_head"], mine):
            return False
    return all(world.copies[i]["state"] == COPY_READY for i in active)


def _wanted(world) -> bool:
    wanted = [m for m in _rows(world.models) if world.models[m]["wanted"]]
    counters = world.counters[0]
    if not _set_is(world.wanted_nodes, counters["wanted_root"], counters["wanted_head"], wanted):
        return False
    if any(world.models[m]["queued"] == 0 and world.models[m]["missed_ns"] == 0 for m in wanted):
        return False
    return ordered.first(world.wanted_nodes, counters["wanted_root"]) == counters["wanted_head"]


def _background(world) -> bool:
    counters = world.counters[0]
    running = sum(int(world.actions[a]["background"]) for a in _rows(world.actions))
    return running == counters["background_runs"] and 0 <= counters["background_care"] <= CARE_MAX


def _prices(world) -> bool:
    counters, owed = world.counters[0], world.memory["owed"]
    return (min(counters["price_ns"], counters["usual_ns"], counters["spent_ns"], counters["spent_rows"]) >= 0
            and 0 <= counters["share"] <= ONE and bool(((-AHEAD_MAX * ONE <= owed) & (owed <= OWED_MAX * ONE)).all()))


def _heap_holds(table, count) -> set[int] | None:
    """The ids in a heap, or None if order or places are wrong."""
    inside = set()
    for i in range(count):
        if table[table[i]["id"]]["place"] != i:
            return None
        inside.add(int(table[i]["id"]))
        if i:
            parent = table[(i - 1) >> 2]
            if (parent["key"], parent["id"]) > (table[i]["key"], table[i]["id"]):
                return None
    placed = set(np.flatnonzero(table["place"] != NONE).tolist())
    return inside if inside == placed else None


def _timers(world) -> bool:
    counters, settings = world.counters[0], world.settings[0]
    armed = _heap_holds(world.timers, int(counters["timers_count"]))
    lanes = _heap_holds(world.load_lanes, int(counters["loads_count"]))
    if armed is None or lanes is None:
        return False
    if lanes != {gpu for gpu in range(len(world.gpus)) if world.gpus[gpu]["state"] == GPU_UP}:
        return False
    if any(int(settings["action_timer"]) + a not in armed for a in _rows(world.actions)):
        return False
    live = {int(settings["action_timer"]) + a for a in _rows(world.actions)}
    if any(timer >= settings["action_timer"] and timer not in live for timer in armed):
        return False
    waiting = {m for m in _rows(world.models) if world.models[m]["state"] == MODEL_READY and world.models[m]["queued"]}
    return waiting <= armed


def _histograms(world) -> bool:
    rows = world.histograms
    if (rows["counts"] < 0).any() or (rows["counts"].sum(axis=1) != rows["total"]).any():
        return False
    scatter, dynamic = world.programs["scatter"], world.programs["dynamic"]
    if (scatter < 0).any() or ((scatter == 0) & (dynamic != 0)).any() or ((scatter >= SCATTERED) & (dynamic != 1)).any():
        return False
    return bool((world.app_map["value"] != NONE).sum() == world.counters[0]["apps"])
