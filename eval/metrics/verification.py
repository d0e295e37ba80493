"""Errors of verification scores: equal error rate and minimum detection cost; and the former of classes, one against the rest.

Shapes: `N` trials, `K` operating points, `R` bootstrap resamples. A label is 1 for a target trial (same speaker) and 0 for a
non-target trial; a score is any number that is higher for more alike. At a threshold, the false acceptance rate (FAR) is the
share of non-target trials at or above it, the false rejection rate (FRR) the share of target trials below it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_curve

ALL_UP_TO = 50_000  # trials of a class, counted from its errors, that a bootstrap takes one by one
BLOCK = 250_000  # weights that are sorted and summed at a time, few enough for a processor's cache

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (FAR [R, K], FRR [R, K]) -> [R]


def error_rates(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, FRR) `[K]` at the corners of the ROC polygon, from the highest threshold (nothing accepted) to the lowest.

    Raises:
        ValueError: a class of trials is missing, or a score is not finite.
    """
    labels, scores = _checked(labels, scores)
    false_acceptance, true_acceptance, _ = roc_curve(labels, scores)
    return false_acceptance, 1 - true_acceptance


def eer(labels: np.ndarray, scores: np.ndarray) -> float:
    """Equal error rate, from 0 to 1: where the ROC polygon, straight between operating points, has FAR = FRR.

    The root x of `1 - x - tpr(x)` for the interpolated true positive rate at false positive rate x, solved exactly.
    """
    false_acceptance, false_rejection = error_rates(labels, scores)
    return float(_crossing(false_acceptance, false_rejection))


def min_dcf(labels: np.ndarray, scores: np.ndarray, p_target: float) -> float:
    """Minimum over thresholds of the detection cost, with both errors at cost 1, from 0 (no errors) to 1 (no information).

    `min(p FRR + (1 - p) FAR) / min(p, 1 - p)`; the divisor is the cost of deciding without listening (NIST 2016 speaker
    recognition evaluation plan, normalised detection cost).

    Args:
        p_target: prior probability `p` of a target trial.
    """
    return float(_min_cost(*error_rates(labels, scores), p_target))


