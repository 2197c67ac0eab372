"""The GPU check without a GPU: every step with the stand-in, what is recorded of those that fail, and that faults show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cwd.bench.gpu import bars, check, graphs, thousands  # noqa: E402
from cwd.bench.gpu.host_rig import HostRig  # noqa: E402
from cwd.bench.gpu.models_names import RESNET  # noqa: E402
from cwd.bench.gpu.thousands import TOLERANCE, prediction_errors  # noqa: E402
from cwd.bench.gpu.timing import Deadline, spread_us  # noqa: E402
from cwd.bench.gpu.workbench import Workbench  # noqa: E402
from cwd.worker.backends.gpu import HostGpu  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.py"
BROKEN = check.Step("broken", "no_such_module", 5, 0, 1)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(results, what the file held whenever a step began, the file) of a whole dry run with a broken step in it."""
    path, seen = tmp_path_factory.mktemp("gpu") / "results.json", {}

    def say(text: str) -> None:
        name = text.split(" ")[0]
        if name in names and path.exists():
            seen[name] = {step: record["status"] for step, record in json.loads(path.read_text())["steps"].items()}

    steps = [*check.STEPS[:3], BROKEN, *check.STEPS[3:]]
    names = [step.name for step in steps]
    run = check.Check(HostRig(), path, commit="abc", budget_s=600, say=say)
    return run.run(steps), seen, path


def test_every_step_has_a_result_and_one_that_raises_stops_no_other(dry):
    results, _, _ = dry
    statuses = {name: step["status"] for name, step in results["steps"].items()}
    assert statuses == {**{step.name: "done" for step in check.STEPS}, "broken": "failed"}, results["steps"]
    assert "ModuleNotFoundError" in results["steps"]["broken"]["error"][-1]


def test_the_file_is_written_after_each_step(dry):
    results, seen, path = dry
    names = list(results["steps"])
    for name, before in seen.items():
        assert list(before) == names[:names.index(name)] and "running" not in before.values()
    assert len(seen) == len(names) - 1
    stored = json.loads(path.read_text())
    assert stored == results and stored["dry_run"] and stored["commit"] == "abc"


def test_the_table_has_every_bar_with_a_figure(dry):
    results, _, _ = dry
    assert [row["text"] for row in results["bars"]] == [bar.text for bar in bars.BARS]
    assert [row["text"] for row in results["bars"] if row["verdict"] == bars.NOT_MEASURED] == []
    shown = bars.table(results)
    assert all(bar.text in shown for bar in bars.BARS) and "a dry run" in shown.splitlines()[0]


def test_what_does_not_depend_on_time_is_as_it_should_be(dry):
    figures = {name: step["figures"] for name, step in dry[0]["steps"].items()}
    assert figures["E2"]["wrong"] == [] and len(figures["E2"]["ways"]) == 5
    for model in figures["E3"]["models"].values():
        assert model["difference_max"] < 1e-4 < 1e-3 < model["difference_of_another"]
        assert model["not_captured"] == 0 and len(model["captures"]) >= len(model["tiers"])
    assert figures["E5"]["alias"] and figures["E5"]["remap"] == {
        "captured": True, "other pages": True, "in another order": True, "back again": True}
    assert figures["tier2"]["tier"] == "mapped" and figures["tier2"]["difference_max"] < 1e-4
    many = figures["E7"]
    assert many["wrong"] == 0 and many["compared"] == many["sampled"] > 0 and many["allocations"] == 0
    assert many["difference_of_another"] > 10 * TOLERANCE
    assert many["loads"] - many["unloads"] <= many["pool_instances"] < many["instances_used"]
    for phase in ("b1 alone", "b1 with LOADs", "b16 alone", "b16 with LOADs"):
        assert figures["E6"][phase]["n"] > 0 and (figures["E6"][phase]["device"]["p50_us"] > 0)


def test_decisions_are_made(dry):
    found = dry[0]["decisions"]
    assert {"arena", "depth", "kernel", "tier1", "tier2", "exec_wait", "depth_beside_executions"} <= set(found), found
    assert len(found["tier1"]) == 5 + 5 + 3


class LossyGpu(HostGpu):
    """Every third copy of a page does not happen."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if target.numel() == HostRig.sizes.page_bytes:
            self.pages += 1
            if self.pages % 3 == 0:
                return
        super().copy(target, source)


def test_an_instance_that_is_not_as_it_was_loaded_is_found(tmp_path, monkeypatch):
    rig = HostRig()
    rig.make_gpu = lambda host_bytes=0: LossyGpu()
    monkeypatch.setattr(graphs, "_SHARES", ((RESNET, 0.1),))
    out: dict = {}
    graphs.run(Workbench(rig, tmp_path, lambda text: None), Deadline(0.5), out)
    rows = bars.verdicts({"E3": {"figures": out}})
    assert next(row for row in rows if RESNET in row["text"])["verdict"] == bars.MISSED


def test_figures_of_what_was_done_before_a_fault_are_kept(tmp_path, monkeypatch):
    bench, out = Workbench(HostRig(), tmp_path, lambda text: None), {}
    monkeypatch.setattr(thousands, "_BATCHES", [1, 3])  # no program has batches of three
    with pytest.raises(RuntimeError, match="EXEC of model"):
        thousands.run(bench, Deadline(3), out)
    assert out["loads"] > 0 and "compared" not in out


def test_where_no_time_is_left_it_is_said(tmp_path):
    results = check.Check(HostRig(), tmp_path / "out.json", commit="abc", budget_s=0).run(check.STEPS)
    assert {step["status"] for step in results["steps"].values()} == {"no time left"}
    assert {row["verdict"] for row in results["bars"]} == {bars.NOT_MEASURED}


_HANGS = """
import sys, time, types
from pathlib import Path
from cwd.bench.gpu import check
from cwd.bench.gpu.host_rig import HostRig
check.GRACE_S = 0.3
sys.modules["cwd.bench.gpu.sleeper"] = types.SimpleNamespace(run=lambda bench, until, out: time.sleep(60))
check.Check(HostRig(), Path(sys.argv[1]), commit="abc", budget_s=1).run([check.Step("sleeper", "sleeper", 1, 0, 1)])
"""


def test_a_step_that_hangs_ends_with_what_there_is(tmp_path):
    done = subprocess.run([sys.executable, "-c", _HANGS, str(tmp_path / "out.json")], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 3 and "hung" in done.stdout, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())["steps"]["sleeper"]
    assert record["status"] == "hung" and any("lambda" in line for line in record["error"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run([sys.executable, str(TOOL), "--out", str(tmp_path / "out.json")], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and "nothing was measured" in done.stdout
    assert not (tmp_path / "out.json").exists()


def test_spreads_and_predictions():
    assert spread_us([]) == {"n": 0}
    assert spread_us(np.arange(1, 1001) * 1000) == {"n": 1000, "p50_us": 501, "p99_us": 991, "p999_us": 1000, "max_us": 1000}
    assert prediction_errors(np.arange(10)) == []
    assert prediction_errors(np.array([5] * 10 + [9, 5])) == [4, 0]


def test_a_figure_that_is_no_number_reaches_nothing():
    steps = {"E3": {"figures": {"models": {RESNET: {"difference_max": float("inf")}}}},
             "E7": {"figures": {"wrong": 0, "allocations": 1}}}
    found = {row["text"]: row["verdict"] for row in bars.verdicts(steps)}
    assert found[f"{RESNET}, swapped: largest difference to eager"] == bars.MISSED
    assert found["wrong outputs"] == bars.REACHED and found["memory asked of the driver while serving"] == bars.MISSED
