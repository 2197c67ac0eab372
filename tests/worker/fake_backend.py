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
from cwd.worker.pages import PagePool

PAGE = 4096
PROGRAM = b"P" * 16


def memory(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class FakeBackend:
    kind = "cpu"
    device = "fake"

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.stages: list[bytes] = []
        self.staged: dict[int, tuple[int, list[np.ndarray]]] = {}
        self.prepared: list[bytes] = []
        self.binds = 0
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

    def warm(self) -> None:
        assert threading.get_ident() == self.inside

    def image_bytes(self, program: bytes) -> int:
        return self.weights_bytes

    def load_thread(self):
        return contextlib.nullcontext()

    def make_pool(self, pages: int, page_bytes: int) -> PagePool:
        return PagePool(pages, page_bytes)

    def bind(self, program: bytes, seat: int) -> int:
        self.binds += 1
        return seat

    def lost(self, error: Exception) -> bool:
        return isinstance(error, ConnectionError)

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        sizes[:] = dims[:, 0]

    def stage(self, slot, program, batch, size_class, payloads, sizes, dims) -> int:
        assert threading.get_ident() == self.inside
        if size_class == 8 or any(sizes != dims[:, 0]):
            return int(Code.BAD_PAYLOAD_SIZE)
        assert 0 <= slot < self.slots
        self.stages.append(program)
        rows = [memory(int(address), int(size)).copy() if size else np.zeros(0, np.uint8)
                for address, size in zip(payloads, sizes, strict=True)]
        self.staged[slot] = size_class, rows
        return 0

    def start(self, slot, bound) -> None:
        assert threading.get_ident() == self.inside
        assert self.alone.acquire(blocking=False), "two executions at once"
        size_class, rows = self.staged.pop(slot)
        self.runs = bound, rows
        self.running.set()
        if self.slots == 1:
            assert self.gate.wait(30)
        if size_class in (7, 9):
            self._end()
            raise ConnectionError("sticky") if size_class == 7 else ValueError("a model that fails")

    def ended(self) -> bool:
        return self.gate.is_set()

    def finish(self, results) -> int:
        bound, rows = self.runs
        weights = memory(bound, self.weights_bytes)
        assert weights[0] == weights[-1]
        for address, row in zip(results, rows, strict=True):
            if row.size:
                memory(int(address), row.size)[:] = row + weights[0]
        self._end()
        return 3

    def _end(self) -> None:
        self.running.clear()
        self.alone.release()

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
