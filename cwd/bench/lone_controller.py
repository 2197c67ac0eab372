"""A scripted controller: one ROUTER and the Python codec. It decides nothing: whoever has it says what it sends."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import zmq

from cwd.wire import codec
from cwd.wire.messages import Type

EPOCH = 77
FOREVER_NS = 10**15


class LoneController:
    """Bound to an endpoint that workers dial; one thread uses it."""

    def __init__(self, endpoint: str, epoch: int = EPOCH, *, heartbeat_ms: int = 500, lost_ms: int = 5_000) -> None:
        self.epoch, self.heartbeat_ms, self.lost_ms = epoch, heartbeat_ms, lost_ms
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.last_action = 0
        #: messages not asked for yet, by peer: (type, fields, payload frames)
        self.inbox: dict[bytes, deque[tuple[Type, dict[str, Any], list[bytes]]]] = defaultdict(deque)
        self.hellos: deque[tuple[bytes, dict[str, Any]]] = deque()
        self.welcomed: set[bytes] = set()
        self.heartbeats = 0

    def close(self) -> None:
        self.socket.close(0)
        self.context.destroy(0)

    def __enter__(self) -> LoneController:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pump(self, timeout_ms: int) -> bool:
        """Take in one message; heartbeats that ask are answered. False if none came."""
        if not self.socket.poll(timeout_ms):
            return False
        peer, frame, *payload = self.socket.recv_multipart()
        kind, fields = codec.decode(frame)
        if kind == Type.HELLO:
            self.hellos.append((peer, fields))
        elif kind == Type.HEARTBEAT:
            self.heartbeats += 1
            if not fields["reply"] and peer not in self.welcomed:
                self.inbox[peer].append((kind, fields, payload))
            elif not fields["reply"]:
                self.send(peer, Type.HEARTBEAT, seq=1, reply=1, sent_ns=1, echo_ns=fields["sent_ns"], hold_ns=0,
                          loop_max_ns=0, queued=0)
            else:
                self.inbox[peer].append((kind, fields, payload))
        else:
            self.inbox[peer].append((kind, fields, payload))
        return True

    def send(self, peer: bytes, kind: Type, payload: tuple[bytes, ...] = (), **fields: Any) -> None:
        self.socket.send_multipart([peer, codec.encode(kind, **fields), *payload])

    def hello(self, timeout_s: float = 150) -> tuple[bytes, dict[str, Any]]:
        """The next HELLO, not answered yet."""
        self._until(lambda: self.hellos, timeout_s, "no HELLO came")
        return self.hellos.popleft()

    def welcome(self, peer: bytes, epoch: int | None = None) -> None:
        self.welcomed.add(peer)
        self.send(peer, Type.WELCOME, minor=0, epoch=self.epoch if epoch is None else epoch, host=bytes(16), now_ns=1,
                  heartbeat_ms=self.heartbeat_ms, lost_ms=self.lost_ms, credits=0, payload_bytes_max=1 << 26)

    def greet(self) -> tuple[bytes, dict[str, Any]]:
        """Take a HELLO and welcome it."""
        peer, fields = self.hello()
        self.welcome(peer)
        return peer, fields

    def act(self, peer: bytes, kind: Type, payload: tuple[bytes, ...] = (), **fields: Any) -> int:
        """Send an action with a fresh id and, unless told otherwise, an open window; returns the id."""
        self.last_action += 1
        defaults = {"action": self.last_action, "epoch": self.epoch, "earliest_ns": 0, "latest_ns": FOREVER_NS,
                    "expected_ns": 1000}
        self.send(peer, kind, payload, **{**defaults, **fields})
        return self.last_action

    def load(self, peer: bytes, model: int, pages: int = 1, image: bytes = b"", program_index: int = 0,
             **more: Any) -> int:
        return self.act(peer, Type.LOAD, model=model, pages=pages, image=image or bytes([model % 256]) * 16,
                        program_index=program_index, **more)

    def execute(self, peer: bytes, model: int, payload: tuple[bytes, ...] = (b"",), batch: int = 0, size_class: int = 0,
                dims: tuple[int, ...] = (), **more: Any) -> int:
        rows = [(*dims, 0, 0, 0, 0)[:4]] * len(payload)
        return self.act(peer, Type.EXEC, payload, model=model, batch=batch or len(payload), size_class=size_class,
                        rows=rows, **more)

    def result(self, peer: bytes, timeout_s: float = 30) -> tuple[dict[str, Any], list[bytes]]:
        """The peer's next message that is no heartbeat: a result's fields and payload."""
        def ready() -> bool:
            while self.inbox[peer] and self.inbox[peer][0][0] == Type.HEARTBEAT:
                self.inbox[peer].popleft()
            return bool(self.inbox[peer])
        self._until(ready, timeout_s, f"no message came from {peer.hex()}")
        kind, fields, payload = self.inbox[peer].popleft()
        return {"type": kind, **fields}, payload

    def _until(self, ready: Callable[[], object], timeout_s: float, why: str) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            if not self.pump(100) and time.monotonic() > end:
                raise TimeoutError(why)
