"""Result records -> the two forms in which the Hub reads figures: `model-index` of the card and `.eval_results/*.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from wavcse.data.files import write_atomically
from wavcse.eval.metrics import METRICS
from wavcse.eval.results import Result

# The Hub's names for kinds of tasks; it does not define the last two.
TASK_TYPES = {
    "classification": "audio-classification",
    "transcription": "automatic-speech-recognition",
    "verification": "speaker-verification",
    "regression": "audio-regression",
}


@dataclass(frozen=True)
class Figure:
    """One metric of one task: what both forms are made of.

    Attributes:
        task: name of the row of the table.
        value: as in the result file (accuracies and error rates are shares of 1).
        interval: low and high end, or `None`.
        size: of the test split, in words.
        protocols: how the corpora were labelled and split, in words; empty where the manifests do not say.
    """

    task: str
    title: str
    kind: str
    corpus: str
    metric: str
    metric_title: str
    value: float
    interval: Sequence[float] | None
    size: str
    date: str
    protocols: str = ""


def figures_of(records: Sequence[Result]) -> list[Figure]:
    """All metrics of the records that have a value, the primary metric of each record first."""
    return [
        _figure(record, name)
        for record in records
        for name in record.task.metrics
        if record.metrics[name].value is not None  # undefined, as a correlation of constants
    ]


def corpora_of(record: Result) -> list[str]:
    """Names of the corpora that a record was measured on; folders of the manifests where these name none."""
    named = {name for name in record.task.corpus.split(", ") if name}
    return sorted(named or {Path(manifest["path"]).parent.name for manifest in record.manifests} - {""})


def model_index(figures: Sequence[Figure]) -> list[EvalResult]:
    """For `ModelCardData(eval_results=...)`."""
    return [
        EvalResult(
            task_type=TASK_TYPES[figure.kind],
            task_name=figure.title,
            dataset_type=figure.corpus,
            dataset_name=f"{figure.title} on {figure.corpus}" + (f", {figure.protocols}" if figure.protocols else ""),
            dataset_config=figure.task,  # else the client takes the targets of one corpus for one result
            dataset_split="test",
            metric_type=figure.metric,
            metric_name=figure.metric_title,
            metric_value=figure.value,
        )
        for figure in figures
    ]


def write_eval_results(folder: Path, figures: Sequence[Figure]) -> None:
    """Write `.eval_results/<task>.yaml`, one entry each: the task's primary metric."""
    primary = {figure.task: figure for figure in reversed(figures)}
    if primary:
        (folder / ".eval_results").mkdir()
    for task, figure in primary.items():
        entry = EvalResultEntry(
            dataset_id=figure.corpus, task_id=task, value=figure.value, date=figure.date, notes=_notes(figure)
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        write_atomically(folder / ".eval_results" / f"{task}.yaml", text)


def _figure(record: Result, metric: str) -> Figure:
    task, measured = record.task, record.metrics[metric]
    unit, counts = ("trials", record.counts.trials) if task.kind == "verification" else ("clips", record.counts.clips)
    return Figure(
        task=task.name,
        title=task.title,
        kind=task.kind,
        corpus="-".join(corpora_of(record)) or task.name,
        metric=metric,
        metric_title=METRICS[metric].title,
        value=measured.value,
        interval=measured.interval,
        size=f"{counts['test']} test {unit}",
        date=record.date,
        protocols=_protocols(task.protocols),
    )


def _notes(figure: Figure) -> str:
    interval = "" if figure.interval is None else ", 95 % interval {:.4g} to {:.4g}".format(*figure.interval)
    protocols = f", {figure.protocols}" if figure.protocols else ""
    return f"{figure.metric_title}{interval}, {figure.size}{protocols}, frozen embeddings"


def _protocols(names: Sequence[str]) -> str:
    return f"protocol {', '.join(names)}" if names else ""
