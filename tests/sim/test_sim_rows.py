"""The rows in use, as the checkers' notes have them, against a walk along the free list that remembers nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.core.world import NONE, REQUEST, free_list
from cwd.sim.rows import count_used, make_rows

ROWS = 12


class Owner:
    """A table whose rows are taken and given back as the core does it."""

    def __init__(self):
        self.table, self.first, self.live = free_list(np.zeros(ROWS, REQUEST)), 0, 0

    def take(self, _=0):
        if self.first != NONE:
            row = self.table[self.first]
            self.first, self.live = int(row["next"]), self.live + 1
            row["state"], row["next"] = 1, 5

    def give(self, which):
        used = np.flatnonzero(self.table["state"])
        if len(used):
            r = int(used[which % len(used)])
            self.table[r]["state"], self.table[r]["next"] = 0, self.first
            self.first, self.live = r, self.live - 1


def used_rows(table, first, live):
    """The rows in use; None if the free list is not all others, each once, or `live` is not how many they are."""
    free = []
    while first != NONE:
        if not 0 <= first < len(table) or first in free or table[first]["state"]:
            return None
        free.append(first)
        first = int(table[first]["next"])
    used = [r for r in range(len(table)) if r not in free]
    return used if len(used) == live and all(table[r]["state"] for r in used) else None


def found(owner, rows):
    """What a look at the table finds, in its rows' order."""
    count = int(count_used(owner.table, owner.first, owner.live, rows))
    return None if count < 0 else sorted(rows.order[ROWS - count:].tolist())


TURNS = st.lists(st.tuples(st.sampled_from(("take", "take", "give", "look")), st.integers(0, ROWS)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(turns=TURNS)
def test_rows_in_use_are_found_whatever_was_taken_and_given_back(turns):
    owner, rows = Owner(), make_rows(ROWS)
    for what, which in turns:
        if what == "look":
            assert found(owner, rows) == np.flatnonzero(owner.table["state"]).tolist()
        else:
            getattr(owner, what)(which)
    assert found(owner, rows) == used_rows(owner.table, owner.first, owner.live)


@settings(max_examples=600, deadline=None)
@given(turns=TURNS, data=st.data())
def test_whatever_is_wrong_with_a_free_list_is_found(turns, data):
    """Any row's link or state, the start or the number: as the walk finds it, and right again afterwards."""
    owner, rows = Owner(), make_rows(ROWS)
    for what, which in turns:
        found(owner, rows) if what == "look" else getattr(owner, what)(which)
    good = data.draw(st.booleans()) and found(owner, rows)
    table, first, live = owner.table.copy(), owner.first, owner.live
    for _ in range(data.draw(st.integers(1, 3))):
        field, r = data.draw(st.sampled_from(("next", "state", "first", "live"))), data.draw(st.integers(0, ROWS - 1))
        if field == "next":
            owner.table[r]["next"] = data.draw(st.integers(-3, ROWS + 2))
        elif field == "state":
            owner.table[r]["state"] = data.draw(st.integers(0, 2))
        elif field == "first":
            owner.first = data.draw(st.integers(-3, ROWS + 2))
        else:
            owner.live = data.draw(st.integers(-1, ROWS + 1))
    assert found(owner, rows) == used_rows(owner.table, owner.first, owner.live)
    owner.table, owner.first, owner.live = table, first, live
    assert good is False or found(owner, rows) == good


@settings(max_examples=300, deadline=None)
@given(turns=TURNS, order=st.permutations(range(ROWS)))
def test_notes_that_are_wrong_hide_nothing(turns, order):
    owner, rows = Owner(), make_rows(ROWS)
    for what, which in turns:
        found(owner, rows) if what == "look" else getattr(owner, what)(which)
    rows.order[:] = order
    rows.place[rows.order] = np.arange(ROWS)
    assert found(owner, rows) == used_rows(owner.table, owner.first, owner.live) is not None


@pytest.mark.parametrize("first", [-3, 0, 7, ROWS])
def test_a_full_table_has_no_free_row_to_begin_with(first):
    owner, rows = Owner(), make_rows(ROWS)
    for _ in range(ROWS):
        owner.take()
    assert found(owner, rows) == list(range(ROWS))
    owner.first = first
    assert found(owner, rows) is None


def test_a_row_that_is_lost_is_not_hidden_by_another_in_its_place():
    """A row is neither used nor in the list, and the notes say that it is where the list's start is."""
    owner, rows = Owner(), make_rows(ROWS)
    owner.take()
    owner.take()
    assert found(owner, rows) == [0, 1]
    owner.table[0]["state"], owner.table[0]["next"] = 0, owner.table[owner.first]["next"]
    rows.place[0] = rows.place[owner.first]
    assert found(owner, rows) is None
