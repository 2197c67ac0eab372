"""The same thing done in several ways, in turns of each, so that what else happens on the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_clock = time.perf_counter_ns
#: of each, before anything counts
_FIRST = 200


def warm_up(sides: Mapping[str, Any]) -> None:
    """Have each side do it (`side.one()`) until what is used for the first time has been."""
    for side in sides.values():
        for _ in range(_FIRST):
            side.one()


def in_turns(sides: Mapping[str, Any], requests: int, rounds: int, progress: Callable[[str], None]) -> dict[str, list[int]]:
    """How long each `side.one()` took, ns: side -> i[requests], in `rounds` turns; `progress` is called after each round."""
    times: dict[str, list[int]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            one, taken = side.one, times[name]
            for _ in range(requests // rounds):
                begin = _clock()
                one()
                taken.append(_clock() - begin)
        progress(f"turn {turn + 1} of {rounds}")
    return times
