"""The whole check: one step behind the other within a budget, results on disk after each, verdicts and decisions last.

A step that raises is recorded and the next goes on. One that does not come back by itself is recorded as hung, by a
thread that watches, and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cwd.bench.gpu import bars
from cwd.bench.gpu.decisions import decide
from cwd.bench.gpu.rig import Rig
from cwd.bench.gpu.timing import Deadline, Skip
from cwd.bench.gpu.workbench import Workbench

DONE, SKIPPED, FAILED, NO_TIME, HUNG, RUNNING = "done", "skipped", "failed", "no time left", "hung", "running"
BUDGET_S = 520.0
#: past the budget, for steps that overrun; then the process ends
GRACE_S = 40.0
_TRACEBACK_LINES = 8


class Step(NamedTuple):
    """`seconds` of a whole budget, less of a smaller one, at least `least_s` or it is not begun; `dry_s` of a dry run."""

    name: str
    module: str
    seconds: float
    least_s: float
    dry_s: float


#: in the order of what later steps and decisions need; those that could spoil a process come last
STEPS = (
    Step("E0", "facts", 10, 1, 2),
    Step("E1", "copies", 35, 5, 3),
    Step("E2", "gather", 35, 5, 3),
    Step("E3", "graphs", 110, 20, 8),
    Step("E6", "jitter", 70, 20, 4),
    Step("E7", "thousands", 110, 40, 4),
    Step("E4", "interference", 45, 10, 4),
    Step("replay", "steady", 62, 8, 2),
    Step("refused", "refused", 3, 1, 1),
    Step("E5", "mappings", 30, 5, 3),
    Step("tier2", "mapped", 10, 3, 2),
)


class Check:
    """Runs steps; `results` is what is written to `path` after each of them."""

    def __init__(self, rig: Rig, path: Path, *, commit: str, budget_s: float = BUDGET_S,
                 say: Callable[[str], None] = lambda text: None) -> None:
        self.rig, self.path, self.say, self.budget_s = rig, path, say, budget_s
        self.results: dict[str, Any] = {
            "device": rig.kind, "commit": commit, "dry_run": rig.dry, "budget_s": budget_s,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "steps": {}}
        self._over = threading.Event()

    def run(self, steps: Sequence[Step]) -> dict[str, Any]:
        """All steps in turn; returns the results, as the file has them."""
        deadline, threads = Deadline(self.budget_s), [threading.Thread(target=self._watch, daemon=True)]
        threads[0].start()
        faulthandler.dump_traceback_later(self.budget_s + GRACE_S + 20, exit=True)
        try:
            with tempfile.TemporaryDirectory(prefix="cwd-gpu-") as folder, _compiling():
                bench = Workbench(self.rig, Path(folder), self.say)
                part = min(1.0, self.budget_s / max(sum(step.seconds for step in steps), 1.0))
                for step in steps:
                    wanted_s = step.dry_s if self.rig.dry else max(part * step.seconds, step.least_s)
                    self._step(step, bench, deadline, wanted_s)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._over.set()
        self._write()
        return _plain(self.results)

    def _step(self, step: Step, bench: Workbench, deadline: Deadline, wanted_s: float) -> None:
        seconds, begin = min(wanted_s, deadline.left_s), time.monotonic()
        record: dict[str, Any] = {"status": RUNNING, "took_s": 0.0, "budget_s": seconds, "figures": {}}
        self.results["steps"][step.name] = record
        bench.found[step.name] = record["figures"]
        if seconds < (min(step.least_s, wanted_s / 2) if self.rig.dry else step.least_s):
            record["status"], record["reason"] = NO_TIME, f"{seconds:.0f} s of the budget were left, it needs {step.least_s:g}"
            self._write()
            return
        self.say(f"{step.name} ({step.module}), {seconds:.0f} s")
        try:
            importlib.import_module(f"cwd.bench.gpu.{step.module}").run(bench, Deadline(seconds), record["figures"])
            record["status"] = DONE
        except Skip as reason:
            record["status"], record["reason"] = SKIPPED, str(reason)
        except Exception as error:
            record["status"], record["error"] = FAILED, _last_lines(error)
            self.say("\n".join(record["error"]))
        try:
            self.rig.settle()
        except Exception as error:
            record["after"] = _last_lines(error)
        record["took_s"] = time.monotonic() - begin
        self._write()

    def _write(self) -> None:
        steps = self.results["steps"]
        self.results["bars"], self.results["decisions"] = bars.verdicts(steps), _decided(steps)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(self.results), indent=1) + "\n"
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(text)
        os.replace(new, self.path)

    def _watch(self) -> None:
        """End a process that hangs, with what there is."""
        if self._over.wait(self.budget_s + GRACE_S):
            return
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        for record in self.results["steps"].values():
            if record["status"] == RUNNING:
                record["status"] = HUNG
                record["error"] = [] if frame is None else [
                    line.rstrip() for line in traceback.format_stack(frame)[-_TRACEBACK_LINES:]]
        self._write()
        print(bars.table(self.results), flush=True)
        os._exit(3)


def _decided(steps: dict[str, Any]) -> dict[str, Any]:
    try:
        return decide(steps)
    except Exception as error:  # a decision that fails must not cost the figures
        return {"error": _last_lines(error)}


def _last_lines(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).rstrip().splitlines()[-_TRACEBACK_LINES:]


def _plain(value: Any) -> Any:
    """What JSON has: numpy's numbers as Python's, and no number that is none."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Inside, a process compiles the worker's kernels for the steps that will want them; it takes minutes once."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(
        [sys.executable, "-c", "from cwd.worker.warm import warm_device; warm_device()"], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
    try:
        yield
    finally:
        child.kill()
        child.wait()
