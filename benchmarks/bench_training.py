"""How close is a training epoch to its arithmetic? Our loop against the same network fed by a DataLoader.

    python benchmarks/bench_training.py [--clips 4096] [--layers 16] [--rounds 5] [--device cpu]

Prints, and writes to benchmarks/results/training-DEVICE.json: the measured matrix-multiplication rate, the clips per second
of both ways, interleaved in one process, and each one's share of what that rate allows. Figures of a shared machine move by
some percent; the paired ratio and the share of the limit move less.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from wavcse import WavCSEConfig
from wavcse.benchmarks.measure import gemm_rate, timed
from wavcse.data.composite import IGNORED_LABEL, CompositeSet
from wavcse.train_accelerate import Run, train_step
from wavcse.training.arguments import RunArguments
from wavcse.training.features import Batch, MemoryTable, SplitFeatures, epoch_order
from wavcse.training.network import MultiTaskNetwork

CLASSES = {"keyword": 12, "speaker": 1251, "emotion": 4}  # the paper's tasks


def flops_per_clip(config: WavCSEConfig) -> float:
    """Multiply-adds (as 2) of one clip forward and backward; the first layer needs no gradient of its input."""
    first = len(config.selected_layers) * config.upstream_config.hidden_size * config.layer_projection_size
    later = config.embedding_size * (config.layer_projection_size + sum(CLASSES.values()))
    return 2 * (2 * first + 3 * later)


def make_run(num_clips: int, num_layers: int, batch_size: int, device: str) -> Run:
    """A run on random features with one task per clip, as in the paper's composite set."""
    generator = np.random.default_rng(0)
    task_of = generator.integers(len(CLASSES), size=num_clips)
    targets = {
        name: np.where(task_of == i, generator.integers(count, size=num_clips), IGNORED_LABEL)
        for i, (name, count) in enumerate(CLASSES.items())
    }
    labels = {name: list(map(str, range(count))) for name, count in CLASSES.items()}
    tasks = {name: {"manifest": "-", "label_column": name} for name in CLASSES}
    args = RunArguments(tasks=tasks, selected_layers=list(range(num_layers)), batch_size=batch_size, save_hub=False)
    config = WavCSEConfig(selected_layers=args.selected_layers, tasks={k: {"labels": v} for k, v in labels.items()})
    accelerator = Accelerator(cpu=device == "cpu")
    network = MultiTaskNetwork(config)
    model, optimizer = accelerator.prepare(network, AdamW(network.parameters(), lr=args.learning_rate))
    features = torch.randn(num_clips, num_layers, config.upstream_config.hidden_size, device=accelerator.device)
    composite = CompositeSet([None] * num_clips, labels, {"train": targets})
    split = SplitFeatures(MemoryTable(features), composite, "train", accelerator.device)
    scheduler = ReduceLROnPlateau(optimizer)
    return Run(args, accelerator, None, config, {"train": split}, network, model, optimizer, scheduler, None)


def our_epoch(run: Run, epoch: int) -> None:
    """As `train_accelerate.train_epoch` feeds its steps."""
    split = run.splits["train"]
    order = epoch_order(len(split), 0, epoch, run.args.batch_size, drop_last=True)
    for batch in split.batches(run.args.batch_size, order):
        train_step(run, batch, world=1)


def dataloader_epoch(run: Run, loader: DataLoader) -> None:
    """The same steps from a DataLoader that collates clip by clip."""
    for features, *labels in loader:
        named = {task: values.to(run.accelerator.device) for task, values in zip(CLASSES, labels)}
        counts = {task: int((values != IGNORED_LABEL).sum()) for task, values in named.items()}
        train_step(run, Batch(features.to(run.accelerator.device), named, counts), world=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4096, help="clips in the table")
    parser.add_argument("--layers", type=int, default=16, help="selected layers")
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    run = make_run(args.clips, args.layers, args.batch_size, args.device)
    device, split = run.accelerator.device, run.splits["train"]
    dataset = TensorDataset(split.table.features.cpu(), *(labels.cpu() for labels in split.labels.values()))
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True, drop_last=True)
    rate = gemm_rate(device)
    our_epoch(run, 0)
    seconds: dict[str, list[float]] = {"from memory": [], "DataLoader": []}
    for i in range(args.rounds):
        seconds["from memory"].append(timed(lambda i=i: our_epoch(run, i), device))
        seconds["DataLoader"].append(timed(lambda: dataloader_epoch(run, loader), device))
    limit = rate / flops_per_clip(run.config)
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
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"float32 products: {result['gemm_gflop_per_s']} GFLOP/s, which allows {limit:.0f} clips/s")
    for name, value in result["clips_per_s"].items():
        print(f"{name:<12} {value:>8.0f} clips/s   {value / limit:.0%} of the limit")
    print(f"paired ratio {result['paired_ratio']:.2f}x (DataLoader time / ours), {args.rounds} rounds; {path}")


if __name__ == "__main__":
    main()
