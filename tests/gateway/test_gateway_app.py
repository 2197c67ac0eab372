"""The application through ASGI, without sockets: routes, statuses, refusals, a client that hangs up, counts."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib

import numpy as np
import pytest
from asgi import DOUBLE, FakeClient, app_of, ask, outputs_of, request, run

from cwd.errors import Code, CwdError, RemoteProtocolError, request_error
from cwd.gateway.statistics import Histogram, bucket_of, edge_ns

X = np.arange(6, dtype="f4").reshape(2, 3)
INFER = "/v2/models/double/infer"


def asked(method, path, body=b"", headers=None, client=None, **options):
    """One request to a fresh application."""
    return run(ask(app_of(client, **options)[0], method, path, body, headers))


def failing(error, **parameters):
    """The answer when the controller says `error`."""
    client = FakeClient()

    async def work(*_):
        raise error

    client.work = work
    return asked("POST", INFER, *request({"x": X}, **parameters), client=client)


@pytest.mark.parametrize("binary", [(), ("x",)])
@pytest.mark.parametrize("answer_binary", [False, True])
def test_infer(binary, answer_binary):
    client = FakeClient()
    body, headers = request({"x": X}, binary=binary, id="7", timeout=30_000, app="shop", binary_data_output=answer_binary)
    answer = asked("POST", INFER, body, headers, client)
    found, outputs = outputs_of(answer)
    assert answer.status == 200 and ("inference-header-content-length" in answer.headers) == answer_binary
    assert answer.headers["content-type"] == ("application/octet-stream" if answer_binary else "application/json")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert found["id"] == "7" and (found["model_name"], found["model_version"]) == ("double", "1")
    assert found["parameters"] == {"queued_us": 2, "loaded_us": 1, "executed_us": 5, "total_us": 9, "batch_size": 2,
                                   "worker": 3, "cold": True}
    assert np.array_equal(outputs["y"], 2 * X)
    (name, inputs, slo_s, app), = client.asked
    assert (name, app) == ("double", "shop") and 0 < slo_s <= 0.03 and np.array_equal(inputs["x"], X)


def test_several_inputs_some_binary_and_in_parts():
    inputs = {"a": np.array([1, 2], "f4"), "b": np.arange(4), "c": np.array(True)}
    app, _ = app_of()
    for binary in ((), ("b",), ("a", "b", "c")):
        for parts in (1, 7):
            body, headers = request(inputs, binary=binary, binary_data_output=True)
            answer = run(ask(app_of()[0], "POST", "/v2/models/mixed/versions/1/infer", body, headers, parts=parts))
            outputs = outputs_of(answer)[1]
            assert answer.status == 200 and outputs["sum"] == 10 and outputs["half"].dtype == "f2"
            assert np.array_equal(outputs["back"], np.arange(4))


def test_compressed_bodies():
    body, headers = request({"x": X}, binary=["x"])
    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body)), ("identity", body)):
        assert asked("POST", INFER, packed, {**headers, "Content-Encoding": encoding}).status == 200
    assert asked("POST", INFER, body, {**headers, "Content-Encoding": "br"}).status == 400
    assert asked("POST", INFER, gzip.compress(body)[:-3], {**headers, "Content-Encoding": "gzip"}).status == 400
    bomb = gzip.compress(bytes(10_000_000))
    assert asked("POST", INFER, bomb, {"Content-Encoding": "gzip"}, body_max_bytes=100_000).status == 413
    assert asked("POST", INFER, bytes(101), body_max_bytes=100).status == 413
    assert asked("POST", INFER, b"", {"Content-Length": "101"}, body_max_bytes=100).status == 413
    assert run(ask(app_of(body_max_bytes=100)[0], "POST", INFER, bytes(101), parts=5)).status == 413


def test_without_a_timeout_the_default_slo_holds():
    client = FakeClient()
    for parameters in ({}, {"timeout": 0}):
        assert asked("POST", INFER, *request({"x": X}, **parameters), client=client, slo_ns=70_000_000).status == 200
    assert all(0 < slo_s <= 0.07 for _, _, slo_s, _ in client.asked)


def test_a_timeout_that_passes_before_the_request_is_read():
    client = FakeClient()
    answer = asked("POST", INFER, *request({"x": X}, timeout=1), client=client)
    assert (answer.status, answer.json["code"]) == (503, "DEADLINE_EXPIRED") and not client.asked


@pytest.mark.parametrize("earliest_ns, code", [
    (4_000_000, "DEADLINE_EXPIRED"), (60_000_000, "SLO_BELOW_EXECUTION"), (0, "SLO_BELOW_EXECUTION")])
def test_what_is_left_of_a_timeout_says_nothing_of_the_timeout(earliest_ns, code):
    """The controller refuses what was left as shorter than an execution; the timeout of 50 ms may have been long enough."""
    answer = failing(request_error(Code.SLO_BELOW_EXECUTION, earliest_ns=earliest_ns), timeout=50_000)
    assert (answer.status, answer.json["code"]) == (503, code)


def test_an_answer_that_is_ready_after_the_timeout_is_not_sent_as_if_in_time():
    """The controller's answer came in time, and then the gateway was busy with others' until the deadline had passed."""
    client = FakeClient()

    async def busy(model, inputs, slo_s):
        time.sleep(0.06)
        return await client.double(model, inputs, slo_s)

    client.work = busy
    answer = asked("POST", INFER, *request({"x": X}, timeout=50_000), client=client)
    assert (answer.status, answer.json["code"]) == (503, "DEADLINE_MISSED")


@pytest.mark.parametrize("code, status", [
    (Code.DEADLINE_UNREACHABLE, 503), (Code.DEADLINE_EXPIRED, 503), (Code.DEADLINE_MISSED, 503), (Code.QUEUE_FULL, 503),
    (Code.SLO_BELOW_EXECUTION, 503), (Code.CREDIT_EXCEEDED, 503), (Code.NO_WORKER, 503), (Code.DRAINING, 503),
    (Code.CANCELLED, 503), (Code.WORKER_LOST, 503), (Code.CONTROLLER_LOST, 503), (Code.MODEL_NOT_READY, 503),
    (Code.EXECUTION_FAILED, 500), (Code.UNKNOWN_MODEL, 404), (Code.BAD_SHAPE, 400), (Code.BAD_SLO, 400),
    (Code.TOO_LARGE, 413),
])
def test_what_the_controller_says_becomes_a_status(code, status):
    answer = failing(request_error(code, text=f"no: {code.name}"))
    assert (answer.status, answer.json) == (status, {"error": f"no: {code.name}", "code": code.name})
    assert "retry-after" not in answer.headers  # nobody said when


@pytest.mark.parametrize("slo_us, earliest_ns, seconds, ms", [
    (100_000, 100_000_001, 1, 1), (100_000, 350_000_000, 1, 250), (100_000, 1_100_000_000, 1, 1000),
    (100_000, 1_100_000_001, 2, 1001), (2_000_000, 9_500_000_000, 8, 7500), (100_000, 50_000_000, 1, 1),
])
def test_retry_after_is_what_the_slo_was_missed_by(slo_us, earliest_ns, seconds, ms):
    answer = failing(request_error(Code.DEADLINE_UNREACHABLE, earliest_ns=earliest_ns), timeout=slo_us)
    assert answer.status == 503 and answer.json["earliest_us"] == -(-earliest_ns // 1000)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (str(seconds), str(ms))


def test_a_controller_that_breaks_the_protocol_is_not_the_clients_fault():
    assert failing(RemoteProtocolError("an answer of 3 bytes, where 24 were expected")).status == 500


def test_another_reason_to_wait_is_told_as_it_is():
    answer = failing(request_error(Code.QUEUE_FULL, earliest_ns=1_500_000_000), timeout=1_000_000)
    assert (answer.status, answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (503, "2", "1500")


def test_coming_back_does_not_help_an_slo_below_execution():
    answer = failing(request_error(Code.SLO_BELOW_EXECUTION, earliest_ns=50_000_000_000), timeout=10_000_000)
    assert answer.status == 503 and answer.json["earliest_us"] == 50_000_000 and "retry-after" not in answer.headers


def test_a_client_that_hangs_up_cancels():
    async def main():
        client, hang_up, working = FakeClient(), asyncio.Event(), asyncio.Event()

        async def work(*_):
            working.set()
            await asyncio.sleep(60)

        client.work = work
        app, gateway = app_of(client)
        task = asyncio.ensure_future(ask(app, "POST", INFER, *request({"x": X}, timeout=10**7), hang_up=hang_up))
        await working.wait()
        assert gateway.infer.in_flight == 1
        hang_up.set()
        answer = await task
        assert answer.status == 0 and client.cancelled == 1 and gateway.infer.in_flight == 0
        stats = gateway.statistics.report("double", 1)["inference_stats"]
        assert (stats["cancel"]["count"], stats["fail"]["count"], stats["success"]["count"]) == (1, 0, 0)

    run(main())


def test_a_cancelled_gateway_does_not_take_it_for_a_client_that_left():
    async def main():
        client = FakeClient()
        client.work = lambda *_: asyncio.sleep(60)
        task = asyncio.ensure_future(ask(app_of(client)[0], "POST", INFER, *request({"x": X}, timeout=10**7)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.cancelled == 1

    run(main())


def test_who_still_waits_at_the_end_is_told_so():
    async def main():
        client, working = FakeClient(), asyncio.Event()

        async def work(*_):
            working.set()
            await asyncio.sleep(60)

        client.work = work
        app, gateway = app_of(client)
        waiting = asyncio.ensure_future(ask(app, "POST", INFER, *request({"x": X}, timeout=10**7)))
        await working.wait()
        gateway.infer.give_up()
        answer = await waiting
        assert answer.status == 503 and "the gateway ends" in answer.json["error"] and client.cancelled == 1
        assert gateway.infer.in_flight == 0
        assert gateway.statistics.report("double", 1)["inference_stats"]["fail"]["count"] == 1

    run(main())


def test_health_follows_the_controller_and_the_end():
    client = FakeClient()
    app, gateway = app_of(client)
    assert run(ask(app, "GET", "/v2/health/live")).status == run(ask(app, "GET", "/v2/health/ready")).status == 200
    client.connected = False
    assert run(ask(app, "GET", "/v2/health/live")).status == 200
    answer = run(ask(app, "GET", "/v2/health/ready"))
    # once each endpoint has been looked at
    assert (answer.status, answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (503, "1", "400")
    client.connected, gateway.stopping = True, True
    assert run(ask(app, "GET", "/v2/health/ready")).status == 503


def test_metadata_and_ready():
    client = FakeClient()
    assert asked("GET", "/v2").json["extensions"] == [
        "binary_tensor_data", "parameters", "model_repository", "model_configuration", "statistics"]
    assert asked("GET", "/v2/models/double").json == {
        "name": "double", "versions": ["1"], "platform": "cwd",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3]}]}
    assert asked("GET", "/v2/models/double/versions/1/config").json["name"] == "double"
    assert asked("GET", "/v2/models/double/ready").status == 200
    client.there["cold"] = request_error(Code.MODEL_NOT_READY, text="its image is being staged")
    for path, status in (("nosuch", 404), ("double/versions/2", 404), ("double/versions/x", 400), ("cold", 503),
                         ("cold/ready", 503), ("nosuch/ready", 404), ("nosuch/config", 404), ("nosuch/stats", 404)):
        answer = asked("GET", f"/v2/models/{path}", client=client)
        assert answer.status == status and answer.json["error"]
    assert asked("GET", "/v3").json == {"error": "there is no /v3"}
    assert asked("POST", "/v2").status == asked("GET", INFER).status == 405


def test_the_index_says_why_a_model_is_not_ready():
    client = FakeClient(DOUBLE)
    client.there["cold"] = request_error(Code.MODEL_NOT_READY, text="no profile")
    assert asked("POST", "/v2/repository/index", client=client).json == [
        {"name": "cold", "version": "1", "state": "UNAVAILABLE", "reason": "no profile"},
        {"name": "double", "version": "1", "state": "READY", "reason": ""}]
    answer = asked("POST", "/v2/repository/index", b'{"ready": true}', client=client)
    assert [entry["name"] for entry in answer.json] == ["double"]
    assert asked("POST", "/v2/repository/index", b'{"ready": 1}', client=client).status == 400


def test_many_who_ask_share_one_lookup():
    async def main():
        client = FakeClient()
        app, _ = app_of(client)
        answers = await asyncio.gather(*(ask(app, "GET", "/v2/models/double/ready") for _ in range(20)),
                                       *(ask(app, "GET", "/v2/models/nosuch/ready") for _ in range(20)))
        assert [answer.status for answer in answers] == [200] * 20 + [404] * 20
        assert client.lookups == 2

    run(main())


def test_a_name_is_looked_up_again_now_and_then(monkeypatch):
    async def main():
        client = FakeClient()
        app, gateway = app_of(client)

        async def lookups():
            # the fake's `known` counts as one
            before = client.lookups
            assert (await ask(app, "POST", INFER, *request({"x": X}))).status == 200
            await asyncio.sleep(0)
            return client.lookups - before

        assert [await lookups() for _ in range(3)] == [2, 1, 1]
        monkeypatch.setattr("cwd.gateway.catalog._NAMED_NS", 0)
        assert await lookups() == 2
        before = client.lookups
        assert (await ask(app, "POST", "/v2/models/double/versions/1/infer", *request({"x": X}))).status == 200
        assert client.lookups == before + 1

    run(main())


class FakeAdmin:
    """Registers and removes in a client's models, as a controller would."""

    def __init__(self, client):
        self.client, self.calls = client, []

    def call(self, verb, **args):
        self.calls.append((verb, args))
        name = args["name"]
        if verb == "model.rm":
            if self.client.there.pop(name, None) is None:
                raise CwdError(f"no model {name} is registered", code=Code.UNKNOWN_MODEL)
            return {"removed": 1}
        if name != "double":
            raise CwdError(f"no model {name}", code=Code.UNKNOWN_MODEL)
        self.client.there[name] = DOUBLE
        return {"handle": 1, "ready": True}

    def status(self):
        return {"workers": {}, "in_flight": 0}


