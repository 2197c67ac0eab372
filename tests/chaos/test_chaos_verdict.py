"""What a run comes to, from ledgers made up: a sound run is sound, and every promise can be seen broken."""

import numpy as np
import pytest

from tools.chaos_run.faults import Done
from tools.chaos_run.ledger import OK, Asked, Ledger, Replied, Told
from tools.chaos_run.report import COLUMNS, picture, table
from tools.chaos_run.schedule import Fault, Kind
from tools.chaos_run.verdict import group_of, judge

BEGIN_WALL_NS, SECONDS, SLO_NS = 10**18, 40.0, 500_000_000
#: each client's own clock when the run begins
CLOCKS_NS = {"native": 5_000, "http": 9 * 10**15, "slow": 1, "flood": 7 * 10**12}


def ledger(name, rate, fate=lambda at_s: OK, took_s=0.008):
    """A client's ledger; `fate(at_s)` is how a request due then ends."""
    found = Ledger(name, clock=(CLOCKS_NS[name], BEGIN_WALL_NS))
    for number in range(round(rate * SECONDS)):
        at_ns = CLOCKS_NS[name] + round(number / rate * 1e9)
        found.asked.append(Asked(number, at_ns, at_ns + 1000, SLO_NS, "m"))
        found.told.append(Told(number, at_ns + round(took_s * 1e9), fate(number / rate), True))
        found.wired.append(number)
        found.replied.append(Replied(number, at_ns, 0))
    return found


def out(begin_s, end_s, outcome="CONTROLLER_LOST"):
    return lambda at_s: outcome if begin_s <= at_s < end_s else OK


def verdict(done, **fates):
    ledgers = {"native": ledger("native", 80, fates.get("native", out(0, 0))),
               "http": ledger("http", 60, fates.get("http", out(0, 0))),
               "slow": ledger("slow", 5, lambda at_s: "DEADLINE_MISSED"),
               "flood": ledger("flood", 50, lambda at_s: "RATE_EXCEEDED" if at_s % 1 < 0.5 else "CREDIT_EXCEEDED")}
    return judge(done, ledgers, BEGIN_WALL_NS, SECONDS)


def fault(kind, at_s, end_s, target="x"):
    return Done(Fault(kind, target, at_s, end_s - at_s), at_s, end_s, target)


LEADER = fault(Kind.KILL_LEADER, 10.0, 10.5)


def test_a_sound_run():
    found = verdict([LEADER, fault(Kind.FLOOD, 20.0, 21.0), fault(Kind.SLOW_CLIENT, 30.0, 31.0)],
                    native=out(10.0, 11.4), http=out(10.0, 11.2, "MODEL_NOT_READY"))
    assert found["broken"] == []
    facts = found["faults"][0]
    assert facts["failover_s"] == pytest.approx(1.41, abs=0.03) and facts["recovered_s"] == pytest.approx(0.86, abs=0.06)
    assert facts["lost"] == 112 and facts["refused"] == 72 and facts["lowest"] == 0.0
    assert found["totals"]["native"] == {"asked": 3200, OK: 3088, "CONTROLLER_LOST": 112}
    assert found["quiet_share"] == {"native": 1.0, "http": 1.0}


