"""A program of two inputs and two outputs, for the gateway's live tests: rows of any number, and a weight for each."""

from __future__ import annotations

import torch
from torch import nn

OPTIONS = {
    "call": "keywords", "axes": ["rows"], "padding": "free", "size_classes": [[4], [16]], "batch_sizes": [1, 2, 4],
    "inputs": [{"name": "words", "dtype": "float32", "shape": ["rows", 3]},
               {"name": "weights", "dtype": "int64", "shape": ["rows"]}],
    "outputs": [{"name": "scaled", "dtype": "float32", "shape": ["rows", 3]},
                {"name": "total", "dtype": "int64", "shape": [1]}],
}


class TwoInputs(nn.Module):
    """Padding is zeros, which change neither output."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, words: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """words: float32 [batch, rows, 3]; weights: int64 [batch, rows]."""
        return words * self.scale * weights[:, :, None], weights.sum(1, keepdim=True)
