"""One task's labelled clips, read from manifests and refused where a split would leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wavcse.data.manifest import SPLITS, Clip, Manifest

MOST_SHOWN = 12  # classes that are named before training


@dataclass(frozen=True)
class TaskSource:
    """Where a task's clips, labels and splits come from.

    Args:
        manifests: CSV or Parquet files.
        label_column: column of the class labels; rows with an empty one are left out.
        split_columns: split column, or several of which the first that a manifest has is taken.
        disjoint_by: column whose values (speakers) may not cross splits; `None` where the task is about known ones.
        classes: outputs of the task's head, in this order; `None` = the training labels, sorted. A class without a training
            clip is an output that nothing trains, like `_silence_` in the paper's keyword spotting.
        closed_set: whether the labels are classes, of which training must have all; False for numbers, and for speakers who
            are to be verified.
    """

    manifests: tuple[str, ...]
    label_column: str
    split_columns: tuple[str, ...] = ("split",)
    disjoint_by: str | None = None
    classes: tuple[str, ...] | None = None
    closed_set: bool = True


@dataclass(frozen=True)
class TaskClips:
    """The clips of one task; all arrays have one entry per clip.

    `groups` holds the values of `disjoint_by`, or of `speaker_id` where the manifest has it, else the clip's own id: what an
    interval resamples. `classes` are the outputs of the head (see `TaskSource`); `targets` index them.
    """

    name: str
    clips: list[Clip]
    labels: np.ndarray
    splits: np.ndarray
    groups: np.ndarray
    classes: list[str]

    @property
    def targets(self) -> np.ndarray:
        """Class index of every clip, int64 `[N]`."""
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index[label] for label in self.labels], dtype=np.int64)

    def rows(self, split: str) -> np.ndarray:
        """Positions of the clips of one split."""
        return np.flatnonzero(self.splits == split)


def class_counts(task: str, classes: Sequence[str], targets: np.ndarray) -> str:
    """A task's classes and how many clips train each, in one line: what is read before hours are spent.

    Args:
        targets: class indices of the training clips.
    """
    counts = np.bincount(targets, minlength=len(classes))
    shown = [f"{label if label.isprintable() else repr(label)} {count:,}" for label, count in zip(classes, counts)]
    more = [f"... ({len(shown) - MOST_SHOWN:,} more)"] if len(shown) > MOST_SHOWN else []
    return f"{task}: {len(shown):,} classes of {len(targets):,} training clips: {', '.join([*shown[:MOST_SHOWN], *more])}"


def load_task_clips(name: str, source: TaskSource) -> TaskClips:
    """Read a task and check it.

    Raises:
        ValueError: a column is missing, no clip is labelled, a split is empty, there are fewer than two classes, a validation
            or test label never occurs in training, a clip or a group (speaker) is on two sides. The message names the task.
    """
    if not source.manifests:
        raise ValueError(f"task {name!r}: names no manifest.")
    parts = [_read_part(name, source, Manifest(path)) for path in source.manifests]
    clips = [clip for part in parts for clip in part[0]]
    labels, splits, groups = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    trained = sorted(set(labels[splits == "train"]))
    task = TaskClips(name, clips, labels, splits, groups, trained if source.classes is None else list(source.classes))
    _check_splits(task)
    if source.closed_set:
        _check_classes(task, trained)
    _check_clips(task)
    if source.disjoint_by:
        _check_groups(task, source.disjoint_by)
    return task


def _read_part(name: str, source: TaskSource, manifest: Manifest) -> tuple[list[Clip], np.ndarray, np.ndarray, np.ndarray]:
    labels = manifest.column(source.label_column)
    columns = [column for column in source.split_columns if column in manifest.table.columns]
    if not columns:
        raise ValueError(
            f"task {name!r}: {manifest.path} has none of the split columns {list(source.split_columns)}; "
            f"its columns are {list(manifest.table.columns)}."
        )
    splits = manifest.split(columns[0])
    used = np.flatnonzero((labels != "") & (splits != ""))
    if not len(used):
        raise ValueError(f"task {name!r}: no row of {manifest.path} has both a {source.label_column!r} and a {columns[0]!r}.")
    clips = [manifest.clips[i] for i in used]
    return clips, labels[used], splits[used], _groups(manifest, source.disjoint_by)[used]


def _groups(manifest: Manifest, disjoint_by: str | None) -> np.ndarray:
    if disjoint_by:
        return manifest.column(disjoint_by)
    ids = np.array([clip.clip_id for clip in manifest.clips], dtype=object)
    if "speaker_id" not in manifest.table.columns:
        return ids
    speakers = manifest.column("speaker_id")
    return np.where(speakers == "", ids, speakers)


def _check_splits(task: TaskClips) -> None:
    for split in SPLITS:
        if not len(task.rows(split)):
            raise ValueError(f"task {task.name!r}: the {split} split has no clips; all of {', '.join(SPLITS)} are needed.")


def _check_classes(task: TaskClips, trained: Sequence[str]) -> None:
    if len(trained) < 2:
        raise ValueError(f"task {task.name!r}: training has only the label(s) {trained}; two are needed.")
    unlisted = sorted(set(trained) - set(task.classes))
    if unlisted or len(set(task.classes)) < len(task.classes):
        raise ValueError(f"task {task.name!r}: classes must name every label once; missing are {unlisted}.")
    unknown = sorted(set(task.labels) - set(trained))
    if unknown:
        raise ValueError(f"task {task.name!r}: the labels {unknown} occur in validation or test but never in training.")


def _check_clips(task: TaskClips) -> None:
    split_of: dict[tuple[Path, float, float | None], str] = {}
    for clip, split in zip(task.clips, task.splits):
        key = (clip.path.resolve(), clip.start_s, clip.end_s)
        if split_of.setdefault(key, split) != split:
            raise ValueError(f"task {task.name!r}: {clip.clip_id} is in both {split_of[key]} and {split}.")


def _check_groups(task: TaskClips, column: str) -> None:
    if (task.groups == "").any():
        clip = task.clips[int(np.flatnonzero(task.groups == "")[0])].clip_id
        raise ValueError(f"task {task.name!r}: {clip} has no {column!r}, which must not cross splits.")
    members = {split: set(task.groups[task.rows(split)]) for split in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(members[first] & members[second])
        if shared:
            raise ValueError(
                f"task {task.name!r}: {column} {shared[:5]} occur in both {first} and {second}; "
                "a result on such a split would be too good. Split by that column."
            )


def as_paths(manifests: str | Sequence[str]) -> tuple[str, ...]:
    """One path or several, as a tuple."""
    return (manifests,) if isinstance(manifests, str) else tuple(manifests)
