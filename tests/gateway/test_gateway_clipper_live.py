"""A real cluster behind Clipper's REST calls: a model's life as clipper_admin and its users' programs lead it."""

from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from clipper_calls import ClipperAdmin, ClipperError

import cwd
from cwd.bench.gateway import gateway_of

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

SLO_US = 20_000_000
RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 16)).astype("f4")
#: what a Python program sends: its floats are doubles
ROWS = [[float(value) for value in row] for row in X]


class Served(NamedTuple):
    clipper: ClipperAdmin
    cluster: cwd.LocalCluster
    #: the cluster's repository, to which models can be added
    repository: Any
    #: the truth: what a version answers to a row
    native: Any


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Versions 1 and 2 of a model that differ in their weights, and one that takes bytes; on the CPU."""
    from cwd.models import profile
    from cwd.models.importers import add_zoo
    from cwd.models.repository import Repository

    folder = tmp_path_factory.mktemp("clipper")
    repository = Repository(folder / "models", create=True)
    entries = [*add_zoo(repository, "m", "mlp", seed=1), *add_zoo(repository, "raw", "identity")]
    for entry in entries:
        table = {(batch, 0): 1_000_000 for batch in entry.manifest.batch_sizes}
        profile.write_table(repository, entry.manifest.program_hash, "cpu", table, load_ns_per_page=100_000)
    add_zoo(repository, "m", "mlp", seed=2, version=2)
    with cwd.LocalCluster(repository.root, device="cpu", pool="16MiB") as cluster, cluster.client(slo="20s") as client:
        gateway = gateway_of(cluster, "--admin-endpoint", cluster.endpoint("admin"), "--apps", str(folder / "apps.db"),
                             "--clipper-port", "0")
        gateway.start()
        try:
            gateway.wait_ready(60)
            cluster.wait_servable()
            log = Path(gateway.log).read_text()
            clipper = ClipperAdmin(int(re.findall(r"Clipper's calls on port (\d+)", log)[-1]))
            yield Served(clipper, cluster, repository, lambda version, row: client.infer("m", row, version=version)["y"])
        finally:
            gateway.stop(10)


def outputs(found: Any) -> Any:
    """Of one answer or a batch of them; none is a default."""
    status, headers, body = found
    assert status == 200 and "cwd-default" not in headers, (status, body)
    answers = body.get("batch_predictions", [body])
    assert all(answer["default"] is False and type(answer["query_id"]) is int for answer in answers)
    return np.array([answer["output"] for answer in answers], "f4")


def same(found: Any, wanted: Any) -> bool:
    """Alike but for the last bits, which a batch may round differently."""
    return np.shape(found) == np.shape(wanted) and np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def default_of(found: Any, reason: str) -> Any:
    """The output of one answer that is the app's default, and says so in its body, its status and a header."""
    status, headers, body = found
    assert (status, body["default"], headers["cwd-default"]) == (203, True, reason), (status, body)
    assert body["default_explanation"].startswith(f"{reason}: ")
    return body["output"]


def test_an_app_and_its_model_from_registering_to_feedback(served: Served) -> None:
    clipper, _, _, native = served
    assert clipper.post("/admin/ping", None, method="GET")[::2] == (200, "PONG")
    assert clipper.post("/metrics", None, method="GET")[0] == 200
    assert clipper.asked("get_all_applications", verbose=False) == []
    clipper.register_application("app", "doubles", "-1.0", SLO_US)
    with pytest.raises(ClipperError, match="400: .*already"):
        clipper.register_application("app", "doubles", "-1.0", SLO_US)
    assert default_of(clipper.predict("app", input=ROWS[0]), "MODEL_NOT_READY") == -1.0

    # what the controller read at its start can be registered once; the newest is in use, until another one is
    assert clipper.get_current_model_version("m") == "2"
    clipper.register_model("m", 1, "doubles")
    assert clipper.get_current_model_version("m") == "1"
    with pytest.raises(ClipperError, match="400: .*already"):
        clipper.register_model("m", 1, "doubles")
    with pytest.raises(ClipperError, match="404: .*nosuch"):
        clipper.link_model_to_app("app", "nosuch")
    clipper.link_model_to_app("app", "m")
    assert clipper.asked("get_linked_models", app_name="app") == ["m"]
    one, two = ([native(version, row) for row in X] for version in (1, 2))
    assert not np.allclose(one, two)
    assert same(outputs(clipper.predict("app", input=ROWS[0])), one[:1])
    assert same(outputs(clipper.predict("app", input_batch=ROWS)), one)
    assert same(outputs(clipper.predict("app", input_batch=ROWS[:1])), one[:1])
    assert same(outputs(clipper.predict("app", input=ROWS[0], version="2")), two[:1])
    assert clipper.predict("app", input=ROWS[0], version="3")[0] == 404
    # the way with a slash at its end is the same one, and no redirection, which curl would not follow
    assert clipper.post("/app/predict/", json.dumps({"input": ROWS[0]}), "application/x-www-form-urlencoded")[0] == 200
    status, _, text = clipper.post("/app/update", json.dumps({"uid": 0, "input": ROWS[0], "label": 1.0}))
    assert (status, text.strip()) == (200, "Feedback received? 1")

    clipper.unlink_model_from_app("app", "m")
    assert clipper.asked("get_linked_models", app_name="app") == []
    clipper.admin("delete_app", name="app")
    assert clipper.predict("app", input=ROWS[0])[0] == 404


