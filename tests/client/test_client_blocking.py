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
    began_ns = time.monotonic_ns()
    result = client.infer("double", X, "20s")
    spent_ns = time.monotonic_ns() - began_ns
    assert np.array_equal(result.output, 2 * X) and result["y"] is result.output
    result.output[0, 0] = 5
    assert (result.queued_ns, result.load_ns, result.exec_ns, result.total_ns) == (1, 2, 3, 4)
    assert (result.batch, result.worker, result.cold) == (5, 6, True)
    assert 0 < result.round_trip_ns <= spent_ns and set(result.timing()) >= {"batch", "round_trip_ns"}
    assert repr(result).startswith("<double (y: float32[2, 3])")


def test_many_in_flight_on_one_connection(client, controller):
    pendings = [client.submit("double", X * i, 20.0) for i in range(60)]
    for i, pending in enumerate(pendings):
        assert np.array_equal(pending.result().output, 2 * i * X)
    pendings = {client.submit("double", X * i, 20.0): i for i in range(60)}
    seen = []
    for pending in cwd.as_completed(pendings):
        assert pending.result().output[0, 1] == 2 * pendings[pending]
        seen.append(pendings[pending])
    assert sorted(seen) == list(range(60))
    assert sum(kind == Type.HELLO for kind, _, _ in controller.seen) == 1
    assert sum(kind == Type.LOOKUP for kind, _, _ in controller.seen) == 1


def test_threads_share_a_client(client):
    def one(i):
        return [float(client.infer("double", X * i, "20s").output[0, 1]) for _ in range(40)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [[2.0 * i] * 40 for i in range(8)]


class Interrupted:
    """A connection's lock, near which its leader is interrupted once."""

    def __init__(self, connection, where, meanwhile=lambda: None):
        self.connection, self.lock, self.where, self.meanwhile = connection, connection._lock, where, meanwhile

    def _interrupt(self, where):
        leads = self.connection._leading and threading.current_thread() is threading.main_thread()
        if leads and where == self.where:
            self.where = ""
            self.meanwhile()
            raise KeyboardInterrupt

    def acquire(self):
        self._interrupt("when it waits for the lock")
        return self.lock.acquire()

    def release(self):
        self.lock.release()
        self._interrupt("when it has let the lock go")

    def __enter__(self):
        return self.lock.acquire()

    def __exit__(self, *exception):
        self.lock.release()


@pytest.mark.parametrize("where", ["when it waits for the lock", "when it has let the lock go"])
def test_an_interrupt_leaves_no_socket_behind(controller, where):
    """For the process would wait for it at its end."""
    client = cwd.Client(controller.endpoint)
    client.infer("double", X, "20s")
    connection = client._connection
    connection._lock = Interrupted(connection, where)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", X, "20s")
    assert not connection._leading and not connection._lock.lock.locked()
    client.close()
    assert connection._socket is None


def test_an_interrupt_of_one_who_leads_while_another_thread_closes_leaves_no_socket_either(controller):
    client = cwd.Client(controller.endpoint)
    client.infer("double", X, "20s")
    closing = threading.Thread(target=client.close)

    def close():
        closing.start()
        closing.join(20)

    connection = client._connection
    connection._lock = Interrupted(connection, "when it waits for the lock", close)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", X, "20s")
    assert not closing.is_alive() and connection._closed and connection._socket is None


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
        assert next(cwd.as_completed([stuck, client.submit("double", X * i, "20s")])) is not stuck
    assert stuck._call.on_done == []
    settled = [client.submit("double", X, "20s") for _ in range(2)]
    for pending in settled:
        pending.result()
    assert next(cwd.as_completed(settled)) in settled


def test_a_waiting_thread_does_not_hold_up_another(client, controller):
    controller.on_infer = lambda fields, payload: None if np.frombuffer(payload, "f4")[1] == 99 else {}
    client.lookup("double")
    pending = client.submit("double", 99 * X, "60s")
    stuck = threading.Thread(target=lambda: pytest.raises(cwd.ControllerLost, pending.result))
    stuck.start()
    while not client._connection._leading:
        time.sleep(0.001)
    for _ in range(20):
        client.infer("double", X, "20s")
    assert stuck.is_alive() and not pending.done()
    client.close()
    stuck.join(20)
    assert not stuck.is_alive()


def test_each_request_carries_slo_deadline_and_app(client, controller):
    import zlib
    before = time.monotonic_ns()
    client.infer("double", X, "25s", app="shop")
    fields = next(fields for kind, fields, _ in controller.seen if kind == Type.INFER)
    assert fields["slo_ns"] == 25 * 10**9 and fields["app"] == zlib.crc32(b"shop")
    assert before < fields["deadline_ns"] - 25 * 10**9 < time.monotonic_ns()
    assert fields["model"] == 7 + (1 << 32)


def test_no_answer_ends_at_the_deadline(client, controller):
    client.lookup("double")
    controller.on_infer = lambda fields, payload: None
    pending = client.submit("double", X, "60s")
    began = time.monotonic()
    with pytest.raises(cwd.DeadlineMissed, match="150ms"):
        client.infer("double", X, "150ms")
    assert time.monotonic() - began >= 0.15 and not pending.done(), "at its own deadline, not at another one's"
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.05)
    assert not pending.done()


