"""The rig of a dry run: `HostGpu`, and its like for kinds of memory, a kernel and mappings. Figures mean nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cwd.bench.gpu.rig import TOY, HostMemory
from cwd.worker.backends.gpu import HostGpu, tensor_at, torch

_RW, _NONE = mmap.PROT_READ | mmap.PROT_WRITE, 0
_SHARED_FIXED, _RESERVED, _RESERVED_FIXED = 0x01 | 0x10, 0x02 | 0x20 | 0x4000, 0x02 | 0x20 | 0x4000 | 0x10


class HostRig:
    """See rig.py."""

    dry, kind, option, sizes = True, "host", "cpu", TOY

    def __init__(self) -> None:
        torch.set_num_threads(1)  # toys gain nothing by more, and lose much where others use the cores

    def make_gpu(self, host_bytes: int = 0) -> HostGpu:
        return HostGpu()

    def host_kinds(self) -> dict[str, Callable[[int], HostMemory]]:
        return dict.fromkeys(("torch pinned", "mmap", "mmap huge"), _plain)

    def compiled(self, source: str, name: str) -> Callable[..., None]:
        def gather(grid: tuple[int, ...], block: tuple[int, ...], args: list[Any]) -> None:
            words, numbers, out, _ = args
            torch.index_select(words, 0, numbers, out=out)

        return gather

    def vmm(self) -> HostVmm:
        return HostVmm()

    def facts(self) -> dict[str, Any]:
        return {"stand_in": "host memory in place of a GPU: times and rates are of no device"}

    def link(self) -> str:
        return "none"

    def free_bytes(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE

    def settle(self) -> None:
        pass


def _plain(size: int) -> HostMemory:
    begin = time.monotonic()
    array = np.zeros(size, np.uint8)
    return HostMemory(array, time.monotonic() - begin, 0.0, lambda: None)


class HostVmm:
    """Mappings of one file that is only in memory; a handle is (offset, size)."""

    granularity = mmap.PAGESIZE

    def __init__(self) -> None:
        libc = self._libc = ctypes.CDLL(None, use_errno=True)
        address, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.mmap.restype, libc.mmap.argtypes = address, [address, size, word, word, word, ctypes.c_long]
        libc.munmap.argtypes, libc.mprotect.argtypes = [address, size], [address, size, word]
        self._fd, self._end = os.memfd_create("cwd-gpu-check", os.MFD_CLOEXEC), 0

    def create(self, size: int) -> tuple[int, int]:
        self._end += size
        os.ftruncate(self._fd, self._end)
        return self._end - size, size

    def release(self, handle: tuple[int, int]) -> None:
        pass

    def reserve(self, size: int) -> int:
        return self._map(None, size, _NONE, _RESERVED, -1, 0)

    def free(self, address: int, size: int) -> None:
        self._checked(self._libc.munmap(address, size))

    def map(self, address: int, size: int, handle: tuple[int, int]) -> None:
        self._map(address, size, _NONE, _SHARED_FIXED, self._fd, handle[0])

    def access(self, address: int, size: int) -> None:
        self._checked(self._libc.mprotect(address, size, _RW))

    def unmap(self, address: int, size: int) -> None:
        self._map(address, size, _NONE, _RESERVED_FIXED, -1, 0)

    def tensor(self, address: int, size: int) -> torch.Tensor:
        return tensor_at(address, size)

    def _map(self, address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
        found = self._libc.mmap(address, size, prot, flags, fd, offset)
        if found is None or found == ctypes.c_void_p(-1).value:
            self._checked(-1)
        return int(found)

    def _checked(self, code: int) -> None:
        if code != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
