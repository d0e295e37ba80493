"""Linear discriminant analysis of speakers: the few directions of an embedding in which speakers differ most.

The within-speaker covariance is shrunk where clips are few, so that embeddings of 2000 dimensions do with some hundred clips.

Shapes: `N` clips, `S` speakers, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

CONSTANT_DIMENSION = 1e-6  # a standard deviation below this share of the mean is rounding noise, not information
BLOCK = 8192  # clips that are held in float64 at a time


@dataclass(frozen=True)
class SpeakerLDA:
    """Centring and projection, `(x - mean) @ directions`.

    Attributes:
        mean: of the training clips, `[E]`.
        directions: `[E, K]`, the most discriminative first; within a speaker, projected training clips have the identity as
            (shrunk) covariance.
        shrinkage: share of the identity in the within-speaker covariance, from 0 to 1.
    """

    mean: np.ndarray
    directions: np.ndarray
    shrinkage: float

    def project(self, embeddings: np.ndarray, size: int) -> np.ndarray:
        """The first `size` discriminants of embeddings `[N, E]`, float64 `[N, size]`."""
        parts = _blocks(len(embeddings))
        return np.concatenate([(np.asarray(embeddings[part]) - self.mean) @ self.directions[:, :size] for part in parts])


def fit_lda(embeddings: np.ndarray, speakers: np.ndarray, shrinkage: float | None = None) -> SpeakerLDA:
    """LDA of clips `[N, E]` of speakers `[N]`, all `min(S - 1, E)` directions.

    Dimensions are standardised, those that are constant left out. Then `within <- (1 - a) within + a trace(within) / E I`,
    with the coefficient `a` of Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 88 (2004), for the `N - S` clips that are left when every speaker has lost the mean.

    Args:
        shrinkage: `a`, from 0 to 1; None: from the data. With 0, directions do not depend on any invertible affine map of the
            embeddings, but `N - S >= E` is needed.

    Raises:
        ValueError: fewer than two speakers; no speaker with two clips; an embedding is not finite; embeddings do not differ
            within speakers, or too little so for this `shrinkage`.
    """
    embeddings, numbers, sizes = checked_speakers(embeddings, speakers)
    mean, std = _mean_and_std(embeddings)
    kept = np.flatnonzero(std > CONSTANT_DIMENSION * np.abs(mean))

    def standardised(part: slice) -> np.ndarray:
        return (embeddings[part][:, kept] - mean[kept]) / std[kept]

    parts = _blocks(len(embeddings))
    means = sum(speaker_sums(standardised(part), numbers[part], len(sizes)) for part in parts) / sizes[:, None]
    residuals = (standardised(part) - means[numbers[part]] for part in parts)
    within, fourth_moment = _moments(residuals, len(embeddings), len(kept))
    if np.trace(within) <= CONSTANT_DIMENSION**2 * len(kept):  # of a total of len(kept)
        raise ValueError("The clips of each speaker have the same embedding; discriminant analysis needs clips that differ.")
    freedom = len(embeddings) - len(sizes)
    if shrinkage is None:
        shrinkage = min(1.0, ledoit_wolf(within, fourth_moment, len(embeddings)) * len(embeddings) / freedom)
    directions = np.zeros((len(mean), min(len(sizes) - 1, len(kept))))
    directions[kept] = _discriminants(_shrunk(within, shrinkage, freedom), means, sizes) / std[kept, None]
    return SpeakerLDA(mean, directions, shrinkage)


def checked_speakers(embeddings: np.ndarray, speakers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings `[N, E]`, the number of each clip's speaker `[N]` and the number of clips of each speaker `[S]`.

    Raises:
        ValueError: an embedding is not finite, the two do not fit, or there are too few speakers or clips.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(speakers):
        raise ValueError(f"Embeddings of shape {embeddings.shape} do not fit {len(speakers)} speaker names.")
    broken = int((~np.isfinite(embeddings).all(axis=1)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(embeddings)} training embeddings are not finite (NaN or infinite).")
    names, numbers = np.unique(speakers, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} training speaker; verification learns from differences between speakers.")
    if len(names) == len(embeddings):
        raise ValueError(f"Each of {len(names)} training speakers has one clip; some need two, to learn how a speaker varies.")
    return embeddings, numbers, np.bincount(numbers)


def ledoit_wolf(covariance: np.ndarray, fourth_moment: float, num_clips: int) -> float:
    """Ledoit and Wolf's shrinkage coefficient towards the identity, from 0 to 1.

    Args:
        covariance: of centred vectors, `[E, E]`.
        fourth_moment: mean of `||x||^4` over those vectors.
        num_clips: how many they are.
    """
    squared = float((covariance**2).sum())
    distance = squared - np.trace(covariance) ** 2 / len(covariance)  # from the identity, delta^2 of the paper
    noise = (fourth_moment - squared) / num_clips  # of the covariance, beta^2
    return 1.0 if noise >= distance else float(noise / distance)


def speaker_sums(vectors: np.ndarray, numbers: np.ndarray, num_speakers: int) -> np.ndarray:
    """Sum `[S, E]` of the vectors `[N, E]` of each speaker, given the number of each clip's speaker `[N]`."""
    clips = np.arange(len(numbers))
    return sparse.csr_array((np.ones(len(numbers)), (numbers, clips)), (num_speakers, len(numbers))) @ vectors


def _blocks(num_clips: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, num_clips, BLOCK)]


def _mean_and_std(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = embeddings.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(embeddings[part] - mean).sum(axis=0) for part in _blocks(len(embeddings)))
    return mean, np.sqrt(squares / len(embeddings))


def _moments(residuals: Iterable[np.ndarray], num_clips: int, size: int) -> tuple[np.ndarray, float]:
    """Covariance `[E, E]` and mean of `||x||^4` of centred vectors that come in blocks."""
    covariance, fourth_moment = np.zeros((size, size)), 0.0
    for block in residuals:
        covariance += block.T @ block
        fourth_moment += float((np.square(block).sum(axis=1) ** 2).sum())
    return covariance / num_clips, fourth_moment / num_clips


def _shrunk(within: np.ndarray, shrinkage: float, freedom: int) -> np.ndarray:
    size = len(within)
    if shrinkage == 0 and freedom < size:
        raise ValueError(
            f"Without shrinkage, {size} dimensions need {size} clips beyond one per speaker; there are {freedom}."
        )
    return (1 - shrinkage) * within + shrinkage * np.trace(within) / size * np.eye(size)


def _discriminants(within: np.ndarray, means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Directions `[E, min(S - 1, E)]` that whiten `within` and in which the speaker means differ, most first."""
    try:
        root = linalg.cholesky(within, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError("Embeddings do not vary within speakers in some directions; use shrinkage above 0.") from error
    # Left singular vectors of the whitened means are the eigenvectors of the between-speaker covariance, without forming it.
    weighted = linalg.solve_triangular(root, (means * np.sqrt(sizes / sizes.sum())[:, None]).T, lower=True)
    vectors, _, _ = linalg.svd(weighted, full_matrices=False)
    return linalg.solve_triangular(root, vectors[:, : min(len(means) - 1, len(within))], lower=True, trans="T")
