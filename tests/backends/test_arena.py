"""The arena: runs never overlap, come back when nobody refers to them, and join; against a naive map of bytes."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwd.worker.backends.arena import ALIGN_BYTES, Arena

UNIT = ALIGN_BYTES


def place(arena_pieces, array):
    """(piece, begin) of an array."""
    for index, piece in enumerate(arena_pieces):
        begin = array.ctypes.data - piece.ctypes.data
        if 0 <= begin < piece.size:
            return index, begin
    raise AssertionError("outside of all pieces")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, UNIT)), max_size=60))
def test_against_a_map_of_bytes(steps):
    pieces = [np.zeros(size * UNIT, np.uint8) for size in (8, 5)]
    arena = Arena(pieces)
    used = [np.zeros(piece.size // UNIT, bool) for piece in pieces]
    held = []
    for take, which, less in steps:
        if take:
            units = which + 1
            size = units * UNIT - less + 1
            fits = any("0" * units in "".join(map(str, row.astype(int))) for row in used)
            if not fits:
                with pytest.raises(MemoryError):
                    arena.take(size)
                continue
            found = arena.take(size)
            index, begin = place(pieces, found)
            assert found.size == size and begin % UNIT == 0
            taken = slice(begin // UNIT, begin // UNIT + units)
            assert not used[index][taken].any()
            used[index][taken] = True
            held.append((found, index, taken))
        elif held:
            found, index, taken = held.pop(which % len(held))
            used[index][taken] = False
            del found
        assert arena.free_bytes() == sum(int((~row).sum()) for row in used) * UNIT


def test_an_array_in_use_keeps_its_memory_though_its_owner_forgot_it():
    arena = Arena([np.zeros(2 * UNIT, np.uint8)])
    images = {"a": arena.take(UNIT)}
    loading = images["a"]
    del images["a"]
    arena.take(1)  # and gone at once
    kept = arena.take(UNIT)
    with pytest.raises(MemoryError):
        arena.take(1)
    del loading
    gc.collect()
    assert arena.take(UNIT).size == UNIT
    assert kept.size == UNIT


def test_nothing_at_all():
    with pytest.raises(MemoryError):
        Arena([]).take(1)
