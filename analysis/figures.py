"""What every figure of an analysis is: a value with its interval, how much it rests on, and its floor.

A figure in a record is a mapping: `value`, `interval` (95 %, or None), `n`, what was drawn for the interval (`unit`, `units`)
and `floor`, name -> a figure or a number that stands for knowing nothing.

Shapes: `N` items, `G` groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as students_t

from wavcse.eval.metrics import CONFIDENCE, METRICS, Metric, bootstrap_interval
from wavcse.eval.table import shown, shown_interval

MEAN = Metric(
    "mean", True, lambda _, values: float(np.mean(values)), lambda _, values, weights: weights @ values / weights.sum(axis=1)
)
MOST_GROUPS = 20  # of a jackknife: each costs the figure once more


def figure(value: float, interval: Sequence[float] | None, n: int, units: int, unit: str, **floor: Any) -> dict[str, Any]:
    """A figure as records hold it."""
    interval = None if interval is None else [float(end) for end in interval]
    return {"value": float(value), "interval": interval, "n": int(n), "units": int(units), "unit": unit, "floor": floor}


def measured(
    metric: Metric, labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray, unit: str, seed: int, **floor: Any
) -> dict[str, Any]:
    """A metric of predictions `[N]` with its bootstrap interval over `groups`: `[N]`, or `[N, 2]` for pairs."""
    interval = bootstrap_interval(metric, labels, [predictions], groups, seed)
    return figure(metric.compute(labels, predictions), interval, len(labels), len(np.unique(groups)), unit, **floor)


def mean_of(values: np.ndarray, groups: np.ndarray, unit: str, seed: int, **floor: Any) -> dict[str, Any]:
    """The mean of numbers `[N]`, as `measured`."""
    return measured(MEAN, np.zeros(len(values)), np.asarray(values, np.float64), groups, unit, seed, **floor)


def jackknifed(
    compute: Callable[[np.ndarray], float], groups: np.ndarray, unit: str, seed: int, **floor: Any
) -> dict[str, Any]:
    """A figure of rows, with the interval of a jackknife that leaves out whole groups.

    A bootstrap repeats clips, which figures of geometry take for structure; leaving out does not (Efron and Stein, Annals of
    Statistics 9 (1981)). Groups are put together at random into `MOST_GROUPS` parts at most.

    Args:
        compute: rows -> figure.
        groups: speaker (or clip) of every row, `[N]`.
    """
    value, num_groups = compute(np.arange(len(groups))), len(np.unique(np.asarray(groups, dtype=str)))
    without = [compute(rows) for rows in rows_without(groups, seed)]
    if len(without) < 3:
        return figure(value, None, len(groups), num_groups, unit, **floor)
    half = half_width(np.array(without))
    return figure(value, (value - half, value + half), len(groups), num_groups, unit, **floor)


def rows_without(groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows that are left without each part of the groups `[N]`: what a jackknife computes from."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    parts = np.random.default_rng(seed).permutation(np.arange(len(names)) % min(len(names), MOST_GROUPS))[index]
    return [np.flatnonzero(parts != part) for part in range(int(parts.max()) + 1)]


def half_width(without: np.ndarray) -> np.ndarray:
    """Half of the interval of a jackknife, from the figures without each part `[parts, ...]`."""
    num_parts = len(without)
    spread = np.sqrt((num_parts - 1) / num_parts * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    return students_t.ppf((1 + CONFIDENCE) / 2, num_parts - 1) * spread


def is_below_chance(own: Mapping[str, Any], chance: float) -> bool:
    """Whether the whole interval of a figure lies below `chance`."""
    return own["interval"] is not None and own["interval"][1] < chance


def shown_figure(own: Mapping[str, Any] | None, unit: str = "percent") -> str:
    """`71.3 [65.0, 77.1]`; `unit` as of metrics."""
    return "–" if own is None else shown(own["value"], unit) + shown_interval(own["interval"], unit)


def metric_unit(name: str) -> str:
    """The unit of a metric of the evaluation."""
    return METRICS[name].unit
