"""Accuracy, unweighted average recall and macro-F1 of predicted classes.

Shapes: `N` test clips, `C` classes, `R` bootstrap resamples. Labels and predictions are class numbers from 0.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score, recall_score


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of correct clips."""
    return float(accuracy_score(labels, predictions))


def uar(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Unweighted average recall: mean recall of the classes that occur in `labels`."""
    return float(recall_score(labels, predictions, labels=np.unique(labels), average="macro"))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur in `labels` or `predictions`."""
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def macro_f1_true(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur in `labels`: for a part of the clips, of which other classes may be predicted."""
    return float(f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0))


def resampled_accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`accuracy` of every resample, `[R]`."""
    return weights @ (labels == predictions).astype(weights.dtype) / weights.sum(axis=1)


def resampled_uar(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`uar` of every resample, `[R]`: over the classes that the resample has."""
    hits, support, _ = _class_counts(labels, predictions, weights)
    return _mean_where(hits / np.maximum(support, 1), support > 0)


def resampled_macro_f1(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`macro_f1` of every resample, `[R]`."""
    hits, support, predicted = _class_counts(labels, predictions, weights)
    return _mean_where(2 * hits / np.maximum(support + predicted, 1), support + predicted > 0)


def resampled_macro_f1_true(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`macro_f1_true` of every resample, `[R]`: over the classes that the resample has."""
    hits, support, predicted = _class_counts(labels, predictions, weights)
    return _mean_where(2 * hits / np.maximum(support + predicted, 1), support > 0)


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
