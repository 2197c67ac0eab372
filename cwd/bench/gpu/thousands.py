"""E7: thousands of instances behind one GPU whose memory holds few: right outputs, times as predicted, no allocation."""

from __future__ import annotations

from typing import Any

import numpy as np

from cwd.bench.gpu.facts import available_bytes
from cwd.bench.gpu.models import Eager, difference
from cwd.bench.gpu.models_names import RESNET
from cwd.bench.gpu.service import Driven, Service, arena_bytes
from cwd.bench.gpu.timing import Deadline, rate_gbps, spread_us
from cwd.bench.gpu.workbench import Workbench
from cwd.wire.messages import Type

#: of the same weights and the same inputs; instances differ by hundreds of times that
TOLERANCE = 1e-4
#: a prediction is the median of so many before
HISTORY = 10
_BATCHES = [1] * 10 + [2] * 4 + [4] * 3 + [8] * 2 + [16]
_SERVE_S = 60.0
_AFTER_S = 14.0
#: of the host's memory that is there, at most so much for images
_HOST_PART = 0.6
#: of the device's, for the pool
_DEVICE_PART = 0.8


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """Serve at random, then compare a sample of the outputs with eager."""
    sizes, instances = bench.rig.sizes, bench.instances(RESNET)
    images = max(4, min(sizes.images, int(available_bytes() * _HOST_PART) // instances.nbytes))
    room = int(bench.rig.free_bytes() * _DEVICE_PART) // (instances.pages(sizes.page_bytes) * sizes.page_bytes)
    pool_instances = max(2, min(sizes.pool_instances, room))
    out.update(registered=sizes.instances, pool_instances=pool_instances, images=images,
               note=f"instances share {images} images: instance k has image k modulo {images}")
    gpu = bench.rig.make_gpu(host_bytes=arena_bytes(instances, images))
    service = Service(bench, gpu, instances, images=images, registered=sizes.instances,
                      pool_instances=pool_instances)
    out["setup_s"] = until.seconds - until.left_s
    seconds = min(_SERVE_S, max(until.left_s - (_AFTER_S if not bench.rig.dry else 2.0), 0.5))
    before = gpu.allocations()
    driven = service.drive([{"kind": "random", "keep": max(1, int(seconds * 300) // sizes.samples),
                             "more": {"seconds": seconds, "seed": 1, "batches": _BATCHES, "new": 0.3}}])
    out["allocations"], out["seconds"] = gpu.allocations() - before, seconds
    _rates(driven.rows, instances.nbytes, seconds, out)
    _predictions(driven.rows, out)
    if driven.fault:
        raise RuntimeError(driven.fault)
    with gpu.thread(urgent=True):
        _outputs(bench, service, driven, Eager(bench.repository, instances, gpu), until, out)


def _rates(rows: np.ndarray, image_bytes: int, seconds: float, out: dict[str, Any]) -> None:
    execs, loads = rows[rows["kind"] == int(Type.EXEC)], rows[rows["kind"] == int(Type.LOAD)]
    out["execs"], out["loads"], out["requests"] = len(execs), len(loads), int(execs["batch"].sum())
    out["unloads"] = int((rows["kind"] == int(Type.UNLOAD)).sum())
    out["instances_used"] = len(np.unique(execs["model"]))
    out["load_gbps"] = rate_gbps(len(loads) * image_bytes, seconds * 1e9)
    out["requests_per_s"] = out["requests"] / seconds
    out["exec_busy"] = float((execs["end_ns"] - execs["begin_ns"]).sum()) / (seconds * 1e9)


def _predictions(rows: np.ndarray, out: dict[str, Any]) -> None:
    """How far executions and LOADs were from the median of the last ten of the same shape."""
    errors: dict[str, list[int]] = {"INFER": [], "INFER device": [], "LOAD": [], "LOAD device": []}
    by_shape = out["by_shape"] = {}
    for kind, name in ((Type.EXEC, "INFER"), (Type.LOAD, "LOAD")):
        chosen = rows[rows["kind"] == int(kind)]
        for batch in np.unique(chosen["batch"]):
            shape = chosen[chosen["batch"] == batch]
            whole = shape["end_ns"] - shape["begin_ns"]
            errors[name] += prediction_errors(whole)
            errors[f"{name} device"] += prediction_errors(shape["device_ns"])
            by_shape[f"{name} b{batch}" if batch else name] = {
                "whole": spread_us(whole), "device": spread_us(shape["device_ns"]),
                "error": spread_us(prediction_errors(whole))}
    out["prediction_error"] = {name: spread_us(found) for name, found in errors.items()}


def prediction_errors(values: np.ndarray) -> list[int]:
    """|value - median of the `HISTORY` before|, of all that have so many before them."""
    if len(values) <= HISTORY:
        return []
    before = np.lib.stride_tricks.sliding_window_view(values[:-1], HISTORY)
    predicted = np.sort(before, axis=1)[:, (HISTORY - 1) // 2]
    return [int(error) for error in np.abs(values[HISTORY:] - predicted)]


def _outputs(bench: Workbench, service: Service, driven: Driven, eager: Eager, until: Deadline, out: dict[str, Any]) -> None:
    """Compare samples, those of one image behind each other."""
    rows, spec = driven.rows[driven.sampled], service.instances.spec
    row_bytes = spec.output_bytes(spec.size_classes[0])
    found, used = [], -1
    chosen = range(0, len(rows), -(-len(rows) // bench.rig.sizes.samples) or 1)
    for k in sorted(chosen, key=lambda k: int(rows[k]["model"]) % len(service.images)):
        model, batch = int(rows[k]["model"]), int(rows[k]["batch"])
        if model % len(service.images) != used:
            used = model % len(service.images)
            eager.use(service.image_of(model))
        payloads = [service.payloads[number] for number in driven.numbers[k][:batch]]
        found.append(difference(driven.outputs[k][:batch * row_bytes], eager.output(payloads, 0), spec))
        if bench.cut(until):
            break
    out["compared"], out["sampled"] = len(found), len(chosen)
    out["wrong"] = int(sum(one > TOLERANCE for one in found))
    out["difference_max"] = max(found, default=None)
    if found:
        first = eager.output(service.payloads[:1], 0)
        eager.use(service.images[(used + 1) % len(service.images)])
        out["difference_of_another"] = difference(eager.output(service.payloads[:1], 0), first, spec)
