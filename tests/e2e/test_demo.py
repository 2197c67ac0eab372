"""The demo in small: it ends well, its last line has exactly the promised names, and its refusals are upheld by its log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rederive import rederive

ROOT = Path(__file__).resolve().parents[2]
COPIES = 4


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--copies", str(COPIES), "--seconds", "6",
               "--profile-seconds", "2", "--capacity-seconds", "2", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert set(facts) == {"offered", "answered_in_time", "late", "refused", "failed", "cold_starts", "latency_ms", "models",
                          "resident_max", "prediction_error_ms", "mean_batch", "report"}
    assert set(facts["latency_ms"]) == {"p50", "p99", "max"}
    assert set(facts["prediction_error_ms"]) == {f"{kind}_p99_{side}" for kind in ("infer", "load")
                                                 for side in ("over", "under")}
    assert facts["offered"] == sum(facts[name] for name in ("answered_in_time", "late", "refused", "failed")) > 0
    assert facts["failed"] == 0 and facts["cold_starts"] > 0
    assert facts["models"] == 3 * COPIES and 0 < facts["resident_max"] <= COPIES
    assert Path(facts["report"]).stat().st_size > 20_000
    upheld, wrong = rederive(tmp_path / "demo" / "state")
    assert not wrong, "\n".join(wrong[:20])
    # the log also has what was refused before the replay, while the capacity was measured
    assert sum(upheld.values()) >= facts["refused"]
