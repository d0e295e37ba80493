"""Manifests: one row per clip, read from CSV or Parquet and checked once, when read.

Columns: `file_name` (relative to the manifest, the `audiofolder` convention), optional `start` and `end` in seconds (a clip
inside a longer file), then label columns (empty = no label) and split columns (empty = the clip is not used). How cells become
text says `wavcse.data.tables`.

A file that is not a table is refused. A row that names no clip is a clip with a `fault`: a corpus run skips it, training
refuses it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.audio_wavcse import decode, resample
from wavcse.data import SPLIT_ALIASES, SPLITS
from wavcse.data.hub_datasets import manifest_of, names_data_set
from wavcse.data.tables import read_text_table

AS_WRITTEN = ("file_name", "start", "end")  # they name a clip


@dataclass(frozen=True)
class Clip:
    """One clip of a manifest: a file, or the part of it between `start_s` and `end_s`."""

    clip_id: str  # file_name, with `#start-end` where the clip is a part of the file
    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    fault: str = ""  # why the row of the manifest cannot be used; there is nothing at `path` then
    stamp: tuple[int, int] | None = field(default=None, compare=False)  # the file's `file_stamp` when its digest was taken

    @cached_property
    def place(self) -> tuple[str, float, float]:
        """The real path of the file, and where the clip starts and ends in it: the same whatever manifest names the clip."""
        return real_path(self.path), self.start_s, math.inf if self.end_s is None else self.end_s

    def load(self, sampling_rate: int, max_duration_s: float | None = None) -> np.ndarray:
        """Mono float32 waveform `[samples]`.

        Raises:
            ValueError: the clip has a fault, cannot be read, is longer than `max_duration_s`, or its file is not what `stamp`
                says. The message names it.
        """
        if self.fault:
            raise ValueError(f"{self.clip_id}: {self.fault}.")
        waveform, rate = decode(self.path, self.start_s, self.end_s, self.clip_id, max_duration_s)
        if self.stamp is not None and file_stamp(self.path) != self.stamp:
            raise ValueError(f"{self.clip_id}: has changed since it was inspected. Run again when nothing writes to it.")
        return resample(waveform, rate, sampling_rate)

    @property
    def real_path(self) -> str:
        """The path behind all links: the same for the same file. Also of files that are not there, or cannot be."""
        return real_path(self.path)


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes with a file's content: its size in bytes, and when it was last written, in ns. (0, 0) if it is gone."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def real_path(path: str | Path) -> str:
    """`Path.resolve`, which also takes links that lead to themselves and names that no file can have."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.path.abspath(path)


class Manifest:
    """A table of clips and labels.

    Args:
        path: a CSV or Parquet file, or a data set in one of the Hub's formats, see `wavcse.data.hub_datasets`.

    Attributes:
        path: the file it was read from.
        table: the rows as text columns (`pandas.DataFrame`); an empty string means "no label" or "not in any split".
        clips: one per row; of a row that cannot be used, a clip whose `fault` says why.

    Raises:
        ValueError: the file is missing or unreadable, has no `file_name` column or no rows, or a clip is listed twice.
    """

    def __init__(self, path: str | Path):
        self.path = manifest_of(path) if names_data_set(path) else Path(path)
        table = read_text_table(self.path, AS_WRITTEN)
        self.table, self._unread = pd.DataFrame(table.columns, dtype=object), table.unread
        names = self.column("file_name")
        if self.table.empty:
            raise ValueError(f"{self.path}: has no rows.")
        times = [self.table.get(name, [""] * len(names)) for name in ("start", "end")]
        self.clips: list[Clip] = []
        seen: set[str] = set()
        for row, cells in enumerate(zip(names, *times)):
            clip = self._clip(row, *cells, table.faults.get(row))
            if clip.clip_id in seen:
                if not clip.fault:
                    raise ValueError(f"{self.path}: {clip.clip_id} is listed twice; every clip needs its own row.")
                clip = self._clip(row, f"{cells[0]} (row {row + 1})", *cells[1:], clip.fault)
            seen.add(clip.clip_id)
            self.clips.append(clip)

    def __len__(self) -> int:
        return len(self.clips)

    def column(self, name: str) -> np.ndarray:
        """One column as an array of strings; ValueError lists the columns if there is no such one."""
        if name in self._unread:
            raise ValueError(f"{self.path}: column {name!r} holds {self._unread[name]}; texts or numbers are needed.")
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

    def _clip(self, row: int, name: str, start: str, end: str, fault: str | None) -> Clip:
        clip_id = name or f"row {row + 1}"
        if start or end:
            clip_id = f"{clip_id}#{start or 0}-{end}"
        path = self.path.parent / name
        try:
            if fault:
                raise ValueError(fault)
            if not name:
                raise ValueError("has no 'file_name'")
            start_s, end_s = _seconds("start", start or "0"), _seconds("end", end) if end else None
            if end_s is not None and end_s <= start_s:
                raise ValueError(f"its end={end} is not after its start={start or 0}")
        except ValueError as error:
            return Clip(clip_id, self.path.parent / clip_id, fault=str(error))
        return Clip(clip_id, path, start_s, end_s)


def _seconds(column: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"its {column} is {text[:40]!r}; seconds from 0 on are needed")
    return seconds