def test_load_and_unload():
    client = FakeClient()
    app, gateway = app_of(client, admin_endpoint="ipc:///nowhere")
    gateway.catalog._admins["ipc:///nowhere"] = admin = FakeAdmin(client)

    def post(name, verb, body=b""):
        return run(ask(app, "POST", f"/v2/repository/models/{name}/{verb}", body)).status

    # what is registered needs nothing
    assert post("double", "load") == 200 and admin.calls == []
    assert post("double", "unload", b'{"parameters": {"unload_dependents": false}}') == 200
    assert run(ask(app, "GET", "/v2/models/double/ready")).status == 404
    assert post("double", "unload") == 404
    assert post("double", "load", b"{}") == 200 and run(ask(app, "GET", "/v2/models/double/ready")).status == 200
    assert post("nosuch", "load") == 404
    assert post("double", "load", b'{"parameters": {"config": "{}"}}') == 400
    assert post("double", "load", b'{"parameters": {"file:1/model.pt2": "AA=="}}') == 400
    assert post("double", "load", b"nonsense") == 400
    assert [verb for verb, _ in admin.calls] == ["model.rm", "model.rm", "model.add", "model.add"]


def test_without_an_admin_endpoint_nothing_is_loaded_or_unloaded():
    client = FakeClient()
    for name, verb, status in (("double", "load", 200), ("double", "unload", 400), ("nosuch", "load", 400)):
        answer = asked("POST", f"/v2/repository/models/{name}/{verb}", client=client)
        assert answer.status == status and (status == 200 or "--admin-endpoint" in answer.json["error"])
    assert "double" in client.there


