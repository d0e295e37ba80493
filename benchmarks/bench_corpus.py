"""How well does the pass over a corpus use the machine? The cache builder on synthetic files, from start to end.

    python benchmarks/bench_corpus.py [--clips 40 80 160] [--processes 2] [--upstream FOLDER]

Measured are the throughput for three sizes of corpus (it should not depend on the size), the share of the time in which the
upstream waited for audio, and what several processes of one thread each gain over one. The upstream is small, with random
weights: it asks for audio much more often as WavLM-Large, so waiting shows. Results go to
benchmarks/results/DATE-corpus-cpu.json and a Markdown table of the same name.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from wavcse.benchmarks.measure import GEMM_ROWS, QUICK_GEMM_ROWS, PairedRatio, gemm_rate, machine_facts
from wavcse.benchmarks.report import table
from wavcse.data.files import json_text

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SAMPLING_RATE = 16_000
SPEED = re.compile(r"([\d.]+) audio-s/s")
WAITING = re.compile(r"([\d.]+) ?% of the time waiting for audio")


@dataclass(frozen=True)
class CorpusRow:
    """One pass over a corpus, as the command printed it."""

    clips: int
    audio_s: float
    processes: int
    audio_s_per_s: float
    waiting_percent: float


def write_corpus(folder: Path, num_clips: int, longest_s: float, seed: int = 0) -> tuple[Path, float]:
    """FLAC files, noise with a syllable-like envelope, of 1 s to `longest_s`; returns manifest and audio seconds."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    seconds = generator.permutation(np.linspace(1.0, longest_s, num_clips))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name"])
        for i, length_s in enumerate(seconds):
            time_s = np.arange(round(length_s * SAMPLING_RATE)) / SAMPLING_RATE
            waveform = generator.normal(size=time_s.size) * np.abs(np.sin(2 * np.pi * 3 * time_s)) * 0.1
            soundfile.write(folder / f"{i:05d}.flac", waveform, SAMPLING_RATE)
            writer.writerow([f"{i:05d}.flac"])
    return folder / "metadata.csv", float(seconds.sum())


def run_pass(manifest: Path, upstream: Path, processes: int) -> tuple[float, float]:
    """Build a fresh cache with one thread per process: audio seconds per second, and per cent of the time spent waiting."""
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    with tempfile.TemporaryDirectory() as out:
        command = [*launch, "wavcse.data.cache", "--manifest", manifest, "--upstream", upstream, "--out", out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    speed, waiting = SPEED.search(done.stdout), WAITING.search(done.stdout)
    if done.returncode or not speed or not waiting:
        raise RuntimeError(f"the cache builder failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return float(speed[1]), float(waiting[1])


def make_upstream(folder: Path, quick: bool) -> Path:
    """A random upstream of the large model's shape, as examples/random_upstream.py writes it."""
    size = ["--width", "64", "--num_blocks", "2", "--stem_width", "16"] if quick else ["--width", "384", "--num_blocks", "12"]
    command = [sys.executable, str(ROOT / "examples" / "random_upstream.py"), "--out", str(folder), *size]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def measure(args: argparse.Namespace, folder: Path) -> list[CorpusRow]:
    """Passes over growing corpora, then one and several processes in turn on the largest."""
    upstream = args.upstream or make_upstream(folder / "upstream", args.quick)
    rows = []
    for clips in args.clips:
        manifest, audio_s = write_corpus(folder / f"corpus_{clips}", clips, args.longest_s)
        rows.append(CorpusRow(clips, audio_s, 1, *run_pass(manifest, upstream, 1)))
        print(rows[-1], flush=True)
    for _ in range(args.rounds):
        for processes in (1, args.processes):
            rows.append(CorpusRow(clips, audio_s, processes, *run_pass(manifest, upstream, processes)))
            print(rows[-1], flush=True)
    return rows


def summary(rows: Sequence[CorpusRow], num_sizes: int, processes: int) -> dict[str, Any]:
    """The three figures of the benchmark."""
    by_size = [row.audio_s_per_s for row in rows[:num_sizes]]
    one, several = ([row.audio_s_per_s for row in rows[num_sizes:] if row.processes == n] for n in (1, processes))
    return {
        "smallest_over_largest_throughput": min(by_size) / max(by_size),
        "waiting_percent_one_process": statistics.median(row.waiting_percent for row in rows if row.processes == 1),
        "processes": processes,
        "gain": asdict(PairedRatio.of([1 / speed for speed in one], [1 / speed for speed in several])),
    }


def markdown_of(report: dict[str, Any]) -> str:
    """Table of all passes, and the summary."""
    cells = [
        (row["clips"], f"{row['audio_s']:.0f}", row["processes"], f"{row['audio_s_per_s']:.1f}", row["waiting_percent"])
        for row in report["rows"]
    ]
    facts, gain = report["summary"], report["summary"]["gain"]
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    spread = "" if gain["spread"] is None else f" (spread {gain['spread']:.0%})"
    parts = [
        f"# Corpus benchmark, {report['date']}, cpu",
        f"Machine: {machine}. Upstream: {report['upstream']}. One thread per process.",
        table(["clips", "seconds of audio", "processes", "audio-s/s", "% of the time waiting for audio"], cells),
        f"- Throughput of the slowest of {len(report['settings']['clips'])} corpus sizes over the fastest: "
        f"{facts['smallest_over_largest_throughput']:.2f}",
        f"- Waiting for audio, one process, median: {facts['waiting_percent_one_process']:.1f} %",
        f"- {facts['processes']} processes over one, paired: {gain['ratio']:.2f}x{spread}",
    ]
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:]) + "\n"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[40, 80, 160], help="sizes of the corpora")
    parser.add_argument("--longest_s", type=float, default=15.0, help="clips are 1 s to this long")
    parser.add_argument("--processes", type=int, default=2, help="compared with one (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of that comparison (default 5)")
    parser.add_argument("--upstream", type=Path, help="folder of an upstream (default: a small random one)")
    parser.add_argument("--out", type=Path, help="JSON to write (default benchmarks/results/DATE-corpus-cpu.json)")
    parser.add_argument("--quick", action="store_true", help="tiny model, few short clips, one round: for tests")
    args = parser.parse_args(argv)
    if args.quick:
        args.clips, args.longest_s, args.rounds = [4, 8], 2.0, 1
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    report = {
        "date": date.today().isoformat(),
        "machine": machine_facts(device),
        "gflop_per_s": gemm_rate(device, rows=QUICK_GEMM_ROWS if args.quick else GEMM_ROWS) / 1e9,
        "upstream": args.upstream.name if args.upstream else "untrained, 12 blocks of width 384",
        "settings": {"clips": args.clips, "longest_s": args.longest_s, "rounds": args.rounds},
        "rows": list(map(asdict, rows)),
        "summary": summary(rows, len(args.clips), args.processes),
    }
    path = args.out or RESULTS / f"{date.today().isoformat()}-corpus-cpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown_of(report), encoding="utf-8")
    print(markdown_of(report))


if __name__ == "__main__":
    main()
