"""How well does the pass over a corpus use the machine? Commands on synthetic files, from start to end.

    python benchmarks/bench_corpus.py [--encoders . FOLDER ...] [--workers 2] [--rounds 5]

Two questions. Does throughput depend on the size of the corpus, and does the computation wait for audio? Three sizes, one
worker; the upstream is small, with random weights, so that waiting shows. And what do workers gain on short clips and small
models, on a quiet machine and beside busy programs? Of every encoder, a wavCSE model (`wavcse embed`) or an upstream
(`wavcse cache`), the rate with one worker, with several, and with several beside as many processes that only spin, in turn.
What the machine itself gives is said beside: what as many processes gain that only multiply, since cores may share what
they compute with.
Results go to benchmarks/results/DATE-corpus-cpu.json and a Markdown table of the same name.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch

from wavcse.benchmarks.measure import GEMM_ROWS, QUICK_GEMM_ROWS, PairedRatio, gemm_rate, machine_facts
from wavcse.benchmarks.report import table, write_results
from wavcse.hub.source import name_of_root

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SAMPLING_RATE = 16_000
SHORT_S = (0.5, 1.0)  # clips of the second question, as single spoken words
SPEED = re.compile(r"([\d.]+) audio-s/s")
WAITING = re.compile(r"([\d.]+) ?% of the time waiting for audio")
MIN_GAIN = 0.9  # of the number of workers
MIN_BUSY_SHARE = 0.6  # of the rate of one worker on the quiet machine
WATCH_INTERVAL_S = 0.2
MULTIPLY_S = 3.0
# Products per second from a moment on, alike in processes that are started one after another.
MULTIPLY = """
import sys, time, torch
torch.set_num_threads(1)
a, b, start, seconds = torch.randn(512, 512), torch.randn(512, 512), float(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
count = 0
while time.time() < start + seconds:
    torch.mm(a, b)
    count += 1
print(count / (time.time() - start))
"""
STARTED_S = 8.0  # until when PyTorch is imported everywhere


@dataclass(frozen=True)
class CorpusRow:
    """One pass over a corpus, as the command printed it; `busy` processes were spinning meanwhile.

    `worker_mb`: the most memory that a worker had for itself, where it was looked at.
    """

    encoder: str
    clips: int
    audio_s: float
    workers: int
    busy: int
    audio_s_per_s: float
    waiting_percent: float
    worker_mb: float | None = None


def write_corpus(folder: Path, num_clips: int, shortest_s: float, longest_s: float, seed: int = 0) -> tuple[Path, float]:
    """FLAC files of noise with a syllable-like envelope, lengths spread evenly; returns manifest and audio seconds."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    seconds = generator.permutation(np.linspace(shortest_s, longest_s, num_clips))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name"])
        for i, length_s in enumerate(seconds):
            time_s = np.arange(round(length_s * SAMPLING_RATE)) / SAMPLING_RATE
            waveform = generator.normal(size=time_s.size) * np.abs(np.sin(2 * np.pi * 3 * time_s)) * 0.1
            soundfile.write(folder / f"{i:05d}.flac", waveform, SAMPLING_RATE)
            writer.writerow([f"{i:05d}.flac"])
    return folder / "metadata.csv", float(seconds.sum())


def run_pass(manifest: Path, encoder: Path, workers: int, watch: bool = False) -> tuple[float, float, float | None]:
    """Embed or cache a corpus from the start: audio seconds per second, per cent of the time spent waiting, MB of a worker.

    Nothing is said of threads: what a user gets without an environment variable.
    """
    is_model = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["model_type"] == "wavcse"
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+") as said:
        if is_model:
            command = ["wavcse.embed", manifest, "--model", encoder, "--out", f"{out}/table.parquet", "--device", "cpu"]
        else:
            command = ["wavcse.data.cache", "--manifest", manifest, "--upstream", encoder, "--out", out]
        command = [sys.executable, "-m", *command, "--workers", workers]
        started = subprocess.Popen(list(map(str, command)), env=environment, stdout=said, stderr=subprocess.STDOUT)
        memory = largest_worker_mb(started.pid) if watch else None
        code = started.wait()
        said.seek(0)
        text = said.read()
    lines = [line for line in text.splitlines() if line.endswith("waiting for audio")]  # and not the progress bar
    speed, waiting = (pattern.search(lines[-1] if lines else "") for pattern in (SPEED, WAITING))
    if code or not speed or not waiting:
        raise RuntimeError(f"the command failed with {code}:\n{text}")
    return float(speed[1]), float(waiting[1]), memory


