"""A device without torch: a program adds the first byte of its weights to every byte of a request."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from cwd.errors import Code, RepositoryError

PAGE = 4096
PROGRAM = b"P" * 16


def memory(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class FakeBackend:
    kind = "cpu"
    device = "fake"

    def __init__(self) -> None:
        self.prepared: list[bytes] = []
        self.binds = self.ticks = 0
        #: while cleared, executions hang here
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.alone = threading.Lock()
        self.weights_bytes = 2 * PAGE - 7

    @contextlib.contextmanager
    def thread(self) -> Iterator[None]:
        self.inside = threading.get_ident()
        yield
        self.inside = 0

    def programs(self) -> list[bytes]:
        return self.prepared

    def prepare(self, program: bytes) -> None:
        if program == b"X" * 16:
            raise RepositoryError("the factory is broken", code=Code.BAD_MODEL)
        if program not in self.prepared:
            self.prepared.append(program)

    def image_bytes(self, program: bytes) -> int:
        return self.weights_bytes

    def bind(self, program: bytes, address: int) -> int:
        self.binds += 1
        return address

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        sizes[:] = dims[:, 0]

    def execute(self, program, bound, batch, size_class, payloads, sizes, dims, results) -> int:
        assert threading.get_ident() == self.inside
        assert self.alone.acquire(blocking=False), "two executions at once"
        try:
            self.running.set()
            assert self.gate.wait(30)
            if size_class == 9:
                raise ValueError("a model that fails")
            if size_class == 8 or any(sizes != dims[:, 0]):
                return int(Code.BAD_PAYLOAD_SIZE)
            weights = memory(bound, self.weights_bytes)
            assert weights[0] == weights[-1]
            for row in range(len(payloads)):
                size = int(sizes[row])
                if size:
                    memory(int(results[row]), size)[:] = memory(int(payloads[row]), size) + weights[0]
            return 0
        finally:
            self.running.clear()
            self.alone.release()

    def clock_ns(self) -> int:
        """Three ticks from one reading to the next."""
        self.ticks += 3
        return self.ticks

    def profile(self, program, bound, batch, size_class, repeats) -> list[int]:
        if batch > 8:
            raise RepositoryError("no such batch", code=Code.BAD_BATCH)
        time.sleep(0.001)
        return [100 + k for k in range(repeats)]


class FakeStore:
    """Image `bytes([k]) * 16` is filled with k."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.images = {bytes([k]) * 16: np.full(size, k, np.uint8) for k in range(1, 20)}

    def find(self, name: str, version: int, program: bytes, image: bytes) -> SimpleNamespace:
        if name == "absent":
            raise RepositoryError("absent/1 is not in the repository", code=Code.NOT_HERE)
        return SimpleNamespace(image=image)

    def stage(self, entry: SimpleNamespace) -> None:
        if entry.image == b"C" * 16:
            raise RepositoryError("its sha256 differs", code=Code.CORRUPT)
        self.images[entry.image] = np.full(self.size, entry.image[0], np.uint8)
