"""`cwd bench app`: what an application of one model adds to a request, beside the bare model in the same run.

One thread asks a model that does nothing, in turns: by `cwd.Client`, as an application without a cache, and as one whose
answers are kept; and one HTTP connection asks the model and the application through `cwd gateway`. As for `cwd bench
gateway`, the controller and the worker have cores of their own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.gateway import MODEL, Http, Native, gateway_of
from cwd.bench.turns import in_turns, warm_up
from cwd.cluster import LocalCluster
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.blocking import Apps

_SLO_NS = 5 * 10**9


class Predict:
    """The same request of an application."""

    def __init__(self, apps: Apps, name: str) -> None:
        self._apps, self._name = apps, name
        self._input = np.array([7], np.uint8)

    def one(self) -> None:
        """One round trip."""
        self._apps.predict(self._name, self._input)


def run(requests: int = 4000, rounds: int = 8, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """{bare_p50_us, app_p50_us, ratio, cached_p50_us, gateway_model_p50_us, gateway_app_p50_us, gateway_ratio, and p99s}."""
    from cwd.models.importers import add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository

    with tempfile.TemporaryDirectory(prefix="cwd-bench-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        measure_cpu(repository, add_zoo(repository, MODEL, "identity")[0], budget_ns=10**9)
        store = AppStore(Path(folder) / "apps.db")
        for name, cache in (("app", False), ("kept", True)):
            store.create(App(name, (Member(MODEL),), slo_ns=_SLO_NS, cache=cache))
        cores = sorted(os.sched_getaffinity(0))
        with LocalCluster(repository.root, device="cpu", pool="16MiB", page="1MiB", progress=progress,
                          cores={"controller": cores[:1], "worker": [cores[1 % len(cores)]]}) as cluster:
            cluster.wait_servable(timeout=120)
            gateway = gateway_of(cluster, "--apps", str(store.path))
            try:
                gateway.start()
                gateway.wait_ready(60)
                with cluster.client(name="bench") as client, Apps(client, store) as apps:
                    port = int(gateway.status.rpartition(":")[2])
                    sides = {"bare": Native(client), "app": Predict(apps, "app"), "cached": Predict(apps, "kept"),
                             "gateway_model": Http(port), "gateway_app": Http(port, name="app")}
                    return measured(sides, requests, rounds, progress)
            finally:
                gateway.stop(5)
                store.close()


def measured(sides: dict[str, Any], requests: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Medians and tails in us, and what the applications' medians are to those of the model."""
    warm_up(sides)
    facts: dict[str, Any] = {"requests": requests}
    for name, taken in in_turns(sides, requests, rounds, progress).items():
        facts[f"{name}_p50_us"], facts[f"{name}_p99_us"] = (float(np.quantile(taken, at)) / 1e3 for at in (0.5, 0.99))
    return {**facts, "ratio": facts["app_p50_us"] / facts["bare_p50_us"],
            "gateway_ratio": facts["gateway_app_p50_us"] / facts["gateway_model_p50_us"]}
