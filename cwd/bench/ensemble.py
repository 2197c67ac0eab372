"""`cwd bench ensemble`: eight members, one of which is late; with straggler mitigation, and without.

Two CPU workers and a controller serve seven models that do nothing and one that sleeps. The application asks all eight and
answers at its SLO with what has arrived. Without mitigation the same eight are asked with a deadline that all can keep,
and the answer is there when the last one is.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.straggler import LATE, options
from cwd.client import Client
from cwd.cluster import LocalCluster
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps
from cwd.units import NS_PER_MS

MEMBERS = 8
_X = np.array([LATE], np.uint8)


def run(requests: int = 300, waiting: int = 20, slo_ms: int = 100, late_ms: int = 500,
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{slo_ms, p50_ms, p99_ms, answered: how often so many members were in time, without_p50_ms, without_p99_ms}."""
    from cwd.models.importers import add_factory, add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        root = Path(folder) / "models"
        repository = Repository(root, create=True)
        (root / "TRUSTED").touch()
        repository = Repository(root)
        entries = add_zoo(repository, "quick", "identity", copies=MEMBERS - 1)
        entries += add_factory(repository, "late", "cwd.bench.straggler:Straggler", {"late_s": late_ms / 1e3},
                               options(late_ms / 1e3), seed=1)
        for entry in (entries[0], entries[-1]):
            measure_cpu(repository, entry, budget_ns=10**9)
        names = [entry.manifest.name for entry in entries]
        store = AppStore(Path(folder) / "apps.db")
        store.create(App("eight", tuple(map(Member, names)), "static", {"ensemble": True}, combine="vote",
                         slo_ns=slo_ms * NS_PER_MS))
        with LocalCluster(root, device="cpu", workers=2, pool="16MiB", page="1MiB", progress=progress) as cluster:
            cluster.wait_servable(timeout=120)
            with cluster.client(name="bench") as client, Apps(client, store) as apps, store:
                return measured(apps, client, names, requests, waiting, slo_ms, late_ms, progress)


def measured(apps: Apps, client: Client, names: list[str], requests: int, waiting: int, slo_ms: int, late_ms: int,
             progress: Callable[[str], None]) -> dict[str, Any]:
    """One request after the other, and how long each took."""
    for name in names:
        client.infer(name, np.array([0], np.uint8), "5s")
    progress(f"{requests} requests with mitigation")
    times, answered, late = [], Counter[int](), 0
    for _ in range(requests):
        begin = time.monotonic_ns()
        result = apps.predict("eight", _X)
        times.append(time.monotonic_ns() - begin)
        answered[result.members_answered] += 1
        late += names[-1] in result.answered
    progress(f"{waiting} requests without")
    without = []
    for _ in range(waiting):
        begin = time.monotonic_ns()
        pending = [client.submit(name, _X, 10 + late_ms / 1e3) for name in names]
        for each in pending:
            each.result()
        without.append(time.monotonic_ns() - begin)
    facts: dict[str, Any] = {"members": MEMBERS, "slo_ms": slo_ms, "late_ms": late_ms, "requests": requests}
    for prefix, taken in (("", times), ("without_", without)):
        for point in (50, 99):
            facts[f"{prefix}p{point}_ms"] = float(np.quantile(taken, point / 100)) / NS_PER_MS
    return {**facts, "max_ms": max(times) / NS_PER_MS, "answered": {str(count): answered[count] for count in sorted(answered)},
            "straggler_in_time": late}
