"""What the tests of faults share: connections that say whatever they like, and a small emulated repository."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from cwd.net.host_id import host_id
from cwd.wire.codec import decode, encode
from cwd.wire.messages import MAGIC, Role, Type

PAGE_BYTES = 64 << 10
EXEC_NS = 2_000_000
BYTE = np.array([7], np.uint8)
ROLES = {"clients": Role.CLIENT, "workers": Role.WORKER, "admin": Role.ADMIN}


class RawPeer:
    """A DEALER that sends any frames, and decodes what comes back. `epoch` is what WELCOME said."""

    def __init__(self, cluster: Any, which: str, hello: bool = True, **fields: Any) -> None:
        self.which, self.epoch, self.welcome = which, 0, {}
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, 10_000)
        self._socket.connect(cluster.endpoint(which))
        if hello:
            self.say(Type.HELLO, **{**self.hello(), **fields})
            kind, self.welcome = self.hear(Type.WELCOME, Type.ERROR)
            assert kind == Type.WELCOME, self.welcome
            self.epoch = self.welcome["epoch"]

    def hello(self) -> dict[str, Any]:
        """The fields of a sound HELLO."""
        caps = worker_caps() if self.which == "workers" else {}
        return {"minor": 0, "role": ROLES[self.which], "name": "raw", "boot": secrets.token_bytes(16), "host": host_id(),
                "now_ns": time.monotonic_ns(), "caps": caps}

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def say(self, kind: Type, *payload: bytes, **fields: Any) -> None:
        self.send(encode(kind, **fields), *payload)

    def infer(self, request: int, model: int, payload: bytes = b"\7", slo_ns: int = 15 * 10**9, dims: Any = (),
              **fields: Any) -> None:
        self.say(Type.INFER, payload, request=request, model=model, slo_ns=slo_ns, deadline_ns=0, app=0, dims=dims, **fields)

    def hear(self, *wanted: Type, patience_s: float = 20.0) -> tuple[Type, dict[str, Any]]:
        """The next message of one of these types (none named: of any but HEARTBEAT); heartbeats are answered."""
        until = time.monotonic() + patience_s
        while self._socket.poll(max(until - time.monotonic(), 0) * 1000):
            frames = self._socket.recv_multipart()
            kind, fields = decode(frames[0])
            if kind == Type.HEARTBEAT and fields["reply"] == 0:
                self.beat(fields)
            if kind in wanted or (not wanted and kind != Type.HEARTBEAT):
                return kind, fields
        raise AssertionError(f"nothing came within {patience_s} s")

    def beat(self, asked: dict[str, Any]) -> None:
        now_ns = time.monotonic_ns()
        self.say(Type.HEARTBEAT, seq=1, reply=1, sent_ns=now_ns, echo_ns=asked["sent_ns"], hold_ns=0, loop_max_ns=0, queued=0)

    def attend(self) -> None:
        """Answer the heartbeats that have come; AssertionError for anything else."""
        while self._socket.poll(0):
            kind, fields = decode(self._socket.recv_multipart()[0])
            assert kind == Type.HEARTBEAT, kind
            if fields["reply"] == 0:
                self.beat(fields)

    def error(self) -> dict[str, Any]:
        """The next ERROR."""
        return self.hear(Type.ERROR)[1]

    def reply(self) -> dict[str, Any]:
        return self.hear(Type.REPLY)[1]

    def lookup(self, name: str) -> int:
        self.say(Type.LOOKUP, request=1, name=name, version=0)
        return self.hear(Type.MODEL)[1]["model"]

    def close(self) -> None:
        self._socket.close(0)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def worker_caps(**changes: Any) -> dict[str, Any]:
    return {"kind": "fake", "device": "none", "gpus": 1, "page_bytes": PAGE_BYTES, "pages_total": 64,
            "lanes": ["exec", "load"], "agenda_max": 64, "programs": b"", "images": True, "resident": b"",
            "prepares": False, **changes}


def head(magic: int = MAGIC, kind: int = 16) -> bytes:
    """The beginning of a frame 0: an array of two, magic and type."""
    return b"\x92\xce" + magic.to_bytes(4, "big") + bytes([0xCC, kind])


def make_repository(root: Path, copies: int = 4, exec_ns: int = EXEC_NS) -> Any:
    """`same-000`...: one byte in, the same out; `vector`: a dynamic axis; `mlp`: 16 floats in. Profiled as emulated."""
    from cwd.models import profile
    from cwd.models.importers import add_factory, add_zoo
    from cwd.models.repository import Repository

    repository = Repository(root, create=True)
    tensor = {"dtype": "float32", "shape": ["length"]}
    options = {"call": "positional", "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}],
               "axes": ["length"], "padding": "free", "size_classes": [[4], [16]], "batch_sizes": [1, 2]}
    entries = [add_zoo(repository, "same", "identity", copies=copies)[0], add_zoo(repository, "mlp", "mlp", seed=3)[0],
               add_factory(repository, "vector", "cwd.models.zoo:identity", {}, options, seed=1)[0]]
    for entry in entries:
        program = entry.manifest.program_hash
        times = {pair: exec_ns + exec_ns * (pair[0] - 1) // 4 for pair in profile.pairs(entry.manifest.program)}
        profile.write_table(repository, program, "emulated", times, load_ns_per_page=1_000_000, page_bytes=PAGE_BYTES)
    return repository
