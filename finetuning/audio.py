"""What fine-tuning needs of a task's audio: the clips that can be used, and their decoded samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PretrainedConfig

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.data.corpus_pass import SkippedClip, readable_clips, skipped_clips
from wavcse.data.inspection import Inspector
from wavcse.eval.task import TaskData
from wavcse.steps.audio_store import AudioStore, build_store
from wavcse.steps.batches import CropReader, Group
from wavcse.steps.crops import to_samples
from wavcse.steps.encoder import receptive_field


@dataclass(frozen=True)
class TaskAudio:
    """A task's usable clips with their samples, the same for all encoders, and the clips that were left out."""

    data: TaskData
    store: AudioStore
    skipped: list[SkippedClip]


def load_audio(
    data: TaskData, configs: Sequence[PretrainedConfig], audio_dir: str, inspector: Inspector, show_progress: bool = True
) -> TaskAudio:
    """Decode the clips of a task once.

    A clip that cannot be decoded, or is too short for one frame of one of the encoders, is left out for all of them.

    Raises:
        ValueError: a split is empty without these clips.
    """
    clips = data.table.clips
    readable, reasons = readable_clips(clips, inspector.inspect(clips, show_progress=show_progress))
    _without(data, reasons)  # refuses an empty split before anything is decoded
    store = build_store(audio_dir, [item.clip.path for item in readable], show_progress)
    reader = CropReader([item.clip for item in readable], store, configs[0])
    shortest = max(receptive_field(config) for config in configs)
    for place, (item, length) in enumerate(zip(readable, reader.num_samples)):
        if length < shortest:
            too_short = f"{item.clip.clip_id}: has {length} samples at 16 kHz; a frame needs {shortest}."
            reasons[item.row] = reader.unusable.get(place, too_short)
    return TaskAudio(_without(data, reasons), store, skipped_clips(clips, reasons))


def _without(data: TaskData, reasons: Mapping[int, str]) -> TaskData:
    """The task without the clips of `row -> reason`; ValueError, with the first reason, if a split is empty then."""
    try:
        return data.keep(np.array([row not in reasons for row in range(len(data.table.clips))]))
    except ValueError as error:
        raise ValueError(f"{error} The first: {reasons[min(reasons)]}") from error


def whole_clips(
    reader: CropReader, rows: Sequence[int], batch_seconds: float, first_s: float | None = None
) -> Iterator[list[tuple[np.ndarray, Group]]]:
    """Batches of whole clips without masks, longest first: of every length its clips' places in `rows`, and their audio.

    Args:
        batch_seconds: audio of a batch at most; a longer clip goes alone.
        first_s: seconds at the beginning of every clip that are taken; `None` = all of it.
    """
    most = None if first_s is None else to_samples(first_s)
    lengths = np.array([reader.whole(int(row), most).num_samples for row in rows], dtype=np.int64)

    def load(places: Sequence[int]) -> list[tuple[np.ndarray, Group]]:
        groups = reader.groups([reader.whole(int(rows[place]), most) for place in places])
        ends = np.cumsum([len(group.waveforms) for group in groups])
        return list(zip(np.split(np.array(places), ends[:-1]), groups))

    batch: list[int] = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        if batch and lengths[[*batch, place]].sum() > batch_seconds * SAMPLING_RATE_HZ:
            yield load(batch)
            batch = []
        batch.append(place)
    if batch:
        yield load(batch)
