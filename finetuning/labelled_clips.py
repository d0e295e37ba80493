"""The clips of several tasks as one set with the labels of each: what can be trained on, and what had to be left out.

Shapes: `N` clips of all tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.data.composite import TaskClips, TaskSource, as_paths, class_counts, read_together, scale_of
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.task import Trials, read_trials, rows_by_name
from wavcse.finetuning.arguments import MultiTaskArguments, TaskSettings
from wavcse.finetuning.folds import fold_of, unseen_column, with_fold
from wavcse.finetuning.text import encode_text, frames_needed, normalised, vocabulary_of
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.steps.batches import CropReader
from wavcse.steps.crops import PLAIN_SPEED, at_speed


@dataclass
class TaskLabels:
    """What one task knows of the clips; all arrays are `[N]`.

    Attributes:
        readout: of `FinetunedWavCSEConfig`, with the vocabulary, the labels, or mean and deviation.
        splits: "" where the clip is not one of the task.
        labels: transcripts as they are learnt, classes or numbers as the manifest has them; "" where there is none.
        groups: what an interval resamples, speakers where they are known.
        targets: class indices (int64) or standardised numbers (float32), `IGNORED_LABEL` = none; of texts the tokens of each.
        trials: validation's, or of a further test set the test's, in terms of the N clips; `None` = all pairs of its clips.
        test_of: of a further test set, the task whose readout answers; `None` of a task.
        first_s: seconds of every clip that are heard when the task is judged; `None` = all.
        open_splits: splits whose labels are none of the classes, such as speakers who do not train.
    """

    name: str
    settings: TaskSettings
    readout: dict[str, Any]
    splits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    targets: np.ndarray | list[Tensor | None]
    trials: Trials | None = None
    test_of: str | None = None
    first_s: float | None = None
    open_splits: tuple[str, ...] = ()

    @property
    def readout_name(self) -> str:
        """The readout of the network that answers."""
        return self.test_of or self.name

    def trials_in(self, split: str) -> Trials | None:
        """The pairs of a split that are compared; `None` = all."""
        return self.trials if split == ("validation" if self.test_of is None else "test") else None

    def rows(self, split: str) -> np.ndarray:
        """The task's clips of a split."""
        return np.flatnonzero(self.splits == split)

    def leave_out(self, rows: np.ndarray) -> None:
        """These clips are none of the task's any more."""
        self.splits[rows] = ""

    def counts(self) -> str:
        """What trains it, in a line."""
        rows = self.rows("train")
        if self.settings.kind == "classes":
            return class_counts(self.name, self.readout["labels"], self.targets[rows])
        if self.settings.kind == "ctc":
            return f"{self.name}: {len(rows):,} training texts of {len(self.readout['vocabulary'])} symbols"
        return f"{self.name}: numbers for {len(rows):,} training clips"


@dataclass
class LabelledClips:
    """The clips of all tasks; `left_out` counts, by task and reason, what takes no part.

    Attributes:
        tests: further test sets of the tasks.
    """

    clips: list[Clip]
    digests: list[str]
    tasks: dict[str, TaskLabels]
    tests: dict[str, TaskLabels] = field(default_factory=dict)
    left_out: dict[str, Counter] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, TaskLabels]:
        """Tasks and further test sets by name."""
        return {**self.tasks, **self.tests}

    def only(self, names: Collection[str]) -> LabelledClips:
        """Some of the tasks, with their test sets."""
        tasks = {name: task for name, task in self.tasks.items() if name in names}
        return replace(self, tasks=tasks, tests={name: one for name, one in self.tests.items() if one.test_of in names})

    def leave_out(self, task: str, rows: Sequence[int] | np.ndarray, reason: str) -> None:
        """Take clips out of a task and count them."""
        if len(rows):
            self.all[task].leave_out(np.asarray(rows))
            self.left_out.setdefault(task, Counter())[reason] += len(rows)

    def described(self) -> str:
        """What trains the tasks and what was left out, a line per task."""
        lines = []
        for name, task in self.tasks.items():
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.get(name, {}).items())
            lines.append(task.counts() + (f"; left out: {reasons}" if reasons else ""))
        return "\n".join(lines)


def refuse_leaks(runs: Iterable[MultiTaskArguments]) -> None:
    """Read the manifests of runs, those of all folds among them, before hours of training.

    Raises:
        ValueError: as `read_together` and `fold_of`, of any of the runs.
    """
    inspectors: dict[str, Inspector] = {}
    seen: list[dict[str, TaskSource]] = []
    for args in runs:
        sources = _sources(args, _settings_of_tests(args))
        if sources not in seen:
            seen.append(sources)
            try:
                read_together(sources, inspectors.setdefault(args.audio_dir, Inspector(args.audio_dir)))
            except ValueError as error:
                raise ValueError(f"fold {args.fold}: {error}" if args.fold else str(error)) from error


