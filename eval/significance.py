"""Which encoders cannot be told from the best of a row: paired bootstrap on the predictions that the evaluation kept.

Both encoders meet the same resamples of speakers (or clips), so what is hard about a speaker is hard for both and leaves the
difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.eval.metrics import METRICS, paired_interval
from wavcse.eval.records import predictions_path
from wavcse.eval.rows import Row


@dataclass(frozen=True)
class Comparison:
    """The best encoder of a row beside another.

    Args:
        interval: 95 % of metric(best) - metric(other); None with fewer than two units, or where nothing could be compared.
        obstacle: why nothing could be compared; empty otherwise.
    """

    row: str
    best: str
    other: str
    interval: tuple[float, float] | None
    obstacle: str = ""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval is there and does not hold zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def compare(rows: Sequence[Row], output_dir: str | Path) -> list[Comparison]:
    """The (first) best encoder of every row against each other one.

    Args:
        output_dir: folder of the evaluation; its predictions/ are read.

    Raises:
        ValueError: a file of predictions is not one.
    """
    return [comparison for row in rows for comparison in _compare_row(row, output_dir)]


def _compare_row(row: Row, output_dir: str | Path) -> list[Comparison]:
    best = row.best[0]
    ours = _read(row, predictions_path(output_dir, row.name, best))
    found = []
    for other in row.records:
        if other == best:
            continue
        theirs = _read(row, predictions_path(output_dir, row.name, other))
        obstacle = _obstacle(ours, theirs)
        interval = None if obstacle else _interval(row, ours, theirs)
        found.append(Comparison(row.name, best, other, interval, obstacle))
    return found


def _read(row: Row, path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"{path}: is no file of predictions ({' '.join(str(error).split())}); evaluate anew.") from error
    missing = [column for column in (*_keys(row), "label", "prediction_0") if column not in table]
    if missing:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; evaluate anew.")
    return table.sort_values(_clips(row), kind="stable", ignore_index=True)


def _clips(row: Row) -> list[str]:
    return ["enrolment", "test"] if row.task["kind"] == "verification" else ["clip_id"]


def _groups(row: Row) -> list[str]:
    return ["group_a", "group_b"] if row.task["kind"] == "verification" else ["group"]


def _keys(row: Row) -> list[str]:
    return [*_clips(row), *_groups(row)]


def _obstacle(ours: pd.DataFrame | None, theirs: pd.DataFrame | None) -> str:
    if ours is None or theirs is None:
        return "no predictions"
    shared = [column for column in ours.columns if not column.startswith("prediction_")]
    return "" if ours[shared].equals(theirs.reindex(columns=shared)) else "other clips"


def _interval(row: Row, ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float] | None:
    groups = ours[_groups(row)].to_numpy()
    return paired_interval(
        METRICS[row.primary],
        _numbers(row, ours["label"]),
        _runs(row, ours),
        _runs(row, theirs),
        groups if groups.shape[1] == 2 else groups[:, 0],
        row.first["interval"]["seed"],
    )


def _runs(row: Row, table: pd.DataFrame) -> list[np.ndarray]:
    columns = sorted(
        (c for c in table.columns if c.startswith("prediction_")), key=lambda c: int(c.removeprefix("prediction_"))
    )
    return [_numbers(row, table[column]) for column in columns]


def _numbers(row: Row, values: pd.Series) -> np.ndarray:
    """Class names as their place among the classes; everything else as it is."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy()
    places = {name: place for place, name in enumerate(row.task["classes"])}
    numbers = values.map(places)
    if numbers.isna().any():
        raise ValueError(f"predictions of {row.name}: {values[numbers.isna()].iloc[0]!r} is none of the task's classes.")
    return numbers.to_numpy(dtype=np.int64)
