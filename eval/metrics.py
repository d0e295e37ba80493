"""Metrics with their direction, and bootstrap intervals that resample speakers.

Shapes: `N` test clips, `C` classes, `R` bootstrap resamples, `G` groups (speakers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score, recall_score

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_WEIGHTS_PER_CHUNK = 20_000_000  # 80 MB of float32 bootstrap weights at a time


@dataclass(frozen=True)
class Metric:
    """A figure of merit of predictions.

    Args:
        title: name in tables.
        greater_is_better: its direction.
        compute: `(labels [N], predictions [N]) -> float`, from a library.
        resampled: `(labels [N], predictions [N], weights [R, N]) -> [R]`, the same figure when clip n counts `weights[r, n]`
            times; what makes a bootstrap of thousands of resamples a matrix product.
    """

    title: str
    greater_is_better: bool
    compute: Callable[[np.ndarray, np.ndarray], float]
    resampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of correct clips."""
    return float(accuracy_score(labels, predictions))


def uar(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Unweighted average recall: mean recall of the classes that occur in `labels`."""
    return float(recall_score(labels, predictions, labels=np.unique(labels), average="macro"))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur in `labels` or `predictions`."""
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def _resampled_accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (labels == predictions).astype(weights.dtype) / weights.sum(axis=1)


def _resampled_uar(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    hits, support, _ = _class_counts(labels, predictions, weights)
    return _mean_where(hits / np.maximum(support, 1), support > 0)


def _resampled_macro_f1(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    hits, support, predicted = _class_counts(labels, predictions, weights)
    return _mean_where(2 * hits / np.maximum(support + predicted, 1), support + predicted > 0)


def _class_counts(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    # Per resample and class, [R, C]: correct clips, clips of the class, clips predicted as the class.
    num_clips, num_classes = len(labels), int(max(labels.max(), predictions.max())) + 1

    def count(classes: np.ndarray, mask: np.ndarray) -> np.ndarray:
        one_hot = sparse.csr_array((mask.astype(weights.dtype), (np.arange(num_clips), classes)), (num_clips, num_classes))
        return (one_hot.T @ weights.T).T

    everywhere = np.ones(num_clips, dtype=bool)
    return count(labels, labels == predictions), count(labels, everywhere), count(predictions, everywhere)


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, values, 0).sum(axis=1) / mask.sum(axis=1)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, accuracy, _resampled_accuracy),
    "uar": Metric("UAR", True, uar, _resampled_uar),
    "macro_f1": Metric("macro-F1", True, macro_f1, _resampled_macro_f1),
}


def bootstrap_interval(
    metric: Metric,
    labels: np.ndarray,
    runs: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (95 %) of a metric.

    Clips of one speaker are right or wrong together, so a resample draws whole speakers with replacement: the interval then
    says how the figure would move with other speakers. Without `groups`, single clips are drawn.

    Args:
        labels: true classes `[N]`.
        runs: predictions `[N]` of one or more probe seeds; the interval is that of their mean figure.
        groups: speaker of every clip, `[N]`, or None.
        seed: of the resampling; the same for every encoder, so that encoders meet the same resamples.

    Returns:
        (low, high), or None with fewer than two groups, where nothing can be said about other speakers.
    """
    values, units = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    chunk = max(1, MAX_WEIGHTS_PER_CHUNK // len(labels))
    figures = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        draws = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=size)  # [R, G]
        weights = draws.astype(np.float32)[:, units]  # [R, N]
        figures.append(np.mean([metric.resampled(labels, predictions, weights) for predictions in runs], axis=0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(figures), [tail, 1 - tail])
    return float(low), float(high)
