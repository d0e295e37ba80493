"""Principal components of a table of vectors that is read block by block.

Shapes: `N` vectors, `n` of a block, `E` their size, `M` components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrincipalComponents:
    """What `fit_pca` has found, float64.

    Attributes:
        mean: `[E]`.
        components: `[M, E]`, of length 1, the one with the largest variance first; the largest number of each is positive.
        variances: `[M]`, along the components.
        total_variance: of the vectors, over all their numbers.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    total_variance: float

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `[n, E]` in the coordinates of the components, float32 `[n, M]`."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32)


def fit_pca(blocks: Iterable[np.ndarray], num_components: int) -> PrincipalComponents:
    """The first components of all vectors; memory grows with E x E, not with N.

    Args:
        blocks: arrays `[n, E]`.
        num_components: M, at most E.

    Raises:
        ValueError: there are fewer than two vectors, or more components are wanted than vectors have numbers.
    """
    count, shift = 0, None
    for block in blocks:
        block = np.asarray(block, np.float64)
        if shift is None:  # sums of numbers around zero lose no digits
            size = block.shape[1]
            shift, total, products = block.mean(0), np.zeros(size), np.zeros((size, size))
        centred = block - shift
        count, total, products = count + len(block), total + centred.sum(0), products + centred.T @ centred
    if count < 2:
        raise ValueError(f"{count} vectors have no principal components; at least 2 are needed.")
    if not 1 <= num_components <= len(shift):
        raise ValueError(f"{num_components} components of vectors of {len(shift)} numbers; 1 to {len(shift)} are possible.")
    covariance = (products - np.outer(total, total) / count) / (count - 1)
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")[:num_components]
    components = vectors.T[order]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    components = components * np.where(largest < 0, -1.0, 1.0)
    return PrincipalComponents(
        shift + total / count, components, np.maximum(variances[order], 0.0), float(np.trace(covariance))
    )
