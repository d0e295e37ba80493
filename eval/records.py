"""Files of an evaluation: one JSON per row of the table and encoder, and beside it what was predicted of every test clip.

    results/<row>__<encoder>.json           figures, counts, choices, hashes, versions
    predictions/<row>__<encoder>.parquet    clip_id, group, label, prediction_0 .. (one per seed); of a verification task
                                            enrolment, test, group_a, group_b, label, prediction_0 (a score)

`group` is what a bootstrap draws: the speaker, or the clip itself. With the predictions, encoders can be compared afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from wavcse.data.files import DamagedFile, read_json, replacing, set_aside, write_json


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