def test_refusals_are_typed_and_say_how_much(client, controller):
    controller.on_infer = lambda fields, payload: {"status": int(Code.DEADLINE_UNREACHABLE), "earliest_ns": 41 * 10**9}
    with pytest.raises(cwd.DeadlineUnreachable) as caught:
        client.infer("double", X, "25s")
    assert caught.value.earliest_ns == 41 * 10**9 and "25s" in str(caught.value) and "41s" in str(caught.value)
    assert isinstance(caught.value, cwd.Refused)


def test_bad_requests_are_not_sent(client, controller):
    with pytest.raises(cwd.UnknownModel, match="nosuch"):
        client.infer("nosuch", X, "20s")
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
    pending = client.submit("double", X, "2s")
    time.sleep(2.3)
    assert np.array_equal(pending.result().output, 2 * X)


def test_idle_client_answers_for_itself(tmp_path):
    """Idle for longer than a silence may last, it asks now and then and stays connected."""
    controller = FakeController(tmp_path / "idle.sock", lost_ms=2000)
    with cwd.Client(controller.endpoint) as client:
        client.connect()
        time.sleep(2.5)
        controller.sees(Type.HEARTBEAT, 3)
        assert sum(kind == Type.HELLO for kind, _, _ in controller.seen) == 1
    controller.stop()


def test_restarted_controller_is_found_again_within_the_deadline(client, controller):
    client.infer("double", X, "20s")
    controller.restart()
    result = client.infer("double", X, "20s")
    assert np.array_equal(result.output, 2 * X)
    assert [fields["model"] >> 32 for kind, fields, _ in controller.seen if kind == Type.INFER][-1] == 2


def test_dead_controller_is_an_error_in_time(client, controller):
    """Long before the request's deadline, which would be another error."""
    client.infer("double", X, "20s")
    controller.on_infer = lambda fields, payload: None
    pending = client.submit("double", X, "600s")
    controller.sees(Type.INFER, 2)
    controller.stop()
    with pytest.raises(cwd.ControllerLost):
        pending.result(60)
    with pytest.raises(cwd.ControllerLost, match="c.sock"):
        client.infer("double", X, "200ms")


def test_frozen_controller_is_an_error_in_time(tmp_path):
    controller = FakeController(tmp_path / "frozen.sock", lost_ms=1000)
    with cwd.Client(controller.endpoint) as client:
        client.infer("double", X, "20s")
        controller.deaf = True
        time.sleep(0.05)
        pending = client.submit("double", X, "600s")
        with pytest.raises(cwd.ControllerLost, match="silent"):
            pending.result(60)
        controller.deaf = False
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
    controller.stop()


def test_controller_that_starts_late(tmp_path):
    path = tmp_path / "late.sock"
    with cwd.Client(f"ipc://{path}", timeout=20) as client:
        with pytest.raises(cwd.ControllerLost):
            client.connect(timeout=0.1)
        timer = threading.Timer(0.3, lambda: made.append(FakeController(path)))
        made = []
        timer.start()
        assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
        timer.join()
        made[0].stop()


def test_unknown_version_is_said_and_final(tmp_path):
    controller = FakeController(tmp_path / "c.sock")
    controller.hello_error = int(Code.UNSUPPORTED_VERSION)
    with cwd.Client(controller.endpoint) as client, pytest.raises(cwd.CwdError) as caught:
        client.infer("double", X, "20s")
    assert caught.value.code == Code.UNSUPPORTED_VERSION
    controller.stop()


def test_replaced_model_is_looked_up_again(client, controller):
    client.infer("double", X, "20s")
    old = 7 + (1 << 32)
    controller.models["double"] = (8, {**DOUBLE, "version": 2})
    controller.on_infer = lambda fields, payload: {"status": int(Code.UNKNOWN_MODEL)} if fields["model"] == old else {}
    assert np.array_equal(client.infer("double", X, "20s").output, 2 * X)
    del controller.models["double"]
    controller.on_infer = lambda fields, payload: {"status": int(Code.UNKNOWN_MODEL)}
    with pytest.raises(cwd.UnknownModel):
        client.infer("double", X, "20s")


def test_cancel_and_list(client, controller):
    controller.models.update({f"m{i}": (10 + i, DOUBLE) for i in range(4)})
    assert client.models() == {"double/1": 7, "m0/1": 10, "m1/1": 11, "m2/1": 12, "m3/1": 13}
    controller.on_infer = lambda fields, payload: None
    pending = client.submit("double", X, "20s")
    pending.cancel()
    controller.sees(Type.CANCEL)
    assert [fields["request"] for kind, fields, _ in controller.seen if kind == Type.CANCEL] == [pending._call.id]


def test_credits_bound_what_is_in_flight(tmp_path):
    controller = FakeController(tmp_path / "c.sock", credits=2)
    controller.on_infer = lambda fields, payload: None
    with cwd.Client(controller.endpoint) as client:
        for _ in range(2):
            client.submit("double", X, "60s")
        with pytest.raises(cwd.CreditExceeded):
            client.submit("double", X, "60s")
    controller.stop()


def test_closing_ends_what_waits(controller):
    controller.on_infer = lambda fields, payload: None
    client = cwd.Client(controller.endpoint)
    pending = client.submit("double", X, "600s")
    threading.Timer(0.1, client.close).start()
    with pytest.raises(cwd.ControllerLost, match="closed"):
        pending.result(60)
    client.close()
    began = time.monotonic()
    with pytest.raises(cwd.ControllerLost, match="closed"):
        client.infer("double", X, "60s")
    assert time.monotonic() - began < 30, "at once, not at the deadline"
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
