"""Which fault happens when: a pure function of the seed and the length of the run.

The run is cut into rounds in which every kind happens once, in an order of its own; so a minute holds them all. Between
the end of one fault and the begin of the next there is time to recover, unless faults may overlap.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

#: nothing happens at first: it is the level that later ones are held against
LEAD_S = 5.0
#: how long after a fault nothing else happens
RECOVERY_S = 5.0
#: a round takes at least as long as this; longer runs have longer rounds and longer faults
ROUND_S = 60.0
ROUND_LONG_S = 80.0
#: with etcd's death among them
ROUND_ETCD_S = 70.0
#: a leader that was killed has to be a standby again before its successor is killed
LEADERS_APART_S = 20.0


class Kind(enum.StrEnum):
    KILL_WORKER = "kill worker"
    KILL_LEADER = "kill leader"
    KILL_GATEWAY = "kill gateway"
    DELAY = "delay"
    STALL = "stall"
    CUT = "cut"
    CUT_SILENT = "silent cut"
    SLOW_CLIENT = "slow client"
    FLOOD = "flood"
    KILL_ETCD = "kill etcd"


#: seconds that a fault of the kind lasts, at least and at most. A killed process stays away for as long before its
#: supervisor starts it again; a stall may be longer than an SLO, a silent cut than what tells a peer that is lost
LENGTHS_S: dict[Kind, tuple[float, float]] = {
    Kind.KILL_WORKER: (0.1, 1.0), Kind.KILL_LEADER: (0.1, 1.0), Kind.KILL_GATEWAY: (0.1, 1.0), Kind.DELAY: (0.8, 3.0),
    Kind.STALL: (0.3, 1.5), Kind.CUT: (0.1, 1.5), Kind.CUT_SILENT: (0.5, 2.0), Kind.SLOW_CLIENT: (0.8, 3.0),
    Kind.FLOOD: (0.8, 3.0),
    # the leader goes on if etcd answers again before the lease is over; it takes a second more than it was away
    Kind.KILL_ETCD: (0.1, 0.4),
}


@dataclass(frozen=True)
class Fault:
    """`at_s` counts from the begin of the run. `target`: a name of the testbed, "" where the kind says it."""

    kind: Kind
    target: str
    at_s: float
    length_s: float

    @property
    def end_s(self) -> float:
        return self.at_s + self.length_s


def schedule(seed: int, seconds: float, workers: tuple[str, ...], links: tuple[str, ...],
             overlap: bool = False, etcd: bool = False) -> list[Fault]:
    """Faults in order of time; all have ended `RECOVERY_S` before `seconds`. `links`: who may be cut off its controller.

    Every kind happens at least once in 60 s; that etcd is killed only if asked for, and once in 70 s then. Raises
    `ValueError` for a run too short for that.
    """
    kinds = [kind for kind in Kind if etcd or kind is not Kind.KILL_ETCD]
    shortest_s = ROUND_ETCD_S if etcd else ROUND_S
    if seconds < shortest_s:
        raise ValueError(f"{seconds:g} s: every kind of fault needs {shortest_s:g} s at least")
    rng = random.Random(f"{seed}/{seconds:g}/{overlap}")
    rounds = max(1, int(seconds // ROUND_LONG_S))
    slot_s = (seconds - LEAD_S) / (rounds * len(kinds))
    longest_s = slot_s - RECOVERY_S
    aims = {Kind.KILL_WORKER: _turns(rng, workers),
            **{kind: _turns(rng, links) for kind in (Kind.DELAY, Kind.STALL, Kind.CUT, Kind.CUT_SILENT)}}
    found: list[Fault] = []
    for number in range(rounds):
        order = _order(rng, kinds, found, LEAD_S + number * len(kinds) * slot_s, slot_s)
        for place, kind in enumerate(order, number * len(kinds)):
            low, high = LENGTHS_S[kind]
            length_s = rng.uniform(low, high if overlap else max(min(high, longest_s), low))
            slack_s = slot_s if overlap else max(longest_s - length_s, 0.0)
            at_s = LEAD_S + place * slot_s + rng.uniform(0, slack_s)
            length_s = min(length_s, seconds - RECOVERY_S - at_s)
            target = next(aims[kind]) if kind in aims else ""
            found.append(Fault(kind, target, round(at_s, 3), round(max(length_s, low), 3)))
    return sorted(found, key=lambda fault: fault.at_s)


def _order(rng: random.Random, kinds: list[Kind], before: list[Fault], begin_s: float, slot_s: float) -> list[Kind]:
    """The kinds of a round in some order, its leader killed long enough after that of the round before."""
    last_s = max((fault.end_s for fault in before if fault.kind is Kind.KILL_LEADER), default=-LEADERS_APART_S)
    while True:
        order = rng.sample(kinds, len(kinds))
        if begin_s + order.index(Kind.KILL_LEADER) * slot_s >= last_s + LEADERS_APART_S:
            return order


def _turns(rng: random.Random, names: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """Endlessly, each of the names once before any comes again."""
    while True:
        yield from rng.sample(names, len(names))
