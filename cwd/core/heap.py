"""An indexed 4-ary heap: ids 0..n-1 with int64 keys, smallest (key, id) first.

The heap lies in a table of TIMER rows: row i holds entry i of the heap (`key`, `id`) and, apart from it, in `place`,
where id i is in the heap (-1: not in). The owner keeps the count and passes it in; each change returns the new one.
"""

from __future__ import annotations

from cwd.jit import lean_kernel

NONE = -1


@lean_kernel
def _before(heap, a, b):
    if heap[a]["key"] != heap[b]["key"]:
        return heap[a]["key"] < heap[b]["key"]
    return heap[a]["id"] < heap[b]["id"]


@lean_kernel
def _swap(heap, a, b):
    key, identifier = heap[a]["key"], heap[a]["id"]
    heap[a]["key"] = heap[b]["key"]
    heap[a]["id"] = heap[b]["id"]
    heap[b]["key"] = key
    heap[b]["id"] = identifier
    heap[heap[a]["id"]]["place"] = a
    heap[identifier]["place"] = b


@lean_kernel
def _up(heap, i):
    while i > 0:
        parent = (i - 1) >> 2
        if not _before(heap, i, parent):
            break
        _swap(heap, i, parent)
        i = parent


@lean_kernel
def _down(heap, count, i):
    while True:
        first = 4 * i + 1
        if first >= count:
            break
        best = first
        last = first + 4 if first + 4 < count else count
        for child in range(first + 1, last):
            if _before(heap, child, best):
                best = child
        if not _before(heap, best, i):
            break
        _swap(heap, i, best)
        i = best


@lean_kernel
def put(heap, count, identifier, key):
    """Insert id `identifier` with `key`, or change its key; returns the new count."""
    i = heap[identifier]["place"]
    if i == NONE:
        i = count
        heap[i]["id"] = identifier
        heap[identifier]["place"] = i
        count += 1
    heap[i]["key"] = key
    _up(heap, i)
    _down(heap, count, heap[identifier]["place"])
    return count


@lean_kernel
def drop(heap, count, identifier):
    """Take id `identifier` out, if it is in; returns the new count."""
    i = heap[identifier]["place"]
    if i == NONE:
        return count
    last = count - 1
    if i != last:
        _swap(heap, i, last)
    heap[identifier]["place"] = NONE
    if i != last:
        moved = heap[i]["id"]
        _up(heap, i)
        _down(heap, last, heap[moved]["place"])
    return last
