"""Which layer tells phones apart: linear probes on the frames of each phone, where the times of phones are known.

An utterance goes through the encoder whole; the vector of a phone is the mean of the frames whose middles lie in it (of the
nearest frame, where a phone is shorter than that). Splits, floors and intervals are those of `layers`.

Shapes: `T` frames of an utterance, `K` layers, `D` their size, `P` phones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wavcse.analysis.analyses import layers
from wavcse.analysis.analyses.layers import Judge, judge_views
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.study import Analysis, Cell, Study, cell_name
from wavcse.data import SPLITS
from wavcse.data.files import digest_of
from wavcse.data.manifest import Clip
from wavcse.eval.arguments import task_request
from wavcse.eval.evaluation import corpus_inspector, result_key
from wavcse.eval.task import TaskData, load_task
from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "phones"


@dataclass
class PhonesSettings(CheckedFields):
    """Settings of `phones`."""

    manifest: list[str] = option(
        list, "Tables with a row per phone, with start and end, such as phones.csv of `wavcse synthesize --sentences`.", "none"
    )
    label_column: str = option("phone", "Of the phone.")
    split_column: str = option("split", "Of the splits.")
    most: int = option(1500, "Phones of a split; of more a draw of utterances.", at_least=10)


def drawn_phones(data: TaskData, most: int, seed: int) -> TaskData:
    """The phones of some utterances, at most about so many of each split; those that training then has not are left out."""
    rng, kept = np.random.default_rng(seed), []
    files = np.array([clip.real_path for clip in data.table.clips], dtype=object)
    for split in SPLITS:
        rows, found = data.table.rows(split), 0
        for file in rng.permutation(np.unique(files[rows].astype(str))):
            own = rows[files[rows] == file]
            if found and found + len(own) > most:
                break
            kept.append(own)
            found += len(own)
    rows = np.sort(np.concatenate(kept))
    known = set(data.table.labels[rows[data.table.splits[rows] == "train"]])
    return data.subset(np.array([row for row in rows if data.table.labels[row] in known]))


def means_of_spans(frames: np.ndarray, duration_s: float, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """Of `[T, K, D]` frames that divide an utterance evenly the means within spans in seconds, `[P, K, D]`."""
    middles = (np.arange(len(frames)) + 0.5) * duration_s / len(frames)
    found = []
    for start_s, end_s in spans:
        rows = np.flatnonzero((middles >= start_s) & (middles < end_s))
        if not len(rows):
            rows = [np.abs(middles - (start_s + end_s) / 2).argmin()]
        found.append(frames[rows].mean(axis=0))
    return np.stack(found)


def vectors_of_phones(encoder: AnalyzedEncoder, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Layer -> the vectors of phones, float32 `[P, D]`; every utterance is computed once."""
    views = [view for view in encoder.views if view.layer is not None]
    rows_of: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        rows_of.setdefault(clip.real_path, []).append(row)
    found = [None] * len(clips)
    for rows in rows_of.values():
        path = clips[rows[0]].path
        waveform = Clip(path.name, path).load(encoder.sampling_rate)
        (frames,) = encoder.source.frames([waveform], [view.layer for view in views])
        spans = [(clips[row].start_s, clips[row].end_s) for row in rows]
        for row, own in zip(rows, means_of_spans(frames, len(waveform) / encoder.sampling_rate, spans)):
            found[row] = own
    stacked = np.stack(found).astype(np.float32)
    return {view.name: np.ascontiguousarray(stacked[:, place]) for place, view in enumerate(views)}


def judge_phones(study: Study, encoder: AnalyzedEncoder, data: TaskData) -> dict[str, Any]:
    """Probes on all layers, the best one's test figure and its floors."""
    about = {"is_untrained": encoder.is_untrained, "model": encoder.model}
    vectors = vectors_of_phones(encoder, data.table.clips)
    return {**about, **judge_views(Judge(data, study.seed), vectors, True, study.device)[0]}


def cells(study: Study, settings: PhonesSettings) -> list[Cell]:
    """Every encoder with frames of layers; none without a manifest.

    Raises:
        ValueError: as `load_task`; a row has no end.
    """
    if not settings.manifest:
        return []
    fields = {name: getattr(settings, name) for name in ("manifest", "label_column", "split_column")}
    request = task_request(NAME, {"task": "keyword", "title": "Phones", **fields}, where=f"analyses.{NAME}")
    data = load_task(*request, inspector=corpus_inspector(study.folder))
    if any(clip.end_s is None for clip in data.table.clips):
        raise ValueError(f"analyses.{NAME}: {settings.manifest[0]} has rows without start and end.")
    data, found = drawn_phones(data, settings.most, study.seed), []
    names = digest_of([clip.clip_id for clip in data.table.clips])
    for encoder in study.encoders:
        if encoder.reads_words or all(view.layer is None for view in encoder.views):
            continue
        about = {"task": NAME, "encoder": encoder.name}
        key = [*(result_key(reader, data, study.settings, False) for reader in encoder.readers), names]
        found.append(Cell(cell_name(NAME, encoder.name), about, key, partial(judge_phones, study, encoder, data)))
    return found


# ---- what is shown ----


def section(records: Sequence[dict]) -> list[str]:
    """As of `layers`, with its own picture."""
    how = "Linear probes on the mean of the frames of each phone, by the rules of `layers`; intervals draw speakers."
    return [how, layers.chosen_table(records), f"![Phones by layer](pictures/{NAME}.png)"] if records else []


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """One picture."""
    return {NAME: partial(layers.draw_curves, task=NAME)} if records else {}


ANALYSIS = Analysis(NAME, "Phones, frame by frame", PhonesSettings, cells, layers.answers, section, drawings)
