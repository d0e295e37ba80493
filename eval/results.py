"""What is found with one encoder in one row of the table: an `Outcome` of arrays, the `Result` that is kept, and its files.

    results/<row>__<encoder>.json           task, data, encoder, figures, counts, choices, hashes, versions
    predictions/<row>__<encoder>.parquet    clip_id, group, label, prediction_0 .. (one per seed); of a verification task
                                            enrolment, test, group_a, group_b, label, prediction_0 (a score)

`group` is what a bootstrap draws: the speaker, or the clip itself. With the predictions, encoders can be compared afterwards.

Shapes: `N` test clips or trials, `E` embedding size, `T` targets of a regression.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from wavcse.data.files import kept_json, read_json, replacing, write_json
from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, UNITS, bootstrap_interval
from wavcse.settings.command import REFUSED

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What a result says of its task; `name` and `title` are those of the row, `task` the name in `TASKS`."""

    name: str
    task: str
    title: str
    kind: str
    target: str
    classes: Sequence[str]
    metrics: Sequence[str]
    split_columns: Sequence[str] | None = None
    disjoint_by: str | None
    note: str
    corpus: str
    protocols: Sequence[str]
    benchmark: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """A figure of an encoder.

    Args:
        value: mean of the runs; None (NaN in files of earlier versions) where it is undefined, as a correlation of constants.
        interval: low and high end of 95 %; None where there is none.
        unit: one of `UNITS`: "percent" (a share of 1), "years" or "plain".
    """

    value: float | None
    interval: Sequence[float] | None
    greater_is_better: bool
    unit: str


@dataclass(frozen=True)
class Intervals:
    """How the intervals of an outcome were made: `unit` is what was drawn ("speaker" or "clip"), `units` how many of them."""

    method: str
    confidence: float
    resamples: int
    seed: int
    unit: str
    units: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was fitted on an encoder's embeddings, and what validation chose.

    Args:
        kind: "linear", "PLDA", "fine-tuned", or the constant answer of an encoder without dimensions.
        settings: of the probe, or of the fine-tuning.
        lda_size, validation_eer, validation_eers: of PLDA: the size chosen, its equal error rate, that of every size tried.
        candidate: which of the encoder's vectors was chosen, where it offers several.
        short_train_clips: training clips of a fine-tuning that are too short for a crop.
        runs: one per seed: what was chosen, and its own figures.
    """

    kind: str
    settings: Mapping[str, Any] | None = None
    lda_size: int | None = None
    validation_eer: float | None = None
    validation_eers: Mapping[str, float] | None = None
    candidate: int | None = None
    short_train_clips: int | None = None
    runs: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Counts:
    """Split -> number of clips and of speakers; of a classification also split -> class -> clips; of a verification trials."""

    clips: Mapping[str, int]
    speakers: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]] | None = None
    trials: Mapping[str, int] | None = None
    enrolments: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was found with one encoder in one row of the table: a result file.

    Args:
        encoder: name, `embedding_size`, and what else it says of itself (`encoder_record`).
        figures: data of pictures.
        manifests: path, hash, split column and protocol of each.
        first_s: seconds from the start of every clip that were embedded; None where all of it was.
        seconds: what took how long.
        key: see `result_key`; None in a file that was made otherwise.
    """

    task: TaskRecord
    encoder: Mapping[str, Any]
    metrics: Mapping[str, Measured]
    interval: Intervals
    counts: Counts
    probe: Fit
    figures: Mapping[str, Any]
    manifests: Sequence[Mapping[str, str]]
    trials_sha256: str | None = None
    first_s: float | None = None
    note: str
    versions: Mapping[str, str]
    date: str
    skipped_clips: int
    seconds: Mapping[str, float]
    key: str | None = None

    @property
    def primary(self) -> str:
        """The metric that decides which encoder is best."""
        return self.task.metrics[0]

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it; what is None because it does not apply is left out."""
        return _as_json(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Result:
        """A result from a file that anyone may have touched: what tables and reports read of it is there and of its kind.

        Raises:
            ValueError: something is missing or wrong; the message names it.
        """
        parts = {"task": TaskRecord, "interval": Intervals, "counts": Counts, "probe": Fit}
        read = _part(cls, record, "")
        read = replace(read, **{name: _part(kind, getattr(read, name), name) for name, kind in parts.items()})
        if not isinstance(read.metrics, Mapping) or not read.task.metrics:
            raise ValueError("lacks names of metrics")
        lacking = [name for name in read.task.metrics if name not in METRICS or not read.metrics.get(name)]
        if lacking:
            raise ValueError(f"has no figure for the metric {lacking[0]!r}")
        read = replace(read, metrics={name: _part(Measured, own, f"metrics.{name}") for name, own in read.metrics.items()})
        if not isinstance(read.encoder, Mapping) or "embedding_size" not in read.encoder:
            raise ValueError("lacks encoder.embedding_size")
        for what, name in (("task", read.task.name), ("encoder", read.encoder.get("name"))):  # they name pictures too
            if not re.fullmatch(r"[\w.-]+", str(name)):
                raise ValueError(f"the {what}'s name must be of letters, digits and . _ -")
        for name in read.task.metrics:
            if not isinstance(read.metrics[name].value, int | float | None):
                raise ValueError(f"has no figure for the metric {name!r}")
            if read.metrics[name].unit not in UNITS:
                raise ValueError(f"{name!r} lacks its unit")
        value = read.metrics[read.primary].value
        if value is None or not math.isfinite(value):
            raise ValueError(f"{read.primary!r} is not a finite number")
        return read

    def with_texts(self, change: Callable[[Any], Any]) -> Result:
        """The result as `change`, which is given it in JSON, would have its texts shown."""
        return Result.from_json(change(self.to_json()))


def _part(kind: type[Part], record: Any, name: str) -> Part:
    """A dataclass from a mapping in JSON; ValueError if it is none, or lacks a field. Unknown fields are of no account."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{name or 'it'} is not a mapping")
    needed = [own.name for own in fields(kind) if own.default is MISSING and own.default_factory is MISSING]
    lacking = [f"{name}.{field}".strip(".") for field in needed if field not in record]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    return kind(**{own.name: record[own.name] for own in fields(kind) if own.name in record})


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return {
            own.name: _as_json(getattr(value, own.name))
            for own in fields(value)
            if own.default is not None or getattr(value, own.name) is not None
        }
    if isinstance(value, Mapping):
        return {name: _as_json(own) for name, own in value.items()}
    return value


