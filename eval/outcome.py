"""What an encoder achieves in one row of the table: predictions, figures with their intervals, and small tables for pictures.

Shapes: `N` test clips or trials, `E` embedding size, `T` targets of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix

from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, bootstrap_interval


@dataclass(frozen=True)
class Outcome:
    """One row of the table for one encoder.

    Args:
        target: label column, or column of the speaker that trials are about.
        labels: true class indices, numbers, or 1/0 of trials, `[N]`.
        runs: predictions `[N]` of one or more seeds; of trials their scores.
        names: columns that say which clip or trial each entry is, `[N]` each.
        groups: column name -> what a bootstrap draws, `[N]`: one column, or two for the speakers of a trial.
        unit: what the groups are: "speaker" or "clip".
        probe: what was fitted and chosen, see `wavcse.eval.probe` and `wavcse.eval.verification`.
        figures: data of pictures, see `wavcse.eval.outcome`.
        others: further figures under names of their own: name -> (metric, runs).
    """

    target: str
    labels: np.ndarray
    runs: Sequence[np.ndarray]
    names: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    unit: str
    probe: dict
    figures: dict = field(default_factory=dict)
    others: Mapping[str, tuple[str, Sequence[np.ndarray]]] = field(default_factory=dict)

    def measured(self, metrics: Sequence[str], seed: int) -> dict[str, dict]:
        """Name -> value (mean of the runs), 95 % interval, direction and unit, of the metrics and of `others`."""
        wanted = {name: (name, self.runs) for name in metrics} | dict(self.others)
        return {name: self._measured(metric, runs, seed) for name, (metric, runs) in wanted.items()}

    def _measured(self, name: str, runs: Sequence[np.ndarray], seed: int) -> dict:
        metric = METRICS[name]
        return {
            "value": float(np.mean([metric.compute(self.labels, run) for run in runs])),
            "interval": bootstrap_interval(metric, self.labels, runs, self._units, seed),
            "greater_is_better": metric.greater_is_better,
            "unit": metric.unit,
        }

    @cached_property
    def _units(self) -> np.ndarray:
        """Groups as numbers, `[N]` or `[N, 2]`; one numbering for all columns, in the order of the names."""
        columns = list(self.groups.values())
        units = pd.factorize(np.concatenate(columns), sort=True)[0].reshape(len(columns), -1).T
        return units if len(columns) > 1 else units[:, 0]

    def interval_record(self, seed: int) -> dict:
        """How the intervals were made, and from how many units."""
        return {
            "method": "percentile bootstrap",
            "confidence": CONFIDENCE,
            "resamples": NUM_RESAMPLES,
            "seed": seed,
            "unit": self.unit,
            "units": len(np.unique(self._units)),
        }

    def predictions(self, classes: Sequence[str]) -> pd.DataFrame:
        """The table that is kept: names and groups, label, `prediction_0` ..; classes by name."""

        def shown(values: np.ndarray) -> np.ndarray:
            return np.array(classes, dtype=object)[values] if classes else values

        columns = {**self.names, **self.groups, "label": shown(self.labels)}
        return pd.DataFrame(columns | {f"prediction_{seed}": shown(run) for seed, run in enumerate(self.runs)})


# ---- data of pictures: no more of it than a reader can see ----


MAX_CLASSES = 60
MAX_POINTS = 1000
MAX_MAP_POINTS = 500
PERPLEXITY = 30.0


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> dict:
    """`{"labels", "counts"}` of class indices `[N]`, rows = true; empty where there are more than 60 classes."""
    if len(classes) > MAX_CLASSES:
        return {}
    counts = confusion_matrix(labels, predictions, labels=np.arange(len(classes)))
    return {"confusion": {"labels": list(classes), "counts": counts.tolist()}}


def scatter(labels: np.ndarray, predictions: np.ndarray, seed: int) -> dict:
    """`{"true", "predicted"}` of numbers `[N]`; of more than a thousand a seeded draw."""
    rows = _some(len(labels), MAX_POINTS, seed)
    return {"scatter": {"true": _rounded(labels[rows]), "predicted": _rounded(predictions[rows])}}


def embedding_map(embeddings: np.ndarray, labels: Sequence[str], seed: int) -> dict:
    """`{"x", "y", "label"}`: embeddings `[N, E]` of at most 500 clips in the plane.

    t-SNE (van der Maaten and Hinton, JMLR 9 (2008)): neighbours stay neighbours, distances between groups mean little. Empty
    for fewer than five clips, or an encoder without dimensions.
    """
    rows = _some(len(embeddings), MAX_MAP_POINTS, seed)
    if len(rows) < 5 or not embeddings.shape[1]:
        return {}
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    start = "pca" if min(len(rows), embeddings.shape[1]) >= 2 else "random"
    x, y = TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(embeddings[rows]).T
    return {"map": {"x": _rounded(x), "y": _rounded(y), "label": [str(labels[row]) for row in rows]}}


def _some(num: int, most: int, seed: int) -> np.ndarray:
    if num <= most:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).choice(num, most, replace=False))


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(np.asarray(values, dtype=np.float64), 4).tolist()
