"""Who looks at a running controller sees what its client has counted: the scrape, `cwd top`, `cwd explain`."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd import Client, CwdError, LocalCluster, RequestError
from cwd.cli.main import run
from cwd.controller.writer import listen
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Repository
from cwd.observe.tap import Tap
from cwd.observe.wire import message_facts
from cwd.units import NS_PER_MS

prometheus = pytest.importorskip("prometheus_client.parser")

PAGE_BYTES = 64 << 10
REQUESTS = 120
WAIT_S = 20.0


def scrape(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {family.name: family for family in prometheus.text_string_to_metric_families(answer.read().decode())}


def values(family: Any, label: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for sample in family.samples:
        if sample.name.endswith("_total"):
            found[sample.labels[label]] += int(sample.value)
    return +found


def tapped(folder: Path, cluster: LocalCluster, model: str, inputs: dict[str, Any]) -> list[str]:
    """Types of the messages that a tap sees of a client that asks for one inference through it."""
    seen: list[str] = []
    tap = Tap(f"ipc://{folder}/tap", cluster.endpoint(), lambda title, frames: seen.append(message_facts(frames)["type"]))
    ended = threading.Event()
    thread = threading.Thread(target=lambda: [tap.turn(50) for _ in iter(ended.is_set, True)])
    thread.start()
    try:
        with Client(f"ipc://{folder}/tap", name="tapped") as client:
            assert client.infer(model, inputs, "2s").outputs
    finally:
        ended.set()
        thread.join()
        tap.close()
    return seen


@pytest.mark.e2e
def test_scrape_top_and_explain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repository = Repository(tmp_path / "models", create=True)
    entries = add_zoo(repository, "m", "mlp", seed=1, copies=5)
    table = {(batch, 0): (3 + batch) * NS_PER_MS for batch in entries[0].manifest.batch_sizes}
    profile.write_table(repository, entries[0].manifest.program_hash, "emulated", table, load_ns_per_page=2 * NS_PER_MS,
                        page_bytes=PAGE_BYTES)
    with listen(":0") as probe:
        port = probe.getsockname()[1]
    counted: Counter[str] = Counter()
    by_model: Counter[str] = Counter()
    with LocalCluster(tmp_path / "models", device="emulated:1", pool=3 * PAGE_BYTES, page=PAGE_BYTES, timeout=600,
                      controller={"metrics_bind": f":{port}", "metrics_models": 2}) as cluster:
        names = [entry.manifest.key for entry in entries]
        cluster.wait_servable(*names)
        with cluster.client(name="looked-at") as client:
            inputs = {tensor.name: np.ones(tensor.shape, tensor.dtype) for tensor in client.lookup(names[0]).inputs}
            pending = [(names[at % 5], client.submit(names[at % 5], inputs, "5us" if at % 7 == 0 else "400ms"))
                       for at in range(REQUESTS)]
            numbers = {}
            for name, each in pending:
                error = each.exception()
                code = error.code.name.lower() if isinstance(error, CwdError) else "ok"
                counted[code] += 1
                by_model[name] += 1
                numbers[code] = error.request if isinstance(error, RequestError) else each.result().request
        assert counted["ok"] and len(counted) > 1
        until = time.monotonic() + WAIT_S
        while sum(values((found := scrape(port))["cwd_requests"], "verdict").values()) < REQUESTS:
            assert time.monotonic() < until, "the metrics never came as far as the client"
            time.sleep(.05)
        assert values(found["cwd_requests"], "verdict") == counted
        assert sum(values(found["cwd_model_requests"], "model").values()) == REQUESTS
        assert {sample.value for sample in found["cwd_requests_in_flight"].samples} == {0}
        (rows,) = (sample.value for sample in found["cwd_batch_size"].samples if sample.name.endswith("_sum"))
        assert rows >= counted["ok"]
        (lost,) = (sample.value for sample in found["cwd_log_lost"].samples if sample.name.endswith("_total"))
        assert lost == 0
        pages = {sample.labels["state"]: sample.value for sample in found["cwd_pages"].samples}
        status = cluster.status()
        assert pages["free"] + pages["used"] == 3 and pages["free"] == status["workers"]["0"]["pages_free"]
        until = time.monotonic() + WAIT_S
        while not values(scrape(port)["cwd_loop_events"], "event")["received"]:  # told every few seconds
            assert time.monotonic() < until, "the loop's counters never came"
            time.sleep(.2)
        # the same by top, which has the log's records and the controller's status
        state = ["--state-dir", str(cluster.log), "--admin-endpoint", cluster.endpoint("admin")]
        assert run(["top", "--once", "--json", "--window", "10m", *state]) == 0
        facts = json.loads(capfd.readouterr().out)
        assert facts["alive"] and facts["replies"]["in_time"] == counted["ok"] and facts["status"]["in_flight"] == 0
        assert {row["model"] for row in facts["models"]} == set(by_model)
        assert [kind for kind in tapped(tmp_path, cluster, names[0], inputs) if kind != "HEARTBEAT"][:6] == [
            "HELLO", "WELCOME", "LOOKUP", "MODEL", "INFER", "REPLY"]
        # and why one of each kind went as it did, while the controller runs
        for code, number in numbers.items():
            assert run(["explain", f"{number:016x}", "--log", str(cluster.log), "--json"]) == 0
            story = json.loads(capfd.readouterr().out)
            assert story["verdict"].lower() == code and story["client"] == "looked-at" and story["why"]
            assert (story["execution"] is not None) == (code == "ok")


@pytest.mark.e2e
def test_metrics_without_a_log(tmp_path: Path) -> None:
    """The records are counted and not kept; a port that is taken is said before anything is served."""
    with listen(":0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CwdError, match="in use"):
            LocalCluster(workers=0, timeout=600, controller={"metrics_bind": f":{port}"}).start()
    with LocalCluster(workers=0, timeout=600, controller={"metrics_bind": f":{port}", "log": False}) as cluster:
        found = scrape(port)
        assert found["cwd_workers"].samples[0].value == 0
        assert not list(cluster.log.glob("*.cwdlog"))
