"""Which layer tells phones apart: linear probes on the frames of each phone, where the times of phones are known.

An utterance goes through the encoder whole (or its first `first_s`); the vector of a phone is the mean of the frames whose
middles lie in it (of the nearest frame, where a phone is shorter than that). Utterances are embedded first, as the clips of
tasks are: one that cannot be is skipped for all encoders. Splits, floors and intervals are those of `layers`.

Shapes: `T` frames of an utterance, `K` layers, `D` their size, `P` phones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavcse.analysis.analyses import layers
from wavcse.analysis.analyses.layers import Judge, judge_views
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.study import Analysis, Cell, Study, cell_name
from wavcse.data import SPLITS
from wavcse.data.corpus_pass import write_skipped
from wavcse.data.files import digest_of
from wavcse.data.manifest import Clip
from wavcse.eval.arguments import task_request
from wavcse.eval.embeddings import embed_clips
from wavcse.eval.evaluation import STORE_FOLDER, corpus_inspector, result_key
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
    return _known_to_training(data, np.sort(np.concatenate(kept)))


def _known_to_training(data: TaskData, rows: np.ndarray) -> TaskData:
    """The phones of these rows, without those whose label training has not."""
    known = set(data.table.labels[rows[data.table.splits[rows] == "train"]])
    return data.subset(np.array([row for row in rows if data.table.labels[row] in known], dtype=np.int64))


def within(data: TaskData, first_s: float | None) -> TaskData:
    """The phones that end within so many seconds; ValueError if a split has none."""
    if first_s is None:
        return data
    found = data.subset(np.array([row for row, clip in enumerate(data.table.clips) if clip.end_s <= first_s], dtype=np.int64))
    _check_splits(found, f"no phone ends within first_s, {first_s:g} s")
    return found


def of_readable_utterances(study: Study, encoders: Sequence[AnalyzedEncoder], data: TaskData) -> TaskData:
    """The phones of utterances that all encoders could embed; the others join the skipped clips of the study.

    Raises:
        ValueError: a split has none.
    """
    place_of = {clip.real_path: clip for clip in map(utterance_of, data.table.clips)}
    readers = [reader for own in encoders for reader in own.readers]
    where = {"store_dir": study.folder / STORE_FOLDER, "inspector": corpus_inspector(study.folder), "show_progress": False}
    how = {"workers": study.workers, "device": torch.device(study.device), "first_s": study.first_s}
    embedded = embed_clips(readers, list(place_of.values()), **where, **how)
    if not embedded.skipped:
        return data
    known = {own.clip_id for own in study.embedded.skipped}
    study.embedded.skipped.extend(own for own in embedded.skipped if own.clip_id not in known)
    write_skipped(study.folder / "skipped.csv", study.embedded.skipped)
    usable = {path for path, is_there in zip(place_of, embedded.embedded) if is_there}
    rows = np.array([row for row, clip in enumerate(data.table.clips) if clip.real_path in usable], dtype=np.int64)
    found = _known_to_training(data, rows)
    _check_splits(found, f"{len(embedded.skipped)} of {len(place_of)} utterances could not be embedded")
    return found


def utterance_of(phone: Clip) -> Clip:
    """The whole file that a phone is a part of."""
    return replace(phone, clip_id=phone.clip_id.rpartition("#")[0] or phone.clip_id, start_s=0.0, end_s=None)


def _check_splits(data: TaskData, reason: str) -> None:
    for split in SPLITS:
        if not len(data.table.rows(split)):
            raise ValueError(f"analyses.{NAME}: {reason}, which leaves the {split} split empty.")


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


def vectors_of_phones(encoder: AnalyzedEncoder, clips: Sequence[Clip], first_s: float | None = None) -> dict[str, np.ndarray]:
    """Layer -> the vectors of phones, float32 `[P, D]`; every utterance is computed once.

    Args:
        first_s: only so many seconds from the start of every utterance; no phone ends later.
    """
    views = [view for view in encoder.views if view.layer is not None]
    rows_of: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        rows_of.setdefault(clip.real_path, []).append(row)
    found = [None] * len(clips)
    for rows in rows_of.values():
        waveform = utterance_of(clips[rows[0]]).load(encoder.sampling_rate)
        waveform = waveform if first_s is None else waveform[: int(first_s * encoder.sampling_rate)]
        (frames,) = encoder.source.frames([waveform], [view.layer for view in views])
        spans = [(clips[row].start_s, clips[row].end_s) for row in rows]
        for row, own in zip(rows, means_of_spans(frames, len(waveform) / encoder.sampling_rate, spans)):
            found[row] = own
    stacked = np.stack(found).astype(np.float32)
    return {view.name: np.ascontiguousarray(stacked[:, place]) for place, view in enumerate(views)}


def judge_phones(study: Study, encoder: AnalyzedEncoder, data: TaskData) -> dict[str, Any]:
    """Probes on all layers, the best one's test figure and its floors."""
    about = {"is_untrained": encoder.is_untrained, "model": encoder.model}
    vectors = vectors_of_phones(encoder, data.table.clips, study.first_s)
    return {**about, **judge_views(Judge(data, study.seed), vectors, True, study.device)[0]}


def cells(study: Study, settings: PhonesSettings) -> list[Cell]:
    """Every encoder with frames of layers; none without a manifest.

    Raises:
        ValueError: as `load_task`; a row has no end, or a split has no phones that can be used.
    """
    if not settings.manifest:
        return []
    fields = {name: getattr(settings, name) for name in ("manifest", "label_column", "split_column")}
    request = task_request(NAME, {"task": "keyword", "title": "Phones", **fields}, where=f"analyses.{NAME}")
    data = load_task(*request, inspector=corpus_inspector(study.folder))
    if any(clip.end_s is None for clip in data.table.clips):
        raise ValueError(f"analyses.{NAME}: {settings.manifest[0]} has rows without start and end.")
    encoders = [own for own in study.encoders if not own.reads_words and any(view.layer is not None for view in own.views)]
    if not encoders:
        return []
    data = of_readable_utterances(study, encoders, drawn_phones(within(data, study.first_s), settings.most, study.seed))
    names, found = digest_of([clip.clip_id for clip in data.table.clips]), []
    for encoder in encoders:
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
