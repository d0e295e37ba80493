"""A task is data: a `Task` names columns, metrics and rules; `load_task` turns manifests into checked, leak-free splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wavcse.data.labels import TaskClips, TaskSource, load_task_clips
from wavcse.data.manifest import SPLITS, Clip, Manifest


@dataclass(frozen=True)
class Task:
    """One downstream classification task.

    Args:
        name: short name, used on the command line and in file names.
        title: name in tables.
        label_column: manifest column with the label; rows where it is empty do not belong to the task.
        split_columns: columns that may hold the split; the first one that a manifest has is taken.
        disjoint_by: column whose values must not occur in two splits; None where the task is about known speakers.
        metrics: names from `wavcse.eval.metrics.METRICS`; the first one decides which encoder is best.
    """

    name: str
    title: str
    label_column: str
    split_columns: tuple[str, ...]
    disjoint_by: str | None = "speaker_id"
    metrics: tuple[str, ...] = ("accuracy", "uar", "macro_f1")


@dataclass(frozen=True)
class ManifestRecord:
    """What a result file keeps of a manifest: which bytes were read, which column gave the split, by which protocol."""

    path: Path
    sha256: str
    split_column: str
    protocol: str  # empty where the manifest names none


@dataclass(frozen=True)
class TaskData:
    """A task with its checked clips and the manifests that they come from."""

    task: Task
    table: TaskClips
    manifests: list[ManifestRecord]

    @property
    def has_known_speakers(self) -> bool:
        """Whether the classes are the speakers, so that a speaker is a label and not a sample of the population."""
        return bool((self.table.groups == self.table.labels).all())

    @property
    def speakers(self) -> np.ndarray:
        """Speaker of every clip, `[N]`; empty where the manifest does not know it."""
        ids = np.array([clip.clip_id for clip in self.table.clips], dtype=object)
        return np.where(self.table.groups == ids, "", self.table.groups)

    def keep(self, mask: np.ndarray) -> TaskData:
        """The task without the clips where `mask` `[N]` is False.

        Raises:
            ValueError: a split is empty afterwards, or its labels no longer occur in the training split.
        """
        table = _subset(self.table, np.flatnonzero(mask))
        for split in SPLITS:
            lost = set(table.labels[table.rows(split)]) - set(table.labels[table.rows("train")])
            if not len(table.rows(split)) or lost:
                raise ValueError(
                    f"task {self.task.name!r}: {len(mask) - int(mask.sum())} of {len(mask)} clips could not be embedded, "
                    f"which leaves the {split} split "
                    + (f"with labels unknown to training: {sorted(lost)}." if lost else "empty.")
                )
        return replace(self, table=table)


def load_task(task: Task, manifests: Sequence[str | Path]) -> TaskData:
    """Read the rows of a task that have a label and a split, and refuse them if the evaluation would not be sound.

    A manifest without the label column takes no part. A clip that several manifests list alike counts once.

    Raises:
        ValueError: no manifest has the label column; as `load_task_clips` (a column is missing or empty, a split is empty, a
            label is unknown to training, a clip or a speaker is in two splits); overlapping parts of one file are in two
            splits; a clip has two labels.
    """
    used = _with_label_column(task, [Manifest(path) for path in manifests])
    source = TaskSource(tuple(str(m.path) for m in used), task.label_column, task.split_columns, task.disjoint_by)
    table = load_task_clips(task.name, source)
    _refuse_overlap_across_splits(table)
    records = [ManifestRecord(m.path, _sha256(m.path), _split_column(task, m), m.protocol) for m in used]
    return TaskData(task, _without_duplicates(table), records)


def clip_identity(clip: Clip) -> tuple[str, float, float]:
    """What makes two clips the same audio: the real path and the part of the file, whatever manifest names it."""
    return str(clip.path.resolve()), clip.start_s, float("inf") if clip.end_s is None else clip.end_s


def _subset(table: TaskClips, rows: np.ndarray) -> TaskClips:
    return replace(
        table,
        clips=[table.clips[row] for row in rows],
        labels=table.labels[rows],
        splits=table.splits[rows],
        groups=table.groups[rows],
    )


def _with_label_column(task: Task, manifests: Sequence[Manifest]) -> list[Manifest]:
    used = [manifest for manifest in manifests if task.label_column in manifest.table.columns]
    if not used:
        names = ", ".join(str(manifest.path) for manifest in manifests)
        columns = sorted({column for manifest in manifests for column in manifest.table.columns})
        raise ValueError(f"task {task.name!r}: no column {task.label_column!r} in {names}; the columns are {columns}.")
    return used


def _split_column(task: Task, manifest: Manifest) -> str:
    return next(column for column in task.split_columns if column in manifest.table.columns)


def _refuse_overlap_across_splits(table: TaskClips) -> None:
    parts: dict[str, list[tuple[float, float, str, str]]] = {}
    for clip, split in zip(table.clips, table.splits):
        path, start_s, end_s = clip_identity(clip)
        parts.setdefault(path, []).append((start_s, end_s, split, clip.clip_id))
    for of_file in parts.values():
        latest: dict[str, tuple[float, str]] = {}  # split -> end of what was seen of the file, and its clip
        for start_s, end_s, split, clip_id in sorted(of_file):
            for other, (other_end_s, other_id) in latest.items():
                if other != split and other_end_s > start_s:
                    raise ValueError(
                        f"task {table.name!r}: {clip_id} ({split}) and {other_id} ({other}) overlap in the same file; "
                        "audio may be in one split only."
                    )
            latest[split] = max(latest.get(split, (0.0, "")), (end_s, clip_id))


def _without_duplicates(table: TaskClips) -> TaskClips:
    first: dict[tuple[str, float, float], int] = {}
    for row, clip in enumerate(table.clips):
        kept = first.setdefault(clip_identity(clip), row)
        if table.labels[kept] != table.labels[row]:
            raise ValueError(
                f"task {table.name!r}: {clip.clip_id} is labelled {table.labels[kept]!r} in one manifest and "
                f"{table.labels[row]!r} in another."
            )
    return _subset(table, np.array(list(first.values())))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
