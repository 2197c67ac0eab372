"""The second tier as the worker has it: a program larger than the window, whose instances run where they are mapped."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cwd.bench.gpu.graphs import SWAPPED, Placer, shape_key, swaps
from cwd.bench.gpu.models import Eager, Runner
from cwd.bench.gpu.models_names import RESNET
from cwd.bench.gpu.timing import Deadline, sampled, spread_us
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.paged import PagedBackend


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """A ResNet-50 behind a window of one page: three instances swapped, what executions and LOADs take."""
    rig, sizes = bench.rig, bench.rig.sizes
    rig.vmm()  # says what is missing
    instances, gpu = bench.instances(RESNET), rig.make_gpu()
    count = instances.pages(sizes.page_bytes)
    with gpu.thread(urgent=True):
        backend = PagedBackend(bench.repository, gpu, window_bytes=sizes.page_bytes, slot_bytes=sizes.slot_bytes,
                               mapped=True)
        begin = time.monotonic()
        backend.make_pool((SWAPPED + 1) * count, sizes.page_bytes)
        out["make_pool_s"], out["pages"] = time.monotonic() - begin, (SWAPPED + 1) * count
        backend.prepare(instances.program)
        out["tier"] = backend.tier(instances.program, 1, 0)
        images = [instances.image(number) for number in range(SWAPPED)]
        placer = Placer(backend)
        seats = [placer.place(instances, image) for image in images]
        eager = Eager(bench.repository, instances, gpu)
        runners = {(batch, 0): Runner(backend, instances, batch, 0) for batch in (1, 16)}
        found = dict(swaps(runners, seats, eager, images, instances.spec))
        out["differences"] = {shape_key(instances, *pair): value for pair, value in found.items()}
        out["difference_max"] = max(found.values())
        for pair, runner in runners.items():
            runner.stage()
            bound = backend.bind(instances.program, seats[0])
            out[shape_key(instances, *pair)] = spread_us(sampled(
                lambda runner=runner, bound=bound: runner.once_bound(bound), sizes.shots, until.share(0.4)))
        out["load"] = spread_us(sampled(lambda: _load(placer, backend, seats[0], images[0], count), 50, until.share(0.8)))


def _load(placer: Placer, backend: PagedBackend, seat: int, image: np.ndarray, count: int) -> int:
    """An instance leaves its seat, and comes back in other pages; ns of the host."""
    begin = time.perf_counter_ns()
    backend.pool.clear(seat, count)
    if backend.pool.fill(seat, np.array(placer.free[:count], np.int32), image) < 0:
        raise RuntimeError("an instance could not be loaded")
    return time.perf_counter_ns() - begin
