"""An encoder that leaves early: how long an execution takes depends on what is in its requests.

After every few blocks stands an exit, a classifier over the mean of the tokens. A request leaves at the first exit whose
most likely class is likelier than a threshold; what that exit says is its answer. The batch goes on until its last
request has left, for all rows alike: it takes as long as its longest member, and a row's answer does not depend on who
runs beside it. That is a branch on data, which an exported program cannot take: this runs as its factory makes it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = hidden.shape
        split = self.queries_keys_values(self.before_attention(hidden)).view(batch, tokens, 3, self.heads, -1)
        attended = functional.scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4).unbind(0))
        hidden = hidden + self.attended(attended.transpose(1, 2).reshape(batch, tokens, width))
        return hidden + self.narrow(functional.gelu(self.wide(self.before_perceptron(hidden))))


class EarlyExitEncoder(nn.Module):
    """`blocks` blocks with an exit after each `every` of them; the last block has one in any case."""

    def __init__(self, tokens: int, width: int, heads: int, blocks: int, every: int, classes: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        depths = dict.fromkeys([*range(every, blocks + 1, every), blocks])
        self.exits = nn.ModuleDict({str(depth): nn.Linear(width, classes) for depth in depths})

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features: float32 [batch, tokens, width]; logits float32 [batch, classes], and the depth i64 [batch] they are of."""
        hidden = features + self.positions
        logits, depths = features.new_zeros(0), torch.zeros(len(features), dtype=torch.int64, device=features.device)
        for depth, block in enumerate(self.blocks, 1):
            hidden = block(hidden)
            if str(depth) in self.exits:
                found = self.exits[str(depth)](hidden.mean(1))
                stays = depths == 0
                logits = torch.where(stays[:, None], found, logits) if len(logits) else found
                sure = functional.softmax(found, 1).amax(1) >= self.threshold
                depths = torch.where(stays & sure, depth, depths)
                if bool(depths.all()):
                    return logits, depths
        return logits, torch.where(depths == 0, len(self.blocks), depths)
