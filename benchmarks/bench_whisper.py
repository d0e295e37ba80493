"""How fast are the pooled layers of a Whisper encoder at the clip's own length and in windows of 30 s, and how exact?

    python benchmarks/bench_whisper.py --models path/to/whisper-tiny.en path/to/whisper-base
    python benchmarks/bench_whisper.py                          # random weights in the shapes of both: the same speed

The rivals are transformers as its documentation has it (`WhisperFeatureExtractor`, which fills every clip up to 30 s,
`WhisperEncoder`, the mean over the frames that hold audio) and CTranslate2, where it is installed (`ctranslate.py`). Speeds
are seconds of audio per second of processor time of this process, one clip at a time, in interleaved rounds. Errors are
against the transformers modules, run at the same length on the clip alone. Results go to benchmarks/results/whisper-cpu.json,
with a Markdown table made from it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.modeling_utils import PreTrainedModel

from wavcse.benchmarks.ctranslate import ENGINE, engine_version, engine_ways
from wavcse.benchmarks.measure import Errors, machine_facts
from wavcse.benchmarks.report import table, write_results
from wavcse.configuration_wavcse import PRECISIONS, count_frames
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.upstream_wavcse import build_upstream, load_upstream, run_upstream

RESULT = Path(__file__).parent / "results" / "whisper-cpu.json"
RATE_HZ = 16_000
SPEED_LENGTHS_S = (1.0, 8.0, 30.0)
ERROR_LENGTHS_S = (0.1, 0.5, 1.0, 3.33, 8.0, 29.99, 30.0, 30.01, 45.0, 70.0)
NUM_SHORT = 5  # of these lengths are enough for the lower precisions, which some processors are slow at
WAYS = [*(("clip", precision) for precision in PRECISIONS), ("window", "float32")]  # lower precisions have the same blocks
RIVAL = "transformers, 30 s"
SHAPES = {  # as published
    "whisper-tiny.en": {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536},
    "whisper-base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
}
QUICK = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "max_source_positions": 50}


def load(model: str | None, shape: dict[str, int]) -> PreTrainedModel:
    """The encoder of a saved Whisper, or one of this shape with random weights."""
    if model is not None:
        return load_upstream(model, WhisperConfig.from_pretrained(model)).eval()
    torch.manual_seed(0)
    return build_upstream(WhisperConfig(**shape)).eval()


def extractor_of(encoder: PreTrainedModel) -> WhisperFeatureExtractor:
    """transformers' feature extractor, which fills a clip up to as many frames as the encoder has positions."""
    seconds = encoder.config.max_source_positions // 50
    return WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins, chunk_length=seconds)


