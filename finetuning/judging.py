"""What a network says of a split, and how good it is: losses, and the figures of every kind of task.

Shapes: `n` clips of a split, `E` size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from wavcse.eval.metrics import METRICS, bootstrap_interval
from wavcse.eval.task import Trials
from wavcse.finetuned_wavcse import FinetunedWavCSE, ReadoutOutput
from wavcse.finetuning.audio import whole_clips
from wavcse.finetuning.labelled_clips import TaskLabels
from wavcse.finetuning.losses import clip_losses
from wavcse.finetuning.streams import targets_of
from wavcse.finetuning.text import greedy_texts
from wavcse.modeling_wavcse import IGNORED_LABEL, number_loss
from wavcse.steps.batches import CropReader, run_groups

JUDGED_SECONDS = 60.0  # of audio that goes through the network together
MOST_COMPARED = 4000  # clips of which all pairs are compared: 8 million


@dataclass
class Judged:
    """What was found of one task on some clips.

    Attributes:
        loss: mean over the labelled clips; NaN without one.
        answers: figure -> (labels, predictions, groups) as its metric takes them; trials for `eer`.
    """

    loss: float
    answers: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def figures(self) -> dict[str, float]:
        """`loss`, and every figure that can be computed."""
        computed = {name: METRICS[name].compute(labels, found) for name, (labels, found, _) in self.answers.items()}
        return {"loss": self.loss, **{name: float(value) for name, value in computed.items()}}

    def records(self, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Figure -> value, 95 % interval over `groups`, direction and unit."""
        found = {}
        for name, (labels, predictions, groups) in self.answers.items():
            metric = METRICS[name]
            found[name] = {
                "value": float(metric.compute(labels, predictions)),
                "interval": bootstrap_interval(metric, labels, [predictions], groups, seed),
                "greater_is_better": metric.greater_is_better,
                "unit": metric.unit,
                "clips": len(labels),
            }
        return found


@torch.inference_mode()
def judged(model: FinetunedWavCSE, tasks: Mapping[str, TaskLabels], reader: CropReader, split: str) -> dict[str, Judged]:
    """Every task's answers to its clips of a split, whole and without masks, by the modules that training runs.

    Nothing is padded, so an answer does not depend on its batch.
    """
    model.eval()
    found = {}
    for first_s in dict.fromkeys(task.first_s for task in tasks.values()):  # of whole clips all tasks are read at once
        some = {name: task for name, task in tasks.items() if task.first_s == first_s}
        rows = {name: _rows(task, split) for name, task in some.items()}
        read = read_clips(model, rows, reader, {name: task.readout_name for name, task in some.items()}, first_s)
        found |= {name: _judged_task(model, task, read[name], split) for name, task in some.items()}
    return {name: found[name] for name in tasks}


@torch.inference_mode()
def read_clips(
    model: FinetunedWavCSE,
    rows_of: Mapping[str, np.ndarray],
    reader: CropReader,
    readouts: Mapping[str, str] | None = None,
    first_s: float | None = None,
    batch_seconds: float = JUDGED_SECONDS,
) -> dict[str, dict[int, ReadoutOutput]]:
    """What is read of every clip of every task, by its row, on the CPU; a clip of several tasks is heard once.

    Args:
        rows_of: task -> its clips.
        readouts: task -> the readout that answers; `None` = those of the tasks' names.
        first_s: seconds at the beginning of every clip that are heard; `None` = all.
        batch_seconds: of audio that goes through the network together.
    """
    readouts = readouts or {name: name for name in rows_of}
    rows = np.unique(np.concatenate(list(rows_of.values()))).astype(np.int64)
    read: dict[str, dict[int, ReadoutOutput]] = {name: {} for name in rows_of}
    run = partial(model.layers_of_group, tasks=list(dict.fromkeys(readouts.values())))
    for batch in whole_clips(reader, rows, batch_seconds, first_s):
        layers = run_groups(model.upstream, [group.to(model.device) for _, group in batch], run)
        for (places, _), of_group in zip(batch, layers):
            here = [name for name, own in rows_of.items() if np.isin(rows[places], own).any()]
            outputs = model.read(of_group, [readouts[name] for name in here])
            for name in here:
                output = outputs[readouts[name]]
                for number, row in enumerate(rows[places]):
                    vector = None if output.vectors is None else output.vectors[number : number + 1].cpu()
                    read[name][int(row)] = ReadoutOutput(vector, output.logits[number : number + 1].cpu())
    return read


