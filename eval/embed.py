"""Embed the clips of manifests with one or several encoders: each clip is decoded once, and bad clips are listed.

Shapes: `N` clips, `E` embedding size.
"""

from __future__ import annotations

import csv
import io
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from wavcse.data.cache import prefetched
from wavcse.data.features import write_atomically
from wavcse.data.manifest import Clip
from wavcse.eval.encoder import Encoder, checked_embeddings


@dataclass(frozen=True)
class SkippedClip:
    """A clip that could not be read, or that an encoder refused, and why."""

    clip: Clip
    reason: str


@dataclass
class EmbeddedClips:
    """Embeddings of N clips by several encoders.

    Args:
        tables: encoder name -> float32 `[N, E]`, rows in the order of the clips; NaN where a clip was skipped.
        embedded: `[N]`, False for skipped clips. A clip that one encoder refuses is skipped for all, so that every figure in
            a table rests on the same clips.
        skipped: the skipped clips, in order.
        seconds: encoder name -> time spent in `embed`. A baseline that shares a model's forward pass costs almost nothing.
    """

    tables: dict[str, np.ndarray]
    embedded: np.ndarray
    skipped: list[SkippedClip] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class _Batch:
    rows: list[int] = field(default_factory=list)
    waveforms: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))  # by sampling rate
    refused: dict[int, str] = field(default_factory=dict)


def embed_clips(
    encoders: Sequence[Encoder], clips: Sequence[Clip], batch_seconds: float = 60.0, show_progress: bool = True
) -> EmbeddedClips:
    """Embed every clip with every encoder, in batches of similar lengths.

    Args:
        batch_seconds: padded audio per batch in seconds; a longer clip makes a batch of its own.
        show_progress: show a progress bar with clips/s and audio-s/s.
    """
    durations_s, unreadable = _durations_s(clips)
    tables = {encoder.name: np.full((len(clips), encoder.embedding_size), np.nan, np.float32) for encoder in encoders}
    result = EmbeddedClips(tables, np.zeros(len(clips), dtype=bool))
    rates = sorted({encoder.sampling_rate for encoder in encoders})
    batches = batches_by_length(durations_s, batch_seconds)
    reasons, done_s = dict(unreadable), 0.0
    with tqdm(total=len(clips), desc="embed", unit="clip", disable=not show_progress) as bar:
        bar.update(len(unreadable))
        for rows, batch in prefetched(lambda rows: _load(clips, rows, rates), batches):
            reasons |= batch.refused | _embed_batch(encoders, batch, result)
            done_s += float(durations_s[rows].sum())
            bar.update(len(rows))
            bar.set_postfix_str(f"{done_s / max(bar.format_dict['elapsed'], 1e-9):.1f} audio-s/s")
    result.skipped = [SkippedClip(clips[row], _without_path(clips[row], reasons[row])) for row in sorted(reasons)]
    return result


def batches_by_length(durations_s: np.ndarray, batch_seconds: float) -> list[np.ndarray]:
    """Group clips of similar length: row numbers per batch, longest first, `longest * count <= batch_seconds`.

    Rows with a NaN duration (unreadable clips) are in no batch.
    """
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds is {batch_seconds}; it must be a positive number of seconds.")
    order = np.argsort(-durations_s, kind="stable")[: np.isfinite(durations_s).sum()]  # NaN sorts last
    batches, start = [], 0
    while start < len(order):
        count = max(1, int(batch_seconds / max(durations_s[order[start]], 1e-3)))
        batches.append(order[start : start + count])
        start += count
    return batches


def write_skipped(path: Path, skipped: Sequence[SkippedClip]) -> None:
    """Write the table of skipped clips (only its header if there are none)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("clip", "reason"))
    writer.writerows((entry.clip.clip_id, entry.reason) for entry in skipped)
    write_atomically(path, text.getvalue())


def _durations_s(clips: Sequence[Clip]) -> tuple[np.ndarray, dict[int, str]]:
    durations_s, unreadable = np.full(len(clips), np.nan), {}
    for row, clip in enumerate(clips):
        try:
            end_s = soundfile.info(clip.path).duration if clip.end_s is None else clip.end_s
        except (OSError, soundfile.LibsndfileError) as error:
            unreadable[row] = f"{clip.clip_id}: cannot be read as audio ({error})."
        else:
            durations_s[row] = end_s - clip.start_s
    return durations_s, unreadable


def _load(clips: Sequence[Clip], rows: np.ndarray, rates: Sequence[int]) -> _Batch:
    batch = _Batch()
    for row in map(int, rows):
        try:
            at_rates = [clips[row].load(rate) for rate in rates]
        except ValueError as error:
            batch.refused[row] = str(error)
        else:
            batch.rows.append(row)
            for rate, waveform in zip(rates, at_rates):
                batch.waveforms[rate].append(waveform)
    return batch


def _embed_batch(encoders: Sequence[Encoder], batch: _Batch, result: EmbeddedClips) -> dict[int, str]:
    """Fill in the rows of a batch; returns row -> reason for the clips that an encoder refuses."""
    if not batch.rows:
        return {}
    try:
        vectors = {encoder.name: _timed(encoder, batch, result.seconds) for encoder in encoders}
    except ValueError as error:
        if len(batch.rows) == 1:
            return {batch.rows[0]: str(error)}
        # One bad clip must not cost its neighbours: find it by embedding the clips one by one.
        singles = [
            _Batch([row], {rate: [waveforms[i]] for rate, waveforms in batch.waveforms.items()})
            for i, row in enumerate(batch.rows)
        ]
        return {row: reason for single in singles for row, reason in _embed_batch(encoders, single, result).items()}
    for name, rows in vectors.items():
        result.tables[name][batch.rows] = rows
    result.embedded[batch.rows] = True
    return {}


def _timed(encoder: Encoder, batch: _Batch, seconds: dict[str, float]) -> np.ndarray:
    start = time.perf_counter()
    vectors = checked_embeddings(encoder, batch.waveforms[encoder.sampling_rate])
    seconds[encoder.name] += time.perf_counter() - start
    return vectors


def _without_path(clip: Clip, reason: str) -> str:
    # Libraries quote the whole path; the clip's name says enough, and the list can be shared. An encoder knows positions only.
    reason = " ".join(reason.replace(str(clip.path.resolve()), clip.clip_id).replace(str(clip.path), clip.clip_id).split())
    return reason.replace("clip 0:", f"{clip.clip_id}:")
