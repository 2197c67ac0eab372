"""What must hold of every ledger, whatever was done to the cluster: pure functions from a ledger to lines about faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cwd.errors import Code
from cwd.units import NS_PER_MS, NS_PER_S, format_duration
from tools.chaos_run.ledger import CONNECTION_BROKEN, CONNECTION_REFUSED, GAVE_UP, OK, Ledger

#: between the client's judgement that an answer is in time and the ledger's look at the clock, a process may have to wait
HANDED_NS = 5 * NS_PER_MS
#: an end that is no answer may come after the deadline, but not for ever after it
PATIENCE_NS = 2 * NS_PER_S

#: what a sound request may be told while faults happen; whatever else it is told breaks a promise
ALLOWED = frozenset({
    OK, CONNECTION_REFUSED, CONNECTION_BROKEN,
    *(code.name for code in (
        Code.DEADLINE_UNREACHABLE, Code.DEADLINE_EXPIRED, Code.DEADLINE_MISSED, Code.QUEUE_FULL, Code.CREDIT_EXCEEDED,
        Code.RATE_EXCEEDED, Code.PAYLOADS_EXCEEDED, Code.NO_WORKER, Code.WORKER_LOST, Code.CONTROLLER_LOST,
        # a leader's successor has not heard of every worker yet
        Code.MODEL_NOT_READY, Code.NOT_PROFILED))})
#: of each line about one ledger at most so many, and then how many more
SHOWN = 3


def check(ledger: Ledger) -> list[str]:
    """One line for each broken promise; [] for a sound ledger."""
    found = [*_shown("was asked twice", _repeated(row.number for row in ledger.asked)),
             *_ends(ledger), *_late(ledger), *_wrong(ledger), *_wire(ledger),
             *_shown("came unasked", ledger.strays)]
    if not ledger.asked:
        found.append("it asked nothing")
    return [f"{ledger.name}: {line}" for line in found]


def _ends(ledger: Ledger) -> list[str]:
    """Each request has exactly one end, of a kind that may be, and not for ever after its deadline."""
    asked = {row.number: row for row in ledger.asked}
    ends = Counter(row.number for row in ledger.told)
    overdue = []
    for row in ledger.told:
        request = asked.get(row.number)
        if request is not None and row.when_ns > request.until_ns + PATIENCE_NS:
            after_ns = row.when_ns - request.until_ns
            overdue.append(f"request {row.number} ({row.outcome}, {format_duration(after_ns)} after its deadline)")
    strange = [f"request {row.number} ({row.outcome})" for row in ledger.told if row.outcome not in ALLOWED | {GAVE_UP}]
    return [
        *_shown("got no answer and no refusal", [f"request {number}" for number in sorted(set(asked) - set(ends))]),
        *_shown("was given up by its client, who had heard nothing",
                [f"request {row.number}" for row in ledger.told if row.outcome == GAVE_UP]),
        *_shown("has more than one end", [f"request {number} ({count})" for number, count in ends.items() if count > 1]),
        *_shown("ended without having been asked", [f"request {number}" for number in sorted(set(ends) - set(asked))]),
        *_shown("ended long after its deadline", overdue),
        *_shown("was told what no sound request is told", strange),
    ]


def _late(ledger: Ledger) -> list[str]:
    """No answer counts as one in time that came after the deadline, both on the client's own clock."""
    until_ns = {row.number: row.until_ns for row in ledger.asked}
    late = [(row.number, row.when_ns - until_ns[row.number]) for row in ledger.told
            if row.outcome == OK and row.number in until_ns and row.when_ns > until_ns[row.number] + HANDED_NS]
    return _shown("was answered late as if in time",
                  [f"request {number} ({format_duration(after_ns)} late)" for number, after_ns in late])


def _wrong(ledger: Ledger) -> list[str]:
    return _shown("got an answer that is not its own",
                  [f"request {row.number}" for row in ledger.told if row.outcome == OK and not row.right])


def _wire(ledger: Ledger) -> list[str]:
    """No id is answered twice on the wire, and none that was never sent; repeated ids would hide both."""
    replies = Counter(row.id for row in ledger.replied)
    unasked = sorted(set(replies) - set(ledger.wired)) if ledger.wired else []
    return [
        *_shown("was used for two messages", _repeated(ledger.wired)),
        *_shown("was replied to more than once", [f"id {number:x} ({n})" for number, n in replies.items() if n > 1]),
        *_shown("was replied to, but never sent", [f"id {number:x}" for number in unasked]),
    ]


def _repeated(numbers: Iterable[int]) -> list[str]:
    return [f"{number}" for number, count in Counter(numbers).items() if count > 1]


def _shown(what: str, items: list[str]) -> list[str]:
    """Lines about the first few, and the count of the others."""
    lines = [f"{item} {what}" for item in items[:SHOWN]]
    if len(items) > SHOWN:
        lines.append(f"... and {len(items) - SHOWN} more: {what}")
    return lines
