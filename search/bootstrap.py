"""How far figures of several models on the same clips can be told apart: a paired bootstrap over clips or speakers.

Shapes: `V` models, `N` clips of a task, `U` units (speakers or clips), `R` resamples, `S` sums of a task. Every resample draws
the units once, and all models and tasks see the same draw: units with labels for the same tasks are drawn with replacement
among themselves, so that a clip or speaker of two tasks counts in both alike, and no task ever runs empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wavcse.data.composite import CompositeSet, TaskSource
from wavcse.data.manifest import Clip, Manifest
from wavcse.modeling_wavcse import CCC_EPSILON, IGNORED_LABEL
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


class Answers(NamedTuple):
    """What all models say of a task's clips, as numbers per clip whose sums over the clips drawn give the models' figures.

    `parts` `[S, N]`; `figures` makes of their sums `[S, R]` the figures `[V, R]`.
    """

    parts: np.ndarray
    figures: Callable[[np.ndarray], np.ndarray]


def class_answers(correct: np.ndarray) -> Answers:
    """Of a task with classes, whose figure is the accuracy: `[V, N]`, 1 where a model is right.

    A mean over seeds may lie between.
    """
    return Answers(np.vstack([correct, np.ones(correct.shape[1])]), lambda sums: sums[:-1] / sums[-1])


def number_answers(outputs: np.ndarray, targets: np.ndarray) -> Answers:
    """Of a regression task, whose figure is the CCC, a mean over seeds.

    Args:
        outputs: `[V, seeds, N]`.
        targets: `[N]`; both near zero, such as standardised numbers.
    """
    num_models, num_seeds, num_clips = outputs.shape
    own = outputs.reshape(-1, num_clips)
    parts = np.vstack([own, own * own, own * targets, targets, targets * targets, np.ones(num_clips)])

    def figures(sums: np.ndarray) -> np.ndarray:
        means = sums[:-1] / sums[-1]
        (x, xx, xy), y, yy = means[:-2].reshape(3, len(own), -1), means[-2], means[-1]
        # `concordance`: the variances and the squared difference of the means add up to this denominator.
        found = 2 * (xy - x * y) / (xx + yy - 2 * x * y + CCC_EPSILON)
        return found.reshape(num_models, num_seeds, -1).mean(axis=1)

    return Answers(parts, figures)


def resampled_figures(
    answers: Mapping[str, Answers], units: Mapping[str, np.ndarray], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, np.ndarray]:
    """Task -> figures of all models in every resample, `[V, R]`.

    Args:
        answers: task -> what its figures are made of.
        units: task -> what each clip belongs to, any int64 `[N]`; equal numbers in two tasks are the same unit.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    totals = {task: np.zeros((len(own.parts), num_resamples)) for task, own in answers.items()}
    for tasks, members in _strata(units):
        sums = {task: _sums(answers[task].parts, units[task], members) for task in tasks}
        step = max(1, CHUNK // len(members))
        for start in range(0, num_resamples, step):
            part = slice(start, min(start + step, num_resamples))
            # How often each unit is drawn, [R, U]: a product with the sums per unit then gives all resamples at once.
            counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=part.stop - part.start)
            for task, own in sums.items():
                totals[task][:, part] += own @ counts.T
    return {task: own.figures(totals[task]) for task, own in answers.items()}


def _strata(units: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Tasks and the units, sorted, that have clips of exactly these tasks."""
    everything = np.unique(np.concatenate(list(units.values())))
    pattern = np.stack([np.isin(everything, own) for own in units.values()], axis=1)  # [U, tasks]
    for own in np.unique(pattern, axis=0):
        yield [task for task, has in zip(units, own) if has], everything[(pattern == own).all(axis=1)]


def _sums(parts: np.ndarray, units: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Sums over the clips of every member, `[S, U]`."""
    is_member = np.isin(units, members)
    position = np.searchsorted(members, units[is_member])
    return np.stack([np.bincount(position, weights=own[is_member], minlength=len(members)) for own in parts])


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
