"""What networks said of their test clips: kept, so that folds can be read as one set, and two networks on the same clips.

predictions/TASK.parquet    clip_id, group, label, prediction_0: the columns that `wavcse eval` keeps, classes by name
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wavcse.eval.metrics import METRICS, bootstrap_interval, paired_interval
from wavcse.eval.results import write_predictions
from wavcse.finetuning.judging import Judged
from wavcse.finetuning.labelled_clips import LabelledClips

OF_CLIPS = ("accuracy", "uar", "mae", "ccc", "wer", "cer")  # figures of single clips, not of pairs
OF_CLASSES = ("accuracy", "uar")


def keep_predictions(by_task: Mapping[str, Judged], labelled: LabelledClips, folder: Path) -> None:
    """Write what was found of the test clips of each task; nothing of a task that is judged by pairs alone."""
    for name, own in by_task.items():
        answers = next((own.answers[figure] for figure in OF_CLIPS if figure in own.answers), None)
        if answers is None:
            continue
        task = labelled.tasks[name]
        labels, found, groups = answers
        if task.settings.kind == "classes":
            classes = np.array(task.readout["labels"], dtype=object)
            labels, found = classes[labels], classes[found]
        clip_ids = [labelled.clips[row].clip_id for row in task.rows("test")]
        write_predictions(
            _path(folder, name), pd.DataFrame({"clip_id": clip_ids, "group": groups, "label": labels, "prediction_0": found})
        )


def fold_figures(runs: Sequence[Sequence[str | Path]], task: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """A task's figures over the folds, in each of which other speakers are tested.

    Args:
        runs: for each seed of the training the run folders of its folds, in the order of the folds.
        seed: of the resampling.

    Returns:
        Figure -> `folds` (of each, mean over the seeds) and their `mean`; `pooled`, of all test clips of all folds together,
        and its 95 % `interval` over speakers; `unit`. Empty for a task that has no figure of single clips.

    Raises:
        ValueError: a run is not finished, or the seeds tested other clips.
    """
    figures = [figure for figure in OF_CLIPS if figure in _recorded(runs[0][0], task)]
    tables = [[_read(folder, task) for folder in folds] for folds in runs] if figures else []
    found = {}
    for figure in figures:
        of_folds = [float(np.mean([_value(figure, fold) for fold in of_seeds])) for of_seeds in zip(*tables)]
        labels, answers, groups = _pooled(figure, tables)
        metric = METRICS[figure]
        found[figure] = {
            "folds": of_folds,
            "mean": float(np.mean(of_folds)),
            "pooled": float(np.mean([metric.compute(labels, own) for own in answers])),
            "interval": bootstrap_interval(metric, labels, answers, groups, seed),
            "unit": metric.unit,
        }
    return found


def paired(
    runs: Sequence[Sequence[str | Path]], others: Sequence[Sequence[str | Path]], task: str, figure: str, seed: int = 0
) -> dict[str, Any]:
    """The pooled figure of some runs minus that of others, and the 95 % interval of the difference, speakers resampled.

    Args:
        runs, others: as for `fold_figures`.

    Raises:
        ValueError: as for `fold_figures`, or the two tested other clips.
    """
    mine, theirs = ([[_read(folder, task) for folder in folds] for folds in some] for some in (runs, others))
    labels, answers, groups = _pooled(figure, [*mine, *theirs])
    metric = METRICS[figure]
    first, second = answers[: len(mine)], answers[len(mine) :]
    values = [float(np.mean([metric.compute(labels, own) for own in some])) for some in (first, second)]
    return {
        "difference": values[0] - values[1],
        "interval": paired_interval(metric, labels, first, second, groups, seed),
        "unit": metric.unit,
    }


def _path(folder: str | Path, task: str) -> Path:
    return Path(folder) / "predictions" / f"{task}.parquet"


def _recorded(folder: str | Path, task: str) -> Mapping[str, Any]:
    """The figures of a finished run."""
    path = Path(folder) / "results" / "finetuning.json"
    if not path.exists():
        raise ValueError(f"{folder}: is not finished; it has no results/finetuning.json.")
    return json.loads(path.read_text(encoding="utf-8"))["tasks"].get(task, {})


def _read(folder: str | Path, task: str) -> pd.DataFrame:
    path = _path(folder, task)
    if not path.exists():
        raise ValueError(f"{path}: is not there; the run is not finished, or has no such task.")
    return pd.read_parquet(path)


def _value(figure: str, table: pd.DataFrame) -> float:
    labels, (answers,), _ = _pooled(figure, [[table]])
    return float(METRICS[figure].compute(labels, answers))


def _pooled(figure: str, tables: Sequence[Sequence[pd.DataFrame]]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Labels of all clips of all folds, what each seed found, and the speakers; classes as numbers.

    Args:
        tables: for each seed, of each fold.
    """
    joined = [pd.concat(folds, ignore_index=True).sort_values("clip_id", kind="stable") for folds in tables]
    first = joined[0]
    for other in joined[1:]:
        if other["clip_id"].tolist() != first["clip_id"].tolist() or other["label"].tolist() != first["label"].tolist():
            raise ValueError("the runs tested other clips, or other labels; figures of the same clips can be compared.")
    columns = [first["label"], *(one["prediction_0"] for one in joined)]
    values = [column.to_numpy() for column in columns]
    if figure in OF_CLASSES:
        values = np.split(pd.factorize(np.concatenate(values), sort=True)[0], len(values))
    return values[0], list(values[1:]), first["group"].to_numpy()
