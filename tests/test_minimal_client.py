"""tools/minimal_client.py against a controller of a few lines that speaks from the vectors; and what it may import."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zmq

from cwd.errors import Code, RemoteProtocolError
from cwd.wire import codec
from cwd.wire.messages import Type

CLIENT = Path(__file__).resolve().parents[1] / "tools" / "minimal_client.py"
HANDLE = (1 << 32) | 3
MANIFEST = {
    "name": "scale", "version": 1,
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 2]}, {"name": "by", "dtype": "int64", "shape": []}],
    "outputs": [{"name": "total", "dtype": "float64", "shape": []},
                {"name": "y", "dtype": "float32", "shape": ["n", 2]}],
    "axes": ["n"], "exact": False, "size_classes": [[4], [16]], "batch_sizes": [1, 2],
}


class FakeController(threading.Thread):
    """A ROUTER that knows one model, `scale`: y = x * by, total = sum(y); and one that is refused, `never`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.seen: list[tuple[Type, dict[str, Any]]] = []
        self.faults: list[str] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            if self.socket.poll(20):
                peer, first, *payload = self.socket.recv_multipart()
                try:
                    kind, fields = codec.decode(first)
                except RemoteProtocolError as error:
                    self.faults.append(str(error))
                    continue
                if codec.encode(kind, **fields) != first:
                    self.faults.append(f"{kind.name} is not canonical")
                self.seen.append((kind, fields))
                for frames in self.answers(kind, fields, payload):
                    self.socket.send_multipart([peer, *frames])
        self.socket.close()

    def answers(self, kind: Type, fields: dict[str, Any], payload: list[bytes]) -> Iterator[list[bytes]]:
        if kind == Type.HELLO:
            yield [codec.encode(Type.WELCOME, minor=0, epoch=5, host=fields["host"], now_ns=fields["now_ns"],
                                heartbeat_ms=250, lost_ms=1500, credits=8, payload_bytes_max=1 << 20)]
            yield [codec.encode(Type.HEARTBEAT, seq=1, reply=0, sent_ns=77, echo_ns=0, hold_ns=0, loop_max_ns=0,
                                queued=0)]
        elif kind == Type.LOOKUP and fields["name"] in ("scale", "never"):
            yield [codec.encode(Type.MODEL, request=fields["request"], manifest=MANIFEST,
                                model=HANDLE + (fields["name"] == "never"))]
        elif kind == Type.LOOKUP:
            yield [codec.encode(Type.ERROR, code=Code.UNKNOWN_MODEL, re_type=kind, re_id=fields["request"],
                                text="no such model")]
        elif kind == Type.INFER:
            fine = fields["model"] == HANDLE
            yield [codec.encode(Type.REPLY, request=fields["request"] + 1, status=1, **self.times())]
            yield [codec.encode(Type.REPLY, request=fields["request"], status=0 if fine else 101, **self.times()),
                   *([self.scaled(fields, payload[0])] if fine else [])]

    @staticmethod
    def times() -> dict[str, int]:
        names = ("queued_ns", "load_ns", "exec_ns", "total_ns", "batch", "worker", "cold")
        return {**dict.fromkeys(names, 0), "earliest_ns": 7_000_000}

    @staticmethod
    def scaled(fields: dict[str, Any], payload: bytes) -> bytes:
        n = fields["dims"][0]
        x = np.frombuffer(payload, "<f4", 2 * n).reshape(n, 2)
        by = np.frombuffer(payload, "<i8", 1, 8 * n)[0]
        assert len(payload) == 8 * n + 8
        y = (x * np.float32(by)).astype("<f4")
        return np.float64(y.sum()).tobytes() + y.tobytes()


@pytest.fixture
def controller() -> Iterator[FakeController]:
    fake = FakeController()
    fake.start()
    yield fake
    fake.stop.set()
    fake.join(5)
    assert not fake.faults


@pytest.fixture(scope="module")
def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_client", CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_imports_little() -> None:
    text = CLIENT.read_text()
    assert len(text.splitlines()) < 150
    nodes = list(ast.walk(ast.parse(text)))
    names = {name.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"zmq", "msgpack", "numpy"}


def test_infer(controller: FakeController, client: ModuleType) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    outputs = client.infer(controller.endpoint, "scale", {"x": x, "by": np.int64(3)}, 20_000)
    assert outputs["y"].tolist() == (x * 3).tolist() and outputs["y"].dtype == np.float32
    assert outputs["total"] == 45.0 and outputs["total"].shape == ()
    fields = dict(controller.seen)[Type.INFER]
    assert fields["dims"] == (3, 0, 0, 0) and fields["slo_ns"] == 20 * 10**9
    assert 0 < fields["deadline_ns"], "one kernel, one clock: the deadline is known"


def test_it_answers_heartbeats_and_takes_leave(controller: FakeController, client: ModuleType) -> None:
    connection = client.Connection(controller.endpoint)
    handle, manifest = connection.lookup("scale", 1)
    for n in (1, 16):
        outputs = connection.infer(handle, manifest, {"x": np.ones((n, 2), np.float32), "by": np.int64(n)}, 20_000)
        assert outputs["total"] == 2 * n * n
    connection.close()
    end = time.monotonic() + 20
    while not any(kind == Type.GOODBYE for kind, _ in controller.seen) and time.monotonic() < end:
        time.sleep(0.01)
    kinds = [kind for kind, _ in controller.seen]
    assert kinds.count(Type.HEARTBEAT) == 1 and kinds[-1] == Type.GOODBYE
    beat = dict(controller.seen)[Type.HEARTBEAT]
    assert beat["reply"] == 1 and beat["echo_ns"] == 77 and beat["sent_ns"] > 0


def test_refusals(controller: FakeController, client: ModuleType) -> None:
    inputs = {"x": np.ones((1, 2), np.float32), "by": np.int64(1)}
    with pytest.raises(client.Failed, match="no such model") as caught:
        client.infer(controller.endpoint, "nothing", inputs, 20_000)
    assert caught.value.args[1] == Code.UNKNOWN_MODEL
    with pytest.raises(client.Failed, match="after 7.0 ms") as caught:
        client.infer(controller.endpoint, "never", inputs, 20_000)
    assert caught.value.args[1] == Code.DEADLINE_UNREACHABLE


def test_nobody_there(client: ModuleType) -> None:
    with pytest.raises(client.Failed, match="nobody") as caught:
        client.Connection("tcp://127.0.0.1:9", patience_s=0.2)
    assert caught.value.args[1] == 0


@pytest.mark.parametrize(("args", "status", "n"), [
    (["scale"], 0, 4), (["scale", "20000", "n=7"], 0, 7), (["gone"], 201, 0),
])
def test_command(controller: FakeController, args: list[str], status: int, n: int) -> None:
    command = [sys.executable, CLIENT, controller.endpoint, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["status"] == status and done.returncode == (status != 0), done.stderr
    if status == 0:
        assert told["outputs"] == {"total": [], "y": [n, 2]}
