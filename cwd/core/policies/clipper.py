"""Clipper's adaptive batching (NSDI'17, section 4.3): a model's largest batch is found by trying.

Each model has a limit: a batch that was full and took no longer than its request's SLO raises it by one, one that took
longer lowers it by a tenth (additive increase, multiplicative decrease). The model whose head came first gets a batch
of all that waits, up to the limit, whatever its deadlines; `batch_delay_ns` holds one that is not full back for more.
Departures: the models of a GPU take turns in order of arrival, where the paper has a container for each; batches are
padded to the program's sizes; requests that are overdue in the queue are given up, as the released code does (the
paper serves them late); no cache and no choice among models.
"""

from __future__ import annotations

from cwd.core import batches, lanes, ordered, ready
from cwd.core.world import NONE
from cwd.jit import inner_kernel

#: one request, in the units of `limit`
ONE = 1024


@inner_kernel
def learn(world, a, took_ns):
    """An execution took so long: raise or lower its model's limit."""
    action = world.actions[a]
    program = world.programs[action["program"]]
    row = world.memory[action["model"]]
    limit = row["limit"] if row["limit"] > ONE else ONE
    if took_ns > world.requests[action["first"]]["slo_ns"]:
        limit = 9 * limit // 10
    elif action["rows"] >= limit // ONE:
        limit += ONE
    most = program["batches"][program["n_batches"] - 1] * ONE
    row["limit"] = limit if limit < most else most


@inner_kernel
def next_batch(world, gpu, now_ns):
    """All that waits for the model whose head came first, up to its limit."""
    delay_ns = world.settings[0]["batch_delay_ns"]
    copy = ready.most_urgent(world, now_ns, gpu)
    for _ in range(ready.COMPARED):
        if copy == NONE:
            break
        m = world.copies[copy]["model"]
        first = world.models[m]["queue_head"]
        if first != NONE:
            limit = world.memory[m]["limit"] // ONE
            rows = batches.count_rows(world, first, limit if limit > 1 else 1)
            ripe_ns = world.requests[first]["arrival_ns"] + delay_ns
            if rows >= limit or now_ns >= ripe_ns:
                return copy, first, batches.index_for(world, world.models[m]["program"], rows), rows
            lanes.look_again(world, gpu, ripe_ns)
        copy = ordered.successor(world.copy_nodes, copy)
    return NONE, NONE, NONE, 0
