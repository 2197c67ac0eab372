"""E5: would remapping do for weights that are too big to gather? What the driver's calls take, and whom they stop.

A *slot* is a range of addresses that never moves; LOAD maps other memory into it. Memory that anything may still use is
never unmapped: every unmapping here waits for the device first.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from cwd.bench.gpu.alongside import Alongside
from cwd.bench.gpu.rig import Vmm
from cwd.bench.gpu.timing import Deadline, spread_us, wait
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.gpu import Gpu, Graph, torch

ROUNDS = 60
_KERNELS = 10


class Loop(Alongside):
    """A graph on memory of its own, replayed without a pause; and how long each took, ns."""

    urgent = True

    def __init__(self, gpu: Gpu, graph: Graph) -> None:
        super().__init__(gpu)
        self._graph = graph
        self.device_ns: list[int] = []
        self.host_ns: list[int] = []

    def _work(self) -> None:
        begin, end = self._gpu.event(), self._gpu.event()
        while not self._stop.is_set():
            asked = time.perf_counter_ns()
            begin.record()
            self._graph.replay()
            end.record()
            wait(end)
            self.host_ns.append(time.perf_counter_ns() - asked)
            self.device_ns.append(int(begin.elapsed_time(end) * 1e6))


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """Times of the calls, idle and beside a looping graph; aliases; a graph that outlives what it was captured on."""
    rig, sizes = bench.rig, bench.rig.sizes
    gpu = rig.make_gpu()
    with gpu.thread(urgent=True):
        vmm = rig.vmm()
        out["granularity"] = vmm.granularity
        size = -(-sizes.page_bytes // vmm.granularity) * vmm.granularity
        calls: dict[str, list[int]] = defaultdict(list)
        handles = [_timed(calls, "create", lambda: vmm.create(size)) for _ in range(sizes.vmm_pages)]
        count = sizes.slot_pages
        slot = vmm.reserve(size * count)
        try:
            out["alias"] = _alias(vmm, handles[0], size)
            out["idle"] = _calls(vmm, slot, handles, size, count, until.share(0.2), calls)
            out["beside"] = _beside(gpu, sizes.loop_bytes, until.share(0.5), lambda share: _calls(
                vmm, slot, handles, size, count, share, defaultdict(list)))
            out["remap"] = _remap(gpu, vmm, slot, handles, size, count)
        finally:
            with contextlib.suppress(RuntimeError, OSError):  # after an error it may still be mapped
                vmm.free(slot, size * count)
            for handle in handles:
                vmm.release(handle)
    shift_us = out["beside"]["loop"]["max_us"] - out["beside"]["loop_alone"]["max_us"]
    out["loop_max_shift_us"] = shift_us
    out["load_us"] = max(out[when]["whole LOAD"]["p50_us"] for when in ("idle", "beside"))


def _timed(calls: dict[str, list[int]], name: str, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter_ns()
    found = call()
    calls[name].append(time.perf_counter_ns() - begin)
    return found


def _calls(vmm: Vmm, slot: int, handles: list[Any], size: int, count: int, until: Deadline,
           calls: dict[str, list[int]]) -> dict[str, Any]:
    """Map and unmap a slot again and again: by call, and what a LOAD takes with one permission for all its pages."""
    for turn in range(ROUNDS):
        if until.over and turn >= 3:
            break
        chosen = [handles[(turn + k) % len(handles)] for k in range(count)]
        for k, handle in enumerate(chosen):
            _timed(calls, "map", lambda k=k, handle=handle: vmm.map(slot + k * size, size, handle))
        for k in range(count):
            _timed(calls, "access to one", lambda k=k: vmm.access(slot + k * size, size))
        for k in range(count):
            _timed(calls, "unmap", lambda k=k: vmm.unmap(slot + k * size, size))

        def load(chosen: list[Any] = chosen) -> None:
            for k, handle in enumerate(chosen):
                vmm.map(slot + k * size, size, handle)
            _timed(calls, "access to all", lambda: vmm.access(slot, size * count))

        _timed(calls, "whole LOAD", load)
        for k in range(count):
            vmm.unmap(slot + k * size, size)
    return {name: spread_us(taken) for name, taken in calls.items()}


def _beside(gpu: Gpu, loop_bytes: int, until: Deadline, calls: Callable[[Deadline], dict[str, Any]]) -> dict[str, Any]:
    """The calls while a graph loops on other memory, and the loop without them and with them."""
    other = gpu.memory(loop_bytes).view(torch.float32)
    other.fill_(1.5)

    def body() -> None:
        for _ in range(_KERNELS):
            other.mul_(0.999)

    body()
    graph = gpu.capture(body)
    with Loop(gpu, graph) as alone:
        time.sleep(until.left_s * 0.3)
    with Loop(gpu, graph) as loop:
        time.sleep(min(0.1, until.left_s * 0.1))
        found = calls(until)
    return {**found, "loop_alone": spread_us(alone.device_ns), "loop": spread_us(loop.device_ns),
            "loop_alone_host": spread_us(alone.host_ns), "loop_host": spread_us(loop.host_ns)}


def _alias(vmm: Vmm, handle: Any, size: int) -> bool:
    """Whether memory can be at two addresses at once, and is the same at both."""
    one, two = vmm.reserve(size), vmm.reserve(size)
    try:
        for address in (one, two):
            vmm.map(address, size, handle)
            vmm.access(address, size)
        vmm.tensor(one, size).fill_(77)
        same = bool((vmm.tensor(two, size) == 77).all().item())
        for address in (one, two):
            vmm.unmap(address, size)
    finally:
        with contextlib.suppress(RuntimeError, OSError):
            vmm.free(one, size)
            vmm.free(two, size)
    return same


def _remap(gpu: Gpu, vmm: Vmm, slot: int, handles: list[Any], size: int, count: int) -> dict[str, Any]:
    """Capture on a slot, map other memory there, replay: does the graph read what is there now?"""
    def put(chosen: list[Any]) -> None:
        for k, handle in enumerate(chosen):
            vmm.map(slot + k * size, size, handle)
        vmm.access(slot, size * count)

    def take() -> None:
        _settle(gpu)
        for k in range(count):
            vmm.unmap(slot + k * size, size)

    first, second = handles[:count], handles[count:2 * count]
    put(first)
    base = vmm.tensor(slot, size * count).view(torch.int32)
    base.fill_(5)
    out = gpu.memory(size * count).view(torch.int32)
    torch.add(base, 1, out=out)
    graph = gpu.capture(lambda: torch.add(base, 1, out=out))
    graph.replay()
    found = {"captured": bool((out == 6).all().item())}
    for name, chosen, value in (("other pages", second, 40), ("in another order", second[::-1], 90)):
        take()
        put(chosen)
        base.fill_(value)
        graph.replay()
        found[name] = bool((out == value + 1).all().item())
    take()
    put(first)
    graph.replay()
    found["back again"] = bool((out == 6).all().item())
    take()
    return found


def _settle(gpu: Gpu) -> None:
    """Everything that was asked for is done."""
    event = gpu.event()
    event.record()
    wait(event)
