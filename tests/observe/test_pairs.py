"""The compiled counters carry the core's codes as their own constants: the two must say the same."""

import pytest

from cwd.core import world
from cwd.observe import pairs


@pytest.mark.parametrize("ours, theirs", [
    ("LOAD", "ACTION_LOAD"), ("UNLOAD", "ACTION_UNLOAD"), ("EXEC", "ACTION_EXEC"), ("RESERVED", "ACTION_RESERVED"),
    ("SLOT_MASK", "SLOT_MASK")])
def test_codes_are_the_cores(ours, theirs):
    assert getattr(pairs, ours) == getattr(world, theirs)
