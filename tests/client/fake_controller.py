"""A controller of the tests' own: a ROUTER in a thread that speaks CWDP/1 by the codec alone and does as it is told."""

from __future__ import annotations

import threading
import time

import numpy as np
import zmq

from cwd.errors import Code
from cwd.net.host_id import host_id
from cwd.wire.codec import decode, encode
from cwd.wire.messages import Type

DOUBLE = {
    "name": "double", "version": 1, "axes": [], "exact": False, "size_classes": [[]], "batch_sizes": [1, 4],
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 3]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2, 3]}],
}


class FakeController:
    """Answers INFER with twice the input, unless `on_infer(fields, payload)` returns other fields of REPLY."""

    def __init__(self, path, *, host=None, clock_ns=0, heartbeat_ms=100, lost_ms=10_000, credits=64):
        self.endpoint = f"ipc://{path}"
        self.models = {"double": (7, DOUBLE)}
        self.host = host_id() if host is None else host
        self.clock_ns = clock_ns
        self.welcome = {"heartbeat_ms": heartbeat_ms, "lost_ms": lost_ms, "credits": credits,
                        "payload_bytes_max": 1 << 20}
        self.epoch = 1
        self.seen = []
        self.silent = False
        self.deaf = False
        self.hello_error = None
        self.on_infer = lambda fields, payload: {}
        self.thread = None
        self.start()

    def now(self):
        return time.monotonic_ns() + self.clock_ns

    def start(self):
        self.known = set()
        self.stop_now = False
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(self.endpoint)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def stop(self):
        """As kill -9 would: no goodbye."""
        if self.thread is not None:
            self.stop_now = True
            self.thread.join()
            self.thread = None
            self.socket.close(0)
            self.context.term()

    def restart(self):
        self.stop()
        self.epoch += 1
        self.start()

    def sees(self, wanted, count=1):
        """Wait until so many messages of this type have come."""
        until = time.monotonic() + 20
        while sum(kind == wanted for kind, _, _ in self.seen) < count:
            assert time.monotonic() < until, f"no {wanted!r} came"
            time.sleep(0.005)

    def run(self):
        while not self.stop_now:
            if self.deaf:
                time.sleep(0.01)
                continue
            if not self.socket.poll(10):
                continue
            peer, *frames = self.socket.recv_multipart()
            kind, fields = decode(frames[0])
            self.seen.append((kind, fields, frames[1:]))
            if self.silent:
                continue
            for answer in self.answer(peer, kind, fields, frames[1:]):
                self.socket.send_multipart([peer, *answer])

    def answer(self, peer, kind, fields, payload):
        if kind == Type.HELLO:
            if self.hello_error:
                return [(encode(Type.ERROR, code=self.hello_error, re_type=1, re_id=0, text="no"),)]
            self.known.add(peer)
            return [(encode(Type.WELCOME, minor=0, epoch=self.epoch, host=self.host, now_ns=self.now(),
                            **self.welcome),)]
        if peer not in self.known:
            return [(encode(Type.ERROR, code=int(Code.NOT_INTRODUCED), re_type=int(kind),
                            re_id=fields.get("request", 0), text=""),)]
        if kind == Type.HEARTBEAT and fields["reply"] == 0:
            return [(encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=self.now(), echo_ns=fields["sent_ns"], hold_ns=0,
                            loop_max_ns=0, queued=0),)]
        if kind == Type.LOOKUP:
            if fields["name"] not in self.models:
                return [(encode(Type.ERROR, code=int(Code.UNKNOWN_MODEL), re_type=int(kind), re_id=fields["request"],
                                text=f"no model named {fields['name']}"),)]
            handle, manifest = self.models[fields["name"]]
            return [(encode(Type.MODEL, request=fields["request"], model=handle + (self.epoch << 32),
                            manifest=manifest),)]
        if kind == Type.LIST:
            names = sorted(self.models)
            at = fields["after"]
            page = {f"{name}/1": self.models[name][0] for name in names[at:at + 2]}
            return [(encode(Type.MODELS, request=fields["request"], next=at + 2 if at + 2 < len(names) else 0,
                            models=page),)]
        if kind == Type.INFER:
            return self.answer_infer(fields, payload[0])
        return []

    def answer_infer(self, fields, payload):
        told = self.on_infer(fields, payload)
        if told is None:
            return []
        reply = {"status": 0, "queued_ns": 1, "load_ns": 2, "exec_ns": 3, "total_ns": 4, "earliest_ns": 0, "batch": 5,
                 "worker": 6, "cold": 1, **told}
        head = encode(Type.REPLY, request=fields["request"], **reply)
        return [(head, (np.frombuffer(payload, "f4") * 2).tobytes())] if reply["status"] == 0 else [(head,)]


X = np.arange(6, dtype="f4").reshape(2, 3)