def _rows(task: TaskLabels, split: str) -> np.ndarray:
    """The clips of a split, and those of its trials."""
    own = task.rows(split)
    trials = task.trials_in(split)
    return own if trials is None else np.union1d(own, trials.rows)


def _judged_task(model: FinetunedWavCSE, task: TaskLabels, read: Mapping[int, ReadoutOutput], split: str) -> Judged:
    rows = task.rows(split)
    outputs = [read[int(row)] for row in rows]
    loss = _mean_loss(model, task, outputs, rows, split)
    groups = task.groups[rows]
    if task.settings.kind == "ctc":
        texts = [greedy_texts(one.logits, [one.logits.shape[1]], task.readout["vocabulary"])[0] for one in outputs]
        return Judged(loss, dict.fromkeys(("wer", "cer"), (task.labels[rows], np.array(texts, dtype=object), groups)))
    if task.settings.kind == "numbers":
        numbers = torch.cat([one.logits for one in outputs]).double().numpy() * task.readout["std"] + task.readout["mean"]
        return Judged(loss, dict.fromkeys(("mae", "ccc"), (task.labels[rows].astype(np.float64), numbers, groups)))
    answers = _compared(task, read, rows, split)
    if split not in task.open_splits:
        classes = torch.cat([one.logits for one in outputs]).argmax(dim=1).numpy()
        answers = {**dict.fromkeys(("accuracy", "uar"), (task.targets[rows], classes, groups)), **answers}
    return Judged(loss, answers)


def _mean_loss(
    model: FinetunedWavCSE, task: TaskLabels, outputs: Sequence[ReadoutOutput], rows: np.ndarray, split: str
) -> float:
    targets, loss = targets_of(task, rows.tolist(), split), task.readout["loss"]
    if loss == "ccc":
        logits = torch.cat([one.logits for one in outputs])
        return float(number_loss(logits, targets, "ccc"))
    if loss == "ctc":
        is_there = np.array([one is not None for one in targets], dtype=bool)
    else:
        is_there = (targets != IGNORED_LABEL).numpy()
    losses = clip_losses(model.readouts[task.readout_name], outputs, targets, loss).double().numpy()
    is_there &= np.isfinite(losses)  # of a text that its frames cannot hold the loss is infinite
    return float(losses[is_there].mean()) if is_there.any() else float("nan")


def _compared(
    task: TaskLabels, read: Mapping[int, ReadoutOutput], rows: np.ndarray, split: str
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`eer` by the cosine of vectors, of the trials or of all pairs of clips; nothing where one kind of pairs is missing."""
    trials = task.trials_in(split)
    if trials is not None:
        pairs, labels = _pairs_of(trials, read)
        scores = np.array([one @ other for one, other in pairs])
        speakers = np.stack([trials.pairs[:, 0].astype(str), trials.pairs[:, 1].astype(str)], axis=1)
        return {"eer": (labels, scores, speakers)}
    if len(rows) > MOST_COMPARED:
        rows = rows[:: -(-len(rows) // MOST_COMPARED)]
    vectors = _units(np.stack([read[int(row)].vectors[0].double().numpy() for row in rows]))
    first, second = np.triu_indices(len(rows), k=1)
    labels = (task.labels[rows[first]] == task.labels[rows[second]]).astype(np.int64)
    if len(set(labels.tolist())) < 2:
        return {}
    speakers = task.labels[rows]
    scores = (vectors @ vectors.T)[first, second]
    return {"eer": (labels, scores, np.stack([speakers[first], speakers[second]], axis=1))}


def _pairs_of(trials: Trials, read: Mapping[int, ReadoutOutput]) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Unit vectors of every trial, the mean of an enrolment's clips first, and labels."""
    units = {row: _units(one.vectors.double().numpy())[0] for row, one in read.items()}
    enrolled = [_units(np.mean([units[row] for row in rows], axis=0)[None])[0] for rows in trials.enrolments]
    tested = [units[int(row)] for row in trials.tests]
    return [(enrolled[one], tested[other]) for one, other in trials.pairs], trials.labels


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
