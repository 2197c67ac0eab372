"""E0: what machine this is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from pathlib import Path
from typing import Any

from cwd.bench.gpu.timing import Deadline
from cwd.bench.gpu.workbench import Workbench

_PACKAGES = ("torch", "numpy", "numba", "llvmlite", "transformers", "safetensors", "cuda-bindings", "pyzmq", "msgpack", "click")


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """Facts of the machine, then of the device."""
    out["python"], out["kernel"] = platform.python_version(), platform.release()
    out["packages"] = {name: _version(name) for name in _PACKAGES}
    out["cores"] = len(os.sched_getaffinity(0))
    out["memory_kib"] = _meminfo("MemTotal", "MemAvailable", "Hugepagesize", "AnonHugePages")
    out["memlock"] = list(resource.getrlimit(resource.RLIMIT_MEMLOCK))
    out["transparent_hugepages"] = _line("/sys/kernel/mm/transparent_hugepage/enabled")
    out["processor"] = next((line.partition(":")[2].strip() for line in _text("/proc/cpuinfo").splitlines()
                             if line.startswith("model name")), "")
    out["device"] = bench.rig.facts()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _meminfo(*names: str) -> dict[str, int]:
    found = {}
    for line in _text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in names:
            found[name] = int(rest.split()[0])
    return found


def available_bytes() -> int:
    """Memory of the host that could be had."""
    return _meminfo("MemAvailable").get("MemAvailable", 0) << 10


def huge_bytes() -> int:
    """How much of this process lies in huge pages."""
    for line in _text("/proc/self/smaps_rollup").splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


def resident_bytes() -> int:
    """How much memory of the host this process has."""
    fields = _text("/proc/self/statm").split()
    return int(fields[1]) * resource.getpagesize() if len(fields) > 1 else 0


def _line(path: str) -> str:
    return (_text(path).splitlines() or [""])[0]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
