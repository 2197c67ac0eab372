"""Byte sequences as a peer without a key might send them to a socket that speaks ZMTP, drawn by seed."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterable

from cwd.wire.codec import encode
from cwd.wire.messages import Type

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(mechanism: bytes, as_server: int = 0, minor: int = 0) -> bytes:
    """The 64 bytes that open a connection of ZMTP 3."""
    return _SIGNATURE + bytes((3, minor)) + mechanism.ljust(20, b"\0") + bytes((as_server,)) + bytes(31)


def frame(body: bytes, flags: int) -> bytes:
    """One frame of ZMTP 3: flags 1 more follow, 2 a long size, 4 a command."""
    if len(body) < 256 and not flags & 2:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body


def command(name: bytes, body: bytes = b"") -> bytes:
    return frame(bytes((len(name),)) + name + body, 4)


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


_READY = command(b"READY", _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))


def _messages(rng: random.Random) -> bytes:
    """What a peer would say next, if anybody listened."""
    hello = encode(Type.HELLO, minor=0, role=rng.randrange(1, 4), name="stranger", boot=bytes(16), host=bytes(16), now_ns=1,
                   caps={})
    verb = encode(Type.ADMIN, request=1, verb=rng.choice(("shutdown", "drain", "status")), args={})
    infer = encode(Type.INFER, request=1, model=1 << 32, slo_ns=1_000_000_000, deadline_ns=0, app=0, dims=())
    return b"".join((frame(hello, 0), frame(verb, 0), frame(infer, 1), frame(bytes(8), 0), frame(hello, 0)))


def sequences(rng: random.Random, recorded: bytes, count: int) -> Iterable[bytes]:
    """`count` sequences; `recorded` is what a peer with a key once sent, from its greeting on."""
    for number in range(count):
        way = number % 10
        if way == 0:
            data = rng.randbytes(rng.randrange(300))
        elif way == 1:
            data = greeting(b"NULL") + _READY + _messages(rng)
        elif way == 2:
            data = greeting(b"PLAIN") + command(b"HELLO", b"\x05admin\x05admin") + command(b"INITIATE") + _messages(rng)
        elif way == 3:  # CURVE by name, and then the messages in the clear
            data = greeting(b"CURVE", rng.randrange(2), rng.randrange(2)) + _READY + _messages(rng)
        elif way == 4:  # a HELLO of CURVE with the right size and nothing right in it
            hello = bytes((1, 0)) + bytes(72) + rng.randbytes(32) + bytes(8) + rng.randbytes(80)
            data = greeting(b"CURVE") + command(b"HELLO", hello) + command(b"INITIATE", rng.randbytes(257)) + _messages(rng)
        elif way == 5:  # ZMTP 1.0 and 2.0 know no mechanisms
            data = rng.choice((b"\x01\x00", _SIGNATURE + b"\x01\x05\x00\x00")) + _messages(rng)
        elif way == 6:  # sizes that are promised and never come
            data = greeting(b"CURVE") + bytes((6,)) + rng.choice((1 << 20, 1 << 40, (1 << 64) - 1)).to_bytes(8, "big")
        elif way == 7:
            data = recorded
        elif way == 8:
            data = recorded[:rng.randrange(len(recorded))]
        else:
            changed = bytearray(recorded)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        yield data if rng.randrange(4) else data[:rng.randrange(len(data) + 1)]


def attack(ports: Iterable[int], rng: random.Random, recorded: bytes, count: int) -> bytes:
    """Send them, each over a connection of its own; all that came back."""
    ports, heard = list(ports), []
    for number, data in enumerate(sequences(rng, recorded, count)):
        with socket.create_connection(("127.0.0.1", ports[number % len(ports)])) as stranger:
            stranger.settimeout(0.01)
            try:
                for at in range(0, len(data), cut := rng.choice((1 << 20, 1 << 20, 50))):
                    stranger.sendall(data[at:at + cut])
                while more := stranger.recv(4096):
                    heard.append(more)
            except OSError:
                pass  # it hung up, or waits for more
    return b"".join(heard)


class Recorder:
    """A relay in front of a port that keeps what the one who connects says."""

    def __init__(self, port: int) -> None:
        self._port, self.said = port, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._relay)]
        self._threads[0].start()

    def _relay(self) -> None:
        near, _ = self._listener.accept()
        with near, socket.create_connection(("127.0.0.1", self._port)) as far:
            back = threading.Thread(target=self._pump, args=(far, near, False))
            back.start()
            self._pump(near, far, True)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket, keep: bool) -> None:
        try:
            while data := source.recv(65536):
                if keep:
                    self.said += data
                target.sendall(data)
        except OSError:
            pass
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._threads[0].join(20)
        self._listener.close()
