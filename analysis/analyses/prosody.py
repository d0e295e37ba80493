"""Pitch, energy and duration of a clip, read off every vector: what is measured on the audio itself is the label.

Shapes: `N` clips, `F` frames of a clip, `S` samples of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wavcse.analysis.analyses import layers
from wavcse.analysis.analyses.layers import Judge, judge_views
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.study import Analysis, Cell, Study, cell_name
from wavcse.eval.task import TaskData
from wavcse.settings.fields import CheckedFields, check_choice, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "prosody"
RATE_HZ = 16_000
FRAME, HOP = RATE_HZ * 40 // 1000, RATE_HZ * 10 // 1000
LOWEST_HZ, HIGHEST_HZ = 60, 400
VOICED = 0.5  # least autocorrelation of a frame that has a pitch
LEAST_CLIPS = 10  # of a split that have a measure


def pitch(waveform: np.ndarray) -> float:
    """Median over voiced frames of log2 of the fundamental in Hz, by autocorrelation; nan where no frame is voiced.

    The autocorrelation is divided by the energies of both pieces, so that a pitch is found at its first peak, as high a value
    at twice the period being left aside.
    """
    if len(waveform) < FRAME:
        return float("nan")
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), FRAME)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames[np.sum(frames**2, axis=1) > 1e-3 * np.max(np.sum(frames**2, axis=1)) + 1e-12]
    if not len(frames):
        return float("nan")
    lags = np.arange(RATE_HZ // HIGHEST_HZ, RATE_HZ // LOWEST_HZ + 1)
    squares = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    product = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * FRAME)) ** 2)[:, lags]
    scale = np.sqrt(squares[:, FRAME - lags] * (squares[:, -1:] - squares[:, lags]))
    peaks = product / np.maximum(scale, 1e-12)
    best = peaks.max(axis=1)
    first = np.argmax(peaks >= 0.9 * best[:, None], axis=1)
    while True:  # from where it comes close to the best value up to the top of that peak
        higher = np.minimum(first + 1, len(lags) - 1)
        rises = np.take_along_axis(peaks, higher[:, None], 1)[:, 0] > np.take_along_axis(peaks, first[:, None], 1)[:, 0]
        if not rises.any():
            break
        first = np.where(rises, higher, first)
    voiced = best > VOICED
    return float(np.median(np.log2(RATE_HZ / lags[first[voiced]]))) if voiced.any() else float("nan")


def energy(waveform: np.ndarray) -> float:
    """Level in decibels of full scale; nan for digital silence."""
    power = np.mean(waveform.astype(np.float64) ** 2)
    return float(10 * np.log10(power)) if power > 0 else float("nan")


def duration(waveform: np.ndarray) -> float:
    """log2 of the length in seconds."""
    return float(np.log2(len(waveform) / RATE_HZ))


MEASURES: dict[str, Callable[[np.ndarray], float]] = {"pitch": pitch, "energy": energy, "duration": duration}


@dataclass
class ProsodySettings(CheckedFields):
    """Settings of `prosody`."""

    measures: list[str] = option(lambda: list(MEASURES), "What is measured.", choices=tuple(MEASURES), commas=True)
    tasks: list[str] = option(list, "Tasks whose clips and splits are taken.", "the first")


def measured_task(data: TaskData, measure: str, values: np.ndarray) -> tuple[TaskData, np.ndarray] | None:
    """The clips of a task with a number as their label, and their rows; None where too few have one, or all the same."""
    rows = np.flatnonzero(np.isfinite(values))
    own = data.subset(rows)
    if min(len(own.table.rows(split)) for split in ("train", "validation", "test")) < LEAST_CLIPS:
        return None
    numbers = values[rows].astype(np.float32)[:, None]
    train = numbers[own.table.rows("train")]
    if train.max() - train.min() < 1e-6:
        return None
    scale = (float(train.min()), float(train.max()))
    task = replace(data.task, kind="regression", targets=(measure,), metrics=("ccc",), label_range=scale)
    table = replace(own.table, labels=numbers[:, 0].astype(object))
    return replace(own, task=task, table=table, values=numbers), rows


def judge_measures(
    study: Study, encoder: AnalyzedEncoder, task: str, values: Callable[[], dict[str, np.ndarray]], measure: str
) -> dict[str, Any]:
    """Probes on all vectors for one measure."""
    found = measured_task(study.tasks[task], measure, values()[measure])
    about = {"is_untrained": encoder.is_untrained, "model": encoder.model}
    if found is None:
        return {**about, "obstacle": f"{task} has too few clips with a {measure}, or all of them the same"}
    data, rows = found
    vectors = {view.name: study.vectors(encoder, view, task)[rows] for view in encoder.views}
    return {**about, **judge_views(Judge(data, study.seed), vectors, True, study.device)[0]}


def cells(study: Study, settings: ProsodySettings) -> list[Cell]:
    """Every encoder and measure on the tasks that are named; each clip is measured once."""
    found, tasks = [], settings.tasks or list(study.tasks)[:1]
    for task in tasks:
        check_choice("analyses.prosody: tasks", task, study.tasks)
        values = _Measured(study, task)
        for measure in settings.measures:
            for encoder in study.encoders:
                about = {"task": f"{measure}_{task}", "encoder": encoder.name}
                compute = partial(judge_measures, study, encoder, task, values, measure)
                found.append(Cell(cell_name(about["task"], encoder.name), about, study.key_of_task(encoder, task), compute))
    return found


class _Measured:
    """Measures of the clips of a task, `[N]` each, taken when they are first asked for."""

    def __init__(self, study: Study, task: str):
        self.study, self.task, self.values = study, task, {}

    def __call__(self) -> dict[str, np.ndarray]:
        if not self.values:
            most = None if self.study.first_s is None else int(self.study.first_s * RATE_HZ)
            waveforms = (clip.load(RATE_HZ)[:most] for clip in self.study.tasks[self.task].table.clips)
            rows = [[measure(waveform) for measure in MEASURES.values()] for waveform in waveforms]
            self.values = dict(zip(MEASURES, np.array(rows).T))
        return self.values


# ---- what is shown ----


def _told(records: Sequence[dict]) -> list[dict]:
    return [record for record in records if "test" in record["found"]]


def answers(records: Sequence[dict]) -> list[str]:
    """As of `layers`."""
    return layers.answers(_told(records))


def section(records: Sequence[dict]) -> list[str]:
    """As of `layers`, without pictures of its own names."""
    told = _told(records)
    obstacles = dict.fromkeys(f"{own['found']['obstacle']}." for own in records if "obstacle" in own["found"])
    if not told:
        return list(obstacles)
    how = (
        "Pitch: median of log2 of the fundamental over voiced frames; energy: level in dB; duration: log2 of seconds. Each is "
        "a regression from every vector by the rules of `layers`; CCC of the constant answer is 0."
    )
    pictures = [f"![{task}](pictures/{NAME}_{task}.png)" for task in dict.fromkeys(own["about"]["task"] for own in told)]
    return [how, layers.chosen_table(told), *pictures, *obstacles]


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A curve per measure and task."""
    told = _told(records)
    tasks = dict.fromkeys(own["about"]["task"] for own in told)
    return {f"{NAME}_{task}": lambda shown, own=task: layers.draw_curves(_told(shown), own) for task in tasks}


ANALYSIS = Analysis(NAME, "Prosody: pitch, energy, duration", ProsodySettings, cells, answers, section, drawings)
