"""tools/check_outputs.py in small: every served instance gives what torch gives, and the tool cannot be satisfied by less."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
COPIES = 2
PROGRAMS = 3


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_outputs_are_the_modules() -> None:
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, str(TOOLS / "check_outputs.py"), "--copies", str(COPIES)], check=False,
                          capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert list(facts) == ["instances", "programs", "compared", "alone", "batched", "padded", "cold", "evicted_and_reloaded",
                           "max_abs_difference", "worst"]
    instances = PROGRAMS * COPIES
    assert facts["instances"] == facts["evicted_and_reloaded"] == instances and facts["programs"] == PROGRAMS
    # two visits, each with every sample alone and in flight together: 10 images, 12 lengths of which 8 are padded
    assert facts["alone"] >= 2 * COPIES * (10 + 10 + 12) and facts["compared"] >= 2 * facts["alone"]
    assert facts["padded"] >= 2 * 2 * COPIES * 8
    assert facts["batched"] >= 2 * 2 * instances and facts["cold"] >= 2 * instances
    assert 0 < facts["max_abs_difference"] <= 1e-5 and facts["worst"]["model"].endswith("/1")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_outputs

    return check_outputs


class Fake:
    """A client whose cluster serves `answers[name]`, batches what is submitted together, and holds one model only."""

    def __init__(self, answers: dict[str, np.ndarray], *, batch: int = 2, evicts: bool = True) -> None:
        self.answers = answers
        self.batch = batch
        self.evicts = evicts
        self.resident: set[str] = set()

    def infer(self, name: str, inputs: dict[str, np.ndarray], *, batch: int = 1) -> Any:
        cold = name not in self.resident
        self.resident = ({name} if self.evicts else self.resident | {name})
        return SimpleNamespace(outputs={"y": self.answers[name]}, batch=batch, cold=cold)

    def submit(self, name: str, inputs: dict[str, np.ndarray]) -> Any:
        result = self.infer(name, inputs, batch=self.batch)
        return SimpleNamespace(result=lambda: result)


def found(tool: ModuleType, client: Fake, answers: dict[str, np.ndarray], visits: int = 2) -> tuple[Any, list[str]]:
    """(tally, problems) of some passes over the fake's models; each has a padded request and one that fills its class."""
    cases = [tool.Case(name, b"program", [tool.Sample({}, length, length == 15, {"y": wanted}) for length in (15, 16)])
             for name, wanted in answers.items()]
    tally = tool.Tally()
    for visit in range(1, visits + 1):
        for case in cases:
            tool.ask(client, case, visit, tally)
    return tally, tally.problems(cases)


RIGHT = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([1.0, 3.0], np.float32)}


def test_right_answers_are_enough(tool: ModuleType) -> None:
    tally, problems = found(tool, Fake(RIGHT), RIGHT)
    assert problems == []
    # 2 visits, 2 models, 2 samples, once alone and once together
    assert dataclasses.asdict(tally).items() >= {"compared": 16, "alone": 8, "batched": 8, "padded": 8, "cold": 4}.items()
    assert tally.reloaded == {"a", "b"}


@pytest.mark.parametrize("answers", [
    {**RIGHT, "b": RIGHT["a"]}, {**RIGHT, "b": RIGHT["b"] + 2e-5}, {**RIGHT, "b": RIGHT["b"][:1]},
    {**RIGHT, "b": np.array([1.0, np.nan], np.float32)}])
def test_a_wrong_answer_is_told(tool: ModuleType, answers: dict[str, np.ndarray]) -> None:
    tally, (problem,) = found(tool, Fake(answers), RIGHT)
    assert problem.startswith("an output differs from torch") and tally.worst["model"] == "b"


def test_what_did_not_come_about_is_told(tool: ModuleType) -> None:
    assert len(found(tool, Fake(RIGHT), RIGHT, visits=1)[1]) == 4  # nothing after a reload, in four ways
    assert len(found(tool, Fake(RIGHT, evicts=False), RIGHT)[1]) == 4
    # without batches an instance is never known well enough to count as reloaded
    assert len(found(tool, Fake(RIGHT, batch=1), RIGHT)[1]) == 6
    alike = {"a": RIGHT["a"], "b": RIGHT["a"] + 1e-3}
    (problem,) = found(tool, Fake(alike), alike)[1]
    assert problem.startswith("a and b differ by 1.00e-03")
