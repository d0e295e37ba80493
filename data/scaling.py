"""Standardising dimensions by the moments of training clips, for layers in training and for embeddings in probes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONSTANT_DIMENSION = 1e-6  # a standard deviation below this share of the mean is rounding noise, not information


def usable_scale(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """What to divide by: the standard deviation, and 1 for a constant dimension, which minus its mean stays at zero."""
    return np.where(std > CONSTANT_DIMENSION * np.abs(mean), std, 1.0)


class Moments:
    """Mean and standard deviation over rows that come in blocks, in float64 (pairwise update, Chan et al. 1979).

    Attributes:
        count: rows so far.
        mean: `[...]`, of one row's shape; `None` before the first block.
    """

    def __init__(self):
        self.count, self.mean, self.squares = 0, None, None

    def add(self, block: Tensor) -> None:
        """Take in rows `[n, ...]`."""
        block = block.double()
        count, mean = len(block), block.mean(dim=0)
        squares = (block - mean).square().sum(dim=0)
        if self.mean is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, step = self.count + count, mean - self.mean
        self.squares += squares + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def scaling(self) -> tuple[Tensor, Tensor]:
        """Mean, and what to divide by (`usable_scale`), float32; ValueError where there was no row."""
        if not self.count:
            raise ValueError("there is no training clip to take the mean and the standard deviation of.")
        std = (self.squares / self.count).sqrt()
        scale = torch.from_numpy(usable_scale(self.mean.cpu().numpy(), std.cpu().numpy()))
        return self.mean.float(), scale.float().to(self.mean.device)
