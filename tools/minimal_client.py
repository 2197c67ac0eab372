#!/usr/bin/env python3
"""A whole CWDP/1 client, written from proto_spec alone: zmq, msgpack, numpy, and nothing of cwd.

`minimal_client.py ENDPOINT MODEL [SLO_MS] [AXIS=SIZE ...]` sends one request with seeded random inputs and prints one
JSON object. As a module it offers `infer` for one call and `Connection` for many.
"""

import json
import os
import sys
import time
from pathlib import Path

import msgpack
import numpy as np
import zmq

MAGIC = 0x43574401
HELLO, WELCOME, HEARTBEAT, GOODBYE, ERROR, INFER, REPLY, LOOKUP, MODEL = 1, 2, 3, 4, 5, 16, 17, 19, 20
UINTS = {"u8": (b"\xcc", 1), "u16": (b"\xcd", 2), "u32": (b"\xce", 4), "u64": (b"\xcf", 8)}


class Failed(Exception):
    """(text, code): the request was refused, with the protocol's code, or it had no answer, and the code is 0."""


def uint(kind: str, value: int) -> bytes:
    return UINTS[kind][0] + value.to_bytes(UINTS[kind][1], "big")


def text(value: str) -> bytes:
    return b"\xda" + len(value.encode()).to_bytes(2, "big") + value.encode()


def little(tensor: dict) -> np.dtype:
    return np.dtype(tensor["dtype"]).newbyteorder("<")


def frame0(kind: int, *fields: bytes) -> bytes:
    """`fields` are encoded already, each in its canonical form."""
    return bytes([0x92 + len(fields)]) + uint("u32", MAGIC) + uint("u8", kind) + b"".join(fields)


def boot_id() -> bytes:
    """Identifies the running kernel: equal ids mean equal monotonic clocks."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return bytes.fromhex(path.read_text().replace("-", "")) if path.exists() else os.urandom(16)


class Connection:
    """One introduced connection; one request at a time. Raises `Failed`."""

    def __init__(self, endpoint: str, patience_s: float = 5.0) -> None:
        self.patience_s, self.number = patience_s, 0
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint)
        host = boot_id()
        self.send(frame0(HELLO, uint("u16", 0), uint("u8", 2), text("minimal client"), b"\xc4\x10" + os.urandom(16),
                         b"\xc4\x10" + host, uint("u64", time.monotonic_ns()), b"\x80"))
        self.same_clock = self.receive(WELCOME, patience_s)[0][2] == host

    def send(self, *frames: bytes) -> None:
        if not self.socket.poll(int(self.patience_s * 1000), zmq.POLLOUT):
            raise Failed("nobody is at the endpoint", 0)
        self.socket.send_multipart(frames)

    def receive(self, wanted: int, patience_s: float) -> tuple[list, list[bytes]]:
        """Fields and payload of the next message of the type, and of our request if it has one; answers heartbeats."""
        end = time.monotonic() + patience_s
        while self.socket.poll(max(0, int((end - time.monotonic()) * 1000))):
            first, *payload = self.socket.recv_multipart()
            magic, kind, *fields = msgpack.unpackb(first)
            if magic != MAGIC:
                raise Failed(f"the peer speaks another protocol: {magic:#x}", 0)
            if kind == HEARTBEAT and fields[1] == 0:
                self.send(frame0(HEARTBEAT, uint("u32", fields[0]), uint("u8", 1), uint("u64", time.monotonic_ns()),
                                 uint("u64", fields[2]), uint("u64", 0), uint("u64", 0), uint("u32", 0)))
            elif kind == ERROR and fields[2] in (0, self.number):
                raise Failed(fields[3] or f"code {fields[0]}", fields[0])
            elif kind == GOODBYE:
                raise Failed(fields[1] or "the controller took leave", fields[0])
            elif kind == wanted and (wanted == WELCOME or fields[0] == self.number):
                return fields, payload
        raise Failed("no answer in time", 0)

    def lookup(self, name: str, version: int = 0) -> tuple[int, dict]:
        """Handle and manifest of a model."""
        self.number += 1
        self.send(frame0(LOOKUP, uint("u64", self.number), text(name), uint("u32", version)))
        return tuple(self.receive(MODEL, self.patience_s)[0][1:])

    def infer(self, handle: int, manifest: dict, inputs: dict[str, np.ndarray], slo_ms: float) -> dict[str, np.ndarray]:
        """The outputs by name; arrays have the shapes of the manifest, with the request's own sizes."""
        sizes = {axis: size for tensor in manifest["inputs"]
                 for axis, size in zip(tensor["shape"], inputs[tensor["name"]].shape, strict=True)}
        payload = b"".join(np.ascontiguousarray(inputs[tensor["name"]], little(tensor)).tobytes()
                           for tensor in manifest["inputs"])
        dims = ([sizes[axis] for axis in manifest["axes"]] + [0] * 4)[:4]
        self.number += 1
        slo_ns, now_ns = int(slo_ms * 1e6), time.monotonic_ns()
        self.send(frame0(INFER, uint("u64", self.number), uint("u64", handle), uint("u64", slo_ns),
                         uint("u64", now_ns + slo_ns if self.same_clock else 0), uint("u32", 0),
                         b"\x94" + b"".join(uint("u32", size) for size in dims)), payload)
        reply, outputs = self.receive(REPLY, slo_ms / 1000 + self.patience_s)
        if reply[1] != 0:
            raise Failed(f"refused with code {reply[1]}; it could be answered after {reply[6] / 1e6:.1f} ms", reply[1])
        if time.monotonic_ns() > now_ns + slo_ns:
            raise Failed("the answer came after the deadline", 103)
        found, at = {}, 0
        for tensor in manifest["outputs"]:
            shape = [sizes.get(axis, axis) for axis in tensor["shape"]]
            array = np.frombuffer(outputs[0], little(tensor), int(np.prod(shape)), at).reshape(shape)
            found[tensor["name"]], at = array, at + array.nbytes
        return found

    def close(self) -> None:
        self.send(frame0(GOODBYE, uint("u16", 0), text("")))
        self.socket.close()


def infer(endpoint: str, model: str, inputs: dict[str, np.ndarray], slo_ms: float) -> dict[str, np.ndarray]:
    connection = Connection(endpoint)
    outputs = connection.infer(*connection.lookup(model), inputs, slo_ms)
    connection.close()
    return outputs


def main() -> int:
    (endpoint, model, *rest), rng = sys.argv[1:], np.random.default_rng(0)
    try:
        connection = Connection(endpoint)
        handle, manifest = connection.lookup(model)
        sizes = dict(zip(manifest["axes"], manifest["size_classes"][0], strict=True))
        sizes.update((axis, int(size)) for axis, size in (part.split("=") for part in rest[1:]))
        inputs = {tensor["name"]: rng.integers(0, 2, [sizes.get(axis, axis) for axis in tensor["shape"]]).astype(
            little(tensor)) for tensor in manifest["inputs"]}
        outputs = connection.infer(handle, manifest, inputs, float(rest[0]) if rest else 1000.0)
        connection.close()
    except Failed as failure:
        print(json.dumps({"status": failure.args[1], "error": failure.args[0]}))
        return 1
    print(json.dumps({"status": 0, "outputs": {name: list(array.shape) for name, array in outputs.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
