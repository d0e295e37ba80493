"""How far accuracies of several models on the same clips can be told apart: a paired bootstrap over clips or speakers.

Shapes: `V` models, `N` clips of a task, `U` units (speakers or clips), `R` resamples. Every resample draws the units once, and
all models and tasks see the same draw: units with labels for the same tasks are drawn with replacement among themselves, so
that a clip or speaker of two tasks counts in both alike, and no task ever runs empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from wavcse.data.composite import CompositeSet, TaskSource
from wavcse.data.manifest import Clip, Manifest
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search.stability import ERROR_RATE

NUM_RESAMPLES = 2000
CHUNK = 20_000_000  # draws held at a time


def groups_of(sources: Mapping[str, TaskSource], clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Task -> the number of each clip's speaker, int64 `[len(clips)]`, -1 where the clip is not in the task's manifests.

    Only tasks with a `disjoint_by` column are there: a task whose splits share speakers says nothing about other speakers.
    """
    groups, number_of = {}, {}
    for task, source in sources.items():
        if source.disjoint_by:
            manifests = map(Manifest, source.manifests)
            speaker_of = {
                clip.place: (own.path, source.disjoint_by, value)
                for own in manifests
                for clip, value in zip(own.clips, own.column(source.disjoint_by))
            }
            speakers = [speaker_of.get(clip.place) for clip in clips]
            numbers = [-1 if speaker is None else number_of.setdefault(speaker, len(number_of)) for speaker in speakers]
            groups[task] = np.array(numbers, dtype=np.int64)
    return groups


def units_of(composite: CompositeSet, groups: Mapping[str, np.ndarray], split: str) -> dict[str, tuple[str, np.ndarray]]:
    """Task -> what a resample draws, "speaker" or "clip", and the unit of each of its clips in this split, int64 `[N]`.

    Clips are drawn where the task is not in `groups`, or has fewer than two speakers in this split.
    """
    units = {}
    for task, targets in composite.targets[split].items():
        rows = np.flatnonzero(targets != IGNORED_LABEL)
        speakers = groups[task][rows] if task in groups else rows[:0]
        has_speakers = len(np.unique(speakers)) > 1
        units[task] = ("speaker", speakers) if has_speakers else ("clip", -1 - rows)  # below 0: no number of a speaker
    return units


def resampled_accuracies(
    correct: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, np.ndarray]:
    """Task -> accuracies of all models in every resample, `[V, R]`.

    Args:
        correct: task -> `[V, N]`, 1 where a model is right; a mean over seeds may lie between.
        units: task -> what each clip belongs to, any int64 `[N]`; equal numbers in two tasks are the same unit.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    hits = {task: np.zeros((len(own), num_resamples)) for task, own in correct.items()}
    sizes = {task: np.zeros(num_resamples) for task in correct}
    for tasks, members in _strata(units):
        sums = {task: _sums(correct[task], units[task], members) for task in tasks}
        step = max(1, CHUNK // len(members))
        for start in range(0, num_resamples, step):
            part = slice(start, min(start + step, num_resamples))
            # How often each unit is drawn, [R, U]: a product with the sums per unit then gives all resamples at once.
            counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=part.stop - part.start)
            for task, (right, clips) in sums.items():
                hits[task][:, part] += right @ counts.T
                sizes[task][part] += clips @ counts.T
    return {task: hits[task] / sizes[task] for task in correct}


def _strata(units: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Tasks and the units, sorted, that have clips of exactly these tasks."""
    everything = np.unique(np.concatenate(list(units.values())))
    pattern = np.stack([np.isin(everything, own) for own in units.values()], axis=1)  # [U, tasks]
    for own in np.unique(pattern, axis=0):
        yield [task for task, has in zip(units, own) if has], everything[(pattern == own).all(axis=1)]


def _sums(correct: np.ndarray, units: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right answers `[V, U]` and clips `[U]` of every member."""
    is_member = np.isin(units, members)
    position = np.searchsorted(members, units[is_member])
    right = [np.bincount(position, weights=own[is_member], minlength=len(members)) for own in correct]
    return np.stack(right), np.bincount(position, minlength=len(members))


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of resampled figures."""
    return [float(end) for end in np.quantile(values, [ERROR_RATE / 2, 1 - ERROR_RATE / 2])]


def difference_of(mean: float, values: np.ndarray) -> dict:
    """A difference with its 95 % interval and two-sided p of there being none, from resampled differences `[R]`.

    `is_distinguishable` where the interval does not hold zero. p is never below 2 / (R + 1).
    """
    low, high = interval(values)
    tail = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(values) + 1))
    return {"mean": mean, "interval": [low, high], "p": p, "is_distinguishable": not low <= 0 <= high}
