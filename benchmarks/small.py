"""Small models in processor time: short clips through the packed path of wavcse-tiny's shape, one clip through `encode`.

`encode` is also measured of the model in the root.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wavcse.benchmarks.measure import gemm_rate
from wavcse.benchmarks.workloads import SAMPLING_RATE, Workload, total_flop, waveforms
from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.modeling_wavcse import WavCSEModel

ROOT = Path(__file__).parents[1]  # the model in it
CLIPS = Workload("1s", "32 clips of 1 s", (1.0,) * 32)
SHAPE = (512, 192, 768)  # rows, in, out of its products
UPSTREAM = {
    "model_type": "wavlm",
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "conv_dim": [256, 256],
    "conv_kernel": [400, 3],
    "conv_stride": [160, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 64,
}


def measure_small(rounds: int = 5) -> dict[str, Any]:
    """Throughput, share of what the product rate of its own shapes allows, and milliseconds of one clip in `encode`."""
    layers = {"selected_layers": list(range(7)), "temporal_pooling": "mean_std", "pooling_type": "log_sum_exp"}
    model, clips = WavCSEModel(WavCSEConfig(UPSTREAM, do_normalize=True, **layers)).eval(), waveforms(CLIPS)
    config = model.config.upstream_config
    flop = sum(total_flop(config, clips, config.num_hidden_layers, packed=True).values())
    root = WavCSEModel.from_pretrained(ROOT).eval()
    rates, shares, encode_ms, root_encode_ms = [], [], [], []
    one = clips[0].numpy() * 0.1
    for _ in range(rounds + 1):
        limit_s = flop / gemm_rate(torch.device("cpu"), rows=SHAPE[0], inner=SHAPE[1], columns=SHAPE[2])
        with torch.no_grad():
            seconds = _thread_seconds(lambda: model.pool_layers(clips))
        rates.append(CLIPS.audio_s / seconds)
        shares.append(limit_s / seconds)
        for encoder, found in ((model, encode_ms), (root, root_encode_ms)):
            found.append(1000 * statistics.median(_thread_seconds(partial(encoder.encode, one)) for _ in range(20)))
    facts = {"audio_s_per_s": rates, "share_of_limit": shares, "encode_ms": encode_ms, "root_encode_ms": root_encode_ms}
    return {"clips": len(clips), "clip_s": clips[0].numel() / SAMPLING_RATE} | {
        name: statistics.median(values[1:])
        for name, values in facts.items()  # the first round makes things ready
    }


def _thread_seconds(function) -> float:
    started = time.thread_time()
    function()
    return time.thread_time() - started
