"""Speaker verification of one encoder on one task: PLDA fitted on training speakers, chosen on validation speakers.

Shapes: `N` clips, `E` embedding size, `T` trials.
"""

from __future__ import annotations

import numpy as np

from wavcse.eval.outcomes import Outcome
from wavcse.eval.task import TaskData
from wavcse.eval.verification import CosineBackend, PLDABackend, choose_backend, det_curve, score_trials


def verification_outcome(embeddings: np.ndarray, data: TaskData, num_candidates: int = 1, seed: int = 0) -> Outcome:
    """Scores of all trials by PLDA, which the primary figures are of, and by cosine, whose EER is the figure `eer_cosine`.

    The LDA size, and of several candidates the one to use, has the lowest EER on all pairs of validation clips. An encoder
    without dimensions scores all trials alike: an EER of 50 %.

    Args:
        embeddings: of the clips of the task, `[N, num_candidates * E]`.
        seed: of the choice of validation clips where there are very many.

    Raises:
        ValueError: the training split has too few speakers or clips for PLDA, or validation makes no trials.
    """
    if not embeddings.shape[1]:
        scores = np.zeros(len(data.trials.labels))
        return _outcome(data, scores, scores, {"kind": "constant score"})
    candidates = np.split(embeddings, num_candidates, axis=1)
    backends = [_chosen(candidate, data, seed) for candidate in candidates]
    best = min(range(num_candidates), key=lambda number: backends[number].validation_eer)
    backend, chosen = backends[best], candidates[best]
    cosine = CosineBackend(chosen[data.table.rows("train")])
    record = {
        "kind": "PLDA",
        "lda_size": backend.lda_size,
        "validation_eer": backend.validation_eer,
        "validation_eers": {str(size): error for size, error in backend.validation_eers.items()},
        **({"candidate": best} if num_candidates > 1 else {}),
    }
    return _outcome(data, score_trials(backend, data.trials, chosen), score_trials(cosine, data.trials, chosen), record)


def _chosen(embeddings: np.ndarray, data: TaskData, seed: int) -> PLDABackend:
    train, validation = data.table.rows("train"), data.table.rows("validation")
    speakers = data.table.labels
    try:
        return choose_backend(embeddings[train], speakers[train], embeddings[validation], speakers[validation], seed=seed)
    except ValueError as error:
        raise ValueError(f"task {data.task.name!r}: {error}") from error


def _outcome(data: TaskData, scores: np.ndarray, cosines: np.ndarray, probe: dict) -> Outcome:
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
        probe=probe,
        figures={"det": det_curve(trials.labels, scores)},
        others={"eer_cosine": ("eer", [cosines])},
    )
