"""Build the feature cache: every layer of a frozen upstream, averaged over time, once per clip.

    python -m wavcse.data.cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches

Afterwards training, layer selection, pooling comparison and probes read the cache and never run the upstream again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.modeling_utils import PreTrainedModel

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.features import CacheKey, FeatureCache, clips_per_shard
from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import config_from_upstream
from wavcse.upstream_wavcse import UpstreamRunner, load_upstream

EXIT_SOME_SKIPPED = 3
DECODE_THREADS = 2
BATCHES_AHEAD = 4


@dataclass
class Report:
    """What one run did: clips added, clips that were there already, and `(clip_id, reason)` of those left out."""

    added: int = 0
    present: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class PendingClip:
    """A clip to embed, with what is known of it."""

    clip: Clip
    facts: ClipFacts


def build_cache(
    manifests: Sequence[str | Path],
    upstream: str,
    out: str | Path,
    batch_seconds: float = 60.0,
    dtype: str = "float32",
    revision: str | None = None,
    shard_mb: float = 64.0,
) -> tuple[FeatureCache, Report]:
    """Add every clip of the manifests that is not cached yet. Killed at any moment, the next run continues.

    Args:
        manifests: CSV or Parquet files.
        upstream: Hub id or local folder of a WavLM, wav2vec2 or HuBERT model.
        out: root of the caches; a folder per key is made below it.
        batch_seconds: audio per batch in seconds; a longer clip makes a batch of its own.
        dtype: "float32", or "float16" for half the space (relative error up to 4.9e-4 per value).
        shard_mb: size of a shard in megabytes; what a kill can lose at most.

    Returns:
        The cache and the report; under `accelerate launch` the clips are dealt to the processes by their length.
    """
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds is {batch_seconds}; it must be a positive number of seconds.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    clips = [clip for manifest in manifests for clip in Manifest(manifest).clips]
    config = config_of_all_layers(upstream, revision)
    model = load_upstream(upstream, config.upstream_config, revision=revision).to(state.device).eval()
    with state.main_process_first():
        cache = FeatureCache.create(Path(out), cache_key(upstream, revision, config, model, dtype))
        facts = Inspector(out).inspect(clips, save=state.is_main_process, show_progress=state.is_main_process)
    report, pending = _pending(clips, facts, cache)
    batches = batches_by_length(pending, batch_seconds)[state.process_index :: state.num_processes]
    shard_size = clips_per_shard(len(config.selected_layers), config.upstream_config.hidden_size, dtype, shard_mb)
    _extract(batches, model, config, cache, report, shard_size, show_progress=state.is_local_main_process)
    return _finish(cache, report, state)


def config_of_all_layers(upstream: str, revision: str | None = None) -> WavCSEConfig:
    """A configuration that selects every layer of the upstream, with the audio settings of its own preprocessor."""
    num_blocks = AutoConfig.from_pretrained(upstream, revision=revision).num_hidden_layers
    return config_from_upstream(upstream, {"revision": revision}, selected_layers=range(num_blocks + 1))


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
        dtype=dtype,
    )


def weights_sha256(model: PreTrainedModel) -> str:
    """Hash of all parameter names and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def batches_by_length(pending: Sequence[PendingClip], batch_seconds: float) -> list[list[PendingClip]]:
    """Longest clips first, as many in a batch as fit the budget: equal lengths meet, and a too small machine fails early."""
    batches: list[list[PendingClip]] = []
    room_s = 0.0
    for item in sorted(pending, key=lambda item: (-item.facts.duration_s, item.clip.clip_id)):
        if item.facts.duration_s > room_s:
            batches.append([])
            room_s = batch_seconds
        batches[-1].append(item)
        room_s -= item.facts.duration_s
    return batches


def _pending(clips: Sequence[Clip], facts: Sequence[ClipFacts], cache: FeatureCache) -> tuple[Report, list[PendingClip]]:
    report, pending = Report(), {}
    for clip, fact in zip(clips, facts):
        if fact.error:
            report.skipped.append((clip.clip_id, fact.error))
        elif fact.digest in cache:
            report.present += 1
        else:
            pending.setdefault(fact.digest, PendingClip(clip, fact))
    return report, list(pending.values())


