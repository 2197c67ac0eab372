"""A run live and in the simulator, in small: the log replays, both meet the same requests, and the facts are whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_live_vs_sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(ROOT / "tools" / "live_vs_sim.py"), "--copies", "3", "--seconds", "6", "--load", "2.5",
               "--profile-seconds", "0.5", "--capacity-seconds", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["replayed"]["differences"] == [] and facts["replayed"]["actions"] > 0
    for side in ("live", "simulated"):
        found = facts[side]
        assert sum(found["by_code"].values()) == facts["requests"] > 0 and "UNANSWERED" not in found["by_code"]
        assert 0 < found["in_time"] == found["by_code"]["OK"] and found["execs"] > 0
    assert facts["goodput_ratio"] == pytest.approx(
        facts["simulated"]["goodput_rps"] / facts["live"]["goodput_rps"], abs=1e-3)
    assert facts["refused_in_both"] <= min(facts["live"]["refused"], facts["simulated"]["refused"])
    durations = facts["durations"]
    assert durations["taken"] <= durations["live"]
    # what the simulated worker refused, since its window had passed, did not begin
    begun = sum(durations[name] for name in ("taken", "repeated", "never_run"))
    assert 0 < begun <= facts["simulated"]["execs"] + facts["simulated"]["loads"]
    assert Path(facts["report"]).stat().st_size > 10_000
    # the same log again, in another process and without a live run: the same facts
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import live_vs_sim

    live_vs_sim.main(["--log", str(tmp_path / "run" / "state"), "--out", str(tmp_path / "again")])
    assert {**json.loads(capsys.readouterr().out), "report": ""} == {**facts, "report": ""}
    assert (tmp_path / "again" / "report.png").stat().st_size > 10_000