# ---- what is found, before it is a result ----


@dataclass(frozen=True)
class Outcome:
    """One row of the table for one encoder.

    Args:
        target: label column, or column of the speaker that trials are about.
        labels: true class indices, numbers, or 1/0 of trials, `[N]`.
        runs: predictions `[N]` of one or more seeds; of trials their scores.
        names: columns that say which clip or trial each entry is, `[N]` each.
        groups: column name -> what a bootstrap draws, `[N]`: one column, or two for the speakers of a trial.
        unit: what the groups are: "speaker" or "clip".
        probe: what was fitted and chosen.
        figures: data of pictures, see below.
        others: further figures under names of their own: name -> (metric, runs).
    """

    target: str
    labels: np.ndarray
    runs: Sequence[np.ndarray]
    names: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    unit: str
    probe: Fit
    figures: dict = field(default_factory=dict)
    others: Mapping[str, tuple[str, Sequence[np.ndarray]]] = field(default_factory=dict)

    def measured(self, metrics: Sequence[str], seed: int) -> tuple[dict[str, Measured], Intervals]:
        """The metrics, and `others`, by name; and how their intervals were made, from how many units."""
        columns = list(self.groups.values())  # as numbers [N] or [N, 2], one numbering for all, in the order of the names
        units = pd.factorize(np.concatenate(columns), sort=True)[0].reshape(len(columns), -1).T
        units = units if len(columns) > 1 else units[:, 0]
        found = {}
        for name, (metric_name, runs) in ({name: (name, self.runs) for name in metrics} | dict(self.others)).items():
            metric = METRICS[metric_name]
            value = float(np.mean([metric.compute(self.labels, run) for run in runs]))
            interval = bootstrap_interval(metric, self.labels, runs, units, seed)
            found[name] = Measured(value, interval, metric.greater_is_better, metric.unit)
        return found, Intervals("percentile bootstrap", CONFIDENCE, NUM_RESAMPLES, seed, self.unit, len(np.unique(units)))

    def predictions(self, classes: Sequence[str]) -> pd.DataFrame:
        """The table that is kept: names and groups, label, `prediction_0` ..; classes by name."""
        columns = {"label": self.labels, **{f"prediction_{seed}": run for seed, run in enumerate(self.runs)}}
        if classes:
            columns = {name: np.array(classes, dtype=object)[values] for name, values in columns.items()}
        return pd.DataFrame({**self.names, **self.groups, **columns})


