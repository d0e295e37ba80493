"""What a set of layers costs to run: blocks, parameters, megabytes, arithmetic, and on request measured speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from wavcse.configuration_wavcse import WHISPER_SAMPLES_PER_FRAME, WavCSEConfig, is_whisper
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.training.arguments import RunArguments
from wavcse.upstream_wavcse import build_on_meta, run_upstream

CLIP_S = 8.0
REPEATS = 3


def cost_of(upstream_config: Mapping, layers: Sequence[int], context: str | None = None) -> dict:
    """Of the upstream cut after the highest layer of the set.

    Args:
        context: of Whisper, "clip" (also `None`) or "window", whose clip fills the window.

    Returns:
        `blocks`, `parameters`, `megabytes` (float32), `gflop_per_audio_s` (matrix products of one clip of 8 s, counted, not
        run; a multiply-add is two).
    """
    config = WavCSEConfig(upstream_config=upstream_config, selected_layers=list(layers), context=context)
    upstream = build_on_meta(config.upstream_config).eval()
    parameters = sum(parameter.numel() for parameter in upstream.parameters())
    seconds = CLIP_S
    if is_whisper(upstream.config) and config.context == "window":
        seconds = upstream.config.max_source_positions * WHISPER_SAMPLES_PER_FRAME / config.sampling_rate
    clip = torch.empty(1, round(seconds * config.sampling_rate), device="meta")
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        run_upstream(upstream, clip, None, config.selected_layers, context=config.context)
    return {
        "blocks": config.num_hidden_layers,
        "parameters": parameters,
        "megabytes": round(4 * parameters / 1e6, 1),
        "gflop_per_audio_s": round(counter.get_total_flops() / seconds / 1e9, 3),
    }


def measured_speed(args: RunArguments, blocks: int, context: str | None = None) -> float:
    """Seconds of audio per second through the recipe's upstream up to this block, on one clip of noise, in this process."""
    fields = {"selected_layers": [blocks], "context": context}
    model = WavCSEModel.from_upstream(args.upstream, **fields, revision=args.revision)
    clip = torch.randn(1, round(CLIP_S * model.config.sampling_rate), generator=torch.Generator().manual_seed(0))
    seconds = []
    with torch.no_grad():
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            model(clip)
            seconds.append(time.perf_counter() - started)
    return round(CLIP_S / statistics.median(seconds[1:]), 2)
