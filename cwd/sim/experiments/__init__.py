"""The experiments: one file each, configuration alone.

Each has `points(quick, ...)`, whose further keywords are the command's options; it yields a `Point` per row. Where a
paper has figures, `PUBLISHED` lists them: what was swept (and the `group`, if it is one group's), and what it measured.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cwd.sim.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class Point:
    """One run: what was swept, and the scenario. A `minute_ns` > 0 makes a row of each such piece of the measured time.

    `minutes` are the pieces' names, if they are not 0, 1, 2...
    `settles`: at the end nothing may be left to do, and the last group must have been served wholly in time.
    """

    swept: dict[str, Any]
    scenario: Scenario
    minute_ns: int = 0
    minutes: tuple[int, ...] = ()
    settles: bool = False
