"""Files of an evaluation: one JSON per row of the table and encoder, and beside it what was predicted of every test clip.

    results/<row>__<encoder>.json           task, data, encoder, figures, counts, choices, hashes, versions
    predictions/<row>__<encoder>.parquet    clip_id, group, label, prediction_0 .. (one per seed); of a verification task
                                            enrolment, test, group_a, group_b, label, prediction_0 (a score)

`group` is what a bootstrap draws: the speaker, or the clip itself. With the predictions, encoders can be compared afterwards.
"""

from __future__ import annotations

import math
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from wavcse.data import SPLITS
from wavcse.data.files import digest_of, kept_json, read_json, replacing, shown_path, write_json
from wavcse.eval.encoder import Encoder, encoder_record
from wavcse.eval.metrics import METRICS, NUM_RESAMPLES
from wavcse.eval.outcome import Fit, Intervals, Measured, Outcome
from wavcse.eval.probe import ProbeSettings
from wavcse.eval.task import TaskData
from wavcse.eval.verification import LDA_SIZES
from wavcse.settings.command import REFUSED

LIBRARIES = ("wavcse", "torch", "transformers", "numpy", "scikit-learn")
UNITS = ("percent", "years", "plain")

Part = TypeVar("Part")


@dataclass(frozen=True)
class EvalSettings:
    """What changes the figures, apart from encoders and tasks.

    Args:
        seeds: one probe each; the figures are their mean, the intervals are about speakers (or clips), not seeds.
        note: shown under every table, for example that an upstream has random weights.
    """

    seeds: tuple[int, ...] = (0,)
    note: str = ""


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
        found = {name: _part(Measured, figure, f"metrics.{name}") for name, figure in read.metrics.items()}
        read = replace(read, metrics=found)
        read._check()
        return read

    def _check(self) -> None:
        if not isinstance(self.encoder, Mapping) or "embedding_size" not in self.encoder:
            raise ValueError("lacks encoder.embedding_size")
        for what, name in (("task", self.task.name), ("encoder", self.encoder.get("name"))):  # they name pictures too
            if not re.fullmatch(r"[\w.-]+", str(name)):
                raise ValueError(f"the {what}'s name must be of letters, digits and . _ -")
        for name in self.task.metrics:
            if not isinstance(self.metrics[name].value, int | float | None):
                raise ValueError(f"has no figure for the metric {name!r}")
            if self.metrics[name].unit not in UNITS:
                raise ValueError(f"{name!r} lacks its unit")
        value = self.metrics[self.primary].value
        if value is None or not math.isfinite(value):
            raise ValueError(f"{self.primary!r} is no finite number")

    def with_texts(self, change: Callable[[Any], Any]) -> Result:
        """The result as `change`, which is given it in JSON, would have its texts shown."""
        return Result.from_json(change(self.to_json()))


def _part(kind: type[Part], record: Any, name: str) -> Part:
    """A dataclass from a mapping in JSON; ValueError if it is none, or lacks a field. Unknown fields are of no account."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{name or 'it'} is no mapping")
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


def result_key(encoder: Encoder, data: TaskData, settings: EvalSettings, with_map: bool) -> str:
    """Hash of everything that a record depends on: task, bytes of manifests and trials, audio files, encoder, settings."""
    task = {name: value for name, value in asdict(data.task).items() if name != "benchmark"}
    described = {
        "task": task,
        "manifests": [(manifest.sha256, manifest.split_column) for manifest in data.manifests],
        "trials": data.trials_sha256,
        "audio": data.audio_stamp,
        "encoder": encoder_record(encoder),
        "settings": asdict(settings),
        "probe": asdict(ProbeSettings()),
        "lda_sizes": LDA_SIZES,
        "resamples": NUM_RESAMPLES,
        "with_map": with_map,
        "wavcse": version("wavcse"),
    }
    return digest_of(described)


def describe(
    outcome: Outcome, encoder: Encoder, data: TaskData, settings: EvalSettings, skipped_clips: int, seconds: dict, key: str
) -> Result:
    """The result of one row of the table and encoder, made now; the last three are what is known of the run only."""
    task = TaskRecord(
        name=data.task.row_name(outcome.target),
        task=data.task.family,
        title=data.task.row_title(outcome.target),
        kind=data.task.kind,
        target=outcome.target,
        classes=data.classes,
        metrics=list(data.task.metrics),
        split_columns=list(data.task.split_columns),
        disjoint_by=data.task.disjoint_by,
        note=data.task.note,
        corpus=data.corpus,
        protocols=sorted({manifest.protocol for manifest in data.manifests} - {""}),
        benchmark=data.task.benchmark.record(outcome.target),
    )
    return Result(
        task=task,
        encoder=encoder_record(encoder),
        metrics=outcome.measured(data.task.metrics, settings.seeds[0]),
        interval=outcome.intervals(settings.seeds[0]),
        counts=_counts(data),
        probe=outcome.probe,
        figures=outcome.figures,
        manifests=[{**asdict(manifest), "path": shown_path(manifest.path)} for manifest in data.manifests],
        trials_sha256=data.trials_sha256 or None,
        note=settings.note,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        skipped_clips=skipped_clips,
        seconds=seconds,
        key=key,
    )


def _counts(data: TaskData) -> Counts:
    table = data.table
    rows = {split: table.rows(split) for split in SPLITS}
    counts = Counts(
        clips={split: len(of_split) for split, of_split in rows.items()},
        speakers={split: len(set(data.speakers[of_split]) - {""}) for split, of_split in rows.items()},
    )
    if data.task.kind == "classification":
        counts = replace(counts, classes={split: dict(sorted(Counter(table.labels[r]).items())) for split, r in rows.items()})
    if data.trials is not None:
        num_targets, num_trials = int(np.sum(data.trials.labels)), len(data.trials.labels)
        counts = replace(
            counts,
            trials={"test": num_trials, "same": num_targets, "different": num_trials - num_targets},
            enrolments={"test": len(data.trials.enrolments)},
        )
    return counts


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
        raise ValueError(f"{path}: {error}; evaluate anew or remove it.") from error


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