def _settings_of_tests(args: MultiTaskArguments) -> dict[str, TaskSettings]:
    settings = args.task_settings()
    return {name: one.as_task(settings[one.of]) for name, one in args.test_settings().items()}


def _sources(args: MultiTaskArguments, tests: Mapping[str, TaskSettings]) -> dict[str, TaskSource]:
    """Where the clips of all tasks and further test sets of a run come from."""
    fold, tested = fold_of(args), {one.of for one in args.test_settings().values()}
    sources = {name: with_fold(_source(one), one, args, fold) for name, one in args.task_settings().items()}
    sources = {name: replace(own, may_lack_test=name in tested) for name, own in sources.items()}
    return sources | {name: replace(_source(one), closed_set=False, splits=("test",)) for name, one in tests.items()}


def labelled_clips(args: MultiTaskArguments, inspector: Inspector) -> LabelledClips:
    """Read the tasks and refuse what leaks within them or between them.

    Raises:
        ValueError: as `read_together` and `fold_of`, or trials name clips that are trained on or tested.
    """
    settings, tests, set_settings = args.task_settings(), args.test_settings(), _settings_of_tests(args)
    read, joined = read_together(_sources(args, set_settings), inspector)
    clips, digests, position = list(joined.clips), list(joined.digests), dict(joined.position)
    with_trials = {name: one for name, one in {**settings, **set_settings}.items() if one.trials}
    trials = {name: _trials(name, one, clips, digests, position) for name, one in with_trials.items()}
    tasks = {name: _labels(settings[name], read[name], position, len(clips)) for name in settings}
    labelled = LabelledClips(clips, digests, tasks)
    for name, one in tests.items():
        own = _labels(set_settings[name], read[name], position, len(clips), known=tasks[one.of])
        labelled.tests[name] = replace(own, test_of=one.of, first_s=one.first_s)
    for name, found in trials.items():
        _refuse_known_trials(labelled.all[name], found, clips)
        labelled.all[name].trials = found
    for name, own in labelled.all.items():
        own.open_splits = _open_splits(own.settings, args)
        labelled.leave_out(name, _without_class(own), "of a class that no clip trains")
        if own.settings.kind == "ctc":
            labelled.leave_out(name, np.flatnonzero((own.splits != "") & (own.labels == "")), "without a text")
    return labelled


def _open_splits(settings: TaskSettings, args: MultiTaskArguments) -> tuple[str, ...]:
    if args.folds:
        return ("test",) if unseen_column(settings, args) else ()
    return ("validation", "test") if settings.has_open_labels else ()


def _without_class(task: TaskLabels) -> np.ndarray:
    """Clips that are judged by classes and are of none: of a speaker all of whose clips validate."""
    if task.settings.kind != "classes":
        return np.zeros(0, dtype=np.int64)
    is_judged = ~np.isin(task.splits, ["", *task.open_splits])
    return np.flatnonzero(is_judged & (task.targets == IGNORED_LABEL))


def _source(settings: TaskSettings) -> TaskSource:
    is_closed = settings.kind == "classes" and not settings.has_open_labels
    return TaskSource(
        as_paths(settings.manifest),
        settings.label_column,
        tuple(settings.split_column),
        settings.disjoint_by,
        closed_set=is_closed,
        kind="regression" if settings.kind == "numbers" else "classification",
    )


def _labels(
    settings: TaskSettings,
    task: TaskClips,
    position: Mapping[tuple, int],
    num_clips: int,
    known: TaskLabels | None = None,
) -> TaskLabels:
    """The task's labels on all clips.

    Args:
        known: of a further test set, the task that has learnt the symbols, classes or scale.
    """
    places = [position[clip.place] for clip in task.clips]
    splits, labels, groups = (np.full(num_clips, "", dtype=object) for _ in range(3))
    splits[places], groups[places] = task.splits, task.groups
    labels[places] = task.labels
    if settings.kind == "ctc":
        labels = np.array([normalised(text, settings.text_settings) for text in labels], dtype=object)
    readout = dict(known.readout) if known else {**settings.readout(), **_learnt(settings, task, labels[splits == "train"])}
    if settings.kind == "ctc":
        targets = [torch.tensor(encode_text(text, readout["vocabulary"])) if text else None for text in labels]
    elif settings.kind == "numbers":
        targets = np.full(num_clips, IGNORED_LABEL, dtype=np.float32)
        targets[places] = (task.numbers - readout["mean"]) / readout["std"]
    else:
        index = {label: number for number, label in enumerate(readout["labels"])}
        targets = np.array([index.get(label, IGNORED_LABEL) for label in labels], dtype=np.int64)
        unknown = sorted(set(labels[places]) - set(index))
        if known and unknown and not settings.has_open_labels:
            raise ValueError(f"tests.{task.name}: the labels {unknown} never occur in the training of {known.name!r}.")
    return TaskLabels(task.name, settings, readout, splits, labels, groups, targets)


