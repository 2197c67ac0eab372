"""What each policy asks of the engine, in one table: the engine reads settings and never asks for a policy's name.

A `Preset` holds the switches and constants in which policies differ on the engine's side. `Config` takes over those
that an experiment may set itself; where it says None, the policy's own value holds. Knows nothing of tables.
"""

from __future__ import annotations

import dataclasses

#: numbers of the policies, as `plan` tells them apart
(FIFO, CLOCKWORK, EDF, CLOCKWORK_PAPER, SHEPHERD, SYMPHONY, CLIPPER, CLIPPER_QUANTILE, NEXUS, ORLOJ,
 CWD) = range(11)

#: orders. BY_DUE: deadline less the reply's way. BY_LATEST: the last moment to issue. BY_TURN: who ran longest ago.
#: BY_STRATEGY: as noted when the copy was last looked at. BY_RECENT: by demand, of equals who ran last. BY_SAVED: the most
#: requests per LOAD time
BY_DUE, BY_LATEST, BY_ARRIVAL, BY_TURN, BY_STRATEGY, BY_RECENT, BY_SAVED = range(7)

#: what a policy that knows prices may be after
OBJECTIVES = ("fair", "goodput")

US, MS = 1_000, 1_000_000


@dataclasses.dataclass(frozen=True)
class Preset:
    """One policy's settings; switches are 0 or 1, durations ns. The defaults are those of `clockwork`."""

    number: int
    #: refuse at arrival what no plan serves in time; 0: queue it and see
    admission: int = 1
    #: hold executions against deadlines: give up what cannot be in time, let none begin that would be late; 0: give up
    #: only what is overdue already
    foresight: int = 1
    #: requests of a model (BY_DUE or BY_ARRIVAL), copies of a GPU (any), models that want a LOAD (BY_DUE: by demand; BY_ARRIVAL,
    #: BY_SAVED)
    queue_order: int = BY_DUE
    copy_order: int = BY_LATEST
    load_order: int = BY_DUE
    #: its plan takes all models to be resident, as published: one that waits for its turn keeps its pages, and where not all
    #: fit side by side others may find no place in time
    keeps_pages: int = 0
    #: load models that have a copy elsewhere, if those GPUs are busy
    replicate: int = 1
    #: load only what comes in time for one of the first requests
    load_saves: int = 1
    #: a model with queued requests may be evicted, if no idle one can make the room
    evict_queued: int = 0
    #: who waits before the first request of a batch is given up as the batch goes out
    drop_passed: int = 0
    #: margins stay as configured instead of being measured
    margins_fixed: int = 0
    #: durations are the largest of the last few, instead of a typical one and a tail
    estimates_recent: int = 0
    #: an idle lane is expected to begin when an action is issued, not when it has arrived
    begins_at_once: int = 0
    #: each of a model's GPUs looks for new requests in its turn, instead of the one that would be free first
    polls: int = 0
    #: a request counts as an execution of its own in what a GPU or a model has to do, not as its share of a batch
    costs_alone: int = 0
    #: note arrivals and executions of each model, for the policy to learn from (memory.py)
    learns: int = 0
    #: tell requests apart by application (histograms.py), whether their executions scatter or not
    picks: int = 0
    #: under overload take in only who can wait for a batch to fill at the model's rate of arrivals
    gathers: int = 0
    #: give busy models further copies before they are needed (spread.py), and let the copies leave that are worth least
    #: (worth.py) instead of those used longest ago
    spreads: int = 0
    #: weigh executions against the price of GPU time (price.py), and models against the floor (floor.py)
    prices: int = 0
    #: how long a batch that is not full may be held back for more requests
    batch_delay_ns: int = 0
    #: a request is due no earlier than this after its arrival, whatever its deadline
    due_floor_ns: int = 0
    schedule_ahead_ns: int = 50 * US
    load_ahead_ns: int = 1 * MS
    send_ns: int = 200 * US
    result_ns: int = 300 * US
    end_ns: int = 400 * US
    look_ns: int = 300 * US
    early_ns: int = 300 * US
    client_ns: int = 150 * US
    latest_slack_ns: int = 50 * MS
    load_horizon_ns: int = 100 * MS


#: it knows no deadlines but those that have passed, and takes requests and models in turn
_CLIPPER = {"admission": 0, "foresight": 0, "queue_order": BY_ARRIVAL, "copy_order": BY_ARRIVAL, "load_saves": 0, "learns": 1}

PRESETS = {
    "fifo": Preset(FIFO, queue_order=BY_ARRIVAL, copy_order=BY_ARRIVAL, load_order=BY_ARRIVAL, replicate=0, load_saves=0),
    "clockwork": Preset(CLOCKWORK),
    "cwd": Preset(CWD, learns=1, gathers=1, spreads=1, prices=1, load_order=BY_SAVED),
    "edf": Preset(EDF, copy_order=BY_DUE),
    # 5 ms ahead, of which 1 ms is the network's; internal deadlines 5 ms early, but not before 5 ms ahead and 5 more;
    # a LOAD whenever a model that is not there has anything queued, since their test for a demand of 0 never fires
    "clockwork-paper": Preset(
        CLOCKWORK_PAPER, admission=0, foresight=0, queue_order=BY_ARRIVAL, copy_order=BY_STRATEGY, load_order=BY_RECENT,
        load_saves=0, evict_queued=1, margins_fixed=1, estimates_recent=1, begins_at_once=1, polls=1, costs_alone=1,
        schedule_ahead_ns=4 * MS, load_ahead_ns=4 * MS, send_ns=1 * MS, result_ns=1, end_ns=1, look_ns=0, early_ns=0,
        client_ns=5 * MS, due_floor_ns=10 * MS, latest_slack_ns=5 * MS, load_horizon_ns=1),
    "shepherd": Preset(SHEPHERD, admission=0, load_saves=0),
    "symphony": Preset(SYMPHONY, admission=0, load_saves=0),
    "clipper": Preset(CLIPPER, **_CLIPPER),
    "clipper-quantile": Preset(CLIPPER_QUANTILE, **_CLIPPER),
    # whether a request is lost is for its distribution to say, not for the largest duration seen
    "orloj": Preset(ORLOJ, admission=0, foresight=0, load_saves=0, learns=1, picks=1),
    "nexus": Preset(NEXUS, keeps_pages=1, admission=0, load_saves=0, learns=1, copy_order=BY_TURN, drop_passed=1),
}

#: fields of a preset that `Config` offers too
OVERRIDES = ("admission", "schedule_ahead_ns", "load_ahead_ns", "send_ns", "result_ns", "end_ns", "look_ns", "early_ns",
             "client_ns", "latest_slack_ns", "load_horizon_ns", "batch_delay_ns")
#: those of them that may be 0
MAY_BE_0 = ("admission", "look_ns", "early_ns", "batch_delay_ns")
