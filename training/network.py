"""The trained part of wavCSE without its upstream: pooled layers -> logits of every task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.modeling_wavcse import WavCSEDownstream, WavCSEForMultiTask, WavCSEHeads
from wavcse.training.arguments import RunArguments
from wavcse.training.features import PooledLayers
from wavcse.training.products import linear, use_linear


class MultiTaskNetwork(nn.Module):
    """`WavCSEDownstream` and `WavCSEHeads` in sequence: `[B, K, D]` -> `{task: [B, C]}`; weights PyTorch's defaults."""

    def __init__(self, config: WavCSEConfig):
        super().__init__()
        self.downstream = WavCSEDownstream(config)
        self.heads = WavCSEHeads(config)
        self.downstream.dropout = Dropout(config.layer_dropout)
        self.heads.dropout = Dropout(config.embedding_dropout)
        use_linear(self)

    def forward(self, features: PooledLayers | Tensor, rows: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of all clips, or of task t for the clips `rows[t]` only; `features` may be what `gather` returned."""
        layers = self.gather(features) if isinstance(features, PooledLayers) else features
        return self.heads(self.downstream(layers), rows)

    def gather(self, features: PooledLayers) -> Tensor:
        """The clips' layers from their table: `[B, K, D]`, or `[B, D]` if the pooling is linear, for it is applied here."""
        pooling = self.downstream.layer_pooling
        if not pooling.is_linear:
            return features.stacked()
        return features.averaged(pooling.layer_weights.to(features.table.device))

    def folded_heads(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per task FC2 and head as one map of the pooled layers, weight `[C, 512]` and bias `[C]`: exact without dropout."""
        last = self.downstream.embedding_projection
        return {
            task: (linear(head.weight, last.weight.T), linear(last.bias, head.weight, head.bias))
            for task, head in self.heads.tasks.items()
        }

    @torch.no_grad()
    def penalty(self, l1: float, l2: float) -> Tensor:
        """`l1 * sum |w| + l2 * sum w^2` over all parameters, biases and heads too (as the authors' code does)."""
        absolute, square = (torch.stack(torch._foreach_norm(list(self.parameters()), order)) for order in (1, 2))
        return l1 * absolute.sum() + l2 * square.square().sum()

    @torch.no_grad()
    def add_penalty_gradient(self, l1: float, l2: float) -> None:
        """Add the gradient of `penalty` to that of every parameter: in closed form, for no graph has to hold the weights."""
        weights = [weight for weight in self.parameters() if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        torch._foreach_add_(gradients, weights, alpha=2 * l2)
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=l1)


class Dropout(nn.Module):
    """`nn.Dropout` at a fifth of its time on a CPU: one 64-bit random number decides over four values.

    The rate is rounded to 1/65536, and kept in a buffer, so that networks that train together can have different ones.
    """

    STEPS = 2**16

    def __init__(self, rate: float):
        super().__init__()
        steps = min(round(rate * self.STEPS), self.STEPS - 1)
        self.is_off = steps == 0
        self.register_buffer("rate", torch.tensor(steps / self.STEPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off or not self.training:
            return x
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        numbers = numbers.view(torch.int16)[: x.numel()].view(x.shape)
        is_kept = numbers >= (self.STEPS * self.rate - self.STEPS // 2).to(torch.int16)
        return x * is_kept.to(x.dtype).div_((1 - self.rate).to(x.dtype))


def model_config(
    args: RunArguments, upstream_config: Mapping, classes: Mapping[str, list[str]], layer_fields: Mapping | None = None
) -> WavCSEConfig:
    """The model to train: the recipe's sizes, the tasks' labels, the cache's upstream and what it did (`layer_fields`)."""
    weights = args.loss_weights()
    tasks = {
        name: {"kind": "classification", "labels": labels, "loss_weight": weights[name]} for name, labels in classes.items()
    }
    return WavCSEConfig(upstream_config=upstream_config, **(layer_fields or {}), **args.model_fields(), tasks=tasks)


def load_network(model: WavCSEForMultiTask, weights: dict[str, Tensor]) -> None:
    """Put trained weights of a `MultiTaskNetwork` into the complete model."""
    parts = nn.ModuleDict({"downstream": model.wavcse.downstream, "heads": model.heads})
    parts.load_state_dict(weights)
