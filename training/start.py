"""What a network has before its first step: the scaling of its layers, from the training clips.

It follows from the data alone, so every process of a run finds the same, and a continued run has it from its checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wavcse.data.scaling import Moments
from wavcse.training.arguments import RunArguments
from wavcse.training.features import SplitFeatures
from wavcse.training.heads import EVALUATION_BATCH, MultiTaskNetwork

Scaling = tuple[Tensor, Tensor]  # mean and scale, `[K, D]` each


def layer_scaling(train: SplitFeatures) -> Scaling:
    """Mean and standard deviation of every dimension of every layer over the clips of a split, read in blocks."""
    moments = Moments()
    for batch in train.batches(EVALUATION_BATCH):
        moments.add(batch.features.stacked())
    return moments.scaling()


@torch.no_grad()
def start_network(args: RunArguments, network: MultiTaskNetwork, train: SplitFeatures, scaling: Scaling | None = None) -> None:
    """Set what the recipe starts with: the buffers of `layer_scaling: standard`.

    Args:
        train: the training split, of the layers that the network pools.
        scaling: of these layers, where it is known.
    """
    downstream = network.downstream
    if downstream.is_scaled:
        mean, scale = layer_scaling(train) if scaling is None else scaling
        downstream.layer_mean.copy_(mean)
        downstream.layer_scale.copy_(scale)
