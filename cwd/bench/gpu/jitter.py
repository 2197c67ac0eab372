"""E6: how punctual executions are behind a real socket, and what a whole one takes beside the bare program.

Times are the worker's own, as its results say them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cwd.bench.gpu.models import Eager
from cwd.bench.gpu.models_names import RESNET
from cwd.bench.gpu.service import Service, arena_bytes
from cwd.bench.gpu.timing import Deadline, device_ns, median, spread_us
from cwd.bench.gpu.workbench import Workbench
from cwd.wire.messages import Type

#: (batch, LOADs beside, share of the time)
_PHASES = ((1, False, 0.32), (1, True, 0.32), (16, False, 0.18), (16, True, 0.18))
_IMAGES = 8
#: what starting and ending take, and the scripted controller's own start
_AROUND_S = 5.0


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """For each batch, alone and with LOADs: lateness, host and device time; and over the bare graph."""
    instances = bench.instances(RESNET)
    gpu = bench.rig.make_gpu(host_bytes=arena_bytes(instances, _IMAGES))
    service = Service(bench, gpu, instances, images=_IMAGES, registered=_IMAGES, pool_instances=_IMAGES)
    out["exec_pinned_to"] = service.pinned
    with gpu.thread(urgent=True):
        eager = Eager(bench.repository, instances, gpu)
        eager.use(service.images[0])
        bare = {batch: _bare_us(bench, eager, service, batch, until.share(0.08)) for batch in (1, 16)}
    out["bare_us"] = {f"b{batch}": value for batch, value in bare.items()}
    seconds = max(until.left_s - (_AROUND_S if not bench.rig.dry else 1.5), 0.5)
    driven = service.drive([_phase(batch, loads, share * seconds, bare[batch]) for batch, loads, share in _PHASES])
    for number, (batch, loads, share) in enumerate(_PHASES):
        found = _of_phase(driven.rows[driven.rows["phase"] == number])
        found["seconds"] = share * seconds
        if "whole" in found:
            found["whole_over_bare"] = found["whole"]["p50_us"] / max(bare[batch], 1e-3)
        out[f"b{batch} {'with LOADs' if loads else 'alone'}"] = found
    if driven.fault:
        raise RuntimeError(driven.fault)


def _bare_us(bench: Workbench, eager: Eager, service: Service, batch: int, until: Deadline) -> float:
    """The median of the program alone as a graph, with the inputs that will come."""
    eager.fill(service.payloads[:batch], 0)
    graph = eager.captured(batch, 0)
    return median(device_ns(eager.gpu, graph.replay, bench.rig.sizes.shots, until)) / 1e3


def _phase(batch: int, loads: bool, seconds: float, bare_us: float) -> dict[str, Any]:
    """Executions with some idle time between; sent so much before that their inputs are staged when they start."""
    payload_ms = 1 + batch
    period_us = max(1.6 * bare_us + 700, 1000 * payload_ms)
    return {"kind": "paced", "more": {"batch": batch, "period_ns": int(period_us * 1e3), "seconds": seconds, "loads": loads,
                                      "lead_ns": int((2 + 1.5 * batch) * 1e6)}}


def _of_phase(rows: np.ndarray) -> dict[str, Any]:
    """Lateness counts from when an action may start: its time, when it came, or when the one before it ended."""
    execs, loads = rows[rows["kind"] == int(Type.EXEC)], rows[rows["kind"] == int(Type.LOAD)]
    if not len(execs):
        return {"n": 0}
    before = np.concatenate([[0], execs["end_ns"][:-1]])
    wanted = np.maximum(execs["earliest_ns"], execs["received_ns"])
    free = before < wanted
    whole = execs["end_ns"] - execs["begin_ns"]
    found = {
        "n": len(execs), "behind_another": int((~free).sum()),
        "late": spread_us((execs["begin_ns"] - wanted)[free]),
        "came_early": spread_us((execs["earliest_ns"] - execs["received_ns"])[free]),
        "whole": spread_us(whole), "device": spread_us(execs["device_ns"]),
        "whole_less_device": spread_us(whole - execs["device_ns"]),
    }
    if len(loads):
        found["load"] = spread_us(loads["end_ns"] - loads["begin_ns"])
        found["load_device"] = spread_us(loads["device_ns"])
    return found
