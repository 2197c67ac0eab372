"""The report's files: they are written, they say the same, and the picture is a picture."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from cwd.controller.telemetry import ACTION_ROW
from cwd.errors import Code, CwdError
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.workload.outcome import EXEC, LOAD, OUTCOME, PENDING, Rows
from cwd.workload.report import write_report


def made_up(count: int) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(5)
    rows = np.zeros(count, OUTCOME)
    rows["at_ns"] = np.sort(rng.integers(0, 20 * NS_PER_S, count))
    rows["done_ns"] = rows["at_ns"] + rng.integers(1, 90 * NS_PER_MS, count)
    rows["slo_ns"] = 100 * NS_PER_MS
    rows["cold"] = rng.random(count) < 0.1
    rows["status"] = rng.choice([Code.OK, Code.DEADLINE_EXPIRED, Code.DEADLINE_MISSED, PENDING], count,
                                p=[0.9, 0.05, 0.04, 0.01])
    actions = np.zeros(count, ACTION_ROW)
    actions["action_kind"] = rng.choice([EXEC, LOAD], count)
    actions["sent_ns"] = actions["end_ns"] = rows["done_ns"] + 10**15
    actions["rows"] = rng.integers(1, 9, count)
    actions["predicted_ns"] = 5 * NS_PER_MS
    actions["actual_ns"] = rng.integers(4 * NS_PER_MS, 6 * NS_PER_MS, count)
    return rows, actions


def test_report(tmp_path: Path) -> None:
    rows, actions = made_up(500)
    facts = write_report(tmp_path / "deep" / "report", "a title", rows, actions, started_ns=10**15, about={"trace": "t"})
    png = Path(facts["report"]).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1200 and height > 1200
    stored = json.loads((tmp_path / "deep" / "report" / "report.json").read_text())
    assert stored["trace"] == "t" and {name: stored[name] for name in facts} == facts
    assert facts["loads"] + facts["executions"] == 500
    assert (np.load(tmp_path / "deep" / "report" / "requests.npy") == rows).all()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("status", [Code.OK, Code.NO_WORKER, PENDING])
def test_the_smallest_replays_draw(tmp_path: Path, count: int, status: int) -> None:
    rows, actions = made_up(count)
    rows["status"] = status
    assert write_report(tmp_path, "small", rows, actions)["offered"] == count
    assert write_report(tmp_path, "small", rows, None)["offered"] == count


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CwdError, match="file"):
        write_report(tmp_path / "file", "t", *made_up(1))
