"""E3: captured executions: their times beside torch's own, what a capture costs, and whether instances swap rightly.

Everything runs through the paged backend as a worker's exec lane runs it: staged once, then started and finished again
and again. Three instances of each model lie in scattered pages at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cwd.bench.gpu.facts import resident_bytes
from cwd.bench.gpu.models import Eager, Instances, Runner, difference
from cwd.bench.gpu.models_names import BERT, RESNET, RESNET_HALF
from cwd.bench.gpu.rig import Rig
from cwd.bench.gpu.timing import Deadline, device_ns, sampled, spread_us
from cwd.bench.gpu.workbench import Workbench
from cwd.models import fit
from cwd.models.program import Program
from cwd.worker.backends.gpu import Gpu, Graph, torch
from cwd.worker.backends.paged import EAGER, PagedBackend

SWAPPED = 3
#: how much of the step's time is for each model
_SHARES = ((RESNET, 0.4), (RESNET_HALF, 0.45), (BERT, 0.9))


class Watched:
    """A `Gpu` that notes what each capture costs; all else is the other's."""

    def __init__(self, rig: Rig, gpu: Gpu) -> None:
        self._rig, self._gpu = rig, gpu
        #: {ms, device_bytes, host_bytes} of each capture, in order
        self.captures: list[dict[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def capture(self, body: Callable[[], None]) -> Graph:
        free, resident, begin = self._rig.free_bytes(), resident_bytes(), time.monotonic()
        try:
            return self._gpu.capture(body)
        finally:
            self.captures.append({"ms": (time.monotonic() - begin) * 1e3, "device_bytes": free - self._rig.free_bytes(),
                                  "host_bytes": resident_bytes() - resident})


class Placer:
    """Puts instances into pages of a backend's pool that lie anywhere; `free` are those that nobody has."""

    def __init__(self, backend: PagedBackend) -> None:
        self._pool = backend.pool
        self.free = list(np.random.default_rng(5).permutation(backend.pool.pages))

    def place(self, instances: Instances, image: np.ndarray) -> int:
        """The seat of an instance with that image."""
        count = instances.pages(self._pool.page_bytes)
        pages, self.free = self.free[:count], self.free[count:]
        seat = self._pool.reserve(count)
        if len(pages) < count or self._pool.fill(seat, np.array(pages, np.int32), image) < 0:
            raise RuntimeError("an instance could not be loaded")
        return seat


def make_backend(bench: Workbench, gpu: Gpu, pages: int) -> PagedBackend:
    """A backend with a pool."""
    sizes = bench.rig.sizes
    backend = PagedBackend(bench.repository, gpu, window_bytes=sizes.window_bytes, slot_bytes=sizes.slot_bytes)
    backend.make_pool(pages, sizes.page_bytes)
    return backend


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """For each model: captures, differences to eager of swapped instances, times of graph, bare graph and eager."""
    fit.warm()
    gpu = Watched(bench.rig, bench.rig.make_gpu())
    with gpu.thread(urgent=True):
        backend = make_backend(bench, gpu, bench.rig.sizes.graph_pool)
        placer, found = Placer(backend), out.setdefault("models", {})
        for name, share in _SHARES:
            if bench.cut(until):
                out["cut"] = "no time for every model"
                break
            bench.say(f"E3: {name}")
            found[name] = {}
            _model(bench, gpu, backend, placer, bench.instances(name), until.share(share), found[name])
    out["made_s"] = bench.made_s
    out["not_captured"] = sum(model.get("not_captured", 0) for model in found.values())


def _model(bench: Workbench, gpu: Watched, backend: PagedBackend, placer: Placer, instances: Instances, until: Deadline,
           out: dict[str, Any]) -> None:
    spec, seen = instances.spec, len(gpu.captures)
    free, begin = bench.rig.free_bytes(), time.monotonic()
    backend.prepare(instances.program)
    out["prepare_s"], out["prepare_device_bytes"] = time.monotonic() - begin, free - bench.rig.free_bytes()
    out["captures"] = gpu.captures[seen:]
    out["image_bytes"], out["pages"] = instances.nbytes, instances.pages(backend.pool.page_bytes)
    pairs = [(batch, index) for index in range(len(spec.size_classes)) for batch in spec.batch_sizes]
    out["tiers"] = tiers = {shape_key(instances, *pair): backend.tier(instances.program, *pair) for pair in pairs}
    out["not_captured"] = sum(tier == EAGER for tier in tiers.values())
    images = [instances.image(number) for number in range(SWAPPED)]
    seats = [placer.place(instances, image) for image in images]
    eager = Eager(bench.repository, instances, gpu)
    runners = {pair: Runner(backend, instances, *pair, seed=10) for pair in pairs}
    out["differences"] = {shape_key(instances, *pair): found for pair, found in swaps(
        runners, seats, eager, images, spec)}
    out["difference_max"] = max(out["differences"].values())
    out["difference_of_another"] = _apart(next(iter(runners.values())), seats, spec)
    if instances.entry.manifest.name == RESNET:
        out["difference_of_cpu"] = _against_cpu(bench, instances, eager, images[0])
    times = out["times"] = {}
    for k, (pair, runner) in enumerate(runners.items()):
        times[shape_key(instances, *pair)] = _times(
            bench, runner, seats[0], eager, until.share(1 / (len(runners) - k)))


def shape_key(instances: Instances, batch: int, size_class: int) -> str:
    """How a shape is found in the figures."""
    sizes = instances.spec.size_classes[size_class]
    return f"b{batch}" + "".join(f" s{size}" for size in sizes)


def swaps(runners: dict[tuple[int, int], Runner], seats: list[int], eager: Eager, images: list[np.ndarray],
           spec: Any) -> Iterator[tuple[tuple[int, int], float]]:
    """The largest difference to eager of each shape, the instances taking turns twice."""
    for pair, runner in runners.items():
        runner.stage()
        outputs = []
        for seat in seats * 2:
            runner.once(seat)
            outputs.append(runner.output())
        worst = 0.0
        for number, image in enumerate(images):
            eager.use(image)
            wanted = eager.output(runner.payloads, pair[1])
            for found in outputs[number::len(images)]:
                worst = max(worst, difference(found, wanted, spec))
        yield pair, worst


def _apart(runner: Runner, seats: list[int], spec: Any) -> float:
    """How far the instances' outputs are from each other at least: far more than what passes for equal."""
    outputs = []
    for seat in seats:
        runner.once(seat)
        outputs.append(runner.output())
    return min(difference(one, other, spec) for k, one in enumerate(outputs) for other in outputs[:k])


def _against_cpu(bench: Workbench, instances: Instances, eager: Eager, image: np.ndarray) -> float:
    """How far torch on the device is from torch on the processor, whose float32 is float32."""
    payload = [instances.payload(0, 3)]
    program = Program.load(bench.repository, instances.program)
    room = np.zeros(instances.nbytes + 256, np.uint8)
    room = room[-room.ctypes.data % 256:][:instances.nbytes]
    room[:] = image
    (wanted,) = program.infer(program.bind(torch.from_numpy(room)), payload, [()])
    eager.use(image)
    return difference(eager.output(payload, 0), wanted, instances.spec)


def _times(bench: Workbench, runner: Runner, seat: int, eager: Eager, until: Deadline) -> dict[str, Any]:
    """Device times: "served" is a whole execution with its output fetched; "bare" a graph of the program alone."""
    shots, gpu = bench.rig.sizes.shots, eager.gpu
    found: dict[str, Any] = {}
    runner.stage()
    found["served"] = spread_us(sampled(lambda: runner.once(seat), shots, until.share(0.5)))
    buffers = eager.fill(runner.payloads, runner.size_class)
    found["eager"] = spread_us(device_ns(gpu, lambda: eager.run(buffers), shots, until.share(0.4)))
    try:
        graph = eager.captured(runner.batch, runner.size_class)
        found["bare"] = spread_us(device_ns(gpu, graph.replay, shots, until.share(0.6)))
        found["served_over_bare"] = found["served"]["p50_us"] / max(found["bare"]["p50_us"], 1e-3)
    except RuntimeError as error:
        found["bare_refused"] = str(error)[:300]
    return found
