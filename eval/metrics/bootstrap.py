"""What a metric is, and bootstrap intervals that resample speakers: of one figure, and of the difference of two.

Shapes: `N` test clips or trials, `R` resamples, `G` groups (speakers), `S` probe seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_WEIGHTS_PER_CHUNK = 20_000_000  # 80 MB of float32 bootstrap weights at a time


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
    says how the figure would move with other speakers. Without `groups`, single clips are drawn. A trial of two speakers
    counts the product of how often each was drawn (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007)),
    a trial within one speaker as often as that speaker was drawn.

    Args:
        labels: true classes, quantities or texts `[N]`, or labels of trials.
        runs: predictions `[N]` of one or more probe seeds; the interval is that of their mean figure.
        groups: speaker of every clip, `[N]`, both speakers of every trial, `[N, 2]`, or None.
        seed: of the resampling; the same for every encoder, so that encoders meet the same resamples.

    Returns:
        (low, high), or None with fewer than two groups, where nothing can be said about other speakers. Resamples without a
        figure (no target trial drawn, say) are left out; None where no resample has one.
    """
    return _interval(metric, labels, [runs], groups, seed, num_resamples)


def paired_interval(
    metric: Metric,
    labels: np.ndarray,
    runs_a: Sequence[np.ndarray],
    runs_b: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float] | None:
    """As `bootstrap_interval`, of the difference `metric(a) - metric(b)` on the same clips, with the same resamples for both.

    The two can be told apart where the interval does not hold 0.
    """
    return _interval(metric, labels, [runs_a, runs_b], groups, seed, num_resamples)


def _interval(
    metric: Metric,
    labels: np.ndarray,
    systems: Sequence[Sequence[np.ndarray]],
    groups: np.ndarray | None,
    seed: int,
    num_resamples: int,
) -> tuple[float, float] | None:
    """Interval of the figure of one system, the mean of its runs, or of the difference of two."""
    labels = np.asarray(labels)
    units, values = pd.factorize(np.arange(len(labels)) if groups is None else np.ravel(groups), sort=True)
    if len(values) < 2:
        return None
    units = units.reshape(len(labels), -1)  # [N, 1 or 2]
    thinned = [[_Thinned(metric, labels, np.asarray(run), units) for run in runs] for runs in systems]
    largest = max(len(run.labels) for runs in thinned for run in runs)
    chunk = max(1, MAX_WEIGHTS_PER_CHUNK // max(largest, len(values)))
    figures = np.concatenate(
        [
            [np.mean([run.figures(draws) for run in runs], axis=0) for runs in thinned]
            for draws in _draws(len(values), num_resamples, chunk, seed)
        ],
        axis=1,
    )  # [systems, R]
    resampled = figures[0] - figures[1] if len(figures) == 2 else figures[0]
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def _draws(num_groups: int, num_resamples: int, chunk: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, `[chunk, G]` at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        yield rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=size).astype(np.float32)


class _Thinned:
    """The clips of one run that a bootstrap looks at."""

    def __init__(self, metric: Metric, labels: np.ndarray, predictions: np.ndarray, units: np.ndarray):
        self.metric = metric
        rows, self.counts = metric.thin(labels, predictions) if metric.thin else (np.arange(len(labels)), None)
        self.labels, self.predictions, self.units = labels[rows], predictions[rows], units[rows]

    def figures(self, draws: np.ndarray) -> np.ndarray:
        """Figure of every resample `[R]` from draws `[R, G]`."""
        first, *others = self.units.T
        weights = np.take(draws, first, axis=1)  # [R, N]
        for second in others:
            or_one = np.pad(draws, ((0, 0), (0, 1)), constant_values=1)  # a factor of 1 where both are the same speaker
            weights *= np.take(or_one, np.where(first == second, -1, second), axis=1)
        if self.counts is not None:
            weights *= self.counts.astype(weights.dtype)
        return self.metric.resampled(self.labels, self.predictions, weights)


@dataclass(frozen=True)
class Metric:
    """A figure of merit of predictions, or an error of them.

    Args:
        title: name in tables.
        greater_is_better: its direction.
        compute: `(labels [N], predictions [N]) -> float`, from a library where one has it; what a prediction is (a class, a
            number, a text, a score, scores of all classes) is the metric's own.
        resampled: `(labels [N], predictions [N], weights [R, N]) -> [R]`, the same figure when clip n counts `weights[r, n]`
            times, NaN where it has none; what makes a bootstrap of thousands of resamples a few matrix operations.
        unit: one of `UNITS`: "percent" (a share from 0 to 1, shown as a percentage), "years" or "plain".
        thin: `(labels [N], predictions [N]) -> (rows [M], counts [M])`, clips that stand for all `N` in a bootstrap and how
            many each stands for; None where all clips are used.
    """

    title: str
    greater_is_better: bool
    compute: Callable[[np.ndarray, np.ndarray], float]
    resampled: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    unit: str = "plain"
    thin: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
