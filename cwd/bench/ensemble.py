"""`cwd bench ensemble`: eight members, one of which is late, or falls silent; with straggler mitigation, and without.

A real controller, and eight emulated GPUs whose executions take what a profile says, give or take half of it: seven models
of `quick_ms`, and one of `late_ms`, which is more than the SLO about half of the time. The application asks all eight and
answers within its SLO with what has arrived. Without mitigation the same eight are asked with a deadline that all can
keep, and the answer is there when the last one is.

That straggler is known to be slow, and often refused on arrival. `silent` is the hard case: see cwd/bench/silent.py.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench import silent
from cwd.client import Client
from cwd.cluster import LocalCluster
from cwd.errors import CwdError
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps
from cwd.units import NS_PER_MS

MEMBERS = 8
_PAGE_BYTES = 64 << 10
_X = np.array([7], np.uint8)


def run(requests: int = 1000, waiting: int = 100, slo_ms: int = 100, quick_ms: int = 2, late_ms: int = 110,
        silent_requests: int = 400, silent_waiting: int = 20, silent_slo_ms: tuple[int, ...] = (50, 100),
        progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{slo_ms, p50_ms, p99_ms, answered: how often so many members were in time, without_p50_ms, without_p99_ms, silent}.

    `silent` has a row for each SLO and front door: p99_ms and what it is of the SLO, how many requests were answered by
    seven of eight; and `without`: what waiting for all eight takes instead. It is left out with no --silent-requests.
    """
    slow = _slow(requests, waiting, slo_ms, quick_ms, late_ms, progress)
    if not silent_requests:
        return slow
    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        return {**slow, "silent": silent.rows(Path(folder), tuple(silent_slo_ms), silent_requests, silent_waiting, progress)}


def _slow(requests: int, waiting: int, slo_ms: int, quick_ms: int, late_ms: int, progress: Callable[[str], None]
          ) -> dict[str, Any]:
    from cwd.models import profile
    from cwd.models.importers import add_factory, add_zoo
    from cwd.models.repository import Repository
    from cwd.models.zoo import identity_options

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        # the same program but for its batches, so that it has a profile of its own
        options = {key: value for key, value in identity_options().items() if key not in ("factory", "args")}
        late = add_factory(repository, "late", "cwd.models.zoo:identity", {}, {**options, "batch_sizes": [1, 2]}, seed=1)
        entries = add_zoo(repository, "quick", "identity", copies=MEMBERS - 1) + late
        for entry, exec_ms in ((entries[0], quick_ms), (entries[-1], late_ms)):
            table = {(batch, 0): exec_ms * NS_PER_MS for batch in entry.manifest.batch_sizes}
            profile.write_table(repository, entry.manifest.program_hash, "emulated", table, load_ns_per_page=NS_PER_MS,
                                page_bytes=_PAGE_BYTES)
        names = [entry.manifest.name for entry in entries]
        store = AppStore(Path(folder) / "apps.db")
        store.create(App("eight", tuple(map(Member, names)), "static", {"ensemble": True}, combine="vote",
                         slo_ns=slo_ms * NS_PER_MS))
        with LocalCluster(repository.root, device=f"emulated:{MEMBERS}", pool=16 * _PAGE_BYTES, page=_PAGE_BYTES,
                          worker={"noise_ppm": 500_000}, progress=progress) as cluster:
            cluster.wait_servable(timeout=120)
            with cluster.client(name="bench") as client, Apps(client, store) as apps, store:
                facts = measured(apps, client, names, requests, waiting, progress)
        return {"members": MEMBERS, "slo_ms": slo_ms, "late_ms": late_ms, **facts}


def measured(apps: Apps, client: Client, names: list[str], requests: int, waiting: int,
             progress: Callable[[str], None]) -> dict[str, Any]:
    """One request after the other, and how long each took."""
    for name in names:
        client.infer(name, _X, "5s")
    gc.collect()
    gc.freeze()  # a collection of all that is imported here would take as long as the SLO
    progress(f"{requests} requests with mitigation")
    times, answered, late, errors = [], Counter[int](), 0, 0
    for _ in range(requests):
        begin = time.monotonic_ns()
        try:
            result = apps.predict("eight", _X)
        except CwdError:
            errors += 1  # as when this machine was busy with something else until the deadline was past
        else:
            answered[result.members_answered] += 1
            late += names[-1] in result.answered
        times.append(time.monotonic_ns() - begin)
    progress(f"{waiting} requests without")
    without, failed = [], 0
    for _ in range(waiting):
        begin = time.monotonic_ns()
        pending = [client.submit(name, _X, "10s") for name in names]
        # an execution that takes far longer than was expected is given up, and its requests fail
        failed += any([each.exception() is not None for each in pending])
        without.append(time.monotonic_ns() - begin)
    facts: dict[str, Any] = {"requests": requests}
    for prefix, taken in (("", times), ("without_", without)):
        for point in (50, 99):
            facts[f"{prefix}p{point}_ms"] = float(np.quantile(taken, point / 100)) / NS_PER_MS
    return {**facts, "max_ms": max(times) / NS_PER_MS, "answered": {str(count): answered[count] for count in sorted(answered)},
            "errors": errors, "straggler_in_time": late, "without_failed": failed}
