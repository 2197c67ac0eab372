"""Each refusal's reason, derived a second time from the log (rederive.py), on logs of a real cluster under strain.

The emulated worker keeps the timing real and cheap; the demo's own log is judged the same way.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rederive import EXEC, judge, rederive

from cwd.controller.record import RECORD, Kind
from cwd.controller.replay import replay
from cwd.controller.telemetry import events, log_parts, read_header, read_log
from cwd.errors import Code
from cwd.units import NS_PER_MS

HEADER = {"core": {"requests_max": 2, "attempts_max": 3, "margin_max_ns": NS_PER_MS, "client_ns": 0}}
MODEL, GPU, CLIENT = 7, 0, 3
#: as the fixture gives it: the log, the client's counts, its rows
Strained = tuple[Path, dict[str, int], np.ndarray]


def record(kind: Kind, now_ms: float, **columns: int) -> np.void:
    row = np.zeros(1, RECORD)[0]
    row["kind"], row["now_ns"], row["gpu"], row["model"] = kind, now_ms * NS_PER_MS, -1, -1
    for name, value in columns.items():
        row[name] = value
    return row


def world() -> list[np.void]:
    """One GPU with one program (10 ms alone, 20 ms to load) and one model that is not loaded."""
    return [
        record(Kind.PROGRAM, 0, id=0, a=1, b=1, c=1),
        record(Kind.SEED, 0, id=0, a=0, b=0, c=0, d=10 * NS_PER_MS),
        record(Kind.LOAD_SEED, 0, id=0, a=0, b=20 * NS_PER_MS),
        record(Kind.JOINED, 0, gpu=GPU, a=0, b=100),
        record(Kind.PREPARED, 0, gpu=GPU, id=0, a=1),
        record(Kind.MODEL_ADDED, 0, model=MODEL, id=0, a=1),
    ]


def asked(now_ms: float, request: int, slo_ms: float, status: int = 0) -> np.void:
    return record(Kind.ARRIVED, now_ms, model=MODEL, id=request, a=CLIENT, c=slo_ms * NS_PER_MS, status=status)


def refused(now_ms: float, request: int, code: Code, waited_ms: float = 0.0, possible_ms: float = 0.0) -> np.void:
    return record(Kind.REPLY, now_ms, id=request, a=CLIENT, status=code, e=waited_ms * NS_PER_MS,
                  f=possible_ms * NS_PER_MS)


@pytest.mark.parametrize(("slo_ms", "code", "upheld"), [
    (9, Code.SLO_BELOW_EXECUTION, True),
    (40, Code.SLO_BELOW_EXECUTION, False),
    (25, Code.DEADLINE_UNREACHABLE, True),
    (9, Code.DEADLINE_UNREACHABLE, False),
    (100, Code.DEADLINE_UNREACHABLE, False),
    (100, Code.QUEUE_FULL, False),
    (100, Code.NO_WORKER, False),
    (100, Code.WORKER_LOST, False),
    (100, Code.CONTROLLER_LOST, False),
])
def test_a_refusal_at_arrival(slo_ms: float, code: Code, upheld: bool) -> None:
    log = [*world(), asked(1, 1, slo_ms, code), refused(1, 1, code, possible_ms=0)]
    found, wrong = judge(HEADER, log)
    assert (found == {code.name: 1} and not wrong) == upheld
    assert len(wrong) == (not upheld)


def test_a_reply_that_contradicts_itself() -> None:
    log = [*world(), asked(1, 1, 30, Code.DEADLINE_UNREACHABLE),
           refused(1, 1, Code.DEADLINE_UNREACHABLE, possible_ms=29)]
    assert "own word" in judge(HEADER, log)[1][0]


def test_work_in_front_justifies_a_refusal() -> None:
    before = [asked(1, 1, 500), asked(1, 2, 500)]
    last = [asked(2, 3, 50, Code.DEADLINE_UNREACHABLE), refused(2, 3, Code.DEADLINE_UNREACHABLE)]
    assert judge(HEADER, [*world(), *before, *last])[0] == {"DEADLINE_UNREACHABLE": 1}
    assert judge(HEADER, [*world(), *last])[1]


def test_full_and_without_a_worker_and_lost() -> None:
    full = [asked(1, 1, 500), asked(1, 2, 500), asked(1, 3, 500, Code.QUEUE_FULL), refused(1, 3, Code.QUEUE_FULL)]
    assert judge(HEADER, [*world(), *full])[0] == {"QUEUE_FULL": 1}
    gone = [record(Kind.LOST, 1, gpu=GPU), asked(2, 1, 500, Code.NO_WORKER), refused(2, 1, Code.NO_WORKER)]
    assert judge(HEADER, [*world(), *gone])[0] == {"NO_WORKER": 1}
    lost = [asked(1, 1, 500), record(Kind.LOST, 5, gpu=GPU), refused(6, 1, Code.WORKER_LOST, 5)]
    assert judge(HEADER, [*world(), *lost])[0] == {"WORKER_LOST": 1}


def tried(began_ms: float, action: int, status: Code | None) -> list[np.void]:
    """An execution of one request, which the worker has 10 ms later for this; never heard of again with None."""
    begun = record(Kind.ACTION, began_ms, gpu=GPU, model=MODEL, id=action, flag=EXEC, c=1, h=1,
                   f=(began_ms + 5) * NS_PER_MS, g=10 * NS_PER_MS)
    return [begun] if status is None else [begun, record(Kind.DONE, began_ms + 10, id=action, status=status)]


@pytest.mark.parametrize(("statuses", "upheld"), [
    ((Code.TOO_LATE, Code.TOO_LATE, Code.TOO_LATE), True),
    ((Code.LANE_FULL, Code.TOO_LATE, None), True),
    ((Code.TOO_LATE, Code.TOO_LATE), False),
    ((Code.LANE_FULL, Code.LANE_FULL, Code.LANE_FULL), False),
    ((Code.TOO_LATE, Code.TOO_LATE, Code.OK), False),
])
def test_a_worker_not_heard_of_in_time_is_as_good_as_lost(statuses: tuple[Code | None, ...], upheld: bool) -> None:
    log = [asked(1, 1, 500), *(each for n, status in enumerate(statuses) for each in tried(20 * n + 2, n, status)),
           refused(100, 1, Code.WORKER_LOST, waited_ms=99)]
    assert (not judge(HEADER, [*world(), *log])[1]) == upheld


def test_given_up_not_before_it_was_hopeless() -> None:
    early = [asked(1, 1, 500), refused(100, 1, Code.DEADLINE_EXPIRED, waited_ms=99)]
    late = [asked(1, 1, 500), refused(480, 1, Code.DEADLINE_EXPIRED, waited_ms=479)]
    assert judge(HEADER, [*world(), *late])[0] == {"DEADLINE_EXPIRED": 1}
    assert "were enough" in judge(HEADER, [*world(), *early])[1][0]


def test_a_reply_to_nobody() -> None:
    assert judge(HEADER, [*world(), refused(1, 9, Code.DEADLINE_EXPIRED)])[1]


@pytest.mark.e2e
def test_every_refusal_of_a_strained_cluster_is_upheld(strained: Strained) -> None:
    log, told, _ = strained
    upheld, wrong = rederive(log)
    assert not wrong, "\n".join(wrong[:20])
    # what the client was told is in the log (which has more: a client gives up on a refusal that comes too late), and
    # the strain brought out every kind that it was to
    assert all(upheld.get(name, 0) >= count for name, count in told.items()), (upheld, told)
    assert {"DEADLINE_UNREACHABLE", "SLO_BELOW_EXECUTION"} <= set(told)


@pytest.mark.e2e
def test_a_refused_client_is_told_when_it_could_have_been_answered(strained: Strained) -> None:
    """What the rules above judge is the log's figure: the client's own must be the same ones."""
    log, _, rows = strained
    told = Counter(rows["earliest_ns"][rows["status"] == Code.DEADLINE_UNREACHABLE].tolist())
    replies = events(read_log(log), Kind.REPLY)
    logged = Counter(replies["earliest_ns"][replies["status"] == Code.DEADLINE_UNREACHABLE].tolist())
    assert told[0] < told.total() and told <= logged, "a client gives up on a refusal that comes too late: it has fewer"


@pytest.mark.e2e
def test_a_forged_reason_is_found_out(strained: Strained) -> None:
    """The same log with each refusal's code exchanged for another one: most of them must be noticed."""
    path, _, _ = strained
    header, log = read_header(log_parts(path)[0])[0], read_log(path).copy()
    swap = {Code.DEADLINE_UNREACHABLE: Code.SLO_BELOW_EXECUTION, Code.SLO_BELOW_EXECUTION: Code.DEADLINE_UNREACHABLE}
    forged = 0
    for index in np.flatnonzero(log["kind"] == Kind.REPLY):
        other = swap.get(Code(int(log["status"][index])))
        if other is not None:
            log["status"][index] = other
            forged += 1
    _, wrong = judge(header, log)
    assert forged > 50 and len(wrong) > 0.8 * forged


@pytest.mark.e2e
def test_the_log_lived_again_decides_the_same(strained: Strained) -> None:
    again = replay(str(strained[0]))
    assert not again.differences, "\n".join(again.differences)
    assert again.counts["replies"] > 1000 and again.counts["actions"] > 100
