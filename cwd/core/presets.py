"""What each policy asks of the engine, in one table: the engine reads settings and never asks for a policy's name.

A `Preset` holds the switches and constants in which policies differ on the engine's side. `Config` takes over those
that an experiment may set itself; where it says None, the policy's own value holds. Knows nothing of tables.
"""

from __future__ import annotations

import dataclasses

#: numbers of the policies, as `plan` tells them apart
FIFO, CLOCKWORK = 0, 1

#: orders. BY_DUE: deadline less the reply's way. BY_LATEST: the last moment to issue. BY_TURN: who ran longest ago
BY_DUE, BY_LATEST, BY_ARRIVAL, BY_TURN = 0, 1, 2, 3

US, MS = 1_000, 1_000_000


@dataclasses.dataclass(frozen=True)
class Preset:
    """One policy's settings; switches are 0 or 1, durations ns. The defaults are those of `clockwork`."""

    number: int
    #: refuse at arrival what no plan serves in time; 0: queue it and see
    admission: int = 1
    #: requests of a model (BY_DUE or BY_ARRIVAL), copies of a GPU (any), models that want a LOAD (BY_DUE: by demand)
    queue_order: int = BY_DUE
    copy_order: int = BY_LATEST
    load_order: int = BY_DUE
    #: load models that have a copy elsewhere, if those GPUs are busy
    replicate: int = 1
    #: load only what comes in time for one of the first requests
    load_saves: int = 1
    schedule_ahead_ns: int = 1 * MS
    load_ahead_ns: int = 1 * MS
    send_ns: int = 200 * US
    result_ns: int = 300 * US
    end_ns: int = 400 * US
    client_ns: int = 200 * US
    latest_slack_ns: int = 50 * MS
    load_horizon_ns: int = 100 * MS


PRESETS = {
    "fifo": Preset(FIFO, queue_order=BY_ARRIVAL, copy_order=BY_ARRIVAL, load_order=BY_ARRIVAL, replicate=0, load_saves=0),
    "clockwork": Preset(CLOCKWORK),
}

#: fields of a preset that `Config` offers too
OVERRIDES = ("admission", "schedule_ahead_ns", "load_ahead_ns", "send_ns", "result_ns", "end_ns", "client_ns",
             "latest_slack_ns", "load_horizon_ns")
#: switches, which may be 0
SWITCHES = ("admission",)
