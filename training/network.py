"""The trained part of wavCSE without its upstream: pooled layers -> logits of every task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.modeling_wavcse import WavCSEDownstream, WavCSEForMultiTask, WavCSEHeads


class MultiTaskNetwork(nn.Module):
    """`WavCSEDownstream` and `WavCSEHeads` in sequence: `[B, K, D]` -> `{task: [B, C]}`; weights PyTorch's defaults."""

    def __init__(self, config: WavCSEConfig):
        super().__init__()
        self.downstream = WavCSEDownstream(config)
        self.heads = WavCSEHeads(config)

    def forward(self, pooled_layers: Tensor) -> dict[str, Tensor]:
        return self.heads(self.downstream(pooled_layers))

    def penalty(self, l1: float, l2: float) -> Tensor:
        """`l1 * sum |w| + l2 * sum w^2` over all parameters, biases and heads too (as the authors' code does)."""
        weights = torch.cat([parameter.flatten() for parameter in self.parameters()])
        return l1 * weights.abs().sum() + l2 * weights.square().sum()


def load_network(model: WavCSEForMultiTask, weights: dict[str, Tensor]) -> None:
    """Put trained weights of a `MultiTaskNetwork` into the complete model."""
    parts = nn.ModuleDict({"downstream": model.wavcse.downstream, "heads": model.heads})
    parts.load_state_dict(weights)
