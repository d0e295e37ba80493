"""Probabilistic linear discriminant analysis (PLDA): how much likelier are two sets of clips from one speaker than from two?

Prince and Elder, "Probabilistic linear discriminant analysis for inferences about identity", ICCV 2007, in its two-covariance
form: Brümmer and de Villiers, "The speaker partitioning problem", Odyssey 2010; Sizov, Lee and Kinnunen, "Unifying
probabilistic linear discriminant analysis variants in biometric authentication", S+SSPR 2014. A speaker is a point
`y ~ N(mean, between)`, a clip of that speaker is `x ~ N(y, within)`.

Before it comes linear discriminant analysis (LDA). Its within-speaker covariance is shrunk where clips are few, so that
embeddings of 2000 dimensions do with some hundred clips.

Shapes: `N` clips, `S` speakers, `E` embedding size, `D` size after LDA, `M` enrolled speakers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

SMALLEST_RATIO = 1e-2  # of variance between to variance within speakers at the start; EM never leaves a start of 0


@dataclass(frozen=True)
class _Statistics:
    """What EM needs of the training vectors."""

    means: np.ndarray  # of the vectors of each speaker, [S, D]
    sizes: np.ndarray  # how many they are, [S]
    scatter: np.ndarray  # sum of squares around those means, [D, D]

    @classmethod
    def of(cls, vectors: np.ndarray, speakers: np.ndarray) -> _Statistics:
        vectors, numbers, sizes = checked_speakers(np.asarray(vectors, dtype=np.float64), speakers)
        means = speaker_sums(vectors, numbers, len(sizes)) / sizes[:, None]
        residuals = vectors - means[numbers]
        return cls(means, sizes, residuals.T @ residuals)

    @property
    def freedom(self) -> int:
        """Clips beyond one per speaker, `N - S`."""
        return int(self.sizes.sum()) - len(self.sizes)


class TwoCovariance:
    """The two-covariance model of vectors of moderate size.

    Attributes after `fit`:
        mean `[D]`, between `[D, D]`, within `[D, D]`: the parameters, of maximum likelihood.
        log_likelihoods: of the training vectors, before each step of EM and at the end; never falls.
    """

    def __init__(self, max_iterations: int = 100, tolerance: float = 1e-5):
        """EM ends after `max_iterations` steps, or when a step gains less than `tolerance` nats per clip."""
        self.max_iterations = max_iterations
        self.tolerance = tolerance

    def fit(self, vectors: np.ndarray, speakers: np.ndarray) -> TwoCovariance:
        """Expectation maximisation on vectors `[N, D]` of speakers `[N]`, from moment estimates.

        Raises:
            ValueError: fewer than two speakers; `N - S < D`, so that the within-speaker covariance is singular; a vector is
                not finite; vectors of a speaker are equal.
        """
        data = _Statistics.of(vectors, speakers)
        size = data.means.shape[1]
        if data.freedom < size:
            raise ValueError(f"{size} dimensions need as many clips beyond one per speaker; there are {data.freedom}.")
        self._start(data)
        self.log_likelihoods = [self._log_likelihood(data)]
        for _ in range(self.max_iterations):
            self._step(data)
            self.log_likelihoods.append(self._log_likelihood(data))
            if self.log_likelihoods[-1] - self.log_likelihoods[-2] < self.tolerance * data.sizes.sum():
                break
        return self

    def llr(self, means: np.ndarray, sizes: np.ndarray, tests: np.ndarray) -> np.ndarray:
        """Log-likelihood ratios `[M, N]` in nats: test vector and enrolment vectors of one speaker, or of two.

        The enrolment vectors give the speaker's posterior `N(m, V)`, and a test vector of that speaker is `N(m, V + within)`;
        of another one, `N(mean, between + within)`. The posterior needs no more than their mean and number. All is diagonal in
        one basis, so the scores of all pairs are one matrix product.

        Args:
            means: of the enrolment vectors of each speaker, `[M, D]`.
            sizes: how many they are, `[M]`.
            tests: `[N, D]`.
        """
        enrolled, tested = (means - self.mean) @ self._basis, (tests - self.mean) @ self._basis
        scores = np.empty((len(enrolled), len(tested)))
        variance_of_others = 1 + self._ratios
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            shrink = size * self._ratios / (1 + size * self._ratios)
            posterior, variance = shrink * enrolled[rows], 1 + self._ratios / (1 + size * self._ratios)
            of_enrolment = -0.5 * (posterior**2 @ (1 / variance) + np.log(variance / variance_of_others).sum())
            of_test = 0.5 * tested**2 @ (1 / variance_of_others - 1 / variance)
            scores[rows] = (posterior / variance) @ tested.T + of_enrolment[:, None] + of_test
        return scores

    def _start(self, data: _Statistics) -> None:
        # Unbiased within-speaker covariance; spread of the speaker means less what clips add to it, kept above zero.
        within = data.scatter / data.freedom
        self._set(data.means.mean(axis=0), np.atleast_2d(np.cov(data.means, rowvar=False)), within)
        ratios = np.maximum(self._ratios - np.mean(1 / data.sizes), SMALLEST_RATIO)
        back = within @ self._basis
        self._set(self.mean, back * ratios @ back.T, within)

    def _set(self, mean: np.ndarray, between: np.ndarray, within: np.ndarray) -> None:
        """The parameters, and a basis in which `within` is the identity and `between` has the diagonal `_ratios` `[D]`."""
        self.mean, self.between, self.within = mean, (between + between.T) / 2, (within + within.T) / 2
        try:
            ratios, self._basis = linalg.eigh(self.between, self.within)
        except linalg.LinAlgError as error:
            raise ValueError("The clips of each training speaker are alike in some direction; PLDA needs a spread.") from error
        self._ratios = np.maximum(ratios, 0)

    def _step(self, data: _Statistics) -> None:
        """One step of EM, in the basis; the posterior of each speaker there has a diagonal covariance."""
        sizes, ratios = data.sizes[:, None], self._ratios
        centred = (data.means - self.mean) @ self._basis
        posterior, variance = sizes * ratios / (1 + sizes * ratios) * centred, ratios / (1 + sizes * ratios)
        rest = centred - posterior
        scatter = self._basis.T @ data.scatter @ self._basis + (sizes * rest).T @ rest
        within = (scatter + np.diag((sizes * variance).sum(axis=0))) / sizes.sum()
        between = np.cov(posterior, rowvar=False, bias=True) + np.diag(variance.mean(axis=0))
        back = self.within @ self._basis  # its transpose undoes the basis
        self._set(self.mean + back @ posterior.mean(axis=0), back @ between @ back.T, back @ within @ back.T)

    def _log_likelihood(self, data: _Statistics) -> float:
        num_clips = data.sizes.sum()
        total = 1 + data.sizes[:, None] * self._ratios
        centred = (data.means - self.mean) @ self._basis
        quadratic = (data.sizes[:, None] * centred**2 / total).sum() + np.sum(self._basis * (data.scatter @ self._basis))
        normaliser = np.log(total).sum() + num_clips * len(self.mean) * np.log(2 * np.pi)
        return float(num_clips * np.linalg.slogdet(self._basis)[1] - 0.5 * (quadratic + normaliser))


class PLDA:
    """Centring, LDA, length normalisation, then the two-covariance model: the chain of the Kaldi CN-Celeb recipe.

    Length normalisation: Garcia-Romero and Espy-Wilson, "Analysis of i-vector length normalization in speaker recognition
    systems", Interspeech 2011. What the training clips do not determine is regularised: LDA shrinks the within-speaker
    covariance, and refuses a size that speakers or clips are too few for.

    Attributes after `fit`:
        lda: the projection.
        model: the two-covariance model of projected, normalised clips.
    """

    def __init__(self, lda_size: int = 150, shrinkage: float | None = None):
        """
        Args:
            lda_size: `D`, at least 2, as length normalisation leaves nothing but a sign of one dimension.
            shrinkage: as in `fit_lda`.
        """
        self.lda_size = lda_size
        self.shrinkage = shrinkage
        self.model = TwoCovariance()

    def fit(self, embeddings: np.ndarray, speakers: np.ndarray, lda: SpeakerLDA | None = None) -> PLDA:
        """Fit to clips `[N, E]` of speakers `[N]`.

        Args:
            lda: of the same clips, where several sizes are tried.

        Raises:
            ValueError: as `fit_lda` and `TwoCovariance.fit`, or `lda_size` is out of reach.
        """
        checked_speakers(embeddings, speakers)
        largest = largest_lda_size(embeddings, speakers)
        if not 2 <= self.lda_size <= largest:
            shape, num_speakers = np.shape(embeddings), len(np.unique(speakers))
            limits = f"allow 2 to {largest}" if largest >= 2 else "are too few for PLDA"
            raise ValueError(
                f"lda_size is {self.lda_size}; {shape[0]} clips of {num_speakers} speakers in {shape[1]} dimensions {limits}."
            )
        self.lda = lda or fit_lda(embeddings, speakers, self.shrinkage)
        self.model.fit(self.project(embeddings), speakers)
        return self

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Centred, projected embeddings of length `sqrt(D)`, `[N, D]`."""
        projected = self.lda.project(embeddings, self.lda_size)
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        return projected * (np.sqrt(self.lda_size) / np.maximum(lengths, np.finfo(np.float64).tiny))

    def score(self, enrolments: Sequence[np.ndarray], tests: np.ndarray) -> np.ndarray:
        """Log-likelihood ratios `[M, N]` in nats, above 0 where one speaker is likelier.

        Args:
            enrolments: embeddings of each enrolled speaker, `[clips, E]`, one clip or more.
            tests: embeddings of the test clips, `[N, E]`.
        """
        sizes = np.array([len(enrolment) for enrolment in enrolments])
        if not sizes.all():
            raise ValueError(f"Enrolment {int(np.argmin(sizes))} has no clips.")
        projected = self.project(np.concatenate(enrolments))
        means = np.add.reduceat(projected, np.cumsum(sizes) - sizes) / sizes[:, None]
        return self.model.llr(means, sizes, self.project(tests))


def largest_lda_size(embeddings: np.ndarray, speakers: np.ndarray) -> int:
    """The largest size that the clips allow: `min(E, S - 1, N - S)`, the rank of the covariances between and within."""
    num_speakers = len(np.unique(speakers))
    return min(np.shape(embeddings)[1], num_speakers - 1, len(speakers) - num_speakers)


# ---- linear discriminant analysis: the few directions in which speakers differ most ----


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
