"""Copies: which model's pages are on which GPU, who leaves first, and how many pages are free.

A copy is charged its pages from the LOAD's issue until its UNLOAD's issue: the load lane is a FIFO, so a LOAD behind
an UNLOAD finds the pages free. All copies of a GPU are in its LRU list, all copies of a model in a ring. Each GPU
keeps the ordered set of its copies that may have work ("active"), by how urgent the model's head is; keys there are
lower bounds that the policy corrects when it meets them, so an arrival need not touch every copy.
"""

from __future__ import annotations

from cwd.core import hashmap, ordered
from cwd.core.outbox import BROKEN_COPY, BROKEN_PAGES, broken
from cwd.core.presets import BY_ARRIVAL, BY_DUE, BY_TURN
from cwd.core.world import COPY_FREE, COPY_READY, NONE
from cwd.jit import inner_kernel

#: most steps of a walk for victims
VICTIMS_MAX = 64


@inner_kernel
def find(world, model, gpu):
    """The copy of a model (slot) on a GPU, or -1."""
    # most models have one copy, and then the map need not be asked
    copy = world.models[model]["copies"]
    if copy == NONE or world.copies[copy]["gpu"] == gpu:
        return copy
    return hashmap.get(world.copy_map, model * world.settings[0]["gpus_max"] + gpu)


@inner_kernel
def create(world, model, gpu, state):
    """A new copy, its pages charged, most recently used; -1 if the table is full."""
    counters = world.counters[0]
    copy = counters["free_copy"]
    if copy == NONE:
        return NONE
    row, owner, place = world.copies[copy], world.models[model], world.gpus[gpu]
    counters["free_copy"] = row["next"]
    counters["copies_live"] += 1
    hashmap.put(world.copy_map, model * world.settings[0]["gpus_max"] + gpu, copy)
    row["state"] = state
    row["model"] = model
    row["gpu"] = gpu
    row["pages"] = owner["pages"]
    row["running"] = row["active"] = row["ready_ns"] = row["turn_ns"] = row["quota"] = row["packed_ns"] = 0
    row["action"] = NONE
    place["pages_free"] -= row["pages"]
    place["copies"] += 1
    if place["pages_free"] < 0:
        broken(world, BROKEN_PAGES)
    if owner["copies"] == NONE:
        row["next"] = row["previous"] = copy
        owner["copies"] = copy
    else:
        after = owner["copies"]
        before = world.copies[after]["previous"]
        row["next"], row["previous"] = after, before
        world.copies[before]["next"] = copy
        world.copies[after]["previous"] = copy
    owner["copies_count"] += 1
    _lru_append(world, copy)
    return copy


@inner_kernel
def destroy(world, copy):
    """Forget a copy and give its pages back."""
    row = world.copies[copy]
    counters, owner, place = world.counters[0], world.models[row["model"]], world.gpus[row["gpu"]]
    if row["running"] != 0:
        broken(world, BROKEN_COPY)
    set_state(world, copy, COPY_FREE)
    deactivate(world, copy)
    uncharge(world, copy)
    _lru_remove(world, copy)
    place["copies"] -= 1
    if row["next"] == copy:
        owner["copies"] = NONE
    else:
        world.copies[row["previous"]]["next"] = row["next"]
        world.copies[row["next"]]["previous"] = row["previous"]
        if owner["copies"] == copy:
            owner["copies"] = row["next"]
    owner["copies_count"] -= 1
    hashmap.remove(world.copy_map, row["model"] * world.settings[0]["gpus_max"] + row["gpu"])
    row["next"] = counters["free_copy"]
    counters["free_copy"] = copy
    counters["copies_live"] -= 1


@inner_kernel
def set_state(world, copy, state):
    """Change a copy's state, keeping the count of the model's ready copies."""
    row = world.copies[copy]
    model = world.models[row["model"]]
    model["copies_ready"] += (1 if state == COPY_READY else 0) - (1 if row["state"] == COPY_READY else 0)
    row["state"] = state


@inner_kernel
def uncharge(world, copy):
    row = world.copies[copy]
    world.gpus[row["gpu"]]["pages_free"] += row["pages"]
    row["pages"] = 0


