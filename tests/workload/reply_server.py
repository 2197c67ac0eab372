"""A stand-in for a controller in one thread: welcomes, describes one model, and answers requests as it is told.

Speaks real CWDP over a real socket through the Python codec, so that the replayer is tested with nothing else running.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import zmq

from cwd.errors import Code
from cwd.net.host_id import host_id
from cwd.wire.codec import decode, encode
from cwd.wire.messages import Type

MANIFEST = {
    "name": "m", "version": 1, "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["sequence"]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}], "axes": ["sequence"], "exact": False,
    "size_classes": [[16], [64]], "batch_sizes": [1, 2, 4],
}

#: (number of the request) -> (code, delay in seconds, cold); None: never answer
Behaviour = Callable[[int], tuple[Code, float, bool] | None]


class ReplyServer(threading.Thread):
    """`with ReplyServer(path, behaviour) as server:` then connect to `server.endpoint`; `seen` are the INFERs.

    It sends no answer before it has seen `hold` requests.
    """

    def __init__(self, path: str, behaviour: Behaviour, credits: int = 1000, hold: int = 0) -> None:
        super().__init__(daemon=True)
        self.endpoint = f"ipc://{path}"
        self.seen: list[dict[str, Any]] = []
        self._behaviour = behaviour
        self._credits = credits
        self._hold = hold
        self._end = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.bind(self.endpoint)
        self._later: list[tuple[float, int, list[bytes]]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self.join()
        self._socket.close(0)

    def run(self) -> None:
        while not self._end.is_set():
            while len(self.seen) >= self._hold and self._later and self._later[0][0] <= time.monotonic():
                self._socket.send_multipart(heapq.heappop(self._later)[2])
            if self._socket.poll(1):
                peer, head, *_ = self._socket.recv_multipart()
                kind, fields = decode(head)
                self._answer(peer, kind, fields)

    def _answer(self, peer: bytes, kind: Type, fields: dict[str, Any]) -> None:
        now_ns = time.monotonic_ns()
        if kind == Type.HELLO:
            self._send(peer, Type.WELCOME, minor=0, epoch=1, host=host_id(), now_ns=now_ns, heartbeat_ms=500, lost_ms=60_000,
                       credits=self._credits, payload_bytes_max=1 << 20)
        elif kind == Type.HEARTBEAT and not fields["reply"]:
            self._send(peer, Type.HEARTBEAT, seq=1, reply=1, sent_ns=now_ns, echo_ns=fields["sent_ns"], hold_ns=0,
                       loop_max_ns=0, queued=0)
        elif kind == Type.LIST:
            self._send(peer, Type.MODELS, request=fields["request"], next=0, models={"m/1": 7, "other/2": 8})
        elif kind == Type.LOOKUP:
            self._send(peer, Type.MODEL, request=fields["request"], model=7, manifest=MANIFEST)
        elif kind == Type.INFER:
            self.seen.append(fields)
            told = self._behaviour(len(self.seen) - 1)
            if told is not None:
                self._reply(peer, fields["request"], *told)

    def _reply(self, peer: bytes, request: int, code: Code, delay_s: float, cold: bool) -> None:
        head = encode(Type.REPLY, request=request, status=int(code), queued_ns=1000, load_ns=500 * cold, exec_ns=2000,
                      total_ns=3500, earliest_ns=0, batch=2, worker=0, cold=int(cold))
        frames = [peer, head] + ([b"\0" * 8] if code is Code.OK else [])
        heapq.heappush(self._later, (time.monotonic() + delay_s, request, frames))

    def _send(self, peer: bytes, kind: Type, **fields: Any) -> None:
        self._socket.send_multipart([peer, encode(kind, **fields)])
