"""What a network has before its first step: the scaling of its layers and principal components, from the training clips.

It follows from the data alone, so every process of a run finds the same, and a continued run has it from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from wavcse.data.pca import PrincipalComponents, fit_pca
from wavcse.data.scaling import Moments
from wavcse.modeling_wavcse import WavCSEDownstream
from wavcse.training.arguments import RunArguments
from wavcse.training.features import SplitFeatures
from wavcse.training.heads import EVALUATION_BATCH, MultiTaskNetwork

Scaling = tuple[Tensor, Tensor]  # mean and scale, `[K, D]` each


def layer_blocks(split: SplitFeatures) -> Iterator[Tensor]:
    """Layers `[n, K, D]` of a split's clips, block by block."""
    return (batch.features.stacked() for batch in split.batches(EVALUATION_BATCH))


def layer_scaling(blocks: Iterable[Tensor]) -> Scaling:
    """Mean and standard deviation of every dimension of every layer over all clips of the blocks `[n, K, D]`."""
    moments = Moments()
    for block in blocks:
        moments.add(block)
    return moments.scaling()


@torch.no_grad()
def layer_components(downstream: WavCSEDownstream, blocks: Iterable[Tensor], size: int) -> PrincipalComponents:
    """The first `size` principal components of layers, blocks `[n, K, D]`, scaled as the model scales them, side by side.

    Raises:
        ValueError: the layers of these clips vary in fewer directions than that.
    """
    scaled = (downstream.scaled(block).flatten(1).cpu().numpy() for block in blocks)
    found = fit_pca(scaled, min(size, downstream.embedding_projection.in_features))
    if size > found.rank:
        raise ValueError(
            f"embedding_size is {size}, but the layers of the {found.num_vectors} training clips vary in {found.rank} "
            f"directions: there are no more principal components. Take at most {found.rank}, or more clips or layers."
        )
    return found


@torch.no_grad()
def start_network(
    args: RunArguments,
    network: MultiTaskNetwork,
    train: SplitFeatures,
    scaling: Scaling | None = None,
    components: PrincipalComponents | None = None,
) -> None:
    """Set what the recipe starts with: the buffers of `layer_scaling: standard`, and what `start: pca` begins at.

    Args:
        train: the training split, of the layers that the network pools.
        scaling: of these layers, where it is known; `components` too.

    Raises:
        ValueError: as `layer_components`.
    """
    downstream = network.downstream
    if downstream.is_scaled:
        mean, scale = layer_scaling(layer_blocks(train)) if scaling is None else scaling
        downstream.layer_mean.copy_(mean)
        downstream.layer_scale.copy_(scale)
    if args.start == "pca":
        found = components or layer_components(downstream, layer_blocks(train), downstream.embedding_projection.out_features)
        set_linear(downstream.embedding_projection, found.encoder(args.pca_whiten, args.pca_rotate))
        if network.decoder is not None:
            set_linear(network.decoder, found.decoder(args.pca_whiten, args.pca_rotate))


@torch.no_grad()
def set_linear(layer: nn.Linear, weights: tuple[np.ndarray, np.ndarray]) -> None:
    """Give a layer these weights, `[out, in]`, and these biases."""
    for parameter, values in zip((layer.weight, layer.bias), weights):
        parameter.copy_(torch.from_numpy(values))
