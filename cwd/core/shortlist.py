"""The batches that a GPU could run next and that are worth their price, in the order in which they have to start.

While all of them can start in time one after the other, the first is next. Where one could not, the least dense of those
up to it gives way, again and again (Moore's algorithm for the fewest late jobs, with density for number). A model that
several GPUs have takes that much less of each.
"""

from __future__ import annotations

from cwd.core.world import NONE, SHORTLIST_MAX
from cwd.jit import inner_kernel


@inner_kernel
def clear(world):
    world.counters[0]["shortlist"] = 0


@inner_kernel
def put(world, copy, first, b, rows, batch_ns, latest_ns):
    """Add a batch of a copy's model that has to start by `latest_ns`; beyond SHORTLIST_MAX it is left out."""
    table, counters = world.shortlist, world.counters[0]
    i = counters["shortlist"]
    if i == SHORTLIST_MAX:
        return
    counters["shortlist"] = i + 1
    while i > 0 and table[i - 1]["latest_ns"] > latest_ns:
        _copy(table[i - 1], table[i])
        i -= 1
    row = table[i]
    copies = world.models[world.copies[copy]["model"]]["copies_ready"]
    row["copy"] = copy
    row["first"] = first
    row["batch"] = b
    row["rows"] = rows
    row["batch_ns"] = batch_ns
    row["latest_ns"] = latest_ns
    row["share_ns"] = batch_ns // copies


@inner_kernel
def _copy(source, target):
    target["copy"] = source["copy"]
    target["first"] = source["first"]
    target["batch"] = source["batch"]
    target["rows"] = source["rows"]
    target["batch_ns"] = source["batch_ns"]
    target["latest_ns"] = source["latest_ns"]
    target["share_ns"] = source["share_ns"]


@inner_kernel
def choose(world, start_ns):
    """The batch that is next if the GPU can start at `start_ns`, as a row of the list; -1 if the list is empty."""
    table, count = world.shortlist, world.counters[0]["shortlist"]
    if count == 0:
        return NONE
    at_ns = start_ns
    for i in range(count):
        if at_ns > table[i]["latest_ns"]:
            worst = _least_dense(table, i)
            at_ns -= table[worst]["share_ns"]
            table[worst]["rows"] = -table[worst]["rows"]
        at_ns += table[i]["share_ns"]
    for i in range(count):
        if table[i]["rows"] > 0:
            return i
    return 0


@inner_kernel
def _least_dense(table, last):
    """Of the rows up to `last` that have not given way the one with the fewest requests per time."""
    worst = last
    for i in range(last):
        if table[i]["rows"] > 0 and table[i]["rows"] * table[worst]["batch_ns"] < table[worst]["rows"] * table[i]["batch_ns"]:
            worst = i
    return worst
