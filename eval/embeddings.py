"""Embed the clips of manifests with one or several encoders, each clip decoded once, and keep what was computed.

    embeddings/<encoder>.<key>/<name>.safetensors    `embeddings` [n, E] and, in its header, the digests of the n clips

So a killed evaluation goes on, and another task costs only its own clips. The key is a hash of what the encoder says of
itself. A file appears whole or not at all, and its name ends with the checksum of its bytes: a damaged one is set aside,
and its clips are embedded again.

Shapes: `N` clips, `E` embedding size (times the candidates that an encoder offers).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wavcse.data.corpus_pass import (
    CorpusClip,
    CorpusPass,
    PassReport,
    SkippedClip,
    batches_by_length,
    beginning_of,
    num_workers,
    readable_clips,
    skipped_clips,
    unfinished,
)
from wavcse.data.files import DamagedFile, check_piece, digest_of, remove_partials, set_aside, write_piece
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip
from wavcse.eval.encoder import Encoder, candidates_of, checked_embeddings, encoder_record

STORE_INTERVAL_S = 30.0  # what a kill costs at most, besides the batch in progress


@dataclass
class EmbeddedClips:
    """Embeddings of N clips by several encoders.

    Args:
        tables: encoder name -> float32 `[N, E]`, rows in the order of the clips; NaN where a clip was skipped.
        embedded: `[N]`, False for skipped clips. A clip that one encoder refuses is skipped for all, so that every figure in
            a table rests on the same clips.
        skipped: the skipped clips, in order.
        quiet: names of the clips that were embedded now and are so quiet that their embeddings drift to that of silence.
        seconds: encoder name -> time spent in `embed` now, of all workers together; what is read from a store costs nothing,
            and a baseline that shares a model's forward pass almost nothing.
    """

    tables: dict[str, np.ndarray]
    embedded: np.ndarray
    skipped: list[SkippedClip] = field(default_factory=list)
    quiet: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def embed_clips(
    encoders: Sequence[Encoder],
    clips: Sequence[Clip],
    batch_seconds: float = 60.0,
    show_progress: bool = True,
    store_dir: Path | None = None,
    inspector: Inspector | None = None,
    workers: int | Literal["auto"] | None = None,
    device: torch.device | None = None,
    first_s: float | None = None,
) -> EmbeddedClips:
    """Embed every clip with every encoder, in batches of similar lengths.

    Args:
        batch_seconds: padded audio per batch in seconds; a longer clip makes a batch of its own.
        show_progress: show a progress bar with clips/s and audio-s/s.
        store_dir: folder that keeps embeddings; what is there is not computed again. `None` = nothing is kept.
        inspector: if it has seen the files already, they are not read again.
        workers: as of `embed_corpus`; "auto" is for encoders that stand a fork, as those of this package do.
        device: where the encoders compute (default: on the CPU).
        first_s: only so many seconds from the start of every clip are embedded; kept under digests of their own, those of
            clips that a manifest cuts so.
    """
    readable, unreadable = readable_clips(clips, (inspector or Inspector()).inspect(clips, show_progress=show_progress))
    if first_s is not None:
        readable = [beginning_of(item, first_s) for item in readable]
    tables = {e.name: np.full((len(clips), candidates_of(e) * e.embedding_size), np.nan, np.float32) for e in encoders}
    result = EmbeddedClips(tables, np.zeros(len(clips), dtype=bool))
    speaking = [encoder for encoder in encoders if encoder.embedding_size] or list(encoders)
    stores = {e.name: EmbeddingStore(store_dir, e) for e in speaking} if store_dir is not None else {}
    batches = batches_by_length(readable, batch_seconds)
    workers = num_workers(workers, len(batches), device or torch.device("cpu"))
    report = _compute_missing(speaking, stores, batches, workers, result, show_progress)
    usable = [item for item in readable if item.row not in report.skipped]
    result.embedded[[item.row for item in usable]] = True
    for name, store in stores.items():
        known = [item for item in usable if tables[name].size and np.isnan(tables[name][item.row, 0])]
        store.read([item.digest for item in known], tables[name], [item.row for item in known])
    for table in tables.values():
        table[~result.embedded] = np.nan
    result.skipped = skipped_clips(clips, unreadable | report.skipped)
    result.quiet = [clips[row].clip_id for row in sorted(report.quiet)]
    return result


def _compute_missing(
    encoders: Sequence[Encoder],
    stores: dict[str, EmbeddingStore],
    batches: Sequence[list[CorpusClip]],
    workers: int,
    result: EmbeddedClips,
    show_progress: bool,
) -> PassReport:
    """Put into `result.tables`, and into the stores, what the stores lack."""
    digest_of = {item.clip: item.digest for batch in batches for item in batch}
    wanted = set(digest_of.values())  # workers do not see what is stored meanwhile
    missing = {e.name: {digest for digest in wanted if digest not in stores.get(e.name, ())} for e in encoders}
    pending = [encoder for encoder in encoders if missing[encoder.name]]
    batches = unfinished(batches, lambda item: not any(item.digest in missing[encoder.name] for encoder in pending))
    rates = sorted({encoder.sampling_rate for encoder in pending})
    extractors = [getattr(encoder, "feature_extractor", None) for encoder in pending]
    limits_s = [limit_s for extractor in extractors if (limit_s := getattr(extractor, "max_duration_s", None)) is not None]
    longest_s = min(limits_s, default=None)  # a clip that one encoder refuses is skipped for all

    def load(clip: Clip) -> tuple[str, dict[int, np.ndarray]]:
        return digest_of[clip], {rate: clip.load(rate, longest_s) for rate in rates}

    def compute(loaded: Sequence[tuple[str, dict[int, np.ndarray]]]) -> dict[str, tuple[list[int], np.ndarray, float]]:
        found, lists = {}, {}
        for encoder in pending:
            places = [place for place, (digest, _) in enumerate(loaded) if digest in missing[encoder.name]]
            # Encoders that need the same clips get the same list, so that baselines share a model's forward pass.
            key = (encoder.sampling_rate, *places)
            waveforms = lists.setdefault(key, [loaded[place][1][encoder.sampling_rate] for place in places])
            if places:
                start = time.perf_counter()
                found[encoder.name] = (places, checked_embeddings(encoder, waveforms), time.perf_counter() - start)
        return found

    def waveform_of(loaded: tuple[str, dict[int, np.ndarray]]) -> np.ndarray:
        return next(iter(loaded[1].values()))

    order = {item.row: place for place, item in enumerate(chain.from_iterable(batches))}
    corpus_pass = CorpusPass(batches, load, compute, show_progress, waveform_of, workers)
    try:
        for batch, found in corpus_pass:
            for name, (places, embeddings, seconds) in found.items():
                result.tables[name][[batch[place].row for place in places]] = embeddings
                result.seconds[name] += seconds
                if name in stores:
                    stores[name].add([batch[place].digest for place in places], embeddings, order[batch[0].row])
    finally:  # also where a worker died or the run is stopped
        for store in stores.values():
            store.flush()
    return corpus_pass.report


# ---- the store ----


FORMAT_VERSION = 2  # since 2 all of the audio in a file counts, see `data/features.py`


class EmbeddingStore:
    """Embeddings of one encoder by content digest of the clip.

    Args:
        root: folder of all stores; made when something is written.
    """

    def __init__(self, root: Path, encoder: Encoder):
        described = {**encoder_record(encoder), "wavcse": version("wavcse"), "format": FORMAT_VERSION}
        self.folder = root / f"{encoder.name}.{digest_of(described)}"
        self._location: dict[str, tuple[Path, int]] = {}
        self._waiting: list[tuple[int, Sequence[str], np.ndarray]] = []
        self._saved_at = time.monotonic()
        if self.folder.exists():
            remove_partials(self.folder)
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                check_piece(path)
                with safe_open(path, "np") as file:
                    digests = json.loads(file.metadata()["digests"])
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                set_aside(path, error if isinstance(error, DamagedFile) else f"{path}: is damaged ({error}).")
                continue
            self._location.update({digest: (path, row) for row, digest in enumerate(digests)})

    def __contains__(self, digest: str) -> bool:
        return digest in self._location

    def read(self, digests: Sequence[str], out: np.ndarray, rows: Sequence[int]) -> None:
        """Copy the embeddings of `digests` to `out[rows]`, a file at a time."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for digest, row in zip(digests, rows):
            path, place = self._location[digest]
            wanted.setdefault(path, []).append((row, place))
        for path, pairs in wanted.items():
            to, places = zip(*pairs)
            with safe_open(path, "np") as file:
                out[list(to)] = file.get_tensor("embeddings")[list(places)]

    def add(self, digests: Sequence[str], embeddings: np.ndarray, place: int) -> None:
        """Add the embeddings `[n, E]` of n clips; they are written with others, every `STORE_INTERVAL_S`, ordered by place."""
        self._waiting.append((place, digests, embeddings))
        if time.monotonic() - self._saved_at >= STORE_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._waiting.sort(key=lambda batch: batch[0])  # workers finish in any order
            digests = [digest for _, of_batch, _ in self._waiting for digest in of_batch]
            tensors = {"embeddings": np.concatenate([embeddings for *_, embeddings in self._waiting])}
            metadata = {"digests": json.dumps(digests)}
            path = write_piece(self.folder, ".safetensors", lambda partial: save_file(tensors, partial, metadata))
            self._location.update({digest: (path, row) for row, digest in enumerate(digests)})
        self._waiting, self._saved_at = [], time.monotonic()
