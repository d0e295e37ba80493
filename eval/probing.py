"""Classification and regression of one encoder on one task: fit, choose on validation, predict the test clips.

Shapes: `N` clips, `E` embedding size, `T` targets of a regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from wavcse.eval.figures import confusion, embedding_map, scatter
from wavcse.eval.metrics import METRICS
from wavcse.eval.objectives import AbsoluteErrorObjective, ClassObjective, ConcordanceObjective, Objective
from wavcse.eval.outcomes import Outcome
from wavcse.eval.probes import LabelledEmbeddings, ProbeRun, ProbeSettings, fit_probe
from wavcse.eval.task import TaskData

CONSTANTS = {"accuracy": "most frequent label", "ccc": "training mean", "mae": "training median"}


@dataclass(frozen=True)
class Probed:
    """The probes of an encoder on a task.

    Args:
        runs: one per seed.
        embeddings: those that were used, `[N, E]`.
        candidate: which of the encoder's vectors validation chose; None where there was one.
    """

    runs: list[ProbeRun]
    embeddings: np.ndarray
    candidate: int | None


def probe_outcomes(
    embeddings: np.ndarray,
    data: TaskData,
    seeds: Sequence[int],
    num_candidates: int = 1,
    device: str | torch.device = "cpu",
    with_map: bool = False,
) -> list[Outcome]:
    """One outcome per target.

    Args:
        embeddings: of the clips of the task, `[N, num_candidates * E]`.
        with_map: add a map of the test embeddings (classification only).
    """
    objective = objective_for(data)
    probed = _fit(embeddings, data, objective, seeds, num_candidates, device)
    return [
        _outcome(target, place, probed, data, objective, seeds, with_map) for place, target in enumerate(data.task.targets)
    ]


def objective_for(data: TaskData) -> Objective:
    """What the probe of a task learns, from its kind and its first metric."""
    if data.task.kind == "classification":
        return ClassObjective(len(data.classes))
    if data.task.metrics[0] == "ccc":
        return ConcordanceObjective(len(data.task.targets), data.task.label_range)
    return AbsoluteErrorObjective(data.values[data.table.rows("train")])


def _fit(
    embeddings: np.ndarray,
    data: TaskData,
    objective: Objective,
    seeds: Sequence[int],
    num_candidates: int,
    device: str | torch.device,
) -> Probed:
    """Fit every seed; of several candidates the one whose first probe is best on validation."""

    def fit(candidate: np.ndarray, seed: int) -> ProbeRun:
        train, validation, test = (data.table.rows(split) for split in ("train", "validation", "test"))
        parts = [LabelledEmbeddings(candidate[rows], data.labels[rows]) for rows in (train, validation)]
        try:
            return fit_probe(*parts, candidate[test], objective, seed, device=device)
        except ValueError as error:
            raise ValueError(f"{data.task.name}: {error}") from error

    candidates = np.split(embeddings, num_candidates, axis=1)
    firsts = [fit(candidate, seeds[0]) for candidate in candidates]
    direction = 1 if objective.greater_is_better else -1
    best = max(range(num_candidates), key=lambda number: direction * firsts[number].validation)
    runs = [firsts[best], *(fit(candidates[best], seed) for seed in seeds[1:])]
    return Probed(runs, candidates[best], best if num_candidates > 1 else None)


def _outcome(
    target: str, place: int, probed: Probed, data: TaskData, objective: Objective, seeds: Sequence[int], with_map: bool
) -> Outcome:
    rows = data.table.rows("test")
    is_regression = data.task.kind == "regression"
    labels = data.labels[rows][:, place] if is_regression else data.labels[rows]
    runs = [run.predictions[:, place] if is_regression else run.predictions for run in probed.runs]
    if is_regression:
        figures = scatter(labels, runs[0], seeds[0])
    else:
        figures = confusion(labels, runs[0], data.classes)
    if with_map and not is_regression:
        figures |= embedding_map(probed.embeddings[rows], data.table.labels[rows], seeds[0])
    unit, groups = resampling_unit(data, rows)
    return Outcome(
        target=target,
        labels=labels,
        runs=runs,
        names={"clip_id": clip_ids(data, rows)},
        groups={"group": groups},
        unit=unit,
        probe=_probe_record(probed, labels, runs, data, objective, seeds),
        figures=figures,
    )


def clip_ids(data: TaskData, rows: np.ndarray) -> np.ndarray:
    """Names of some clips, text `[len(rows)]`."""
    return np.array([data.table.clips[row].clip_id for row in rows], dtype=object)


def resampling_unit(data: TaskData, rows: np.ndarray) -> tuple[str, np.ndarray]:
    """What a bootstrap draws: speakers, or clips where the classes are the speakers or where no speaker is known.

    With speaker identification, drawing speakers would change the task itself (the set of classes) from resample to resample.
    """
    if data.has_known_speakers or not (data.speakers[rows] != "").any():
        return "clip", clip_ids(data, rows)
    return "speaker", data.table.groups[rows]


def _probe_record(
    probed: Probed,
    labels: np.ndarray,
    runs: Sequence[np.ndarray],
    data: TaskData,
    objective: Objective,
    seeds: Sequence[int],
) -> dict:
    if not probed.embeddings.shape[1]:
        return {"kind": CONSTANTS[objective.criterion]}
    chosen = [
        {
            "seed": seed,
            "learning_rate": run.learning_rate,
            "epoch": run.epoch,
            f"validation_{objective.criterion}": run.validation,
            **{name: METRICS[name].compute(labels, predictions) for name in data.task.metrics},
        }
        for seed, run, predictions in zip(seeds, probed.runs, runs)
    ]
    candidate = {} if probed.candidate is None else {"candidate": probed.candidate}
    return {"kind": "linear", "settings": asdict(ProbeSettings()), **candidate, "runs": chosen}
