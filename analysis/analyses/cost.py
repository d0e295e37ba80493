"""What a clip costs: parameters, megabytes, and the time from waveform to vector, one clip at a time.

The time is the median over clips after a warm-up, of all clips, of those below 3 s and of those above 15 s, as the authors
measure it; reading and resampling are not in it, MFCCs are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import figure
from wavcse.analysis.study import Analysis, Cell, Study, cell_name
from wavcse.eval.encoder import Encoder, encoder_record
from wavcse.eval.metrics import CONFIDENCE
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.settings.fields import CheckedFields, option
from wavcse.settings.processes import processor_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "cost"
SHORT_S, LONG_S = 3.0, 15.0
MEGABYTE = 2**20
WARM_UP = 3


@dataclass
class CostSettings(CheckedFields):
    """Settings of `cost`."""

    clips: int = option(15, "Clips of each length.", at_least=2)
    repeats: int = option(3, "Times per clip, of which the fastest counts.", at_least=1)


def lengths_of(waveforms: Sequence[np.ndarray], rate: int, most: int) -> dict[str, list[np.ndarray]]:
    """Which clips are timed: some of all, of those below `SHORT_S` and of those above `LONG_S`."""
    seconds = np.array([len(waveform) / rate for waveform in waveforms])
    masks = {"all": seconds > 0, "short": seconds < SHORT_S, "long": seconds > LONG_S}
    return {name: [waveforms[row] for row in np.flatnonzero(mask)[:most]] for name, mask in masks.items()}


def milliseconds(reader: Encoder, waveforms: Sequence[np.ndarray], repeats: int, is_cuda: bool = False) -> np.ndarray:
    """Time of every clip by itself, `[N]`."""
    found = []
    for number, waveform in enumerate([*waveforms[:WARM_UP], *waveforms]):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            reader.embed([waveform])  # a new list: an encoder keeps what it computed for the last one
            if is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        if number >= min(WARM_UP, len(waveforms)):
            found.append(1000 * min(times))
    return np.array(found)


def cost_of(study: Study, encoder: AnalyzedEncoder, settings: CostSettings) -> dict[str, Any]:
    """Parameters, bytes and times of one encoder."""
    reader, rng = encoder.readers[-1], np.random.default_rng(study.seed)
    clips = [clip for data in study.tasks.values() for clip in data.table.clips]
    clips = [clips[place] for place in rng.permutation(len(clips))[: 20 * settings.clips]]
    waveforms = [clip.load(encoder.sampling_rate) for clip in clips]
    if study.first_s is not None:
        waveforms = [waveform[: int(study.first_s * encoder.sampling_rate)] for waveform in waveforms]
    is_cuda = study.device.startswith("cuda")
    times = {}
    for name, own in lengths_of(waveforms, encoder.sampling_rate, settings.clips).items():
        times[name] = _median(milliseconds(reader, own, settings.repeats, is_cuda), rng) if len(own) > 1 else None
    parameters = list(encoder.module.parameters()) if encoder.module is not None else []
    return {
        "parameters": sum(own.numel() for own in parameters),
        "megabytes": sum(own.numel() * own.element_size() for own in parameters) / MEGABYTE,
        "numbers": reader.embedding_size,
        "milliseconds": times,
        "device": torch.cuda.get_device_name() if is_cuda else processor_name(),
        "threads": torch.get_num_threads(),
    }


def _median(times: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    draws = np.median(rng.choice(times, (2000, len(times))), axis=1)
    tail = (1 - CONFIDENCE) / 2
    return figure(np.median(times), np.quantile(draws, [tail, 1 - tail]), len(times), len(times), "clip")


def cells(study: Study, settings: CostSettings) -> list[Cell]:
    """Every encoder; measured again on another device or with other threads."""
    place = [study.device, processor_name(), torch.get_num_threads(), study.first_s]
    audio = [data.audio_stamp for data in study.tasks.values()]
    return [
        Cell(
            *(cell_name(encoder.name), {"encoder": encoder.name}),
            [*place, *audio, *map(encoder_record, encoder.readers)],
            partial(cost_of, study, encoder, settings),
        )
        for encoder in study.encoders
    ]


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """The time of a clip, encoder by encoder."""
    words = [
        f"`{record['about']['encoder']}` {own['value']:.1f} ms, {record['found']['parameters'] / 1e6:.1f} M parameters"
        for record in records
        if (own := record["found"]["milliseconds"]["all"])
    ]
    return [f"A clip costs (median, batch of one): {', '.join(words)}."] if words else []


def section(records: Sequence[dict]) -> list[str]:
    """A table, and the machine."""
    lines = []
    for record in records:
        found = record["found"]
        times = [_words(found["milliseconds"][name]) for name in ("all", "short", "long")]
        sizes = [f"{found['parameters']:,}", f"{found['megabytes']:.1f}", str(found["numbers"])]
        lines.append([record["about"]["encoder"], *sizes, *times])
    machines = sorted({f"{r['found']['device']}, threads: {r['found']['threads']}" for r in records})
    columns = ["encoder", "parameters", "MB", "numbers per vector", "ms, all", f"ms, < {SHORT_S:g} s", f"ms, > {LONG_S:g} s"]
    return [
        "From the waveform to the vector, one clip at a time: the median over clips, the fastest of some repeats of each, "
        f"after a warm-up; reading and resampling are not counted. Measured on {'; '.join(machines)}.",
        markdown_table(columns, lines),
        f"![Time of a clip](pictures/{NAME}.png)",
    ]


def _words(own: dict | None) -> str:
    if own is None:
        return "– (no such clips)"
    low, high = own["interval"]
    return f"{own['value']:.1f} [{low:.1f}, {high:.1f}], n = {own['n']}"


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """One picture."""
    return {NAME: draw}


def draw(records: Sequence[dict]) -> Figure:
    """A bar per encoder: milliseconds with their interval, and beside it the size."""
    timed = [record for record in records if record["found"]["milliseconds"]["all"]]
    figure_, (axes,) = new_axes(6.0, 0.8 + 0.35 * len(timed))
    for place, record in enumerate(timed):
        own = record["found"]["milliseconds"]["all"]
        low, high = own["interval"]
        axes.barh(place, own["value"], xerr=[[own["value"] - low], [high - own["value"]]], height=0.6, ecolor="gray")
        size = f"{record['found']['parameters'] / 1e6:.1f} M parameters"
        axes.annotate(
            f"{own['value']:.1f} ms, {size}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_yticks(range(len(timed)), [record["about"]["encoder"] for record in timed])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.6 * axes.get_xlim()[1])  # room for the words
    axes.set_xlabel("ms per clip, median")
    return figure_


ANALYSIS = Analysis(NAME, "Cost: what a clip takes", CostSettings, cells, answers, section, drawings, is_timed=True)
