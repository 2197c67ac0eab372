"""Ways that stall, break or swallow, under load: one outcome for each request, nothing late in time, and everybody comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rack import HEARTBEAT_S, LOST_S, Rack, Visitor, until

from cwd.errors import Code
from cwd.units import NS_PER_S

pytestmark = pytest.mark.e2e

RATE, SLO_S = 60, .4
#: what a request may be told when the way to a worker, or to its client, fails
WORKERS_FAULT = {Code.OK, Code.WORKER_LOST, Code.DEADLINE_EXPIRED, Code.DEADLINE_UNREACHABLE, Code.DEADLINE_MISSED,
                 Code.QUEUE_FULL}
CLIENTS_FAULT = WORKERS_FAULT | {Code.SLO_BELOW_EXECUTION, Code.CONTROLLER_LOST}


class Run:
    """A load on its way, and its ledger when it has ended."""

    def __init__(self, visitor: Visitor, seconds: float) -> None:
        self.visitor, self.count = visitor, round(RATE * seconds)
        visitor.ask("start", rate=RATE, seconds=seconds, slo_s=SLO_S)

    def outcome(self) -> tuple[Counter[int], list[list[int]]]:
        """code -> how many, and the ledger; each request has ended once."""
        report = self.visitor.ask("finish")
        ledger = report["ledger"]
        assert report["asked"] == self.count == len(ledger)
        assert report["settled"] + report["unsent"] == self.count
        return Counter(code for code, *_ in ledger), ledger


def within(ledger: list[list[int]], begin_s: float, end_s: float) -> set[int]:
    """The codes of those that were sent and expired between two times of the client's clock."""
    return {code for code, sent_ns, deadline_ns, _ in ledger
            if begin_s * NS_PER_S < sent_ns and deadline_ns < end_s * NS_PER_S}


@pytest.fixture
def visitor(rack: Rack, guest: Visitor) -> Iterator[Visitor]:
    guest.ask("connect")
    yield guest
    rack.clear()
    guest.ask("connect")
    until(lambda: names(rack) == ["first", "second", "torch"] and rack.admin.status()["peers"] == 6,
          "the workers, the gateway, the admin and the visitor are there, and nobody else")


def all_in_time(visitor: Visitor) -> None:
    """A load that nothing disturbs ends well."""
    assert set(Run(visitor, .3).outcome()[0]) == {Code.OK}


def names(rack: Rack) -> list[str]:
    """Of the connected workers; one that is there twice is so here."""
    return sorted(row["name"] for row in rack.admin.status()["workers"].values())


def test_a_worker_that_is_cut_off_comes_back(rack: Rack, visitor: Visitor) -> None:
    gone = rack.counter("peers_gone")
    run = Run(visitor, 1.5)
    time.sleep(.3)
    rack.to_workers["first"].cut(.4)
    codes, _ = run.outcome()
    assert set(codes) <= WORKERS_FAULT and codes[Code.OK] > RATE // 2
    until(lambda: rack.counter("peers_gone") == gone + 1 and names(rack) == ["first", "second", "torch"], "it is back, once")
    all_in_time(visitor)


def test_a_worker_that_falls_silent_is_given_up_after_lost(rack: Rack, visitor: Visitor) -> None:
    lost = rack.counter("peers_lost")
    run = Run(visitor, 2.5)
    time.sleep(.5)
    rack.to_workers["first"].cut(silent=True)
    began_s = time.monotonic()
    until(lambda: names(rack) == ["second", "torch"], "the silent worker is given up")
    assert time.monotonic() - began_s >= LOST_S - 2 * HEARTBEAT_S
    assert rack.counter("peers_lost") == lost + 1
    codes, _ = run.outcome()
    assert set(codes) <= WORKERS_FAULT and codes[Code.OK] > RATE
    rack.to_workers["first"].clear()
    until(lambda: names(rack) == ["first", "second", "torch"], "it is back")
    all_in_time(visitor)


