"""The blocking client over a real socket, against a controller that the test commands."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_controller import DOUBLE, FakeController, X

import cwd
from cwd.errors import Code
from cwd.wire.messages import Type


@pytest.fixture
def client(controller):
    with cwd.Client(controller.endpoint) as made:
        yield made


def test_one_request(client):
    result = client.infer("double", X, "1s")
    assert np.array_equal(result.output, 2 * X) and result["y"] is result.output
    result.output[0, 0] = 5
    assert (result.queued_ns, result.load_ns, result.exec_ns, result.total_ns) == (1, 2, 3, 4)
    assert (result.batch, result.worker, result.cold) == (5, 6, True)
    assert 0 < result.round_trip_ns < 10**9 and set(result.timing()) >= {"batch", "round_trip_ns"}
    assert repr(result).startswith("<double (y: float32[2, 3])")


def test_many_in_flight_on_one_connection(client, controller):
    pendings = [client.submit("double", X * i, 5.0) for i in range(60)]
    for i, pending in enumerate(pendings):
        assert np.array_equal(pending.result().output, 2 * i * X)
    pendings = {client.submit("double", X * i, 5.0): i for i in range(60)}
    seen = []
    for pending in cwd.as_completed(pendings):
        assert pending.result().output[0, 1] == 2 * pendings[pending]
        seen.append(pendings[pending])
    assert sorted(seen) == list(range(60))
    assert sum(kind == Type.HELLO for kind, _, _ in controller.seen) == 1
    assert sum(kind == Type.LOOKUP for kind, _, _ in controller.seen) == 1


def test_threads_share_a_client(client):
    def one(i):
        return [float(client.infer("double", X * i, "5s").output[0, 1]) for _ in range(40)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [[2.0 * i] * 40 for i in range(8)]


def test_result_in_another_thread_leaves_as_completed_its_call(tmp_path):
    go = threading.Event()
    controller = FakeController(tmp_path / "held.sock", lost_ms=60_000)
    controller.on_infer = lambda fields, payload: {} if go.wait(30) else None
    seen, results = [], []
    with cwd.Client(controller.endpoint) as client:
        pendings = [client.submit("double", X * i, "60s") for i in range(3)]
        connection = client._connection
        walker = threading.Thread(target=lambda: seen.extend(cwd.as_completed(pendings, timeout=20)))
        others = [threading.Thread(target=lambda p=p: results.append(p.result(20))) for p in pendings for _ in range(2)]
        walker.start()
        while not connection._leading:
            time.sleep(0.001)
        for other in others:
            other.start()
        while len(connection._followers) < len(others):
            time.sleep(0.001)
        go.set()
        for thread in (walker, *others):
            thread.join(25)
    controller.stop()
    assert set(seen) == set(pendings) and len(results) == len(others)
    assert all(len(pending._call.on_done) == 1 for pending in pendings), "who waited takes its callback away"


def test_as_completed_that_is_left_early_takes_its_callbacks_away(client, controller):
    controller.on_infer = lambda fields, payload: None if np.frombuffer(payload, "f4")[1] == 99 else {}
    stuck = client.submit("double", 99 * X, "20s")
    for i in range(20):
        assert next(cwd.as_completed([stuck, client.submit("double", X * i, "5s")])) is not stuck
    assert stuck._call.on_done == []
    settled = [client.submit("double", X, "5s") for _ in range(2)]
    for pending in settled:
        pending.result()
    assert next(cwd.as_completed(settled)) in settled


def test_a_waiting_thread_does_not_hold_up_another(client, controller):
    controller.on_infer = lambda fields, payload: None if np.frombuffer(payload, "f4")[1] == 99 else {}
    client.lookup("double")
    stuck = threading.Thread(target=lambda: pytest.raises(cwd.DeadlineMissed, client.infer, "double", 99 * X, "1s"))
    stuck.start()
    time.sleep(0.1)
    began = time.monotonic()
    for _ in range(20):
        client.infer("double", X, "500ms")
    assert time.monotonic() - began < 0.5
    stuck.join()


def test_each_request_carries_slo_deadline_and_app(client, controller):
    import zlib
    before = time.monotonic_ns()
    client.infer("double", X, "250ms", app="shop")
    fields = next(fields for kind, fields, _ in controller.seen if kind == Type.INFER)
    assert fields["slo_ns"] == 250_000_000 and fields["app"] == zlib.crc32(b"shop")
    assert before < fields["deadline_ns"] - 250_000_000 < time.monotonic_ns()
    assert fields["model"] == 7 + (1 << 32)


def test_no_answer_ends_at_the_deadline(client, controller):
    client.lookup("double")
    controller.on_infer = lambda fields, payload: None
    began = time.monotonic()
    with pytest.raises(cwd.DeadlineMissed, match="150ms"):
        client.infer("double", X, "150ms")
    assert 0.15 <= time.monotonic() - began < 0.3
    pending = client.submit("double", X, "10s")
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.05)
    assert not pending.done()


def test_refusals_are_typed_and_say_how_much(client, controller):
    controller.on_infer = lambda fields, payload: {"status": int(Code.DEADLINE_UNREACHABLE), "earliest_ns": 41_000_000}
    with pytest.raises(cwd.DeadlineUnreachable) as caught:
        client.infer("double", X, "25ms")
    assert caught.value.earliest_ns == 41_000_000 and "25ms" in str(caught.value) and "41ms" in str(caught.value)
    assert isinstance(caught.value, cwd.Refused)


def test_bad_requests_are_not_sent(client, controller):
    with pytest.raises(cwd.UnknownModel, match="nosuch"):
        client.infer("nosuch", X, "1s")
    for inputs, slo, code in [(X, None, Code.BAD_SLO), (X, "-1s", Code.BAD_SLO), (X, 0, Code.BAD_SLO),
                              (X.astype("f8"), 1, Code.BAD_DTYPE), (X[0], 1, Code.BAD_SHAPE),
                              ({"z": X}, 1, Code.BAD_INPUT_NAME)]:
        with pytest.raises(cwd.BadRequest) as caught:
            client.infer("double", inputs, slo)
        assert caught.value.code == code
    assert not any(kind == Type.INFER for kind, _, _ in controller.seen)


def test_a_late_look_does_not_make_an_answer_late(client, controller):
    client.lookup("double")
    controller.on_infer = lambda fields, payload: time.sleep(0.02) or {}
    pending = client.submit("double", X, "100ms")
    time.sleep(0.19)
    assert np.array_equal(pending.result().output, 2 * X)


def test_idle_client_answers_for_itself(client, controller):
    client.connect()
    time.sleep(1.0)
    assert sum(kind == Type.HELLO for kind, _, _ in controller.seen) == 1
    assert sum(kind == Type.HEARTBEAT for kind, _, _ in controller.seen) >= 2


def test_restarted_controller_is_found_again_within_the_deadline(client, controller):
    client.infer("double", X, "1s")
    controller.restart()
    result = client.infer("double", X, "3s")
    assert np.array_equal(result.output, 2 * X)
    assert [fields["model"] >> 32 for kind, fields, _ in controller.seen if kind == Type.INFER][-1] == 2


def test_dead_controller_is_an_error_in_time(client, controller):
    client.infer("double", X, "1s")
    pending = client.submit("double", X, "30s")
    pending.result()
    controller.on_infer = lambda fields, payload: None
    pending = client.submit("double", X, "30s")
    time.sleep(0.05)
    controller.stop()
    began = time.monotonic()
    with pytest.raises(cwd.ControllerLost):
        pending.result()
    assert time.monotonic() - began < 1
    with pytest.raises(cwd.ControllerLost, match="c.sock"):
        client.infer("double", X, "200ms")
    assert time.monotonic() - began < 2


def test_frozen_controller_is_an_error_in_time(client, controller):
    client.infer("double", X, "1s")
    controller.deaf = True
    time.sleep(0.05)
    began = time.monotonic()
    pending = client.submit("double", X, "30s")
    with pytest.raises(cwd.ControllerLost, match="silent"):
        pending.result()
    assert time.monotonic() - began < 2
    controller.deaf = False
    assert np.array_equal(client.infer("double", X, "5s").output, 2 * X)


def test_controller_that_starts_late(tmp_path):
    path = tmp_path / "late.sock"
    with cwd.Client(f"ipc://{path}", timeout=5) as client:
        with pytest.raises(cwd.ControllerLost):
            client.connect(timeout=0.1)
        timer = threading.Timer(0.3, lambda: made.append(FakeController(path)))
        made = []
        timer.start()
        assert np.array_equal(client.infer("double", X, "1s").output, 2 * X)
        timer.join()
        made[0].stop()


def test_unknown_version_is_said_and_final(tmp_path):
    controller = FakeController(tmp_path / "c.sock")
    controller.hello_error = int(Code.UNSUPPORTED_VERSION)
    with cwd.Client(controller.endpoint) as client, pytest.raises(cwd.CwdError) as caught:
        client.infer("double", X, "1s")
    assert caught.value.code == Code.UNSUPPORTED_VERSION
    controller.stop()


def test_replaced_model_is_looked_up_again(client, controller):
    client.infer("double", X, "1s")
    old = 7 + (1 << 32)
    controller.models["double"] = (8, {**DOUBLE, "version": 2})
    controller.on_infer = lambda fields, payload: {"status": int(Code.UNKNOWN_MODEL)} if fields["model"] == old else {}
    assert np.array_equal(client.infer("double", X, "1s").output, 2 * X)
    del controller.models["double"]
    controller.on_infer = lambda fields, payload: {"status": int(Code.UNKNOWN_MODEL)}
    with pytest.raises(cwd.UnknownModel):
        client.infer("double", X, "1s")


def test_cancel_and_list(client, controller):
    controller.models.update({f"m{i}": (10 + i, DOUBLE) for i in range(4)})
    assert client.models() == {"double/1": 7, "m0/1": 10, "m1/1": 11, "m2/1": 12, "m3/1": 13}
    controller.on_infer = lambda fields, payload: None
    pending = client.submit("double", X, "1s")
    pending.cancel()
    controller.sees(Type.CANCEL)
    assert [fields["request"] for kind, fields, _ in controller.seen if kind == Type.CANCEL] == [pending._call.id]


def test_credits_bound_what_is_in_flight(tmp_path):
    controller = FakeController(tmp_path / "c.sock", credits=2)
    controller.on_infer = lambda fields, payload: None
    with cwd.Client(controller.endpoint) as client:
        for _ in range(2):
            client.submit("double", X, "1s")
        with pytest.raises(cwd.CreditExceeded):
            client.submit("double", X, "1s")
    controller.stop()


def test_closing_ends_what_waits(controller):
    controller.on_infer = lambda fields, payload: None
    client = cwd.Client(controller.endpoint)
    pending = client.submit("double", X, "30s")
    threading.Timer(0.1, client.close).start()
    began = time.monotonic()
    with pytest.raises(cwd.ControllerLost):
        pending.result()
    assert time.monotonic() - began < 1
    client.close()
    with pytest.raises(cwd.ControllerLost, match="closed"):
        client.infer("double", X, "1s")
    controller.sees(Type.GOODBYE)


def test_importing_and_using_it_loads_neither_torch_nor_numba(controller):
    code = f"""
import sys, numpy as np, cwd
with cwd.Client({controller.endpoint!r}) as client:
    client.infer("double", np.ones((2, 3), "f4"), "5s")
cwd.AsyncClient, cwd.LocalCluster
print(sorted(name for name in ("torch", "numba", "click", "transformers") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
