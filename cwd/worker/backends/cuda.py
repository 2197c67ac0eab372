"""Gpu (see gpu.py) on CUDA: streams, page-locked memory, events and graphs, through torch.

The exec lane's stream goes before the load lane's; that helps kernels only, copies queue in the order they were asked
for, which is why LOADs keep few pages under way (gpu_pool.py). Page images lie in one arena that is page-locked when the
worker starts: nothing is asked of the driver afterwards, but for programs that come while it serves. Precision is torch's
own default: convolutions may use TF32, matrix products do not.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np

from cwd.errors import Code, CwdError
from cwd.units import format_size
from cwd.worker.backends.arena import Arena
from cwd.worker.backends.gpu import Mapped, kind_of, torch

#: page-locked in pieces: one registration of hundreds of GiB fails with some drivers
PIECE_BYTES = 8 << 30
_HUGE_BYTES, _BLOCK_BYTES = 2 << 20, 1 << 30


def count() -> int:
    """How many GPUs this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class CudaGpu:
    """The GPU with that index, with `host_bytes` of page-locked memory for page images."""

    def __init__(self, index: int, host_bytes: int) -> None:
        found = count()
        if index >= found:
            raise CwdError(f"there is no cuda:{index}: torch {torch.__version__} sees {found} GPUs here")
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        torch.cuda.init()
        self.name = f"{torch.cuda.get_device_name(index)}, torch {torch.__version__.partition('+')[0]}"
        self.kind = kind_of(torch.cuda.get_device_name(index))
        self.quiet = threading.Lock()
        # a lower number goes first
        self._exec, self._load, self._side = (torch.cuda.Stream(self.device, priority=level) for level in (-2, 0, -1))
        self._graphs = torch.cuda.graph_pool_handle()
        self._failed: list[torch.cuda.CUDAGraph] = []
        self._arena = Arena(_locked_pieces(host_bytes))

    @contextlib.contextmanager
    def thread(self, *, urgent: bool) -> Iterator[None]:
        torch.cuda.set_device(self.device)
        with torch.inference_mode(), torch.cuda.stream(self._exec if urgent else self._load):
            yield

    def side(self) -> AbstractContextManager[None]:
        return torch.cuda.stream(self._side)

    def follow(self, event: torch.cuda.Event) -> None:
        self._exec.wait_event(event)

    def memory(self, size: int) -> torch.Tensor:
        try:
            found = torch.zeros(size, dtype=torch.uint8, device=self.device)
            torch.cuda.current_stream().synchronize()  # other streams may be the first to use it
            return found
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(self.device)
            raise CwdError(f"{format_size(size)} do not fit the GPU: {format_size(free)} of {format_size(total)} are free",
                           code=Code.NO_PAGES) from None

    def mapped(self, pages: int, page_bytes: int) -> Mapped:
        from cwd.worker.backends.cuda_mapped import CudaMapped

        return CudaMapped(self.device.index, pages, page_bytes)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)

    def host_memory(self, size: int) -> np.ndarray:
        return self._arena.take(size)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True, blocking=True)

    def capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._graphs, stream=self._exec, capture_error_mode="thread_local"):
                body()
        except RuntimeError:
            # torch goes on recording to the pool, for a graph that is gone, unless it is told; and never takes that pool again
            self._failed.append(graph)
            with contextlib.suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(self.device.index, self._graphs)
            self._graphs = torch.cuda.graph_pool_handle()
            raise
        return graph

    def allocations(self) -> int:
        return int(torch.cuda.memory_stats(self.device).get("num_device_alloc", 0))

    def lost(self, error: Exception) -> bool:
        # whatever the error is: what was asked for before it must have ended before anything else happens to its memory
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False


def _locked_pieces(size: int) -> list[np.ndarray]:
    """u1 arrays of `size` bytes together, page-locked; `CwdError` if that is refused."""
    pieces = []
    while size > 0:
        wanted = -(-min(size, PIECE_BYTES) // _HUGE_BYTES) * _HUGE_BYTES
        found = mapped(wanted)
        pieces += [found] if register(found) else _allocated(wanted)
        size -= wanted
    return pieces


def mapped(size: int, *, huge: bool = True) -> np.ndarray:
    """u1[size] of memory of our own, touched; `huge`: by huge pages where the kernel has them."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    piece = np.frombuffer(memory, np.uint8)
    piece[::mmap.PAGESIZE] = 0
    return piece


def register(piece: np.ndarray) -> bool:
    """Have the driver page-lock that memory; False if it will not."""
    if int(torch.cuda.cudart().cudaHostRegister(piece.ctypes.data, piece.size, 0)) == 0:
        return True
    with contextlib.suppress(RuntimeError):  # else the error is reported to whoever launches a kernel next
        torch.zeros(1, device="cuda")
    return False


def _allocated(size: int) -> list[np.ndarray]:
    """The driver's memory, in blocks of a power of two, to which torch would round them up."""
    blocks = []
    while size > 0:
        wanted = min(_BLOCK_BYTES, size)
        try:
            blocks.append(torch.empty(wanted, dtype=torch.uint8, pin_memory=True).numpy())
        except RuntimeError as error:
            raise CwdError(f"no page-locked memory for page images: {error} (--host, ulimit -l)",
                           code=Code.NO_PAGES) from None
        size -= wanted
    return blocks
