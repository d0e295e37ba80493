"""Labelled clips: of one task, read from manifests, and of several tasks as one training set.

What would leak between splits, or cannot be scored, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from wavcse.data import SPLITS
from wavcse.data.inspection import Inspector
from wavcse.data.leaks import ClipUses, inspected, refuse_leaks
from wavcse.data.manifest import Clip, Manifest
from wavcse.data.splits import Fold
from wavcse.modeling_wavcse import IGNORED_LABEL

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
        closed_set: whether the labels are classes, all of which training must have; False for numbers, and for speakers to be
            verified.
        numbers: columns, among them `label_column`, that hold numbers: "1.0" is the same label as "1" there.
        kind: "classification", or "regression": the labels are the numbers to be predicted.
        splits: whose clips are read, each of which must have some; "test" alone for a further test set of another task.
        may_lack_test: whether there may be no test clips, where further test sets stand for them.
        fold: divides the clips in place of the split columns; its validation clips are of speakers who train.
    """

    manifests: tuple[str, ...]
    label_column: str
    split_columns: tuple[str, ...] = ("split",)
    disjoint_by: str | None = None
    classes: tuple[str, ...] | None = None
    closed_set: bool = True
    numbers: tuple[str, ...] = ()
    kind: str = "classification"
    splits: tuple[str, ...] = SPLITS
    may_lack_test: bool = False
    fold: Fold | None = None


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

    @property
    def numbers(self) -> np.ndarray:
        """The labels of a regression task as float64 `[N]`.

        Raises:
            ValueError: a label is no finite number.
        """
        values = pd.to_numeric(pd.Series(self.labels), errors="coerce").to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            clip, label = self.clips[wrong[0]].clip_id, self.labels[wrong[0]]
            raise ValueError(f"task {self.name!r}: {clip} has {label!r} as its label; a number is needed for a regression.")
        return values

    def rows(self, split: str) -> np.ndarray:
        """Positions of the clips of one split."""
        return np.flatnonzero(self.splits == split)

    def subset(self, rows: np.ndarray) -> TaskClips:
        """The task with some of its clips, in the order of `rows`."""
        arrays = {name: getattr(self, name)[rows] for name in ("labels", "splits", "groups")}
        return replace(self, clips=[self.clips[row] for row in rows], **arrays)


def class_counts(task: str, classes: Sequence[str], targets: np.ndarray) -> str:
    """A task's classes and how many clips train each, in one line: for the user to check before a long run.

    Args:
        targets: class indices of the training clips.
    """
    counts = np.bincount(targets, minlength=len(classes))
    shown = [f"{label if label.isprintable() else repr(label)} {count:,}" for label, count in zip(classes, counts)]
    more = [f"... ({len(shown) - MOST_SHOWN:,} more)"] if len(shown) > MOST_SHOWN else []
    return f"{task}: {len(shown):,} classes of {len(targets):,} training clips: {', '.join([*shown[:MOST_SHOWN], *more])}"


def load_task_clips(
    name: str, source: TaskSource, inspector: Inspector | None = None, manifests: Sequence[Manifest] | None = None
) -> TaskClips:
    """Read a task and check it, also against leaks.

    Args:
        inspector: if it has seen the files already, they are not read again.
        manifests: those of `source`, where they have been read already.

    Raises:
        ValueError: as `read_task` and `refuse_leaks`.
    """
    task, uses = read_task(name, source, manifests)
    refuse_leaks([uses], inspected([uses], inspector or Inspector()))
    return task


def read_task(name: str, source: TaskSource, manifests: Sequence[Manifest] | None = None) -> tuple[TaskClips, ClipUses]:
    """Read a task, and what `refuse_leaks` has to know of it.

    Args:
        manifests: those of `source`, where they have been read already.

    Raises:
        ValueError: a column is missing, no clip is labelled, a split is empty, there are fewer than two classes, or a
            validation or test label never occurs in training. The message names the task.
    """
    if not source.manifests:
        raise ValueError(f"task {name!r}: names no manifest.")
    manifests = manifests or [Manifest(path) for path in source.manifests]
    columns, *parts = zip(*(_read_part(name, source, manifest) for manifest in manifests))
    sources = np.repeat(np.arange(len(manifests)), list(map(len, parts[0])))
    rows, labels, splits, groups = map(np.concatenate, parts)
    clips = [manifests[i].clips[row] for i, row in zip(sources, rows)]
    trained = sorted(set(labels[splits == "train"]))
    task = TaskClips(name, clips, labels, splits, groups, trained if source.classes is None else list(source.classes))
    _check(task, trained, source)
    # `uses` holds this mapping and reads the columns of numbers that are added to it.
    by_column = {source.label_column: labels}
    uses = ClipUses(f"task {name!r}", clips, splits, by_column, manifests, sources, rows, columns, source.disjoint_by)
    if source.fold is not None:
        uses = replace(uses, held_out=("test",))
    by_column.update({column: _as_numbers(uses.column(column)) for column in source.numbers})
    return task, uses


