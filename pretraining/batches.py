"""Batches of random crops: which clips, which part of each, which frames are masked; all follow from (seed, step).

Every process works out the whole batch and loads its own share, so that one and several processes train on the same data, a
continued run repeats an undisturbed one, and the losses can be divided by counts over all processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import WavLMConfig

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.audio_store import AudioStore
from wavcse.pretraining.clips import PretrainingClips
from wavcse.pretraining.label_losses import MISSING_LABEL
from wavcse.pretraining.quantizer import receptive_field
from wavcse.upstream_wavcse import count_frames

NORMALISATION_EPSILON = 1e-7  # of transformers' Wav2Vec2FeatureExtractor
TRIES = 10  # to find a clip that is not in the batch yet


class Crop(NamedTuple):
    """A part of a clip: `start` and `num_samples` in samples, and which of its frames are masked, bool `[T]`."""

    clip: int
    start: int
    num_samples: int
    mask: np.ndarray


@dataclass(frozen=True)
class Group:
    """Crops of one length: normalised `waveforms` `[b, samples]`, `mask` bool `[b, T]`, never padded."""

    waveforms: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Group:
        """The group on another device."""
        return Group(self.waveforms.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch, and what it must know of the whole.

    Crop i of the whole belongs to process `i % num_processes`, as its crop `i // num_processes`.

    Attributes:
        groups: this process's crops, longest first.
        labels: int64 `[n]` of the whole batch.
        num_masked: masked frames of the whole batch.
        seconds: audio of the whole batch.
    """

    groups: list[Group]
    labels: Tensor
    num_masked: int
    seconds: float

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        groups = [group.to(device) for group in self.groups]
        return Batch(groups, self.labels.to(device), self.num_masked, self.seconds)


