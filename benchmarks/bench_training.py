"""How close is a training epoch to its arithmetic? Our loop against the same network fed by a DataLoader.

    python benchmarks/bench_training.py [--clips 4096] [--layers 16] [--rounds 5] [--device cpu]

Prints, and writes to benchmarks/results/training-DEVICE.json: the measured matrix-multiplication rate, the clips per second
of both ways, interleaved in one process, and each one's share of what that rate allows. Figures of a shared machine move by
some percent; the paired ratio and the share of the limit move less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from wavcse import WavCSEConfig
from wavcse.benchmarks.measure import gemm_rate, timed
from wavcse.benchmarks.workloads import CLASSES, draw_labels
from wavcse.data.composite import CompositeSet
from wavcse.data.files import json_text
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.train_accelerate import train_step
from wavcse.training.arguments import RunArguments
from wavcse.training.features import FeatureBatch, MemoryTable, SplitFeatures, epoch_order
from wavcse.training.heads import new_learner
from wavcse.training.run import Learner


@dataclass
class TrainingBench:
    """A model, its accelerator and its training clips."""

    config: WavCSEConfig
    accelerator: Accelerator
    learner: Learner
    split: SplitFeatures


def flops_per_clip(config: WavCSEConfig) -> float:
    """Multiply-adds (as 2) of one clip forward and backward; the first layer needs no gradient of its input.

    Every clip has a label of one task, and goes through that task's head only.
    """
    first = len(config.selected_layers) * config.upstream_config.hidden_size * config.layer_projection_size
    later = config.embedding_size * (config.layer_projection_size + sum(CLASSES.values()) / len(CLASSES))
    return 2 * (2 * first + 3 * later)


def make_bench(num_clips: int, num_layers: int, batch_size: int, device: str) -> TrainingBench:
    """A model on random features; every clip has a label of one task, as in the paper's composite set."""
    targets = draw_labels(num_clips, dict.fromkeys(CLASSES, 1))
    labels = {name: list(map(str, range(count))) for name, count in CLASSES.items()}
    tasks = {name: {"manifest": "-", "label_column": name} for name in CLASSES}
    args = RunArguments(tasks=tasks, selected_layers=list(range(num_layers)), batch_size=batch_size, save_hub=False)
    config = WavCSEConfig(selected_layers=args.selected_layers, tasks={k: {"labels": v} for k, v in labels.items()})
    accelerator = Accelerator(cpu=device == "cpu")
    features = torch.randn(num_clips, num_layers, config.upstream_config.hidden_size, device=accelerator.device)
    composite = CompositeSet([], labels, {"train": targets})
    split = SplitFeatures(MemoryTable(features), composite, "train", accelerator.device)
    return TrainingBench(config, accelerator, new_learner(args, config, accelerator.device), split)


def our_epoch(bench: TrainingBench, epoch: int) -> None:
    """As `train_epoch` feeds its steps."""
    args = bench.learner.args
    order = epoch_order(len(bench.split), 0, epoch, args.batch_size, drop_last=True)
    for batch in bench.split.batches(args.batch_size, order):
        train_step(bench.accelerator, bench.learner, batch)


def dataloader_epoch(bench: TrainingBench, loader: DataLoader) -> None:
    """The same steps from a DataLoader that collates clip by clip."""
    device = bench.accelerator.device
    for features, *of_tasks in loader:
        rows = {task: (values != IGNORED_LABEL).nonzero()[:, 0] for task, values in zip(CLASSES, of_tasks)}
        labels = {task: values[rows[task]].to(device) for task, values in zip(CLASSES, of_tasks)}
        layers = MemoryTable(features.to(device)).take(torch.arange(len(features), device=device))
        counts = {task: len(own) for task, own in rows.items()}
        batch = FeatureBatch(layers, {task: own.to(device) for task, own in rows.items()}, labels, counts, len(features))
        train_step(bench.accelerator, bench.learner, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4096, help="clips in the table")
    parser.add_argument("--layers", type=int, default=16, help="selected layers")
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    bench = make_bench(args.clips, args.layers, args.batch_size, args.device)
    device, split = bench.accelerator.device, bench.split
    dataset = TensorDataset(split.table.features.cpu(), *(labels.cpu() for labels in split.labels.values()))
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True, drop_last=True)
    rate = gemm_rate(device)
    our_epoch(bench, 0)
    seconds: dict[str, list[float]] = {"from memory": [], "DataLoader": []}
    for i in range(args.rounds):
        seconds["from memory"].append(timed(lambda i=i: our_epoch(bench, i), device))
        seconds["DataLoader"].append(timed(lambda: dataloader_epoch(bench, loader), device))
    limit = rate / flops_per_clip(bench.config)
    num_clips = args.clips // args.batch_size * args.batch_size
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": vars(args),
        "gemm_gflop_per_s": round(rate / 1e9, 1),
        "limit_clips_per_s": round(limit, 1),
        "clips_per_s": {name: round(num_clips / statistics.median(values), 1) for name, values in seconds.items()},
        "paired_ratio": round(statistics.median(b / a for a, b in zip(*seconds.values())), 3),
        "seconds": seconds,
    }
    path = Path(__file__).parent / "results" / f"training-{args.device}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json_text(result, indent=1) + "\n", encoding="utf-8")
    print(f"float32 products: {result['gemm_gflop_per_s']} GFLOP/s, which allows {limit:.0f} clips/s")
    for name, value in result["clips_per_s"].items():
        print(f"{name:<12} {value:>8.0f} clips/s   {value / limit:.0%} of the limit")
    print(f"paired ratio {result['paired_ratio']:.2f}x (DataLoader time / ours), {args.rounds} rounds; {path}")


if __name__ == "__main__":
    main()
