"""What transformers' `Trainer` needs beside a model with heads: batches of clips with labels, and figures per task.

Shapes: `B` clips of a batch, `N` clips of an evaluation, `C` classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from wavcse.audio_wavcse import load_waveform
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import IGNORED_LABEL, WavCSEForMultiTask
from wavcse.settings.libraries import optional_library


@dataclass
class LabelledClips:
    """A data collator: rows of a data set -> `input_values`, `attention_mask` and `labels` of `WavCSEForMultiTask`.

    A row is a mapping with a clip, in any form that `WavCSEModel.encode` takes, and a label per task: its text or its index,
    or `None`, "" or -100 where the clip has none; of a regression task its number. `Trainer` needs
    `TrainingArguments(remove_unused_columns=False)`, else it drops these columns.

    Args:
        model: gives the feature extractor and the tasks.
        columns: task -> column of its labels, where that is not called like the task.
        audio_column: column of the clips.
    """

    model: WavCSEForMultiTask
    columns: Mapping[str, str] | None = None
    audio_column: str = "audio"

    def __post_init__(self):
        self.tasks = self.model.config.tasks
        unknown = sorted(set(self.columns or {}) - set(self.tasks))
        if unknown:
            raise ValueError(f"columns names the task {unknown[0]!r}; the model has {', '.join(self.tasks) or 'none'}.")
        self.feature_extractor = WavCSEFeatureExtractor.from_config(self.model.config)
        self.model = None  # not to be sent to every worker that loads clips

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; `labels` is `[B]` of a single task, else task -> `[B]`.

        Raises:
            ValueError: a clip cannot be read, a column is missing or a label is none of its task's.
        """
        rate, limit = self.feature_extractor.sampling_rate, self.feature_extractor.max_duration_s
        clips = [load_waveform(self._cell(row, self.audio_column), rate, f"clip {i}", limit) for i, row in enumerate(rows)]
        labels = {task: self._labels(task, rows) for task in self.tasks}
        inputs = self.feature_extractor(clips, sampling_rate=rate, return_tensors="pt")
        return {**inputs, "labels": labels if len(labels) != 1 else next(iter(labels.values()))}

    def _labels(self, task: str, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        column = (self.columns or {}).get(task, task)
        values = [self._cell(row, column) for row in rows]
        if self.tasks[task]["kind"] == "regression":
            return torch.tensor([math.nan if value is None or value == "" else float(value) for value in values])
        return torch.tensor([label_index(value, task, self.tasks[task]["labels"]) for value in values])

    def _cell(self, row: Mapping[str, Any], column: str) -> Any:
        if column not in row:
            raise ValueError(
                f"The data has no column {column!r}; it has {', '.join(map(str, row))}. Name the columns of clips and labels "
                "(`audio_column`, `columns`), and give Trainer `remove_unused_columns=False`."
            )
        return row[column]


def label_index(value: Any, task: str, labels: Sequence[str]) -> int:
    """Index of a label that is given as text or as its index; -100 for none (`None`, "", NaN or -100).

    Raises:
        ValueError: the task has no such label.
    """
    if value is None or value == "" or value == IGNORED_LABEL or (isinstance(value, float) and math.isnan(value)):
        return IGNORED_LABEL
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    if not isinstance(value, str | float | bool) and 0 <= int(value) < len(labels):
        return int(value)
    raise ValueError(f"{value!r} is no label of the task {task!r}, which has {len(labels)}: {', '.join(labels[:12])}.")


def metrics_per_task(model: WavCSEForMultiTask) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for the tasks of a model.

    Returns:
        What makes of an evaluation's logits, `[N, C]` or task -> `[N, C]`, and labels, `accuracy` and `uar` of a single task;
        of several `TASK_accuracy` and `TASK_uar`, and `accuracy`, the mean over the tasks. A regression task has `ccc` and
        `mae`, in the unit of the labels. A task without a label is left out.

    Raises:
        ImportError: scikit-learn or SciPy is not installed.
    """
    tasks, metrics = model.config.tasks, optional_library("wavcse.eval.metrics", "eval").METRICS

    def of_task(name: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        task = tasks[name]
        is_number = task["kind"] == "regression"
        rows = np.flatnonzero(~np.isnan(labels) if is_number else labels != IGNORED_LABEL)
        if not len(rows):
            return {}
        found = task["mean"] + task["std"] * logits[rows, 0].astype(np.float64) if is_number else logits[rows].argmax(axis=1)
        names = ("ccc", "mae") if is_number else ("accuracy", "uar")
        return {name: metrics[name].compute(labels[rows], found) for name in names}

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        logits, labels = evaluation.predictions, evaluation.label_ids
        if len(tasks) == 1:
            [name] = tasks
            return of_task(name, logits, labels[name] if isinstance(labels, Mapping) else labels)
        own = {name: of_task(name, logits[name], labels[name]) for name in tasks}
        accuracies = [found["accuracy"] for found in own.values() if "accuracy" in found]
        figures = {f"{task}_{name}": value for task, found in own.items() for name, value in found.items()}
        return {**({"accuracy": float(np.mean(accuracies))} if accuracies else {}), **figures}

    return compute_metrics
