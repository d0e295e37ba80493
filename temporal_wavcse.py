"""Pooling over time: the mean of a clip's frames, or mean and standard deviation (statistics pooling, Snyder et al. 2018).

A clip may come in pieces, such as the windows of a long one. Their moments are put together exactly, so that the pieces do not
show: means weighted by frames, and about the common mean the variances within the pieces and between them (Chan et al. 1979).

Shapes: `T` frames, `D` width, `S` moments: 1 (mean) or 2 (mean, variance); a pooled layer has `S * D` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_wavcse import TEMPORAL_POOLINGS

MIN_VARIANCE = 1e-12  # of frames that are all equal, as of a single one: the root has a finite gradient there


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
    variance = (frames.float() - mean.unsqueeze(-2)).square().mean(dim=-2)
    return torch.stack([mean, variance], dim=-2)


def pooled_frames(frames: Tensor, temporal_pooling: str) -> Tensor:
    """`[..., T, D]` -> `[..., S * D]`: mean, then for "mean_std" the standard deviation."""
    return _statistics(time_moments(frames, temporal_pooling))


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
    return _statistics(pooled)


def _statistics(moments: Tensor) -> Tensor:
    """`[..., S, D]` -> `[..., S * D]`: the variance, if there is one, becomes a standard deviation."""
    if moments.shape[-2] == 1:
        return moments.flatten(-2)
    mean, variance = moments[..., :1, :], moments[..., 1:, :]
    return torch.cat([mean, variance.clamp(min=MIN_VARIANCE).sqrt()], dim=-2).flatten(-2)