def _extract(
    batches: Sequence[list[PendingClip]],
    model: PreTrainedModel,
    config: WavCSEConfig,
    cache: FeatureCache,
    report: Report,
    shard_size: int,
    show_progress: bool,
) -> None:
    feature_extractor = WavCSEFeatureExtractor.from_config(config)
    prepare, run = Preparer(feature_extractor), UpstreamRunner()
    buffer: list[tuple[str, np.ndarray]] = []
    started = time.monotonic()
    total_s = 0.0
    with tqdm(total=sum(map(len, batches)), desc="embed", unit="clip", disable=not show_progress) as bar:
        for batch, prepared in prefetched(prepare, batches):
            report.skipped += prepared.skipped
            if prepared.waveforms:
                inputs = feature_extractor(prepared.waveforms, sampling_rate=config.sampling_rate, return_tensors="pt")
                buffer += zip(prepared.digests, _pooled_layers(run, model, config, inputs))
            report.added += len(prepared.waveforms)
            total_s += sum(item.facts.duration_s for item in batch)
            bar.update(len(batch))
            bar.set_postfix_str(f"{total_s / (time.monotonic() - started):.1f} audio-s/s")
            if len(buffer) >= shard_size:
                _flush(cache, buffer)
        _flush(cache, buffer)


@torch.inference_mode()
def _pooled_layers(
    run: UpstreamRunner, model: PreTrainedModel, config: WavCSEConfig, inputs: Mapping[str, torch.Tensor]
) -> np.ndarray:
    values, mask = (inputs[name].to(model.device) for name in ("input_values", "attention_mask"))
    output = run(model, values, mask, config.selected_layers, window_frames=config.window_frames)
    return output.pooled_layers.cpu().numpy()


def _flush(cache: FeatureCache, buffer: list[tuple[str, np.ndarray]]) -> None:
    if buffer:
        cache.write_shard(np.stack([features for _, features in buffer]), [digest for digest, _ in buffer])
        buffer.clear()


@dataclass
class PreparedBatch:
    """Decoded clips of a batch with their digests, and those that could not be."""

    digests: list[str] = field(default_factory=list)
    waveforms: list[np.ndarray] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Preparer:
    """Decodes and checks a batch of clips; runs in a thread while the upstream computes."""

    def __init__(self, feature_extractor: WavCSEFeatureExtractor):
        self.feature_extractor = feature_extractor

    def __call__(self, batch: Sequence[PendingClip]) -> PreparedBatch:
        prepared = PreparedBatch()
        for item in batch:
            try:
                waveform = item.clip.load(self.feature_extractor.sampling_rate)
                self.feature_extractor.check(waveform, item.clip.clip_id)
            except ValueError as error:
                prepared.skipped.append((item.clip.clip_id, str(error)))
            else:
                prepared.digests.append(item.facts.digest)
                prepared.waveforms.append(waveform)
        return prepared


def prefetched(function: Callable, items: Sequence) -> Iterator[tuple]:
    """Yield `(item, function(item))` in order, computing a few items ahead in threads (soundfile and soxr free the GIL)."""
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append((item, pool.submit(function, item)))
            if len(ahead) > BATCHES_AHEAD:
                done, future = ahead.popleft()
                yield done, future.result()
        for done, future in ahead:
            yield done, future.result()


def _finish(cache: FeatureCache, report: Report, state: PartialState) -> tuple[FeatureCache, Report]:
    state.wait_for_everyone()
    reports = gather_object([(report.added, report.skipped)])
    skipped = sorted({entry for _, entries in reports for entry in map(tuple, entries)})
    report = Report(sum(added for added, _ in reports), report.present, skipped)
    if state.is_main_process:
        with open(cache.folder / "skipped.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "reason"), *skipped])
    cache.refresh()
    return cache, report


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    parser = argparse.ArgumentParser(prog="wavcse cache", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--manifest", nargs="+", required=True, help="CSV or Parquet manifests, one row per clip")
    parser.add_argument("--upstream", required=True, help="Hub id or local folder of a WavLM, wav2vec2 or HuBERT model")
    parser.add_argument("--out", required=True, help="root folder of the caches; each upstream gets its own folder in it")
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="seconds of audio per batch (default 60)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the stored numbers")
    parser.add_argument("--revision", help="commit of the upstream on the Hub")
    args = parser.parse_args(argv)
    try:
        cache, report = build_cache(args.manifest, args.upstream, args.out, args.batch_seconds, args.dtype, args.revision)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"wavcse cache: {error}", file=sys.stderr)
        return 2
    state = PartialState()
    if state.is_main_process:
        print(f"{cache.folder}: {len(cache)} clips; {report.added} added, {report.present} were there already")
        if report.skipped:
            print(
                f"{len(report.skipped)} clips were skipped, see {cache.folder / 'skipped.csv'}; the first: {report.skipped[0]}"
            )
    state.destroy_process_group()  # else the first process to leave can break the others' last message
    return EXIT_SOME_SKIPPED if report.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
