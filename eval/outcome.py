"""What an encoder achieves in one row of the table: predictions, figures with their intervals, and small tables for pictures.

Shapes: `N` test clips or trials, `E` embedding size, `T` targets of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix

from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, bootstrap_interval


@dataclass(frozen=True)
class Measured:
    """A figure of an encoder.

    Args:
        value: mean of the runs; None (NaN in files of earlier versions) where it is undefined, as a correlation of constants.
        interval: low and high end of 95 %; None where there is none.
        unit: "percent" (a share of 1), "years" or "plain".
    """

    value: float | None
    interval: Sequence[float] | None
    greater_is_better: bool
    unit: str


@dataclass(frozen=True)
class Intervals:
    """How the intervals of an outcome were made: `unit` is what was drawn ("speaker" or "clip"), `units` how many of them."""

    method: str
    confidence: float
    resamples: int
    seed: int
    unit: str
    units: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was fitted on an encoder's embeddings, and what validation chose.

    Args:
        kind: "linear", "PLDA", "fine-tuned", or the constant answer of an encoder without dimensions.
        settings: of the probe, or of the fine-tuning.
        lda_size, validation_eer, validation_eers: of PLDA: the size chosen, its equal error rate, that of every size tried.
        candidate: which of the encoder's vectors was chosen, where it offers several.
        short_train_clips: training clips of a fine-tuning that are too short for a crop.
        runs: one per seed: what was chosen, and its own figures.
    """

    kind: str
    settings: Mapping[str, Any] | None = None
    lda_size: int | None = None
    validation_eer: float | None = None
    validation_eers: Mapping[str, float] | None = None
    candidate: int | None = None
    short_train_clips: int | None = None
    runs: Sequence[Mapping[str, Any]] | None = None


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
        probe: what was fitted and chosen.
        figures: data of pictures, see below.
        others: further figures under names of their own: name -> (metric, runs).
    """

    target: str
    labels: np.ndarray
    runs: Sequence[np.ndarray]
    names: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    unit: str
    probe: Fit
    figures: dict = field(default_factory=dict)
    others: Mapping[str, tuple[str, Sequence[np.ndarray]]] = field(default_factory=dict)

    def measured(self, metrics: Sequence[str], seed: int) -> dict[str, Measured]:
        """The metrics, and `others`, by name."""
        found = {}
        for name, (metric_name, runs) in ({name: (name, self.runs) for name in metrics} | dict(self.others)).items():
            metric = METRICS[metric_name]
            value = float(np.mean([metric.compute(self.labels, run) for run in runs]))
            interval = bootstrap_interval(metric, self.labels, runs, self._units, seed)
            found[name] = Measured(value, interval, metric.greater_is_better, metric.unit)
        return found

    @cached_property
    def _units(self) -> np.ndarray:
        """Groups as numbers, `[N]` or `[N, 2]`; one numbering for all columns, in the order of the names."""
        columns = list(self.groups.values())
        units = pd.factorize(np.concatenate(columns), sort=True)[0].reshape(len(columns), -1).T
        return units if len(columns) > 1 else units[:, 0]

    def intervals(self, seed: int) -> Intervals:
        """How the intervals were made, and from how many units."""
        return Intervals("percentile bootstrap", CONFIDENCE, NUM_RESAMPLES, seed, self.unit, len(np.unique(self._units)))

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