class CropPlanner:
    """Draws the crops of every batch.

    Labelled clips: `labels_per_batch` labels, drawn by their hours, deal a clip each in turn (P x K) until `batch_seconds` are
    full. Clips without a label get the share of the batch that they have of the hours. Within a label, or among all clips
    where labels do not matter, a clip is drawn by its duration.

    Args:
        num_samples: length of every clip, `[N]`.
        targets: label of every clip, `[N]`, some of them hidden or wrong.
        shortest: samples that give one frame of the encoder; shorter clips are left out.
        frames_of: number of samples -> number of frames of the encoder.

    Raises:
        ValueError: every clip is too short.
    """

    def __init__(
        self, args: PretrainArguments, num_samples: np.ndarray, targets: np.ndarray, shortest: int, frames_of: Callable
    ):
        self.args, self.targets, self.frames_of = args, targets, frames_of
        self.num_samples = num_samples
        self.step_samples = _samples(args.length_step_s)
        usable = np.flatnonzero(num_samples >= max(self.step_samples, shortest))
        if not len(usable):
            raise ValueError(f"no clip is as long as length_step_s ({args.length_step_s} s) and one frame of the encoder.")
        self.num_too_short = len(num_samples) - len(usable)
        by_label = args.labels_per_batch > 0
        members = {int(label): usable[targets[usable] == label] for label in np.unique(targets[usable])}
        self.unlabelled = Pool(members.pop(MISSING_LABEL, usable[:0]), num_samples) if by_label else Pool(usable, num_samples)
        self.pools = [Pool(rows, num_samples) for rows in members.values()] if by_label else []
        hours = np.array([pool.total for pool in self.pools])
        self.label_probability = hours**args.label_exponent / np.sum(hours**args.label_exponent) if len(hours) else hours
        self.unlabelled_share = self.unlabelled.total / num_samples[usable].sum()

    def crops(self, step: int, part: int = 0) -> list[Crop]:
        """The crops of pass `part` of an update, longest first."""
        rng = np.random.default_rng([self.args.seed, step, part])
        pools = self._pools_of_batch(rng)
        crops, used, total, unlabelled = [], set(), 0, 0
        budget = _samples(self.args.batch_seconds)
        turn = 0
        while True:
            is_unlabelled = not pools or unlabelled < self.unlabelled_share * total
            pool = self.unlabelled if is_unlabelled else pools[turn % len(pools)]
            crop = self._crop(rng, pool, used)
            if total + crop.num_samples > budget:
                break
            crops.append(crop)
            used.add(crop.clip)
            total += crop.num_samples
            unlabelled += crop.num_samples if pool is self.unlabelled else 0
            turn += pool is not self.unlabelled
        return sorted(crops, key=lambda crop: -crop.num_samples)

    def _pools_of_batch(self, rng: np.random.Generator) -> list[Pool]:
        """As many labels as are wanted and can have two crops each in their share of the batch."""
        if not self.pools:
            return []
        affordable = int((1 - self.unlabelled_share) * self.args.batch_seconds / (2 * self.args.crop_s))
        count = min(self.args.labels_per_batch, len(self.pools), max(2, affordable))
        drawn = rng.choice(len(self.pools), size=count, replace=False, p=self.label_probability)
        return [self.pools[i] for i in drawn]

    def _crop(self, rng: np.random.Generator, pool: Pool, used: set[int]) -> Crop:
        clip = pool.draw(rng)
        for _ in range(TRIES):
            if clip not in used:
                break
            clip = pool.draw(rng)
        longest = min(self.num_samples[clip], _samples(self.args.crop_s))
        length = int(longest // self.step_samples * self.step_samples)
        start = int(rng.integers(self.num_samples[clip] - length + 1))
        mask = span_mask(rng, self.frames_of(length), self.args.mask_probability, self.args.mask_frames)
        return Crop(clip, start, length, mask)


class Pool:
    """Clips of which one is drawn with a probability in proportion to its length."""

    def __init__(self, rows: np.ndarray, num_samples: np.ndarray):
        self.rows, self.ends = rows, np.cumsum(num_samples[rows])
        self.total = int(self.ends[-1]) if len(rows) else 0

    def draw(self, rng: np.random.Generator) -> int:
        """A clip's number."""
        return int(self.rows[np.searchsorted(self.ends, rng.integers(self.total), side="right")])


def span_mask(rng: np.random.Generator, num_frames: int, probability: float, span: int) -> np.ndarray:
    """Masked frames, bool `[num_frames]`: each frame starts a span with `probability`; at least one span, cut at the end.

    The expected share far from the edges is `1 - (1 - probability) ** span`: 33 % for 0.02 and 20 frames.
    """
    starts = np.flatnonzero(rng.random(num_frames) < probability)
    if not len(starts):
        starts = rng.integers(max(1, num_frames - span + 1), size=1)
    mask = np.zeros(num_frames, dtype=bool)
    for start in starts:
        mask[start : start + span] = True
    return mask


class BatchLoader:
    """Planned batches with their audio, loaded one ahead of the training.

    Args:
        process_index, num_processes: whose share is loaded.
    """

    def __init__(
        self,
        args: PretrainArguments,
        clips: PretrainingClips,
        targets: np.ndarray,
        store: AudioStore,
        config: WavLMConfig,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.args, self.clips, self.targets, self.store = args, clips, targets, store
        self.process_index, self.num_processes = process_index, num_processes
        self.first, num_samples = _bounds(clips, store)
        frames = {}

        def frames_of(length: int) -> int:
            return frames.setdefault(length, int(count_frames(torch.tensor(length), config)))

        self.planner = CropPlanner(args, num_samples, targets, receptive_field(config), frames_of)
        self.hours = num_samples.sum() / SAMPLING_RATE_HZ / 3600

    def updates(self, first_step: int) -> Iterator[list[Batch]]:
        """For each update from `first_step` on, its `gradient_accumulation_steps` batches."""
        with ThreadPoolExecutor(1) as pool:
            steps = range(first_step, self.args.max_steps)
            futures = [pool.submit(self.update, step) for step in steps[:1]]
            for step in steps:
                batches = futures.pop().result()
                if step + 1 in steps:
                    futures.append(pool.submit(self.update, step + 1))
                yield batches

    def update(self, step: int) -> list[Batch]:
        """The batches of update `step` (from 0)."""
        return [self._batch(self.planner.crops(step, part)) for part in range(self.args.gradient_accumulation_steps)]

    def _batch(self, crops: Sequence[Crop]) -> Batch:
        if len(crops) < self.num_processes:
            raise ValueError(f"a batch has {len(crops)} crops for {self.num_processes} processes; raise batch_seconds.")
        mine = crops[self.process_index :: self.num_processes]
        groups = [self._group(list(some)) for _, some in itertools.groupby(mine, key=lambda crop: crop.num_samples)]
        labels = torch.from_numpy(self.targets[[crop.clip for crop in crops]])
        seconds = sum(crop.num_samples for crop in crops) / SAMPLING_RATE_HZ
        return Batch(groups, labels, sum(int(crop.mask.sum()) for crop in crops), seconds)

    def _group(self, crops: Sequence[Crop]) -> Group:
        parts = [
            self.store.read(self.clips.clips[crop.clip].path, self.first[crop.clip] + crop.start, crop.num_samples)
            for crop in crops
        ]
        masks = np.stack([crop.mask for crop in crops])
        return Group(normalised(torch.from_numpy(np.stack(parts))), torch.from_numpy(masks))


def normalised(waveforms: Tensor) -> Tensor:
    """Zero mean and unit variance of each row, as the feature extractor of these encoders does it, `[b, samples]`."""
    centred = waveforms - waveforms.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + NORMALISATION_EPSILON).sqrt()


def _bounds(clips: PretrainingClips, store: AudioStore) -> tuple[np.ndarray, np.ndarray]:
    """First sample of every clip in its file, and number of samples; an end beyond the file is the file's end."""
    first = np.array([_samples(clip.start_s) for clip in clips.clips], dtype=np.int64)
    in_file = [store.num_samples(clip.path) for clip in clips.clips]
    ends = [size if clip.end_s is None else min(size, _samples(clip.end_s)) for clip, size in zip(clips.clips, in_file)]
    return first, np.maximum(np.array(ends, dtype=np.int64) - first, 0)


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLING_RATE_HZ)
