"""The feature cache: every layer of a frozen upstream, pooled over time, once per clip (`wavcse cache`).

Afterwards training, layer selection, pooling comparison and probes read the cache and never run the upstream again.
"""

from __future__ import annotations

from wavcse.data.arguments import CACHE, CacheArguments

if __name__ == "__main__":
    CACHE.answer()  # before the imports below, which take seconds

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from transformers.modeling_utils import PreTrainedModel

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.corpus_pass import (
    CorpusClip,
    CorpusPass,
    PassReport,
    SkippedClip,
    batches_by_length,
    gathered,
    num_workers,
    process_state,
    quiet_in_words,
    readable_clips,
    share_of_process,
    skipped_clips,
    unfinished,
    write_skipped,
)
from wavcse.data.features import CacheKey, FeatureCache, clips_per_shard
from wavcse.data.files import locked
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import config_from_upstream
from wavcse.settings.command import SOME_SKIPPED
from wavcse.upstream_wavcse import UpstreamRunner, load_upstream, read_config

SHARD_INTERVAL_S = 300.0


@dataclass(frozen=True)
class Report:
    """What one run did: clips added, clips that were there already, those left out, and how fast it went.

    `quiet` names the clips that were added although they are so quiet that their vectors approach those of silence.
    """

    added: int
    present: int
    skipped: list[SkippedClip]
    speed: str
    quiet: list[str]


def build_cache(
    manifests: Sequence[str | Path],
    upstream: str,
    out: str | Path,
    batch_seconds: float = 60.0,
    dtype: str = "float32",
    revision: str | None = None,
    shard_mb: float = 64.0,
    temporal_pooling: str = "mean",
    workers: int | Literal["auto"] | None = None,
    context: str | None = None,
) -> tuple[FeatureCache, Report]:
    """Add every clip of the manifests that is not cached yet. Killed at any moment, the next run continues.

    Args:
        manifests: CSV or Parquet files.
        upstream: Hub id or local folder of a WavLM, wav2vec2, HuBERT or Whisper model, or of a wavCSE model with one in it.
        out: root of the caches; a folder per key is made below it.
        batch_seconds: audio per batch in seconds; a longer clip makes a batch of its own.
        dtype: "float32", or "float16" for half the space (relative error up to 4.9e-4 per value).
        shard_mb: size of a shard in megabytes. A shard is also written after `SHARD_INTERVAL_S`, so that a kill loses no more.
        temporal_pooling: "mean", or "mean_std" for mean and standard deviation, which takes twice the space.
        workers: as of `embed_corpus`.
        context: of a Whisper upstream, "clip" or "window"; `None` = "clip", or that of the wavCSE model that it is taken from.

    Returns:
        The cache and the report; under `accelerate launch` the clips are dealt to the processes by their length.

    Raises:
        ValueError: the upstream or a manifest cannot be read, an option is out of range, or another run builds this cache.
    """
    state = process_state()
    clips = [clip for manifest in manifests for clip in Manifest(manifest).clips]
    config = config_of_all_layers(upstream, revision, temporal_pooling, context)
    model = load_upstream(upstream, config.upstream_config, revision=revision).to(state.device).eval()
    key = cache_key(upstream, revision, config, model, dtype)
    with locked(Path(out) / key.digest(), holds=state.is_main_process):
        with state.main_process_first():
            cache = FeatureCache.create(Path(out), key, repair=state.is_main_process)
            facts = Inspector(out).inspect(clips, save=state.is_main_process, show_progress=state.is_main_process)
        readable, unreadable = readable_clips(clips, facts)
        batches = batches_by_length(_first_of_each_content(readable), batch_seconds)
        workers = num_workers(workers, len(batches), state.device, state.num_processes)
        batches = unfinished(batches, lambda item: item.digest in cache)
        present = sum(item.digest in cache for item in readable)
        state.wait_for_everyone()  # all have seen the same cache before anyone adds to it
        batches = share_of_process(batches, state.process_index, state.num_processes)
        shard_size = clips_per_shard(len(config.selected_layers), config.pooled_size, dtype, shard_mb)
        done = gathered(_extract(batches, model, config, cache, shard_size, state.is_local_main_process, workers))
        skipped = skipped_clips(clips, unreadable | done.skipped)
        if state.is_main_process:
            write_skipped(cache.folder / "skipped.csv", skipped)
        cache.refresh()
    return cache, Report(done.clips, present, skipped, done.speed(), [clips[row].clip_id for row in sorted(done.quiet)])


