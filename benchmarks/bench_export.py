"""How exact are exported files beside the model, and how fast is ONNX Runtime beside this package?

    python benchmarks/bench_export.py
    python benchmarks/bench_export.py --model path/to/folder --clips a.wav b.wav

The model (the root's, if none is named) is written as `wavcse export` writes it: ONNX in float32 and with dynamic int8, run by
ONNX Runtime, and a `torch.export` program, all on one thread. Errors and cosines are those of recordings, in one padded batch
and alone. Speeds are of noise, in rounds that call the file and this package's own path at the same precision in turn; tables
have the medians of processor time, which other programs disturb less than seconds. Results go to
benchmarks/results/export-cpu.json, with a Markdown table made from it. The extra `onnx` is needed; without it
`--files "torch-export float32"` measures the program alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wavcse.benchmarks.measure import SPREAD_LIMIT, PairedRatio, machine_facts
from wavcse.benchmarks.report import table, write_results
from wavcse.doors.export import EXTRA, Run, check_waveforms, compared, load_run, padded, write_onnx, write_torch_export
from wavcse.eval.encoder import SavedModel
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.settings.libraries import optional_library

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "export-cpu.json"
CORPORA = ("speech_commands_9", "librispeech_mini", "ravdess_speech")
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
WORKLOADS = {"1 clip of 1 s": (1, 1.0), "1 clip of 8 s": (1, 8.0), "8 clips of 1 s": (8, 1.0), "8 clips of 8 s": (8, 8.0)}
FILES: dict[str, tuple[str, str, Callable[[WavCSEModel, Path], None]]] = {  # title -> file, our precision, how it is written
    "ONNX float32": ("model.onnx", "float32", write_onnx),
    "ONNX int8": ("model_qint8.onnx", "int8", partial(write_onnx, precision="int8")),
    "torch-export float32": ("model.pt2", "float32", write_torch_export),
}
CPU = torch.device("cpu")


def recordings(data: Path, count: int) -> list[str]:
    """So many recordings of each corpus that is there, spread evenly over its files."""
    chosen = []
    for corpus in CORPORA:
        files = sorted(path for path in (data / corpus).rglob("*") if path.suffix in AUDIO)
        chosen += files[:: max(1, len(files) // count)][:count]
    return [str(path) for path in chosen]


@torch.inference_mode()
def speeds(model: WavCSEModel, run: Run, precision: str, rounds: int) -> list[dict[str, Any]]:
    """Of every workload, how fast file and model are, and how many times faster the model is."""
    generator, found = torch.Generator().manual_seed(0), []
    own = partial(model, precision=precision, return_dict=True)
    for title, (clips, seconds) in WORKLOADS.items():
        waveforms = list(torch.randn(clips, round(seconds * model.config.sampling_rate), generator=generator))
        ways = {"file": partial(run, *padded(waveforms)), "model": partial(own, waveforms)}
        times = _interleaved(ways, rounds)
        rates = {f"{way}_audio_s_per_cpu_s": clips * seconds / statistics.median(spent) for way, spent in times.items()}
        ratio = PairedRatio.of(times["file"], times["model"])
        found.append({"workload": title, **rates, "model_over_file": asdict(ratio)})
        print(
            f"{title}: file {rates['file_audio_s_per_cpu_s']:.0f}, model {rates['model_audio_s_per_cpu_s']:.0f} audio-s/s",
            flush=True,
        )
    return found


def _interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of every way in every round; a round before the first compiles, measures and allocates."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            started = time.process_time()
            run()
            seconds[way] += [time.process_time() - started] if turn else []
    return seconds


def measure(where: SavedModel, clips: Sequence[str], titles: Sequence[str], rounds: int) -> dict[str, Any]:
    """The files of a model: sizes, errors and speeds."""
    model = WavCSEModel.from_pretrained(where.path, revision=where.revision).eval()
    waveforms, files = check_waveforms(model, clips), {}
    for title in titles:
        name, precision, write = FILES[title]
        print(title, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            write(model, path)
            run = load_run(path)
            megabytes = sum(part.stat().st_size for part in Path(folder).iterdir()) / 1e6
            errors = compared(model, run, waveforms)
            files[title] = {"megabytes": megabytes, **errors, "speeds": speeds(model, run, precision, rounds)}
    kind = "recordings" if clips else "clips of noise"
    return {"weights_sha256": where.weights_sha256(), "clips": len(waveforms), "kind": kind, "files": files}


def markdown_of(report: dict[str, Any]) -> str:
    """The tables that are made from the JSON."""
    machine, errors, rates = report["machine"], [], []
    for title, found in report["files"].items():
        figures = (f"{found['error']:.1e}", f"{found['batch_error']:.1e}", f"{found['cosine']:.6f}")
        errors.append([title, f"{found['megabytes']:.1f}", *figures])
        rates += [_rate_cells(title, speed) for speed in found["speeds"]]
    version = f"onnxruntime {report['onnxruntime']}, " if report["onnxruntime"] else ""
    parts = ["# Exported files beside the model"]
    parts.append(
        f"Made by `python benchmarks/bench_export.py`, whose first lines say what is compared: {report['model']}, weights "
        f"`{report['weights_sha256'][:12]}`; one thread of {machine['processor']} ({machine['instructions']}), "
        f"{version}torch {machine['torch']}."
    )
    parts.append(
        f"{report['clips']} {report['kind']}. Errors are shares of the embeddings' largest number; the cosine is the smallest:"
    )
    parts.append(table(["file", "MB", "error", "alone / in a batch", "cosine"], errors))
    parts.append(
        f"Seconds of audio per second of processor time, medians of {report['rounds']} rounds; this package at the file's "
        f"precision. Ratios that vary by more than {100 * SPREAD_LIMIT:.0f} % between rounds have a `~`:"
    )
    parts.append(table(["file", "input", "file", "wavcse", "wavcse / file"], rates))
    return "\n\n".join(parts) + "\n"


def _rate_cells(title: str, speed: dict[str, Any]) -> list[str]:
    ratio = speed["model_over_file"]
    mark = "~" if ratio["spread"] is None or ratio["spread"] > SPREAD_LIMIT else ""
    both = [f"{speed[f'{way}_audio_s_per_cpu_s']:.0f}" for way in ("file", "model")]
    return [title, speed["workload"], *both, f"{mark}{ratio['ratio']:.2f} x"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT), help="folder of a saved model (default: the root)")
    parser.add_argument("--name", default="the model in the root", help="what the table calls it")
    parser.add_argument("--clips", nargs="+", default=[], help="recordings (default: some of ../shared/data; noise without)")
    parser.add_argument("--count", type=int, default=20, help="recordings of each corpus (default 20)")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=list(FILES), metavar="FILE", help=", ".join(FILES))
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing (default 15)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON to write, a table beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    needs_onnx = any(title.startswith("ONNX") for title in args.files)
    version = optional_library("onnxruntime", EXTRA).__version__ if needs_onnx else None
    clips = args.clips or recordings(ROOT.parent / "shared" / "data", args.count)
    report = {"model": args.name, "machine": machine_facts(CPU), "onnxruntime": version}
    report |= {"rounds": args.rounds, **measure(SavedModel.parse(args.model), clips, args.files, args.rounds)}
    print(write_results(report, args.out, markdown_of))


if __name__ == "__main__":
    main()
