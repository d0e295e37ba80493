"""Clips on their way to a GPU: 16-bit samples in pinned memory, padded there, normalised there.

A fast GPU embeds more audio per second than one processor core normalises; and most speech is 16-bit, half of float32's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INT16_SCALE = 2**15  # a decoder gives 16-bit PCM as whole multiples of this in [-1, 1)


def send(clips: Sequence[np.ndarray], variance_floor: float | None, device: torch.device) -> dict[str, Tensor]:
    """`input_values` `[B, samples]` (float32) and `attention_mask` (int32) on the device, clips padded with zeros.

    Args:
        clips: float32 waveforms `[samples]`.
        variance_floor: normalise every clip to zero mean and unit variance, this added to the variance; `None` = do not.
    """
    whole = [as_int16(clip) for clip in clips]
    is_int16 = all(samples is not None for samples in whole)
    samples = [torch.from_numpy(clip) for clip in (whole if is_int16 else clips)]
    longest = max(map(len, samples))
    padded = torch.zeros(len(samples), longest, dtype=samples[0].dtype, pin_memory=device.type == "cuda")
    for row, clip in zip(padded, samples):
        row[: len(clip)] = clip
    values = padded.to(device, non_blocking=True).float()
    lengths = torch.tensor([len(clip) for clip in samples], device=device)[:, None]
    mask = torch.arange(longest, device=device) < lengths
    if is_int16:
        values /= INT16_SCALE
    if variance_floor is not None:
        values = normalized(values, mask, lengths, variance_floor)
    return {"input_values": values, "attention_mask": mask.int()}


def as_int16(clip: np.ndarray) -> np.ndarray | None:
    """The clip's samples as 16-bit PCM, or `None` where that would change one of them."""
    scaled = clip * np.float32(INT16_SCALE)
    rounded = np.rint(scaled)
    is_exact = np.array_equal(rounded, scaled) and -INT16_SCALE <= rounded.min() and rounded.max() < INT16_SCALE
    return rounded.astype(np.int16) if is_exact else None


def normalized(values: Tensor, mask: Tensor, lengths: Tensor, variance_floor: float) -> Tensor:
    """Zero mean and unit variance over the masked samples of every row; zeros elsewhere."""
    centred = (values - values.sum(dim=1, keepdim=True) / lengths) * mask
    variance = centred.square().sum(dim=1, keepdim=True) / lengths
    return centred * torch.rsqrt(variance + variance_floor)