def test_statistics_count_what_went_through():
    app, _ = app_of()
    body, headers = request({"x": X})
    for _ in range(6):
        run(ask(app, "POST", INFER, body, headers))
    run(ask(app, "POST", INFER, *request({"x": X.astype("f8")})))
    run(ask(app, "POST", "/v2/models/nosuch/infer", body, headers))
    entry, = run(ask(app, "GET", "/v2/models/double/stats")).json["model_stats"]
    assert (entry["name"], entry["version"], entry["inference_count"], entry["execution_count"]) == ("double", "1", 6, 3)
    stats = entry["inference_stats"]
    assert {name: found["count"] for name, found in stats.items()} == {
        "success": 6, "fail": 1, "queue": 6, "compute_input": 6, "compute_infer": 6, "compute_output": 6, "cache_hit": 0,
        "cache_miss": 0, "cancel": 0}
    assert stats["queue"]["ns"] == 6 * 2_000 and stats["compute_infer"]["ns"] == 6 * 5_000
    assert stats["success"]["ns"] >= stats["compute_input"]["ns"] + stats["compute_output"]["ns"] > 0
    batch, = entry["batch_stats"]
    assert batch["batch_size"] == 2 and batch["compute_infer"] == {"count": 3, "ns": 3 * 5_000}
    everything = run(ask(app, "GET", "/v2/models/stats")).json["model_stats"]
    assert [(found["name"], found["inference_count"]) for found in everything] == [("double", 6), ("mixed", 0)]
    status = run(ask(app, "GET", "/status.json")).json
    assert status["totals"] == {"answered": 6, "failed": 1, "cancelled": 0}
    assert status["strays"] == {"UNKNOWN_MODEL": 1} and status["models"][0]["answered"] == 6
    assert status["models"][0]["codes"] == {"BAD_DTYPE": 1} and status["models"][0]["p99_ms"] > 0


