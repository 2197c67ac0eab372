"""What the paged backend asks of a GPU: memory, copies, events, captured work; and the same in the host's memory.

`Gpu` is all that differs between hardware and its stand-in: the paged backend and its pool are written against it, so a
machine without a GPU runs and tests the same lines. `HostGpu` does everything at once, in the order it is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from cwd.errors import CwdError
from cwd.worker.pages import PagePool

try:
    import torch
except ImportError:
    raise CwdError("this backend needs torch: pip install 'cwd[server]'") from None


class Event(Protocol):
    """A mark in the order of work that a thread gave its stream."""

    def record(self) -> None:
        """Put it behind what the calling thread's stream was given so far."""

    def query(self) -> bool:
        """Whether everything before it is done."""

    def synchronize(self) -> None:
        """Wait for that, without the GIL."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds of device time until the other mark; both done."""


class Graph(Protocol):
    def replay(self) -> None:
        """Have what was captured done again, by the calling thread's stream."""


class Mapped(Protocol):
    """Pages of memory on the device, each of which can be seen at several addresses."""

    #: u8[pages * page_bytes]: all pages, in order
    memory: torch.Tensor

    def reserve(self, pages: int) -> int:
        """The address of a new range for so many pages, at which nothing is mapped yet. `CwdError` NO_PAGES."""

    def map(self, address: int, pages: list[int]) -> None:
        """Show these pages, in order, in a range. RuntimeError."""

    def unmap(self, address: int, pages: int) -> None:
        """Show nothing there any more."""

    def view(self, address: int) -> torch.Tensor:
        """u8 over a reserved range, whatever is mapped there when it is used."""


class Gpu(Protocol):
    """One device. Each of two threads has a stream of its own: inside `thread`, what it asks for is done in order."""

    #: as in HELLO; profiles are kept by kind
    kind: str
    name: str
    device: torch.device
    #: held while work is captured, and while a LOAD copies: a capture is to be alone
    quiet: threading.Lock

    def thread(self, *, urgent: bool) -> AbstractContextManager[None]:
        """Give the calling thread its stream: the exec lane's, which is urgent, or the load lane's."""

    def side(self) -> AbstractContextManager[None]:
        """Inside, the thread's work goes to a third stream, beside what its own has still to do."""

    def follow(self, event: Any) -> None:
        """The exec lane's stream goes on when the event is done."""

    def memory(self, size: int) -> torch.Tensor:
        """u8[size] on the device, zeros. `CwdError` NO_PAGES."""

    def mapped(self, pages: int, page_bytes: int) -> Mapped:
        """Memory like that, of pages that can be mapped. `CwdError`: NO_PAGES, or that this device or driver cannot."""

    def pinned(self, size: int) -> torch.Tensor:
        """u8[size] of the host that copies run to and from at full speed."""

    def host_memory(self, size: int) -> np.ndarray:
        """u1[size] of such memory for a page image, out of what was set aside at the start. `MemoryError`."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between host and device, in the order of the thread's stream; the call does not wait."""

    def event(self) -> Any:
        """An Event, with time."""

    def capture(self, body: Callable[[], None]) -> Graph:
        """What `body` asks of the thread's stream, without doing it. Raises what torch raises if that cannot be."""

    def allocations(self) -> int:
        """How often memory was asked of the driver; it must not grow while a worker serves."""

    def lost(self, error: Exception) -> bool:
        """Whether nothing will work any more after that error."""


def tensor_at(address: int, size: int) -> torch.Tensor:
    """u8[size] over that memory, which need not be accessible yet and must outlive the tensor."""
    if size == 0:
        return torch.zeros(0, dtype=torch.uint8)
    memory = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8)


def kind_of(name: str) -> str:
    """A kind for HELLO and for files from a device's name: "NVIDIA H200" is "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class HostEvent:
    """An Event of what is done at once."""

    def __init__(self) -> None:
        self.at_ns = 0

    def record(self) -> None:
        self.at_ns = time.monotonic_ns()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: HostEvent) -> float:
        return (later.at_ns - self.at_ns) / 1e6


class HostGraph:
    """A Graph that calls."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.replay = body


class HostMapped:
    """Mapped, over the cpu worker's pool."""

    def __init__(self, pages: int, page_bytes: int) -> None:
        self._pool, self._sizes = PagePool(pages, page_bytes), dict[int, int]()
        self.memory = tensor_at(self._pool.address, pages * page_bytes)

    def reserve(self, pages: int) -> int:
        address = self._pool.reserve(pages)
        self._sizes[address] = pages * self._pool.page_bytes
        return address

    def map(self, address: int, pages: list[int]) -> None:
        if not self._pool.map(address, np.array(pages, np.int32)):
            raise RuntimeError("the pages cannot be mapped")

    def unmap(self, address: int, pages: int) -> None:
        self._pool.clear(address, pages)

    def view(self, address: int) -> torch.Tensor:
        return tensor_at(address, self._sizes[address])


class HostGpu:
    """Gpu in the host's memory: for tests, and for walking through what a GPU will be asked."""

    kind, name = "host", "host memory in place of a GPU"

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.quiet = threading.Lock()
        self._allocations = 0

    @contextlib.contextmanager
    def thread(self, *, urgent: bool):
        with torch.inference_mode():
            yield

    def side(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def follow(self, event: HostEvent) -> None:
        pass

    def memory(self, size: int) -> torch.Tensor:
        self._allocations += 1
        return torch.zeros(size, dtype=torch.uint8)

    def pinned(self, size: int) -> torch.Tensor:
        self._allocations += 1
        return torch.zeros(size, dtype=torch.uint8)

    def mapped(self, pages: int, page_bytes: int) -> HostMapped:
        self._allocations += 1
        return HostMapped(pages, page_bytes)

    def host_memory(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def event(self) -> HostEvent:
        return HostEvent()

    def capture(self, body: Callable[[], None]) -> HostGraph:
        return HostGraph(body)

    def allocations(self) -> int:
        return self._allocations

    def lost(self, error: Exception) -> bool:
        return False
