"""Probabilistic linear discriminant analysis (PLDA): how much likelier are two sets of clips from one speaker than from two?

Prince and Elder, "Probabilistic linear discriminant analysis for inferences about identity", ICCV 2007, in its two-covariance
form: Brümmer and de Villiers, "The speaker partitioning problem", Odyssey 2010; Sizov, Lee and Kinnunen, "Unifying
probabilistic linear discriminant analysis variants in biometric authentication", S+SSPR 2014. A speaker is a point
`y ~ N(mean, between)`, a clip of that speaker is `x ~ N(y, within)`.

Shapes: `N` clips, `S` speakers, `E` embedding size, `D` size after LDA, `M` enrolled speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from wavcse.eval.lda import SpeakerLDA, checked_speakers, fit_lda, speaker_sums

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