def test_versions_come_and_go(served: Served) -> None:
    clipper, cluster, repository, native = served
    clipper.register_application("app", "doubles", "-1.0", SLO_US)
    clipper.link_model_to_app("app", "m")
    one, two = ([native(version, row) for row in X] for version in (1, 2))
    # forth and back, each seen at once
    for version, wanted in ((2, two), (1, one), (2, two), (2, two), (1, one)):
        assert clipper.set_model_version("m", version).strip() == "SUCCESS"
        assert clipper.get_current_model_version("m") == str(version)
        assert same(outputs(clipper.predict("app", input=ROWS[0])), wanted[:1])
        assert cluster_uses(cluster) == version
    with pytest.raises(ClipperError, match="404: .*version 3 does not exist"):
        clipper.set_model_version("m", 3)

    # a version that the repository gets while all that runs
    with pytest.raises(ClipperError, match="40[04]: .*cause"):
        clipper.register_model("m", 3, "doubles")
    from cwd.models.importers import add_zoo

    add_zoo(repository, "m", "mlp", seed=3, version=3)
    clipper.register_model("m", 3, "doubles")
    assert clipper.get_current_model_version("m") == "3"
    answer = outputs(clipper.predict("app", input=ROWS[0]))
    assert np.array_equal(answer, [native(3, X[0])]) and not np.allclose(answer, one[:1])
    told = clipper.asked("get_model", model_name="m", model_version="3")
    assert told["is_current_version"] and told["input_type"] == "doubles" and told["labels"] == ["test"]
    assert sorted(clipper.asked("get_all_containers", verbose=False)) == ["m:1:0", "m:2:0", "m:3:0", "raw:1:0"]
    assert clipper.asked("get_container", model_name="m", model_version="2", replica_id=0)["model_id"] == "m:2"

    clipper.stop_inactive_model_versions(["m"])
    assert sorted(clipper.asked("get_all_containers", verbose=False)) == ["m:3:0", "raw:1:0"]
    assert same(outputs(clipper.predict("app", input=ROWS[0])), answer)
    with pytest.raises(ClipperError, match="404: "):
        clipper.set_model_version("m", 1)
    # a version that was taken out comes back
    clipper.register_model("m", 1, "doubles")
    assert same(outputs(clipper.predict("app", input=ROWS[0])), one[:1])
    clipper.stop_models(["m"])
    assert clipper.asked("get_all_models", verbose=False) == ["raw"]
    assert default_of(clipper.predict("app", input=ROWS[0]), "UNKNOWN_MODEL") == -1.0


def test_faults_and_bytes(served: Served) -> None:
    clipper = served.clipper
    clipper.register_application("bytes", "bytes", "", SLO_US)
    clipper.link_model_to_app("bytes", "raw")
    status, _, found = clipper.predict("bytes", input=base64.b64encode(b"\x2a").decode())
    assert (status, found["output"]) == (200, 42)
    for body in ({}, {"input": "no base64!"}, {"input": base64.b64encode(b"two").decode()}, {"input_batch": []},
                 {"input": "Kg==", "input_batch": ["Kg=="]}, {"input": "Kg==", "version": "latest"}):
        status, _, found = clipper.predict("bytes", **body)
        assert status == 400 and set(found) >= {"error", "cause"}, (body, found)
    for verb, body in (("get_linked_models", {"app_name": "nobody"}), ("delete_app", {"name": "nobody"}), ("add_app", {}),
                       ("delete_versioned_model", {"model_name": "nosuch", "model_version": "1"})):
        with pytest.raises(ClipperError, match="40[04]: .*cause"):
            clipper.admin(verb, **body)
    assert clipper.asked("get_application", name="nobody") == {} == clipper.asked(
        "get_model", model_name="raw", model_version="9")


def test_a_worker_that_falls_silent(served: Served) -> None:
    """The default comes within the SLO; and once the worker is back, the model's own answer."""
    clipper, cluster = served.clipper, served.cluster
    clipper.register_application("quick", "bytes", "[7, 8]", 150_000)
    clipper.link_model_to_app("quick", "raw")
    body = {"input": base64.b64encode(b"\x2a").decode()}
    assert clipper.post("/bytes/predict", json.dumps(body))[0] == 200
    worker = cluster.pid("worker-0")
    cluster.children[1].signal(signal.SIGSTOP)
    try:
        for more in ({}, {"version": "1"}):
            assert default_of(clipper.predict("quick", **body, **more), "DEADLINE_MISSED") == [7, 8]
        status, _, found = clipper.predict("quick", input_batch=[body["input"]] * 3)
        assert status == 203 and [each["default"] for each in found["batch_predictions"]] == [True] * 3
    finally:
        cluster.children[1].signal(signal.SIGCONT)
    for _ in range(200):
        status, _, found = clipper.predict("quick", **body)
        if status == 200:
            break
    assert found["output"] == 42 and found["default"] is False and cluster.pid("worker-0") == worker
    ratios = {name: value for entry in clipper.inspect_instance()["ratio_counters"] for name, value in entry.items()}
    assert 0 < ratios["app:quick:default_prediction_ratio"]["ratio"] < 1


def cluster_uses(cluster: cwd.LocalCluster) -> int:
    """The version of `m` that its name stands for, as the controller has it."""
    from cwd.client.admin import Admin

    with Admin(cluster.endpoint("admin")) as admin:
        return next(int(key.rpartition("/")[2]) for key, facts in admin.models().items()
                    if key.startswith("m/") and facts["in_use"])
