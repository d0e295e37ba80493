"""Several tasks as one training set: the clips of all of them, each labelled for one or more tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wavcse.data.labels import TaskClips, TaskSource, class_counts, load_task_clips
from wavcse.data.manifest import SPLITS, Clip

IGNORED_LABEL = -100  # a clip without a label for a task, the convention of torch's cross-entropy


@dataclass(frozen=True)
class CompositeSet:
    """The union of the tasks' clips.

    Attributes:
        clips: the N different clips.
        classes: task -> its labels, in the order of the class indices.
        targets: split -> task -> class indices `[N]`, -100 where a clip has no label for the task in that split.
    """

    clips: list[Clip]
    classes: dict[str, list[str]]
    targets: dict[str, dict[str, np.ndarray]]

    def rows(self, split: str) -> np.ndarray:
        """Positions of the clips that have a label of any task in `split`."""
        labelled = np.stack([targets != IGNORED_LABEL for targets in self.targets[split].values()])
        return np.flatnonzero(labelled.any(axis=0))

    def class_counts(self) -> str:
        """The classes of every task and how many clips train each, a line per task."""
        train = self.targets["train"]
        return "\n".join(
            class_counts(task, classes, train[task][train[task] != IGNORED_LABEL]) for task, classes in self.classes.items()
        )


def load_composite(sources: Mapping[str, TaskSource]) -> CompositeSet:
    """Read and join the tasks (the paper's composite set, after Tang et al. 2017).

    Raises:
        ValueError: as `load_task_clips`, a row of a manifest names no clip, or a clip that one task trains on is held out by
            another.
    """
    if not sources:
        raise ValueError("tasks is empty; name at least one task with its manifest, label_column and split_column.")
    tasks = {name: load_task_clips(name, source) for name, source in sources.items()}
    _refuse_faulty_rows(tasks)
    position: dict[tuple, int] = {}
    clips: list[Clip] = []
    for task in tasks.values():
        for clip in task.clips:
            if position.setdefault(_identity(clip), len(clips)) == len(clips):
                clips.append(clip)
    targets = {split: {name: _targets(task, split, position, len(clips)) for name, task in tasks.items()} for split in SPLITS}
    _refuse_cross_task_leaks(clips, targets)
    return CompositeSet(clips, {name: task.classes for name, task in tasks.items()}, targets)


def _refuse_faulty_rows(tasks: Mapping[str, TaskClips]) -> None:
    for name, task in tasks.items():
        faulty = [clip for clip in task.clips if clip.fault]
        if faulty:
            raise ValueError(
                f"task {name!r}: {len(faulty)} rows of its manifests cannot be used; the first: {faulty[0].clip_id}: "
                f"{faulty[0].fault}. Mend these rows, or empty their label."
            )


def _identity(clip: Clip) -> tuple:
    return clip.path.resolve(), clip.start_s, clip.end_s


def _targets(task: TaskClips, split: str, position: Mapping[tuple, int], num_clips: int) -> np.ndarray:
    targets = np.full(num_clips, IGNORED_LABEL, dtype=np.int64)
    rows, indices = task.rows(split), task.targets
    targets[[position[_identity(task.clips[row])] for row in rows]] = indices[rows]
    return targets


def _refuse_cross_task_leaks(clips: list[Clip], targets: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for name, trained in targets["train"].items():
        for split in ("validation", "test"):
            for other, held_out in targets[split].items():
                both = np.flatnonzero((trained != IGNORED_LABEL) & (held_out != IGNORED_LABEL))
                if len(both):
                    raise ValueError(
                        f"{len(both)} clips, such as {clips[both[0]].clip_id}, are in training for task {name!r} and in the "
                        f"{split} split of task {other!r}: the shared layers would see them. Empty one of the two split "
                        "values in the manifest, or take the tasks from different clips."
                    )
