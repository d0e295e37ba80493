"""Which dimensions of a vector a probe looks at: Integrated Gradients (Sundararajan et al., ICML 2017), by captum.

Shapes: `N` clips, `E` size of a vector; of frames `[N, T, D]` the same along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wavcse.settings.libraries import optional_library

LIBRARY = ("captum", "analysis")
FIRST_STEPS, MOST_STEPS = 4, 1024
LARGEST_GAP = 0.01  # of completeness: attributions must add up to what the output has changed by


class Attribution(NamedTuple):
    """Attributions of the shape of the inputs, how far from complete they are (a share), and the steps that took."""

    values: np.ndarray
    gap: float
    steps: int


def integrated_gradients(
    model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, baseline: Tensor | float = 0.0
) -> Attribution:
    """How much every number of the inputs has moved the output of its target, on the straight way from the baseline.

    The steps double until the gap is at most `LARGEST_GAP`, or there are `MOST_STEPS`.

    Args:
        model: inputs `[N, ...]` -> outputs `[N, O]`.
        targets: which output of each, `[N]`.
        baseline: where nothing is known: a number, or one input.

    Returns:
        The gap is `sum |sum of attributions - change of the output| / sum |change of the output|`.

    Raises:
        ImportError: captum is not installed.
    """
    captum = optional_library("captum.attr", LIBRARY[1])
    baselines = torch.zeros_like(inputs) + baseline
    with torch.no_grad():
        change = [model(own).gather(1, targets[:, None])[:, 0] for own in (inputs, baselines)]
    moved = (change[0] - change[1]).double()
    method, steps = captum.IntegratedGradients(model), FIRST_STEPS
    while True:
        values = method.attribute(inputs, baselines, target=targets, n_steps=steps, internal_batch_size=4096).detach()
        missing = values.double().flatten(1).sum(dim=1) - moved
        gap = (missing.abs().sum() / moved.abs().sum().clamp_min(1e-12)).item()
        if gap <= LARGEST_GAP or steps >= MOST_STEPS:
            return Attribution(values.cpu().numpy(), gap, steps)
        steps *= 2


def importance(attributions: np.ndarray, summary: str) -> np.ndarray:
    """One number per dimension, `[E]`, from attributions `[N, E]` or `[N, T, E]`.

    Args:
        summary: "absolute": mean of the absolute values. "signed": absolute value of the mean, as the authors do, in which
            what speaks for one clip and against another cancels.
    """
    rows = attributions.reshape(-1, attributions.shape[-1])
    return np.abs(rows).mean(axis=0) if summary == "absolute" else np.abs(rows.mean(axis=0))
