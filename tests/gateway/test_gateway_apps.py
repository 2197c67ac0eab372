"""Applications through the gateway's ASGI application, before a fake controller: OIP, defaults, feedback, statistics."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest
from asgi import ask, outputs_of, request
from members import Members, X

from cwd.client import AsyncClient
from cwd.gateway import apps
from cwd.gateway.app import Gateway, make_app
from cwd.gateway.options import GatewayOptions
from cwd.selection.apps import App, AppStore, Member

M0, M1 = Member("m0"), Member("m1")


@pytest.fixture
def world(tmp_path):
    """(`play(main)`, store, controller): `main(ask)` is run with a gateway before the controller."""
    controller = Members(tmp_path / "c.sock")
    store = AppStore(tmp_path / "apps.db")

    def play(main, **options):
        async def outer():
            async with AsyncClient(controller.endpoint) as client:
                await client.connect()
                gateway = Gateway(GatewayOptions(apps=str(tmp_path / "apps.db"), **options), client)
                app = make_app(gateway)
                await main(lambda *args, **kwargs: ask(app, *args, **kwargs))
                await gateway.applications.close()
                gateway.catalog.close()
        asyncio.run(asyncio.wait_for(outer(), 30))

    yield play, store, controller
    store.close()
    controller.stop()


def test_an_app_s_answer_that_is_ready_after_the_timeout_is_not_sent_as_if_in_time(world, monkeypatch):
    """The member answered in time, and then the gateway was busy with others' until the deadline had passed."""
    play, store, controller = world
    store.create(App("one", (M0,)))
    store.create(App("default", (M0,), default="0"))
    encode = apps.encode

    def busy(*args):
        time.sleep(0.6)
        return encode(*args)

    async def main(ask):
        monkeypatch.setattr(apps, "encode", busy)
        answer = await ask("POST", "/v2/models/one/infer", *request({"x": X}, timeout=500_000))
        assert (answer.status, answer.json["code"]) == (503, "DEADLINE_MISSED") and controller.executions[0] == 1
        found = (await ask("GET", "/v2/models/one/stats")).json["model_stats"][0]["inference_stats"]
        assert (found["success"]["count"], found["fail"]["count"]) == (0, 1)
        controller.silent_members = {0}
        assert (await ask("POST", "/v2/models/default/infer", *request({"x": X}, timeout=100_000))).status == 203

    play(main)


