"""Where does the time of the packed path go? Products, attention, norms, and what is left to Python.

    python benchmarks/bench_profile.py

Float32, one thread: the shapes of wavcse-tiny, WavLM-Large (six blocks) and Whisper tiny.en with random weights, one clip of
1 s and one of 8 s. Times of operators are those of PyTorch's profiler, each without what it calls; "Python and the rest" is
the processor time of a call without a profiler, less all of them. Run it on a quiet machine: the profiler's clock does not
stop for neighbours. Results go to benchmarks/results/profile-cpu.json, with a Markdown table made from it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, PreTrainedModel

from wavcse.benchmarks.bench_whisper import QUICK, SHAPES, clip_of
from wavcse.benchmarks.measure import machine_facts
from wavcse.benchmarks.report import table, write_results
from wavcse.benchmarks.small import UPSTREAM
from wavcse.configuration_wavcse import WAVLM_LARGE
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.upstream_wavcse import build_upstream

RESULT = Path(__file__).parent / "results" / "profile-cpu.json"
LENGTHS_S = (1.0, 8.0)
REST = "Python and the rest"
# Part -> names of its operators; the first that fits counts.
PARTS = {
    "Fourier transforms": r"fft|stft",
    "convolutions": r"conv",
    "attention": r"scaled_dot|bmm|softmax|attention",
    "products": r"linear|addmm|aten::mm\b|matmul",
    "norms": r"norm|mean|var|std",
    "GELU": r"gelu",
    "moving numbers": r"copy|cat|stack|index|gather|empty|fill|clone|contiguous|pad|narrow|slice|view|reshape|transpose|to\b",
}


def encoders(quick: bool) -> dict[str, PreTrainedModel]:
    """Title -> encoder with random weights."""
    large = {**WAVLM_LARGE, "num_hidden_layers": 6}
    wavlm = {"WavLM-Large, 6 blocks": large} if not quick else {}
    found = {"wavcse-tiny": _of(UPSTREAM), **{title: _of(fields) for title, fields in wavlm.items()}}
    shape = QUICK if quick else SHAPES["whisper-tiny.en"]
    found["whisper-tiny.en"] = _of({"model_type": "whisper", **shape})
    return {title: encoder.eval().requires_grad_(False) for title, encoder in found.items()}


def _of(fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_upstream(AutoConfig.for_model(**fields))


def part_of(operator: str) -> str:
    """The part of the table that an operator of PyTorch belongs to."""
    return next((part for part, names in PARTS.items() if re.search(names, operator)), "other operators")


@torch.no_grad()
def measure(encoder: PreTrainedModel, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time of a call, and of each part of it."""
    packed, layers, clip = PackedUpstream(encoder, "float32"), range(encoder.config.num_hidden_layers + 1), clip_of(seconds)

    def run() -> None:
        packed([clip], layers)

    for _ in range(3):
        run()
    whole_ms = 1000 * statistics.median(_thread_seconds(run) for _ in range(rounds))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(rounds):
            run()
    parts: dict[str, float] = {}
    for event in profiled.key_averages():
        part = part_of(event.key)
        parts[part] = parts.get(part, 0.0) + event.self_cpu_time_total / 1000 / rounds
    parts[REST] = max(0.0, whole_ms - sum(parts.values()))
    return {"seconds": seconds, "ms": whole_ms, "parts_ms": dict(sorted(parts.items(), key=lambda one: -one[1]))}


def _thread_seconds(function: Callable[[], None]) -> float:
    started = time.thread_time()
    function()
    return time.thread_time() - started


def markdown_of(report: dict[str, Any]) -> str:
    """The report as a page: of every call the parts that take 1 % of it and more."""
    machine = report["machine"]
    words = (
        f"One thread, float32, one clip at a time; {machine['processor']}, {machine['instructions']}, torch "
        f"{machine['torch']}. Made by `python benchmarks/bench_profile.py`, whose first lines say what is measured."
    )
    lines = []
    for model in report["models"]:
        for call in model["calls"]:
            whole = sum(call["parts_ms"].values())
            shares = {part: spent / whole for part, spent in call["parts_ms"].items()}
            shown = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.01)
            lines.append([model["name"], f"{call['seconds']:g} s", f"{call['ms']:.1f}", shown])
    return f"# Where the time goes\n\n{words}\n\n{table(['encoder', 'clip', 'ms', 'share of its time'], lines)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="calls of each (default 10)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON to write (default benchmarks/results/profile-cpu.json)")
    parser.add_argument("--quick", action="store_true", help="tiny encoders and clips: for tests")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    scale = 1 / 8 if args.quick else 1.0  # wavcse-tiny has no frame below 45 ms
    models = [
        {"name": name, "calls": [measure(encoder, scale * seconds, args.rounds) for seconds in LENGTHS_S]}
        for name, encoder in encoders(args.quick).items()
    ]
    report = {"machine": machine_facts(torch.device("cpu")), "rounds": args.rounds, "models": models}
    print(write_results(report, args.out, markdown_of))


if __name__ == "__main__":
    main()