@pytest.mark.parametrize("done, fates, words", [
    ([LEADER], {"native": out(10.0, 13.2)}, ["kill leader x at 10.0 s: served again after 3.21 s, 3 s at most are promised"]),
    ([LEADER], {"http": out(10.0, 40.0)}, ["served again never", "http: goodput was not back at 95% of 100.0%"]),
    ([fault(Kind.STALL, 10.0, 11.0)], {"native": out(10.0, 16.5)}, ["native: goodput was after 5.46 s back at 95% of 100.0%"]),
    ([fault(Kind.CUT, 10.0, 11.0)], {"http": out(14.0, 38.0)}, ["http: goodput was back after 0.00 s, but then only"]),
    ([fault(Kind.FLOOD, 10.0, 12.0)], {"http": out(10.0, 10.5)}, ["http was hurt by it: 75.0% in time, 100.0% before"]),
    ([], {"native": out(0.0, 2.0)}, ["native: only 95.0% were in time while nothing happened"]),
    ([LEADER, fault(Kind.CUT, 13.0, 14.0)], {}, ["kill leader x at 10.0 s: only 2.5 s to recover before the next fault"]),
    ([Done(LEADER.fault, 10.0, 10.5, "x", "nobody stood by")], {}, ["kill leader x at 10.0 s: nobody stood by"]),
])
def test_broken_promises(done, fates, words):
    broken = verdict(done, **fates)["broken"]
    for wanted in words:
        assert any(wanted in line for line in broken), broken


def test_faults_that_may_overlap_are_judged_where_there_was_time():
    done = [fault(Kind.CUT, 10.0, 11.0), fault(Kind.STALL, 12.0, 13.0)]
    ledgers = {name: ledger(name, 80, out(10.0, 20.0)) for name in CLOCKS_NS}
    broken = judge(done, ledgers, BEGIN_WALL_NS, SECONDS, overlap=True)["broken"]
    assert not any(line.startswith("cut") for line in broken) and any(line.startswith("stall x") for line in broken)


def test_unruly_clients_that_were_not_have_tested_nothing():
    done = [fault(Kind.FLOOD, 10.0, 11.0), fault(Kind.SLOW_CLIENT, 20.0, 21.0)]
    ledgers = {name: ledger(name, 80) for name in CLOCKS_NS}
    assert judge(done, ledgers, BEGIN_WALL_NS, SECONDS)["broken"] == [
        "the flooding client never met both of its limits", "the slow client was never late"]


def test_a_client_that_did_not_look_at_the_wire_has_tested_nothing():
    ledgers = {name: ledger(name, 80) for name in CLOCKS_NS}
    ledgers["native"].wired.clear()
    ledgers["slow"].replied.clear()
    ledgers["http"].wired.clear()
    lines = [line for line in judge([], ledgers, BEGIN_WALL_NS, SECONDS)["broken"] if "written down" in line]
    assert [line.partition(":")[0] for line in lines] == ["native", "slow"]


def test_what_the_ledgers_say_is_in_the_verdict():
    twice = ledger("native", 80)
    twice.told.append(twice.told[7])
    ledgers = {"native": twice, **{name: ledger(name, 60) for name in ("http", "slow", "flood")}}
    assert judge([], ledgers, BEGIN_WALL_NS, SECONDS)["broken"] == ["native: request 7 (2) has more than one end"]


def test_answers_that_are_wrong_or_late_are_no_goodput():
    found = ledger("http", 60)
    found.told[3] = found.told[3]._replace(right=False)
    found.told[4] = found.told[4]._replace(when_ns=found.asked[4].until_ns + 1)
    group = group_of(found, BEGIN_WALL_NS)
    assert np.flatnonzero(~group.good).tolist() == [3, 4]
    assert group.at_s[60] == pytest.approx(1.0) and group.done_s[60] == pytest.approx(1.008)


def test_the_report(tmp_path):
    ledgers = {name: ledger(name, 60, out(10.0, 11.0)) for name in CLOCKS_NS}
    facts = judge([LEADER, fault(Kind.DELAY, 20.0, 22.0)], ledgers, BEGIN_WALL_NS, SECONDS)["faults"]
    lines = table(facts)
    assert len(lines) == 3 and len(COLUMNS) == 11 and lines[1].startswith("kill leader  x")
    groups = [group_of(ledgers[name], BEGIN_WALL_NS) for name in ("native", "http")]
    picture(tmp_path / "chaos.png", groups, facts, SECONDS, "made up")
    assert (tmp_path / "chaos.png").stat().st_size > 10_000
