"""A small model, the one in the root: short clips through the packed path and one clip through `encode`, processor time."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from wavcse.benchmarks.measure import gemm_rate
from wavcse.benchmarks.workloads import SAMPLING_RATE, Workload, total_flop, waveforms
from wavcse.modeling_wavcse import WavCSEModel

ROOT = Path(__file__).parents[1]
CLIPS = Workload("1s", "32 clips of 1 s", (1.0,) * 32)
SHAPE = (512, 192, 768)  # rows, in, out of its products


def measure_small(rounds: int = 5) -> dict[str, Any]:
    """Throughput, share of what the product rate of its own shapes allows, and milliseconds of one clip in `encode`."""
    model, clips = WavCSEModel.from_pretrained(ROOT), waveforms(CLIPS)
    config = model.config.upstream_config
    flop = sum(total_flop(config, clips, config.num_hidden_layers, packed=True).values())
    rates, shares, encode_s = [], [], []
    one = clips[0].numpy() * 0.1
    for _ in range(rounds + 1):
        limit_s = flop / gemm_rate(torch.device("cpu"), rows=SHAPE[0], inner=SHAPE[1], columns=SHAPE[2])
        with torch.no_grad():
            seconds = _thread_seconds(lambda: model.pool_layers(clips))
        rates.append(CLIPS.audio_s / seconds)
        shares.append(limit_s / seconds)
        encode_s.append(statistics.median(_thread_seconds(lambda: model.encode(one)) for _ in range(20)))
    facts = {"audio_s_per_s": rates, "share_of_limit": shares, "encode_ms": [1000 * seconds for seconds in encode_s]}
    return {"clips": len(clips), "clip_s": clips[0].numel() / SAMPLING_RATE} | {
        name: statistics.median(values[1:])
        for name, values in facts.items()  # the first round makes things ready
    }


def _thread_seconds(function) -> float:
    started = time.thread_time()
    function()
    return time.thread_time() - started