# ---- data of pictures: no more of it than a reader can see ----


MAX_CLASSES = 60
MAX_POINTS = 1000
MAX_MAP_POINTS = 500
PERPLEXITY = 30.0


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> dict:
    """`{"labels", "counts"}` of class indices `[N]`, rows = true; empty where there are more than 60 classes."""
    if len(classes) > MAX_CLASSES:
        return {}
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predictions, labels=np.arange(len(classes)))
    return {"confusion": {"labels": list(classes), "counts": counts.tolist()}}


def scatter(labels: np.ndarray, predictions: np.ndarray, seed: int) -> dict:
    """`{"true", "predicted"}` of numbers `[N]`; of more than a thousand a seeded draw."""
    rows = _some(len(labels), MAX_POINTS, seed)
    return {"scatter": {"true": _rounded(labels[rows]), "predicted": _rounded(predictions[rows])}}


def embedding_map(embeddings: np.ndarray, labels: Sequence[str], seed: int) -> dict:
    """`{"x", "y", "label"}`: embeddings `[N, E]` of at most 500 clips in the plane.

    t-SNE (van der Maaten and Hinton, JMLR 9 (2008)): neighbours stay neighbours, distances between groups mean little. Empty
    for fewer than five clips, or an encoder without dimensions.
    """
    from sklearn.manifold import TSNE  # only here: it takes a second to load

    rows = _some(len(embeddings), MAX_MAP_POINTS, seed)
    if len(rows) < 5 or not embeddings.shape[1]:
        return {}
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    start = "pca" if min(len(rows), embeddings.shape[1]) >= 2 else "random"
    x, y = TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(embeddings[rows]).T
    return {"map": {"x": _rounded(x), "y": _rounded(y), "label": [str(labels[row]) for row in rows]}}


def _some(num: int, most: int, seed: int) -> np.ndarray:
    if num <= most:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).choice(num, most, replace=False))


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(np.asarray(values, dtype=np.float64), 4).tolist()


# ---- files ----


def result_path(output_dir: str | Path, row: str, encoder: str) -> Path:
    """Where the record of a row of the table and an encoder lies."""
    return Path(output_dir) / "results" / f"{row}__{encoder}.json"


def predictions_path(output_dir: str | Path, row: str, encoder: str) -> Path:
    """Where the predictions behind a record lie."""
    return Path(output_dir) / "predictions" / f"{row}__{encoder}.parquet"


def write_result(output_dir: str | Path, result: Result) -> Path:
    """Write one result to `output_dir`/results/<row>__<encoder>.json, whole or not at all; an older one is replaced."""
    path = result_path(output_dir, result.task.name, result.encoder["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result.to_json(), indent=2)
    return path


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a table of predictions as Parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd", write_page_checksum=True)


def read_results(output_dir: str | Path) -> list[Result]:
    """All results of a folder.

    Raises:
        ValueError: there are none, or one is not a result file.
    """
    paths = sorted((Path(output_dir) / "results").glob("*__*.json"))
    if not paths:
        raise ValueError(f"{output_dir}: holds no results/*.json. Run `python -m wavcse.eval` first.")
    return [read_result(path) for path in paths]


def read_result(path: Path) -> Result:
    """One result; ValueError if the file is not one, DamagedFile if it has changed since it was written."""
    try:
        record = read_json(path)
    except OSError as error:
        raise ValueError(f"{path}: is not a result file ({type(error).__name__}: {error}).") from error
    try:
        return Result.from_json(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; evaluate again or remove it.") from error


def finished_results(output_dir: str | Path, rows: Sequence[str], encoder: str, key: str) -> list[Result]:
    """The results of an encoder's rows, if all are there with their predictions and were made with `key`; else none.

    A damaged one is set aside.
    """
    paths = [result_path(output_dir, row, encoder) for row in rows]
    needed = [*paths, *(predictions_path(output_dir, row, encoder) for row in rows)]
    if not all(path.exists() for path in needed):
        return []
    for path in paths:
        record = kept_json(path)
        if record is None or record.get("key") != key:
            return []
    return [read_result(path) for path in paths]


if __name__ == "__main__":
    print("This is now: python -m wavcse.eval.report FOLDER --table_only", file=sys.stderr)
    sys.exit(REFUSED)
