"""What one client asked and what it was told, line by line, as it happened: written by clients, read by the checks.

A line is a JSON array, its first item the kind. Times are nanoseconds of the client's own monotonic clock, which no other
host shares; `clock` lines tie it to the wall clock, which all of them share and by which nothing is judged.

    ["clock", monotonic_ns, wall_ns]
    ["asked", number, at_ns, sent_ns, slo_ns, what]  a request: when it was due to be sent, when it was, for which model
    ["told", number, when_ns, outcome, right]        how it ended for its sender; right: its answer was this request's
    ["wired", id, when_ns]                           a message INFER was made for a connection; a repeated call makes two
    ["replied", id, when_ns, status]                 a REPLY (or an ERROR about the id) was read from the connection
    ["stray", text]                                  something came that nobody had asked for

A number belongs to the client's ledger, an id to its connections. Both kinds of end are written by whoever meets them,
so a second answer leaves a second line: nothing here makes ends unique.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: ends that only a client by itself can find, beside the names of codes that a controller or a gateway tells
CONNECTION_REFUSED, CONNECTION_BROKEN, GAVE_UP = "CONNECTION_REFUSED", "CONNECTION_BROKEN", "GAVE_UP"
OK = "OK"


class Asked(NamedTuple):
    number: int
    at_ns: int
    sent_ns: int
    slo_ns: int
    what: str

    @property
    def until_ns(self) -> int:
        """Its deadline: from when it was due, so that a client that falls behind makes its own figures worse."""
        return self.at_ns + self.slo_ns


class Told(NamedTuple):
    number: int
    when_ns: int
    outcome: str
    right: bool


class Replied(NamedTuple):
    id: int
    when_ns: int
    status: int


@dataclass
class Ledger:
    """The lines of one client, by kind, in the order in which they were written."""

    name: str
    clock: tuple[int, int] = (0, 0)
    asked: list[Asked] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    wired: list[int] = field(default_factory=list)
    replied: list[Replied] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    def wall_ns(self, own_ns: int) -> int:
        """A time of the client's own clock on the wall clock."""
        return own_ns - self.clock[0] + self.clock[1]


class Writer:
    """Appends to one ledger's file; buffered, so `close` it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1 << 16)
        self._line("clock", time.monotonic_ns(), time.time_ns())

    def asked(self, number: int, at_ns: int, sent_ns: int, slo_ns: int, what: str) -> None:
        self._line("asked", number, at_ns, sent_ns, slo_ns, what)

    def told(self, number: int, outcome: str, right: bool = True) -> None:
        """An end, now."""
        self._line("told", number, time.monotonic_ns(), outcome, right)

    def wired(self, number: int) -> None:
        self._line("wired", number, time.monotonic_ns())

    def replied(self, number: int, status: int) -> None:
        self._line("replied", number, time.monotonic_ns(), status)

    def stray(self, text: str) -> None:
        self._line("stray", text)

    def close(self) -> None:
        self._file.close()

    def _line(self, *items: Any) -> None:
        self._file.write(json.dumps(items) + "\n")


def read(name: str, lines: Iterable[str]) -> Ledger:
    """A ledger from its lines. Raises `ValueError` for a line of another kind: a ledger is whole or it is nothing."""
    found = Ledger(name)
    for line in lines:
        kind, *items = json.loads(line)
        if kind == "clock":
            found.clock = (items[0], items[1])
        elif kind == "asked":
            found.asked.append(Asked(*items))
        elif kind == "told":
            found.told.append(Told(*items))
        elif kind == "wired":
            found.wired.append(items[0])
        elif kind == "replied":
            found.replied.append(Replied(*items))
        elif kind == "stray":
            found.strays.append(items[0])
        else:
            raise ValueError(f"{name}: {kind!r} is no kind of line")
    return found
