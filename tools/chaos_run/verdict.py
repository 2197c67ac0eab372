"""What a run comes to: facts of each fault, totals, and one line for each promise that was broken. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.chaos_run import check
from tools.chaos_run.faults import Done
from tools.chaos_run.goodput import BACK, Group, Recovery, recovery, served_again_s
from tools.chaos_run.ledger import CONNECTION_BROKEN, CONNECTION_REFUSED, OK, Ledger
from tools.chaos_run.schedule import RECOVERY_S, Kind

#: the promises: goodput is back so soon after a fault, and the first request is answered so soon after a leader's death
RECOVERED_S, FAILOVER_S = RECOVERY_S, 3.0
#: in time of all that is asked while nothing happens; less, and the load was too much for the machine
QUIET = 0.97
#: so long after a fault it counts as quiet again
CALM_S = 3.0
#: whose goodput is judged; the other clients are faults
JUDGED = ("native", "http")
#: faults may come, and end, so much later than they should
LATE_S = 0.5
#: phases of clients that may hurt nobody but themselves
CLIENTS = (Kind.SLOW_CLIENT, Kind.FLOOD)
#: whose ledgers hold what went over the wire
WIRED = ("native", "slow", "flood")
_LOST = (CONNECTION_BROKEN, "CONTROLLER_LOST", "WORKER_LOST")


def group_of(ledger: Ledger, begin_wall_ns: int) -> Group:
    """A ledger's requests in the order in which they were due."""
    ends = {row.number: row for row in reversed(ledger.told)}
    rows = sorted(ledger.asked, key=lambda row: row.at_ns)
    done = [ends.get(row.number) for row in rows]
    return Group(
        ledger.name, _seconds(ledger, begin_wall_ns, [row.at_ns for row in rows]),
        _seconds(ledger, begin_wall_ns, [row.until_ns if end is None else end.when_ns
                                         for row, end in zip(rows, done, strict=True)]),
        np.array([end is not None and end.outcome == OK and end.right and end.when_ns <= row.until_ns
                  for row, end in zip(rows, done, strict=True)], bool))


def judge(done: Sequence[Done], ledgers: Mapping[str, Ledger], begin_wall_ns: int, seconds: float,
          overlap: bool = False) -> dict[str, Any]:
    """`{"faults": [...], "quiet_share": .., "totals": {...}, "broken": [...]}`. `done` may be in any order.

    If faults may `overlap`, the recovery from one that had no time for it is not judged; else that itself is a fault of the run.
    """
    groups = [group_of(ledgers[name], begin_wall_ns) for name in JUDGED]
    faults, broken = [], [line for ledger in ledgers.values() for line in check.check(ledger)]
    done = sorted(done, key=lambda one: one.at_s)
    for number, one in enumerate(done):
        until_s = done[number + 1].at_s if number + 1 < len(done) else seconds
        facts, lines = _fault(one, groups, ledgers, begin_wall_ns, until_s, overlap)
        faults.append(facts)
        broken += [f"{one.fault.kind} {one.target} at {one.at_s:.1f} s: {line}" for line in lines]
    quiet = _quiet(groups, done, seconds)
    for group, share in zip(groups, quiet, strict=True):
        if not share >= QUIET:
            broken.append(f"{group.name}: only {share:.1%} were in time while nothing happened")
    broken += _effects(done, ledgers)
    return {"faults": faults, "quiet_share": {group.name: round(share, 4) for group, share in zip(groups, quiet, strict=True)},
            "totals": {name: totals(ledger) for name, ledger in ledgers.items()}, "broken": broken}


def totals(ledger: Ledger) -> dict[str, int]:
    """How many were asked, and how each ended."""
    return {"asked": len(ledger.asked), **dict(Counter(row.outcome for row in ledger.told).most_common())}


