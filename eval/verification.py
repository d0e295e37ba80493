"""Speaker verification of one encoder: PLDA fitted on training speakers, chosen on validation speakers, trials scored.

Shapes: `N` clips, `E` embedding size, `M` enrolled speakers, `T` trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from wavcse.eval.metrics.verification import eer, error_rates
from wavcse.eval.plda import PLDA, largest_lda_size
from wavcse.eval.results import Fit, Outcome
from wavcse.eval.task import TaskData, Trials

COSINES = ("eer_cosine", "eer_cosine_raw")  # with the mean of the training clips taken off, and of embeddings as they are


def verification_outcomes(
    embeddings: np.ndarray,
    data: TaskData,
    seeds: Sequence[int] = (0,),
    num_candidates: int = 1,
    device: str | torch.device = "cpu",
    with_map: bool = False,
) -> list[Outcome]:
    """Scores of all trials by PLDA, which the primary figures are of, and by cosine, whose EERs are the figures of `COSINES`.

    The LDA size, and of several candidates the one to use, has the lowest EER on all pairs of validation clips. An encoder
    without dimensions scores all trials alike: an EER of 50 %.

    Args:
        embeddings: of the clips of the task, `[N, num_candidates * E]`.
        seeds: the first is that of the choice of validation clips where there are very many.
        device, with_map: of no account here.

    Raises:
        ValueError: the training split has too few speakers or clips for PLDA, or validation makes no trials.
    """
    if not embeddings.shape[1]:
        scores = np.zeros(len(data.trials.labels))
        return [_outcome(data, scores, dict.fromkeys(COSINES, scores), Fit(kind="constant score"))]
    candidates = np.split(embeddings, num_candidates, axis=1)
    backends = [_chosen(candidate, data, seeds[0]) for candidate in candidates]
    best = min(range(num_candidates), key=lambda number: backends[number].validation_eer)
    backend, chosen = backends[best], candidates[best]
    cosines = dict(zip(COSINES, (CosineBackend(chosen[data.table.rows("train")]), CosineBackend())))
    fit = Fit(
        kind="PLDA",
        lda_size=backend.lda_size,
        validation_eer=backend.validation_eer,
        validation_eers={str(size): error for size, error in backend.validation_eers.items()},
        candidate=best if num_candidates > 1 else None,
    )
    scores = {name: score_trials(cosine, data.trials, chosen) for name, cosine in cosines.items()}
    return [_outcome(data, score_trials(backend, data.trials, chosen), scores, fit)]


def _chosen(embeddings: np.ndarray, data: TaskData, seed: int) -> PLDABackend:
    train, validation = data.table.rows("train"), data.table.rows("validation")
    speakers = data.table.labels
    try:
        return choose_backend(embeddings[train], speakers[train], embeddings[validation], speakers[validation], seed=seed)
    except ValueError as error:
        raise ValueError(f"task {data.task.name!r}: {error}") from error


def _outcome(data: TaskData, scores: np.ndarray, cosines: Mapping[str, np.ndarray], fit: Fit) -> Outcome:
    trials, clips = data.trials, data.table.clips
    enrolment_names = np.array(trials.enrolment_names, dtype=object)
    test_names = np.array([clips[row].clip_id for row in trials.tests], dtype=object)
    enrolled, tested = trials.speakers(data.table.labels)
    return Outcome(
        target=data.task.targets[0],
        labels=trials.labels,
        runs=[scores],
        names={"enrolment": enrolment_names[trials.pairs[:, 0]], "test": test_names[trials.pairs[:, 1]]},
        groups={"group_a": enrolled, "group_b": tested},
        unit="speaker",
        probe=fit,
        figures={"det": det_curve(trials.labels, scores)},
        others={name: ("eer", [own]) for name, own in cosines.items()},
    )


# ---- backends that score trials, and the choice among them ----


LDA_SIZES = (25, 50, 100, 150, 250)  # around the 150 of the Kaldi CN-Celeb recipe
MAX_VALIDATION_CLIPS = 2000  # two million pairs
MAX_SCORES = 20_000_000  # that are held at a time, 160 MB


class Backend(Protocol):
    """What turns embeddings into scores, higher for more alike."""

    name: str

    def score(self, enrolments: Sequence[np.ndarray], tests: np.ndarray) -> np.ndarray:
        """Scores `[M, N]` of enrolled speakers (embeddings `[clips, E]` each) and test clips `[N, E]`."""
        ...


@dataclass(frozen=True)
class PLDABackend:
    """PLDA of the size that validation chose.

    Attributes:
        validation_eers: equal error rate of every size that was tried.
    """

    plda: PLDA
    validation_eers: dict[int, float]
    name: str = field(default="plda", init=False)

    @property
    def lda_size(self) -> int:
        """The chosen size."""
        return self.plda.lda_size

    @property
    def validation_eer(self) -> float:
        """Equal error rate of the chosen size."""
        return self.validation_eers[self.lda_size]

    def score(self, enrolments: Sequence[np.ndarray], tests: np.ndarray) -> np.ndarray:
        """Log-likelihood ratios `[M, N]`, as `PLDA.score`."""
        return self.plda.score(enrolments, tests)


class CosineBackend:
    """Cosine between embeddings; an enrolled speaker is the mean of the clips' vectors of length 1.

    Args:
        train_embeddings: `[N, E]`, whose mean is taken off every embedding; without them embeddings stay as they are.
    """

    name = "cosine"

    def __init__(self, train_embeddings: np.ndarray | None = None):
        self.mean = np.zeros(1) if train_embeddings is None else np.mean(train_embeddings, axis=0, dtype=np.float64)

    def score(self, enrolments: Sequence[np.ndarray], tests: np.ndarray) -> np.ndarray:
        """Cosines `[M, N]`; 0 where a vector has no direction."""
        speakers = np.stack([_unit(enrolment - self.mean).mean(axis=0) for enrolment in enrolments])
        return _unit(speakers) @ _unit(tests - self.mean).T


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)


def choose_backend(
    train_embeddings: np.ndarray,
    train_speakers: np.ndarray,
    validation_embeddings: np.ndarray,
    validation_speakers: np.ndarray,
    lda_sizes: Sequence[int] = LDA_SIZES,
    seed: int = 0,
) -> PLDABackend:
    """PLDA fitted to the training clips, with the LDA size of the lowest equal error rate on validation.

    Sizes beyond `largest_lda_size` are replaced by it; of sizes with equal errors the smallest is taken.

    Args:
        seed: of the choice of validation clips where there are more than `MAX_VALIDATION_CLIPS`.

    Raises:
        ValueError: as `PLDA.fit`; the validation clips make no trials of the same speaker, or none of different ones.
    """
    largest = largest_lda_size(train_embeddings, train_speakers)
    lda, candidates = None, {}
    for size in sorted({min(size, largest) for size in lda_sizes}):
        plda = PLDA(size)
        plda.fit(train_embeddings, train_speakers, lda)
        lda = plda.lda
        candidates[size] = plda
    rates = {
        size: validation_eer(PLDABackend(plda, {}), validation_embeddings, validation_speakers, seed)
        for size, plda in candidates.items()
    }
    return PLDABackend(candidates[min(rates, key=rates.get)], rates)


def validation_eer(backend: Backend, embeddings: np.ndarray, speakers: np.ndarray, seed: int = 0) -> float:
    """Equal error rate on all pairs of clips `[N, E]` of speakers `[N]`.

    Of more than `MAX_VALIDATION_CLIPS` clips, as many are drawn, two of every speaker in turn.

    Raises:
        ValueError: no pair is of one speaker, or none of two.
    """
    speakers = np.asarray(speakers)
    rows = _drawn_clips(speakers, MAX_VALIDATION_CLIPS, seed)
    own = np.asarray(embeddings)[rows]
    first, second = np.triu_indices(len(rows), k=1)
    labels = (speakers[rows][first] == speakers[rows][second]).astype(np.int64)
    if len(set(labels)) < 2:
        raise ValueError("Validation needs two speakers, one of them with two clips, for pairs of one and of two speakers.")
    return eer(labels, backend.score(list(own[:, None]), own)[first, second])


def _drawn_clips(speakers: np.ndarray, limit: int, seed: int) -> np.ndarray:
    if len(speakers) <= limit:
        return np.arange(len(speakers))
    shuffled = pd.Series(speakers).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled, sort=False).cumcount() // 2  # first two clips of each speaker, next two, ...
    order = np.lexsort([np.arange(len(turn)), pd.factorize(shuffled)[0], turn])
    return np.sort(shuffled.index.to_numpy()[order[:limit]])


def score_trials(backend: Backend, trials: Trials, embeddings: np.ndarray) -> np.ndarray:
    """Score of every trial, `[T]`, from the embeddings of the table of clips, `[N, E]`."""
    scores = np.empty(len(trials.pairs))
    order = np.argsort(trials.pairs[:, 0], kind="stable")
    step = max(1, MAX_SCORES // len(trials.tests))
    for start in range(0, len(trials.enrolments), step):
        first, last = np.searchsorted(trials.pairs[order, 0], [start, start + step])
        own = order[first:last]
        tested, place = np.unique(trials.pairs[own, 1], return_inverse=True)
        enrolled = [embeddings[rows] for rows in trials.enrolments[start : start + step]]
        block = backend.score(enrolled, embeddings[trials.tests[tested]])
        scores[own] = block[trials.pairs[own, 0] - start, place]
    return scores


def det_curve(labels: np.ndarray, scores: np.ndarray, max_points: int = 200) -> dict[str, list[float]]:
    """Detection error trade-off: {"false_acceptance": [...], "false_rejection": [...]}, from the highest threshold down.

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997. Of more than `max_points`
    operating points, those stay that are evenly spaced along the curve as it is drawn, on axes of normal deviates.
    """
    false_acceptance, false_rejection = error_rates(labels, scores)
    smallest = 0.5 / len(labels)  # rates of 0 and 1 have no normal deviate
    deviates = norm.ppf(np.clip([false_acceptance, false_rejection], smallest, 1 - smallest))
    way = np.append(0, np.cumsum(np.abs(np.diff(deviates)).sum(axis=0)))
    if len(way) > max_points:
        kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], max_points)).clip(max=len(way) - 1))
        false_acceptance, false_rejection = false_acceptance[kept], false_rejection[kept]
    return {"false_acceptance": false_acceptance.tolist(), "false_rejection": false_rejection.tolist()}
