"""Pooling over time (the frames of a layer -> one vector) and across layers (the projected layers of a clip -> one vector).

Over time: the mean of a clip's frames, or mean and standard deviation (statistics pooling, Snyder et al. 2018). A clip may
come in pieces, such as the windows of a long one. Their moments are put together exactly, so that the pieces do not show:
means weighted by frames, and about the common mean the variances within the pieces and between them (Chan et al. 1979).

Across layers: ten poolings, each from `[B, K, D]` to `[B, D]`, channel by channel (only `self_attention` looks across
channels). Those of wavCSE (section 2.2 of the paper, after SUPERB-EP) use fixed constants, the cited originals learn them:
`learnable=True`. All but `weighted_average` and `gated` ignore the order of the layers. Beside them `concat`, which squeezes
nothing: `[B, K, D]` to `[B, K * D]`.

Shapes: `B` clips, `T` frames, `K` selected layers, `D` width, `S` moments: 1 (mean) or 2 (mean, variance); a layer that is
pooled over time has `S * D` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_wavcse import TEMPORAL_POOLINGS

MIN_VARIANCE = 1e-12  # of frames that are all equal, as of a single one: the root has a finite gradient there
TINY = torch.finfo(torch.float32).tiny
NEGLIGIBLE = 1e-12  # beside 1, in float32; its gradient too, times a loss gradient, stays a normal number
EXPONENT_RANGE = (1.0, 64.0)  # of a learned norm; beyond 64 it is max|x| to float32 accuracy
MEAN_BELOW_R = 1e-6  # log-sum-exp tends to the mean as r -> 0, where 1/r cannot be computed


# ---- over time ----


def num_moments(temporal_pooling: str) -> int:
    """S: what a pooled layer has of every channel; ValueError for an unknown pooling."""
    if temporal_pooling not in TEMPORAL_POOLINGS:
        raise ValueError(f"temporal_pooling is {temporal_pooling!r}; allowed: {', '.join(map(repr, TEMPORAL_POOLINGS))}.")
    return TEMPORAL_POOLINGS[temporal_pooling]


def time_moments(frames: Tensor, temporal_pooling: str) -> Tensor:
    """`[..., T, D]` -> `[..., S, D]` in float32: mean, and for "mean_std" the variance about it (divided by T).

    ValueError for an unknown pooling.
    """
    mean = frames.mean(dim=-2, dtype=torch.float32)
    if num_moments(temporal_pooling) == 1:
        return mean.unsqueeze(-2)
    centred = frames.float() - mean.unsqueeze(-2)
    variance = (centred.square() if centred.requires_grad else centred.square_()).mean(dim=-2)
    return torch.stack([mean, variance], dim=-2)


def pooled_frames(frames: Tensor, temporal_pooling: str) -> Tensor:
    """`[..., T, D]` -> `[..., S * D]`: mean, then for "mean_std" the standard deviation."""
    return statistics_of(time_moments(frames, temporal_pooling))


def pooled_pieces(clips: Sequence[int], frames: Sequence[int], moments: Tensor, num_clips: int) -> Tensor:
    """Pool clips over all frames of their pieces.

    Args:
        clips: of every piece, the clip that it is of.
        frames: of every piece, how many frames it has.
        moments: `[P, K, S, D]` of the P pieces' K layers.
        num_clips: B, each with at least one piece.

    Returns:
        `[B, K, S * D]`.
    """
    if len(clips) == num_clips:  # every clip in one piece
        return statistics_of(moments)
    total = [0] * num_clips
    for clip, count in zip(clips, frames):
        total[clip] += count
    pieces = [(clip, count / total[clip], piece) for clip, count, piece in zip(clips, frames, moments)]
    pooled = moments.new_zeros(num_clips, *moments.shape[1:])
    for clip, share, piece in pieces:
        pooled[clip] += piece * share
    for clip, share, piece in pieces:
        if share < 1:  # the variance between pieces
            pooled[clip, :, 1:] += (piece[:, :1] - pooled[clip, :, :1]).square() * share
    return statistics_of(pooled)


def statistics_of(moments: Tensor) -> Tensor:
    """`[..., S, D]` -> `[..., S * D]`: the variance, if there is one, becomes a standard deviation."""
    if moments.shape[-2] == 1:
        return moments.flatten(-2)
    mean, variance = moments[..., :1, :], moments[..., 1:, :]
    return torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()], dim=-2).flatten(-2)


# ---- across layers ----


class LayerPooling(nn.Module):
    """Base of the poolings: `forward` maps `[B, K, D]` to `[B, D]`, or for `concat` to `[B, K * D]`.

    Attributes:
        is_linear: a weighted sum of the layers, the weights `layer_weights` `[K]` adding up to 1. It commutes with any affine
            map of a layer, so that pooling first and mapping once is the same as mapping every layer.
        comes_first: it takes the layers as they are, and FC1 takes what it gives; else FC1 maps every layer before.
    """

    is_linear = False
    comes_first = False

    def __init__(self, num_layers: int, size: int):
        super().__init__()

    def reset_parameters(self) -> None:
        """Set the pooling's own parameters to their starting values (its sub-modules look after themselves)."""


