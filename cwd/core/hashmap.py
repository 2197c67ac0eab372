"""An open-addressing map from int64 (the bits of a u64, if you like) to a value >= 0, for fixed capacity.

Linear probing; deletion shifts the followers back, so there are no tombstones and a map that is used for days is as
fast as a new one. The table is a power of two long and must never be full: its owner bounds the number of entries
(`world._empty_map` keeps it at most half full). Knows nothing of what keys and values mean.
"""

from __future__ import annotations

from cwd.jit import lean_kernel

NONE = -1
#: multiplicands below 2**31 keep every product inside an int64, in machine code as in plain Python
_BITS31 = 0x7FFFFFFF


@lean_kernel
def mix(key):
    """A well-spread non-negative int64 from any int64, without overflow in either mode."""
    low = key & _BITS31
    high = (key >> 31) & _BITS31
    top = (key >> 62) & 3
    h = (low * 0x45D9F3B) ^ (high * 0x2C1B3C6D) ^ (top * 0x297A2D39)
    h ^= h >> 29
    h = ((h & _BITS31) * 0x27D4EB2D) ^ (h >> 31)
    return h ^ (h >> 32)


@lean_kernel
def find(table, key):
    """Index of the row that holds `key`, or of the empty row where it belongs."""
    mask = len(table) - 1
    i = mix(key) & mask
    while table[i]["value"] != NONE and table[i]["key"] != key:
        i = (i + 1) & mask
    return i


@lean_kernel
def get(table, key):
    """The value of `key`, or -1."""
    return table[find(table, key)]["value"]


@lean_kernel
def put(table, key, value):
    """Set `key` to `value` (>= 0); returns 1 if the key is new, else 0."""
    row = table[find(table, key)]
    new = 1 if row["value"] == NONE else 0
    row["key"] = key
    row["value"] = value
    return new


@lean_kernel
def remove(table, key):
    """Forget `key`; returns its value, or -1 if it was not there."""
    mask = len(table) - 1
    hole = find(table, key)
    value = table[hole]["value"]
    if value == NONE:
        return NONE
    i = (hole + 1) & mask
    while table[i]["value"] != NONE:
        home = mix(table[i]["key"]) & mask
        # the entry at i may move to the hole unless its home lies cyclically in (hole, i]
        if ((i - home) & mask) >= ((i - hole) & mask):
            table[hole]["key"] = table[i]["key"]
            table[hole]["value"] = table[i]["value"]
            hole = i
        i = (i + 1) & mask
    table[hole]["value"] = NONE
    return value
