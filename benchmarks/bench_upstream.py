"""How fast are the pooled layers of WavLM-Large, in what memory, how exact? Ours and transformers' side by side.

    python benchmarks/bench_upstream.py --threads 1 --engines --small
    python benchmarks/bench_upstream.py --threads 1 --allocator warm --workloads mixed
    python benchmarks/bench_upstream.py --threads 2 --memory
    python benchmarks/bench_upstream.py --plot benchmarks/results/2026-01-31-cpu.json

First the machine's product rate, then every workload in interleaved rounds, each variant's error before its speed. Results are
written after every workload to benchmarks/results/DATE-CLASS.json (CLASS is cpu-avx2, cpu-avx512, ... or cuda), next to a
Markdown table and pictures made from it; runs with other settings on the same day add to the same file. Which floors each
class of processors reaches is in benchmarks/results/floors.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavcse.benchmarks.engines import engine_variants
from wavcse.benchmarks.floors import PAGE, floors_table, page
from wavcse.benchmarks.measure import (
    GEMM_ROWS,
    QUICK_GEMM_ROWS,
    SPREAD_LIMIT,
    WARM_ALLOCATOR,
    Errors,
    PairedRatio,
    device_class,
    gemm_rates,
    interleaved,
    machine_facts,
    timed,
)
from wavcse.benchmarks.memory import QUICK_FACTOR, measure_memory
from wavcse.benchmarks.report import markdown_of, plot, run_table, write_results
from wavcse.benchmarks.rivals import ORDINARY, Contender, UpstreamBench, all_variants, make_bench
from wavcse.benchmarks.small import measure_small
from wavcse.benchmarks.workloads import WORKLOADS, Workload, total_flop, waveforms

RESULTS = Path(__file__).parent / "results"
WARM_UP_SAMPLES = 8_000
SLOWEST_SHARE = 0.5  # of float32's product rate: a precision below it would take most of the run to show that it is no use


def limit_audio_s_per_s(bench: UpstreamBench, variant: Contender, clips: Sequence[Tensor], rates: dict[str, float]) -> float:
    """Audio seconds per second if the variant's products ran at the measured rates and everything else took no time."""
    flop = total_flop(bench.config, clips, variant.num_blocks, packed=not variant.is_rival)
    seconds = sum(flop[part] / rates[variant.precision_of[part]] for part in flop)
    return sum(len(clip) for clip in clips) / 16_000 / seconds


def fastest_batch_size(variant: Contender, clips: Sequence[Tensor], device: torch.device) -> int | None:
    """The best of the variant's batch sizes on these clips; one that does not fit the memory does not count."""
    sizes = [size for size in variant.batch_sizes if size is None or size <= len(clips)] or [len(clips)]
    if len(sizes) == 1:
        return sizes[0]
    seconds = {}
    for size in sizes:
        try:
            seconds[size] = timed(lambda size=size: variant.run(clips, size), device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return min(seconds, key=seconds.get)


def measure_workload(bench: UpstreamBench, variants: Sequence[Contender], workload: Workload, rounds: int) -> dict[str, Any]:
    """All variants on one workload in interleaved rounds, their outputs compared with the ordinary recipe's.

    The product rate is measured again in every round: on a shared machine it changes, and the share of the limit must not.
    """
    clips = waveforms(workload)
    if len(clips) == 1:  # nothing to sort: it would be the ordinary recipe again
        variants = [variant for variant in variants if variant.name != "sorted"]
    for variant in variants:  # derived weights and first-time costs of the libraries are not part of the speed
        variant.run([clips[0][:WARM_UP_SAMPLES]], 1)
    sizes = {variant.name: fastest_batch_size(variant, clips, bench.device) for variant in variants}
    if bench.device.type == "cuda":  # kernels are compiled for the sizes of packs
        for variant in variants:
            variant.run(clips, sizes[variant.name])
    outputs: dict[str, Tensor] = {}

    def runner(variant: Contender):
        def run() -> None:
            outputs[variant.name] = variant.run(clips, sizes[variant.name])

        return run

    rates: list[dict[str, float]] = []
    runners = {variant.name: runner(variant) for variant in variants}
    seconds = interleaved(runners, rounds, bench.device, lambda: rates.append(gemm_rates(bench.device, bench.gemm_rows)))
    rows = []
    for variant in variants:
        errors = Errors.of(outputs[variant.name], outputs[ORDINARY])
        row = {"name": variant.name, "title": variant.title, "is_rival": variant.is_rival, "batch_size": sizes[variant.name]}
        row |= {"engine": variant.engine, "precision": variant.precision_of["linear"]}
        row |= asdict(errors) | {"min_cosine": errors.min_cosine, "within_tolerance": variant.accepts(errors)}
        if row["within_tolerance"]:  # the speed of a wrong result says nothing
            row["seconds"] = own = seconds[variant.name]
            row["audio_s_per_s"] = workload.audio_s / statistics.median(own)
            limits = [limit_audio_s_per_s(bench, variant, clips, round_rates) for round_rates in rates]
            row["share_of_limit"] = statistics.median(workload.audio_s / s / limit for s, limit in zip(own, limits))
        rows.append(row)
    add_ratios(rows)
    facts = {"name": workload.name, "title": workload.title, "clip_seconds": workload.clip_seconds}
    facts["gflop_per_s"] = {name: statistics.median(rate[name] for rate in rates) / 1e9 for name in rates[0]}
    return facts | {"audio_s": workload.audio_s, "padded_s": workload.padded_s, "rounds": rounds, "variants": rows}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Paired ratios to every row that has a speed.

    Over the ordinary recipe, over the fastest use of transformers, over our float32, and of ours over another engine at the
    same precision.
    """
    timed_rivals = [row for row in rows if row["is_rival"] and not row["engine"] and "seconds" in row]
    exact = next((row for row in rows if row["name"] == "float32" and "seconds" in row), None)
    engines = {row["precision"]: row for row in rows if row["engine"] and "seconds" in row}
    best = min(timed_rivals, key=lambda row: statistics.median(row["seconds"]))
    ordinary = next(row for row in timed_rivals if row["name"] == ORDINARY)
    for row in rows:
        if "seconds" in row:
            row["over_ordinary"] = asdict(PairedRatio.of(ordinary["seconds"], row["seconds"]))
            row["over_best_rival"] = asdict(PairedRatio.of(best["seconds"], row["seconds"]))
            row["is_best_rival"] = row is best
            if exact is not None:
                row["over_float32"] = asdict(PairedRatio.of(exact["seconds"], row["seconds"]))
            if not row["is_rival"] and row["precision"] in engines:
                row["over_engine"] = asdict(PairedRatio.of(engines[row["precision"]]["seconds"], row["seconds"]))


def load_report(path: Path, device: torch.device) -> dict[str, Any]:
    """The report at `path`, or a new one."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"date": date.today().isoformat(), "device": device.type, "machine": machine_facts(device), "runs": []}


def run_of(report: dict[str, Any], args: argparse.Namespace, rates: dict[str, float]) -> dict[str, Any]:
    """The report's run with these threads and this allocator, made if need be, with the present product rates."""
    key = {"threads": args.threads, "allocator": args.allocator}
    run = next((run for run in report["runs"] if key.items() <= run.items()), None)
    if run is None:
        run = key | {"workloads": [], "memory": []}
        report["runs"].append(run)
    run["gflop_per_s"] = {precision: rate / 1e9 for precision, rate in rates.items()}
    return run


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the products on the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--all_rounds", action="store_true", help="as many rounds on the long workloads, too")
    parser.add_argument("--workloads", nargs="*", choices=[w.name for w in WORKLOADS], default=[w.name for w in WORKLOADS])
    parser.add_argument("--repeat", type=int, default=1, help="every clip this many times, to fill a GPU")
    parser.add_argument("--allocator", choices=["default", "warm"], default="default", help="warm: glibc keeps freed memory")
    parser.add_argument("--engines", action="store_true", help="ONNX Runtime beside, where it is installed")
    parser.add_argument("--small", action="store_true", help="measure small models on short clips, too")
    parser.add_argument("--memory", action="store_true", help="measure working memory too, in child processes")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 products on the GPU; float32 is then not exact")
    parser.add_argument("--out", type=Path, help="JSON to write or add to (default benchmarks/results/DATE-CLASS.json)")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="only make the table and the pictures of this file again")
    parser.add_argument("--quick", action="store_true", help="tiny model and clips, two rounds: for tests")
    return parser.parse_args(argv)


