"""Manifests: one row per clip, read from CSV or Parquet and checked once at the door.

Columns: `file_name` (relative to the manifest, the `audiofolder` convention), optional `start` and `end` in seconds (a clip
inside a longer file), then label columns (empty = no label) and split columns (empty = the clip is not used).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.audio_wavcse import decode, resample

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}


@dataclass(frozen=True)
class Clip:
    """One clip of a manifest: a file, or the part of it between `start_s` and `end_s`."""

    clip_id: str  # file_name, with `#start-end` where the clip is a part of the file
    path: Path
    start_s: float = 0.0
    end_s: float | None = None

    def load(self, sampling_rate: int) -> np.ndarray:
        """Mono float32 waveform `[samples]`; ValueError names the clip if it cannot be read."""
        waveform, rate = decode(self.path, self.start_s, self.end_s, name=self.clip_id)
        return resample(waveform, rate, sampling_rate)


class Manifest:
    """A table of clips and labels.

    Attributes:
        path: the file it was read from.
        table: the rows as text columns (`pandas.DataFrame`); an empty string means "no label" or "not in any split".

    Raises:
        ValueError: the file is missing or unreadable, has no `file_name` column or no rows, `start`/`end` are not numbers in
            order, or a clip is listed twice.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.table = _read_table(self.path)
        if "file_name" not in self.table.columns:
            raise ValueError(f"{self.path}: has no column 'file_name'; its columns are {list(self.table.columns)}.")
        if self.table.empty:
            raise ValueError(f"{self.path}: has no rows.")
        self.clips = [self._clip(row) for row in self.table.to_dict("records")]
        _refuse_duplicates(self.path, [clip.clip_id for clip in self.clips])

    def __len__(self) -> int:
        return len(self.clips)

    def column(self, name: str) -> np.ndarray:
        """One column as an array of strings; ValueError lists the columns if there is no such one."""
        if name not in self.table.columns:
            raise ValueError(f"{self.path}: has no column {name!r}; its columns are {list(self.table.columns)}.")
        return self.table[name].to_numpy(dtype=object)

    def split(self, name: str) -> np.ndarray:
        """A split column with the usual spellings unified: each value is train, validation, test or empty."""
        values = np.array([SPLIT_ALIASES.get(value, value) for value in self.column(name)], dtype=object)
        unknown = sorted(set(values) - {*SPLITS, ""})
        if unknown:
            raise ValueError(f"{self.path}: column {name!r} holds {unknown}; allowed are {', '.join(SPLITS)} or empty.")
        return values

    @property
    def protocol(self) -> str:
        """What the column `protocol` says of how a corpus was labelled and split; several are joined, empty = not said."""
        return ", ".join(sorted(set(self.table.get("protocol", ())) - {""}))

    def _clip(self, row: dict[str, str]) -> Clip:
        name, start, end = row["file_name"], row.get("start", ""), row.get("end", "")
        if not name:
            raise ValueError(f"{self.path}: a row has an empty 'file_name'.")
        path = self.path.parent / name
        if not start and not end:
            return Clip(name, path)
        start_s, end_s = _seconds(start or "0", name), _seconds(end, name) if end else None
        if end_s is not None and end_s <= start_s:
            raise ValueError(f"{self.path}: {name} has end={end} not after start={start}.")
        return Clip(f"{name}#{start or 0}-{end}", path, start_s, end_s)


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest. Give a CSV or Parquet file with one row per clip.")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path).astype(object).fillna("").astype(str)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix or 'CSV'} ({error}).") from error


def _seconds(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: start/end must be seconds, but one is {text!r}.") from None


def _refuse_duplicates(path: Path, clip_ids: list[str]) -> None:
    seen: set[str] = set()
    for clip_id in clip_ids:
        if clip_id in seen:
            raise ValueError(f"{path}: {clip_id} is listed twice; every clip needs its own row.")
        seen.add(clip_id)
