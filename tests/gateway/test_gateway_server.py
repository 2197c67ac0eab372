"""`cwd gateway` as a process before a controller of the tests' own: refusals, cancelling, TLS, tokens, its end."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import numpy as np
import pytest
from asgi import request
from fake_controller import FakeController, X

from cwd.cli.main import run
from cwd.cluster import Child
from cwd.errors import Code, CwdError
from cwd.gateway.certificate import Certificate
from cwd.wire.messages import Type

PATH = "/v2/models/double/infer"


class Door:
    """A gateway's process, and plain HTTP to it."""

    def __init__(self, folder, endpoint, *flags):
        self.child = Child("gateway", ["gateway", "--port", "0", "--endpoint", endpoint, "--apps", "none", *flags],
                           log=folder / "gateway.log", folder=folder)
        self.child.start()
        self.child.wait_ready(60)
        self.scheme, _, address = self.child.status.rpartition(" ")[2].partition("://")
        self.port = int(address.rpartition(":")[2])

    def connection(self, context=None):
        if self.scheme == "https":
            return http.client.HTTPSConnection("localhost", self.port, timeout=20, context=context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method, path, body=b"", headers=None, connection=None):
        """(status, headers, body)."""
        connection = connection or self.connection()
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.fixture
def controller(tmp_path):
    fake = FakeController(tmp_path / "c.sock")
    yield fake
    fake.stop()


@pytest.fixture
def door(tmp_path, controller):
    door = Door(tmp_path, controller.endpoint, "--drain", "0s")
    yield door
    door.child.stop(5)


def within(seconds, happens):
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def test_one_connection_many_requests_refusals_and_retry_after(door, controller):
    connection = door.connection()
    body, headers = request({"x": X}, binary=["x"], timeout=5_000_000, binary_data_output=True)
    for _ in range(3):
        status, found, answer = door.ask("POST", PATH, body, headers, connection)
        assert status == 200 and np.array_equal(np.frombuffer(answer[-24:], "f4").reshape(2, 3), 2 * X)
    controller.on_infer = lambda fields, payload: {"status": int(Code.DEADLINE_UNREACHABLE), "earliest_ns": 7_300_000_000}
    status, found, answer = door.ask("POST", PATH, body, headers, connection)
    # the deadline that the controller saw was the timeout, less what the gateway took
    asked_ns = [fields["slo_ns"] for kind, fields, _ in controller.seen if kind == Type.INFER]
    assert status == 503 and 4_000_000_000 < asked_ns[-1] <= 5_000_000_000
    assert found["Retry-After"] == "3" and int(found["Retry-After-Ms"]) == 2300
    assert json.loads(answer)["code"] == "DEADLINE_UNREACHABLE"
    controller.on_infer = lambda fields, payload: {"status": int(Code.EXECUTION_FAILED)}
    assert door.ask("POST", PATH, body, headers, connection)[0] == 500
    # the controller tells nothing any more: the deadline ends the wait, and not with 504
    controller.on_infer = lambda fields, payload: None
    body, headers = request({"x": X}, timeout=100_000)
    assert door.ask("POST", PATH, body, headers, connection)[0] == 503


def test_hanging_up_cancels_at_the_controller(door, controller):
    controller.on_infer = lambda fields, payload: None
    body, _ = request({"x": X}, timeout=30_000_000)
    with socket.create_connection(("127.0.0.1", door.port)) as line:
        line.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        controller.sees(Type.INFER)
    controller.sees(Type.CANCEL)
    infer, = (fields["request"] for kind, fields, _ in controller.seen if kind == Type.INFER)
    assert [fields["request"] for kind, fields, _ in controller.seen if kind == Type.CANCEL] == [infer]
    stats = json.loads(door.ask("GET", "/v2/models/double/stats")[2])["model_stats"][0]["inference_stats"]
    assert stats["cancel"]["count"] == 1


