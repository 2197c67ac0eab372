"""Verdicts and the facts of a report from made-up rows with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.controller.telemetry import ACTION_ROW, OPEN
from cwd.core import world
from cwd.errors import Code
from cwd.units import NS_PER_MS
from cwd.workload.outcome import EXEC, LOAD, OUTCOME, PENDING, REFUSALS, UNLOAD, Verdict, summary, verdicts

SLO_MS = 100


def outcomes(*given: tuple[int, int]) -> np.ndarray:
    """Rows from (status, latency in ms)."""
    rows = np.zeros(len(given), OUTCOME)
    rows["at_ns"] = np.arange(len(given)) * NS_PER_MS
    rows["sent_ns"] = rows["at_ns"]
    rows["slo_ns"] = SLO_MS * NS_PER_MS
    for row, (status, latency_ms) in zip(rows, given, strict=True):
        row["status"], row["done_ns"] = status, row["at_ns"] + latency_ms * NS_PER_MS
    return rows


def actions(*given: tuple[int, int, int, int, int, int]) -> np.ndarray:
    """Rows from (kind, rows, sent ms, end ms, predicted ms, actual ms)."""
    rows = np.zeros(len(given), ACTION_ROW)
    for row, (kind, count, sent, end, predicted, actual) in zip(rows, given, strict=True):
        row["action_kind"], row["rows"] = kind, count
        row["sent_ns"], row["end_ns"] = sent * NS_PER_MS, end * NS_PER_MS
        row["predicted_ns"], row["actual_ns"] = predicted * NS_PER_MS, actual * NS_PER_MS
    return rows


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_code_has_one_verdict(code: Code) -> None:
    wanted = (Verdict.REFUSED if code in REFUSALS else Verdict.LATE if code is Code.DEADLINE_MISSED else Verdict.FAILED)
    assert verdicts(outcomes((code, 1)))[0] == wanted


def test_an_answer_is_in_time_by_the_intended_time() -> None:
    rows = outcomes((Code.OK, 100), (Code.OK, 101), (PENDING, 5))
    rows["sent_ns"][1] += 50 * NS_PER_MS
    assert verdicts(rows).tolist() == [Verdict.ANSWERED_IN_TIME, Verdict.LATE, Verdict.FAILED]


def test_summary_adds_up() -> None:
    rows = outcomes((Code.OK, 10), (Code.OK, 30), (Code.OK, 200), (Code.DEADLINE_EXPIRED, 1), (Code.DEADLINE_EXPIRED, 1),
                    (Code.QUEUE_FULL, 1), (Code.DEADLINE_MISSED, 150), (Code.CONTROLLER_LOST, 2), (PENDING, 0))
    rows["cold"][1] = 1
    facts = summary(rows)
    assert facts["offered"] == 9
    assert (facts["answered_in_time"], facts["late"], facts["refused"], facts["failed"]) == (2, 2, 3, 2)
    assert facts["refused_by"] == {"DEADLINE_EXPIRED": 2, "QUEUE_FULL": 1}
    assert facts["failed_by"] == {"CONTROLLER_LOST": 1, "UNANSWERED_65535": 1}
    assert facts["cold_starts"] == 1
    assert facts["latency_ms"]["p50"] == 30 and facts["latency_ms"]["max"] == 200
    assert "mean_batch" not in facts


def test_kinds_of_actions_are_the_core_s() -> None:
    assert (LOAD, UNLOAD, EXEC) == (world.ACTION_LOAD, world.ACTION_UNLOAD, world.ACTION_EXEC)


def test_summary_of_actions() -> None:
    found = summary(outcomes((Code.OK, 10)), actions(
        (LOAD, 0, -50, -40, 5, 6), (LOAD, 0, 1, 9, 5, 8), (UNLOAD, 0, 10, 11, 1, 1),
        (EXEC, 1, 2, 20, 10, 12), (EXEC, 4, 3, 30, 10, 7), (EXEC, 2, -5, -4, 10, 99)))
    assert found["resident_max"] == 2
    assert found["loads"] == 1 and found["executions"] == 2
    assert found["mean_batch"] == 2.5
    assert found["prediction_error_ms"] == {
        "infer_p99_over": pytest.approx(1.98), "infer_p99_under": pytest.approx(2.97), "load_p99_over": 3.0,
        "load_p99_under": 0.0}


def test_unfinished_actions_are_counted_apart() -> None:
    rows = actions((EXEC, 3, 1, 0, 10, -1), (EXEC, 1, 2, 9, 10, 10))
    rows["status"][0] = OPEN
    found = summary(outcomes((Code.OK, 10)), rows)
    assert found["mean_batch"] == 1.0 and found["actions_not_done"] == {f"UNANSWERED_{OPEN}": 1}


def test_nothing_offered() -> None:
    facts = summary(outcomes())
    assert facts["offered"] == facts["failed"] == 0 and facts["latency_ms"]["p99"] == 0
