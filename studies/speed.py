"""How fast several upstreams are on one CPU thread: the same clips through the packed path, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wavcse.data.files import digest_of, kept_json, write_json
from wavcse.eval.baselines.layers import UpstreamLayers
from wavcse.eval.encoder import SavedModel
from wavcse.settings.processes import one_thread
from wavcse.training.run import versions

NUM_CLIPS, SHORTEST_S, LONGEST_S = 20, 1.0, 10.0
ROUNDS = 5  # beside one to warm up


def kept_speed(upstreams: Mapping[str, Path], path: Path) -> dict[str, dict]:
    """`measured_speed` of upstreams (name -> folder), from the file where it is of these configurations; else kept there."""
    shapes = {name: SavedModel(str(folder)).config_sha256() for name, folder in upstreams.items()}
    key = digest_of([shapes, versions(), NUM_CLIPS, SHORTEST_S, LONGEST_S, ROUNDS])
    kept = kept_json(path) or {}
    if kept.get("key") != key:
        kept = {"key": key, "upstreams": measured_speed(upstreams)}
        write_json(path, kept, indent=1)
    return kept["upstreams"]


def measured_speed(upstreams: Mapping[str, Path]) -> dict[str, dict]:
    """Time `ROUNDS` rounds, in each of which every upstream (name -> folder) takes its turn, so that a busy spell hits all.

    Returns:
        Name -> `times_real_time` (seconds of audio per second, median over rounds), `ratio` (how many times as fast as the
        first upstream, median of the ratios within a round) and its `spread` ((largest - smallest) / median).
    """
    layers = {name: UpstreamLayers(str(folder)) for name, folder in upstreams.items()}
    clips = noise_clips(next(iter(layers.values())).sampling_rate)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    with one_thread():
        for _ in range(1 + ROUNDS):
            for name, own in layers.items():
                started = time.perf_counter()
                own.all_layers(list(clips))  # a list of its own: the source keeps the answer to the last one
                seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    audio_s = sum(map(len, clips)) / next(iter(layers.values())).sampling_rate
    return {name: _figures(audio_s, own[1:], first[1:]) for name, own in seconds.items()}


def noise_clips(sampling_rate: int) -> list[np.ndarray]:
    """`NUM_CLIPS` clips of seeded noise, float32 `[samples]`, their lengths evenly between the two ends."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(SHORTEST_S, LONGEST_S, NUM_CLIPS) * sampling_rate
    return [(0.1 * rng.standard_normal(round(length))).astype(np.float32) for length in lengths]


def _figures(audio_s: float, seconds: list[float], first: list[float]) -> dict[str, float]:
    ratios = [base / own for base, own in zip(first, seconds, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "times_real_time": round(audio_s / statistics.median(seconds), 2),
        "ratio": round(ratio, 4),
        "spread": round((max(ratios) - min(ratios)) / ratio, 4),
    }
