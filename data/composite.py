"""Several tasks as one training set: the clips of all of them, each labelled for one or more tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wavcse.data import SPLITS
from wavcse.data.inspection import Inspector
from wavcse.data.labels import TaskClips, TaskSource, class_counts, read_task
from wavcse.data.leaks import inspected, refuse_leaks
from wavcse.data.manifest import Clip
from wavcse.modeling_wavcse import IGNORED_LABEL


@dataclass(frozen=True)
class CompositeSet:
    """The union of the tasks' clips.

    Attributes:
        clips: the N different clips.
        classes: task -> its labels, in the order of the class indices.
        targets: split -> task -> class indices `[N]`, `IGNORED_LABEL` where a clip has no label for the task in that split.
        digests: content digest of every clip; empty for a file that cannot be read.
    """

    clips: list[Clip]
    classes: dict[str, list[str]]
    targets: dict[str, dict[str, np.ndarray]]
    digests: list[str] = field(default_factory=list)

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


def load_composite(sources: Mapping[str, TaskSource], inspector: Inspector | None = None) -> CompositeSet:
    """Read and join the tasks (the paper's composite set, after Tang et al. 2017).

    Args:
        inspector: that of the feature cache, which has seen the files, so that none is read again.

    Raises:
        ValueError: as `read_task`; a row of a manifest names no clip; or as `refuse_leaks`, within the tasks and between
            them, as they train layers in common.
    """
    if not sources:
        raise ValueError("tasks is empty; name at least one task with its manifest, label_column and split_column.")
    read = {name: read_task(name, source) for name, source in sources.items()}
    tasks, uses = {name: task for name, (task, _) in read.items()}, [own for _, own in read.values()]
    _refuse_faulty_rows(tasks)
    facts = inspected(uses, inspector or Inspector())
    refuse_leaks(uses, facts, train_together=True)
    position: dict[tuple, int] = {}
    clips: list[Clip] = []
    digests: list[str] = []
    for task, known in zip(tasks.values(), facts):
        for clip, fact in zip(task.clips, known):
            if position.setdefault(clip.place, len(clips)) == len(clips):
                clips.append(clip)
                digests.append(fact.digest)
    targets = {split: {name: _targets(task, split, position, len(clips)) for name, task in tasks.items()} for split in SPLITS}
    return CompositeSet(clips, {name: task.classes for name, task in tasks.items()}, targets, digests)


def _refuse_faulty_rows(tasks: Mapping[str, TaskClips]) -> None:
    for name, task in tasks.items():
        faulty = [clip for clip in task.clips if clip.fault]
        if faulty:
            raise ValueError(
                f"task {name!r}: {len(faulty)} rows of its manifests cannot be used; the first: {faulty[0].clip_id}: "
                f"{faulty[0].fault}. Mend these rows, or empty their label."
            )


def _targets(task: TaskClips, split: str, position: Mapping[tuple, int], num_clips: int) -> np.ndarray:
    targets = np.full(num_clips, IGNORED_LABEL, dtype=np.int64)
    rows, indices = task.rows(split), task.targets
    targets[[position[task.clips[row].place] for row in rows]] = indices[rows]
    return targets
