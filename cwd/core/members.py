"""GPUs, programs and models: how they come and go, and what that means for what they held."""

from __future__ import annotations

from cwd.core import actions, admission, estimate, lanes, memory, queues, residency
from cwd.core.world import (
    BATCHES_MAX, BUCKETS, COPY_DRAINING, COPY_READY, FOREVER_NS, GPU_ABSENT, GPU_DRAINING, GPU_UP,
    LANE_EXEC, LANE_LOAD, MODEL_FREE, MODEL_READY, MODEL_REMOVING, NONE, SLOT_BITS, SLOT_MASK, Code,
)
from cwd.jit import inner_kernel, lean_kernel

ALREADY_RESIDENT = int(Code.ALREADY_RESIDENT)
BAD_ARGUMENT = int(Code.BAD_ARGUMENT)
NO_PAGES = int(Code.NO_PAGES)
REGISTRY_FULL = int(Code.REGISTRY_FULL)
UNKNOWN_MODEL = int(Code.UNKNOWN_MODEL)
WORKER_LOST = int(Code.WORKER_LOST)

#: how often a removed model looks whether a copy can be unloaded now
REMOVAL_NS = 100_000_000


# -- GPUs --------------------------------------------------------------------------------------------------------------


@lean_kernel
def gpu_joined(world, now_ns, gpu, kind, pages_total):
    """A worker's GPU is there, with empty lanes; programs and copies are told next. 0, or BAD_ARGUMENT."""
    if gpu < 0 or gpu >= len(world.gpus) or kind < 0 or kind >= world.settings[0]["kinds_max"] or pages_total < 0:
        return BAD_ARGUMENT
    row = world.gpus[gpu]
    if row["state"] != GPU_ABSENT:
        return BAD_ARGUMENT
    row["state"] = GPU_UP
    row["kind"] = kind
    row["epoch"] += 1
    row["pages_total"] = row["pages_free"] = pages_total
    row["pages_hidden"] = row["copies"] = row["backlog_ns"] = row["pressed_ns"] = 0
    row["cycle_ns"] = row["planned_ns"] = row["background_ns"] = 0
    row["look_ns"] = FOREVER_NS
    row["ready_root"] = row["ready_head"] = row["lru_first"] = row["lru_last"] = NONE
    for bucket in range(BUCKETS + 1):
        world.backlog[gpu, bucket] = 0
    for i in range(2):
        lane = world.lanes[2 * gpu + i]
        lane["first"] = lane["last"] = NONE
        lane["count"] = lane["available_ns"] = 0
    lanes.rank_load_lane(world, gpu)
    world.counters[0]["gpus_up"] += 1
    lanes.wake(world, gpu)
    return 0


@lean_kernel
def gpu_resident(world, now_ns, gpu, model):
    """A GPU that has just joined holds a model already. 0 or a code; then the host has it unloaded or forgets it."""
    m = model & SLOT_MASK
    if model < 0 or m >= len(world.models):
        return UNKNOWN_MODEL
    row = world.models[m]
    if row["state"] != MODEL_READY or row["generation"] != model >> SLOT_BITS:
        return UNKNOWN_MODEL
    if residency.find(world, m, gpu) != NONE:
        return ALREADY_RESIDENT
    if world.gpus[gpu]["state"] != GPU_UP or world.gpus[gpu]["pages_free"] < row["pages"]:
        return NO_PAGES
    copy = residency.create(world, m, gpu, COPY_READY)
    if copy == NONE:
        return NO_PAGES
    row["copies_ready"] += 1
    world.copies[copy]["ready_ns"] = now_ns
    if row["queued"] > 0:
        queues.unlist(world, m)
        queues.activate_copies(world, now_ns, m)
    return 0


