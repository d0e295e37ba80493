"""Agreement and error of predicted quantities: concordance and Pearson correlation, mean absolute and root mean squared error.

Shapes: `N` test clips, `R` bootstrap resamples.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

ROUNDING = 1e-12  # a variance below this share of the mean square is rounding of a constant


def ccc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Concordance correlation coefficient, `2 cov / (var_x + var_y + (mean_x - mean_y)^2)` with population moments.

    Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45 (1989). NaN where labels and
    predictions are the same constant. To be computed over a whole test set, not averaged over batches.
    """
    return float(resampled_ccc(labels, predictions, np.ones((1, len(labels))))[0])


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation; NaN where labels or predictions are constant."""
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return float("nan")
    return float(pearsonr(labels, predictions).statistic)


def mae(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean absolute error, in the unit of the labels."""
    return float(mean_absolute_error(labels, predictions))


def rmse(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Root mean squared error, in the unit of the labels."""
    return float(root_mean_squared_error(labels, predictions))


def resampled_ccc(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`ccc` of every resample, `[R]`."""
    shift, var_x, var_y, cov = _moments(labels, predictions, weights)
    return _ratio(2 * cov, var_x + var_y + shift**2)


def resampled_pearson(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`pearson` of every resample, `[R]`."""
    _, var_x, var_y, cov = _moments(labels, predictions, weights)
    return _ratio(cov, np.sqrt(var_x * var_y))


def resampled_mae(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`mae` of every resample, `[R]`."""
    return _weighted_mean(np.abs(np.subtract(labels, predictions, dtype=np.float64)), weights)


def resampled_rmse(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`rmse` of every resample, `[R]`."""
    return np.sqrt(_weighted_mean(np.subtract(labels, predictions, dtype=np.float64) ** 2, weights))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1, dtype=np.float64)


def _moments(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Difference of the means, both variances and the covariance of every resample, each `[R]`."""
    centre = np.mean(labels, dtype=np.float64)  # taken off both, so that squares of large values do not cancel
    x, y = np.asarray(labels, dtype=np.float64) - centre, np.asarray(predictions, dtype=np.float64) - centre
    sums = weights @ np.stack([x, y, x * x, y * y, x * y], axis=1)
    mean_x, mean_y, xx, yy, xy = (sums / weights.sum(axis=1, dtype=np.float64)[:, None]).T
    return mean_x - mean_y, _variance(xx, mean_x), _variance(yy, mean_y), xy - mean_x * mean_y


def _variance(mean_square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    variance = mean_square - mean**2
    return np.where(variance > ROUNDING * mean_square, variance, 0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
