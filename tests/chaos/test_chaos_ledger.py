"""The checks of ledgers: sound ones pass, and each kind of forgery is found."""

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwd.units import NS_PER_MS, NS_PER_S
from tools.chaos_run.check import check
from tools.chaos_run.ledger import CONNECTION_REFUSED, GAVE_UP, OK, Writer, read

SLO_NS = 300 * NS_PER_MS


def asked(number, at_ns=None):
    at_ns = number * 10 * NS_PER_MS if at_ns is None else at_ns
    return ["asked", number, at_ns, at_ns + 1000, SLO_NS, "m"]


def told(number, after_ns=8 * NS_PER_MS, outcome=OK, right=True):
    return ["told", number, number * 10 * NS_PER_MS + after_ns, outcome, right]


def sound(count=20):
    """Requests 0 to `count`, each sent as the wire's id 100 + number and answered."""
    return list(chain.from_iterable(
        (asked(n), ["wired", 100 + n, n], ["replied", 100 + n, n, 0], told(n)) for n in range(count)))


def faults(rows):
    return check(read("c", (json.dumps(row) for row in [["clock", 0, 10**18], *rows])))


def test_a_sound_ledger():
    assert faults(sound()) == []
    refusals = [told(19, 400 * NS_PER_MS, "DEADLINE_MISSED"), told(18, outcome=CONNECTION_REFUSED)]
    assert faults([row for row in sound() if row[:2] not in (["told", 19], ["told", 18])] + refusals) == []


@pytest.mark.parametrize("forged, line", [
    ([told(3)], "c: request 3 (2) has more than one end"),
    ([told(3, outcome="WORKER_LOST")], "c: request 3 (2) has more than one end"),
    ([asked(77)], "c: request 77 got no answer and no refusal"),
    ([told(77)], "c: request 77 ended without having been asked"),
    ([asked(77), told(77, SLO_NS + 6 * NS_PER_MS)], "c: request 77 (6ms late) was answered late as if in time"),
    ([asked(77), told(77, outcome="UNKNOWN_MODEL")], "c: request 77 (UNKNOWN_MODEL) was told what no sound request is told"),
    ([asked(77), told(77, SLO_NS + 3 * NS_PER_S, "WORKER_LOST")],
     "c: request 77 (WORKER_LOST, 3s after its deadline) ended long after its deadline"),
    ([asked(77), told(77, SLO_NS + NS_PER_S, GAVE_UP)],
     "c: request 77 was given up by its client, who had heard nothing"),
    ([asked(77), told(77, right=False)], "c: request 77 got an answer that is not its own"),
    ([asked(5), told(5)], "c: 5 was asked twice"),
    ([["replied", 103, 9, 0]], "c: id 67 (2) was replied to more than once"),
    ([["replied", 103, 9, 110]], "c: id 67 (2) was replied to more than once"),
    ([["replied", 999, 9, 0]], "c: id 3e7 was replied to, but never sent"),
    ([["wired", 103, 9]], "c: 103 was used for two messages"),
    ([["stray", "17 bytes on an idle connection"]], "c: 17 bytes on an idle connection came unasked"),
])
def test_forgeries_are_found(forged, line):
    assert line in faults(sound() + forged)


def test_an_answer_at_its_deadline_is_in_time():
    assert faults([asked(1), told(1, SLO_NS)]) == []


def test_a_ledger_without_requests_is_no_success():
    assert faults([]) == ["c: it asked nothing"]


def test_many_faults_are_counted_and_not_listed():
    lines = faults([asked(number) for number in range(50)])
    assert len(lines) == 4 and lines[-1] == "c: ... and 47 more: got no answer and no refusal"


@given(st.lists(st.sampled_from(["ok", "refused", "none", "twice", "late"]), min_size=1, max_size=40))
def test_exactly_the_requests_that_were_forged(fates):
    rows = []
    for number, fate in enumerate(fates):
        rows += [asked(number)]
        rows += {"ok": [told(number)], "refused": [told(number, outcome="NO_WORKER")], "none": [],
                 "twice": [told(number), told(number)], "late": [told(number, SLO_NS + NS_PER_S)]}[fate]
    lines = faults(rows)
    for fate, words in (("none", "got no answer"), ("twice", "more than one end"), ("late", "late as if in time")):
        assert any(words in line for line in lines) == (fate in fates)


def test_what_a_writer_writes_is_read(tmp_path):
    writer = Writer(tmp_path / "ledger")
    writer.asked(7, 1, 2, SLO_NS, "m")
    writer.wired(70)
    writer.replied(70, 0)
    writer.told(7, OK)
    writer.stray("x")
    writer.close()
    found = read("c", (tmp_path / "ledger").read_text().splitlines())
    assert found.asked[0].until_ns == 1 + SLO_NS and found.asked[0].what == "m"
    assert found.told[0].outcome == OK and found.wired == [70] and found.replied[0].id == 70 and found.strays == ["x"]
    assert abs(found.wall_ns(found.told[0].when_ns) - found.clock[1]) < 60 * NS_PER_S
    with pytest.raises(ValueError):
        read("c", ['["novelty", 1]'])
