"""Streams: which clips every batch has, of whole clips or of crops; all follow from (seed, step), so shorter streams cycle.

Shapes: `N` clips of all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.finetuning.arguments import WHOLE, MultiTaskArguments, StreamSettings
from wavcse.finetuning.labelled_clips import LabelledClips, TaskLabels
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.steps.batches import CropReader, Group, loaded_ahead
from wavcse.steps.crops import Crop, CropPlanner, span_mask, to_samples

LENGTH_STEP_S = 0.1  # of whole clips: so much silence at most makes neighbours equally long
Targets = Tensor | list[Tensor | None]  # of classes or numbers, or the tokens of texts


@dataclass(frozen=True)
class TaskBatch:
    """One process's share of a batch of a stream, and what it must know of the whole.

    Crop i of the whole belongs to process `i % num_processes`.

    Attributes:
        stream: its name.
        groups: this process's crops, longest first.
        targets: task -> of this process's crops, in their order.
        counts: task -> clips of the whole batch that have a label.
        num_clips: of the whole batch.
        seconds: audio of the whole batch.
    """

    stream: str
    groups: list[Group]
    targets: dict[str, Targets]
    counts: dict[str, int]
    num_clips: int
    seconds: float

    def to(self, device: torch.device) -> TaskBatch:
        """The batch on another device."""
        groups = [group.to(device) for group in self.groups]
        targets = {name: _moved(values, device) for name, values in self.targets.items()}
        return TaskBatch(self.stream, groups, targets, self.counts, self.num_clips, self.seconds)


def _moved(values: Targets, device: torch.device) -> Targets:
    if isinstance(values, Tensor):
        return values.to(device)
    return [None if one is None else one.to(device) for one in values]


@dataclass(frozen=True)
class CropRules:
    """What `CropPlanner` has to know of a stream of crops; see `StreamSettings` and `MultiTaskArguments`."""

    seed: int
    batch_seconds: float
    crop_s: float
    length_step_s: float
    labels_per_batch: int
    label_exponent: float
    mask_probability: float
    mask_frames: int
    mask_least: int
    batch_clips: int = 0


class WholePlanner:
    """Batches of whole clips of similar length; every clip comes once in an epoch, and epochs follow each other.

    Clips are filled up with silence to multiples of 0.1 s, so that equal lengths meet. Sorted by that length, the clips of an
    epoch are cut into batches of `batch_clips`, or where `batch_seconds` are full; which clips of one length meet, and the
    order of the batches, are drawn for each epoch.

    Args:
        num_samples: length of every clip, `[N]`; 0 = not in the stream.
        stream: number of the stream, which its draws depend on.
    """

    def __init__(self, rules: CropRules, num_samples: np.ndarray, frames_of: Callable[[int], int], stream: int):
        self.rules, self.num_samples, self.frames_of, self.stream = rules, num_samples, frames_of, stream
        step = to_samples(LENGTH_STEP_S)
        self.rows = np.flatnonzero(num_samples > 0)
        self.lengths = -(-num_samples // step) * step
        self.bounds = self._bounds(np.sort(self.lengths[self.rows])[::-1])
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def _bounds(self, lengths: np.ndarray) -> list[int]:
        """Where batches start among the clips of an epoch, longest first, and the end: the same in every epoch."""
        if self.rules.batch_clips:
            return [*range(0, len(lengths), self.rules.batch_clips), len(lengths)]
        budget, bounds, used = to_samples(self.rules.batch_seconds), [0], 0
        for place, length in enumerate(lengths):
            if used and used + length > budget:
                bounds.append(place)
                used = 0
            used += int(length)
        return [*bounds, len(lengths)]

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every clip has come once."""
        return len(self.bounds) - 1

    @property
    def smallest_batch(self) -> int:
        """Clips of the smallest batch."""
        return int(np.diff(self.bounds).min())

    def crops(self, step: int) -> list[Crop]:
        """The clips of update `step` (from 0), longest first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch)
        rng = np.random.default_rng([self.rules.seed, step, self.stream, 1])
        return [self._whole(rng, int(row)) for row in self._epoch[1][place]]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.rules.seed, epoch, self.stream, 0])
        rows = rng.permutation(self.rows)
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        batches = [rows[start:end] for start, end in zip(self.bounds, self.bounds[1:])]
        return [batches[number] for number in rng.permutation(len(batches))]

    def _whole(self, rng: np.random.Generator, row: int) -> Crop:
        rules, length = self.rules, int(self.num_samples[row])
        silence = int(self.lengths[row]) - length
        frames = self.frames_of(length + silence)
        mask = span_mask(rng, frames, rules.mask_probability, rules.mask_frames, rules.mask_least)
        return Crop(row, 0, length, mask, silence)


class StreamLoader:
    """A batch of every stream for each update, with its audio, loaded one ahead of the training.

    Attributes:
        steps_per_epoch: updates until every clip of the longest stream has come once; of crops, until so much audio has.

    Raises:
        ValueError: no training clip of a stream is long enough.
    """

    def __init__(
        self,
        args: MultiTaskArguments,
        labelled: LabelledClips,
        reader: CropReader,
        shortest: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.args, self.labelled, self.reader = args, labelled, reader
        self.process_index, self.num_processes = process_index, num_processes
        self.streams, self.speeds = args.stream_settings(), args.augment_settings().speeds
        self.steps_per_epoch = 1
        self.planners = {
            name: self._planner(name, stream, number, shortest) for number, (name, stream) in enumerate(self.streams.items())
        }

    @property
    def max_steps(self) -> int:
        """Updates of the whole training."""
        return self.args.num_epochs * self.steps_per_epoch or self.args.max_steps

    def updates(self, first_step: int) -> Iterator[list[TaskBatch]]:
        """For each update from `first_step` on, a batch of each stream."""
        return loaded_ahead(self.update, range(first_step, self.max_steps))

    def update(self, step: int) -> list[TaskBatch]:
        """The batches of update `step` (from 0)."""
        return [
            self._batch(name, self._at_drawn_speed(planner(step), step, number))
            for number, (name, planner) in enumerate(self.planners.items())
        ]

    def _at_drawn_speed(self, crops: list[Crop], step: int, stream: int) -> list[Crop]:
        """The crops at one of the speeds: all at the same, so that those of one length still go together."""
        if not self.speeds:
            return crops
        rng = np.random.default_rng([self.args.seed, step, stream, 2])
        speed = self.speeds[rng.integers(len(self.speeds))]
        return [crop.played_at(speed, self.reader.num_frames) for crop in crops]

    def rules(self, stream: StreamSettings) -> CropRules:
        """How a stream is cut and masked."""
        args = self.args
        is_masked = args.mask_share > 0 and args.mask_frames > 0
        crop_s = float(stream.batch_seconds if stream.crop == WHOLE else stream.crop)
        return CropRules(
            args.seed,
            stream.batch_seconds,
            crop_s,
            stream.length_step_s,
            stream.labels_per_batch,
            stream.label_exponent,
            args.mask_share / args.mask_frames if is_masked else 0.0,
            args.mask_frames if is_masked else 0,
            args.mask_least,
            stream.batch_clips,
        )

    def _planner(self, name: str, stream: StreamSettings, number: int, shortest: int) -> Callable[[int], list[Crop]]:
        is_trained = np.zeros(len(self.labelled.clips), dtype=bool)
        for task in stream.tasks:
            is_trained[self.labelled.tasks[task].rows("train")] = True
        num_samples = np.where(is_trained, self.reader.num_samples, 0)
        rules = self.rules(stream)
        if stream.crop == WHOLE:
            whole = WholePlanner(rules, num_samples, self.reader.num_frames, number)
            self._check_size(name, whole.smallest_batch)  # not after hours, when that batch comes
            self.steps_per_epoch = max(self.steps_per_epoch, whole.steps_per_epoch)
            return whole.crops
        try:
            planner = CropPlanner(rules, num_samples, self._classes(stream), shortest, self.reader.num_frames)
        except ValueError as error:
            raise ValueError(f"streams.{name}: {error}") from error
        steps = round(num_samples.sum() / to_samples(stream.batch_seconds))
        self.steps_per_epoch = max(self.steps_per_epoch, steps)
        return lambda step: planner.crops(step, number)

    def _classes(self, stream: StreamSettings) -> np.ndarray:
        """Labels by which crops may be drawn: of the first task with classes; none without one."""
        tasks = [self.labelled.tasks[name] for name in stream.tasks]
        own = next((task for task in tasks if task.settings.kind == "classes"), None)
        return np.full(len(self.labelled.clips), IGNORED_LABEL) if own is None else own.targets

    def _check_size(self, name: str, num_clips: int) -> None:
        if num_clips < self.num_processes:
            raise ValueError(
                f"streams.{name}: a batch has {num_clips} clips for {self.num_processes} processes; change batch_seconds or "
                "batch_clips."
            )

    def _batch(self, name: str, crops: Sequence[Crop]) -> TaskBatch:
        self._check_size(name, len(crops))
        mine = crops[self.process_index :: self.num_processes]
        tasks = {task: self.labelled.tasks[task] for task in self.streams[name].tasks}
        all_rows, rows = ([crop.clip for crop in some] for some in (crops, mine))
        return TaskBatch(
            name,
            self.reader.groups(mine),
            {task: targets_of(self.labelled.tasks[task], rows) for task in tasks},
            {task: int(np.sum(own.splits[all_rows] == "train")) for task, own in tasks.items()},
            len(crops),
            sum(crop.length for crop in crops) / SAMPLING_RATE_HZ,
        )


def targets_of(task: TaskLabels, rows: Sequence[int], split: str = "train") -> Targets:
    """What a task has to say of clips; nothing of those that it does not have in that split."""
    is_there = task.splits[list(rows)] == split
    if task.settings.kind == "ctc":
        return [task.targets[row] if there else None for row, there in zip(rows, is_there)]
    values = np.where(is_there, task.targets[list(rows)], task.targets.dtype.type(IGNORED_LABEL))
    return torch.from_numpy(values)
