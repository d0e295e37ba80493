"""Embed a corpus into one Parquet file: `wavcse embed`, whose options and help are in `data/arguments.py`."""

from __future__ import annotations

from wavcse.data.arguments import EMBED, EmbedArguments, EmbedSettings, check_is_no_folder

if __name__ == "__main__":
    EMBED.answer()  # before the imports below, which take seconds

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from pyarrow import parquet
from transformers.configuration_utils import PretrainedConfig

from wavcse import __version__
from wavcse.audio_wavcse import AUDIO_SUFFIXES, rms, scale_quiet
from wavcse.data.audio_folder import left_out_in_words, read_audio_folder
from wavcse.data.corpus_pass import (
    CorpusClip,
    CorpusPass,
    PassReport,
    QuietClip,
    SkippedClip,
    batches_by_length,
    gathered,
    num_workers,
    process_state,
    quiet_in_words,
    read_quiet,
    read_skipped,
    readable_clips,
    share_of_process,
    skipped_clips,
    unfinished,
    write_quiet,
    write_skipped,
)
from wavcse.data.embedding_table import (
    EmbeddedClip,
    EmbeddingParts,
    read_metadata,
    refuse_other_settings,
    remove_parts,
)
from wavcse.data.files import locked
from wavcse.data.hub_datasets import names_data_set
from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.encoding_wavcse import in_samples, window_bounds
from wavcse.eval.encoder import WavCSEEncoder, checked_embeddings
from wavcse.settings.command import SOME_SKIPPED
from wavcse.settings.fields import usable_device

PART_INTERVAL_S = 30.0  # what a kill can lose at most, besides the batch that is being computed
PART_ROWS = 8192
ENGINES = {"ray": "wavcse.doors.ray_corpus:run"}  # by name, as they build on this program


@dataclass(frozen=True)
class EmbedReport:
    """What one run did.

    Args:
        rows: rows of the file.
        embedding_size: numbers per embedding.
        added, present: clips that this run embedded, and those that were finished before.
        skipped: clips that could not be used.
        quiet: clips whose audio is very quiet.
        left_out: for a folder, suffix -> how many files were left out, as not audio.
        speed: what this run computed, how fast, and how long it waited for audio.
    """

    rows: int
    embedding_size: int
    added: int
    present: int
    skipped: list[SkippedClip]
    quiet: list[QuietClip]
    left_out: dict[str, int]
    speed: PassReport


class ListedCorpus(NamedTuple):
    """Clips to embed, the path that the table shows for each, and for a folder how many other files were left out."""

    clips: list[Clip]
    paths: list[str]
    left_out: dict[str, int]


class LoadedClip(NamedTuple):
    """A decoded clip, cut: `bounds` holds `(start, end)` in samples of every window, which are views of the clip.

    `rms` is the level of the file, before any scaling.
    """

    num_samples: int
    rms: float
    bounds: list[tuple[int, int]]
    windows: list[np.ndarray]


