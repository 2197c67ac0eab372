"""E1: how fast page images get to the device, by kind of host memory, page size and copies under way.

LOADs are the worker's own (`GpuPool.fill`), so the rate contains what its Python costs.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from cwd.bench.gpu.facts import huge_bytes
from cwd.bench.gpu.rig import HostMemory, Rig, synthetic
from cwd.bench.gpu.timing import Deadline, median, rate_gbps, wait
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.gpu import Gpu, tensor_at
from cwd.worker.backends.gpu_pool import GpuPool

DEPTHS = (1, 2, 4)
#: what the worker does unless told otherwise; another kind of memory has to be faster by more than is the same
DEPTH, OURS, SAME = 2, "mmap huge", 0.05


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """For each kind of memory: seconds per GiB to have it, GB/s by page size and depth, two streams; and the best."""
    rig = bench.rig
    sizes, gpu = rig.sizes, rig.make_gpu()
    kinds = out["kinds"] = {}
    with gpu.thread(urgent=False):
        for index, (kind, have) in enumerate(rig.host_kinds().items()):
            found = kinds[kind] = {}
            huge_before = huge_bytes()
            try:
                memory = have(sizes.copy_bytes)
            except (RuntimeError, MemoryError, OSError) as error:
                found["refused"] = f"{type(error).__name__}: {error}"[:300]
                continue
            try:
                gib = sizes.copy_bytes / 2**30
                found["touch_s_per_gib"], found["register_s_per_gib"] = memory.touch_s / gib, memory.register_s / gib
                found["huge_bytes"] = huge_bytes() - huge_before
                memory.array[:] = synthetic(sizes.copy_bytes, index)
                found["gbps"] = _by_page(gpu, rig, memory, until.share(1 / (len(rig.host_kinds()) - index)))
                found["two_streams_gbps"] = _two_streams(gpu, rig, memory)
                found["to_host_gbps"] = _to_host(gpu, rig, memory)
            finally:
                memory.free()
    out["link"] = rig.link()
    rates = [rate for found in kinds.values() for rate in found.get("gbps", {}).values()]
    out["best_gbps"] = max(rates)
    _conclude(rig, out)


def key(page_bytes: int, depth: int) -> str:
    """How a rate is found in "gbps"."""
    return f"{page_bytes >> 10} KiB x {depth}"


def _by_page(gpu: Gpu, rig: Rig, memory: HostMemory, until: Deadline) -> dict[str, float]:
    """GB/s by page size and depth."""
    sizes, random = rig.sizes, np.random.default_rng(1)
    found: dict[str, float] = {}
    # the worker's page first: it is what decides
    for page_bytes in sorted(sizes.copy_page_bytes, key=lambda size: size != sizes.page_bytes):
        pages = sizes.copy_bytes // page_bytes
        for depth in DEPTHS:
            if until.over and page_bytes != sizes.page_bytes:
                return found
            pool = GpuPool(gpu, pages, page_bytes, row_pages=pages, depth=depth)
            seat, taken = pool.reserve(pages), []
            for _ in range(sizes.copy_repeats):
                numbers = random.permutation(pages).astype(np.int32)
                taken.append(pool.fill(seat, numbers, memory.array))
            if min(taken) < 0:
                raise RuntimeError("a copy failed")
            _check(gpu, pool, numbers, memory.array)
            found[key(page_bytes, depth)] = rate_gbps(sizes.copy_bytes, median(taken))
    return found


def _check(gpu: Gpu, pool: GpuPool, numbers: np.ndarray, array: np.ndarray) -> None:
    """The last page is where it should be."""
    last = pool.words[int(numbers[-1])].cpu().numpy().view(np.uint8)
    if not np.array_equal(last, array[-pool.page_bytes:]):
        raise RuntimeError("a page does not hold what was copied there")


def _two_streams(gpu: Gpu, rig: Rig, memory: HostMemory) -> float:
    """GB/s where pages go by two streams in turns, `DEPTH` under way in each."""
    size = rig.sizes.page_bytes
    pages, image = rig.sizes.copy_bytes // size, tensor_at(memory.array.ctypes.data, memory.array.size)
    target = gpu.memory(rig.sizes.copy_bytes)
    begin, end, taken = gpu.event(), gpu.event(), []
    rings = [[gpu.event() for _ in range(DEPTH)] for _ in range(2)]
    for _ in range(rig.sizes.copy_repeats):
        begin.record()
        for page in range(pages):
            turn, event = page // 2, rings[page % 2][page // 2 % DEPTH]
            if turn >= DEPTH:
                event.synchronize()
            with gpu.side() if page % 2 else contextlib.nullcontext():
                gpu.copy(target[page * size:(page + 1) * size], image[page * size:(page + 1) * size])
                event.record()
        for event in rings[1]:
            gpu.follow(event)
        end.record()
        wait(end)
        taken.append(int(begin.elapsed_time(end) * 1e6))
    return rate_gbps(pages * size, median(taken))


def _to_host(gpu: Gpu, rig: Rig, memory: HostMemory) -> float:
    """GB/s from the device, all at once."""
    image, source = tensor_at(memory.array.ctypes.data, memory.array.size), gpu.memory(rig.sizes.copy_bytes)
    begin, end, taken = gpu.event(), gpu.event(), []
    for _ in range(rig.sizes.copy_repeats):
        begin.record()
        gpu.copy(image, source)
        end.record()
        wait(end)
        taken.append(int(begin.elapsed_time(end) * 1e6))
    return rate_gbps(rig.sizes.copy_bytes, median(taken))


def _conclude(rig: Rig, out: dict[str, Any]) -> None:
    """The kind to use, the depth to use, and how near a worker's LOADs come to the largest pages' rate."""
    sizes = rig.sizes
    usual = key(sizes.page_bytes, DEPTH)
    measured = {kind: found["gbps"] for kind, found in out["kinds"].items() if usual in found.get("gbps", {})}
    kind = max(measured, key=lambda name: measured[name][usual])
    if OURS in measured and measured[OURS][usual] >= (1 - SAME) * measured[kind][usual]:
        kind = OURS
    out["kind"] = kind
    rates = measured[kind]
    at_depth = {depth: rates[key(sizes.page_bytes, depth)] for depth in DEPTHS if key(sizes.page_bytes, depth) in rates}
    out["depth"] = min(depth for depth, rate in at_depth.items() if rate >= 0.98 * max(at_depth.values()))
    largest = [rates[key(max(sizes.copy_page_bytes), depth)] for depth in DEPTHS
               if key(max(sizes.copy_page_bytes), depth) in rates]
    if largest:
        out["page_over_largest"] = at_depth[DEPTH] / max(largest)
