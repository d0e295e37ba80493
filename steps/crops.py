"""Which clips a batch has, which part of each, and which frames are masked; all follow from (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.steps.arguments import StepArguments

TRIES = 10  # to find a clip that is not in the batch yet
PLAIN_SPEED = 100  # percent


class Crop(NamedTuple):
    """A part of a clip: `start` and `num_samples` in samples, and which of its frames are masked, bool `[T]`.

    `silence` samples follow it, so that it is as long as others, and are part of the frames. All is then played at `speed`
    percent; the frames are those of what comes of it.
    """

    clip: int
    start: int
    num_samples: int
    mask: np.ndarray
    silence: int = 0
    speed: int = PLAIN_SPEED

    @property
    def length(self) -> int:
        """Samples that the encoder sees."""
        return int(at_speed(self.num_samples + self.silence, self.speed))

    def played_at(self, speed: int, frames_of: Callable[[int], int]) -> Crop:
        """The crop at another speed, its mask stretched with it."""
        if speed == self.speed:
            return self
        changed = self._replace(speed=speed)
        count = frames_of(changed.length)
        places = np.arange(count) * len(self.mask) // max(1, count)
        return changed._replace(mask=self.mask[places])


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

    def __init__(self, args: StepArguments, num_samples: np.ndarray, targets: np.ndarray, shortest: int, frames_of: Callable):
        self.args, self.targets, self.frames_of = args, targets, frames_of
        self.num_samples = num_samples
        self.step_samples = to_samples(args.length_step_s)
        usable = np.flatnonzero(num_samples >= max(self.step_samples, shortest))
        if not len(usable):
            raise ValueError(f"no clip is as long as length_step_s ({args.length_step_s} s) and one frame of the encoder.")
        self.num_too_short = len(num_samples) - len(usable)
        by_label = args.labels_per_batch > 0
        members = {int(label): usable[targets[usable] == label] for label in np.unique(targets[usable])}
        self.unlabelled = Pool(members.pop(IGNORED_LABEL, usable[:0]), num_samples) if by_label else Pool(usable, num_samples)
        self.pools = [Pool(rows, num_samples) for rows in members.values()] if by_label else []
        hours = np.array([pool.total for pool in self.pools])
        self.label_probability = hours**args.label_exponent / np.sum(hours**args.label_exponent) if len(hours) else hours
        self.unlabelled_share = self.unlabelled.total / num_samples[usable].sum()

    def crops(self, step: int, part: int = 0) -> list[Crop]:
        """The crops of pass `part` of an update, longest first."""
        rng = np.random.default_rng([self.args.seed, step, part])
        pools = self._pools_of_batch(rng)
        crops, used, total, unlabelled = [], set(), 0, 0
        budget = to_samples(self.args.batch_seconds)
        turn = 0
        while True:
            # Clips without a label come whenever they have less of the batch than their share of the hours.
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
        for _ in range(TRIES):  # a small pool may have no other clip left: then one comes twice
            if clip not in used:
                break
            clip = pool.draw(rng)
        longest = min(self.num_samples[clip], to_samples(self.args.crop_s))
        length = int(longest // self.step_samples * self.step_samples)
        start = int(rng.integers(self.num_samples[clip] - length + 1))
        args = self.args
        mask = span_mask(rng, self.frames_of(length), args.mask_probability, args.mask_frames, args.mask_least)
        return Crop(clip, start, length, mask)


class Pool:
    """Clips of which one is drawn with a probability in proportion to its length."""

    def __init__(self, rows: np.ndarray, num_samples: np.ndarray):
        self.rows, self.ends = rows, np.cumsum(num_samples[rows])
        self.total = int(self.ends[-1]) if len(rows) else 0

    def draw(self, rng: np.random.Generator) -> int:
        """A clip's number."""
        return int(self.rows[np.searchsorted(self.ends, rng.integers(self.total), side="right")])


def span_mask(rng: np.random.Generator, num_frames: int, probability: float, span: int, least: int = 1) -> np.ndarray:
    """Masked frames, bool `[num_frames]`: each frame starts a span with `probability`; `least` spans, cut at the end.

    Spans of 0 frames mask nothing.

    The expected share far from the edges is `1 - (1 - probability) ** span`: 33 % for 0.02 and 20 frames.
    """
    starts = np.flatnonzero(rng.random(num_frames) < probability)
    if len(starts) < least:
        starts = rng.integers(max(1, num_frames - span + 1), size=least)
    mask = np.zeros(num_frames, dtype=bool)
    for start in starts:
        mask[start : start + span] = True
    return mask


def at_speed(num_samples: int | np.ndarray, speed: int) -> int | np.ndarray:
    """How many samples are left of so many at `speed` percent."""
    return np.rint(np.asarray(num_samples) * PLAIN_SPEED / speed).astype(np.int64)


def to_samples(seconds: float) -> int:
    """Seconds in samples."""
    return round(seconds * SAMPLING_RATE_HZ)