def embed_corpus(
    corpus: str | Path,
    model: str,
    out: str | Path,
    settings: EmbedSettings | None = None,
    batch_seconds: float = 60.0,
    device: str = "auto",
    show_progress: bool = False,
    workers: int | Literal["auto"] | None = None,
) -> EmbedReport:
    """Embed every clip of a manifest or folder into the Parquet file `out`. Killed at any moment, the next run continues.

    Args:
        corpus: a CSV or Parquet manifest, or a folder; of a folder every audio file below it.
        model: folder or Hub id; its Python files are run (`trust_remote_code`), so name only models that you trust.
        settings: windows, precision, truncation; see `EmbedSettings`.
        batch_seconds: audio per batch in seconds; a longer clip makes a batch of its own.
        device: "auto", or a torch device.
        workers: forked processes of one thread each that share the work on a CPU, "auto" for one per usable core; 1 = this
            process, with one thread; `None` = this process, with PyTorch's threads as they are.

    Returns:
        The report, in every process; `out` holds `id`, `path`, `seconds`, (`start_s`, `end_s`,) `embedding` `[E]`, in input
        order, whatever the batches, processes and interruptions.

    Raises:
        ValueError: the corpus or the model cannot be read, a setting is out of range, no clip is usable, or `out` (or its
            unfinished parts) holds embeddings of other settings or clips, or another run is making it.
    """
    out, settings = Path(out), settings or EmbedSettings()
    check_is_no_folder(out)
    clips, paths, left_out = clips_of(corpus)
    state = process_state(cpu=device == "cpu")
    with locked(out, holds=state.is_main_process, is_file=True):
        with state.main_process_first():
            embedder = Embedder(model, settings, torch.device(usable_device(device, str(state.device))), batch_seconds)
        if out.exists():
            return _complete(out, embedder, clips, left_out)
        with state.main_process_first():
            parts = EmbeddingParts(out, embedder.key, repair=state.is_main_process)
            facts = Inspector(parts.folder).inspect(clips, state.is_main_process, show_progress and state.is_main_process)
        readable, unreadable = readable_clips(clips, facts)
        batches = batches_by_length(readable, batch_seconds, [embedder.cost_s(item) for item in readable])
        workers = num_workers(workers, len(batches), embedder.encoder.model.device, state.num_processes)
        finished = parts.finished()
        batches = unfinished(batches, lambda item: (item.clip.clip_id, item.digest) in finished)
        state.wait_for_everyone()  # all have seen the same parts before anyone adds to them
        share = share_of_process(batches, state.process_index, state.num_processes)
        speed = gathered(_embed(share, embedder, parts, show_progress and state.is_local_main_process, workers))
        skipped = skipped_clips(clips, unreadable | speed.skipped)
        usable = [item for item in readable if item.row not in speed.skipped]
        if state.is_main_process:
            write_skipped(skipped_path(out), skipped)
            if usable:
                levels = parts.levels()
                levels = {item.clip.clip_id: levels[item.clip.clip_id, item.digest] for item in usable}
                write_quiet(quiet_path(out), levels)
                metadata = {**embedder.metadata, "clips_sha256": clips_sha256(clips, facts)}
                parts.merge(_wanted(usable, paths), metadata, with_times=settings.window_s is not None)
        state.wait_for_everyone()
    if not usable:
        raise ValueError(f"None of the {len(clips)} clips can be used; the first: {skipped[0].reason}")
    added, quiet = speed.clips, read_quiet(quiet_path(out))
    return EmbedReport(*_shape(out), added, len(usable) - added, skipped, quiet, left_out, speed)


def clips_of(corpus: str | Path) -> ListedCorpus:
    """The clips of a manifest or data set, or of all audio files below a folder in the order of their paths.

    Raises:
        ValueError: as `Manifest`, or the folder holds no audio.
    """
    files, left_out = read_audio_folder(corpus) if Path(corpus).is_dir() else ({}, {})
    if not files and (names_data_set(corpus) or not Path(corpus).is_dir()):
        manifest = Manifest(corpus)
        return ListedCorpus(manifest.clips, list(manifest.column("file_name")), {})
    if not files:
        others = "".join(f"; {line}" for line in left_out_in_words(left_out))
        raise ValueError(f"{corpus}: holds no audio files ({', '.join(AUDIO_SUFFIXES)}){others}.")
    return ListedCorpus([Clip(name, path) for name, path in files.items()], list(files), left_out)