def _fault(one: Done, groups: Sequence[Group], ledgers: Mapping[str, Ledger], begin_wall_ns: int,
           until_s: float, overlap: bool) -> tuple[dict[str, Any], list[str]]:
    """(facts of one fault, what is broken about it)."""
    recoveries = [recovery(group, one.at_s, one.end_s, until_s) for group in groups]
    ends = Counter(end for name in JUDGED for end in _ends(ledgers[name], begin_wall_ns, one.at_s, until_s))
    facts: dict[str, Any] = {
        "kind": str(one.fault.kind), "target": one.target, "at_s": round(one.at_s, 3),
        "length_s": round(one.end_s - one.at_s, 3), "recovered_s": _slowest(recoveries),
        "lowest": round(min(found.lowest for found in recoveries), 3), "level": round(min(found.level for found in recoveries), 4),
        "cut": one.cut, "failover_s": None, "lost": sum(ends[name] for name in _LOST),
        "refused_connections": ends[CONNECTION_REFUSED],
        "late": ends["DEADLINE_MISSED"], "refused": sum(ends.values()) - ends[OK] - ends["DEADLINE_MISSED"]
        - ends[CONNECTION_REFUSED] - sum(ends[name] for name in _LOST)}
    lines = [one.trouble] if one.trouble else []
    if until_s >= one.end_s + RECOVERY_S - LATE_S:
        lines += [line for found in recoveries for line in _recovery(found)]
    elif not overlap:
        lines.append(f"only {until_s - one.end_s:.1f} s to recover before the next fault: this machine is too slow")
    if one.fault.kind is Kind.KILL_LEADER:
        at_s = served_again_s(list(groups), one.at_s)
        facts["failover_s"] = None if at_s is None else round(at_s - one.at_s, 3)
        if at_s is None or at_s - one.at_s > FAILOVER_S:
            lines.append(f"served again {'never' if at_s is None else f'after {at_s - one.at_s:.2f} s'}, "
                         f"{FAILOVER_S:g} s at most are promised")
    if one.fault.kind in CLIENTS:
        for group, found in zip(groups, recoveries, strict=True):
            share = group.share(one.at_s, one.end_s)
            if not share >= BACK * found.level:
                lines.append(f"{group.name} was hurt by it: {share:.1%} in time, {found.level:.1%} before")
    return facts, lines


def _recovery(found: Recovery) -> list[str]:
    if math.isnan(found.level):
        return [f"{found.group}: nothing was asked before it"]
    if found.after_s is None or found.after_s > RECOVERED_S:
        return [f"{found.group}: goodput was {'not' if found.after_s is None else f'after {found.after_s:.2f} s'} back at "
                f"{BACK:.0%} of {found.level:.1%}, {RECOVERED_S:g} s at most are promised"]
    if found.kept < BACK * found.level:
        return [f"{found.group}: goodput was back after {found.after_s:.2f} s, but then only {found.kept:.1%} were in time"]
    return []


def _slowest(recoveries: Sequence[Recovery]) -> float | None:
    after_s = [found.after_s for found in recoveries if found.after_s is not None]
    return max(after_s) if len(after_s) == len(recoveries) else None


def _quiet(groups: Sequence[Group], done: Sequence[Done], seconds: float) -> list[float]:
    """Each group's share in time of what was due when no fault was less than `CALM_S` ago."""
    found = []
    for group in groups:
        calm = (group.at_s >= 0) & (group.at_s < seconds)
        for one in done:
            # what was due shortly before a fault may have been under way when it came
            calm &= ~((group.at_s >= one.at_s - 1.0) & (group.at_s < one.end_s + CALM_S))
        found.append(float(group.good[calm].mean()) if calm.any() else float("nan"))
    return found


def _effects(done: Sequence[Done], ledgers: Mapping[str, Ledger]) -> list[str]:
    """A client that was to be slow, or to flood, and was not, has tested nothing; nor has one that missed its own messages."""
    kinds = {one.fault.kind for one in done}
    broken = [f"{name}: nothing of what went over the wire was written down" for name in WIRED
              if ledgers[name].asked and not (ledgers[name].wired and ledgers[name].replied)]
    if Kind.FLOOD in kinds and not {"RATE_EXCEEDED", "CREDIT_EXCEEDED"} <= set(totals(ledgers["flood"])):
        broken.append("the flooding client never met both of its limits")
    if Kind.SLOW_CLIENT in kinds and not totals(ledgers["slow"]).get("DEADLINE_MISSED"):
        broken.append("the slow client was never late")
    return broken


def _ends(ledger: Ledger, begin_wall_ns: int, begin_s: float, end_s: float) -> list[str]:
    """The ends of the requests that were due within these seconds, or under way when they began."""
    chosen = {row.number for row in ledger.asked
              if (ledger.wall_ns(row.until_ns) - begin_wall_ns) / 1e9 >= begin_s
              and (ledger.wall_ns(row.at_ns) - begin_wall_ns) / 1e9 < end_s}
    return [row.outcome for row in ledger.told if row.number in chosen
            and (ledger.wall_ns(row.when_ns) - begin_wall_ns) / 1e9 >= begin_s]


def _seconds(ledger: Ledger, begin_wall_ns: int, own_ns: Sequence[int]) -> Any:
    return (np.array(own_ns, np.int64) - (ledger.clock[0] - ledger.clock[1] + begin_wall_ns)) / 1e9