def rival(encoder: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """`[samples]` -> `[K, D]` as transformers runs Whisper; a clip of at most one window."""
    extractor = extractor_of(encoder)

    def run(clip: Tensor) -> Tensor:
        features = extractor(clip.numpy(), sampling_rate=RATE_HZ, return_tensors="pt")["input_features"]
        states = encoder(features, output_hidden_states=True).hidden_states
        return torch.stack([state[0, : count_frames(len(clip), encoder.config)].mean(dim=0) for state in states])

    return run


def variants(encoder: PreTrainedModel, model: str | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to one clip's layers; ours leave the final LayerNorm out, the rivals' last layer has it."""
    layers = range(encoder.config.num_hidden_layers + 1)
    ways = {RIVAL: rival(encoder), **engine_ways(model, extractor_of(encoder))}
    for context, precision in WAYS:
        packed = PackedUpstream(encoder, precision)
        ways[f"{context}, {precision}"] = lambda clip, own=packed, context=context: own([clip], layers, context=context)[0]
    return ways


def clip_of(seconds: float) -> Tensor:
    """Noise whose loudness changes, so that no two stretches are alike."""
    samples = torch.randn(round(seconds * RATE_HZ), generator=torch.Generator().manual_seed(0))
    return 0.1 * samples * (1 + torch.sin(torch.arange(len(samples)) / 3_000))


@torch.no_grad()
def speeds(ways: dict[str, Callable[[Tensor], Tensor]], lengths_s: Sequence[float], rounds: int) -> list[dict[str, Any]]:
    """Of every length and way, the median over the rounds."""
    rows = []
    for seconds in lengths_s:
        clip, spent = clip_of(seconds), {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first one warms up
            for name, run in ways.items():
                started = time.process_time()
                run(clip)
                spent[name] += [time.process_time() - started] if turn else []
        for name, own in spent.items():
            ratio = statistics.median(before / after for before, after in zip(spent[RIVAL], own))
            rate = seconds / statistics.median(own)
            rows.append({"seconds": seconds, "way": name, "audio_s_per_cpu_s": rate, "over_rival": ratio})
            print(f"{seconds:5.1f} s  {name:20} {rate:8.1f} audio-s per CPU second, {ratio:6.2f} x", flush=True)
    return rows


@torch.no_grad()
def errors(encoder: PreTrainedModel, lengths_s: Sequence[float]) -> list[dict[str, Any]]:
    """Of every length, context and precision, against the modules on the clip alone; alone and between two other clips."""
    layers, rows = range(encoder.config.num_hidden_layers + 1), []
    for context, precision in WAYS:
        packed = PackedUpstream(encoder, precision)
        for seconds in lengths_s if precision == "float32" else lengths_s[:NUM_SHORT]:
            clip = clip_of(seconds)
            expected = run_upstream(encoder, [clip], None, layers, context=context).pooled_layers
            alone = packed([clip], layers, context=context)
            between = packed([clip_of(0.7), clip, clip_of(1.3)], layers, context=context)[1:2]
            found, apart = Errors.of(alone, expected), Errors.of(between, alone)
            row = {"seconds": seconds, "context": context, "precision": precision, "relative": found.relative}
            rows.append(row | {"min_cosine": found.min_cosine, "relative_in_a_batch": apart.relative})
    return rows


@torch.no_grad()
def engine_errors(ways: dict[str, Callable[[Tensor], Tensor]], seconds: float) -> list[dict[str, Any]]:
    """How far the engine's last layer is from that of transformers, at the same length: both filled up, or a full window."""
    expected = ways[RIVAL](clip_of(seconds))[-1:]
    found = {name: Errors.of(run(clip_of(seconds))[None], expected[None]) for name, run in ways.items() if ENGINE in name}
    return [{"way": name, "relative": own.relative, "min_cosine": own.min_cosine} for name, own in found.items()]


def engine_words(model: dict[str, Any]) -> str:
    """What the engine's ways in the table are, and how close they come."""
    cosines = ", ".join(f"{row['way'].removeprefix(ENGINE).strip()}: {row['min_cosine']:.5f}" for row in model["engine"])
    return (
        f"{model['engine_version']} gives the last layer only, after the final norm; where its row says `30 s`, every clip is "
        "filled up to that, as programs that use it do. Cosine to transformers' last layer, of a clip that fills the window: "
        f"{cosines}."
    )


def markdown_of(report: dict[str, Any]) -> str:
    """The report as a page."""
    machine, parts = report["machine"], ["# Whisper encoders at their own length"]
    parts.append(
        f"{report['threads']} thread(s), {machine['processor']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}. Made by `python benchmarks/bench_whisper.py`, whose first lines say what is compared."
    )
    for model in report["models"]:
        lengths = list(dict.fromkeys(row["seconds"] for row in model["speeds"]))
        parts.append(f"## {model['name']}{' (random weights)' if model['is_random'] else ''}")
        parts.append("Seconds of audio per second of processor time, one clip at a time:")
        by_way: dict[str, list[str]] = {}
        for row in model["speeds"]:
            by_way.setdefault(row["way"], []).append(f"{row['audio_s_per_cpu_s']:.1f} ({row['over_rival']:.2f} x)")
        columns = ["way", *(f"{seconds:g} s" for seconds in lengths)]
        parts.append(table(columns, [[way, *cells] for way, cells in by_way.items()]))
        if model["engine"]:
            parts.append(engine_words(model))
        parts.append("Largest relative error of a layer, and (below float32) its smallest cosine, against the modules:")
        by_case: dict[str, list[str]] = {}
        for row in model["errors"]:
            cell = f"{row['relative']:.0e}" if row["precision"] == "float32" else f"{row['min_cosine']:.5f}"
            by_case.setdefault(f"{row['context']}, {row['precision']}", []).append(cell)
        exact = [row["relative_in_a_batch"] for row in model["errors"] if row["precision"] == "float32"]
        lengths = list(dict.fromkeys(row["seconds"] for row in model["errors"]))
        rows = [[case, *cells, *["-"] * (len(lengths) - len(cells))] for case, cells in by_case.items()]
        parts.append(table(["way", *(f"{seconds:g} s" for seconds in lengths)], rows))
        parts.append(f"Alone and between two other clips, float32: {max(exact):.0e} at most.")
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="folders or Hub ids (default: random weights)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON to write (default benchmarks/results/whisper-cpu.json)")
    parser.add_argument("--quick", action="store_true", help="a tiny encoder with windows of one second: for tests")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sources = {Path(model).name: (model, {}) for model in args.models} or {name: (None, own) for name, own in SHAPES.items()}
    sources = {"quick": (None, QUICK)} if args.quick else sources
    scale = 1 / 30 if args.quick else 1.0
    report = {"machine": machine_facts(torch.device("cpu")), "threads": args.threads, "models": []}
    for name, (model, shape) in sources.items():
        print(name)
        encoder = load(model, shape)
        ways = variants(encoder, model)
        measured = {
            "speeds": speeds(ways, [scale * seconds for seconds in SPEED_LENGTHS_S], args.rounds),
            "engine": engine_errors(ways, scale * SPEED_LENGTHS_S[-1]),
            "engine_version": engine_version() if any(ENGINE in name for name in ways) else None,
            "errors": errors(encoder, [max(0.025, scale * seconds) for seconds in ERROR_LENGTHS_S]),
        }
        report["models"].append({"name": name, "is_random": model is None, **measured})
        page = write_results(report, args.out, markdown_of)
    print(page)


if __name__ == "__main__":
    main()
