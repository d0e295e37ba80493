"""Embed the clips of manifests with one or several encoders: each clip is decoded once, and bad clips are listed.

Shapes: `N` clips, `E` embedding size.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wavcse.data.corpus_pass import CorpusPass, SkippedClip, batches_by_length, readable_clips, skipped_clips
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip
from wavcse.eval.encoder import Encoder, checked_embeddings


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


def embed_clips(
    encoders: Sequence[Encoder], clips: Sequence[Clip], batch_seconds: float = 60.0, show_progress: bool = True
) -> EmbeddedClips:
    """Embed every clip with every encoder, in batches of similar lengths.

    Args:
        batch_seconds: padded audio per batch in seconds; a longer clip makes a batch of its own.
        show_progress: show a progress bar with clips/s and audio-s/s.
    """
    readable, unreadable = readable_clips(clips, Inspector().inspect(clips, show_progress=show_progress))
    tables = {encoder.name: np.full((len(clips), encoder.embedding_size), np.nan, np.float32) for encoder in encoders}
    result = EmbeddedClips(tables, np.zeros(len(clips), dtype=bool))
    rates = sorted({encoder.sampling_rate for encoder in encoders})

    def load(clip: Clip) -> dict[int, np.ndarray]:
        return {rate: clip.load(rate) for rate in rates}

    def compute(loaded: Sequence[dict[int, np.ndarray]]) -> dict[str, np.ndarray]:
        by_rate = {rate: [waveforms[rate] for waveforms in loaded] for rate in rates}  # encoders of a rate get the same list
        return {encoder.name: _timed(encoder, by_rate[encoder.sampling_rate], result.seconds) for encoder in encoders}

    corpus_pass = CorpusPass(batches_by_length(readable, batch_seconds), load, compute, show_progress)
    for batch, vectors in corpus_pass:
        rows = [item.row for item in batch]
        result.embedded[rows] = True
        for name in tables:
            tables[name][rows] = vectors[name]
    result.skipped = skipped_clips(clips, unreadable | corpus_pass.report.skipped)
    return result


def _timed(encoder: Encoder, waveforms: Sequence[np.ndarray], seconds: dict[str, float]) -> np.ndarray:
    start = time.perf_counter()
    vectors = checked_embeddings(encoder, waveforms)
    seconds[encoder.name] += time.perf_counter() - start
    return vectors
