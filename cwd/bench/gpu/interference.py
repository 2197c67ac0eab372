"""E4: what LOADs do to executions, to a request's upload and to outputs, and executions to LOADs.

A second thread copies page images without a pause, by the worker's own pool, with some number of copies under way; the
first executes by the worker's own backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cwd.bench.gpu.alongside import Alongside
from cwd.bench.gpu.graphs import Placer, make_backend
from cwd.bench.gpu.models import Runner
from cwd.bench.gpu.models_names import RESNET
from cwd.bench.gpu.rig import synthetic
from cwd.bench.gpu.timing import Deadline, rate_gbps, sampled, spread_us, wait
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.gpu import Gpu, torch
from cwd.worker.backends.gpu_pool import GpuPool

DEPTHS = (2, 1, 4, 8)
#: an exec lane that asks for the end without a pause keeps the GIL from the load lane: does it help to ask less often?
PAUSE_NS = 10_000
_BATCHES = (1, 16)


class Saturation(Alongside):
    """LOADs one behind the other."""

    urgent = False

    def __init__(self, gpu: Gpu, pool: GpuPool, image: np.ndarray) -> None:
        super().__init__(gpu)
        self._pool, self._image = pool, image
        self.copied_bytes, self.taken_s = 0, 0.0
        self.loads_ns: list[int] = []

    def _work(self) -> None:
        pages = np.arange(self._pool.pages, dtype=np.int32)
        seat, begin = self._pool.reserve(len(pages)), time.monotonic()
        while not self._stop.is_set():
            taken_ns = self._pool.fill(seat, pages, self._image)
            if taken_ns < 0:
                raise RuntimeError("a copy failed")
            self.loads_ns.append(taken_ns)
            self.copied_bytes += self._image.size
        self.taken_s = time.monotonic() - begin


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """Alone, with LOADs of each depth, and alone again."""
    rig, sizes = bench.rig, bench.rig.sizes
    image_bytes = sizes.load_pages * sizes.page_bytes
    gpu = rig.make_gpu(host_bytes=image_bytes)
    instances = bench.instances(RESNET)
    with gpu.thread(urgent=True):
        backend = make_backend(bench, gpu, instances.pages(sizes.page_bytes))
        backend.prepare(instances.program)
        seat = Placer(backend).place(instances, instances.image(0))
        runners = {batch: Runner(backend, instances, batch, 0) for batch in _BATCHES}
        image = gpu.host_memory(image_bytes)
        image[:] = synthetic(image_bytes, 2)
        host, device = gpu.pinned(sizes.upload_bytes), gpu.memory(sizes.upload_bytes)
        rounds = [(f"depth {depth}", depth, 0) for depth in DEPTHS]
        rounds.insert(1, ("depth 2, pauses", 2, PAUSE_NS))
        parts = len(rounds) + 2

        def measured(k: int) -> dict[str, Any]:
            return _measured(gpu, runners, seat, host, device, sizes.shots, until.share(1 / (parts - k)))

        out["alone"] = measured(0)
        for k, (name, depth, pause_ns) in enumerate(rounds):
            if bench.cut(until):
                out["cut"] = "no time for every depth"
                break
            for runner in runners.values():
                runner.pause_ns = pause_ns
            pool = GpuPool(gpu, sizes.load_pages, sizes.page_bytes, row_pages=sizes.load_pages, depth=depth)
            with Saturation(gpu, pool, image) as loads:
                found = measured(1 + k)
            found["load_gbps"] = rate_gbps(loads.copied_bytes, loads.taken_s * 1e9)
            found["load"] = spread_us(loads.loads_ns)
            out[name] = found
        for runner in runners.values():
            runner.pause_ns = 0
        out["alone again"] = measured(parts - 1)
    _conclude(bench, out)


def _measured(gpu: Gpu, runners: dict[int, Runner], seat: int, host: torch.Tensor, device: torch.Tensor, shots: int,
              until: Deadline) -> dict[str, Any]:
    """Executions of each batch, then uploads beside them and downloads behind them."""
    found: dict[str, Any] = {}
    for batch, runner in runners.items():
        runner.stage()
        found[f"exec b{batch}"] = spread_us(sampled(lambda runner=runner: runner.once(seat), shots, until.share(0.4)))
    event = gpu.event()

    def upload() -> None:
        with gpu.side():
            gpu.copy(device, host)
            event.record()

    def download() -> None:
        gpu.copy(host, device)
        event.record()

    found["upload"] = spread_us(_host_ns(upload, event, shots // 2, until.share(0.5)))
    found["download"] = spread_us(_host_ns(download, event, shots // 2, until.share(0.9)))
    return found


def _host_ns(ask: Callable[[], None], event: Any, repeats: int, until: Deadline) -> list[int]:
    """From asking until it is seen to be done, by the host's clock, with pauses between."""
    def one() -> int:
        time.sleep(0.0003)
        begin = time.perf_counter_ns()
        ask()
        wait(event)
        return time.perf_counter_ns() - begin

    return sampled(one, repeats, until)


def _conclude(bench: Workbench, out: dict[str, Any]) -> None:
    """Shifts against the quieter of the two runs alone, by depth and batch."""
    best = bench.figure("E1", "best_gbps")
    shifts = out["shifts"] = {}
    for name, loaded in [(name, found) for name, found in out.items() if name.startswith("depth")]:
        row = shifts[name] = {}
        for batch in _BATCHES:
            for point in ("p50_us", "p99_us"):
                alone = min(out[quiet][f"exec b{batch}"][point] for quiet in ("alone", "alone again"))
                row[f"{point[:-3]} b{batch}"] = loaded[f"exec b{batch}"][point] / max(alone, 1e-3) - 1
        if best:
            row["load_over_best"] = loaded["load_gbps"] / best
