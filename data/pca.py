"""Principal components of a table of vectors that is read block by block.

Shapes: `N` vectors, `n` of a block, `E` their size, `M` components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NO_VARIANCE = 1e-10  # beside the largest variance: what rounding to float32 makes of a direction in which nothing varies
LEAST_VARIANCE = 1e-6  # beside the largest: smaller ones are whitened as this one, or noise would become as large as speech


@dataclass(frozen=True)
class PrincipalComponents:
    """What `fit_pca` has found, float64.

    Attributes:
        mean: `[E]`.
        components: `[M, E]`, of length 1, the one with the largest variance first; the largest number of each is positive.
        variances: `[M]`, along the components.
        total_variance: of the vectors, over all their numbers.
        rank: how many directions the vectors vary in, at most `min(N - 1, E)`.
        num_vectors: N.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    total_variance: float
    rank: int
    num_vectors: int

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `[n, E]` in the coordinates of the components, float32 `[n, M]`."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32)

    def lengths(self, whiten: float) -> np.ndarray:
        """What a coordinate is divided by, `[M]`: its deviation to the power of `whiten`, 0 (nothing) to 1 (unit variance)."""
        return np.maximum(self.variances, LEAST_VARIANCE * self.variances[0]) ** (whiten / 2)

    def encoder(self, whiten: float = 0.0, rotate: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The projection as weight `[M, E]` and bias `[M]` of a linear layer.

        Args:
            rotate: turn the coordinates by `random_rotation`. Distances and angles stay as they are; the variance is spread
                over all coordinates, so that who standardises each of them, as probes do, does not make as much of the last
                component as of the first. Without it the first coordinates alone are the best small embedding.
        """
        weight = self.components / self.lengths(whiten)[:, None]
        weight = random_rotation(len(weight)) @ weight if rotate else weight
        return weight, -weight @ self.mean

    def decoder(self, whiten: float = 0.0, rotate: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The way back, weight `[E, M]` and bias `[E]`: of all linear maps of these coordinates the nearest to the vectors."""
        weight = self.components.T * self.lengths(whiten)
        return (weight @ random_rotation(len(self.components)).T if rotate else weight), self.mean


def random_rotation(size: int) -> np.ndarray:
    """An orthogonal matrix `[size, size]`, uniformly drawn (Mezzadri 2007), always the same one for a size."""
    drawn, upper = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))
    return drawn * np.sign(np.diag(upper))


def fit_pca(blocks: Iterable[np.ndarray], num_components: int) -> PrincipalComponents:
    """The first components of all vectors; memory grows with E x E, not with N.

    They are the eigenvectors of the covariance `[E, E]`, or where there are fewer vectors than numbers in one, of their
    products `[N, N]`, which is the same and less work.

    Args:
        blocks: arrays `[n, E]`.
        num_components: M, at most E.

    Raises:
        ValueError: there are fewer than two vectors, or more components are wanted than vectors have numbers.
    """
    moments = _Products()
    for block in blocks:
        moments.add(np.asarray(block, np.float64))
    if moments.count < 2:
        raise ValueError(f"{moments.count} vectors have no principal components; at least 2 are needed.")
    if not 1 <= num_components <= moments.size:
        raise ValueError(
            f"{num_components} components of vectors of {moments.size} numbers; 1 to {moments.size} are possible."
        )
    variances, components, rank = moments.of_few(num_components) or moments.of_many(num_components)
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    components = components * np.where(largest < 0, -1.0, 1.0)
    return PrincipalComponents(
        moments.mean, components, np.maximum(variances, 0.0), moments.total_variance, rank, moments.count
    )


class _Products:
    """Vectors as they are while they are no more than they have numbers; then the sums of their products."""

    def __init__(self):
        self.count, self.size, self.rows, self.products = 0, 0, [], None

    def add(self, block: np.ndarray) -> None:
        if not self.count:  # sums of numbers around zero lose no digits
            self.size, self.shift = block.shape[1], block.mean(0)
            self.total = np.zeros(self.size)
        centred = block - self.shift
        self.count, self.total = self.count + len(block), self.total + centred.sum(0)
        self.rows.append(centred)
        if self.count > self.size:
            rows, self.rows = np.concatenate(self.rows), []
            self.products = rows.T @ rows + (0 if self.products is None else self.products)

    @property
    def mean(self) -> np.ndarray:
        return self.shift + self.total / self.count

    @property
    def total_variance(self) -> float:
        own = sum(np.square(rows).sum() for rows in self.rows) if self.products is None else np.trace(self.products)
        return float((own - self.total @ self.total / self.count) / (self.count - 1))

    def of_few(self, most: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Variances `[most]`, components `[most, E]` and rank from the products of the vectors; None if they are too few."""
        if self.products is not None or most >= self.count:
            return None
        rows = np.concatenate(self.rows) - self.total / self.count
        variances, vectors = _descending(rows @ rows.T / (self.count - 1))
        rank = _rank(variances)
        if most > rank:
            return None  # where nothing varies, products say nothing of the direction
        components = vectors[:, :most].T @ rows
        return variances[:most], components / np.linalg.norm(components, axis=1, keepdims=True), rank

    def of_many(self, most: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The same from the covariance."""
        if self.products is None:
            rows = np.concatenate(self.rows)
            self.products = rows.T @ rows
        covariance = (self.products - np.outer(self.total, self.total) / self.count) / (self.count - 1)
        variances, vectors = _descending(covariance)
        return variances[:most], vectors[:, :most].T, min(_rank(variances), self.count - 1)


def _descending(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    variances, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-variances, kind="stable")
    return variances[order], vectors[:, order]


def _rank(variances: np.ndarray) -> int:
    return int(np.count_nonzero(variances > NO_VARIANCE * max(variances[0], 0.0)))
