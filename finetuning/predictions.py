"""What networks said of their test clips: kept, so that folds can be read as one set, and two networks on the same clips.

predictions/TASK.parquet    clip_id, group, label, prediction_0: the columns that `wavcse eval` keeps, classes by name

`Folds` below are these tables of all folds of a training, for each of its seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from wavcse.eval.metrics import METRICS, bootstrap_interval, paired_interval
from wavcse.eval.results import predictions_path, write_predictions
from wavcse.finetuning.judging import Judged
from wavcse.finetuning.labelled_clips import LabelledClips

Folds = Sequence[Sequence[pd.DataFrame]]
OF_CLIPS = {"classes": ("accuracy", "uar"), "numbers": ("mae", "ccc"), "ctc": ("wer", "cer")}  # figures that need no pairs


def keep_predictions(by_task: Mapping[str, Judged], labelled: LabelledClips, folder: Path) -> None:
    """Write what was found of the test clips of each task; nothing of a task that is judged by pairs alone."""
    for name, own in by_task.items():
        task = labelled.all[name]
        answers = own.answers.get(OF_CLIPS[task.settings.kind][0])
        if answers is None:
            continue
        labels, found, groups = answers
        if task.settings.kind == "classes":
            classes = np.array(task.readout["labels"], dtype=object)
            labels, found = classes[labels], classes[found]
        clip_ids = [labelled.clips[row].clip_id for row in task.rows("test")]
        table = pd.DataFrame({"clip_id": clip_ids, "group": groups, "label": labels, "prediction_0": found})
        write_predictions(_path(folder, name), table)


def read_folds(runs: Sequence[Sequence[str | Path]], task: str) -> Folds:
    """What a training has kept.

    Args:
        runs: for each seed the run folders of its folds, in the order of the folds.

    Raises:
        ValueError: a run is not finished, or keeps no answers of this task.
    """
    return [[_read(_path(folder, task)) for folder in folders] for folders in runs]


def read_probe(folder: str | Path, rows: Sequence[str], encoder: str) -> Folds:
    """What `wavcse eval` has kept in `folder` of a frozen encoder, which `rows` of its table have tested, one per fold.

    Raises:
        ValueError: a row of this encoder is not there.
    """
    return [[_read(predictions_path(folder, row, encoder)) for row in rows]]


def fold_figures(folds: Folds, kind: str, seed: int = 0) -> dict[str, dict[str, Any]]:
    """A task's figures over the folds, in each of which other speakers are tested.

    Args:
        kind: of the task: "classes", "numbers" or "ctc".
        seed: of the resampling.

    Returns:
        Figure -> `folds` (of each, mean over the seeds) and their `mean`; `pooled`, of all test clips of all folds together,
        and its 95 % `interval` over speakers; `unit`.

    Raises:
        ValueError: the seeds tested other clips.
    """
    found = {}
    for figure in OF_CLIPS[kind]:
        of_folds = [float(np.mean([_value(figure, table) for table in of_seeds])) for of_seeds in zip(*folds)]
        labels, answers, groups = _pooled(figure, folds)
        metric = METRICS[figure]
        found[figure] = {
            "folds": of_folds,
            "mean": float(np.mean(of_folds)),
            "pooled": float(np.mean([metric.compute(labels, own) for own in answers])),
            "interval": bootstrap_interval(metric, labels, answers, groups, seed),
            "unit": metric.unit,
        }
    return found


def paired(mine: Folds, theirs: Folds, figure: str, seed: int = 0) -> dict[str, Any]:
    """The pooled figure of one training minus that of another, and the 95 % interval of this, speakers resampled.

    Raises:
        ValueError: the two tested other clips.
    """
    labels, answers, groups = _pooled(figure, [*mine, *theirs])
    metric = METRICS[figure]
    first, second = answers[: len(mine)], answers[len(mine) :]
    values = [float(np.mean([metric.compute(labels, own) for own in some])) for some in (first, second)]
    interval = paired_interval(metric, labels, first, second, groups, seed)
    return {"difference": values[0] - values[1], "interval": interval, "unit": metric.unit}


def _path(folder: str | Path, task: str) -> Path:
    return Path(folder) / "predictions" / f"{task}.parquet"


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ValueError(f"{path}: is not there; the run is not finished, or keeps no answers of this task.")
    return pd.read_parquet(path)


def _value(figure: str, table: pd.DataFrame) -> float:
    labels, (answers,), _ = _pooled(figure, [[table]])
    return float(METRICS[figure].compute(labels, answers))


def _pooled(figure: str, folds: Folds) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Labels of all clips of all folds, what each seed found, and the speakers; classes as numbers."""
    joined = refuse_other_clips(folds)
    first = joined[0]
    values = [first["label"].to_numpy(), *(one["prediction_0"].to_numpy() for one in joined)]
    if figure in OF_CLIPS["classes"]:
        values = np.split(pd.factorize(np.concatenate(values), sort=True)[0], len(values))
    return values[0], list(values[1:]), first["group"].to_numpy()


def refuse_other_clips(folds: Folds) -> list[pd.DataFrame]:
    """All clips of each seed or training, in one order; ValueError if not all have the same clips and labels."""
    joined = [_joined(tables) for tables in folds]
    for other in joined[1:]:
        if any(other[column].tolist() != joined[0][column].tolist() for column in ("name", "label")):
            raise ValueError("other clips were tested, or under other labels; figures of the same clips can be compared.")
    return joined


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All folds as one table, in the order of the files' names: tables in other folders may list them by other paths."""
    table = pd.concat(tables, ignore_index=True)
    table["name"] = [PurePosixPath(clip_id).name for clip_id in table["clip_id"]]
    return table.sort_values(["name", "clip_id"], kind="stable", ignore_index=True)