def test_an_app_is_asked_like_a_model(world):
    play, store, _ = world
    store.create(App("one", (M0,)))
    store.create(App("vote", (M0, M1), "exp4", combine="vote", slo_ns=5 * 10**9))
    store.create(App("empty"))

    async def main(ask):
        for binary in ((), ("x",)):
            body = request({"x": X}, binary=binary, id="7", binary_data_output=bool(binary), timeout=5_000_000)
            answer = await ask("POST", "/v2/models/one/infer", *body)
            found, outputs = outputs_of(answer)
            assert answer.status == 200 and "cwd-default" not in answer.headers
            assert (found["model_name"], found["id"]) == ("one", "7") and np.array_equal(outputs["y"], X)
            assert found["parameters"]["default"] is False and found["parameters"]["members"] == "m0"
        answer = await ask("POST", "/v2/models/vote/infer", *request({"x": X[None]}, timeout=5_000_000))
        found, outputs = outputs_of(answer)
        assert found["outputs"] == [{"name": "y", "datatype": "INT64", "shape": [1], "data": [2]}] and outputs["y"] == 2
        assert (found["parameters"]["members_asked"], found["parameters"]["members_answered"]) == (2, 2)
        assert found["parameters"]["confidence"] == 1.0
        meta = (await ask("GET", "/v2/models/vote")).json
        assert meta["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [3]}] and meta["versions"] == ["1"]
        assert meta["outputs"] == [{"name": "y", "datatype": "INT64", "shape": []}] and meta["name"] == "vote"
        assert (await ask("GET", "/v2/models/vote/ready")).status == 200
        assert (await ask("GET", "/v2/models/empty/ready")).status == 503
        assert (await ask("GET", "/v2/models/vote/config")).json["name"] == "vote"
        assert (await ask("POST", "/v2/models/empty/infer", *request({"x": X}))).json["code"] == "MODEL_NOT_READY"
        assert (await ask("POST", "/v2/models/m1/infer", *request({"x": X}, timeout=5_000_000))).status == 200
        bad = await ask("POST", "/v2/models/one/infer", *request({"x": np.zeros(4, "f4")}, timeout=5_000_000))
        assert (bad.status, bad.json["code"]) == (400, "BAD_SHAPE")
        (stats,) = (await ask("GET", "/v2/models/one/stats")).json["model_stats"]
        assert (stats["inference_stats"]["success"]["count"], stats["inference_stats"]["fail"]["count"]) == (2, 1)
        assert stats["inference_stats"]["cache_miss"]["count"] == 2

    play(main)


def test_a_default_is_marked_in_body_and_status(world):
    play, store, controller = world
    store.create(App("app", (M0,), default="[7, 8, 9]"))
    store.create(App("text", (M0,), default='"nobody knows"'))
    store.create(App("none", (M0,)))
    controller.silent_members = {0}

    async def main(ask):
        answer = await ask("POST", "/v2/models/app/infer", *request({"x": X}, timeout=50_000))
        assert (answer.status, answer.headers["cwd-default"]) == (203, "DEADLINE_MISSED")
        parameters, (entry,) = answer.json["parameters"], answer.json["outputs"]
        assert parameters["default"] is True and parameters["reason"] == "DEADLINE_MISSED" and parameters["explanation"]
        assert parameters["members_answered"] == 0
        assert entry == {"name": "y", "datatype": "FP32", "shape": [3], "data": [7.0, 8.0, 9.0]}
        wanted = await ask("POST", "/v2/models/app/infer", *request({"x": X}, timeout=50_000, default_status=200))
        assert wanted.status == 200 and wanted.headers["cwd-default"] and wanted.json["parameters"]["default"] is True
        text = await ask("POST", "/v2/models/text/infer", *request({"x": X}, timeout=50_000))
        assert text.status == 203 and text.json["outputs"][0]["data"] == ["nobody knows"]
        refused = await ask("POST", "/v2/models/none/infer", *request({"x": X}, timeout=50_000))
        assert refused.status == 503 and refused.json["code"] == "DEADLINE_MISSED"
        assert (await ask("POST", "/v2/models/app/infer", *request({"x": X}, default_status=404))).status == 400

    play(main)


def test_feedback_and_what_is_told_of_apps(world):
    play, store, controller = world
    store.create(App("app", (M0, M1), "exp4", combine="mean", loss="absolute", cache=True, slo_ns=5 * 10**9))
    store.create(App("users", (M0,), context="user", slo_ns=5 * 10**9))

    async def main(ask):
        async def feed(name="app", **body):
            return await ask("POST", f"/v2/apps/{name}/feedback", json.dumps(body).encode())

        answer = await ask("POST", "/v2/models/app/infer", *request({"x": X}, timeout=5_000_000))
        number = answer.json["parameters"]["request_id"]
        assert (await feed(request_id=number, label=X.tolist())).json == {"applied": True}
        assert (await feed(request_id=number, label=X.tolist())).json == {"applied": False}
        given = [{"name": "x", "datatype": "FP32", "shape": [3], "data": X.tolist()}]
        assert (await feed(inputs=given, label=X.tolist(), feedback_id="f")).json == {"applied": True}
        assert (await feed(inputs=given, label=X.tolist(), feedback_id="f")).json == {"applied": False}
        assert controller.executions == {0: 1, 1: 1}
        for body in ({"label": 1}, {"inputs": [], "label": 1}, {"request_id": number}, {"request_id": "zz", "label": 1},
                     {"request_id": 5, "label": 1}):
            assert (await feed(**body)).status == 400, body
        assert "'request_id'" in (await feed(label=1)).json["error"]
        mixed_up = await feed("users", request_id=number, label=1, feedback_id="new")
        assert mixed_up.status == 400 and mixed_up.json["error"].endswith("is of app, and not of users")
        assert (await feed(request_id="12", label=1)).status == 404
        assert (await feed("nobody", label=1)).status == 404
        assert (await ask("POST", "/v2/models/users/infer", *request({"x": X}))).status == 400
        assert (await ask("POST", "/v2/models/users/infer", *request({"x": X}, context="anna", timeout=5_000_000))).status == 200
        gone = await ask("POST", "/v2/cache/invalidate", b'{"model": "m1", "version": 1}')
        assert gone.json == {"dropped": 1} and (await ask("POST", "/v2/cache/invalidate", b'{"model": "m1"}')).json["dropped"] == 0
        assert (await ask("POST", "/v2/cache/invalidate", b"{}")).status == 400
        listed = (await ask("GET", "/v2/apps")).json
        assert [app["name"] for app in listed["apps"]] == ["app", "users"]
        assert listed["cache"]["hits"] == 4 and listed["cache"]["entries"] == 1 and listed["cache"]["hit_ratio"] == 4 / 6
        told = (await ask("GET", "/v2/apps/app")).json
        assert told["members"] == ["m0", "m1"] and (told["counts"]["predictions"], told["counts"]["errors"]) == (4, 1)
        (stats,) = (await ask("GET", "/v2/models/app/stats")).json["model_stats"]
        assert stats["inference_stats"]["cache_miss"]["count"] == 2
        assert (await ask("GET", "/status.json")).json["cache"]["hits"] == 4

    play(main)


def test_a_client_that_hangs_up_ends_what_nobody_else_waits_for(world):
    play, store, controller = world
    store.create(App("app", (M0, M1), "exp4", combine="mean", slo_ns=20 * 10**9))
    controller.silent_members = {0, 1}

    async def main(ask):
        hang_up = asyncio.Event()
        body = request({"x": X}, timeout=20_000_000)
        asking = asyncio.ensure_future(ask("POST", "/v2/models/app/infer", *body, hang_up=hang_up))
        while sum(controller.executions.values()) < 2:
            await asyncio.sleep(0.01)
        hang_up.set()
        assert (await asking).status == 0
        (stats,) = (await ask("GET", "/v2/models/app/stats")).json["model_stats"]
        assert stats["inference_stats"]["cancel"]["count"] == 1
        from cwd.wire.messages import Type
        await asyncio.to_thread(controller.sees, Type.CANCEL, 2)

    play(main)


def test_a_gateway_sees_the_first_app_of_the_usual_store(world, tmp_path, monkeypatch):
    _, _, controller = world
    monkeypatch.setenv("CWD_APPS", str(tmp_path / "usual.db"))
    monkeypatch.setattr("cwd.gateway.apps._LOOK_NS", 0)

    async def main():
        async with AsyncClient(controller.endpoint) as client:
            gateway = Gateway(GatewayOptions(), client)
            app = make_app(gateway)
            body = request({"x": X}, timeout=5_000_000)
            assert (await ask(app, "POST", "/v2/models/app/infer", *body)).status == 404
            assert (await ask(app, "POST", "/v2/apps/app/feedback", b"{}")).status == 404
            with AppStore() as usual:
                usual.create(App("app", (M0,)))
            assert (await ask(app, "POST", "/v2/models/app/infer", *body)).status == 200
            await gateway.applications.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_feedback_goes_to_the_gateway_that_answered(world, tmp_path):
    """Two gateways over one store: an id of the one is told apart at the other from what nobody remembers."""
    play, store, controller = world
    store.create(App("app", (M0, M1), "exp4", combine="mean", loss="absolute", cache=True, slo_ns=5 * 10**9))
    given = [{"name": "x", "datatype": "FP32", "shape": [3], "data": X.tolist()}]

    async def main(first):
        async def feed(ask, **body):
            answer = await ask("POST", "/v2/apps/app/feedback", json.dumps({"label": X.tolist(), **body}).encode())
            return answer.status, answer.json.get("code", answer.json.get("applied"))

        async with AsyncClient(controller.endpoint) as client:
            await client.connect()
            gateway = Gateway(GatewayOptions(apps=str(tmp_path / "apps.db")), client)
            app = make_app(gateway)

            async def second(*args, **kwargs):
                return await ask(app, *args, **kwargs)

            answer = await first("POST", "/v2/models/app/infer", *request({"x": X}, timeout=5_000_000))
            number = answer.json["parameters"]["request_id"]
            assert await feed(second, request_id=number) == (404, "NOT_HERE")
            assert await feed(first, request_id=number) == (200, True)
            # the inputs, under an id of the sender's own, are taken by both, and count once
            assert await feed(second, inputs=given, feedback_id="mine") == (200, True)
            assert await feed(first, inputs=given, feedback_id="mine") == (200, False)
            store.remove("app")
            await asyncio.sleep(0.15)
            store.create(App("app", (M0,)))
            await asyncio.sleep(0.15)
            assert await feed(first, request_id=number) == (400, "BAD_ARGUMENT")
            await gateway.applications.close()
            gateway.catalog.close()

    play(main)
