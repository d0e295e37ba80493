"""What is left of a vector, and of what a probe reads from it, under noise, a narrow band, codecs and a low level.

The probe has learnt from clean clips. The cosine to the clean clip stands beside that of two different clips: vectors that
point in one direction anyway are near whatever happens.

Shapes: `N` clips, `E` size of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from wavcse.analysis.analyses.geometry import mean_cosine
from wavcse.analysis.analyses.layers import Judge, predictions_of
from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.analysis.figures import mean_of, measured, metric_unit, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.audio_wavcse import resample
from wavcse.eval.metrics import METRICS, paired_interval
from wavcse.eval.probe import resampling_unit
from wavcse.eval.probe_stack import fit_all
from wavcse.eval.table import shown
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.retrieval.nearest import unit_rows
from wavcse.settings.fields import CheckedFields, check_choice, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "robustness"


def with_noise(waveform: np.ndarray, rate: int, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """With white noise, `snr_db` below the clip's power."""
    noise = rng.standard_normal(len(waveform)) * np.sqrt(np.mean(waveform.astype(np.float64) ** 2) / 10 ** (snr_db / 10))
    return (waveform + noise).astype(np.float32)


def narrow(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Through 8 kHz and back, as a telephone has it."""
    return resample(resample(waveform, rate, 8000), 8000, rate)


def through_codec(waveform: np.ndarray, rate: int, rng: np.random.Generator, file_format: str, subtype: str) -> np.ndarray:
    """Written and read again by libsndfile, at the usual quality of the format."""
    file = BytesIO()
    soundfile.write(file, waveform, rate, format=file_format, subtype=subtype)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def quieter(waveform: np.ndarray, rate: int, rng: np.random.Generator, decibels: float) -> np.ndarray:
    """The same at a lower level."""
    return (waveform * 10 ** (-decibels / 20)).astype(np.float32)


CHANGES: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise 20 dB": partial(with_noise, snr_db=20),
    "noise 10 dB": partial(with_noise, snr_db=10),
    "noise 0 dB": partial(with_noise, snr_db=0),
    "8 kHz": narrow,
    "MP3": partial(through_codec, file_format="MP3", subtype="MPEG_LAYER_III"),
    "Opus": partial(through_codec, file_format="OGG", subtype="OPUS"),
    "-20 dB": partial(quieter, decibels=20),
}


@dataclass
class RobustnessSettings(CheckedFields):
    """Settings of `robustness`."""

    changes: list[str] = option(lambda: list(CHANGES), f"Some of: {', '.join(CHANGES)}.")
    tasks: list[str] = option(list, "Tasks whose test clips are changed.", "the first")
    most_clips: int = option(60, "Test clips per task; of more a draw.", at_least=4)

    def __post_init__(self):
        super().__post_init__()
        for name in self.changes:
            check_choice("changes", name, CHANGES)


def change_clips(study: Study, encoder: AnalyzedEncoder, task: str, settings: RobustnessSettings) -> dict[str, Any]:
    """Cosines and probe figures of every change."""
    view = encoder.view(study.found("layers", encoder, task)["chosen"])
    judge, vectors = Judge(study.tasks[task], study.seed), study.vectors(encoder, view, task)
    (run,) = fit_all({view.name: vectors}, judge.data, judge.objective, study.seed, device=study.device).values()
    test = judge.data.table.rows("test")
    rng = np.random.default_rng(study.seed)
    rows = np.sort(rng.choice(test, min(settings.most_clips, len(test)), replace=False))
    waveforms = [_load(study, encoder, judge.data.table.clips[row]) for row in rows]
    clean = _embedded(encoder, view, waveforms)
    unit, groups = resampling_unit(judge.data, rows)
    labels = judge.labels[rows]
    answers_ = predictions_of(run, clean, judge.objective).reshape(len(rows), -1)
    different, chance = mean_cosine(clean), _chance(study, encoder, task)
    clean_figure = measured(judge.metric, labels, answers_, groups, unit, study.seed, chance=chance)
    changes = []
    for name in settings.changes:
        changed = _embedded(encoder, view, [CHANGES[name](own, encoder.sampling_rate, rng) for own in waveforms])
        cosines = np.sum(unit_rows(clean) * unit_rows(changed), axis=1)
        own = predictions_of(run, changed, judge.objective).reshape(len(rows), -1)
        loss = paired_interval(judge.metric, labels, [answers_], [own], groups, study.seed)
        changed_figure = measured(judge.metric, labels, own, groups, unit, study.seed, chance=chance)
        lost = clean_figure["value"] - changed_figure["value"]
        changes.append(
            {
                "change": name,
                "cosine": mean_of(cosines, groups, unit, study.seed, different_clips=different),
                "figure": changed_figure,
                "loss": {"value": lost, "interval": None if loss is None else list(loss)},
            }
        )
    found = {"title": judge.data.task.title, "metric": judge.data.task.metrics[0], "view": view.name}
    return {**found, "n": len(rows), "clean": clean_figure, "chance": chance, "changes": changes}


def _chance(study: Study, encoder: AnalyzedEncoder, task: str) -> float:
    return study.found("layers", encoder, task)["test"]["floor"]["chance"]["value"]


def _load(study: Study, encoder: AnalyzedEncoder, clip: Any) -> np.ndarray:
    waveform = clip.load(encoder.sampling_rate)
    return waveform if study.first_s is None else waveform[: int(study.first_s * encoder.sampling_rate)]


def _embedded(encoder: AnalyzedEncoder, view: View, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """A view of waveforms, `[N, E]`."""
    reader, size = encoder.readers[view.reader], encoder.size(view)
    whole = np.concatenate([reader.embed([waveform]) for waveform in waveforms])
    return np.ascontiguousarray(whole[:, view.place * size : (view.place + 1) * size])


def cells(study: Study, settings: RobustnessSettings) -> list[Cell]:
    """Every encoder on the tasks that are named, at the vector that `layers` has chosen.

    Those that read a clip by the times of its words are left out: of a changed clip these are not known.
    """
    tasks = settings.tasks or list(study.tasks)[:1]
    for name in tasks:
        check_choice("analyses.robustness: tasks", name, study.tasks)
    return [
        encoder_cell(
            *(study, encoder, task, lambda e=encoder, t=task: change_clips(study, e, t, settings)),
            study.found("layers", encoder, task)["chosen"],
        )
        for encoder, task in study.pairs()
        if task in tasks and not _reads_times(encoder, study, task)
    ]


def _reads_times(encoder: AnalyzedEncoder, study: Study, task: str) -> bool:
    return encoder.reads_words and any(map(encoder.source.is_utterance, study.tasks[task].table.clips))


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Nothing: what it says stands at the beginning of its section."""
    return []


def _worst(records: Sequence[dict]) -> list[str]:
    """Which change costs most: of scores the largest fall, of errors the largest rise; a gain costs nothing."""
    words = []
    for record in records:
        metric, about = METRICS[record["found"]["metric"]], record["about"]
        sign = 1 if metric.greater_is_better else -1
        worst = max(record["found"]["changes"], key=lambda own: sign * own["loss"]["value"])
        cost = f"{shown_figure(worst['loss'], metric.unit)} by {worst['change']}"
        words.append(f"`{about['encoder']}` on {about['task']} {cost if sign * worst['loss']['value'] > 0 else 'nothing'}")
    return [f"What costs a probe that has learnt from clean clips most: {', '.join(words)}."] if words else []


def section(records: Sequence[dict]) -> list[str]:
    """A table of all changes."""
    lines = []
    for record in records:
        found, unit = record["found"], metric_unit(record["found"]["metric"])
        for own in found["changes"]:
            floor = own["cosine"]["floor"]["different_clips"]
            clean, chance = shown_figure(found["clean"], unit), shown(found["chance"], unit)
            lines.append(
                [
                    *(record["about"]["task"], record["about"]["encoder"], found["view"].removeprefix("layer ")),
                    own["change"],
                    f"{shown_figure(own['cosine'], 'plain')}, different clips {floor:.3f}",
                    f"{shown_figure(own['figure'], unit)}, clean {clean}, constant {chance}",
                    shown_figure(own["loss"], unit),
                    str(found["n"]),
                ]
            )
    columns = ["task", "encoder", "vector", "change", "cosine to the clean clip", "probe", "loss [95 %, paired]", "clips"]
    return [
        *_worst(records),
        "Test clips are changed, embedded again, and answered by the probe that has learnt from clean clips.",
        f"![Cosine to the clean clip](pictures/{NAME}.png)",
        markdown_table(columns, lines),
    ]


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """One picture."""
    return {NAME: draw}


def draw(records: Sequence[dict]) -> Figure:
    """The cosine to the clean clip, a line per encoder and task."""
    figure_, (axes,) = new_axes(7.0, 4.0)
    for record in records:
        own = record["found"]["changes"]
        label = f"{record['about']['encoder']}, {record['about']['task']}"
        axes.plot([one["change"] for one in own], [one["cosine"]["value"] for one in own], marker="o", label=label)
    axes.set_ylabel("cosine to the clean clip")
    axes.tick_params(axis="x", rotation=20)
    axes.legend(fontsize=7)
    return figure_


ANALYSIS = Analysis(
    *(NAME, "Robustness: noise, band, codecs, level", RobustnessSettings, cells, answers, section, drawings),
    needs=("layers",),
)
