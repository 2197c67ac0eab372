"""A worker and a client, played message by message: what goes right, and what each refusal is called."""

from __future__ import annotations

import time

import play
import pytest
from play import MS, SECOND, Controller, serve

from cwd.controller import telemetry
from cwd.errors import Code
from cwd.wire.messages import Role, Type


@pytest.fixture
def worker(served):
    worker = served.worker(pages=8)
    worker.settle(2)
    yield worker
    worker.close()
    _until_gone(served)


@pytest.fixture
def client(served):
    client = served.client()
    yield client
    client.close()


def _until_gone(controller: Controller) -> None:
    """Wait until the controller has noticed that no worker is left: a closed socket is noticed by silence."""
    admin = controller.admin()
    end = time.monotonic() + 20
    while admin.ask("status")[1]["workers"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    admin.close()


def test_a_request_is_loaded_executed_and_answered_with_its_own_payload(worker, client):
    model = client.lookup("fixed-0", version=1)
    request = client.infer(model, b"12345678")
    kinds, action, payload = worker.serve_one(b"answer!!")
    assert kinds == [Type.LOAD, Type.EXEC]
    assert payload == [b"12345678"] and action["batch"] == 1 and action["model"] == model
    fields, output = client.reply(request)
    assert fields["status"] == 0 and output == [b"answer!!"] and fields["cold"] == 1
    assert fields["queued_ns"] + fields["exec_ns"] <= fields["total_ns"]
    again = client.infer(model, b"abcdefgh")
    kinds, _, payload = worker.serve_one(b"another!")
    assert kinds == [Type.EXEC] and payload == [b"abcdefgh"], "it is on the device already"
    fields, output = client.reply(again)
    assert (fields["status"], output, fields["cold"]) == (0, [b"another!"], 0)


def test_requests_that_wait_together_run_as_one_batch_and_each_gets_its_own_row(worker, client):
    model = client.lookup("fixed-1")
    first = client.infer(model, b"first   ")
    kind, load, _ = worker.next_action()
    assert kind == Type.LOAD
    rest = [client.infer(model, bytes([i]) * 8) for i in range(3)]
    time.sleep(0.1)
    worker.pages_free -= load["pages"]
    worker.done(load)
    seen: dict[int, bytes] = {}
    while len(seen) < 4:
        kind, action, payload = worker.next_action()
        assert kind == Type.EXEC and len(action["rows"]) == len(payload) <= action["batch"]
        worker.executed(action, [b"<" + data + b">" for data in payload])
        for _ in payload:
            fields, output = client.until(Type.REPLY)
            assert fields["status"] == 0 and fields["batch"] == len(payload)
            seen[fields["request"]] = output[0]
    assert seen == {first: b"<first   >", **{request: b"<" + bytes([i]) * 8 + b">" for i, request in enumerate(rest)}}


def test_a_dynamic_model_runs_in_the_size_class_that_holds_the_request(worker, client):
    model = client.lookup("dynamic-0")
    request = client.infer(model, bytes(4 * 17), dims=(17,))
    _, action, payload = worker.serve_one()
    assert action["size_class"] == 1 and list(action["rows"][0]) == [17, 0, 0, 0] and len(payload[0]) == 68
    assert client.reply(request)[0]["status"] == 0


@pytest.mark.parametrize(("change", "code"), [
    ({"model": 12345}, Code.UNKNOWN_MODEL),
    ({"model": (9 << 32) | 1}, Code.UNKNOWN_MODEL),
    ({"payload": bytes(7)}, Code.BAD_PAYLOAD_SIZE),
    ({"payload": bytes(9)}, Code.BAD_PAYLOAD_SIZE),
    ({"payload": b""}, Code.BAD_PAYLOAD_SIZE),
    ({"dims": (1,)}, Code.UNKNOWN_SIZE),
    ({"slo_ns": 0}, Code.BAD_SLO),
    ({"slo_ns": 21 * SECOND}, Code.BAD_SLO),
    ({"slo_ns": 1 * MS}, Code.SLO_BELOW_EXECUTION),
    ({"deadline_ns": 1}, Code.DEADLINE_EXPIRED),
])
def test_a_request_at_fault_is_refused_with_its_code(worker, client, change, code):
    model = client.lookup("fixed-0")
    request = client.infer(**{"model": model, **change})
    fields, output = client.reply(request)
    assert (Code(fields["status"]), output) == (code, [])


def test_a_refusal_says_when_it_could_have_been_answered_and_the_log_says_the_same(tmp_path):
    play.make_repository(tmp_path / "repo", 1, 0, load_ns_per_page=500 * MS)
    with Controller(tmp_path, repository=str(tmp_path / "repo")) as controller:
        worker, client = controller.worker(), controller.client()
        worker.settle(1)
        model = client.lookup("fixed-0")
        request = client.infer(model, slo_ns=100 * MS)
        told, _ = client.reply(request)
        assert told["status"] == Code.DEADLINE_UNREACHABLE and told["earliest_ns"] > 500 * MS
        again = client.infer(model, slo_ns=told["earliest_ns"] + 15 * SECOND)
        assert serve(worker, client, {again})[again]["status"] == 0
        assert controller.stop() == 0
        rows = telemetry.requests_frame(telemetry.read_log(controller.state_dir))
    assert rows["earliest_ns"][rows["request"] == request].tolist() == [told["earliest_ns"]]
    assert rows["earliest_ns"][rows["request"] == again].tolist() == [0]


def test_sizes_outside_every_class_are_unknown(worker, client):
    model = client.lookup("dynamic-0")
    for dims in ((65,), (0,), (), (4, 4)):
        request = client.infer(model, bytes(4), dims=dims)
        assert client.reply(request)[0]["status"] == Code.UNKNOWN_SIZE, dims


def test_a_request_id_in_flight_and_one_request_too_many_are_refused_and_the_others_go_on(worker, client):
    model = client.lookup("fixed-0")
    request = client.infer(model, slo_ns=15 * SECOND)
    kind, action, _ = worker.next_action()
    client.infer(model, slo_ns=15 * SECOND, request=request)
    assert client.reply(request)[0]["status"] == Code.DUPLICATE_REQUEST
    more = [client.infer(model, slo_ns=15 * SECOND) for _ in range(8)]
    assert client.reply(more[7])[0]["status"] == Code.CREDIT_EXCEEDED
    if kind == Type.LOAD:
        worker.done(action)
    else:
        worker.executed(action, [b"answer!!"])
    replies = serve(worker, client, {request, *more[:7]})
    assert {fields["status"] for fields in replies.values()} == {0}


def test_a_queued_request_can_be_cancelled_and_a_running_one_cannot(worker, client):
    model = client.lookup("fixed-2")
    request = client.infer(model, slo_ns=15 * SECOND)
    kind, load, _ = worker.next_action()
    assert kind == Type.LOAD
    client.send(Type.CANCEL, request=request)
    assert client.reply(request)[0]["status"] == Code.CANCELLED
    worker.done(load)
    second = client.infer(model, slo_ns=15 * SECOND)
    kind, action, _ = worker.next_action()
    assert kind == Type.EXEC
    client.send(Type.CANCEL, request=second)
    client.send(Type.CANCEL, request=999)
    time.sleep(0.05)
    worker.executed(action, [b"answer!!"])
    assert client.reply(second)[0]["status"] == 0


def test_a_failed_execution_is_answered_as_such(worker, client):
    model = client.lookup("fixed-0")
    request = client.infer(model, slo_ns=300 * MS)
    replies = serve(worker, client, {request}, status=Code.DEVICE_ERROR)
    assert replies[request]["status"] in (Code.EXECUTION_FAILED, Code.DEADLINE_EXPIRED)


def test_results_of_another_epoch_and_of_unknown_actions_change_nothing(served, worker, client):
    admin = served.admin()
    before = admin.ask("status")[1]["counters"]
    model = client.lookup("fixed-0")
    request = client.infer(model, slo_ns=15 * SECOND)
    kind, action, _ = worker.next_action()
    while kind != Type.EXEC:
        worker.done(action)
        kind, action, _ = worker.next_action()
    worker.executed(action, [b"too old!"], epoch=worker.epoch - 1)
    worker.executed({"action": action["action"] + (1 << 32)}, [b"unknown!"])
    worker.executed({"action": 5}, [b"unknown!"])
    worker.executed(action, [b"answer!!"])
    fields, output = client.reply(request)
    assert (fields["status"], output) == (0, [b"answer!!"])
    worker.executed(action, [b"repeated"])
    after, end = before, time.monotonic() + 20
    while after["results_stale"] < before["results_stale"] + 3 and time.monotonic() < end:
        after = admin.ask("status")[1]["counters"]
    assert after["stale_epoch"] == before["stale_epoch"] + 1
    assert after["results_stale"] == before["results_stale"] + 3
    assert not client.socket.poll(50), "one reply is all there is"
    admin.close()


def test_a_worker_that_leaves_with_a_request_has_it_answered_or_served_elsewhere(served, client):
    first = served.worker(name="first")
    first.settle(2)
    model = client.lookup("fixed-3")
    request = client.infer(model, slo_ns=15 * SECOND)
    kind, _, _ = first.next_action()
    second = served.worker(name="second")
    second.settle(2)
    first.send(Type.GOODBYE, code=0, text="")
    kinds, _, _ = second.serve_one()
    assert kinds[-1] == Type.EXEC
    assert client.reply(request)[0]["status"] == 0
    last = client.infer(model, slo_ns=15 * SECOND)
    kind, _, _ = second.next_action()
    assert kind == Type.EXEC
    second.close()
    assert Code(client.reply(last)[0]["status"]) in (Code.WORKER_LOST, Code.NO_WORKER)
    _until_gone(served)
    nobody = client.infer(model)
    assert client.reply(nobody)[0]["status"] == Code.NO_WORKER
    first.close()


def test_a_client_that_vanishes_leaves_nothing_behind(served, worker):
    admin = served.admin()
    client = served.client()
    model = client.lookup("fixed-0")
    for _ in range(5):
        client.infer(model, slo_ns=15 * SECOND)
    worker.next_action()
    end = time.monotonic() + 20
    while (facts := admin.ask("status")[1])["in_flight"] < 5:
        assert time.monotonic() < end, facts
    client.close()
    end = time.monotonic() + 20
    while (facts := admin.ask("status")[1])["in_flight"] or facts["core"]["requests_live"] > 1:
        assert time.monotonic() < end, facts
        if (came := worker.poll()) is not None:
            kind, action, payload = came
            worker.executed(action, [b"answer!!"] * len(payload)) if kind == Type.EXEC else worker.done(action)
    admin.close()


def test_hello_must_come_first_once_and_on_the_right_socket(served):
    for which, kind, fields in (
        ("clients", Type.LOOKUP, {"request": 1, "name": "fixed-0", "version": 0}),
        ("workers", Type.CANCEL, {"request": 1}),
        ("admin", Type.ADMIN, {"request": 1, "verb": "status", "args": {}}),
    ):
        peer = served.peer(which)
        peer.send(kind, **fields)
        fields, _ = peer.until(Type.ERROR)
        assert fields["code"] == Code.NOT_INTRODUCED and fields["re_type"] == kind
        hello = {"minor": 0, "name": "x", "boot": bytes(16), "host": bytes(16), "now_ns": 1, "caps": {}}
        wrong = Role.ADMIN if which == "clients" else Role.CLIENT
        peer.send(Type.HELLO, role=int(wrong), **hello)
        assert peer.until(Type.ERROR)[0]["code"] == Code.UNEXPECTED_TYPE
        if which == "workers":
            peer.send(Type.HELLO, role=int(Role.WORKER), **hello)
            assert peer.until(Type.ERROR)[0]["code"] == Code.MALFORMED, "a worker has capabilities"
        else:
            right = Role.CLIENT if which == "clients" else Role.ADMIN
            peer.send(Type.HELLO, role=int(right), **hello)
            peer.until(Type.WELCOME)
            peer.send(Type.HELLO, role=int(right), **hello)
            assert peer.until(Type.ERROR)[0]["code"] == Code.UNEXPECTED_TYPE
        peer.close()


def test_a_worker_with_another_page_size_is_turned_away_with_a_clear_line(served):
    worker = play.Worker(served.context, f"ipc://{served.run_dir}/workers.sock")
    caps = {"kind": "played", "device": "x", "gpus": 1, "page_bytes": 4096, "pages_total": 8, "lanes": ["exec", "load"],
            "agenda_max": 8, "programs": b"", "images": True, "resident": b"", "prepares": False}
    worker.send(Type.HELLO, minor=0, role=1, name="x", boot=bytes(16), host=bytes(16), now_ns=1, caps=caps)
    fields, _ = worker.until(Type.ERROR)
    assert fields["code"] == Code.MALFORMED and "4096" in fields["text"]
    worker.close()


def test_lookup_says_why_not(served, client):
    client.send(Type.LOOKUP, request=1, name="nobody", version=0)
    assert client.until(Type.ERROR)[0]["code"] == Code.UNKNOWN_MODEL
    client.send(Type.LOOKUP, request=2, name="fixed-0", version=7)
    assert client.until(Type.ERROR)[0]["code"] == Code.UNKNOWN_MODEL
    client.send(Type.LOOKUP, request=3, name="fixed-0", version=0)
    assert client.until(Type.ERROR, re_id=3)[0]["code"] == Code.MODEL_NOT_READY
    stranger = served.worker(kind="stranger")
    client.send(Type.LOOKUP, request=4, name="fixed-0", version=0)
    fields, _ = client.until(Type.ERROR, re_id=4)
    assert fields["code"] == Code.NOT_PROFILED and "stranger" in fields["text"]
    admin = served.admin()
    assert admin.ask("status")[1]["servable"] == 0
    listed = admin.ask("model.ls", after=0)[1]["models"]["fixed-0/1"]
    assert (listed["ready"], listed["reason"]) == (False, "not profiled on stranger")
    admin.close()
    stranger.send(Type.GOODBYE, code=0, text="")
    stranger.close()


def test_models_are_listed_in_pages_of_handles(served, client):
    client.send(Type.LIST, request=1, after=0)
    fields, _ = client.until(Type.MODELS)
    assert set(fields["models"]) == {"fixed-0/1", "fixed-1/1", "fixed-2/1", "fixed-3/1", "dynamic-0/1"}
    assert fields["next"] == 0
