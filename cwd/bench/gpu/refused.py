"""What a capture that fails leaves behind: the next one has to work, since programs come while a worker serves."""

from __future__ import annotations

from typing import Any

from cwd.bench.gpu.timing import Deadline
from cwd.bench.gpu.workbench import Workbench
from cwd.worker.backends.gpu import torch


def run(bench: Workbench, until: Deadline, out: dict[str, Any]) -> None:
    """Ask for a value during a capture, which no capture can give; then capture something that can be."""
    gpu = bench.rig.make_gpu()
    with gpu.thread(urgent=True):
        numbers = gpu.memory(4096).view(torch.int64)
        numbers.add_(int(numbers.sum().item()) + 1)  # what is refused below is the question alone
        out["refused"] = out["lost"] = False  # the stand-in captures whatever it is given
        try:
            gpu.capture(lambda: numbers.add_(int(numbers.sum().item()) + 1))
        except RuntimeError as error:
            out["refused"], out["lost"], out["error"] = True, gpu.lost(error), str(error).splitlines()[0][:200]
        numbers.zero_()
        graph = gpu.capture(lambda: numbers.add_(1))
        numbers.zero_()
        for _ in range(3):
            graph.replay()
        out["next_works"] = bool((numbers == 3).all().item())
