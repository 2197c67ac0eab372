"""How steady executions are when nothing else happens: the longest run of the whole check."""

from __future__ import annotations

from typing import Any

from cwd.bench.gpu.graphs import Placer, make_backend
from cwd.bench.gpu.models import Runner
from cwd.bench.gpu.models_names import RESNET
from cwd.bench.gpu.timing import Deadline, sampled, spread_us
from cwd.bench.gpu.workbench import Workbench

_RUN_S = 60.0


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """A ResNet-50 in every batch size for its share of a minute, or of what time there is."""
    gpu, instances = bench.rig.make_gpu(), bench.instances(RESNET)
    with gpu.thread(urgent=True):
        backend = make_backend(bench, gpu, instances.pages(bench.rig.sizes.page_bytes))
        backend.prepare(instances.program)
        seat = Placer(backend).place(instances, instances.image(0))
        batches = instances.spec.batch_sizes
        out["seconds"] = whole_s = min(_RUN_S, until.left_s * 0.95)
        for batch in batches:
            runner = Runner(backend, instances, batch, 0)
            runner.stage()
            samples = sampled(lambda runner=runner: runner.once(seat), 1 << 30, Deadline(whole_s / len(batches)))
            found = out[f"b{batch}"] = spread_us(samples)
            found["p999_over_p50"] = found["p999_us"] / max(found["p50_us"], 1e-3)
