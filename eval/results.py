"""Files of an evaluation: one JSON per row of the table and encoder, and beside it what was predicted of every test clip.

    results/<row>__<encoder>.json           task, data, encoder, figures, counts, choices, hashes, versions
    predictions/<row>__<encoder>.parquet    clip_id, group, label, prediction_0 .. (one per seed); of a verification task
                                            enrolment, test, group_a, group_b, label, prediction_0 (a score)

`group` is what a bootstrap draws: the speaker, or the clip itself. With the predictions, encoders can be compared afterwards.
"""

from __future__ import annotations

from wavcse.eval.arguments import parse_report
from wavcse.settings.command import answer_help

if __name__ == "__main__":
    answer_help(parse_report)  # before the imports below, which take seconds

import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.data.files import DamagedFile, digest_of, read_json, replacing, set_aside, shown_path, write_json
from wavcse.data.manifest import SPLITS
from wavcse.eval.encoder import Encoder, encoder_record
from wavcse.eval.metrics import NUM_RESAMPLES
from wavcse.eval.outcome import Outcome
from wavcse.eval.probe import ProbeSettings
from wavcse.eval.task import TaskData
from wavcse.eval.verification import LDA_SIZES

LIBRARIES = ("wavcse", "torch", "transformers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class EvalSettings:
    """What changes the figures, apart from encoders and tasks.

    Args:
        seeds: one probe each; the figures are their mean, the intervals are about speakers (or clips), not seeds.
        note: shown under every table, for example that an upstream has random weights.
    """

    seeds: tuple[int, ...] = (0,)
    note: str = ""


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


def describe(outcome: Outcome, encoder: Encoder, data: TaskData, settings: EvalSettings) -> dict:
    """The record of one row of the table and encoder, without what is known of the run only."""
    return {
        "task": _task(data, outcome.target),
        "encoder": encoder_record(encoder),
        "metrics": outcome.measured(data.task.metrics, settings.seeds[0]),
        "interval": outcome.interval_record(settings.seeds[0]),
        "counts": _counts(data),
        "probe": outcome.probe,
        "figures": outcome.figures,
        "manifests": [{**asdict(manifest), "path": shown_path(manifest.path)} for manifest in data.manifests],
        **({"trials_sha256": data.trials_sha256} if data.trials is not None else {}),
        "note": settings.note,
        **_circumstances(),
    }


def _task(data: TaskData, target: str) -> dict:
    task = data.task
    return {
        "name": task.row_name(target),
        "task": task.family,
        "title": task.row_title(target),
        "kind": task.kind,
        "target": target,
        "classes": data.classes,
        "metrics": list(task.metrics),
        "split_columns": list(task.split_columns),
        "disjoint_by": task.disjoint_by,
        "note": task.note,
        "corpus": data.corpus,
        "protocols": sorted({manifest.protocol for manifest in data.manifests} - {""}),
        "benchmark": task.benchmark.record(target),
    }


def _counts(data: TaskData) -> dict:
    table = data.table
    rows = {split: table.rows(split) for split in SPLITS}
    counts = {
        "clips": {split: len(of_split) for split, of_split in rows.items()},
        "speakers": {split: len(set(data.speakers[of_split]) - {""}) for split, of_split in rows.items()},
    }
    if data.task.kind == "classification":
        counts["classes"] = {split: dict(sorted(Counter(table.labels[r]).items())) for split, r in rows.items()}
    if data.trials is not None:
        num_targets = int(np.sum(data.trials.labels))
        num_trials = len(data.trials.labels)
        counts["trials"] = {"test": num_trials, "same": num_targets, "different": num_trials - num_targets}
        counts["enrolments"] = {"test": len(data.trials.enrolments)}
    return counts


def _circumstances() -> dict:
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {"versions": versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}


# ---- files ----


def result_path(output_dir: str | Path, row: str, encoder: str) -> Path:
    """Where the record of a row of the table and an encoder lies."""
    return Path(output_dir) / "results" / f"{row}__{encoder}.json"


def predictions_path(output_dir: str | Path, row: str, encoder: str) -> Path:
    """Where the predictions behind a record lie."""
    return Path(output_dir) / "predictions" / f"{row}__{encoder}.parquet"


def write_result(output_dir: str | Path, record: Mapping) -> Path:
    """Write one record to `output_dir`/results/<row>__<encoder>.json, whole or not at all; an older one is replaced."""
    path = result_path(output_dir, record["task"]["name"], record["encoder"]["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, indent=2)
    return path


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Write a table of predictions as Parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd", write_page_checksum=True)


def read_results(output_dir: str | Path) -> list[dict]:
    """All records of a folder.

    Raises:
        ValueError: there are none, or one is not a result file.
    """
    paths = sorted((Path(output_dir) / "results").glob("*__*.json"))
    if not paths:
        raise ValueError(f"{output_dir}: holds no results/*.json. Run `python -m wavcse.eval` first.")
    return [read_result(path) for path in paths]


def read_result(path: Path) -> dict:
    """One record; ValueError if the file is not one, DamagedFile if it has changed since it was written."""
    try:
        record = read_json(path)
        record["task"]["name"], record["encoder"]["name"], record["metrics"]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not a result file ({type(error).__name__}: {error}).") from error
    return record


def finished_records(output_dir: str | Path, rows: Sequence[str], encoder: str, key: str) -> list[dict]:
    """The records of an encoder's rows, if all are there with their predictions and were made with `key`; else none.

    A damaged one is set aside.
    """
    paths = [result_path(output_dir, row, encoder) for row in rows]
    needed = [*paths, *(predictions_path(output_dir, row, encoder) for row in rows)]
    if not all(path.exists() for path in needed):
        return []
    records = []
    for path in paths:
        try:
            records.append(read_result(path))
        except DamagedFile as error:
            set_aside(path, error)
            return []
    return records if all(record.get("key") == key for record in records) else []


if __name__ == "__main__":
    # The name that `python -m wavcse.eval.report --table_only` had before.
    from wavcse.eval.report import main

    sys.exit(main([*sys.argv[1:], "--table_only"]))