def resampled_eer(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """`eer` of every resample, `[R]`; NaN where a class of trials has no weight.

    Args:
        units: which column of `weights` each trial has its weight from, `[N]`; None where every trial has a column.
        counts: how many trials each one stands for, `[N]`; None where it is one.
    """
    return _resampled(labels, scores, weights, _crossing, units, counts)


def resampled_min_dcf(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, p_target: float) -> np.ndarray:
    """`min_dcf` of every resample, `[R]`; NaN where a class of trials has no weight."""
    return _resampled(labels, scores, weights, lambda far, frr: _min_cost(far, frr, p_target))


def thin_trials(labels: np.ndarray, scores: np.ndarray, all_up_to: int = ALL_UP_TO) -> tuple[np.ndarray, np.ndarray]:
    """Trials that stand for all in a bootstrap (rows `[M]`, by score), and how many each stands for (counts `[M]`).

    Of each class, the `all_up_to` trials nearest to being errors (non-targets with the highest, targets with the lowest
    scores) stay; of the next as many every 2nd stays, of the twice as many after these every 4th, and so on, each for its
    neighbours in score. So a rate is always read off at least `all_up_to` trials or off all there are: in a bootstrap that
    weights trials by two speakers, thinning moves it by about 1 % of itself, and millions of trials become some hundred
    thousand.
    """
    labels, scores = _checked(labels, scores)
    rows, counts = [], []
    for label, sign in ((1, 1), (0, -1)):
        own = np.flatnonzero(labels == label)
        nearest_first = own[np.argsort(sign * scores[own], kind="stable")]
        starts = _thinned_starts(len(own), all_up_to)
        sizes = np.diff(starts, append=len(own))
        rows.append(nearest_first[starts + (sizes - 1) // 2])
        counts.append(sizes)
    rows, counts = np.concatenate(rows), np.concatenate(counts)
    order = np.lexsort([labels[rows], scores[rows]])
    return rows[order], counts[order]


def _thinned_starts(num_trials: int, all_up_to: int) -> np.ndarray:
    # Where runs of 1, 2, 4, ... neighbours begin that one trial stands for: each octave of ranks has runs twice as long.
    parts, start, step = [np.arange(min(all_up_to, num_trials))], all_up_to, 2
    while start < num_trials:
        parts.append(np.arange(start, min(2 * start, num_trials), step))
        start, step = 2 * start, 2 * step
    return np.concatenate(parts)


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite.")
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError(f"Verification needs trials with label 1 and trials with label 0; labels found: {np.unique(labels)}.")
    return labels, scores


def _resampled(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    figure: Figure,
    units: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    labels, scores = np.asarray(labels), np.asarray(scores)
    order = np.lexsort([labels, scores])
    columns = order if units is None else units[order]
    is_ordered = len(columns) == weights.shape[1] and np.array_equal(columns, np.arange(len(columns)))
    starts, is_target, is_point = _runs(labels[order], scores[order])
    figures = np.empty(len(weights))
    step = max(1, BLOCK // len(labels))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        ordered = weights[part] if is_ordered else np.take(weights[part], columns, axis=1)
        if counts is not None:
            ordered = ordered * counts[order].astype(weights.dtype)
        sums = np.add.reduceat(ordered, starts, axis=1)
        figures[part] = _weighted_figures(sums, is_target, is_point, figure)
    return figures


def _runs(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of trials of one class among trials in ascending order of score and, where scores are equal, label.

    Between the ends of a run the ROC is straight, so its corners are all that is needed. Classes that share a score are runs
    of their own, and between them there is no operating point.

    Returns:
        starts: where runs begin.
        is_target: class of each run.
        is_point: whether there is an operating point behind it.
    """
    tie = np.cumsum(np.append(0, np.diff(scores) > 0))
    targets, sizes = np.bincount(tie, weights=labels), np.bincount(tie)
    mixed_tie = np.where((targets > 0) & (targets < sizes), np.arange(len(sizes)), -1)[tie]
    starts = np.flatnonzero(np.append(True, (np.diff(labels) != 0) | (np.diff(mixed_tie) != 0)))
    is_target = labels[starts] == 1
    return starts, is_target, is_target | (mixed_tie[starts] < 0)


def _weighted_figures(sums: np.ndarray, is_target: np.ndarray, is_point: np.ndarray, figure: Figure) -> np.ndarray:
    """Figure `[R]` for the weights of runs `[R, runs]`, in ascending order of score."""
    targets = np.cumsum(np.where(is_target, sums, 0), axis=1, dtype=np.float64)
    others = np.cumsum(np.where(is_target, 0, sums), axis=1, dtype=np.float64)
    has_both = (targets[:, -1] > 0) & (others[:, -1] > 0)
    targets, others = targets[has_both], others[has_both]
    nothing = np.zeros((len(targets), 1))
    false_rejection = np.hstack([nothing, targets[:, is_point] / targets[:, -1:]])
    false_acceptance = np.hstack([nothing + 1, 1 - others[:, is_point] / others[:, -1:]])
    figures = np.full(len(sums), np.nan)
    figures[has_both] = figure(false_acceptance, false_rejection)
    return figures


def _crossing(false_acceptance: np.ndarray, false_rejection: np.ndarray) -> np.ndarray:
    """Where two curves `[..., K]` meet that run in opposite directions, from (1, 0) to (0, 1) or back: `[...]`."""
    if np.all(false_rejection[..., 0] > false_acceptance[..., 0]):
        false_acceptance, false_rejection = false_acceptance[..., ::-1], false_rejection[..., ::-1]
    gap = false_rejection - false_acceptance  # rises from -1 to 1
    after = np.argmax(gap >= 0, axis=-1)[..., None]

    def at(curve: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(curve, index, axis=-1)[..., 0]

    share = at(gap, after - 1) / (at(gap, after - 1) - at(gap, after))  # of the way between the two points
    start, end = at(false_acceptance, after - 1), at(false_acceptance, after)
    return start + share * (end - start)


def _min_cost(false_acceptance: np.ndarray, false_rejection: np.ndarray, p_target: float) -> np.ndarray:
    costs = p_target * false_rejection + (1 - p_target) * false_acceptance
    return costs.min(axis=-1) / min(p_target, 1 - p_target)


# ---- one class against the rest ----
# LASR (Vashishth et al. 2023) reports an EER of language identification without defining it. Here every clip is a trial for
# every class, a target trial for its own one, and one threshold serves all: the trials of all classes are pooled. `N` is
# the number of clips there, `C` of classes, and a label is the number of a class from 0.


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