def test_models_that_are_gone_are_forgotten():
    client = FakeClient()
    app, gateway = app_of(client)
    run(ask(app, "POST", INFER, *request({"x": X})))
    del client.there["double"]
    gateway.catalog._kept.clear()
    run(ask(app, "POST", "/v2/repository/index"))
    assert not gateway.statistics.models


def test_quantiles_are_upper_edges():
    histogram = Histogram()
    assert histogram.quantile_ns(0.5) is None
    for value in range(1, 1001):
        histogram.add(value * 1000)
    for point in (0.5, 0.99):
        assert 1000 * 1000 * point <= histogram.quantile_ns(point) <= 1070 * 1000 * point
    for value in (0, 1, 15, 16, 31, 32, 1000, 123_456_789):
        assert edge_ns(bucket_of(value)) <= value < edge_ns(bucket_of(value) + 1)


def test_a_bug_is_told_as_json():
    client = FakeClient()

    async def work(*_):
        raise ZeroDivisionError

    client.work = work
    # the outermost layer answers and raises again, for the server's log
    sent = []

    async def main():
        app, _ = app_of(client)
        body, headers = request({"x": X})

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False} if not sent else await asyncio.sleep(60)

        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        with pytest.raises(ZeroDivisionError):
            await app({"type": "http", "method": "POST", "path": INFER, "headers": pairs, "scheme": "http",
                       "query_string": b"", "root_path": ""}, receive, send)

    run(main())
    assert sent[0]["status"] == 500 and "error" in json.loads(sent[1]["body"])


def test_the_page_loads_nothing_from_elsewhere():
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = asked("GET", path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert b"//" not in answer.body.replace(b"// The status page", b"") and b"innerHTML" not in answer.body
        assert "default-src 'none'" in answer.headers["content-security-policy"]
