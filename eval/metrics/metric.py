"""What a metric is: a figure of merit with its direction, its unit, and a form that bootstraps quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A figure of merit of predictions, or an error of them.

    Args:
        title: name in tables.
        greater_is_better: its direction.
        compute: `(labels [N], predictions [N]) -> float`, from a library where one has it; what a prediction is (a class, a
            number, a score, scores of all classes) is the metric's own.
        resampled: `(labels [N], predictions [N], weights [R, N]) -> [R]`, the same figure when clip n counts `weights[r, n]`
            times, NaN where it has none; what makes a bootstrap of thousands of resamples a few matrix operations.
        unit: "percent" (a share from 0 to 1, shown as a percentage), "years" or "plain".
        thin: `(labels [N], predictions [N]) -> (rows [M], counts [M])`, clips that stand for all `N` in a bootstrap and how
            many each stands for; None where all clips are used.
    """

    title: str
    greater_is_better: bool
    compute: Callable[[np.ndarray, np.ndarray], float]
    resampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    unit: str = "plain"
    thin: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
