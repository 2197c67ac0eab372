"""`cwd top` over a played log: its facts are the twin's, one frame is drawn, and one JSON object is one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from played_log import Player, write_log

pytest.importorskip("rich")
pytest.importorskip("click")

from cwd.cli.main import run  # noqa: E402
from cwd.observe.verdicts import outcome_of  # noqa: E402


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Player]:
    monkeypatch.setenv("CWD_RUN_DIR", str(tmp_path / "run"))
    player = Player(Random(11))
    player.change_model = player.tick  # type: ignore[method-assign]
    for _ in range(1500):
        player.step()
    write_log(tmp_path, player.records(), [f"model {slot} m-{slot}/1" for slot in range(6)] + ["gpu 0 left"])
    return tmp_path, player


def ask(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    # nobody answers at that endpoint: the log alone is looked at
    assert run(["top", "--once", "--state-dir", str(folder), "--admin-endpoint", f"ipc://{folder}/no.sock", *arguments]) == 0
    return capsys.readouterr().out


def test_facts_of_the_whole_log(played: tuple[Path, Player], capsys: pytest.CaptureFixture[str]) -> None:
    folder, player = played
    facts: dict[str, Any] = json.loads(ask(folder, capsys, "--json", "--window", "10s", "--models", "3"))
    outcomes = [0] * 6
    for code, number in player.codes.items():
        outcomes[outcome_of(code)] += number
    assert list(facts["replies"].values()) == outcomes
    assert facts["attainment"] == pytest.approx(outcomes[0] / (sum(outcomes) - outcomes[3]), abs=1e-5)
    assert facts["alive"] is False and facts["status"] is None and facts["policy"] == "cwd"
    assert facts["in_flight"] == len(player.open) and facts["lost_records"] == player.lost
    asked = sorted((sum(number for (handle, _), number in player.by_model.items() if handle == slot) for slot in range(6)),
                   reverse=True)
    rates = [row["requests_per_s"] * facts["window_s"] for row in facts["models"]]
    assert rates == pytest.approx(asked[:3], rel=.02) and len(facts["models"]) == 3
    there = {row["gpu"]: row for row in facts["gpus"]}
    assert set(player.total) <= set(there)
    for gpu in player.total:
        assert there[gpu]["models"] == len(player.resident[gpu]) and there[gpu]["pages_free"] == player.free[gpu]


def test_a_window_is_the_end_of_the_log(played: tuple[Path, Player], capsys: pytest.CaptureFixture[str]) -> None:
    folder, player = played
    facts = json.loads(ask(folder, capsys, "--json", "--window", "300ms"))
    late = [row for row in player.rows if row["now_ns"] > player.now_ns - 300_000_000]
    assert 0 < sum(facts["replies"].values()) == sum(row["kind"] in (33, 48) for row in late)


def test_a_frame(played: tuple[Path, Player], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = played
    text = ask(folder, capsys, "--window", "1h")
    for wanted in ("no controller answers", "in time", "exec lane", "hottest models", "m-0/1", "left", "records are missing"):
        assert wanted in text, wanted


def test_without_a_log_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--once", "--state-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [f"cwd: error: {tmp_path}: no log here"]
