"""The rig of a GPU: what is asked of CUDA beside cwd's own `CudaGpu`, through torch, libcuda and cuda-bindings.

Everything that may be missing (nvidia-smi, libcuda's attributes, cuda-bindings, a private function of torch) is a fact
or an exception of the step that wanted it, never of this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwd.bench.gpu.rig import HostMemory, Sizes
from cwd.bench.gpu.timing import Skip
from cwd.errors import CwdError
from cwd.worker.backends import cuda
from cwd.worker.backends.gpu import kind_of, torch

#: of CUdevice_attribute
_ATTRIBUTES = {"async_engines": 40, "l2_bytes": 38, "memory_bus_bits": 37, "multiprocessors": 16,
               "virtual_memory_management": 102, "host_register_supported": 99}
POINTER_FUNCTIONS = ("_construct_storage_from_data_pointer", "_construct_CUDA_Tensor_From_Storage_And_Metadata")
_SMI = ("driver_version", "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current",
        "pcie.link.width.max", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


class CudaRig:
    """See rig.py."""

    dry = False

    def __init__(self, index: int = 0, sizes: Sizes | None = None) -> None:
        self.index, self.sizes = index, sizes or Sizes()
        self.device = torch.device("cuda", index)
        self._kept: list[cuda.CudaGpu] = []
        self.kind, self.option = kind_of(torch.cuda.get_device_name(index)), f"cuda:{index}"

    def make_gpu(self, host_bytes: int = 0) -> cuda.CudaGpu:
        made = cuda.CudaGpu(self.index, host_bytes)
        if host_bytes > 0:  # page-locked addresses may not come back to the system while the driver knows them
            self._kept.append(made)
        return made

    def host_kinds(self) -> dict[str, Callable[[int], HostMemory]]:
        return {"torch pinned": _pinned, "mmap": lambda size: _registered(size, huge=False),
                "mmap huge": lambda size: _registered(size, huge=True)}

    def compiled(self, source: str, name: str) -> Callable[..., None]:
        try:
            return torch.cuda._compile_kernel(source, name)
        except OSError:  # torch looks for NVRTC where the system has it; pip puts it beside torch
            for path in sorted(Path(torch.__file__).parent.parent.glob("nvidia/*/lib/libnvrtc.so.*")):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return torch.cuda._compile_kernel(source, name)

    def vmm(self) -> CudaVmm:
        return CudaVmm(self.index)

    def link(self) -> Any:
        return _fact(lambda: smi_facts(self.index))

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    def settle(self) -> None:
        gc.unfreeze()
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        cudnn = torch.backends.cudnn
        return {name: _fact(find) for name, find in {
            "name": lambda: torch.cuda.get_device_name(self.index),
            "memory_bytes": lambda: torch.cuda.get_device_properties(self.index).total_memory,
            "capability": lambda: list(torch.cuda.get_device_capability(self.index)),
            "free_bytes": self.free_bytes, "allocator": torch.cuda.get_allocator_backend,
            "torch_cuda": lambda: torch.version.cuda, "cudnn": cudnn.version, "cudnn_tf32": lambda: cudnn.allow_tf32,
            "matmul_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
            "libcuda": lambda: _libcuda_facts(self.index), "nvidia_smi": self.link,
            "vmm_granularity": lambda: CudaVmm(self.index).granularity,
            "pointer_functions": lambda: [hasattr(torch._C, name) for name in POINTER_FUNCTIONS],
            "compile_kernel": lambda: hasattr(torch.cuda, "_compile_kernel"),
        }.items()}


def _fact(find: Callable[[], Any]) -> Any:
    """What `find` says, or why it says nothing."""
    try:
        return find()
    except Exception as error:
        return {"missing": f"{type(error).__name__}: {error}"[:300]}


def smi_facts(index: int) -> dict[str, str]:
    """What nvidia-smi says of the link and the clocks."""
    done = subprocess.run(
        ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=20, check=True)
    return dict(zip(_SMI, [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")], strict=True))


def _libcuda_facts(index: int) -> dict[str, Any]:
    library = ctypes.CDLL("libcuda.so.1")
    value, device = ctypes.c_int(), ctypes.c_int()
    codes = [library.cuInit(0), library.cuDriverGetVersion(ctypes.byref(value)), library.cuDeviceGet(ctypes.byref(device), index)]
    found: dict[str, Any] = {"driver_api": value.value, "codes": codes}
    for name, number in _ATTRIBUTES.items():
        code = library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        found[name] = value.value if code == 0 else f"error {code}"
    return found


def _pinned(size: int) -> HostMemory:
    begin = time.monotonic()
    tensor = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    taken_s = time.monotonic() - begin
    return HostMemory(tensor.numpy(), 0.0, taken_s, lambda: None)


def _registered(size: int, *, huge: bool) -> HostMemory:
    begin = time.monotonic()
    array = cuda.mapped(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, huge=huge)
    middle = time.monotonic()
    if not cuda.register(array):
        raise CwdError(f"cudaHostRegister refused {size} bytes")
    end = time.monotonic()

    def free() -> None:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaHostUnregister(array.ctypes.data)

    return HostMemory(array[:size], middle - begin, end - middle, free)


class CudaVmm:
    """Vmm through cuda-bindings; the calling thread must have used torch on the device."""

    def __init__(self, index: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise Skip(f"cuda-bindings is missing: {error}") from None
        self._driver, self._device = driver, torch.device("cuda", index)
        torch.cuda.init()
        torch.zeros(1, device=self._device)  # makes torch's context current in this thread
        self._ask(driver.cuInit(0))
        self._prop = driver.CUmemAllocationProp()
        self._prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._prop.location.id = index
        self._allowed = driver.CUmemAccessDesc()
        self._allowed.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._allowed.location.id = index
        self._allowed.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self.granularity = int(self._ask(driver.cuMemGetAllocationGranularity(
            self._prop, driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)))

    def create(self, size: int) -> Any:
        return self._ask(self._driver.cuMemCreate(size, self._prop, 0))

    def release(self, handle: Any) -> None:
        self._ask(self._driver.cuMemRelease(handle))

    def reserve(self, size: int) -> int:
        return int(self._ask(self._driver.cuMemAddressReserve(size, 0, 0, 0)))

    def free(self, address: int, size: int) -> None:
        self._ask(self._driver.cuMemAddressFree(address, size))

    def map(self, address: int, size: int, handle: Any) -> None:
        self._ask(self._driver.cuMemMap(address, size, 0, handle, 0))

    def access(self, address: int, size: int) -> None:
        self._ask(self._driver.cuMemSetAccess(address, size, [self._allowed], 1))

    def unmap(self, address: int, size: int) -> None:
        self._ask(self._driver.cuMemUnmap(address, size))

    def tensor(self, address: int, size: int) -> torch.Tensor:
        with contextlib.suppress(AttributeError, TypeError, RuntimeError):
            storage = torch._C._construct_storage_from_data_pointer(address, self._device, size)
            return torch._C._construct_CUDA_Tensor_From_Storage_And_Metadata(
                {"size": (size,), "stride": (1,), "dtype": torch.uint8, "device": self._device, "storage_offset": 0,
                 "nbytes": size, "data_ptr": address}, storage)
        return torch.as_tensor(_Interface(address, size), device=self._device)

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """What a call gave beside its code; `RuntimeError` if the code is not success."""
        code, *found = answer
        if int(code) != 0:
            raise RuntimeError(f"the driver answers {code!s}")
        return found[0] if found else None


class _Interface:
    """The published way to make a tensor over device memory of somebody else's."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None}