def largest_worker_mb(pid: int) -> float | None:
    """The most memory that one of a command's workers has for itself, looked at until the command ends."""
    largest = 0.0
    command = psutil.Process(pid)
    while command.is_running() and command.status() != psutil.STATUS_ZOMBIE:
        try:
            largest = max([largest, *(child.memory_full_info().uss / 1e6 for child in command.children())])
        except psutil.Error:
            pass  # a worker that has just ended
        try:
            command.wait(WATCH_INTERVAL_S)
        except psutil.TimeoutExpired:
            continue
    return largest or None


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Processes that spin while the context lasts."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def multiplying(count: int, seconds: float) -> float:
    """Products per second of so many processes together."""
    command = [sys.executable, "-c", MULTIPLY, str(time.time() + STARTED_S), str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return sum(float(process.communicate()[0]) for process in processes)


def gain_of_products(workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """What several processes that only multiply gain over one, in turn."""
    rates = [(multiplying(1, seconds), multiplying(workers, seconds)) for _ in range(rounds)]
    return asdict(PairedRatio.of(*([1 / rate for rate in own] for own in zip(*rates))))


def make_upstream(folder: Path, quick: bool) -> Path:
    """A random upstream of the large model's shape, as examples/random_upstream.py writes it."""
    size = ["--width", "64", "--num_blocks", "2", "--stem_width", "16"] if quick else ["--width", "384", "--num_blocks", "12"]
    command = [sys.executable, str(ROOT / "examples" / "random_upstream.py"), "--out", str(folder), *size]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def measure_sizes(args: argparse.Namespace, folder: Path) -> list[CorpusRow]:
    """Passes of one worker over growing corpora."""
    upstream, rows = make_upstream(folder / "upstream", args.quick), []
    for clips in args.clips:
        manifest, audio_s = write_corpus(folder / f"corpus_{clips}", clips, 1.0, args.longest_s)
        rows.append(CorpusRow("random", clips, audio_s, 1, 0, *run_pass(manifest, upstream, 1)))
        print(rows[-1], flush=True)
    return rows


def measure_workers(args: argparse.Namespace, encoder: Path, folder: Path) -> list[CorpusRow]:
    """Passes over short clips: one with several workers, which says how many clips a pass takes, then all cases in turn."""
    name, num_clips = name_of_root(encoder) or encoder.resolve().name, args.short_clips
    manifest, audio_s = write_corpus(folder / f"short_{name}", num_clips, *SHORT_S)
    first = CorpusRow(name, num_clips, audio_s, args.workers, 0, *run_pass(manifest, encoder, args.workers, watch=True))
    print(first, flush=True)
    if args.pass_s:
        num_clips = max(num_clips, round(args.pass_s * first.audio_s_per_s / args.workers / np.mean(SHORT_S)))
        manifest, audio_s = write_corpus(folder / f"long_{name}", num_clips, *SHORT_S)
    rows = [first]
    for _ in range(args.rounds):
        for workers, busy in ((1, 0), (args.workers, 0), (args.workers, args.workers)):
            with busy_neighbours(busy):
                rows.append(CorpusRow(name, num_clips, audio_s, workers, busy, *run_pass(manifest, encoder, workers)))
            print(rows[-1], flush=True)
    return rows


def summary_of_workers(rows: Sequence[CorpusRow]) -> dict[str, Any]:
    """The three rates of an encoder, what workers gain, and what a busy machine leaves."""
    first, *rows = rows
    one, several, busy = ([row.audio_s_per_s for row in rows[start::3]] for start in range(3))
    seconds = {name: [1 / rate for rate in rates] for name, rates in (("one", one), ("several", several), ("busy", busy))}
    return {
        "encoder": first.encoder,
        "workers": first.workers,
        "worker_mb": first.worker_mb,
        "one_worker": statistics.median(one),
        "several_workers": statistics.median(several),
        "beside_busy_processes": statistics.median(busy),
        "gain": asdict(PairedRatio.of(seconds["one"], seconds["several"])),
        "busy_share": asdict(PairedRatio.of(seconds["one"], seconds["busy"])),
    }


def markdown_of(report: dict[str, Any]) -> str:
    """The three rates of every encoder, the floors, and a table of all passes."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    sizes = [row["audio_s_per_s"] for row in report["sizes"]]
    waiting = statistics.median(row["waiting_percent"] for row in report["sizes"])
    rates = [_line_of(one) for one in report["workers"]]
    names = ["encoder", "", "one worker", "workers", "beside busy", "gain", "busy share", "MB per worker"]
    passes = [
        (
            row["encoder"],
            row["clips"],
            f"{row['audio_s']:.0f}",
            row["workers"],
            row["busy"],
            f"{row['audio_s_per_s']:.1f}",
            row["waiting_percent"],
        )
        for row in report["rows"]
    ]
    columns = ["encoder", "clips", "seconds of audio", "workers", "busy processes", "audio-s/s", "% waiting for audio"]
    parts = [
        f"# Corpus benchmark, {report['date']}, cpu",
        f"Machine: {machine}. Workers have one thread each.",
        f"Clips of {SHORT_S[0]} to {SHORT_S[1]} s, audio-s/s, median of {report['settings']['rounds']} rounds. Floors: a gain "
        f"of {MIN_GAIN} times the number of workers; {MIN_BUSY_SHARE:.0%} of one worker's rate beside as many busy processes.",
        table(names, rates),
        f"{report['settings']['workers']} processes that only multiply gain {report['product_gain']['ratio']:.2f}x here: more "
        "than that no program can.",
        f"Sizes of corpus, 1-{report['settings']['longest_s']:.0f} s, one worker: throughput of the slowest over the fastest "
        f"{min(sizes) / max(sizes):.2f}, waiting for audio {waiting:.1f} % of the time.",
        table(columns, passes),
    ]
    return "\n\n".join(parts) + "\n"


def _line_of(one: dict[str, Any]) -> list[str]:
    gain, share, memory = one["gain"]["ratio"], one["busy_share"]["ratio"], one["worker_mb"]
    rates = [f"{one[name]:.1f}" for name in ("one_worker", "several_workers", "beside_busy_processes")]
    return [
        one["encoder"],
        f"{one['workers']} workers",
        *rates,
        f"{gain:.2f}x{'' if gain >= MIN_GAIN * one['workers'] else ' BELOW'}",
        f"{share:.0%}{'' if share >= MIN_BUSY_SHARE else ' BELOW'}",
        "-" if memory is None else f"{memory:.0f}",
    ]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[40, 80, 160], help="sizes of the corpora")
    parser.add_argument("--longest_s", type=float, default=15.0, help="clips of these are 1 s to this long")
    parser.add_argument("--encoders", type=Path, nargs="+", default=[ROOT], help="folders of models or upstreams (default: .)")
    parser.add_argument("--short_clips", type=int, default=400, help="short clips of the first pass of an encoder")
    parser.add_argument("--pass_s", type=float, default=15.0, help="seconds that a pass of one worker shall take (default 15)")
    parser.add_argument("--workers", type=int, default=2, help="compared with one (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of that comparison (default 5)")
    parser.add_argument("--out", type=Path, help="JSON to write (default benchmarks/results/DATE-corpus-cpu.json)")
    parser.add_argument("--quick", action="store_true", help="few short clips, one round: for tests")
    args = parser.parse_args(argv)
    if args.quick:
        args.clips, args.longest_s, args.rounds, args.short_clips, args.pass_s = [4, 8], 2.0, 1, 160, 0.0
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        sizes = measure_sizes(args, Path(folder))
        gain = gain_of_products(args.workers, args.rounds, MULTIPLY_S / 10 if args.quick else MULTIPLY_S)
        by_encoder = [measure_workers(args, encoder, Path(folder)) for encoder in args.encoders]
    report = {
        "date": date.today().isoformat(),
        "machine": machine_facts(device),
        "gflop_per_s": gemm_rate(device, rows=QUICK_GEMM_ROWS if args.quick else GEMM_ROWS) / 1e9,
        "settings": {name: getattr(args, name) for name in ("clips", "longest_s", "rounds", "pass_s", "workers")},
        "product_gain": gain,
        "sizes": list(map(asdict, sizes)),
        "workers": [summary_of_workers(rows) for rows in by_encoder],
        "rows": [asdict(row) for rows in (sizes, *by_encoder) for row in rows],
    }
    path = args.out or RESULTS / f"{date.today().isoformat()}-corpus-cpu.json"
    print(write_results(report, path, markdown_of))


if __name__ == "__main__":
    main()
