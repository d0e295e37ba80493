"""Detection of classes, one against the rest: an equal error rate from the scores of all classes.

LASR (Vashishth et al. 2023) reports an EER of language identification without defining it. Here every clip is a trial for
every class, a target trial for its own one, and one threshold serves all: the trials of all classes are pooled.

Shapes: `N` test clips, `C` classes, `R` bootstrap resamples. Labels are class numbers from 0.
"""

from __future__ import annotations

import numpy as np

from wavcse.eval.metrics.verification import eer, resampled_eer, thin_trials


def one_vs_rest_eer(labels: np.ndarray, scores: np.ndarray) -> float:
    """Equal error rate, 0 to 1, of scores `[N, C]` that can be compared between classes, such as log posteriors.

    Raises:
        ValueError: there is one class only, or a score is not finite.
    """
    return eer(*_trials(labels, scores))


def resampled_one_vs_rest_eer(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`one_vs_rest_eer` of every resample, `[R]`: a clip's trials have its weight `[R, N]`."""
    is_target, flat = _trials(labels, scores)
    rows, counts = thin_trials(is_target, flat)
    return resampled_eer(is_target[rows], flat[rows], weights, rows // scores.shape[1], counts)


def _trials(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 for a trial of a clip's own class and 0 for the others, and scores, both `[N * C]`, clip after clip."""
    is_target = np.asarray(labels)[:, None] == np.arange(scores.shape[1])
    return is_target.astype(np.int64).ravel(), np.asarray(scores).ravel()