@lean_kernel
def gpu_draining(world, now_ns, gpu):
    """No new work for this GPU; what is outstanding ends as usual."""
    if gpu < 0 or gpu >= len(world.gpus) or world.gpus[gpu]["state"] != GPU_UP:
        return
    world.gpus[gpu]["state"] = GPU_DRAINING
    world.counters[0]["gpus_up"] -= 1
    _forget_programs(world, gpu)
    lanes.rank_load_lane(world, gpu)
    lanes.set_timer(world, world.settings[0]["gpu_timer"] + gpu, FOREVER_NS)
    copy = world.gpus[gpu]["lru_first"]
    while copy != NONE:
        if world.copies[copy]["state"] == COPY_READY:
            residency.set_state(world, copy, COPY_DRAINING)
            residency.deactivate(world, copy)
            admission.want(world, now_ns, world.copies[copy]["model"])
        copy = world.copies[copy]["lru_next"]


@inner_kernel
def _forget_programs(world, gpu):
    for program in range(len(world.programs)):
        world.programs[program]["prepared"] -= world.prepared[gpu, program]
        world.prepared[gpu, program] = 0


@lean_kernel
def gpu_lost(world, now_ns, gpu):
    """The worker is gone: its actions end as lost, their requests go elsewhere or are answered, its copies are no more."""
    if gpu < 0 or gpu >= len(world.gpus) or world.gpus[gpu]["state"] == GPU_ABSENT:
        return
    row = world.gpus[gpu]
    if row["state"] == GPU_UP:
        world.counters[0]["gpus_up"] -= 1
    _forget_programs(world, gpu)
    row["state"] = GPU_ABSENT
    # requests at home here no longer count as its backlog: their epoch is over
    row["epoch"] += 1
    lanes.set_timer(world, world.settings[0]["gpu_timer"] + gpu, FOREVER_NS)
    # first the loads and copies, then the executions: their requests must not be queued for copies that are gone
    while world.lanes[2 * gpu + LANE_LOAD]["first"] != NONE:
        actions.discard(world, now_ns, world.lanes[2 * gpu + LANE_LOAD]["first"])
    lost = NONE
    while world.lanes[2 * gpu + LANE_EXEC]["first"] != NONE:
        a = world.lanes[2 * gpu + LANE_EXEC]["first"]
        lost = actions.collect(world, now_ns, a, lost)
    copy = row["lru_first"]
    while copy != NONE:
        after = world.copies[copy]["lru_next"]
        if world.copies[copy]["action"] != NONE:
            actions.free(world, world.copies[copy]["action"])
        m = world.copies[copy]["model"]
        residency.destroy(world, copy)
        model_settle(world, now_ns, m)
        # what is queued for it and has no copy left must be loaded elsewhere
        admission.want(world, now_ns, m)
        copy = after
    lanes.rank_load_lane(world, gpu)
    while lost != NONE:
        after = world.requests[lost]["next"]
        actions.retry(world, now_ns, lost, WORKER_LOST)
        lost = after


# -- programs ----------------------------------------------------------------------------------------------------------


@lean_kernel
def program_added(world, program, batch_sizes, n_batches, n_classes):
    """A program's batch sizes, ascending from 1, and how many size classes it has. 0, or BAD_ARGUMENT."""
    if program < 0 or program >= len(world.programs) or n_batches < 1 or n_batches > BATCHES_MAX:
        return BAD_ARGUMENT
    if n_classes < 1 or n_classes > world.settings[0]["classes_max"] or batch_sizes[0] != 1:
        return BAD_ARGUMENT
    row = world.programs[program]
    for b in range(n_batches):
        row["batches"][b] = batch_sizes[b]
    row["used"] = 1
    row["n_batches"] = n_batches
    row["n_classes"] = n_classes
    return 0


@lean_kernel
def program_prepared(world, now_ns, gpu, program, ok):
    """A GPU can run a program (`ok` 1), or cannot any more (0)."""
    if world.gpus[gpu]["state"] != GPU_UP:
        return
    ok = 1 if ok != 0 else 0
    world.programs[program]["prepared"] += ok - world.prepared[gpu, program]
    world.prepared[gpu, program] = ok
    lanes.wake(world, gpu)


@lean_kernel
def estimate_seed(world, program, kind, batch_index, size_class, exec_ns):
    """What the profile says an execution takes on a kind of GPU."""
    estimate.seed(world.estimates[estimate.exec_row(world, program, kind, batch_index, size_class)], exec_ns)


