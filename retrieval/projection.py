"""Embeddings as points of a plane: PCA, t-SNE, UMAP.

All three see vectors of length 1, so that near in the plane stands for a high cosine similarity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wavcse.data.pca import fit_pca
from wavcse.retrieval.nearest import unit_rows
from wavcse.settings.libraries import optional_library

EXTRA = "map"
LEAST_ROWS = 4
NEIGHBOURS_OF = 50  # numbers per vector that neighbours are looked for with, by PCA, as van der Maaten and Hinton 2008 use 30


def points_of(embeddings: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """Embeddings `[N, E]` as points `[N, 2]`, the same for the same seed.

    Args:
        method: a name of `METHODS`.

    Raises:
        ValueError: there are fewer than `LEAST_ROWS` of them.
        ImportError: the library of the method is not installed.
    """
    if len(embeddings) < LEAST_ROWS:
        raise ValueError(f"{len(embeddings)} embeddings make no map; at least {LEAST_ROWS} are needed.")
    return METHODS[method](unit_rows(embeddings), seed)


def _components(vectors: np.ndarray, most: int) -> np.ndarray:
    return fit_pca([vectors], min(most, vectors.shape[1])).project(vectors)


def _pca(vectors: np.ndarray, seed: int) -> np.ndarray:
    return np.pad(_components(vectors, 2), ((0, 0), (0, 1)))[:, :2]  # vectors of one number lie on a line


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    manifold = optional_library("sklearn.manifold", EXTRA)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(
        _components(vectors, NEIGHBOURS_OF)
    )


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    umap = optional_library("umap", EXTRA)
    neighbours = min(15, len(vectors) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, init="pca", random_state=seed, n_jobs=1)
    return reducer.fit_transform(_components(vectors, NEIGHBOURS_OF))


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"pca": _pca, "tsne": _tsne, "umap": _umap}