def _as_numbers(texts: np.ndarray) -> np.ndarray:
    """One spelling for every number; what is none stays as it is."""
    numbers = pd.to_numeric(pd.Series(texts), errors="coerce")
    return np.where(numbers.isna(), texts, numbers.astype(str)).astype(object)


def _read_part(
    name: str, source: TaskSource, manifest: Manifest
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The split column of a manifest, the rows that the task uses, and their labels, splits and groups."""
    split_column, splits = _splits(name, source, manifest)
    labels = manifest.column(source.label_column)
    used = np.flatnonzero((labels != "") & np.isin(splits, source.splits))
    if not len(used):
        raise ValueError(
            f"task {name!r}: no row of {manifest.path} has both a {source.label_column!r} and a {split_column!r}."
        )
    if source.disjoint_by:
        groups = manifest.column(source.disjoint_by)
    else:
        ids = np.array([clip.clip_id for clip in manifest.clips], dtype=object)
        speakers = manifest.column("speaker_id") if "speaker_id" in manifest.table.columns else ids
        groups = np.where(speakers == "", ids, speakers)
    return split_column, used, labels[used], splits[used], groups[used]


def _splits(name: str, source: TaskSource, manifest: Manifest) -> tuple[str, np.ndarray]:
    """The column that divides the clips of a manifest, and their splits."""
    if source.fold is not None:
        return source.fold.column, source.fold.splits(manifest)
    split_column = next((column for column in source.split_columns if column in manifest.table.columns), None)
    if split_column is None:
        raise ValueError(
            f"task {name!r}: {manifest.path} has none of the split columns {list(source.split_columns)}; "
            f"its columns are {list(manifest.table.columns)}."
        )
    return split_column, manifest.split(split_column)


def _check(task: TaskClips, trained: Sequence[str], source: TaskSource) -> None:
    """ValueError if a split is empty or, of classes, if training does not have them all and two at least."""
    for split in source.splits:
        if not len(task.rows(split)) and not (split == "test" and source.may_lack_test):
            needed = f"; all of {', '.join(source.splits)} are needed" if len(source.splits) > 1 else ""
            raise ValueError(f"task {task.name!r}: the {split} split has no clips{needed}.")
    if not source.closed_set:
        return
    if len(trained) < 2:
        raise ValueError(f"task {task.name!r}: training has only the label(s) {trained}; two are needed.")
    unlisted = sorted(set(trained) - set(task.classes))
    if unlisted or len(set(task.classes)) < len(task.classes):
        raise ValueError(f"task {task.name!r}: classes must name every label once; missing are {unlisted}.")
    unknown = sorted(set(task.labels) - set(trained))
    if unknown:
        raise ValueError(f"task {task.name!r}: the labels {unknown} occur in validation or test but never in training.")


def as_paths(manifests: str | Sequence[str]) -> tuple[str, ...]:
    """One path or several, as a tuple."""
    return (manifests,) if isinstance(manifests, str) else tuple(manifests)


# -- several tasks


MOST_DEVIATIONS = 90  # from the training clips' mean: beyond it a number is a mistake, and near the mark of clips without one


class Scale(NamedTuple):
    """Mean and standard deviation of the numbers that train a regression task."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"numbers with mean {self.mean:g} and standard deviation {self.std:g}"


@dataclass(frozen=True)
class CompositeSet:
    """The union of the tasks' clips.

    Attributes:
        clips: the N different clips.
        classes: task -> its labels, in the order of the class indices; none of a regression task.
        targets: split -> task -> class indices `[N]`, or of a regression task standardised numbers (float32 `[N]`);
            `IGNORED_LABEL` where a clip has no label for the task in that split.
        digests: content digest of every clip; empty for a file that cannot be read.
        scales: regression task -> mean and standard deviation of the training clips, by which its numbers are standardised.
    """

    clips: list[Clip]
    classes: dict[str, list[str]]
    targets: dict[str, dict[str, np.ndarray]]
    digests: list[str] = field(default_factory=list)
    scales: dict[str, Scale] = field(default_factory=dict)

    def rows(self, split: str) -> np.ndarray:
        """Positions of the clips that have a label of any task in `split`."""
        labelled = np.stack([targets != IGNORED_LABEL for targets in self.targets[split].values()])
        return np.flatnonzero(labelled.any(axis=0))

    def class_counts(self) -> str:
        """The classes of every task and how many clips train each, a line per task."""
        train = self.targets["train"]
        lines = []
        for task, classes in self.classes.items():
            own = train[task][train[task] != IGNORED_LABEL]
            scale = self.scales.get(task)
            lines.append(
                class_counts(task, classes, own) if scale is None else f"{task}: {scale} of {len(own):,} training clips"
            )
        return "\n".join(lines)


class JoinedClips(NamedTuple):
    """The different clips of several tasks, `digests` of their content, and the position of each by `Clip.place`."""

    clips: list[Clip]
    digests: list[str]
    position: dict[tuple, int]


def read_together(
    sources: Mapping[str, TaskSource], inspector: Inspector | None = None
) -> tuple[dict[str, TaskClips], JoinedClips]:
    """Read tasks that train layers in common, and refuse what would leak within them or between them.

    Raises:
        ValueError: as `load_composite`.
    """
    if not sources:
        raise ValueError("tasks is empty; name at least one task with its manifest, label_column and split_column.")
    read = {name: read_task(name, source) for name, source in sources.items()}
    tasks, uses = {name: task for name, (task, _) in read.items()}, [own for _, own in read.values()]
    _refuse_faulty_rows(tasks)
    facts = inspected(uses, inspector or Inspector())
    refuse_leaks(uses, facts, train_together=True)
    joined = JoinedClips([], [], {})
    for task, known in zip(tasks.values(), facts):
        for clip, fact in zip(task.clips, known):
            if joined.position.setdefault(clip.place, len(joined.clips)) == len(joined.clips):
                joined.clips.append(clip)
                joined.digests.append(fact.digest)
    return tasks, joined


def load_composite(sources: Mapping[str, TaskSource], inspector: Inspector | None = None) -> CompositeSet:
    """Read and join the tasks (the paper's composite set, after Tang et al. 2017).

    Args:
        inspector: that of the feature cache, which has seen the files, so that none is read again.

    Raises:
        ValueError: as `read_task`; a row of a manifest names no clip; or as `refuse_leaks`, within the tasks and between
            them, as they train layers in common.
    """
    tasks, joined = read_together(sources, inspector)
    clips, position = joined.clips, joined.position
    scales = {name: scale_of(tasks[name]) for name, source in sources.items() if source.kind == "regression"}
    targets = {
        split: {name: _targets(task, split, position, len(clips), scales.get(name)) for name, task in tasks.items()}
        for split in SPLITS
    }
    classes = {name: [] if name in scales else task.classes for name, task in tasks.items()}
    return CompositeSet(clips, classes, targets, joined.digests, scales)


def scale_of(task: TaskClips) -> Scale:
    """By which the numbers of a task are standardised; ValueError if they are all the same, or one is far off."""
    numbers = task.numbers
    trained = numbers[task.rows("train")]
    scale = Scale(float(trained.mean()), float(trained.std()))
    if scale.std <= 1e-12 * max(1.0, abs(scale.mean)):
        raise ValueError(f"task {task.name!r}: all training clips have the number {scale.mean:g}; there is nothing to learn.")
    far = np.abs(numbers - scale.mean) > MOST_DEVIATIONS * scale.std
    if far.any():
        row = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"task {task.name!r}: {task.clips[row].clip_id} has {numbers[row]:g}, more than {MOST_DEVIATIONS} standard "
            f"deviations from the mean of the training clips ({scale}). Mend or empty its label."
        )
    return scale


def _refuse_faulty_rows(tasks: Mapping[str, TaskClips]) -> None:
    for name, task in tasks.items():
        faulty = [clip for clip in task.clips if clip.fault]
        if faulty:
            raise ValueError(
                f"task {name!r}: {len(faulty)} rows of its manifests cannot be used; the first: {faulty[0].clip_id}: "
                f"{faulty[0].fault}. Mend these rows, or empty their label."
            )


def _targets(
    task: TaskClips, split: str, position: Mapping[tuple, int], num_clips: int, scale: Scale | None = None
) -> np.ndarray:
    targets = np.full(num_clips, IGNORED_LABEL, dtype=np.int64 if scale is None else np.float32)
    rows, values = task.rows(split), task.targets if scale is None else (task.numbers - scale.mean) / scale.std
    targets[[position[task.clips[row].place] for row in rows]] = values[rows]
    return targets