def restart_with_warm_allocator() -> None:
    """Replace this process by one with the allocator's settings, which glibc reads at the start only."""
    if not WARM_ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **WARM_ALLOCATOR})


def measure(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """All workloads, then memory if asked for; saved after each."""
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    rates = gemm_rates(device, QUICK_GEMM_ROWS if args.quick else GEMM_ROWS)
    report = load_report(path, device)
    run = run_of(report, args, rates)
    print(", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()), f"GFLOP/s, {args.threads} thread(s)")
    if args.workloads:
        bench = make_bench(args.quick, device)
        variants = [*all_variants(bench), *(engine_variants(bench) if args.engines else [])]
        run["left_out"] = [name for name, rate in rates.items() if rate < SLOWEST_SHARE * rates["float32"]]
        there = rates.keys() - run["left_out"]
        variants = [variant for variant in variants if set(variant.precision_of.values()) <= there]
    for workload in (workload for workload in WORKLOADS if workload.name in args.workloads):
        workload = workload.scaled(QUICK_FACTOR) if args.quick else workload.repeated(args.repeat)
        rounds = args.rounds if args.all_rounds else min(args.rounds, workload.rounds or args.rounds)
        row = measure_workload(bench, variants, workload, rounds)
        run["workloads"] = [old for old in run["workloads"] if old["name"] != row["name"]] + [row]
        write_results(report, path, markdown_of)
        print(run_table([row]), flush=True)
    if args.small:
        run["small"] = measure_small()
        write_results(report, path, markdown_of)
    if args.memory:
        run["memory"] = []
        for row in measure_memory(args.quick, args.device, args.threads):
            run["memory"].append(asdict(row))
            write_results(report, path, markdown_of)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parse_arguments(argv)
    if args.quick:
        args.rounds = min(args.rounds, 2)
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")  # of transformers' padded batches
    if args.allocator == "warm" and args.device == "cpu" and not args.plot:
        restart_with_warm_allocator()
    path = args.plot or args.out or RESULTS / f"{date.today().isoformat()}-{device_class(args.device)}.json"
    report = json.loads(path.read_text(encoding="utf-8")) if args.plot else measure(args, path)
    write_results(report, path, markdown_of)
    pictures = plot(report, path.with_suffix(""))
    print(markdown_of(report))
    for run in report["runs"]:
        if (run["threads"], run["allocator"]) == (1, "default"):
            print(floors_table(run))
    if path.parent == RESULTS:
        (RESULTS / PAGE).write_text(page(), encoding="utf-8")
    print(f"{path}, {path.with_suffix('.md')}", *pictures, sep=", ")
    print(f"* the ratio varied by more than {SPREAD_LIMIT:.0%} between rounds")


if __name__ == "__main__":
    main()