class Embedder:
    """Model and settings: what is loaded of a clip, and what is computed of a batch.

    Attributes:
        key: everything that changes a vector; embeddings of different keys never meet in a file.
        metadata: the key, and the names that go with it.
    """

    def __init__(self, model: str, settings: EmbedSettings, device: torch.device, batch_seconds: float):
        self.encoder = WavCSEEncoder(model, device=device, precision=settings.precision)
        self.settings, self.batch_seconds, self.rate = settings, batch_seconds, self.encoder.sampling_rate
        self.window_samples, self.hop_samples = (
            None if seconds is None else in_samples(seconds, self.rate) for seconds in (settings.window_s, settings.hop_s)
        )
        self._check()
        config, identity = self.encoder.model.config, self.encoder.identity
        self.key = {
            "normalize": settings.normalize,
            "window_s": settings.window_s,
            "hop_s": settings.hop_s,
            "scale_quiet": settings.scale_quiet or None,  # tables of earlier versions, which do not say, agree with "no"
            "precision": settings.precision or config.precision,
            "embedding_size": settings.truncate_dim or self.encoder.embedding_size,
            "sampling_rate": self.rate,
            "weights_sha256": identity["weights_sha256"],
            "config_sha256": config_sha256(config),
        }
        self.metadata = {**identity, **self.key, "wavcse_version": __version__}

    def _check(self) -> None:
        dims, size = self.settings.truncate_dim, self.encoder.embedding_size
        if dims is not None and dims > size:
            raise ValueError(f"truncate_dim is {dims}; the model's embeddings have 1 to {size} numbers.")
        shortest = self.encoder.feature_extractor.min_samples
        if self.window_samples is not None and self.window_samples < shortest:
            raise ValueError(f"window_s is {self.settings.window_s}; the model needs at least {shortest / self.rate} s.")
        # A precision that this machine or upstream does not have fails here, and not clip by clip.
        noise = np.random.default_rng(0).standard_normal(max(shortest, self.rate)).astype(np.float32)
        self.encoder.embed([0.1 * noise])

    def cost_s(self, item: CorpusClip) -> float:
        """Seconds of audio that go through the model for a clip; overlapping windows count each."""
        bounds = window_bounds(round(item.duration_s * self.rate), self.window_samples, self.hop_samples)
        return sum(end - start for start, end in bounds) / self.rate

    def load(self, clip: Clip) -> LoadedClip:
        """Decode, cut and check a clip; ValueError says why it cannot be used."""
        is_cut = self.window_samples is not None  # then only the windows must not be too long
        return self.cut(clip.load(self.rate, None if is_cut else self.encoder.feature_extractor.max_duration_s), clip.clip_id)

    def cut(self, waveform: np.ndarray, name: str) -> LoadedClip:
        """Cut and check a waveform `[samples]` at the model's rate, which messages call `name`."""
        level = rms(waveform)
        if self.settings.scale_quiet:
            waveform = scale_quiet(waveform)
        bounds = window_bounds(len(waveform), self.window_samples, self.hop_samples)
        windows = [waveform[start:end] for start, end in bounds]
        for window in windows:
            self.encoder.feature_extractor.check(window, name)
        return LoadedClip(len(waveform), level, bounds, windows)

    def compute(self, loaded: Sequence[LoadedClip]) -> list[tuple]:
        """Per clip its length in seconds and level, `start_s` and `end_s` `[n]`, and embeddings `[n, E]` of its n windows."""
        windows = [window for clip in loaded for window in clip.windows]
        size = len(windows)
        if self.window_samples is not None:  # a long clip has more windows than go through at once
            size = max(1, int(self.batch_seconds * self.rate / max(map(len, windows))))
        parts = [windows[start : start + size] for start in range(0, len(windows), size)]
        embeddings = self._finished(np.concatenate([checked_embeddings(self.encoder, part) for part in parts]))
        borders = np.cumsum([len(clip.windows) for clip in loaded])[:-1]
        return [
            (clip.num_samples / self.rate, clip.rms, *(np.array(clip.bounds) / self.rate).T, rows)
            for clip, rows in zip(loaded, np.split(embeddings, borders))
        ]

    def _finished(self, embeddings: np.ndarray) -> np.ndarray:
        embeddings = embeddings[:, : self.settings.truncate_dim]
        if self.settings.normalize:
            embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(embeddings)


def skipped_path(out: Path) -> Path:
    """Where the skipped clips are listed: OUT.skipped.csv beside OUT.parquet."""
    return out.with_suffix(".skipped.csv")


def quiet_path(out: Path) -> Path:
    """Where the very quiet clips are listed, if there are any: OUT.quiet.csv beside OUT.parquet."""
    return out.with_suffix(".quiet.csv")


