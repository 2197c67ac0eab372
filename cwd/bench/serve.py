"""`cwd bench serve`: goodput under an SLO, in the manner of Clockwork's figure 5, on a CPU.

`instances` copies of the 5-million-parameter convnet, each with its own weights, `inflight` closed loops against each;
a loop that is refused within 2 ms waits 1 ms. The worker has one core; the controller and the clients share another.
The bound is what the same module does when it is called directly in its best batch size, on the worker's core. A machine
that others share is not the same for long, so each row is `rounds` of both in turns, and compares their means.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwd.cluster import LocalCluster
from cwd.errors import CwdError
from cwd.units import parse_duration_ns

MODEL = "convnet"
PROGRAM = "convnet5m"
SLOS = ("25ms", "50ms", "100ms", "250ms", "500ms")
_PIN = "import os, runpy, sys; os.sched_setaffinity(0, {{{core}}}); sys.argv = sys.argv[1:]; " \
       "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def run(slos: Sequence[str] = SLOS, instances: int = 15, inflight: int = 16, seconds: float = 4.0, rounds: int = 3,
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Goodput at each SLO: {"rows": [{slo_ms, goodput_rps, bound_rps, ratio, attempts_rps, ...}], ...}."""
    cores = sorted(os.sched_getaffinity(0))
    ours, workers = cores[0], cores[1 % len(cores)]
    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = str(Path(folder) / "models")
        payload_bytes = prepare(repository, instances, workers, progress)
        with _pinned(workers, "cwd.bench.bound", "--repository", repository, "--model", f"{MODEL}-000",
                     stdin=subprocess.PIPE) as bound:
            try:
                with LocalCluster(repository, device="cpu", pool=f"{instances * 20 + 20}MiB", page="1MiB",
                                  cores={"controller": [ours], "worker": [workers]}, controller={"log": False},
                                  progress=progress) as cluster:
                    cluster.wait_servable(timeout=120)
                    rows = [_row(cluster, bound, slo, inflight, seconds, rounds, payload_bytes, ours, progress)
                            for slo in slos]
            finally:
                bound.kill()
    return {"instances": instances, "inflight": inflight, "cores": {"controller and clients": ours, "worker": workers},
            "seconds": seconds, "rounds": rounds, "rows": rows}


def prepare(repository: str, instances: int, core: int, progress: Callable[[str], None]) -> int:
    """Make the repository, profiled on the worker's core; returns a request's bytes."""
    from cwd.models.repository import Repository

    progress(f"adding {instances} instances of {PROGRAM}")
    with _pinned(core, "cwd", "model", "add", MODEL, "--zoo", PROGRAM, "--copies", str(instances), "-r", repository,
                 "--json") as adding:
        out, _ = adding.communicate()
    if adding.returncode:
        raise CwdError(f"cwd model add ended with code {adding.returncode}: {out}")
    return Repository(repository).get(f"{MODEL}-000").manifest.payload_bytes((0, 0, 0, 0))


def _row(cluster: LocalCluster, bound: subprocess.Popen[str], slo: str, inflight: int, seconds: float, rounds: int,
         payload_bytes: int, core: int, progress: Callable[[str], None]) -> dict[str, Any]:
    bounds, found = [_measured(bound)], []
    for _ in range(rounds):
        found.append(_served(cluster, slo, inflight, seconds, payload_bytes, core))
        bounds.append(_measured(bound))
    goodput_rps = statistics.fmean(each["goodput_rps"] for each in found)
    bound_rps = statistics.fmean(each["rps"] for each in bounds)
    ratio = goodput_rps / bound_rps
    progress(f"SLO {slo}: {goodput_rps:.1f} of {bound_rps:.1f} requests/s in time, ratio {ratio:.3f}")
    by_status: Counter[str] = Counter()
    for each in found:
        by_status.update(each["by_status"])
    return {"slo_ms": parse_duration_ns(slo) / 1e6, "goodput_rps": goodput_rps, "bound_rps": bound_rps, "ratio": ratio,
            "attempts_rps": statistics.fmean(each["attempts_rps"] for each in found),
            "goodput_rounds": [each["goodput_rps"] for each in found], "bound_rounds": [each["rps"] for each in bounds],
            "bound_batch": bounds[-1]["batch"], "mean_batch": statistics.fmean(each["mean_batch"] for each in found),
            "late": sum(each["late"] for each in found),
            "p50_ms": statistics.median(each["latency_ms"]["p50"] for each in found),
            "p99_ms": max(each["latency_ms"]["p99"] for each in found), "by_status": dict(by_status)}


def _served(cluster: LocalCluster, slo: str, inflight: int, seconds: float, payload_bytes: int, core: int) -> dict[str, Any]:
    """One round of the closed loops: their own facts."""
    with _pinned(core, "cwd.bench.closed", "--connect", cluster.endpoint(), "--inflight", str(inflight), "--slo", slo,
                 "--seconds", str(seconds), "--payload", str(payload_bytes)) as client:
        out, _ = client.communicate()
    cluster.check()
    if client.returncode:
        raise CwdError(f"the clients ended with code {client.returncode}")
    facts: dict[str, Any] = json.loads(out)
    return facts


def _measured(bound: subprocess.Popen[str]) -> dict[str, Any]:
    """One measurement of the bound: {"rps", "batch", ...}."""
    assert bound.stdin is not None and bound.stdout is not None
    bound.stdin.write("\n")
    bound.stdin.flush()
    line = bound.stdout.readline()
    if not line:
        raise CwdError(f"the bound's process ended with code {bound.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def _pinned(core: int, module: str, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """`python -m module` that starts on one core and stays there."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen([sys.executable, "-c", _PIN.format(core=core), module, *arguments], stdin=stdin,
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
