"""The memory of a ring, as both ends see it, and an end that takes records out without a compiled line.

`sync.py` has the other operations. This module loads numpy only: a process that does nothing but take starts at once,
and holds nothing of numba's.
"""

from __future__ import annotations

import mmap
import os
import platform
from typing import Any

import numpy as np

from cwd.errors import InvariantError

MAGIC = 0x43574452494E4731  # "CWDRING1"

# Words of `control`, by who writes them. Each group has two cache lines for itself: neighbours are prefetched in pairs.
FORM = 0  # [magic, capacity, bytes per record]: written once
TAIL = 16  # producer: how many were ever published (bytes in a ByteRing)
HEAD_SEEN = 17  # producer: `HEAD` when it last looked
CLAIMED = 18  # producer of a ByteRing: where `TAIL` will be when the claim is published
HEAD = 32  # consumer: how many were ever taken
TAIL_SEEN = 33  # consumer: `TAIL` when it last looked
ARMED = 48  # both: 1 while the consumer wants the bell
CONTROL_WORDS = 64
CONTROL_BYTES = 8 * CONTROL_WORDS

#: Whether this processor keeps the order of its loads and of its stores: then every load is an acquire and every store
#: a release, those that numpy does of an aligned word too.
ORDERED = platform.machine() in ("x86_64", "AMD64")


def ring_bytes(record: Any, capacity: int) -> int:
    """Bytes of memory that a ring of `capacity` records (a power of two) of dtype `record` needs."""
    return CONTROL_BYTES + np.dtype(record).itemsize * capacity


def lay(item_bytes: int, capacity: int, block: np.ndarray, *, fresh: bool) -> tuple[np.ndarray, np.ndarray]:
    """(control, data) in `block`, whose form is written if it is `fresh`; raises `InvariantError` for another form."""
    if capacity < 2 or capacity & (capacity - 1):
        raise InvariantError(f"a ring's capacity is a power of two, not {capacity}")
    size = CONTROL_BYTES + item_bytes * capacity
    if block.size < size or block.ctypes.data % 64:
        raise InvariantError(f"a ring needs {size} bytes aligned to 64, not {block.size} at {block.ctypes.data:#x}")
    control = block[:CONTROL_BYTES].view(np.int64)
    form = (MAGIC, capacity, item_bytes)
    if fresh:
        control[:] = 0
        control[FORM:FORM + 3] = form
    elif tuple(control[FORM:FORM + 3]) != form:
        raise InvariantError("the shared block holds no ring of this form")
    return control, block[CONTROL_BYTES:size]


def shared_block(size_bytes: int, fd: int | None = None) -> tuple[np.ndarray, int]:
    """(u1[size_bytes], fd): zeroed memory that other processes map by inheriting or receiving `fd`, or that of theirs.

    Without `fd` a memfd is made; it is closed on exec unless passed on (`pass_fds`). The array keeps the mapping.
    """
    if fd is None:
        fd = os.memfd_create("cwd-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
    mapping = mmap.mmap(fd, size_bytes)
    return np.frombuffer(mapping, dtype=np.uint8), fd


class Taker:
    """The consumer's end of a ring of records that another process made in `block`; only where memory is `ORDERED`."""

    def __init__(self, record: Any, capacity: int, block: np.ndarray) -> None:
        self._control, data = lay(np.dtype(record).itemsize, capacity, block, fresh=False)
        self._records = data.view(record)

    def take(self, rows: np.ndarray) -> int:
        """Move up to len(rows) records out of the ring, oldest first: how many."""
        head = int(self._control[HEAD])
        count = min(int(self._control[TAIL]) - head, len(rows))
        if count <= 0:
            return 0
        begin = head & (len(self._records) - 1)
        before = min(count, len(self._records) - begin)
        rows[:before] = self._records[begin:begin + before]
        rows[before:count] = self._records[:count - before]
        # only now may the producer write there again
        self._control[HEAD] = head + count
        return count
