"""Every index of a world derived again from its rows: `check(world)` is 0, or the number of a broken invariant.

Plain Python, for tests (after every event of a small world) and for a host that samples; it costs time in proportion
to the tables and changes nothing. The numbers go on from those that the core sets itself as it works (outbox.py).
"""

from __future__ import annotations

import functools

import numpy as np

from cwd.core import ordered
from cwd.core.background import CARE_MAX
from cwd.core.floor import AHEAD_MAX, ONE, OWED_MAX
from cwd.core.hashmap import get as map_get
from cwd.core.histograms import SCATTERED
from cwd.core.queues import lookup
from cwd.core.world import (
    ACTION_EXEC, ACTION_FREE, ACTION_LOAD, ACTION_UNLOAD, BUCKETS, COPY_LOADING, COPY_READY, COPY_UNKNOWN,
    COPY_UNLOADING, GPU_ABSENT, GPU_UP, MODEL_FREE, MODEL_READY, NONE, REQUEST_QUEUED, REQUEST_RUNNING, World,
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


class _Columns(dict[str, list[int]]):
    """A table's fields as lists, each made when it is first asked for: an element of numpy's costs ten times as much."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, field: str) -> list[int]:
        found = self[field] = self._table[field].tolist()
        return found

    def __len__(self) -> int:
        return len(self._table)

    @functools.cached_property
    def live(self) -> list[int]:
        """The rows that are in use: the state of a free one is 0 in every table."""
        return np.flatnonzero(self._table["state"]).tolist()


class _View:
    """A world at one instant."""

    def __init__(self, world: World) -> None:
        self.world, self.counters = world, _first(world.counters)
        self.requests, self.request_nodes = _Columns(world.requests), _Columns(world.request_nodes)
        self.models, self.wanted_nodes = _Columns(world.models), _Columns(world.wanted_nodes)
        self.copies, self.copy_nodes = _Columns(world.copies), _Columns(world.copy_nodes)
        self.gpus, self.lanes, self.actions = _Columns(world.gpus), _Columns(world.lanes), _Columns(world.actions)
        self.timers, self.load_lanes = _Columns(world.timers), _Columns(world.load_lanes)
        self.clients = _Columns(world.clients)

    @functools.cached_property
    def present(self) -> list[int]:
        """GPUs that there are."""
        return [gpu for gpu, state in enumerate(self.gpus["state"]) if state != GPU_ABSENT]


def _first(table: np.ndarray) -> dict[str, int]:
    return dict(zip(table.dtype.names, table[0].tolist(), strict=True))


def check(world: World) -> int:
    """The number of the first broken invariant, or 0."""
    view = _View(world)
    if view.counters["broken"]:
        return view.counters["broken"]
    for number, holds in (
        (FREE_LISTS, _free_lists), (QUEUES, _queues), (BACKLOG, _backlog), (CLIENTS, _clients),
        (REQUEST_MAP, _request_map), (ACTIONS, _actions), (LANES, _lanes), (COPIES, _copies), (PAGES, _pages),
        (READY_SETS, _ready_sets), (WANTED, _wanted), (TIMERS, _timers),
        (HISTOGRAMS, _histograms), (BACKGROUND, _background), (PRICES, _prices),
    ):
        if not holds(view):
            return number
    return 0


def members(nodes: np.ndarray | _Columns, root: int) -> list[int]:
    """The nodes of an ordered set in order, by its links alone; [-1] if the links are wrong."""
    found: list[int] = []
    stack: list[int] = []
    at = int(root)
    if at == NONE:
        return found
    nodes = nodes if isinstance(nodes, _Columns) else _Columns(nodes)
    left, right, parent, rank = nodes["left"], nodes["right"], nodes["parent"], nodes["rank"]
    while stack or at != NONE:
        while at != NONE:
            stack.append(at)
            if len(stack) > len(nodes):
                return [NONE]
            at = left[at]
        at = stack.pop()
        found.append(at)
        for child in (left[at], right[at]):
            if child != NONE and (parent[child] != at or rank[child] > rank[at]):
                return [NONE]
        at = right[at]
    key, tie = nodes["key"], nodes["tie"]
    keys = [(key[i], tie[i]) for i in found]
    return found if all(a < b for a, b in zip(keys, keys[1:])) else [NONE]


def _set_is(nodes, root, head, wanted) -> bool:
    found = members(nodes, root)
    return sorted(found) == sorted(wanted) and head == (found[0] if found else NONE)


def _free_lists(view: _View) -> bool:
    counters = view.counters
    for table, free, live in (
        (view.requests, "free_request", "requests_live"), (view.models, "free_model", "models_live"),
        (view.copies, "free_copy", "copies_live"), (view.actions, "free_action", "actions_live"),
    ):
        seen, i, states, following = set(), counters[free], table["state"], table["next"]
        while i != NONE:
            if i in seen or states[i] != 0:
                return False
            seen.add(i)
            i = following[i]
        if len(seen) + counters[live] != len(table) or len(table.live) != counters[live]:
            return False
    return counters["gpus_up"] == view.gpus["state"].count(GPU_UP)


def _queues(view: _View) -> bool:
    requests, models = view.requests, view.models
    queued: dict[int, list[int]] = {}
    for r in requests.live:
        if requests["state"][r] == REQUEST_QUEUED:
            queued.setdefault(requests["model"][r], []).append(r)
    for m in range(len(models)):
        mine = queued.get(m, [])
        if models["state"][m] == MODEL_FREE:
            if mine:
                return False
            continue
        if models["queued"][m] != len(mine) or models["work_ns"][m] != sum(requests["cost_ns"][r] for r in mine):
            return False
        if not _set_is(view.request_nodes, models["queue_root"][m], models["queue_head"][m], mine):
            return False
    return True


def _backlog(view: _View) -> bool:
    requests, gpus = view.requests, view.gpus
    totals = {gpu: [0] * (BUCKETS + 1) for gpu in range(len(gpus))}
    for r in requests.live:
        home = requests["home"][r]
        if requests["state"][r] == REQUEST_QUEUED and home != NONE:
            if requests["home_epoch"][r] == gpus["epoch"][home]:
                totals[home][requests["bucket"][r]] += requests["cost_ns"][r]
    for gpu in view.present:
        if totals[gpu] != view.world.backlog[gpu].tolist() or gpus["backlog_ns"][gpu] != sum(totals[gpu]):
            return False
    return True


def _clients(view: _View) -> bool:
    requests, clients = view.requests, view.clients
    owned: dict[int, int] = {}
    for r in requests.live:
        client = requests["client"][r]
        if client != NONE:
            owned[client] = owned.get(client, 0) + 1
    known = [i for i in range(len(clients)) if clients["first"][i] != NONE or clients["count"][i] != 0]
    for client in known + list(owned):
        count, previous, r = 0, NONE, clients["first"][client]
        while r != NONE:
            if requests["client"][r] != client or requests["client_previous"][r] != previous:
                return False
            count, previous, r = count + 1, r, requests["client_next"][r]
        if count != owned.get(client, 0) or count != clients["count"][client]:
            return False
    return True


def _request_map(view: _View) -> bool:
    requests, live = view.requests, 0
    for r in requests.live:
        if requests["client"][r] != NONE:
            live += 1
            if lookup(view.world, requests["client"][r], requests["request_id"][r]) != r:
                return False
    return bool((view.world.request_map["value"] != NONE).sum() == live)


def _actions(view: _View) -> bool:
    requests, actions = view.requests, view.actions
    running: set[int] = set()
    copies: dict[int, int] = {}
    models: dict[int, int] = {}
    for a in actions.live:
        if view.gpus["state"][actions["gpu"][a]] == GPU_ABSENT:
            return False
        rows, r = 0, actions["first"][a]
        while r != NONE:
            if r in running or requests["state"][r] != REQUEST_RUNNING or requests["action"][r] != a:
                return False
            running.add(r)
            rows, r = rows + 1, requests["next"][r]
        if rows != actions["rows"][a]:
            return False
        if actions["state"][a] == ACTION_EXEC:
            if not 0 < rows <= actions["batch"][a]:
                return False
            copy, model = actions["copy"][a], actions["model"][a]
            copies[copy] = copies.get(copy, 0) + 1
            models[model] = models.get(model, 0) + 1
    if running != {r for r in requests.live if requests["state"][r] == REQUEST_RUNNING}:
        return False
    return (all(view.copies["running"][i] == copies.get(i, 0) for i in view.copies.live)
            and all(view.models["running"][i] == models.get(i, 0) for i in view.models.live))


def _dirty(view: _View) -> bool:
    listed, gpu, marks = [], view.counters["dirty_first"], view.gpus["dirty"]
    while gpu != NONE and len(listed) <= len(marks):
        listed.append(gpu)
        gpu = view.gpus["dirty_next"][gpu]
    if sorted(listed) != [i for i, mark in enumerate(marks) if mark] or not {0, 1}.issuperset(marks):
        return False
    return view.counters["dirty_last"] == (listed or [NONE])[-1]


def _lanes(view: _View) -> bool:
    if not _dirty(view):
        return False
    lanes, actions = view.lanes, view.actions
    inside: set[int] = set()
    for i in range(len(lanes)):
        if view.gpus["state"][i // 2] == GPU_ABSENT:
            continue
        count, previous, a = 0, NONE, lanes["first"][i]
        while a != NONE:
            if a in inside or actions["state"][a] == ACTION_FREE or actions["lane_previous"][a] != previous:
                return False
            if 2 * actions["gpu"][a] + actions["lane"][a] != i or actions["parked"][a]:
                return False
            inside.add(a)
            count, previous, a = count + 1, a, actions["lane_next"][a]
        if lanes["last"][i] != previous or lanes["count"][i] != count:
            return False
        if count and lanes["available_ns"][i] != actions["end_ns"][previous]:
            return False
    outside = [a for a in actions.live if a not in inside]
    return all(actions["parked"][a] == 1 and actions["state"][a] == ACTION_UNLOAD for a in outside)


def _copies(view: _View) -> bool:
    copies, models = view.copies, view.models
    expected = {COPY_LOADING: ACTION_LOAD, COPY_UNLOADING: ACTION_UNLOAD, COPY_UNKNOWN: ACTION_UNLOAD}
    of_model: dict[int, set[int]] = {}
    for copy in copies.live:
        model, state, action = copies["model"][copy], copies["state"][copy], copies["action"][copy]
        of_model.setdefault(model, set()).add(copy)
        if map_get(view.world.copy_map, model * len(view.gpus) + copies["gpu"][copy]) != copy:
            return False
        if (view.actions["state"][action] if action != NONE else 0) != expected.get(state, 0):
            return False
        if copies["running"][copy] and state in (COPY_LOADING, COPY_UNLOADING):
            return False
    if (view.world.copy_map["value"] != NONE).sum() != len(copies.live):
        return False
    for m in models.live:
        mine = of_model.get(m, set())
        ring, i = set(), models["copies"][m]
        while i != NONE and i not in ring:
            ring.add(i)
            if copies["previous"][copies["next"][i]] != i:
                return False
            i = copies["next"][i]
        ready = sum(1 for i in mine if copies["state"][i] == COPY_READY)
        if ring != mine or models["copies_count"][m] != len(mine) or models["copies_ready"][m] != ready:
            return False
    return True


def _pages(view: _View) -> bool:
    copies, gpus = view.copies, view.gpus
    for gpu in view.present:
        order, previous, copy = [], NONE, gpus["lru_first"][gpu]
        while copy != NONE and len(order) <= len(copies):
            if copies["gpu"][copy] != gpu or copies["lru_previous"][copy] != previous:
                return False
            order.append(copy)
            previous, copy = copy, copies["lru_next"][copy]
        mine = {i for i in copies.live if copies["gpu"][i] == gpu}
        if set(order) != mine or len(order) != gpus["copies"][gpu] or gpus["lru_last"][gpu] != previous:
            return False
        charged = sum(copies["pages"][i] for i in mine)
        if gpus["pages_free"][gpu] < 0 or gpus["pages_free"][gpu] + charged != gpus["pages_total"][gpu]:
            return False
    return True


def _ready_sets(view: _View) -> bool:
    copies, gpus = view.copies, view.gpus
    active = [i for i in copies.live if copies["active"][i]]
    for gpu in view.present:
        mine = [i for i in active if copies["gpu"][i] == gpu]
        if not _set_is(view.copy_nodes, gpus["ready_root"][gpu], gpus["ready_head"][gpu], mine):
            return False
    return all(copies["state"][i] == COPY_READY for i in active)


def _wanted(view: _View) -> bool:
    models, counters = view.models, view.counters
    wanted = [m for m in models.live if models["wanted"][m]]
    if not _set_is(view.wanted_nodes, counters["wanted_root"], counters["wanted_head"], wanted):
        return False
    if any(models["queued"][m] == 0 and models["missed_ns"][m] == 0 for m in wanted):
        return False
    return ordered.first(view.world.wanted_nodes, counters["wanted_root"]) == counters["wanted_head"]


def _background(view: _View) -> bool:
    running = sum(view.actions["background"][a] for a in view.actions.live)
    return running == view.counters["background_runs"] and 0 <= view.counters["background_care"] <= CARE_MAX


def _prices(view: _View) -> bool:
    counters, owed = view.counters, view.world.memory["owed"]
    return (min(counters["price_ns"], counters["usual_ns"], counters["spent_ns"], counters["spent_rows"]) >= 0
            and 0 <= counters["share"] <= ONE and bool(((-AHEAD_MAX * ONE <= owed) & (owed <= OWED_MAX * ONE)).all()))


def _heap_holds(table: _Columns, count: int) -> set[int] | None:
    """The ids in a heap, or None if order or places are wrong."""
    ids, keys, places = table["id"], table["key"], table["place"]
    for i in range(count):
        if places[ids[i]] != i:
            return None
        parent = (i - 1) >> 2
        if i and (keys[parent], ids[parent]) > (keys[i], ids[i]):
            return None
    inside = set(ids[:count])
    return inside if inside == {i for i, place in enumerate(places) if place != NONE} else None


def _timers(view: _View) -> bool:
    counters, models = view.counters, view.models
    armed = _heap_holds(view.timers, counters["timers_count"])
    lanes = _heap_holds(view.load_lanes, counters["loads_count"])
    if armed is None or lanes is None:
        return False
    if lanes != {gpu for gpu, state in enumerate(view.gpus["state"]) if state == GPU_UP}:
        return False
    action_timer = int(view.world.settings[0]["action_timer"])
    live = {action_timer + a for a in view.actions.live}
    if not live <= armed or any(timer >= action_timer and timer not in live for timer in armed):
        return False
    return armed.issuperset(m for m in models.live if models["state"][m] == MODEL_READY and models["queued"][m])


def _histograms(view: _View) -> bool:
    rows = view.world.histograms
    if (rows["counts"] < 0).any() or (rows["counts"].sum(axis=1) != rows["total"]).any():
        return False
    scatter, dynamic = view.world.programs["scatter"], view.world.programs["dynamic"]
    if (scatter < 0).any() or ((scatter == 0) & (dynamic != 0)).any() or ((scatter >= SCATTERED) & (dynamic != 1)).any():
        return False
    return bool((view.world.app_map["value"] != NONE).sum() == view.counters["apps"])
