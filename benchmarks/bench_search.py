"""How fast is a layer search? The paper's recursion trained in the plain way, from memory, with the algebra, and together.

    python benchmarks/bench_search.py [--clips 8192] [--layers 25 13 1] [--rounds 5] [--workers 2] [--device cpu]

A table of random features in the paper's shape (25 layers of 1024), with its three tasks in its proportions, is trained on in
steps of 2048 clips, every way (`search_ways.py`) in turn in every round; then the held-out clips are evaluated. From the
seconds per clip at some numbers of layers, the whole recursion on the paper's corpora (25 rounds, 100 epochs) is extrapolated,
and marked as such. Beside each way stands its bound on this machine (`search_report.py`): its own matrix products at the
product rate measured in the same rounds, or reading its features at the measured bandwidth, whichever takes longer; and the
bound of the bandwidth alone. Results go to benchmarks/results/search-DEVICE.json, .md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from wavcse.benchmarks.measure import machine_facts, measure_work
from wavcse.benchmarks.rerun import newest_rates
from wavcse.benchmarks.search_report import PAPER_EPOCHS, PAPER_ROUNDS, markdown_of, summarise
from wavcse.benchmarks.search_ways import PARTS, Way, our_way, plain_way, random_table, recipe, workers_way
from wavcse.benchmarks.workloads import PAPER_TRAIN, paper_audio_s
from wavcse.configuration_wavcse import WAVLM_LARGE
from wavcse.data.files import json_text
from wavcse.search.table import SearchTable

RESULTS = Path(__file__).parent / "results"
TINY_SHAPE = {"model_type": "wavlm", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TOGETHER = 4  # models
PRECISIONS = ("float32", "bfloat16")


@contextmanager
def compared_ways(table: SearchTable, sizes: Sequence[int], batch_size: int, workers: int) -> Iterator[list[Way]]:
    """The ways to train that are compared, ready to be timed at the numbers of layers `sizes`."""
    ways = [plain_way(table, sizes, batch_size, from_memory) for from_memory in (False, True)]  # (a), (b)
    for precision in PRECISIONS:
        ways += [our_way(table, sizes, batch_size, precision, num_models) for num_models in (1, TOGETHER)]  # (c), (d)
    with ExitStack() as stack:
        if workers and table.features.device.type == "cpu":
            processes = [workers_way(table, sizes, batch_size, precision, workers) for precision in PRECISIONS]  # (e)
            ways += [stack.enter_context(way) for way in processes]
        yield ways


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8192, help="clips in the table (100 KB each)")
    parser.add_argument(
        "--layers", type=int, nargs="+", help="numbers of layers to measure at, 1 and all among them (default: 25 13 1)"
    )
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of (e), 0 leaves it out; CPU only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a small upstream shape, to see that it runs; nothing is written")
    args = parser.parse_args(argv)
    try:
        checked_sizes(args.layers, shape_of(args)["num_hidden_layers"] + 1)
    except ValueError as error:
        parser.error(str(error))
    return args


def shape_of(args: argparse.Namespace) -> dict:
    """Fields of the upstream whose features are drawn."""
    return TINY_SHAPE if args.tiny else WAVLM_LARGE


def checked_sizes(asked: Sequence[int] | None, num_layers: int) -> list[int]:
    """Numbers of layers to measure at, by default all, half and one.

    Raises:
        ValueError: without 1 and the largest, between which the recursion is interpolated, or beyond them.
    """
    sizes = sorted(set(asked or (1, (num_layers + 1) // 2, num_layers)), reverse=True)
    if (sizes[0], sizes[-1]) != (num_layers, 1):
        raise ValueError(
            f"--layers is {asked}; it must go from {num_layers} to 1, both included, to extrapolate the recursion."
        )
    return sizes


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all ways, and write what was found."""
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    table = random_table(args.clips, device, shape_of(args))
    sizes = checked_sizes(args.layers, len(table.layers))
    with compared_ways(table, sizes, args.batch_size, args.workers) as ways:
        work = {(way.name, part, size): way.work[part, size] for size in sizes for way in ways for part in PARTS}
        measured = measure_work(work, args.rounds, device)
    AcceleratorState._reset_state(True)
    upstream = newest_rates(RESULTS, args.device)
    config = table.config(recipe(1, args.batch_size, "float32"))
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": machine_facts(device),
        "settings": vars(args),
        "shape": list(table.features.shape),
        "rates": {name: statistics.median(own) for name, own in measured.rates.items()},
        "paper": {
            "train_clips": sum(PAPER_TRAIN.values()),
            "rounds": PAPER_ROUNDS,
            "epochs": PAPER_EPOCHS,
            "audio_s": paper_audio_s(),
        },
        "upstream": None if upstream is None else asdict(upstream),
        "rows": summarise(ways, sizes, measured, config, upstream),
        "seconds_per_clip": {" / ".join(map(str, key)): own for key, own in measured.seconds_per_clip.items()},
    }
    text = markdown_of(report)
    print(text)
    if not args.tiny:
        stem = RESULTS / f"search-{args.device}"
        stem.with_suffix(".json").write_text(json_text(report, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
