"""What controller and clients believe of one another's clocks, held against the truth while the ways between them misbehave.

The truth is the difference of the time namespaces. An estimate must never be further from it than it says itself. Every
look asks the controller for its workers' offsets, and the client for the controller's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from rack import HEARTBEAT_S, Rack, Visitor, until

from cwd.units import NS_PER_MS

pytestmark = pytest.mark.e2e

REMOTE = ("first", "second", "torch")


class Watch:
    """Looks at every estimate, and keeps the last of each: name -> (offset, by how much it may be wrong)."""

    def __init__(self, rack: Rack, visitor: Visitor) -> None:
        self.rack, self.visitor = rack, visitor
        self.looks = 0
        self.last: dict[str, tuple[int, int]] = {}

    def look(self) -> dict[str, tuple[int, int]]:
        rows = self.rack.worker_rows()
        found = {name: (row["clock_offset_ns"], row["clock_error_ns"]) for name, row in rows.items()}
        clock = self.visitor.ask("clock")
        found["visitor"] = (clock["offset_ns"], clock["bound_ns"])
        for name, (offset_ns, error_ns) in found.items():
            truth_ns = self.truth_ns(name)
            assert error_ns == -1 or abs(offset_ns - truth_ns) <= error_ns, (
                f"{name}: {offset_ns - truth_ns} ns from the truth, and says that it is right within {error_ns} ns")
        self.looks += 1
        self.last = {name: pair for name, pair in found.items() if pair[1] >= 0}
        return self.last

    def truth_ns(self, name: str) -> int:
        return self.rack.truth_ns("control", "visitor") if name == "visitor" else self.rack.truth_ns(name, "control")

    def wrong_ns(self, name: str) -> int:
        """By how much the last estimate is off, with its sign."""
        return self.last[name][0] - self.truth_ns(name)

    def during(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.look()
            time.sleep(.02)

    def until_within(self, error_ns: int, *names: str) -> None:
        """Look until these estimates are that good by their own word."""
        until(lambda: (last := self.look()) and all(name in last and last[name][1] <= error_ns for name in names),
              f"{names} are known within {error_ns} ns")


@pytest.fixture
def watch(rack: Rack, guest: Visitor) -> Iterator[Watch]:
    guest.ask("connect")
    watch = Watch(rack, guest)
    yield watch
    rack.clear()
    watch.until_within(20 * NS_PER_MS, *REMOTE, "visitor")


def links(rack: Rack) -> list[Any]:
    return [rack.to_workers["first"], rack.to_clients]


def reconnect(watch: Watch) -> None:
    """Both come back on a new connection, and have to learn the clocks anew."""
    gone = watch.rack.counter("peers_gone")
    for link in links(watch.rack):
        link.cut(.2)
    until(lambda: watch.look() and watch.rack.counter("peers_gone") >= gone + 2, "the losses are noticed")
    until(lambda: "first" in watch.look() and watch.visitor.ask("state") == "READY", "both are back")


def test_offsets_are_known_to_fractions_of_a_millisecond_on_a_good_way(watch: Watch) -> None:
    """No speed is asked for: some round trip is short when none is made long, and that one is kept."""
    watch.until_within(5 * NS_PER_MS, *REMOTE, "visitor")
    watch.during(2 * HEARTBEAT_S)
    assert watch.looks > 10


def test_offsets_hold_under_delay_and_jitter(watch: Watch) -> None:
    reconnect(watch)
    for link in links(watch.rack):
        link.delay(10, jitter_ms=20)
    watch.during(4 * HEARTBEAT_S)


def test_offsets_are_learnt_where_answers_are_slower_than_heartbeats(watch: Watch) -> None:
    for link in links(watch.rack):
        link.delay(HEARTBEAT_S * 560)
    reconnect(watch)
    watch.until_within(250 * NS_PER_MS, "first", "visitor")
    watch.during(2 * HEARTBEAT_S)
    assert min(watch.last[name][1] for name in ("first", "visitor")) >= 140 * NS_PER_MS


@pytest.mark.parametrize(("way", "sign"), [("there", -1), ("back", 1)])
def test_offsets_hold_where_one_direction_is_slow(watch: Watch, way: Any, sign: int) -> None:
    """The estimate is wrong then, by half of the difference as nobody can know, and must say so."""
    slow_ms = 60
    for link in links(watch.rack):
        link.delay(slow_ms, way=way)
    reconnect(watch)
    watch.until_within(500 * NS_PER_MS, "first", "visitor")
    watch.during(2 * HEARTBEAT_S)
    for name, direction in (("first", sign), ("visitor", -sign)):
        # a worker's answers come "there", towards the controller; a client's questions do
        assert direction * watch.wrong_ns(name) >= slow_ms // 3 * NS_PER_MS, (name, watch.wrong_ns(name))
        assert watch.last[name][1] >= slow_ms // 2 * NS_PER_MS
    for link in links(watch.rack):
        link.clear()
    watch.until_within(20 * NS_PER_MS, "first", "visitor")
    assert all(abs(watch.wrong_ns(name)) <= 20 * NS_PER_MS for name in ("first", "visitor"))


def test_offsets_hold_after_a_stall(watch: Watch) -> None:
    for seconds in (.2, .8):
        for link in links(watch.rack):
            link.stall(seconds)
        watch.during(seconds + 2 * HEARTBEAT_S)


@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("fresh", [False, True], ids=["known", "fresh"])
def test_no_answer_that_comes_late_counts(watch: Watch, way: Any, fresh: bool) -> None:
    """The way takes longer than the SLO: by the client's own clock nothing can be in time, whatever it believes of the other.

    `fresh`: it met the controller over that way, so that its estimate is wrong by half of the delay.
    """
    watch.rack.to_clients.delay(130, way=way)
    if fresh:
        before = watch.visitor.ask("connections")
        watch.rack.to_clients.cut(.1)
        until(lambda: watch.visitor.ask("state") == "READY" and watch.visitor.ask("connections") > before, "it is back")
    watch.visitor.ask("start", rate=100, seconds=.2, slo_s=.1)
    report = watch.visitor.ask("finish")
    assert len(report["ledger"]) == report["settled"] == 20
    assert 0 not in {code for code, *_ in report["ledger"]}
    watch.rack.to_clients.clear()
    watch.visitor.ask("start", rate=100, seconds=.1, slo_s=2.0)
    assert {code for code, *_ in watch.visitor.ask("finish")["ledger"]} == {0}
