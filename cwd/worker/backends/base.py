"""What a device must be able to do, for the lanes of a worker: the interface between actions and hardware.

A backend knows programs, weights at an address, and how to run them. It must not know windows of time, messages,
handles or pages: lanes.py has checked all that. The exec thread alone prepares, executes, reads the clock and profiles;
`bind` is called by the load thread, each call by one thread at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np


class Backend(Protocol):
    """One device. A program is named by its 16-byte hash."""

    #: as in HELLO
    kind: str
    device: str

    def thread(self) -> AbstractContextManager[None]:
        """Inside, the calling thread may prepare, execute and profile: what is a thread's own is set."""

    def programs(self) -> list[bytes]:
        """What has been prepared."""

    def prepare(self, program: bytes) -> None:
        """Build a program and warm it up. `RepositoryError` says why not; preparing twice does nothing."""

    def image_bytes(self, program: bytes) -> int:
        """Size of the page image of an instance of a prepared program."""

    def bind(self, program: bytes, address: int) -> Any:
        """Something to execute with: the program with the weights that lie, whenever it runs, at `address`."""

    def output_bytes(self, program: bytes, dims: np.ndarray, sizes: np.ndarray) -> None:
        """Write into sizes i8[n] how many bytes each request's output has, for dims u4[n, 4]."""

    def execute(self, program: bytes, bound: Any, batch: int, size_class: int, payloads: np.ndarray,
                sizes: np.ndarray, dims: np.ndarray, results: np.ndarray) -> int:
        """Run n requests as one batch: payloads i8[n] addresses, sizes i8[n] bytes, dims u4[n, 4], results i8[n]
        addresses of `output_bytes` each. 0 or a code (BAD_BATCH, UNKNOWN_SIZE, BAD_PAYLOAD_SIZE); what else goes
        wrong is an exception."""

    def clock_ns(self) -> int:
        """The device's own clock, which stands still while it works for others; always 0 where there is none."""

    def profile(self, program: bytes, bound: Any, batch: int, size_class: int, repeats: int) -> list[int]:
        """Time that many executions, in ns each. `RepositoryError` BAD_BATCH for what the program does not have."""
