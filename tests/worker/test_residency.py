"""Page accounting: random events against a dictionary, and every index re-derived after each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.worker import residency as real

PAGES = 12
MODEL = st.integers(0, 7)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("load"), MODEL, st.integers(0, 5)),
        st.tuples(st.just("ready"), MODEL),
        st.tuples(st.just("unload"), MODEL),
        st.tuples(st.just("session")),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_pages_are_free_or_owned_by_exactly_one_whatever_happens(steps):
    """Handles are the image's number plus 100 times the session's, so each session renames everything."""
    residency, device, session = real.make_residency(2, PAGES), 1, 0
    known: dict[int, list[int]] = {}  # image -> [index, pages, ready], of this session
    orphans: dict[int, int] = {}  # image -> pages
    for step in steps:
        image = step[1] if len(step) > 1 else 0
        handle = 100 * session + image
        if step[0] == "load":
            adopted = real.resident_adopt(residency, device, handle, image, -image, step[2])
            assert (adopted >= 0) == (image not in known and orphans.get(image) == step[2])
            if adopted >= 0:
                known[image] = [int(adopted), orphans.pop(image), 1]
                continue
            index = int(real.resident_take(residency, device, handle, image, -image, step[2]))
            used = sum(entry[1] for entry in known.values())
            while index == -real.NO_PAGES and (victim := real.resident_orphan_any(residency, device)) >= 0:
                del orphans[int(residency.residents[device]["image_low"][victim])]
                real.resident_give(residency, device, victim)
                index = int(real.resident_take(residency, device, handle, image, -image, step[2]))
            if image in known:
                assert index == -real.ALREADY_RESIDENT
            elif step[2] == 0 or used + step[2] > PAGES:
                assert index == -real.NO_PAGES
            else:
                assert index >= 0
                known[image] = [index, step[2], 0]
        elif step[0] == "ready" and image in known:
            real.resident_ready(residency, device, known[image][0])
            known[image][2] = 1
        elif step[0] == "unload" and image in known:
            real.resident_drain(residency, device, known[image][0])
            assert real.pages_free(residency, device) == PAGES - sum(entry[1] for entry in known.values())
            real.resident_give(residency, device, known.pop(image)[0])
        elif step[0] == "session":
            for left, (index, pages, ready) in list(known.items()):
                if not ready:
                    real.resident_give(residency, device, index)
                elif left in orphans:  # the same image twice: drop one, to keep this twin a plain dictionary
                    real.resident_give(residency, device, index)
                else:
                    orphans[left] = pages
            known.clear()
            session += 1
            real.residency_session(residency, device, session)
        real.check_residency(residency, device)
        real.check_residency(residency, 0)
        assert real.pages_free(residency, device) == PAGES - sum(entry[1] for entry in known.values())
        for image in range(8):
            wanted = known[image][0] if image in known else -1
            assert real.resident_find(residency, device, 100 * session + image) == wanted
            assert session == 0 or real.resident_find(residency, device, 100 * (session - 1) + image) == -1


def test_a_load_that_ends_in_a_later_session_is_an_orphan_and_can_be_adopted():
    residency = real.make_residency(1, 4)
    index = real.resident_take(residency, 0, 11, 1, 2, 3)
    real.residency_session(residency, 0, 1)
    assert real.pages_free(residency, 0) == 1
    real.resident_ready(residency, 0, index)
    assert real.pages_free(residency, 0) == 4
    real.check_residency(residency, 0)
    assert real.resident_adopt(residency, 0, 77, 1, 3, 3) == -1
    assert real.resident_adopt(residency, 0, 77, 1, 2, 3) == index
    assert real.resident_find(residency, 0, 77) == index and real.resident_find(residency, 0, 11) == -1
    real.check_residency(residency, 0)


def test_freed_pages_are_scattered_and_still_all_there():
    residency = real.make_residency(1, 6)
    indexes = [real.resident_take(residency, 0, model, model, 0, 2) for model in range(3)]
    real.resident_give(residency, 0, indexes[0])
    real.resident_give(residency, 0, indexes[2])
    index = real.resident_take(residency, 0, 9, 9, 0, 4)
    out = np.zeros(6, np.int32)
    assert real.resident_pages(residency, 0, index, out) == 4
    assert set(out[:4].tolist()) == {0, 1, 4, 5}
    real.check_residency(residency, 0)
