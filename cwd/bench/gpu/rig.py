"""What the experiments need beside a `Gpu`: sizes, kinds of host memory, one kernel, mappings; for a GPU and without.

`Rig` is all that differs between a GPU and the stand-in of a dry run; the experiments do not ask which they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cwd.worker.backends.gpu import Gpu, torch

MiB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much of everything: of a GPU, and of a dry run, which shall only walk through."""

    page_bytes: int = 16 * MiB
    #: E1: sizes of pages, bytes of one load, loads of each
    copy_page_bytes: tuple[int, ...] = (1 * MiB, 4 * MiB, 16 * MiB, 64 * MiB)
    copy_bytes: int = 512 * MiB
    copy_repeats: int = 7
    #: E2: pages gathered, pages of the pool that they are gathered from
    gather_pages: tuple[int, ...] = (4, 7, 16, 64)
    gather_pool: int = 512
    #: what one short measurement may take
    moment_s: float = 0.5
    #: executions timed for a distribution, where there is time for so many
    shots: int = 1000
    #: how models are built (models.py): the whole or a toy
    toy: bool = False
    window_bytes: int = 512 * MiB
    slot_bytes: int = 32 * MiB
    #: E3: pages of the pool
    graph_pool: int = 160
    #: E4: pages of one load, bytes of a request's inputs
    load_pages: int = 16
    upload_bytes: int = 600 * 1024
    #: E5: pages of one slot, pages there are, bytes of the memory that a graph loops on
    slot_pages: int = 7
    vmm_pages: int = 16
    loop_bytes: int = 512 * MiB
    #: E6, E7: instances registered, instances that the pool holds, different images that the host holds
    instances: int = 4000
    pool_instances: int = 300
    images: int = 200
    #: E7: outputs compared
    samples: int = 600


TOY = Sizes(
    page_bytes=256 << 10, copy_page_bytes=(64 << 10, 256 << 10, 1 * MiB), copy_bytes=2 * MiB, copy_repeats=2,
    gather_pages=(4, 7, 16), gather_pool=160, moment_s=0.02, shots=20, toy=True, window_bytes=8 * MiB,
    slot_bytes=2 * MiB, graph_pool=64, load_pages=4, loop_bytes=1 * MiB, instances=40, pool_instances=10, images=6,
    samples=40)


@dataclass
class HostMemory:
    """Some of the host's memory, how long it took to have, and how to give it back."""

    array: np.ndarray
    touch_s: float
    register_s: float
    free: Callable[[], None]


class Vmm(Protocol):
    """Mappings of device memory: sizes and addresses are multiples of `granularity`; whatever fails is an exception."""

    granularity: int

    def create(self, size: int) -> Any:
        """Memory without an address."""

    def release(self, handle: Any) -> None: ...

    def reserve(self, size: int) -> int:
        """Addresses without memory."""

    def free(self, address: int, size: int) -> None: ...

    def map(self, address: int, size: int, handle: Any) -> None: ...

    def access(self, address: int, size: int) -> None:
        """Allow what is mapped there to be used."""

    def unmap(self, address: int, size: int) -> None: ...

    def tensor(self, address: int, size: int) -> torch.Tensor:
        """u8[size] over mapped addresses; it owns nothing."""


class Rig(Protocol):
    """A device to measure."""

    dry: bool
    #: as in HELLO, for names of files; what WorkerOptions calls it
    kind: str
    option: str
    sizes: Sizes

    def make_gpu(self, host_bytes: int = 0) -> Gpu:
        """A Gpu of its own: streams, graph pool, and `host_bytes` for page images."""

    def host_kinds(self) -> dict[str, Callable[[int], HostMemory]]:
        """Ways to have memory that copies run from at full speed, by name."""

    def compiled(self, source: str, name: str) -> Callable[..., None]:
        """A kernel of one's own, called with grid=, block= and args=."""

    def vmm(self) -> Vmm:
        """`Skip` where there is no such thing."""

    def facts(self) -> dict[str, Any]: ...

    def link(self) -> Any:
        """How the device is connected, as it is said while it works."""

    def free_bytes(self) -> int:
        """Memory of the device that is free."""

    def settle(self) -> None:
        """Between steps: nothing is under way, and what nobody refers to any more is given back."""


def synthetic(size: int, seed: int) -> np.ndarray:
    """u1[size] of noise, in which no two pages are alike: nothing is timed on zeros."""
    block = np.random.default_rng(seed).integers(0, 256, (1 << 20) - 1, np.uint8)
    return np.resize(block, size)
