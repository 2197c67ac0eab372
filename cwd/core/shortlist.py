"""The batches that a GPU should run soon, by when they have to start; under overload the least dense of them give way.

While all of them can start in time one after the other, the first is next. Where one could not, the least dense of those
up to it gives way, again and again (Moore and Hodgson's algorithm for the fewest late jobs, with density for number).
A model that several GPUs have takes that much less of each. Of equals the one that has to start first gives way: it would
run with no time to spare, and a message that takes longer than usual then makes it late. Not for one that another GPU has
too, where it may run as well.
"""

from __future__ import annotations

from cwd.core.world import NONE
from cwd.jit import lean_kernel


@lean_kernel
def put(table, count, copy, first, b, rows, batch_ns, latest_ns, copies):
    """Add a batch, of a model with so many copies, to the `count` in the list; returns their number.

    It has to start by `latest_ns`. The list takes as many as the table has rows.
    """
    if count == len(table):
        return count
    i = count
    while i > 0 and table[i - 1]["latest_ns"] > latest_ns:
        _move(table[i - 1], table[i])
        i -= 1
    row = table[i]
    row["copy"] = copy
    row["first"] = first
    row["batch"] = b
    row["rows"] = rows
    row["batch_ns"] = batch_ns
    row["latest_ns"] = latest_ns
    row["out"] = 0
    row["share_ns"] = batch_ns // copies
    return count + 1


@lean_kernel
def _move(source, target):
    target["copy"] = source["copy"]
    target["first"] = source["first"]
    target["batch"] = source["batch"]
    target["rows"] = source["rows"]
    target["batch_ns"] = source["batch_ns"]
    target["latest_ns"] = source["latest_ns"]
    target["out"] = source["out"]
    target["share_ns"] = source["share_ns"]


@lean_kernel
def choose(table, count, start_ns):
    """The row of the batch that is next if the GPU can start at `start_ns`; -1 if there is none."""
    at_ns = start_ns
    for i in range(count):
        at_ns += table[i]["share_ns"]
        if at_ns - table[i]["share_ns"] > table[i]["latest_ns"]:
            worst = _least_dense(table, i)
            at_ns -= table[worst]["share_ns"]
            table[worst]["out"] = 1
    for i in range(count):
        if table[i]["out"] == 0:
            return i
    return NONE


@lean_kernel
def _least_dense(table, last):
    """Of the rows up to `last` that have not given way the one with the fewest requests per time: of equals the first, but
    `last` if it may run elsewhere."""
    worst = NONE
    for i in range(last + 1):
        if table[i]["out"] == 0 and (worst == NONE or _less_dense(table[i], table[worst])):
            worst = i
    elsewhere = table[last]["share_ns"] < table[last]["batch_ns"]
    return last if elsewhere and not _less_dense(table[worst], table[last]) else worst


@lean_kernel
def _less_dense(row, other):
    return row["rows"] * other["batch_ns"] < other["rows"] * row["batch_ns"]