class WeightedAveragePooling(LayerPooling):
    """`y = sum_l softmax(w)_l x_l`, weights shared by all channels (SUPERB, Yang et al. 2021)."""

    is_linear = comes_first = True

    def __init__(self, num_layers: int, size: int):
        super().__init__(num_layers, size)
        self.weight = nn.Parameter(torch.empty(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.weight)

    @property
    def layer_weights(self) -> Tensor:
        """`softmax(w)`, `[K]`: what the recursive layer selection ranks by."""
        return torch.softmax(self.weight, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("k,bkd->bd", self.layer_weights, x)


class MaxPooling(LayerPooling):
    """`y = max_l x_l`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=1)


class MeanPooling(LayerPooling):
    """`y = mean_l x_l`."""

    is_linear = comes_first = True

    def __init__(self, num_layers: int, size: int):
        super().__init__(num_layers, size)
        self.num_layers = num_layers

    @property
    def layer_weights(self) -> Tensor:
        """1/K each, `[K]`, on the CPU."""
        return torch.full((self.num_layers,), 1 / self.num_layers)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class MixedPooling(LayerPooling):
    """`y = a max_l x_l + (1 - a) mean_l x_l` (Lee et al. 2016, who learn `a = sigmoid(logit)`)."""

    def __init__(self, num_layers: int, size: int, max_weight: float = 0.5, learnable: bool = False):
        super().__init__(num_layers, size)
        self.max_weight = max_weight
        self.logit = nn.Parameter(torch.empty(())) if learnable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.logit is not None:
            max_weight = min(max(self.max_weight, 1e-6), 1 - 1e-6)  # the logit of 0 or 1 is infinite
            init.constant_(self.logit, math.log(max_weight / (1 - max_weight)))

    def forward(self, x: Tensor) -> Tensor:
        max_weight = self.max_weight if self.logit is None else torch.sigmoid(self.logit)
        return max_weight * x.amax(dim=1) + (1 - max_weight) * x.mean(dim=1)


class GatedPooling(LayerPooling):
    """`g = sigmoid(sum_l w_l x_l)`, `y = g max + (1 - g) mean`: one gate per clip and channel (Lee et al. 2016)."""

    def __init__(self, num_layers: int, size: int):
        super().__init__(num_layers, size)
        self.weight = nn.Parameter(torch.empty(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(torch.einsum("k,bkd->bd", self.weight, x))
        return gate * x.amax(dim=1) + (1 - gate) * x.mean(dim=1)


class LearnedNormPooling(LayerPooling):
    """`y = (mean_l |x_l|^p)^(1/p)`, the paper's choice with `p = 16` fixed.

    `learnable=True` is the original (Gulcehre et al. 2014): `p = 1 + softplus(rho)` and `x` centred by a learned `c` `[D]`.
    Scaling by the largest magnitude makes `|x|^p` safe for every p (exact, the norm is homogeneous).
    """

    def __init__(self, num_layers: int, size: int, p: float = 16.0, learnable: bool = False):
        super().__init__(num_layers, size)
        self.p = p
        self.rho = nn.Parameter(torch.empty(())) if learnable else None
        self.center = nn.Parameter(torch.empty(size)) if learnable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.rho is not None:
            init.constant_(self.rho, inverse_softplus(max(self.p - 1.0, 1e-3)))
            init.zeros_(self.center)

    def exponent(self) -> Tensor | float:
        """The current p, in [1, 64]."""
        return self.p if self.rho is None else (1 + nn.functional.softplus(self.rho)).clamp(*EXPONENT_RANGE)

    def forward(self, x: Tensor) -> Tensor:
        p = self.exponent()
        magnitude = (x if self.center is None else x - self.center).float().abs()
        scale = magnitude.amax(dim=1).detach().clamp_min(TINY)  # [B, D]
        ratio = magnitude / scale[:, None]  # the largest is 1, so powers below NEGLIGIBLE change neither sum nor gradient
        if self.rho is None:
            ratio = ratio.clamp_min(NEGLIGIBLE ** (1.0 / p))  # no denormal numbers, which are slow
        # A learned p needs d/dp of ratio^p at ratio = 0, which exp(p log(.)) gives finitely.
        power = ratio**p if self.rho is None else torch.exp(p * torch.log(ratio + TINY))
        mean = power.mean(dim=1).clamp_min(TINY)  # the outer root has an infinite slope at 0
        return (scale * mean ** (1.0 / p)).to(x.dtype)


class LogSumExpPooling(LayerPooling):
    """`y = (1/r) log mean_l exp(r x_l)` (Pinheiro & Collobert 2015); learned as `r = softplus(rho)`."""

    def __init__(self, num_layers: int, size: int, r: float = 1.0, learnable: bool = False):
        super().__init__(num_layers, size)
        self.r = r
        self.rho = nn.Parameter(torch.empty(())) if learnable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.rho is not None:
            init.constant_(self.rho, inverse_softplus(self.r))

    def forward(self, x: Tensor) -> Tensor:
        if self.rho is None and abs(self.r) < MEAN_BELOW_R:
            return x.mean(dim=1)
        r = self.r if self.rho is None else nn.functional.softplus(self.rho) + MEAN_BELOW_R
        x32 = x.float()
        return ((torch.logsumexp(r * x32, dim=1) - math.log(x.shape[1])) / r).to(x.dtype)


class SmoothMaximumPooling(LayerPooling):
    """`y = sum_l softmax_l(s x)_l x_l` (Boltzmann operator): the mean at s = 0, the maximum as s grows."""

    def __init__(self, num_layers: int, size: int, sharpness: float = 1.0, learnable: bool = False):
        super().__init__(num_layers, size)
        self.sharpness = sharpness
        self.learned_sharpness = nn.Parameter(torch.empty(())) if learnable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.learned_sharpness is not None:
            init.constant_(self.learned_sharpness, self.sharpness)

    def forward(self, x: Tensor) -> Tensor:
        sharpness = self.sharpness if self.learned_sharpness is None else self.learned_sharpness
        return (torch.softmax(sharpness * x.float(), dim=1) * x).sum(dim=1).to(x.dtype)


class AutoPooling(SmoothMaximumPooling):
    """Smooth maximum with learned sharpness alpha (McFee et al. 2018, per class there, one scalar here)."""

    def __init__(self, num_layers: int, size: int, alpha: float = 0.01):
        super().__init__(num_layers, size, sharpness=alpha, learnable=True)


class SelfAttentionPooling(LayerPooling):
    """`a = softmax_l(v . tanh(W x_l + b))`, `y = sum_l a_l x_l` (Lin et al. 2017; Safari et al. 2020)."""

    def __init__(self, num_layers: int, size: int):
        super().__init__(num_layers, size)
        self.hidden = nn.Linear(size, size)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        attention = torch.softmax(self.score(torch.tanh(self.hidden(x))), dim=1)  # [B, K, 1]
        return (attention * x).sum(dim=1)


class ConcatPooling(LayerPooling):
    """The layers side by side, in the order of `selected_layers`."""

    comes_first = True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def inverse_softplus(value: float) -> float:
    """The rho for which `softplus(rho) == value > 0`."""
    return value + math.log(-math.expm1(-value))


LAYER_POOLING_CLASSES: dict[str, type[LayerPooling]] = {
    "weighted_average": WeightedAveragePooling,
    "max": MaxPooling,
    "mean": MeanPooling,
    "mixed": MixedPooling,
    "gated": GatedPooling,
    "learned_norm": LearnedNormPooling,
    "log_sum_exp": LogSumExpPooling,
    "smooth_maximum": SmoothMaximumPooling,
    "auto": AutoPooling,
    "self_attention": SelfAttentionPooling,
    "concat": ConcatPooling,
}


def build_layer_pooling(pooling_type: str, num_layers: int, size: int, **kwargs) -> LayerPooling:
    """The pooling named by `WavCSEConfig.pooling_type` for `K = num_layers` layers of width `D = size`."""
    return LAYER_POOLING_CLASSES[pooling_type](num_layers=num_layers, size=size, **kwargs)
