"""What a copy is worth to those who ask for its model, per page, and which copies leave for another.

A model's *work* is the GPU time that it was given lately (memory.py); if it is called so rarely that this has faded, what
one execution in the time since its last request would come to. A model's only copy is worth all of that, one of several
its share times the chance that none of the others would do: a half for each. All times what a LOAD takes over the pages
that it fills. So memory goes to copies as their work per page goes, down to where a further copy of a busy model is
worth no more than the only copy of a rare one.
"""

from __future__ import annotations

from cwd.core import actions, memory, residency
from cwd.core.admission import want
from cwd.core.estimate import exec_ns, load_ns
from cwd.core.residency import VICTIMS_MAX
from cwd.core.world import FOREVER_NS, NONE
from cwd.jit import inner_kernel, lean_kernel

#: work and LOAD times are multiplied without these bits, lest the product overflow
_WORK_BITS, _LOAD_BITS = 7, 10
#: of more copies than this one more is worth nothing
_COPIES_MAX = 40


@lean_kernel
def share_ns(work_ns, copies):
    """What one of so many copies is worth of their model's work."""
    return 0 if copies > _COPIES_MAX else work_ns // copies >> (copies - 1)


@inner_kernel
def work_ns(world, now_ns, gpu, m):
    """The model's work lately, or what one execution since its last request is of a half-life."""
    done_ns = memory.work_ns(world, now_ns, m)
    silent_ns = now_ns - world.memory[m]["arrived_ns"]
    alone_ns = exec_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"], 0, 0)
    rare_ns = alone_ns if silent_ns < (1 << memory.WORK_BITS) else (alone_ns >> 10) * (
        (1 << (memory.WORK_BITS + 10)) // silent_ns)
    return done_ns if done_ns > rare_ns else rare_ns


@inner_kernel
def per_page(world, now_ns, gpu, m, value_ns):
    """A value of a model's copy, in LOAD time per page."""
    pages = world.models[m]["pages"] if world.models[m]["pages"] > 0 else 1
    taken_ns = load_ns(world, now_ns, world.models[m]["program"], world.gpus[gpu]["kind"])
    return (value_ns >> _WORK_BITS) * (taken_ns >> _LOAD_BITS) // pages


@lean_kernel
def of_copy(world, now_ns, copy):
    """What a copy that is there is worth."""
    m, gpu = world.copies[copy]["model"], world.copies[copy]["gpu"]
    return per_page(world, now_ns, gpu, m, share_ns(work_ns(world, now_ns, gpu, m), world.models[m]["copies_count"]))


@inner_kernel
def of_another(world, now_ns, gpu, m):
    """What one more copy of a model that has some would be worth on the GPU."""
    value_ns = share_ns(memory.work_ns(world, now_ns, m), world.models[m]["copies_count"] + 1)
    return per_page(world, now_ns, gpu, m, value_ns)


@lean_kernel
def cheapest(world, now_ns, gpu, limit):
    """Of the VICTIMS_MAX copies used longest ago the one that may leave and is worth least, and less than `limit`; or -1."""
    best, best_worth = NONE, limit
    copy = world.gpus[gpu]["lru_first"]
    for _ in range(VICTIMS_MAX):
        if copy == NONE:
            break
        if residency.may_leave(world, copy, 0):
            worth = of_copy(world, now_ns, copy)
            if worth < best_worth:
                best, best_worth = copy, worth
        copy = world.copies[copy]["lru_next"]
    return best


@lean_kernel
def could_free(world, now_ns, gpu, pages, limit):
    """Whether the GPU has, or could make with copies worth less than `limit` (FOREVER_NS: any), room for so many pages."""
    free = world.gpus[gpu]["pages_free"] - world.gpus[gpu]["pages_hidden"]
    copy = world.gpus[gpu]["lru_first"]
    for _ in range(VICTIMS_MAX):
        if copy == NONE or free >= pages:
            break
        if residency.may_leave(world, copy, 0) and (limit == FOREVER_NS or of_copy(world, now_ns, copy) < limit):
            free += world.copies[copy]["pages"]
        copy = world.copies[copy]["lru_next"]
    return free >= pages


@inner_kernel
def make_room(world, now_ns, gpu, pages, limit):
    """Have the copies leave that are worth least, all of them less than `limit`, until `pages` are free.

    1 if they are; -1: there are no such copies, and nobody has left.
    """
    if not could_free(world, now_ns, gpu, pages, limit):
        return -1
    for _ in range(VICTIMS_MAX):
        if world.gpus[gpu]["pages_free"] - world.gpus[gpu]["pages_hidden"] >= pages:
            return 1
        copy = cheapest(world, now_ns, gpu, limit)
        if copy == NONE or actions.issue_unload(world, now_ns, copy) == 0:
            return 0
        want(world, now_ns, world.copies[copy]["model"])
    return 0
