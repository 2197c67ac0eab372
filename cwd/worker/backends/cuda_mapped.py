"""Mapped (see gpu.py) on CUDA: one physical allocation a page, made once, and ranges of addresses that they are shown in.

By the driver's virtual memory calls (package cuda-bindings). Creating an allocation takes long, so all are made at the
start; showing one costs microseconds. Whether mapping disturbs what runs is for `tools/gpu_check.py` to measure.
"""

from __future__ import annotations

from typing import Any

from cwd.errors import Code, CwdError
from cwd.worker.backends.gpu import torch

try:
    from cuda.bindings import driver
except ImportError:
    raise CwdError("mapping pages on a GPU needs the package cuda-bindings", code=Code.BAD_ARGUMENT) from None


class CudaMapped:
    """`pages` pages of `page_bytes` on the GPU with that index, in the calling thread's context."""

    def __init__(self, index: int, pages: int, page_bytes: int) -> None:
        self.page_bytes, self._device = page_bytes, torch.device("cuda", index)
        properties = driver.CUmemAllocationProp()
        properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = index
        self._access = driver.CUmemAccessDesc()
        self._access.location = properties.location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        flag = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        least = _done(driver.cuMemGetAllocationGranularity(properties, flag))
        if page_bytes % least:
            raise CwdError(f"this GPU maps multiples of {least} bytes, a page has {page_bytes}", code=Code.BAD_ARGUMENT)
        try:
            self._handles = [_done(driver.cuMemCreate(page_bytes, properties, 0)) for _ in range(pages)]
        except RuntimeError as error:
            raise CwdError(f"no memory for {pages} pages of {page_bytes} bytes: {error}", code=Code.NO_PAGES) from None
        self._views: dict[int, torch.Tensor] = {}
        whole = self._range(pages)
        self.map(whole, list(range(pages)))
        self.memory = self._view(whole, pages)
        self.memory.zero_()

    def reserve(self, pages: int) -> int:
        address = self._range(pages)
        self.map(address, [0])  # torch looks where an address points to before it makes a tensor of it
        self._views[address] = self._view(address, pages)
        self.unmap(address, 1)
        return address

    def map(self, address: int, pages: list[int]) -> None:
        shown = 0
        try:
            for page in pages:
                at = address + shown * self.page_bytes
                _done(driver.cuMemMap(at, self.page_bytes, 0, self._handles[page], 0))
                shown += 1
            _done(driver.cuMemSetAccess(address, len(pages) * self.page_bytes, [self._access], 1))
        except RuntimeError:
            self.unmap(address, shown)
            raise

    def unmap(self, address: int, pages: int) -> None:
        for k in range(pages):  # each mapping has to be taken away whole
            _done(driver.cuMemUnmap(address + k * self.page_bytes, self.page_bytes))

    def view(self, address: int) -> torch.Tensor:
        return self._views[address]

    def _range(self, pages: int) -> int:
        try:
            return int(_done(driver.cuMemAddressReserve(pages * self.page_bytes, 0, 0, 0)))
        except RuntimeError as error:
            raise CwdError(f"no range of addresses for {pages} pages: {error}", code=Code.NO_PAGES) from None

    def _view(self, address: int, pages: int) -> torch.Tensor:
        return torch.as_tensor(_Bytes(address, pages * self.page_bytes), device=self._device)


class _Bytes:
    """Memory on a GPU, as others can take it without a copy."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _done(result: tuple[Any, ...]) -> Any:
    """What a driver call returned, or RuntimeError."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA driver error: {error.name}")
    return values[0] if values else None