def test_a_worker_that_hears_nothing_comes_back(rack: Rack, visitor: Visitor) -> None:
    """Only what goes towards it is swallowed: the controller still hears it, and its actions have no results."""
    gone = rack.counter("peers_gone")
    run = Run(visitor, 2.5)
    time.sleep(.5)
    rack.to_workers["first"].cut(silent=True, way="back")
    until(lambda: rack.counter("peers_gone") > gone, "it gives the controller up, and is missed")
    rack.to_workers["first"].clear()
    until(lambda: names(rack) == ["first", "second", "torch"], "it is back")
    codes, _ = run.outcome()
    assert set(codes) <= WORKERS_FAULT and codes[Code.OK] > RATE
    all_in_time(visitor)


def test_a_stall_of_a_workers_way_loses_no_worker(rack: Rack, visitor: Visitor) -> None:
    gone = rack.counter("peers_gone")
    run = Run(visitor, 1.5)
    time.sleep(.3)
    rack.to_workers["first"].stall(LOST_S / 2)
    codes, _ = run.outcome()
    assert set(codes) <= WORKERS_FAULT and codes[Code.OK] > RATE // 4
    assert rack.counter("peers_gone") == gone and names(rack) == ["first", "second", "torch"]
    all_in_time(visitor)


def test_what_lives_within_a_stall_is_not_in_time(rack: Rack, visitor: Visitor) -> None:
    gone, connections = rack.counter("peers_gone"), visitor.ask("connections")
    run = Run(visitor, 2)
    time.sleep(.3)
    rack.to_clients.stall()
    began_s = visitor.time_s()
    time.sleep(3 * SLO_S)
    ended_s = visitor.time_s()
    rack.to_clients.clear()
    codes, ledger = run.outcome()
    inside = within(ledger, began_s, ended_s)
    assert inside and inside <= CLIENTS_FAULT - {Code.OK, Code.CONTROLLER_LOST}
    assert set(codes) <= CLIENTS_FAULT - {Code.CONTROLLER_LOST} and codes[Code.OK] > 0
    assert rack.counter("peers_gone") == gone and visitor.ask("connections") == connections
    all_in_time(visitor)


def test_a_client_that_is_cut_off_comes_back(rack: Rack, visitor: Visitor) -> None:
    connections = visitor.ask("connections")
    run = Run(visitor, 1.5)
    time.sleep(.3)
    rack.to_clients.cut(.3)
    codes, _ = run.outcome()
    assert set(codes) <= CLIENTS_FAULT and codes[Code.OK] > 0 and codes[Code.CONTROLLER_LOST] > 0
    assert visitor.ask("connect") == "READY" and visitor.ask("connections") > connections
    all_in_time(visitor)


def test_both_ends_of_a_silent_way_find_out(rack: Rack, visitor: Visitor) -> None:
    lost, peers = rack.counter("peers_lost"), rack.admin.status()["peers"]
    run = Run(visitor, 1)
    rack.to_clients.cut(silent=True)
    began_s = visitor.time_s()
    until(lambda: visitor.ask("state") == "CONNECTING", "the client gives the controller up")
    assert visitor.time_s() - began_s >= LOST_S - 2 * HEARTBEAT_S
    until(lambda: rack.counter("peers_lost") == lost + 1, "the controller gives the client up")
    assert rack.admin.status()["peers"] == peers - 1
    codes, ledger = run.outcome()
    assert set(codes) <= CLIENTS_FAULT and Code.OK not in within(ledger, began_s, visitor.time_s())
    rack.to_clients.clear()
    assert visitor.ask("connect") == "READY"
    all_in_time(visitor)


def test_a_client_that_dies_without_a_word_is_found(rack: Rack) -> None:
    """Its host is off the network when it dies, so that no end of a connection is ever heard."""
    lost, peers = rack.counter("peers_lost"), rack.admin.status()["peers"]
    host: Any = rack.host["lonely"]
    visitor = rack.visitor(rack.direct, host="lonely")
    visitor.ask("connect")
    assert rack.admin.status()["peers"] == peers + 1
    host.unplug()
    host.kill()
    until(lambda: rack.counter("peers_lost") == lost + 1, "the controller gives it up")
    assert rack.admin.status()["peers"] == peers
    host.plug()
    visitor = rack.visitor(rack.direct, host="lonely")
    visitor.ask("connect")
    all_in_time(visitor)
    visitor.close()
