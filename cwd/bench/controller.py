"""What a request costs the controller: real sockets, emulated GPUs, zero-length inputs, open loop; beside a bare forwarder.

Both are measured in one run, under the same load from the same generator: CPU time of all threads of the process (user
and system) over the measured interval, per request answered. The forwarder does what any controller must at least do
(cwd/bench/forwarder.py); the ratio says how much of our cost is that. What Python takes at a time while an operator asks
is measured after that, under the same load once more (cwd/bench/chunks.py).

    cwd bench controller --json
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwd.bench.chunks import chunks_under
from cwd.bench.cpu import process_cpu_ns
from cwd.bench.loadgen import Load, LoadGenerator, Report
from cwd.client.admin import Admin
from cwd.config import POLICY
from cwd.errors import CwdError
from cwd.models import profile
from cwd.models.repository import Repository
from cwd.models.spec import ProgramSpec, TensorSpec
from cwd.net.notify import NotifyListener
from cwd.net.sockets import make_context
from cwd.units import NS_PER_MS, NS_PER_US

#: a program that takes nothing in and gives nothing out but one byte: only the way there and back is measured
NOTHING = ProgramSpec(inputs=(), outputs=(TensorSpec("y", "uint8", (1,)),), batch_sizes=(1, 2, 4, 8, 16),
                      factory="cwd.bench.controller:none")
EXEC_NS = 50 * NS_PER_US
LOAD_NS = 100 * NS_PER_US
PAGE_BYTES = 1 << 16
START_S = 300.0


def run(models: Sequence[int] = (60, 4000), rate: float = 20_000.0, seconds: float = 4.0, gpus: int = 8,
        policy: str = POLICY) -> dict[str, Any]:
    """Rows {models, rps, cpu_us, bare_rps, bare_cpu_us, ratio_to_bare, python_...}, and what became of the requests."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        bare_rps, bare_us = _bare(Path(folder), rate, seconds)
        for count in models:
            root = Path(folder) / str(count)
            report, cpu_us, status, chunks = _controller(root, count, rate, seconds, gpus, policy)
            rows.append({
                "models": count, "rps": round(report.rps), "cpu_us": round(cpu_us, 3), "bare_rps": round(bare_rps),
                "bare_cpu_us": round(bare_us, 3), "ratio_to_bare": round(bare_us / cpu_us, 4),
                "answered": report.by_status.get(0, 0), "sent": report.sent,
                "refused": {str(code): n for code, n in report.by_status.items() if code},
                "latency_ms": report.latency_ms, "mean_batch": round(report.mean_batch, 3),
                "python_max_ns": status["loop"]["python_max_ns"], "turn_max_ns": status["counters"]["turn_max_ns"],
                "turns": status["counters"]["turns"], "log_lost": status["counters"]["log_lost"],
                **chunks,
            })
    return {"rows": rows, "rate": rate, "seconds": seconds, "gpus": gpus, "policy": policy, "exec_us": EXEC_NS // 1000}


def _bare(folder: Path, rate: float, seconds: float) -> tuple[float, float]:
    """(requests per second, CPU us per request) of the forwarder."""
    clients, workers = f"ipc://{folder}/bare-c", f"ipc://{folder}/bare-w"
    with _daemon(["-m", "cwd.bench.forwarder", "--clients", clients, "--workers", workers]) as forwarder, \
            _daemon(["-m", "cwd.bench.echo", "--connect", workers]), make_context() as context:
        generator = LoadGenerator(context, clients, bare=True)
        generator.run(Load(handles=(1,), rate=rate, seconds=0.5))
        report, cpu_us = _measured(generator, forwarder.pid, Load(handles=tuple(range(1, 61)), rate=rate,
                                                                  seconds=seconds))
        generator.close()
    return report.rps, cpu_us


def _controller(root: Path, count: int, rate: float, seconds: float, gpus: int, policy: str
                ) -> tuple[Report, float, dict[str, Any], dict[str, Any]]:
    """The same of the controller with `count` models, every one of them on a GPU before it is measured; its status then,
    and how long Python's chunks are under the same load (`chunks_under`)."""
    _make_repository(root / "repo", count)
    settings = {
        "run_dir": str(root / "run"), "state_dir": str(root / "state"), "repository": str(root / "repo"),
        "page_bytes": PAGE_BYTES, "models_max": max(count, 64), "gpus_max": gpus, "credits": 8192, "policy": policy,
    }
    program = ("import json, sys\nfrom cwd.controller.config import ControllerConfig\n"
               "from cwd.controller.daemon import serve\nserve(ControllerConfig(**json.loads(sys.argv[1])))\n")
    worker = ("import json, sys\nfrom cwd.worker.daemon import run_worker\nfrom cwd.worker.options import WorkerOptions\n"
              "run_worker(WorkerOptions(**json.loads(sys.argv[1])))\n")
    options = {"device": f"emulated:{gpus}", "endpoint": f"ipc://{root}/run/workers.sock", "repo": str(root / "repo"),
               "pages": 2 * count // gpus + 16, "page_bytes": PAGE_BYTES}
    with _daemon(["-c", program, json.dumps(settings)]) as controller, \
            _daemon(["-c", worker, json.dumps(options)]), make_context() as context:
        generator = LoadGenerator(context, f"ipc://{root}/run/clients.sock")
        handles = tuple(generator.models().values())
        if len(handles) != count:
            raise CwdError(f"the controller serves {len(handles)} of {count} models")
        _load_all(generator, handles)
        load = Load(handles=handles, rate=rate, seconds=seconds, slo_ns=100 * NS_PER_MS)
        report, cpu_us = _measured(generator, controller.pid, load)
        status = _status(root)
        chunks = chunks_under(generator, load, context, root / "run")
        generator.close()
    return report, cpu_us, status, chunks


def _load_all(generator: LoadGenerator, handles: tuple[int, ...]) -> None:
    """Ask every model until all answer: the measurement is of a warm cluster."""
    for _ in range(20):
        report = generator.run(Load(handles=handles, rate=5000, count=len(handles), seconds=60, slo_ns=1000 * NS_PER_MS))
        if report.by_status.get(0, 0) == len(handles) and not report.cold:
            return
        time.sleep(0.1)
    raise CwdError(f"not every model was loaded: {report.by_status}")


def _measured(generator: LoadGenerator, pid: int, load: Load) -> tuple[Report, float]:
    before_ns = process_cpu_ns(pid)
    report = generator.run(load)
    return report, (process_cpu_ns(pid) - before_ns) / max(report.answered, 1) / 1000


def _status(root: Path) -> dict[str, Any]:
    with Admin(f"ipc://{root}/run/admin.sock", name="bench") as admin:
        return admin.status()


def _make_repository(root: Path, count: int) -> None:
    repository = Repository(root, create=True)
    program = repository.add_program(NOTHING)
    table = {(batch, size_class): EXEC_NS + (batch - 1) * EXEC_NS // 8 for batch, size_class in profile.pairs(NOTHING)}
    profile.write_table(repository, program, "emulated", table, load_ns_per_page=LOAD_NS, page_bytes=PAGE_BYTES)
    for number in range(count):
        repository.add(f"model-{number:05d}", 1, program, {}, seed=number)


@contextlib.contextmanager
def _daemon(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that says READY; it is asked to stop in the end."""
    with NotifyListener() as listener:
        process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, "NOTIFY_SOCKET": listener.path},
                                   stdout=subprocess.DEVNULL)
        try:
            if not listener.wait_ready(START_S, lambda: process.poll() is None):
                raise CwdError(f"{' '.join(arguments[:2])[:60]} did not become ready")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