def test_garbage_on_the_line_harms_nobody(door):
    for garbage in (b"\x00\xff" * 50, b"POST /v2 HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET / HTTP/9\r\n\r\n",
                    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{".encode()):
        with socket.create_connection(("127.0.0.1", door.port)) as line:
            line.sendall(garbage)
    connection = door.connection()
    for body, headers in ((b"", {}), (b"[]", {}), (b"{}", {"Inference-Header-Content-Length": "-1"}),
                          (b"\xff", {"Content-Encoding": "gzip"})):
        status, found, answer = door.ask("POST", PATH, body, headers, connection)
        assert status == 400 and json.loads(answer)["error"]
    assert door.ask("GET", "/v2/health/ready", connection=connection)[0] == 200


def test_ready_follows_the_controller(door, controller):
    controller.stop()
    within(5, lambda: door.ask("GET", "/v2/health/ready")[0] == 503)
    assert door.ask("GET", "/v2/health/live")[0] == 200
    assert door.ask("POST", PATH, *request({"x": X}, timeout=50_000))[0] == 503
    controller.restart()
    within(10, lambda: door.ask("GET", "/v2/health/ready")[0] == 200)


def test_sigterm_not_ready_at_once_then_finishes_what_is_in_flight(tmp_path, controller):
    door = Door(tmp_path, controller.endpoint, "--drain", "300ms")
    go, answers = threading.Event(), []

    def slow(fields, payload):
        go.wait(20)
        return {}

    controller.on_infer = slow
    probe, waiting = door.connection(), door.connection()
    assert door.ask("GET", "/v2/health/ready", connection=probe)[0] == 200
    asking = threading.Thread(target=lambda: answers.append(
        door.ask("POST", PATH, *request({"x": X}, timeout=20_000_000), connection=waiting)))
    asking.start()
    controller.sees(Type.INFER)
    door.child.signal(signal.SIGTERM)
    within(5, lambda: not _ready(door, probe))
    assert door.child.alive and not answers
    within(5, lambda: _refuses(door.port))
    assert door.child.alive and not answers
    go.set()
    asking.join(20)
    assert answers[0][0] == 200 and door.child.wait(20) == 0
    door.child.stop()


def test_a_second_signal_ends_it_at_once(tmp_path, controller):
    door = Door(tmp_path, controller.endpoint, "--drain", "60s")
    door.child.signal(signal.SIGTERM)
    within(5, lambda: door.ask("GET", "/v2/health/ready")[0] == 503)
    assert door.ask("GET", "/v2/health/live")[1]["Connection"] == "close"  # so that clients go before they have to
    door.child.signal(signal.SIGTERM)
    assert door.child.wait(10) == 0
    door.child.stop()


def _ready(door, connection):
    try:
        return door.ask("GET", "/v2/health/ready", connection=connection)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def certificate(folder, name, kind=("ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
    """(chain, key) of a new certificate that signs itself."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return cert, key


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")


@needs_openssl
def test_tls_and_tokens(tmp_path, controller):
    (cert, key), tokens = certificate(tmp_path, "a"), tmp_path / "tokens"
    tokens.write_text("secret\n")
    door = Door(tmp_path, controller.endpoint, "--drain", "0s", "--tls-cert", str(cert), "--tls-key", str(key),
                "--token-file", str(tokens))
    context = ssl.create_default_context(cafile=str(cert))
    connection = door.connection(context)
    assert door.scheme == "https"
    body, headers = request({"x": X}, timeout=5_000_000)
    assert door.ask("POST", PATH, body, headers, connection)[0] == 401
    assert door.ask("POST", PATH, body, {**headers, "Authorization": "Bearer secret"}, connection)[0] == 200
    tokens.write_text("another\n")
    assert door.ask("POST", PATH, body, {**headers, "Authorization": "Bearer secret"}, connection)[0] == 401
    assert door.ask("POST", PATH, body, {**headers, "Authorization": "Bearer another"}, connection)[0] == 200
    connection.close()
    assert door.child.stop() == 0


@needs_openssl
def test_a_renewed_certificate_is_served_to_new_connections(tmp_path, controller):
    """Also one of another kind of key; and half a renewal leaves the old one."""
    def served():
        return ssl.get_server_certificate(("localhost", door.port), timeout=20)

    def read_again(text):
        before = door.child.log.read_text().count(text)
        door.child.signal(signal.SIGHUP)
        within(10, lambda: door.child.log.read_text().count(text) > before)

    first, second = certificate(tmp_path, "a"), certificate(tmp_path, "b", ("rsa:2048",))
    cert, key = (shutil.copy(first[0], tmp_path / "cert.pem"), shutil.copy(first[1], tmp_path / "key.pem"))
    door = Door(tmp_path, controller.endpoint, "--drain", "0s", "--tls-cert", str(cert), "--tls-key", str(key))
    old = door.connection(ssl.create_default_context(cafile=first[0]))
    assert door.ask("GET", "/v2/health/ready", connection=old)[0] == 200
    assert served() == first[0].read_text()
    shutil.copy(second[0], cert)
    read_again("the certificate read before still holds")
    assert served() == first[0].read_text()
    shutil.copy(second[1], key)
    read_again("cert.pem: read again")
    assert served() == second[0].read_text()
    new = door.connection(ssl.create_default_context(cafile=second[0]))
    for connection in (old, new):
        assert door.ask("GET", "/v2/health/ready", connection=connection)[0] == 200
        connection.close()
    assert door.child.stop() == 0


@needs_openssl
def test_a_certificate_is_looked_at_and_read_when_its_files_have_changed(tmp_path, caplog):
    first, second = certificate(tmp_path, "a"), certificate(tmp_path, "b")
    files = shutil.copy(first[0], tmp_path / "cert.pem"), shutil.copy(first[1], tmp_path / "key.pem")
    found = Certificate(*map(str, files))
    old = found._current
    found.refresh()
    assert found._current is old and not caplog.records
    for source, file in zip(second, files, strict=True):
        shutil.copy(source, file)
    found.refresh()
    new = found._current
    assert new is not old
    files[1].unlink()
    for _ in range(3):
        found.refresh()
    assert found._current is new
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "No such file" in said[0], "once, not at every look"


@pytest.mark.parametrize("flags, text", [
    (["--host", "0.0.0.0"], "--token-file"), (["--token-file", "nosuch"], "nosuch: No such file"),
    (["--tls-cert", "c"], "both --tls-cert and --tls-key"), (["--port", "70000"], "port 70000"),
    (["--tls-cert", os.devnull, "--tls-key", os.devnull], "no certificate with its key"), (["--slo", "5"], "slo"),
    (["--host", "not.a.host.invalid", "--insecure"], "cannot listen on not.a.host.invalid"),
])
def test_what_keeps_it_from_starting_is_one_line(flags, text, capfd, monkeypatch):
    monkeypatch.setattr("cwd.cli.gateway.become_daemon", lambda: None)
    assert run(["gateway", "--port", "0", *flags]) != 0
    error = capfd.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_port_in_use_is_one_line(capfd, monkeypatch):
    monkeypatch.setattr("cwd.cli.gateway.become_daemon", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["gateway", "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1" in capfd.readouterr().err


def test_settings_come_from_flags_then_variables_then_a_file(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("cwd.cli.gateway.become_daemon", lambda: None)
    monkeypatch.setattr("cwd.gateway.server.serve", lambda options, load: found.append(load()) or 0)
    monkeypatch.setenv("CWD_SLO", "30ms")
    (tmp_path / "cwd.toml").write_text('[gateway]\nport = 1\nslo = "10ms"\ncors = "http://a"\ndrain = "2s"\n')
    assert run(["--config", str(tmp_path / "cwd.toml"), "gateway", "--port", "3", "--body-max", "1MiB"]) == 0
    options, = found
    assert (options.port, options.slo_ns, options.cors) == (3, 30_000_000, "http://a")
    assert (options.drain_ns, options.body_max_bytes) == (2_000_000_000, 1 << 20)


@needs_openssl
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(tmp_path, caplog):
    """OpenSSL would ask at the terminal, at a reload too, and all requests would wait for an answer."""
    files = certificate(tmp_path, "a")
    found = Certificate(*map(str, files))
    old = found._current
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "pkey", "-in", files[1], "-aes256", "-passout", "pass:secret", "-out", locked], check=True,
                   capture_output=True)
    locked.replace(files[1])
    found.refresh()
    assert found._current is old and "has a passphrase" in caplog.records[-1].message
    with pytest.raises(CwdError, match="no certificate with its key: the key has a passphrase"):
        Certificate(*map(str, files))