@inner_kernel
def recharge(world, copy):
    """Charge a copy whose UNLOAD failed; what is not free any more is charged when the LOAD that got it fails."""
    row = world.copies[copy]
    place = world.gpus[row["gpu"]]
    wanted = world.models[row["model"]]["pages"] - row["pages"]
    pages = wanted if wanted < place["pages_free"] else place["pages_free"]
    row["pages"] += pages
    place["pages_free"] -= pages


@inner_kernel
def _lru_append(world, copy):
    row = world.copies[copy]
    place = world.gpus[row["gpu"]]
    row["lru_previous"] = place["lru_last"]
    row["lru_next"] = NONE
    if place["lru_last"] == NONE:
        place["lru_first"] = copy
    else:
        world.copies[place["lru_last"]]["lru_next"] = copy
    place["lru_last"] = copy


@inner_kernel
def _lru_remove(world, copy):
    row = world.copies[copy]
    place = world.gpus[row["gpu"]]
    if row["lru_previous"] == NONE:
        place["lru_first"] = row["lru_next"]
    else:
        world.copies[row["lru_previous"]]["lru_next"] = row["lru_next"]
    if row["lru_next"] == NONE:
        place["lru_last"] = row["lru_previous"]
    else:
        world.copies[row["lru_next"]]["lru_previous"] = row["lru_previous"]


@inner_kernel
def touch(world, copy):
    """Make a copy the most recently used of its GPU."""
    if world.copies[copy]["lru_next"] != NONE:
        _lru_remove(world, copy)
        _lru_append(world, copy)


@inner_kernel
def may_leave(world, copy, wanted):
    """Whether a copy may be evicted: idle, and nothing queued for its model (`wanted` 1: or even so)."""
    row = world.copies[copy]
    if row["state"] != COPY_READY or row["running"] != 0:
        return False
    return wanted == 1 or world.models[row["model"]]["queued"] == 0


@inner_kernel
def next_victim(world, copy, steps, wanted):
    """The first copy that may leave, from `copy` on towards the recently used, within `steps`; -1 if none."""
    while copy != NONE and steps > 0:
        if may_leave(world, copy, wanted):
            return copy
        copy = world.copies[copy]["lru_next"]
        steps -= 1
    return NONE


@inner_kernel
def could_free(world, gpu, pages, wanted):
    """Whether the GPU has or can make room for `pages` by evictions that are allowed, looking at VICTIMS_MAX copies."""
    free = world.gpus[gpu]["pages_free"] - world.gpus[gpu]["pages_hidden"]
    copy = world.gpus[gpu]["lru_first"]
    steps = VICTIMS_MAX
    while free < pages and copy != NONE and steps > 0:
        if may_leave(world, copy, wanted):
            free += world.copies[copy]["pages"]
        copy = world.copies[copy]["lru_next"]
        steps -= 1
    return free >= pages


@inner_kernel
def urgency(world, copy):
    """Key of a copy in its GPU's set, in the policy's order: by its model's head, or by when it last ran."""
    order = world.settings[0]["copy_order"]
    head = world.models[world.copies[copy]["model"]]["queue_head"]
    if order == BY_TURN:
        return world.copies[copy]["turn_ns"]
    if head == NONE:
        return 0
    request = world.requests[head]
    if order == BY_ARRIVAL:
        return request["arrival_ns"]
    if order == BY_DUE:
        return request["due_ns"]
    return request["due_ns"] - request["need_ns"]


@inner_kernel
def activate(world, copy):
    """Put a copy into its GPU's set, or move it forward if its model has become more urgent."""
    row = world.copies[copy]
    key = urgency(world, copy)
    if row["active"] == 1:
        if key >= world.copy_nodes[copy]["key"]:
            return
        deactivate(world, copy)
    place = world.gpus[row["gpu"]]
    place["ready_root"] = ordered.insert(world.copy_nodes, place["ready_root"], copy, key, row["model"])
    if place["ready_head"] == NONE or ordered.before(world.copy_nodes, copy, place["ready_head"]):
        place["ready_head"] = copy
    row["active"] = 1


@inner_kernel
def deactivate(world, copy):
    """Take a copy out of its GPU's set, if it is in."""
    row = world.copies[copy]
    if row["active"] == 0:
        return
    place = world.gpus[row["gpu"]]
    if place["ready_head"] == copy:
        place["ready_head"] = ordered.successor(world.copy_nodes, copy)
    place["ready_root"] = ordered.remove(world.copy_nodes, place["ready_root"], copy)
    row["active"] = 0
