"""What a result file keeps for pictures: small tables of numbers, no more than a reader can see.

Shapes: `N` test clips, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix

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
