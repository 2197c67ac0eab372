"""tools/early_exit.py in small, on the CPU worker: results teach the controller which application takes long, and it acts on it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from cwd.errors import Code

TOOLS = Path(__file__).resolve().parents[2] / "tools"
VERDICTS = ("answered_in_time", "late", "refused", "failed")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(TOOLS))
    import early_exit

    return early_exit


@pytest.mark.e2e
def test_applications_are_learned_from_results_and_kept_apart(tool: ModuleType, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(["--policies", "cwd", "--seconds", "2", "--profile-seconds", "0.5", "--capacity-seconds", "1", "--load", "1",
               "--out", str(tmp_path / "run"), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)["policies"]["cwd"]
    assert found["offered"] == sum(found[name] for name in VERDICTS) > 100 and found["answered_in_time"] > 0
    assert found["failed"] == 0 and set(found["refused_by"]) <= {Code.DEADLINE_UNREACHABLE.name, Code.DEADLINE_EXPIRED.name,
                                                                 Code.SLO_BELOW_EXECUTION.name}
    assert all(found[name] == sum(found["apps"][app][name] for app in tool.APPS) for name in ("offered", *VERDICTS))
    # the log lived again decides the same, and what the core then knows it knew: nobody told it but results
    assert found["replayed"]["actions"] > 0 and found["replayed"]["differences"] == []
    assert found["dynamic"] and found["stretch"]["slow"] > 2 * found["stretch"]["quick"] > 0
    # by chance one batch in three of two requests has both, and five in six of eight
    assert found["shared_batches"] > 10 and found["of_one_app"] > 0.8 * found["shared_batches"]


def test_features_are_sure_at_once_or_not(tool: ModuleType) -> None:
    """The requests of an application come in turn from a seeded pool, and only the quick ones' tokens have much in common."""
    shape = (16, 128)
    spread = {}
    for app, strength in tool.STRENGTHS.items():
        one, same = (tool.Features(shape, strength, 3) for _ in range(2))
        first = one.make()[0]["features"]
        assert first.shape == shape and (first == same.make()[0]["features"]).all()
        assert (first != one.make()[0]["features"]).any()
        spread[app] = abs(first.mean(0)).mean()
    assert spread["quick"] > 10 * spread["slow"]
