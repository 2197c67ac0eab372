"""Clipper's REST calls, to a gateway's process before a fake controller."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from clipper_calls import ClipperAdmin, ClipperError
from members import SHAPE, Members
from test_gateway_server import Door

from cwd.errors import ControllerLost
from cwd.gateway.clipper import Clipper
from cwd.gateway.statistics import Statistics
from cwd.selection.apps import App, Member
from cwd.selection.desk import Serving


@pytest.fixture
def world(tmp_path):
    """(a client of Clipper's, the controller, the gateway's process)."""
    controller = Members(tmp_path / "c.sock", 2)
    byte_model = {**controller.models["m1"][1], "name": "raw", **SHAPE, "inputs": [{"name": "x", "dtype": "float32",
                                                                                    "shape": ["n"]}], "axes": ["n"],
                  "size_classes": [[8]], "outputs": [{"name": "y", "dtype": "float32", "shape": ["n"]}]}
    controller.models["raw"] = (101, byte_model)
    doors = []

    def open_door():
        doors.append(Door(tmp_path, controller.endpoint, "--drain", "0s", "--apps", str(tmp_path / "apps.db"),
                          "--clipper-port", "0"))
        text = (tmp_path / "gateway.log").read_text()
        return ClipperAdmin(int(re.findall(r"Clipper's calls on port (\d+)", text)[-1])), doors[-1]

    clipper, _ = open_door()
    yield clipper, controller, open_door
    for door in doors:
        door.child.stop(5)
    controller.stop()


def test_the_tutorial_from_registering_to_feedback(world):
    clipper, controller, _ = world
    assert clipper.post("/admin/ping", None, method="GET")[2] == "PONG"
    clipper.register_application("hello-world", "doubles", "-1.0", 5_000_000)
    clipper.register_model("m1", 1, "doubles")
    status, _, found = clipper.predict("hello-world", input=[1.0, 2.0, 3.0])
    # no model is linked: the default, and it says so
    assert status == 203 and found["output"] == -1.0 and found["default"] is True
    assert "MODEL_NOT_READY" in found["default_explanation"]
    clipper.link_model_to_app("hello-world", "m1")
    status, headers, found = clipper.predict("hello-world", input=np.ones(3).tolist())
    assert status == 200 and found["output"] == [2.0, 2.0, 2.0] and found["default"] is False
    assert type(found["query_id"]) is int and "default_explanation" not in found and "cwd-default" not in headers
    status, _, found = clipper.predict("hello-world", input_batch=[[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    assert [each["output"] for each in found["batch_predictions"]] == [[2, 0, 0], [0, 0, 8]] and status == 200
    # a batch of one comes without the list, as Clipper does it
    assert clipper.predict("hello-world", input_batch=[[1, 0, 0]])[2]["output"] == [2, 0, 0]
    assert clipper.predict("hello-world", input=[1, 0, 0], version="1")[2]["output"] == [2, 0, 0]
    status, _, text = clipper.post("/hello-world/update", json.dumps({"uid": 0, "input": [0.0, 0.0, 4.0], "label": 2}))
    assert status == 200 and text.strip() == "Feedback received? 1"
    state = clipper.asked("get_state", app_name="hello-world", uid=0)
    assert state["members"] == ["m1"] and state["observations"] == 1 and state["losses"] == [0.0]
    # curl --data without a header of its own
    status, _, text = clipper.post("/hello-world/predict", '{"input": [1.1, 2.2, 3.3]}', "application/x-www-form-urlencoded")
    assert status == 200 and np.allclose(json.loads(text)["output"], [2.2, 4.4, 6.6])


def test_a_default_answer_is_marked_as_such(world):
    clipper, controller, _ = world
    clipper.register_application("app", "floats", "no idea", 100_000)
    clipper.link_model_to_app("app", "m0")
    controller.silent_members = {0}
    status, headers, found = clipper.predict("app", input=[1.0, 2.0, 3.0])
    assert (status, headers["cwd-default"]) == (203, "DEADLINE_MISSED")
    assert found["default"] is True and found["output"] == "no idea"
    assert found["default_explanation"].startswith("DEADLINE_MISSED: ")
    status, _, found = clipper.predict("app", input_batch=[[1.0, 2.0, 3.0]] * 2)
    assert status == 203 and [each["default"] for each in found["batch_predictions"]] == [True, True]


def test_bytes_in_base64_and_sizes_that_are_free(world):
    clipper, _, _ = world
    clipper.register_application("app", "bytes", "", 5_000_000)
    clipper.link_model_to_app("app", "raw")
    given = np.array([1, 2, 3, 4], "f4")
    assert clipper.predict("app", input=base64.b64encode(given.tobytes()).decode())[2]["output"] == [2, 4, 6, 8]
    assert clipper.predict("app", input="no base64!")[0] == 400


def test_what_the_lists_tell(world):
    clipper, _, open_door = world
    assert clipper.asked("get_all_applications", verbose=True) == [] and clipper.asked("get_application", name="app") == {}
    clipper.register_application("app", "integers", "0", 20_000)
    clipper.register_application("other", "strings", "?", 30_000)
    clipper.link_model_to_app("app", "m0")
    clipper.register_model("m0", "1", "integers")
    wanted = {"name": "app", "input_type": "integers", "default_output": "0", "latency_slo_micros": 20_000}
    for client in (clipper, open_door()[0]):  # and all of it is there after a restart
        assert client.asked("get_all_applications", verbose=False) == ["app", "other"]
        assert clipper.asked("get_application", name="app").items() >= wanted.items()
        assert client.asked("get_all_applications", verbose=True)[0].items() >= wanted.items()
        assert client.asked("get_linked_models", app_name="app") == ["m0"]
        assert client.asked("get_all_models", verbose=False) == ["m0", "m1", "raw"]
        models = client.asked("get_all_models", verbose=True)
        assert [m["model_version"] for m in models if m["model_name"] == "m0" and m["is_current_version"]] == ["1"]
        found = client.asked("get_model", model_name="m0", model_version="1")
        assert found["input_type"] == "integers" and found["labels"] == ["test"] and found["batch_size"] == -1
        assert client.asked("get_model", model_name="m0", model_version="9") == {}
        assert client.asked("get_all_containers", verbose=False) == ["m0:1:0", "m1:1:0", "raw:1:0"]
        assert client.asked("get_container", model_name="m0", model_version="1", replica_id=0)["model_id"] == "m0:1"
        assert client.asked("get_container", model_name="m0", model_version="1", replica_id=3) == {}
    assert clipper.admin("set_model_version", model_name="m0", model_version="1").strip() == "SUCCESS"
    clipper.admin("delete_model_links", app_name="app", model_names=["m0"])
    assert clipper.asked("get_linked_models", app_name="app") == []
    clipper.admin("delete_app", name="other")
    assert clipper.asked("get_all_applications", verbose=False) == ["app"]


@pytest.mark.parametrize("verb, body", [
    ("add_app", {"name": "app", "input_type": "ints", "default_output": "0", "latency_slo_micros": 20_000}),
    ("add_app", {"name": "new", "input_type": "shapes", "default_output": "0", "latency_slo_micros": 20_000}),
    ("add_app", {"name": "new", "input_type": "ints", "default_output": 0, "latency_slo_micros": 20_000}),
    ("add_app", {"name": "n/w", "input_type": "ints", "default_output": "0", "latency_slo_micros": 20_000}),
    ("add_app", {"name": "new", "input_type": "ints", "default_output": "0", "latency_slo_micros": "soon"}),
    ("add_model_links", {"app_name": "nobody", "model_names": ["m0"]}),
    ("add_model_links", {"app_name": "app", "model_names": ["nothing"]}),
    ("delete_model_links", {"app_name": "app", "model_names": ["m1"]}), ("delete_app", {"name": "nobody"}), ("delete_app", {}),
    ("get_linked_models", {"app_name": "nobody"}), ("set_model_version", {"model_name": "m0", "model_version": "7"}),
    ("get_model", {"model_name": "m0", "model_version": "latest"}),
])
def test_faults_are_no_200(world, verb, body):
    clipper, _, _ = world
    clipper.register_application("app", "ints", "0", 20_000)
    with pytest.raises(ClipperError, match="40[049]: .*cause"):
        clipper.admin(verb, **body)


def test_faulty_queries(world):
    clipper, _, _ = world
    clipper.register_application("app", "ints", "0", 5_000_000)
    clipper.link_model_to_app("app", "m0")
    for body in ({}, {"input": [1], "input_batch": [[1]]}, {"input_batch": []}, {"input": [1.5, 2, 3]}, {"input": ["a"] * 3},
                 {"input": [1, 2]}, {"input": {"a": 1}}, {"input": [[1], [2, 3]]}, {"input": [1, 2, 3], "version": "x"}):
        status, _, found = clipper.predict("app", **body)
        assert status == 400 and set(found) >= {"error", "cause"}, (body, found)
    assert clipper.post("/app/predict", "{")[0] == 400 and clipper.post("/app/update", "{}")[0] == 400
    assert clipper.predict("nobody", input=[1])[0] == 404
    # Clipper's calls are on their port alone, and the protocol's on theirs
    assert clipper.post("/v2/health/live", None, method="GET")[0] == 404


def test_metrics_by_clippers_names(world):
    clipper, _, _ = world
    clipper.register_application("app", "floats", "0", 5_000_000)
    clipper.link_model_to_app("app", "m0")
    clipper.predict("app", input=[1.0, 2.0, 3.0])
    for path in ("/metrics", "/admin/metrics"):
        status, _, text = clipper.post(path, None, method="GET")
        found = {name: value for group in json.loads(text).values() for entry in group for name, value in entry.items()}
        assert status == 200 and found["app:app:num_predictions"]["count"] == 1
        assert found["app:app:default_prediction_ratio"]["ratio"] == 0.0
        assert "internal:prediction_cache_hit_ratio" in found and found["app:app:prediction_latency"]["size"] == 1


def test_what_a_lookup_takes_counts_against_the_slo():
    asked, wait_s = [], 0.02

    async def model(serving, patience_ns):
        await asyncio.sleep(wait_s)
        raise ControllerLost("it is away")

    async def serve(serving, inputs, slo=None, *, context=None):
        asked.append(slo)
        return SimpleNamespace(cached=0, members_answered=0)

    serving = Serving(App("app", (Member("m0"),), slo_ns=10**9, default="0"))
    applications = SimpleNamespace(model=model, apps=SimpleNamespace(serve=serve))
    asyncio.run(Clipper(applications, None, Statistics(), lambda: 1)._predicted(serving, [1.0], 0))
    assert asked[0] is not None and asked[0] <= 1 - wait_s / 2
