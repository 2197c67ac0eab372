"""Which rows of a table with a free list are used, proven at every look in one pass along the table.

To follow a list of thousands of free rows is as many reads that wait for one another, and takes longer than all other
checks together. So each look notes the list that it found, and the next one guesses that it is still so but for its
start, which it follows. A guess is not believed: each row of the table is read and must bear it out, or the whole list
is followed. Notes that are wrong cost time and hide nothing.
"""

from __future__ import annotations

import numpy as np

from cwd.core.world import BUCKETS, NONE
from cwd.jit import inner_kernel, lean_kernel
from cwd.tables import Tables


class Rows(Tables):
    """What was found of one table: every row has a place."""

    order: np.ndarray  #: i8 [rows]: the free rows, from the end of the list to its start, then the used ones
    place: np.ndarray  #: i8 [rows]: where each row is in `order`
    found: np.ndarray  #: i8 [rows], scratch


def make_rows(rows: int) -> Rows:
    """Notes of a table of so many rows, of which nothing is known."""
    return Rows(order=np.arange(rows), place=np.arange(rows), found=np.zeros(rows, np.int64))


class Notes(Tables):
    """What the checkers of a world write."""

    marks: np.ndarray  #: i8, scratch: as long as the longest table
    requests: Rows


def make_notes(requests_max: int, longest: int) -> Notes:
    """For a world with so many requests and no table longer than that."""
    return Notes(marks=np.zeros(max(longest, requests_max, BUCKETS + 1), np.int64), requests=make_rows(requests_max))


@lean_kernel
def count_used(table, first, live, rows):
    """How many rows are used, with which `rows.order` then ends; -1 if `first` does not lead along all others, each once,
    or there are not `live` of them."""
    free = _follow(table, first, rows, 0)
    if not _holds(table, first, live, rows, free):
        free = _follow(table, first, rows, 1)
        if not _holds(table, first, live, rows, free):
            return -1
    return len(table) - free


@inner_kernel
def _follow(table, first, rows, whole):
    """Note the list's start, down to a row that still has the same one behind it; its end, too, if `whole` is 1.

    Returns how many rows are free if all the others are as they were noted; 0 if that cannot be.
    """
    order, place = rows.order, rows.place
    free, found, i = 0, 0, first
    while i != NONE:
        if i < 0 or i >= len(table) or found == len(table):
            return 0
        at = place[i]
        if whole == 0 and table[i]["next"] == (order[at - 1] if at > 0 else NONE):
            free = at + 1
            break
        rows.found[found] = i
        found += 1
        i = table[i]["next"]
    if free + found > len(table):
        return 0
    while found > 0:
        found -= 1
        i = rows.found[found]
        other, at = order[free], place[i]
        order[at], place[other] = other, at
        order[free], place[i] = i, free
        free += 1
    return free


@inner_kernel
def _holds(table, first, live, rows, free):
    """Whether the list is what is noted, of free rows, and the rows behind it are used and so many as `live`.

    All rows have different places, and each free one leads to the place below its own: so the list is all of them.
    """
    order, place = rows.order, rows.place
    if free + live != len(table) or first != (order[free - 1] if free > 0 else NONE):
        return False
    for i in range(len(table)):
        at = place[i]
        if at < 0 or at >= len(order) or order[at] != i:
            return False
        if at >= free:
            if table[i]["state"] == 0:
                return False
        elif table[i]["state"] != 0 or table[i]["next"] != (order[at - 1] if at > 0 else NONE):
            return False
    return True
