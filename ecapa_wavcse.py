"""ECAPA-TDNN: a network over the frames of one layer that ends in one vector per clip.

Desplanques et al. 2020, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN Based Speaker
Verification" (arXiv 2005.07143), in the shape that SpeechBrain has by default and that Vaessen and van Leeuwen put on
wav2vec2: 512 channels in four layers, 1536 where they are aggregated, 192 numbers out. Every convolution is followed by ReLU
and batch norm, in this order.

    frames [B, T, D] -> convolution of 5 frames -> three blocks, each with a shortcut around it, that see ever more frames
                     -> the blocks' outputs side by side -> attentive mean and deviation over time -> [B, 192]

Clips of different length may share a batch. Convolutions mirror a clip at its own end; means, attention and the batch norms of
training see frames of clips only. So padding changes nothing.

Shapes: `B` clips, `T` frames, `D` width of a frame, `C` channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 8  # groups of channels in a Res2Net convolution
SQUEEZED = 128  # width of squeeze-and-excitation, and of the attention over time
DILATIONS = (2, 3, 4)  # of the three blocks, in frames
MIN_VARIANCE = 1e-12


class EcapaTdnn(nn.Module):
    """Frames of clips -> one vector each.

    Args:
        input_size: D.
        channels: C of the first layer and of the blocks, a multiple of 8.
        aggregated_channels: C of what is pooled over time.
        embedding_size: numbers of a vector; kept as `size`.
    """

    def __init__(self, input_size: int, channels: int = 512, aggregated_channels: int = 1536, embedding_size: int = 192):
        super().__init__()
        if channels % SCALE:
            raise ValueError(f"channels is {channels}; it must be a multiple of {SCALE}.")
        self.size = embedding_size
        self.first = FrameLayer(input_size, channels, kernel_size=5)
        self.blocks = nn.ModuleList(Block(channels, dilation) for dilation in DILATIONS)
        self.aggregation = FrameLayer(len(DILATIONS) * channels, aggregated_channels)
        self.pooling = AttentiveStatistics(aggregated_channels)
        self.norm = ClipNorm(2 * aggregated_channels)
        self.projection = nn.Linear(2 * aggregated_channels, embedding_size)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, embedding_size]`.

        Args:
            mask: bool `[B, T]`, true for the frames of each clip and false for the padding to their right; `None` = no
                padding.

        Raises:
            ValueError: the mask is of another shape, is not right-padding, or leaves a clip without a frame.
        """
        extent = extent_of(frames, mask)
        x = self.first(frames.transpose(1, 2), extent)
        outputs = []
        for block in self.blocks:
            x = block(x, extent)
            outputs.append(x)
        x = self.aggregation(torch.cat(outputs, dim=1), extent)
        return self.projection(self.norm(self.pooling(x, extent)))


class Extent(NamedTuple):
    """Which frames of a batch are there.

    `share` `[B, 1, T]` (or `[1, 1, 1]` without padding): each frame's part of its clip, 0 in the padding; `mask` bool `[B, T]`
    and `lengths` `[B]`, both `None` without padding.
    """

    share: Tensor
    mask: Tensor | None = None
    lengths: Tensor | None = None


