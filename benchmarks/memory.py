"""Working memory against clip length: every variant alone in a child process, above what the loaded model takes."""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial

import psutil
import torch
from transformers.configuration_utils import PretrainedConfig

from wavcse.benchmarks.measure import PeakMemory, timed
from wavcse.benchmarks.rivals import ORDINARY, all_variants, make_bench
from wavcse.benchmarks.workloads import MEMORY_WORKLOADS, SAMPLING_RATE, Workload, waveforms
from wavcse.configuration_wavcse import count_frames

MEMORY_VARIANTS = (ORDINARY, "hooks", "float32", "bfloat16", "int8")
QUICK_VARIANTS = (ORDINARY, "float32")
LONGEST_RIVAL_S = 120.0
ROOM = 0.7  # of the free memory: a rival that would take more is not run
QUICK_FACTOR = 0.05


@dataclass(frozen=True)
class MemoryRow:
    """Working memory of one variant on one workload, and the seconds of that single pass.

    `is_estimate`: it was not run, the megabytes are `rival_memory_mb`'s and `seconds` is `None`.
    """

    workload: str
    title: str
    clip_s: float
    audio_s: float
    variant: str
    variant_title: str
    working_mb: float
    seconds: float | None
    is_estimate: bool = False


def rival_memory_mb(config: PretrainedConfig, workload: Workload, keeps_states: bool, batch_size: int) -> float:
    """Estimate of what transformers' WavLM takes above its weights.

    The larger of the stem (three copies of the first convolution's output) and attention (five tensors `[B * H, T, T]`:
    position bias, gated bias, mask merged with it, scores, weights), plus all hidden states and the stack of 16.
    """
    batch = min(batch_size, len(workload.clip_seconds))
    num_samples = torch.tensor(round(max(workload.clip_seconds) * SAMPLING_RATE))
    frames = int(count_frames(num_samples, config))
    stem = 3 * batch * config.conv_dim[0] * int(num_samples) / config.conv_stride[0]
    attention = 5 * batch * config.num_attention_heads * frames**2
    states = batch * frames * config.hidden_size * (config.num_hidden_layers + 1 + 16 if keeps_states else 1)
    return 4 * (max(stem, attention) + states) / 1e6


def measure_memory(quick: bool, device: str, threads: int) -> Iterator[MemoryRow]:
    """One child process per variant."""
    for name in QUICK_VARIANTS if quick else MEMORY_VARIANTS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield from pool.submit(_measure_variant, name, quick, device, threads).result()
            except BrokenProcessPool:
                print(f"memory of {name}: its process was killed, most likely for lack of memory; no rows")


def return_freed_memory() -> None:
    """Make glibc give freed pages back, so that one workload's leftovers are not counted to the next, whatever the variant."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _measure_variant(name: str, quick: bool, device_name: str, threads: int) -> list[MemoryRow]:
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    bench = make_bench(quick, device)
    variant = next(variant for variant in all_variants(bench) if variant.name == name)
    if not (variant.is_rival and variant.num_blocks == bench.config.num_hidden_layers):
        bench.full = bench.truncated  # blocks that this variant does not use take no memory
    variant.run(waveforms(Workload("warm", "", (0.5,))), 1)
    return_freed_memory()
    with PeakMemory(device) as loaded:
        pass
    rows = []
    for workload in MEMORY_WORKLOADS:
        workload = workload.scaled(QUICK_FACTOR) if quick else workload
        batch_size = variant.batch_sizes[0] or len(workload.clip_seconds)
        fields = (workload.name, workload.title, max(workload.clip_seconds), workload.audio_s, name, variant.title)
        estimate_mb = rival_memory_mb(bench.config, workload, name == ORDINARY, batch_size)
        too_much = estimate_mb > ROOM * psutil.virtual_memory().available / 1e6 and device.type == "cpu"
        if variant.is_rival and (too_much or max(workload.clip_seconds) > LONGEST_RIVAL_S):
            rows.append(MemoryRow(*fields, estimate_mb, None, is_estimate=True))
            continue
        return_freed_memory()
        try:
            with PeakMemory(device) as memory:
                seconds = timed(partial(variant.run, waveforms(workload), batch_size), device)
        except torch.OutOfMemoryError:
            rows.append(MemoryRow(*fields, estimate_mb, None, is_estimate=True))
            continue
        rows.append(MemoryRow(*fields, memory.peak_mb - loaded.peak_mb, seconds))
    return rows
