"""How fast is a layer search? The paper's recursion trained in the plain way, from memory, with the algebra, and together.

    python benchmarks/bench_search.py [--clips 8192] [--layers 25 13 1] [--rounds 5] [--workers 2] [--device cpu]

A table of random features in the paper's shape (25 layers of 1024), with its three tasks in its proportions, is trained on in
steps of 2048 clips, every way in turn in every round; then the held-out clips are evaluated. From the seconds per clip at some
numbers of layers, the whole recursion on the paper's corpora (25 rounds, 100 epochs) is extrapolated, and so marked. Beside
each way stands the bound that the machine sets it: its own matrix products at the product rate measured in the same rounds, or
reading its features at the measured bandwidth, whichever is longer; and the bound of the bandwidth alone. Results go to
benchmarks/results/search-DEVICE.json, .md.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wavcse.benchmarks.measure import PairedRatio, gemm_rate, interleaved, machine_facts, timed
from wavcse.benchmarks.rerun import CLIP_SECONDS, UpstreamRates, newest_rates, over_rerun
from wavcse.benchmarks.search_report import GOAL_EPOCHS, markdown_of
from wavcse.configuration_wavcse import WAVLM_LARGE, WavCSEConfig
from wavcse.data.composite import IGNORED_LABEL, CompositeSet
from wavcse.data.files import json_text
from wavcse.modeling_wavcse import combine_losses, cross_entropy_per_task
from wavcse.search.table import SearchTable, shared
from wavcse.search.together import train_step_together
from wavcse.train_accelerate import train_step
from wavcse.training.arguments import RunArguments
from wavcse.training.features import epoch_order
from wavcse.training.loop import EVALUATION_BATCH, evaluate, new_learner

RESULTS = Path(__file__).parent / "results"
CLASSES = {"keyword": 12, "speaker": 1251, "emotion": 4}
PAPER_TRAIN = {"keyword": 51_088, "speaker": 138_361, "emotion": 4_425}  # clips, section 1.6 of the protocol notes
PAPER_VALIDATION = {"keyword": 6_798, "speaker": 6_904, "emotion": 553}
PAPER_LAYERS, PAPER_EPOCHS = 25, 100
TOGETHER = 4  # models
STEPS = 2  # training steps in a measurement


@dataclass(frozen=True)
class Way:
    """A way to train: what it does for one clip, and seconds per clip by number of layers.

    `train` and `evaluate` map a number of layers to a function without arguments and the number of clips that it handles.
    """

    name: str
    title: str
    precision: str
    is_plain: bool
    cores: int
    train: Mapping[int, tuple[Callable[[], object], int]]
    evaluate: Mapping[int, tuple[Callable[[], object], int]]


class PlainNetwork(nn.Module):
    """Figure 1 of the paper as written: FC1 on every layer, weighted average, FC2, every head on every clip."""

    def __init__(self, config: WavCSEConfig):
        super().__init__()
        size = config.layer_projection_size
        self.projection = nn.Linear(config.upstream_config.hidden_size, size)
        self.weight = nn.Parameter(torch.ones(len(config.selected_layers)))
        self.embedding = nn.Sequential(nn.Dropout(config.layer_dropout), nn.Linear(size, config.embedding_size))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(config.embedding_size, n) for task, n in CLASSES.items()})

    def forward(self, layers: Tensor) -> dict[str, Tensor]:
        pooled = torch.einsum("k,bkd->bd", torch.softmax(self.weight, dim=0), self.projection(layers))
        embeddings = self.dropout(self.embedding(pooled))
        return {task: head(embeddings) for task, head in self.heads.items()}


class PlainDataset(Dataset):
    """Clip by clip: the wanted layers, and a label per task."""

    def __init__(self, features: Tensor, rows: Tensor, labels: Mapping[str, Tensor], num_layers: int):
        self.features, self.rows, self.labels, self.num_layers = features, rows, labels, num_layers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.features[self.rows[i], : self.num_layers], {task: labels[i] for task, labels in self.labels.items()}


class PlainTrainer:
    """The plain way to train on batches, wherever they come from."""

    def __init__(self, args: RunArguments, config: WavCSEConfig, device: torch.device):
        torch.manual_seed(0)
        self.args, self.device = args, device
        self.network = PlainNetwork(config).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)

    def loss(self, layers: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Task losses and penalties."""
        losses = cross_entropy_per_task(self.network(layers), labels)
        weights = torch.cat([parameter.flatten() for parameter in self.network.parameters()])
        penalty = self.args.l1 * weights.abs().sum() + self.args.l2 * weights.square().sum()
        return combine_losses(losses, self.args.loss_weights()) + penalty

    def train(self, batches: Iterator[tuple[Tensor, dict[str, Tensor]]]) -> None:
        """A step per batch."""
        self.network.train()
        for layers, labels in batches:
            self.loss(layers.to(self.device), {task: own.to(self.device) for task, own in labels.items()}).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, batches: Iterator[tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Loss and classes of every batch."""
        self.network.eval()
        for layers, labels in batches:
            on_device = {task: own.to(self.device) for task, own in labels.items()}
            logits = self.network(layers.to(self.device))
            float(sum(cross_entropy_per_task(logits, on_device).values()))
            for values in logits.values():
                values.argmax(dim=1).cpu()


def make_table(num_clips: int, device: torch.device, upstream: Mapping) -> SearchTable:
    """Random features and labels; a ninth of the clips is held out."""
    generator = np.random.default_rng(0)
    total = sum(PAPER_TRAIN.values())
    task_of = generator.choice(len(CLASSES), num_clips, p=[count / total for count in PAPER_TRAIN.values()])
    is_held_out = np.arange(num_clips) % 9 == 0
    labels = {
        task: np.where(task_of == i, generator.integers(count, size=num_clips), IGNORED_LABEL)
        for i, (task, count) in enumerate(CLASSES.items())
    }
    held_out = {task: np.where(is_held_out, own, IGNORED_LABEL) for task, own in labels.items()}
    train = {task: np.where(is_held_out, IGNORED_LABEL, own) for task, own in labels.items()}
    classes = {task: list(map(str, range(count))) for task, count in CLASSES.items()}
    composite = CompositeSet([], classes, {"train": train, "validation": held_out, "test": held_out})
    torch.manual_seed(0)
    num_layers = upstream["num_hidden_layers"] + 1
    return SearchTable(
        torch.randn(num_clips, num_layers, upstream["hidden_size"], device=device), composite, dict(upstream), "random"
    )


def arguments(num_layers: int, batch_size: int, precision: str) -> RunArguments:
    """The paper's recipe on the first layers."""
    return RunArguments(
        tasks={task: {"manifest": "drawn.csv", "label_column": task} for task in CLASSES},
        selected_layers=list(range(num_layers)),
        pooling_type="weighted_average",
        batch_size=batch_size,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        save_hub=False,
    )


def plain_way(table: SearchTable, sizes: Sequence[int], batch_size: int, from_memory: bool) -> Way:
    """(a) and (b)."""
    device, train, held_out = table.features.device, {}, {}
    in_ram = table.features if from_memory else table.features.cpu()
    for size in sizes:
        args = arguments(size, batch_size, "float32")
        trainer = PlainTrainer(args, table.config(args), device)
        for split, part in (("train", train), ("validation", held_out)):
            rows = torch.from_numpy(table.composite.rows(split))
            labels = {task: torch.from_numpy(own)[rows] for task, own in table.composite.targets[split].items()}
            per_batch = batch_size if split == "train" else EVALUATION_BATCH
            steps = STEPS if split == "train" else 1
            if from_memory:
                batches = _memory_batches(in_ram, rows, labels, size, per_batch, steps)
            else:
                dataset = PlainDataset(in_ram, rows, labels, size)
                batches = _loader_batches(DataLoader(dataset, batch_size=per_batch, shuffle=split == "train"), steps)
            function = trainer.train if split == "train" else trainer.evaluate
            part[size] = (lambda f=function, b=batches: f(b()), min(steps * per_batch, len(rows)))
    if from_memory:
        return Way("b", "(b) from memory", "float32", True, 1, train, held_out)
    return Way("a", "(a) plain: DataLoader, FC1 on every layer", "float32", True, 1, train, held_out)


def _loader_batches(loader: DataLoader, steps: int) -> Callable[[], Iterator]:
    return lambda: itertools.islice(iter(loader), steps)


def _memory_batches(
    features: Tensor, rows: Tensor, labels: Mapping[str, Tensor], size: int, per_batch: int, steps: int
) -> Callable[[], Iterator]:
    def batches() -> Iterator:
        for chosen in torch.randperm(len(rows)).split(per_batch)[:steps]:
            taken = rows[chosen].to(features.device)
            yield features[taken, :size], {task: own[chosen] for task, own in labels.items()}

    return batches


@dataclass
class OurTrainer:
    """`training.loop` on some layers: one model, or several together."""

    table: SearchTable
    args: RunArguments
    accelerator: Accelerator
    num_models: int = 1

    def __post_init__(self):
        many = [replace(self.args, seed=seed) for seed in range(self.num_models)]
        self.learners = [new_learner(args, self.table.config(args), self.table.features.device) for args in many]
        self.splits = self.table.splits(self.args)

    def train(self) -> None:
        """`STEPS` steps of every model."""
        for learner in self.learners:
            learner.network.train()
        train = self.splits["train"]
        orders = [epoch_order(len(train), seed, 1, self.args.batch_size, True) for seed in range(self.num_models)]
        streams = [train.batches(self.args.batch_size, order) for order in orders]
        for batches in itertools.islice(zip(*streams), STEPS):
            if self.num_models == 1:
                train_step(self.accelerator, self.learners[0], batches[0])
            else:
                train_step_together(self.accelerator, self.learners, batches)

    def evaluate(self) -> None:
        """Every model on the held-out clips."""
        for learner in self.learners:
            evaluate(self.accelerator, learner, self.splits["validation"])

    def work(self) -> dict[str, tuple[Callable[[], None], int]]:
        """What a `Way` wants: function and clips, of training and evaluation."""
        num_train = min(STEPS * self.args.batch_size, len(self.splits["train"]))
        num_held_out = len(self.splits["validation"])
        return {
            "train": (self.train, self.num_models * num_train),
            "evaluate": (self.evaluate, self.num_models * num_held_out),
        }


def new_accelerator(device: torch.device, precision: str) -> Accelerator:
    """One of its own for every precision; Accelerate would keep the first."""
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bfloat16" else "no")


def our_way(table: SearchTable, sizes: Sequence[int], batch_size: int, precision: str, num_models: int) -> Way:
    """(c), and (d) with several models."""
    accelerator = new_accelerator(table.features.device, precision)
    work = {size: OurTrainer(table, arguments(size, batch_size, precision), accelerator, num_models).work() for size in sizes}
    name, title = ("c", "(c) with the algebra") if num_models == 1 else ("d", f"(d) {num_models} models together")
    parts = [{size: own[part] for size, own in work.items()} for part in ("train", "evaluate")]
    return Way(f"{name} {precision}", f"{title}, {precision}", precision, False, 1, *parts)


@contextmanager
def workers_way(table: SearchTable, sizes: Sequence[int], batch_size: int, precision: str, workers: int) -> Iterator[Way]:
    """(e): (c) in several processes at once on one table."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, shared(table, Path(folder)) as reopen:
        pipes = [context.Pipe() for _ in range(workers)]
        jobs = (reopen, list(sizes), batch_size, precision)
        processes = [context.Process(target=_serve, args=(theirs, *jobs), daemon=True) for _, theirs in pipes]
        for process in processes:
            process.start()
        ours = [own for own, _ in pipes]
        clips, *_ = [own.recv() for own in ours]
        parts = [
            {size: (lambda s=size, p=part: _ask(ours, (p, s)), workers * clips[part, size]) for size in sizes}
            for part in ("train", "evaluate")
        ]
        try:
            yield Way(f"e {precision}", f"(e) {workers} processes of (c), {precision}", precision, False, workers, *parts)
        finally:
            for own, process in zip(ours, processes):
                own.send(None)
                process.join()


def _ask(pipes: Sequence[Connection], job: tuple[str, int]) -> None:
    for pipe in pipes:
        pipe.send(job)
    for pipe in pipes:
        pipe.recv()


def _serve(pipe: Connection, reopen: Callable[[], SearchTable], sizes: Sequence[int], batch_size: int, precision: str) -> None:
    torch.set_num_threads(1)
    table = reopen()
    accelerator = new_accelerator(table.features.device, precision)
    work = {size: OurTrainer(table, arguments(size, batch_size, precision), accelerator).work() for size in sizes}
    pipe.send({(part, size): own[part][1] for size, own in work.items() for part in own})
    while (job := pipe.recv()) is not None:
        part, size = job
        work[size][part][0]()
        pipe.send(None)


def flop_per_clip(is_plain: bool, num_layers: int, config: WavCSEConfig) -> float:
    """Multiply-adds (as 2) of one training clip, forward and backward.

    Plain: FC1 on every layer (no gradient of its input), all heads on all clips. Else: FC1 once (and the gradient of its
    input, for the layer weights), the head of the clip's own task.
    """
    projection = config.upstream_config.hidden_size * config.layer_projection_size
    total = sum(PAPER_TRAIN.values())
    outputs = sum(CLASSES.values()) if is_plain else sum(CLASSES[task] * PAPER_TRAIN[task] / total for task in CLASSES)
    first = 2 * num_layers * projection if is_plain else 3 * projection
    return 2 * (first + 3 * config.embedding_size * (config.layer_projection_size + outputs))


def bytes_per_clip(is_plain: bool, num_layers: int, config: WavCSEConfig) -> float:
    """Feature bytes of one training clip: read twice (forward, and for the gradients); plain also copies them to a batch."""
    return (4 if is_plain else 2) * 4 * num_layers * config.upstream_config.hidden_size


def read_rate(device: torch.device) -> float:
    """Best rate in bytes per second at which a large tensor is read."""
    values = torch.randn(2**26, device=device)
    return 4 * len(values) / min(timed(values.sum, device) for _ in range(5))


def measure(ways: Sequence[Way], sizes: Sequence[int], rounds: int, device: torch.device) -> dict:
    """Seconds per clip of every way, part and number of layers in every round, and the machine's rates in every round."""
    functions = {
        (way.name, part, size): getattr(way, part)[size][0] for size in sizes for way in ways for part in ("train", "evaluate")
    }
    clips = {key: getattr(way, key[1])[key[2]][1] for way in ways for key in functions if key[0] == way.name}
    for function in functions.values():
        function()
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": [], "bytes": []}

    def note_rates() -> None:
        for precision in ("float32", "bfloat16"):
            rates[precision].append(gemm_rate(device, precision))
        rates["bytes"].append(read_rate(device))

    seconds = interleaved(functions, rounds, device, note_rates)
    return {"rates": rates, "seconds": {key: [s / clips[key] for s in own] for key, own in seconds.items()}}


def whole_recursion(per_clip: Mapping[tuple[str, int], float], sizes: Sequence[int]) -> float:
    """Seconds of the paper's recursion, extrapolated from seconds per clip by (part, layers), linearly between sizes."""
    counts = {"train": sum(PAPER_TRAIN.values()), "evaluate": sum(PAPER_VALIDATION.values())}
    ascending = sorted(sizes)
    return sum(
        PAPER_EPOCHS * count * float(np.interp(k, ascending, [per_clip[part, size] for size in ascending]))
        for k in range(1, PAPER_LAYERS + 1)
        for part, count in counts.items()
    )


def summarise(
    ways: Sequence[Way], sizes: Sequence[int], measured: Mapping, config: WavCSEConfig, upstream: UpstreamRates | None
) -> list[dict]:
    """Per way: speed and share of its bound by number of layers, the extrapolated recursion, and its ratios to others."""
    rounds = len(measured["rates"]["bytes"])
    totals = {way.name: [_total(way, measured, sizes, i) for i in range(rounds)] for way in ways}
    rows = []
    for way in ways:
        row: dict = {"name": way.name, "title": way.title, "precision": way.precision, "is_plain": way.is_plain}
        row |= {"processes": way.cores, "by_layers": []}
        for size in sizes:
            speeds = [1 / seconds for seconds in measured["seconds"][way.name, "train", size]]
            bounds = [_bounds(way, size, measured["rates"], config, i) for i in range(rounds)]
            figures = {
                "clips_per_s": round(statistics.median(speeds), 1),
                "share_of_bound": round(statistics.median(max(own) * speed for own, speed in zip(bounds, speeds)), 3),
                "share_of_bandwidth_bound": round(statistics.median(own[1] * speed for own, speed in zip(bounds, speeds)), 3),
            }
            row["by_layers"].append({"layers": size, **figures})
        row["recursion_hours"] = round(statistics.median(totals[way.name]) / 3600, 3)
        row["over_plain"] = asdict(PairedRatio.of(totals[ways[0].name], totals[way.name]))
        row["over_rerun"] = {} if upstream is None else _over_rerun(way, upstream, statistics.median(totals[way.name]))
        rows.append(row)
    return rows


def _bounds(way: Way, size: int, rates: Mapping[str, Sequence[float]], config: WavCSEConfig, i: int) -> tuple[float, float]:
    """Least seconds per training clip by the rates of round i: for the products, for reading.

    Both rates are of one process and count once for each, though processes share the memory: no share is flattered.
    """
    products = flop_per_clip(way.is_plain, size, config) / rates[way.precision][i]
    return products / way.cores, bytes_per_clip(way.is_plain, size, config) / rates["bytes"][i] / way.cores


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


def _over_rerun(way: Way, upstream: UpstreamRates, recursion_s: float) -> dict[str, dict[str, float]]:
    epoch_core_s = recursion_s * way.cores / (PAPER_LAYERS * PAPER_EPOCHS)
    return {
        str(epochs): over_rerun(upstream, audio_seconds(), way.precision, PAPER_LAYERS * epochs, epoch_core_s)
        for epochs in (GOAL_EPOCHS, PAPER_EPOCHS)
    }


def audio_seconds() -> float:
    """Audio of an epoch of the paper's corpora, validation included."""
    return sum(CLIP_SECONDS[task] * (PAPER_TRAIN[task] + PAPER_VALIDATION[task]) for task in CLASSES)


def _total(way: Way, measured: Mapping, sizes: Sequence[int], i: int) -> float:
    per_clip = {(part, size): measured["seconds"][way.name, part, size][i] for part in ("train", "evaluate") for size in sizes}
    return whole_recursion(per_clip, sizes)


def main(argv: Sequence[str] | None = None) -> None:
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
    torch.set_num_threads(1)
    device = torch.device(args.device)
    small = {"model_type": "wavlm", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    upstream_shape = small if args.tiny else WAVLM_LARGE
    try:
        sizes = checked_sizes(args.layers, upstream_shape["num_hidden_layers"] + 1)
    except ValueError as error:
        parser.error(str(error))
    table = make_table(args.clips, device, upstream_shape)
    ways = [plain_way(table, sizes, args.batch_size, from_memory) for from_memory in (False, True)]
    precisions = ("float32", "bfloat16")
    ways += [our_way(table, sizes, args.batch_size, precision, n) for precision in precisions for n in (1, TOGETHER)]
    if args.device == "cpu" and args.workers:
        with (
            workers_way(table, sizes, args.batch_size, "float32", args.workers) as exact,
            workers_way(table, sizes, args.batch_size, "bfloat16", args.workers) as fast,
        ):
            ways += [exact, fast]
            measured = measure(ways, sizes, args.rounds, device)
    else:
        measured = measure(ways, sizes, args.rounds, device)
    AcceleratorState._reset_state(True)
    upstream = newest_rates(RESULTS, args.device)
    paper = {"train_clips": sum(PAPER_TRAIN.values()), "rounds": PAPER_LAYERS, "epochs": PAPER_EPOCHS}
    config = table.config(arguments(1, args.batch_size, "float32"))
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": machine_facts(device),
        "settings": vars(args),
        "shape": list(table.features.shape),
        "rates": {name: statistics.median(own) for name, own in measured["rates"].items()},
        "paper": {**paper, "audio_s": audio_seconds()},
        "upstream": None if upstream is None else asdict(upstream),
        "rows": summarise(ways, sizes, measured, config, upstream),
        "seconds_per_clip": {" / ".join(map(str, key)): own for key, own in measured["seconds"].items()},
    }
    text = markdown_of(report)
    print(text)
    if not args.tiny:
        stem = RESULTS / f"search-{args.device}"
        stem.with_suffix(".json").write_text(json_text(report, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
