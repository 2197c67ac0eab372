"""A model that is sometimes late, for reasons that its profile does not show; `cwd bench ensemble` asks one."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

#: the input that makes it late
LATE = 7


class Straggler(nn.Module):
    """Its input is its output; with `LATE` in a batch it takes `late_s` longer."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.late_s = late_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: uint8 [batch, 1]."""
        if bool((x == LATE).any()):
            time.sleep(self.late_s)
        return x


def options(late_s: float) -> dict[str, Any]:
    """How it is added to a repository."""
    tensor = {"dtype": "uint8", "shape": [1]}
    return {"call": "positional", "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}],
            "batch_sizes": [1, 2, 4], "args": {"late_s": late_s}}
