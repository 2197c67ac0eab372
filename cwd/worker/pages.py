"""The cpu worker's pool of pages: a memfd whose pages lie anywhere and are mapped, per model, into one range.

A *window* is a range of addresses that is reserved once and never moves. LOAD copies a page image into free pages of
the pool and maps those pages, in order, into a window: the model's weights are contiguous there, without fragmentation
and without a second copy. UNLOAD takes the mapping away, so that a stray use faults instead of reading another model.
What is bound to a window's addresses (tensors) stays valid for the next model that is mapped there: a window is a *seat*
of backends/base.py's Pool, its number the address.

It knows memory and nothing of models, torch or the accounting of pages (residency.py).
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from cwd.errors import Code, CwdError
from cwd.jit import lean_kernel
from cwd.net.clock import monotonic_ns
from cwd.net.native import I4, I8, copy_bytes, external
from cwd.net.wake import wait_fd
from cwd.units import format_size

_PROT_NONE, _PROT_RW = 0, mmap.PROT_READ | mmap.PROT_WRITE
_SHARED_FIXED = mmap.MAP_SHARED | 0x10 | 0x8000  # MAP_FIXED, MAP_POPULATE: no page fault in an execution
_SHARED_POOL = mmap.MAP_SHARED | 0x8000
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
_RESERVED_FIXED = _RESERVED | 0x10
_FAILED = -1

#: Copy at most this much between two looks at the throttle.
_CHUNK_BYTES = 1 << 20

_mmap = external("mmap", I8, I8, I8, I4, I4, I4, I8)
_munmap = external("munmap", I4, I8, I8)


class PagePool:
    """`pages` pages of `page_bytes` each, allocated and touched at once; nothing is allocated afterwards."""

    #: each window has the size it was made for
    shared_pages = 0

    def __init__(self, pages: int, page_bytes: int) -> None:
        if pages < 1 or page_bytes < 1 or page_bytes % mmap.PAGESIZE:
            raise CwdError(f"a pool needs pages, of a multiple of {mmap.PAGESIZE} bytes; got {pages} of {page_bytes}")
        total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if pages * page_bytes > total_bytes:  # asking the kernel would first eat all of it
            raise CwdError(f"a pool of {format_size(pages * page_bytes)} does not fit this machine's "
                           f"{format_size(total_bytes)} of memory", code=Code.NO_PAGES)
        self.pages, self.page_bytes = pages, page_bytes
        self._fd = os.memfd_create("cwd-pool", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self._fd, 0, pages * page_bytes)
        except OSError as error:
            os.close(self._fd)
            raise CwdError(f"no memory for a pool of {format_size(pages * page_bytes)}: {error.strerror}",
                           code=Code.NO_PAGES) from None
        self.address = int(_map_pool(self._fd, pages * page_bytes))
        if self.address == _FAILED:
            raise CwdError(f"cannot map a pool of {format_size(pages * page_bytes)}", code=Code.NO_PAGES)

    def reserve(self, pages: int) -> int:
        """The address of a new window of `pages` pages, inaccessible until it is filled."""
        address = int(_reserve(pages * self.page_bytes))
        if address == _FAILED:
            raise CwdError("the address space is full of windows", code=Code.NO_PAGES)
        return address

    def fill(self, window: int, pages: np.ndarray, source: np.ndarray, bytes_per_s: int = 0) -> int:
        """Copy `source` u1[...] into the pool's `pages` i4[n] and map them at `window`; 0, or -1 if mapping failed.

        `bytes_per_s` above 0 holds the copy down to that rate, to imitate a slower bus.
        """
        pages = np.ascontiguousarray(pages, np.int32)
        _copy_pages(self.address, self.page_bytes, pages, source.ctypes.data, source.nbytes, bytes_per_s)
        return 0 if self.map(window, pages) else -1

    def map(self, window: int, pages: np.ndarray) -> bool:
        """Map the pool's `pages` i4[n] at `window`, as they are; False if that failed."""
        return bool(_map_window(self._fd, self.page_bytes, window, pages))

    def clear(self, window: int, pages: int) -> None:
        """Take the mapping of a window of `pages` pages away; the range stays reserved."""
        _clear_window(window, pages * self.page_bytes)

    def close(self) -> None:
        """Give the pool's memory back (windows keep theirs until they are cleared)."""
        if self._fd >= 0:
            _munmap_range(self.address, self.pages * self.page_bytes)
            os.close(self._fd)
            self._fd = -1


@lean_kernel
def _map_pool(fd, size):
    return _mmap(0, size, _PROT_RW, _SHARED_POOL, fd, 0)


@lean_kernel
def _reserve(size):
    return _mmap(0, size, _PROT_NONE, _RESERVED, -1, 0)


@lean_kernel
def _munmap_range(address, size):
    return _munmap(address, size)


@lean_kernel
def _copy_pages(pool, page_bytes, pages, source, size, bytes_per_s):
    """Copy `size` bytes from address `source` into the pages, in order; chunk by chunk at the given rate."""
    begin_ns = monotonic_ns()
    done = np.int64(0)
    while done < size:
        offset = done % page_bytes
        chunk = min(size - done, page_bytes - offset, _CHUNK_BYTES)
        copy_bytes(pool + np.int64(pages[done // page_bytes]) * page_bytes + offset, source + done, chunk)
        done += chunk
        if bytes_per_s > 0:
            ahead_ns = begin_ns + done * 1000 // max(bytes_per_s // 1_000_000, 1) - monotonic_ns()
            if ahead_ns > 0:
                wait_fd(-1, ahead_ns)  # a descriptor that poll leaves out: this only sleeps


@lean_kernel
def _map_window(fd, page_bytes, window, pages):
    """Map the pool's pages at `window`, runs of neighbours in one call; False if the kernel refuses."""
    at = 0
    while at < len(pages):
        run = 1
        while at + run < len(pages) and pages[at + run] == pages[at] + run:
            run += 1
        address = _mmap(window + at * page_bytes, run * page_bytes, _PROT_RW, _SHARED_FIXED, fd,
                        np.int64(pages[at]) * page_bytes)
        if address == _FAILED:
            return False
        at += run
    return True


@lean_kernel
def _clear_window(window, size):
    return _mmap(window, size, _PROT_NONE, _RESERVED_FIXED, -1, 0)