def config_of_all_layers(
    upstream: str, revision: str | None = None, temporal_pooling: str = "mean", context: str | None = None
) -> WavCSEConfig:
    """A configuration that selects every layer of the upstream, with the audio settings of its own preprocessor."""
    num_blocks = read_config(upstream, revision=revision).num_hidden_layers
    fields = {"selected_layers": range(num_blocks + 1), "temporal_pooling": temporal_pooling, "context": context}
    return config_from_upstream(upstream, {"revision": revision}, **fields)


def cache_key(upstream: str, revision: str | None, config: WavCSEConfig, model: PreTrainedModel, dtype: str) -> CacheKey:
    """The key of this upstream's cache; its weights count by content, its name does not."""
    upstream_config = config.upstream_config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        upstream_config.pop(name, None)
    return CacheKey(
        upstream=Path(upstream).resolve().name if Path(upstream).is_dir() else upstream,
        revision=revision,
        weights_sha256=weights_sha256(model),
        upstream_config=upstream_config,
        sampling_rate=config.sampling_rate,
        do_normalize=config.do_normalize,
        window_s=config.window_s,
        max_duration_s=config.max_duration_s,
        temporal_pooling=config.temporal_pooling,
        context=config.context,
        dtype=dtype,
    )


def weights_sha256(model: PreTrainedModel) -> str:
    """Hash of all parameter names and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _first_of_each_content(readable: Sequence[CorpusClip]) -> list[CorpusClip]:
    first: dict[str, CorpusClip] = {}
    for item in readable:
        first.setdefault(item.digest, item)
    return list(first.values())


def _extract(
    batches: Sequence[list[CorpusClip]],
    model: PreTrainedModel,
    config: WavCSEConfig,
    cache: FeatureCache,
    shard_size: int,
    show_progress: bool,
    workers: int,
) -> PassReport:
    feature_extractor, run = WavCSEFeatureExtractor.from_config(config), UpstreamRunner()

    def load(clip: Clip) -> np.ndarray:
        waveform = clip.load(config.sampling_rate, config.max_duration_s)
        feature_extractor.check(waveform, clip.clip_id)
        return waveform

    def pool(waveforms: list[np.ndarray]) -> np.ndarray:
        inputs = feature_extractor(waveforms, sampling_rate=config.sampling_rate, return_tensors="pt", device=model.device)
        return _pooled_layers(run, model, config, inputs)

    if workers > 1:  # what the packed path derives from the weights is made here once, for all workers
        pool([np.zeros(feature_extractor.min_samples, np.float32)])
    order = {item.digest: place for place, item in enumerate(chain.from_iterable(batches))}
    buffer: list[tuple[str, np.ndarray]] = []
    corpus_pass = CorpusPass(batches, load, pool, show_progress, lambda waveform: waveform, workers)
    flushed_at = time.monotonic()
    try:
        for clips, pooled_layers in corpus_pass:
            buffer += zip([item.digest for item in clips], pooled_layers)
            if len(buffer) >= shard_size or time.monotonic() - flushed_at >= SHARD_INTERVAL_S:
                _flush(cache, buffer, order)
                flushed_at = time.monotonic()
    finally:  # also where a worker died or the run is stopped
        _flush(cache, buffer, order)
    return corpus_pass.report


@torch.inference_mode()
def _pooled_layers(
    run: UpstreamRunner, model: PreTrainedModel, config: WavCSEConfig, inputs: Mapping[str, torch.Tensor]
) -> np.ndarray:
    output = run(model, **inputs, layers=config.selected_layers, **config.upstream_options)
    return output.pooled_layers.cpu().numpy()


def _flush(cache: FeatureCache, buffer: list[tuple[str, np.ndarray]], order: Mapping[str, int]) -> None:
    """Write a shard, its clips in the order of the batches: workers finish in any order."""
    buffer.sort(key=lambda pair: order[pair[0]])
    if buffer:
        cache.write_shard(np.stack([features for _, features in buffer]), [digest for digest, _ in buffer])
        buffer.clear()


@CACHE.main
def main(args: CacheArguments) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    options = {name: value for name, value in vars(args).items() if name != "manifest"}
    cache, report = build_cache(args.manifest, **options)
    state = PartialState()
    if state.is_main_process:
        print(f"{cache.folder}: {len(cache)} clips; {report.added} added, {report.present} were there already")
        if report.added:
            print(report.speed)
        if report.quiet:
            print(f"of these, {quiet_in_words(len(report.quiet), report.quiet[0])}")
        if report.skipped:
            where = cache.folder / "skipped.csv"
            print(f"{len(report.skipped)} clips were skipped, see {where}; the first: {report.skipped[0].reason}")
    state.destroy_process_group()  # else the first process to leave can break the others' last message
    return SOME_SKIPPED if report.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