def config_sha256(config: PretrainedConfig) -> str:
    """Hash of what a configuration says of the numbers; where it came from and which library wrote it do not count."""
    fields = config.to_dict()
    for part in (fields, fields["upstream_config"]):
        for name in ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version"):
            part.pop(name, None)
    del fields["precision"]  # a setting of its own
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def clips_sha256(clips: Sequence[Clip], facts: Sequence[ClipFacts]) -> str:
    """Hash of the names and contents of a corpus, in order."""
    pairs = [(clip.clip_id, fact.digest) for clip, fact in zip(clips, facts)]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _embed(
    share: Sequence[list[CorpusClip]], embedder: Embedder, parts: EmbeddingParts, show_progress: bool, workers: int
) -> PassReport:
    corpus_pass = CorpusPass(share, embedder.load, embedder.compute, show_progress, workers=workers)
    buffer: list[EmbeddedClip] = []
    saved_at = time.monotonic()
    try:
        for batch, computed in corpus_pass:
            buffer += [EmbeddedClip(item.clip.clip_id, item.digest, *one) for item, one in zip(batch, computed)]
            num_rows = sum(len(clip.embeddings) for clip in buffer)
            if num_rows >= PART_ROWS or time.monotonic() - saved_at >= PART_INTERVAL_S:
                parts.write(buffer)
                buffer, saved_at = [], time.monotonic()
    finally:  # also where a worker died or the run is stopped
        if buffer:
            parts.write(buffer)
    return corpus_pass.report


def _wanted(usable: Sequence[CorpusClip], paths: Sequence[str]) -> pd.DataFrame:
    rows = [(item.clip.clip_id, paths[item.row], item.digest) for item in usable]
    return pd.DataFrame(rows, columns=["id", "path", "digest"])


def _complete(out: Path, embedder: Embedder, clips: Sequence[Clip], left_out: dict[str, int]) -> EmbedReport:
    """The report on a file that is there already; ValueError if it is not what would be made now."""
    metadata = read_metadata(out)
    refuse_other_settings(out, metadata, embedder.key)
    if metadata["clips_sha256"] != clips_sha256(clips, Inspector().inspect(clips)):
        raise ValueError(f"{out}: holds other clips, or their audio has changed. Give another --out, or remove it.")
    remove_parts(out)  # where a kill came between the last two steps
    skipped, quiet = read_skipped(skipped_path(out)), read_quiet(quiet_path(out))
    return EmbedReport(*_shape(out), 0, len(clips) - len(skipped), skipped, quiet, left_out, PassReport())


def _shape(out: Path) -> tuple[int, int]:
    return parquet.read_metadata(out).num_rows, read_metadata(out)["embedding_size"]


@EMBED.main
def main(args: EmbedArguments) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    if args.engine in ENGINES:
        module, _, function = ENGINES[args.engine].partition(":")
        return getattr(import_module(module), function)(args)
    how = {"batch_seconds": args.batch_seconds, "device": args.device, "workers": args.workers}
    report = embed_corpus(args.corpus, args.model, args.out, args, show_progress=True, **how)
    state = PartialState()
    if state.is_main_process:
        print(summary(Path(args.out), report, args))
    state.destroy_process_group()  # else the first process to leave can break the others' last message
    return SOME_SKIPPED if report.skipped else 0


def summary(out: Path, report: EmbedReport, settings: EmbedSettings) -> str:
    """What a run did, in a few lines."""
    lines = [
        f"{out}: {report.rows} rows of {report.embedding_size} numbers; "
        f"{report.added} clips embedded, {report.present} were there already"
    ]
    if report.added:
        lines.append(report.speed.speed())
    lines += left_out_in_words(report.left_out)
    if report.quiet:
        what_helps = "they were scaled" if settings.scale_quiet else "--scale_quiet brings them to the level of usual speech"
        found = quiet_in_words(len(report.quiet), report.quiet[0].clip_id)
        lines.append(f"{found}; see {quiet_path(out)}; {what_helps}")
    if report.skipped:
        where = skipped_path(out)
        lines.append(f"{len(report.skipped)} clips were skipped, see {where}; the first: {report.skipped[0].reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