def _learnt(settings: TaskSettings, task: TaskClips, trained: np.ndarray) -> dict[str, Any]:
    """What the readout knows of its training labels."""
    if settings.kind == "ctc":
        return {"vocabulary": vocabulary_of(trained)}
    if settings.kind == "numbers":
        scale = scale_of(task)
        return {"mean": scale.mean, "std": scale.std}
    return {"labels": task.classes}


def _trials(name: str, settings: TaskSettings, clips: list[Clip], digests: list[str], position: dict[tuple, int]) -> Trials:
    """The trials of a task in terms of all clips, to which clips that only trials name are added."""
    rows_of: dict[str, list[int]] = {}
    for path in settings.manifest:
        manifest = Manifest(path)
        for clip in manifest.clips:
            if position.setdefault(clip.place, len(clips)) == len(clips):
                clips.append(clip)
                digests.append("")
        for clip_id, rows in rows_by_name(manifest).items():
            rows_of.setdefault(clip_id, []).extend(position[manifest.clips[row].place] for row in rows)
    try:
        return read_trials(Path(settings.trials), rows_of)
    except ValueError as error:
        raise ValueError(f"tasks.{name}: {error}") from error


def _refuse_known_trials(task: TaskLabels, trials: Trials, clips: Sequence[Clip]) -> None:
    if task.test_of is not None:
        if outside := [row for row in trials.rows if task.splits[row] != "test"]:
            raise ValueError(f"tests.{task.name}: {clips[outside[0]].clip_id} is in a trial and not in the test split.")
        return
    known = [row for row in trials.rows if task.splits[row] in ("train", "test")]
    if known:
        raise ValueError(
            f"tasks.{task.name}: {clips[known[0]].clip_id} is in the {task.splits[known[0]]} split and in trials "
            f"({len(known)} such clips); validation's trials have clips that are neither trained on nor tested."
        )


def leave_out_unusable(labelled: LabelledClips, args: MultiTaskArguments, reader: CropReader, shortest: int) -> None:
    """Leave out what cannot be decoded, is too short or too long, or cannot hold its text.

    Args:
        shortest: samples of one frame.

    Raises:
        ValueError: a task has no clip left in training or validation, or a further test set none at all.
    """
    streams = args.stream_settings()
    whole = {task for stream in streams.values() if stream.crop == "whole" for task in stream.tasks}
    lengths, fastest = reader.num_samples, max(args.augment_settings().speeds, default=PLAIN_SPEED)
    for name, task in labelled.all.items():
        is_own, is_fitted = task.splits != "", task.splits != "test"
        shortest_lengths = np.where(task.splits == "train", at_speed(lengths, fastest), lengths)
        bad = np.flatnonzero(is_own & (shortest_lengths < shortest))
        unreadable = [row for row in bad if row in reader.unusable]
        labelled.leave_out(name, unreadable, "unreadable")
        labelled.leave_out(name, [row for row in bad if row not in reader.unusable], "shorter than a frame")
        if name in whole:
            is_long = lengths > args.max_clip_s * SAMPLING_RATE_HZ
            labelled.leave_out(name, np.flatnonzero((task.splits != "") & is_fitted & is_long), f"over {args.max_clip_s:g} s")
        if task.settings.kind == "ctc":
            _leave_out_texts(labelled, task, args, reader, shortest_lengths)
        for split in ("train", "validation") if task.test_of is None else ("test",):
            if not len(task.rows(split)):
                reasons = dict(labelled.left_out.get(name, {}))
                section = "tasks" if task.test_of is None else "tests"
                raise ValueError(f"{section}.{name}: no clip of the {split} split is left; left out: {reasons}.")


def _leave_out_texts(
    labelled: LabelledClips, task: TaskLabels, args: MultiTaskArguments, reader: CropReader, lengths: np.ndarray
) -> None:
    fitted = np.flatnonzero((task.splits == "train") | (task.splits == "validation"))
    is_long = np.array([len(task.labels[row]) > args.max_characters for row in fitted], dtype=bool)
    labelled.leave_out(task.name, fitted[is_long], f"over {args.max_characters} characters")
    crowded = [
        row for row in fitted[~is_long] if frames_needed(task.targets[row].tolist()) > reader.num_frames(int(lengths[row]))
    ]
    labelled.leave_out(task.name, crowded, "too short for their text")
