"""What a device must be able to do, for the lanes of a worker: the interface between actions and hardware.

A backend knows programs, weights at a place, and how to run them. It must not know windows of time, messages or
handles: lanes.py has checked all that. The exec thread alone prepares, stages, starts, finishes and profiles; `bind` and
the pool are the load thread's.

An execution has three steps: `stage` fits the requests into the arrays of a batch and, on a GPU, uploads them; `start`
sets the device to work, with inputs that were staged in a slot; `finish` hands the results over once `ended` says so.
With more than one slot the next batch is staged while one runs; a device that runs in `start` itself has one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np


class Pool(Protocol):
    """A device's pages, and the *seats* in which instances are bound: whatever the pages of one are reached through."""

    pages: int
    page_bytes: int
    #: seats for at most so many pages are one like the other; larger ones are made for the size that is wanted
    shared_pages: int

    def reserve(self, pages: int) -> int:
        """A new seat for instances of that many pages; it is kept and used again for ever. `CwdError` NO_PAGES."""

    def fill(self, seat: int, pages: np.ndarray, source: np.ndarray, bytes_per_s: int = 0) -> int:
        """Copy the image `source` u1[...] into those pages i4[n] and put them into the seat.

        Device time in ns (0 where there is no such clock), or -1: it failed, and nothing is in the seat. `bytes_per_s`
        above 0 holds it down to that rate, to imitate a slower bus.
        """

    def clear(self, seat: int, pages: int) -> None:
        """Take a seat's `pages` pages out of it; nothing uses them any more."""

    def close(self) -> None:
        """Nothing executes any more."""


class Backend(Protocol):
    """One device. A program is named by its 16-byte hash."""

    #: as in HELLO
    kind: str
    device: str
    #: batches whose inputs can be staged at one time
    slots: int

    def thread(self) -> AbstractContextManager[None]:
        """Inside, the calling thread may prepare, execute and profile: what is a thread's own is set."""

    def load_thread(self) -> AbstractContextManager[None]:
        """Inside, the calling thread may use the pool."""

    def make_pool(self, pages: int, page_bytes: int) -> Pool:
        """The device's pages, allocated at once. Called once. `CwdError` NO_PAGES if there is not so much memory."""

    def host_memory(self, size: int) -> np.ndarray:
        """u1[size] for a page image, from which the pool copies best. `MemoryError` if none is left."""

    def programs(self) -> list[bytes]:
        """What has been prepared."""

    def prepare(self, program: bytes) -> None:
        """Build a program and warm it up. `RepositoryError` says why not; preparing twice does nothing."""

    def warm(self) -> None:
        """Called by the exec thread before its first execution: what only a thread's own first run sets up."""

    def image_bytes(self, program: bytes) -> int:
        """Size of the page image of an instance of a prepared program."""

    def bind(self, program: bytes, seat: int) -> Any:
        """Something to execute with: the program with the weights of whatever instance is in the seat when it runs."""

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        """Write into sizes i8[n] how many bytes each request's output has, for dims u4[n, 4]."""

    def stage(self, slot: int, program: bytes, batch: int, size_class: int, payloads: np.ndarray, sizes: np.ndarray,
              dims: np.ndarray) -> int:
        """Fit n requests into a batch: payloads i8[n] addresses, sizes i8[n] bytes, dims u4[n, 4].

        0, or a code and nothing is staged: BAD_BATCH, UNKNOWN_SIZE, BAD_PAYLOAD_SIZE. The payloads are not needed any
        more afterwards; dims must stay until `finish`.
        """

    def start(self, slot: int, bound: Any) -> None:
        """Run what was staged in the slot. Whatever goes wrong is an exception."""

    def ended(self) -> bool:
        """Whether what was started last has ended."""

    def finish(self, results: np.ndarray) -> int:
        """Write each request's outputs to results i8[n] addresses of `output_bytes` each; returns the device's own time in
        ns, a CPU's without what it did for others meanwhile; 0 where there is none."""

    def profile(self, program: bytes, bound: Any, batch: int, size_class: int, repeats: int) -> list[int]:
        """Time that many executions, in ns each. `RepositoryError` BAD_BATCH for what the program does not have."""

    def lost(self, error: Exception) -> bool:
        """Whether after that error nothing will ever work again in this process."""