@lean_kernel
def load_seed(world, program, kind, load_ns):
    """What a LOAD of a model of the program takes on a kind of GPU."""
    estimate.seed(world.estimates[estimate.load_row(world, program, kind)], load_ns)


# -- models ------------------------------------------------------------------------------------------------------------


@lean_kernel
def model_wanted(world, now_ns, model):
    """Have a model that no GPU has loaded where there is room, or in place of what was used longest ago: a standby.

    Like a request that came too late, it is wanted for as long as a LOAD is planned ahead. 1 if a GPU has it or loads it.
    """
    m = model & SLOT_MASK
    if model < 0 or m >= len(world.models):
        return 0
    row = world.models[m]
    if row["state"] != MODEL_READY or row["generation"] != model >> SLOT_BITS:
        return 0
    if row["copies_count"] > 0:
        return 1
    row["missed_ns"] = now_ns
    if row["wanted"] == 0:
        queues.enlist(world, m, 1)
    for gpu in range(len(world.gpus)):
        if world.prepared[gpu, row["program"]] == 1:
            lanes.wake(world, gpu)
    return 0


@lean_kernel
def model_added(world, now_ns, program, pages):
    """A model of a program, taking `pages` pages. Its handle, or minus a code."""
    counters = world.counters[0]
    if program < 0 or program >= len(world.programs) or world.programs[program]["used"] == 0 or pages < 0:
        return -BAD_ARGUMENT
    m = counters["free_model"]
    if m == NONE:
        return -REGISTRY_FULL
    row = world.models[m]
    counters["free_model"] = row["next"]
    counters["models_live"] += 1
    row["state"] = MODEL_READY
    row["generation"] = (row["generation"] + 1) & 0x3FFFFFFF
    row["program"] = program
    row["pages"] = pages
    row["queue_root"] = row["queue_head"] = row["copies"] = NONE
    row["queued"] = row["running"] = row["work_ns"] = row["copies_count"] = row["copies_ready"] = row["wanted"] = 0
    row["missed_ns"] = 0
    memory.forget(world, m)
    world.programs[program]["models"] += 1
    return (row["generation"] << SLOT_BITS) | m


@lean_kernel
def model_removed(world, now_ns, model):
    """Serve a model no more: queued requests are answered, copies unloaded; then its slot is free. 0 or a code."""
    m = model & SLOT_MASK
    if model < 0 or m >= len(world.models):
        return UNKNOWN_MODEL
    row = world.models[m]
    if row["state"] != MODEL_READY or row["generation"] != model >> SLOT_BITS:
        return UNKNOWN_MODEL
    row["state"] = MODEL_REMOVING
    while row["queue_head"] != NONE:
        queues.drop(world, now_ns, row["queue_head"], UNKNOWN_MODEL)
    # one that missed a request is listed without a queue
    queues.unlist(world, m)
    row["missed_ns"] = 0
    lanes.set_timer(world, m, FOREVER_NS)
    model_settle(world, now_ns, m)
    return 0


@inner_kernel
def model_settle(world, now_ns, m):
    """Take a removed model a step further towards a free slot, if it is one: unload what is idle, look again later."""
    row = world.models[m]
    if row["state"] != MODEL_REMOVING:
        return
    copy, first = row["copies"], row["copies"]
    while copy != NONE:
        after = world.copies[copy]["next"]
        if world.copies[copy]["state"] == COPY_READY and world.copies[copy]["running"] == 0:
            actions.issue_unload(world, now_ns, copy)
        copy = after if after != first else NONE
    if row["copies_count"] > 0 or row["running"] > 0:
        lanes.set_timer(world, m, now_ns + REMOVAL_NS)
        return
    counters = world.counters[0]
    lanes.set_timer(world, m, FOREVER_NS)
    row["state"] = MODEL_FREE
    row["next"] = counters["free_model"]
    counters["free_model"] = m
    counters["models_live"] -= 1
    world.programs[row["program"]]["models"] -= 1


@inner_kernel
def model_timer(world, now_ns, m):
    """A model's timer went off."""
    if world.models[m]["state"] == MODEL_REMOVING:
        model_settle(world, now_ns, m)
    else:
        queues.expire(world, now_ns, m)