def extent_of(frames: Tensor, mask: Tensor | None) -> Extent:
    """That of `[B, T, D]` and a mask, as `EcapaTdnn.forward` takes them."""
    if mask is None or (mask.shape == frames.shape[:2] and bool(mask.all())):
        return Extent(torch.full((1, 1, 1), 1 / frames.shape[1], device=frames.device))
    if mask.shape != frames.shape[:2]:
        raise ValueError(f"mask has shape {list(mask.shape)}, but frames {list(frames.shape)}.")
    lengths = mask.sum(dim=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if not lengths.all() or not torch.equal(mask.bool(), positions < lengths[:, None]):
        raise ValueError(
            "mask must be true for the frames of each clip, at least one, and false for the padding to their right."
        )
    return Extent((mask / lengths[:, None])[:, None], mask.bool(), lengths)


class FrameLayer(nn.Module):
    """A convolution over time that keeps the number of frames, ReLU, and batch norm: `[B, C, T]` -> `[B, C', T]`."""

    def __init__(self, input_channels: int, channels: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(input_channels, channels, kernel_size, dilation=dilation)
        self.norm = FrameNorm(channels)
        self.width = dilation * (kernel_size - 1) // 2  # frames that it sees on either side

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        return self.norm(F.relu(self.conv(mirrored(x, self.width, extent.lengths))), extent)


class FrameNorm(nn.BatchNorm1d):
    """Batch norm of frames `[B, C, T]`, in training by the statistics of those that are no padding."""

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        if extent.mask is None or not self.training:
            return super().forward(x)
        rows = x.transpose(1, 2)
        normed = torch.zeros_like(rows)
        normed[extent.mask] = super().forward(rows[extent.mask]).to(normed.dtype)
        return normed.transpose(1, 2)


class ClipNorm(nn.BatchNorm1d):
    """Batch norm of vectors `[B, C]`; one clip alone, which varies from no other, is normed by the running figures."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Block(nn.Module):
    """Three convolutions and a gate per channel, with a shortcut around them."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.before = FrameLayer(channels, channels)
        self.between = Res2NetLayer(channels, dilation)
        self.after = FrameLayer(channels, channels)
        self.gate = ChannelGate(channels)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        return x + self.gate(self.after(self.between(self.before(x, extent), extent), extent), extent)


class Res2NetLayer(nn.Module):
    """Groups of channels one after the other: each is convolved with the group before it added; the first stays as it is."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        size = channels // SCALE
        self.layers = nn.ModuleList(FrameLayer(size, size, kernel_size=3, dilation=dilation) for _ in range(SCALE - 1))

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        first, *groups = x.chunk(SCALE, dim=1)
        outputs = [first]
        for place, (layer, group) in enumerate(zip(self.layers, groups)):
            outputs.append(layer(group + outputs[-1] if place else group, extent))
        return torch.cat(outputs, dim=1)


class ChannelGate(nn.Module):
    """Squeeze and excitation: every channel of a clip times a number between 0 and 1 that follows from all channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, SQUEEZED), nn.Linear(SQUEEZED, channels)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        mean = (x * extent.share).sum(dim=2)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))[:, :, None]


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, `[B, C, T]` -> `[B, 2 C]`.

    Every channel has weights of its own for the frames, which follow from the frame, and the clip's plain mean and deviation.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layer = FrameLayer(3 * channels, SQUEEZED)
        self.score = nn.Conv1d(SQUEEZED, channels, kernel_size=1)

    def forward(self, x: Tensor, extent: Extent) -> Tensor:
        mean, deviation = weighted_statistics(x, extent.share)
        seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        scores = self.score(torch.tanh(self.layer(seen, extent)))
        if extent.mask is not None:
            scores = scores.masked_fill(~extent.mask[:, None], -torch.inf)
        return torch.cat(weighted_statistics(x, scores.softmax(dim=2)), dim=1).squeeze(2)


def weighted_statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, both `[B, C, 1]`, of `[B, C, T]` by weights whose sum over time is 1."""
    mean = (x * weight).sum(dim=2, keepdim=True)
    variance = ((x - mean).square() * weight).sum(dim=2, keepdim=True)
    return mean, variance.clamp(min=MIN_VARIANCE).sqrt()


def mirrored(x: Tensor, width: int, lengths: Tensor | None) -> Tensor:
    """`[B, C, T]` with `width` more frames on either side, which mirror those inside: `[B, C, T + 2 width]`.

    A clip is mirrored at its own end, into its padding, and a clip of fewer frames than that as often as it takes.
    """
    num_frames = x.shape[2]
    if lengths is None:
        if width < num_frames:
            return F.pad(x, (width, width), mode="reflect") if width else x
        lengths = torch.full((len(x),), num_frames, device=x.device)
    elif not width:
        return x
    last = (lengths - 1)[:, None]
    period = (2 * last).clamp(min=1)  # there and back again
    folded = torch.arange(-width, num_frames + width, device=x.device) % period
    index = torch.minimum(folded, period - folded)
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
