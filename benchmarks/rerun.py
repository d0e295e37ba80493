"""A layer search on the feature cache beside one that runs the upstream again in every epoch of every round.

Nobody would wait for the latter, so it is an extrapolation: the speed that `bench_upstream.py` measured on its mixed workload
with one thread, times the corpora's seconds, epochs and rounds. The upstream always goes through all of its blocks; speeds
measured on the blocks of the paper's layers only are scaled by the arithmetic of both depths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import WavLMConfig

from wavcse.benchmarks.workloads import SAMPLING_RATE, count_flop
from wavcse.configuration_wavcse import PAPER_LAYERS, WAVLM_LARGE

WORKLOAD = "mixed"


@dataclass(frozen=True)
class UpstreamRates:
    """Seconds of audio per second of one core through all blocks; `ours` by precision; `source` is the file they are from."""

    source: str
    ordinary: float
    best: float
    best_title: str
    ours: dict[str, float]


def newest_rates(folder: Path, device: str) -> UpstreamRates | None:
    """Rates from the newest result of `bench_upstream.py` for this kind of device; `None` if there is none."""
    paths = sorted(folder.glob(f"????-??-??-{device}*.json"))
    if not paths:
        return None
    runs = json.loads(paths[-1].read_text(encoding="utf-8"))["runs"]
    workloads = [own for run in runs if (run["threads"], run["allocator"]) == (1, "default") for own in run["workloads"]]
    workload = next((own for own in workloads if own["name"] == WORKLOAD), None)
    return workload and rates_of(workload, paths[-1].name)


def rates_of(workload: Mapping, source: str) -> UpstreamRates:
    """Rates from one workload of a result."""
    variants = [row for row in workload["variants"] if "audio_s_per_s" in row and not row.get("engine")]
    rates = {row["name"]: row["audio_s_per_s"] * _depth_share(row, workload["clip_seconds"]) for row in variants}
    best = max((row for row in variants if row["is_rival"]), key=lambda row: rates[row["name"]])
    ours = {row["name"]: rates[row["name"]] for row in variants if not row["is_rival"]}
    return UpstreamRates(source, rates["ordinary"], rates[best["name"]], best["title"], ours)


def _depth_share(row: Mapping, clip_seconds: list[float]) -> float:
    """What going through all blocks leaves of a variant's rate."""
    if row["name"] in ("ordinary", "sorted"):
        return 1.0
    config = WavLMConfig(**{name: value for name, value in WAVLM_LARGE.items() if name != "model_type"})
    measured, complete = (
        sum(sum(count_flop(config, round(s * SAMPLING_RATE), blocks, not row["is_rival"]).values()) for s in clip_seconds)
        for blocks in (max(PAPER_LAYERS), config.num_hidden_layers)
    )
    return measured / complete


def over_rerun(rates: UpstreamRates, audio_s: float, precision: str, passes: int, epoch_core_s: float) -> dict[str, float]:
    """How many times less core time the cache takes than the best and the ordinary way to run the upstream in every epoch.

    Args:
        audio_s: seconds of audio in an epoch.
        precision: of our one pass that fills the cache.
        passes: epochs of all rounds together.
        epoch_core_s: core seconds of an epoch on the cache, the mean over the rounds.
    """
    ours = audio_s / rates.ours[precision] + passes * epoch_core_s
    return {name: passes * audio_s / getattr(rates, name) / ours for name in ("best", "ordinary")}
