"""The ways to train that `bench_search.py` compares: plain, from memory, our loop, several models or processes at once."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wavcse.benchmarks.measure import Work
from wavcse.benchmarks.workloads import CLASSES, PAPER_TRAIN, draw_labels
from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.composite import CompositeSet
from wavcse.modeling_wavcse import IGNORED_LABEL, combine_losses, cross_entropy_per_task
from wavcse.search.table import SearchTable, shared
from wavcse.search.together import train_step_together
from wavcse.train_accelerate import train_step
from wavcse.training.arguments import RunArguments
from wavcse.training.features import epoch_order
from wavcse.training.heads import EVALUATION_BATCH, evaluate, new_learner

PARTS = ("train", "evaluate")
STEPS = 2  # training steps in a measurement
HELD_OUT = 9  # one clip in so many is held out
Batches = Iterable[tuple[Tensor, dict[str, Tensor]]]  # layers `[B, K, D]`, and task -> labels `[B]`


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        name: a letter, and the precision where it has several.
        title: in tables.
        precision: of its matrix products.
        is_plain: FC1 on every layer and all heads on all clips, without the algebra that spares most of it.
        processes: how many train at once.
        work: by part (`PARTS`) and number of layers.
    """

    name: str
    title: str
    precision: str
    is_plain: bool
    processes: int
    work: Mapping[tuple[str, int], Work]


def random_table(num_clips: int, device: torch.device, upstream: Mapping) -> SearchTable:
    """Random features of all layers of the upstream, with random labels in the paper's proportions."""
    labels = draw_labels(num_clips, PAPER_TRAIN)
    is_held_out = np.arange(num_clips) % HELD_OUT == 0
    held_out = {task: np.where(is_held_out, own, IGNORED_LABEL) for task, own in labels.items()}
    train = {task: np.where(is_held_out, IGNORED_LABEL, own) for task, own in labels.items()}
    classes = {task: list(map(str, range(count))) for task, count in CLASSES.items()}
    composite = CompositeSet([], classes, {"train": train, "validation": held_out, "test": held_out})
    torch.manual_seed(0)
    features = torch.randn(num_clips, upstream["num_hidden_layers"] + 1, upstream["hidden_size"], device=device)
    return SearchTable(features, composite, dict(upstream), "random")


def recipe(num_layers: int, batch_size: int, precision: str) -> RunArguments:
    """The paper's recipe on the first layers."""
    return RunArguments(
        tasks={task: {"manifest": "drawn.csv", "label_column": task} for task in CLASSES},
        selected_layers=list(range(num_layers)),
        pooling_type="weighted_average",
        batch_size=batch_size,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        save_hub=False,
    )


# -- (a) and (b): the paper's figure as it is drawn


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


class PlainClips(Dataset):
    """A split clip by clip, as a DataLoader wants it: the first layers, and a label per task."""

    def __init__(self, features: Tensor, composite: CompositeSet, split: str, num_layers: int):
        self.features, self.num_layers = features, num_layers
        self.rows = torch.from_numpy(composite.rows(split))
        self.labels = {task: torch.from_numpy(own)[self.rows] for task, own in composite.targets[split].items()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.features[self.rows[i], : self.num_layers], {task: labels[i] for task, labels in self.labels.items()}


@dataclass(frozen=True)
class MemoryBatches:
    """The same clips, shuffled, each batch copied out of the table at once."""

    clips: PlainClips
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        features, rows = self.clips.features, self.clips.rows
        for chosen in torch.randperm(len(rows)).split(self.batch_size):
            layers = features[rows[chosen].to(features.device), : self.clips.num_layers]
            yield layers, {task: own[chosen] for task, own in self.clips.labels.items()}


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

    def train(self, batches: Batches) -> None:
        """`STEPS` steps."""
        self.network.train()
        for layers, labels in itertools.islice(batches, STEPS):
            self.loss(layers.to(self.device), {task: own.to(self.device) for task, own in labels.items()}).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> None:
        """Loss and classes of the first batch."""
        self.network.eval()
        for layers, labels in itertools.islice(batches, 1):
            on_device = {task: own.to(self.device) for task, own in labels.items()}
            logits = self.network(layers.to(self.device))
            float(sum(cross_entropy_per_task(logits, on_device).values()))
            for values in logits.values():
                values.argmax(dim=1).cpu()


def plain_way(table: SearchTable, sizes: Sequence[int], batch_size: int, from_memory: bool) -> Way:
    """(a) from a DataLoader, (b) from memory."""
    device, work = table.features.device, {}
    features = table.features if from_memory else table.features.cpu()
    for size in sizes:
        args = recipe(size, batch_size, "float32")
        trainer = PlainTrainer(args, table.config(args), device)
        train, held_out = (PlainClips(features, table.composite, split, size) for split in ("train", "validation"))
        if from_memory:
            batches = MemoryBatches(train, batch_size), MemoryBatches(held_out, EVALUATION_BATCH)
        else:
            batches = DataLoader(train, batch_size, shuffle=True), DataLoader(held_out, EVALUATION_BATCH)
        work["train", size] = Work(partial(trainer.train, batches[0]), min(STEPS * batch_size, len(train)))
        work["evaluate", size] = Work(partial(trainer.evaluate, batches[1]), min(EVALUATION_BATCH, len(held_out)))
    if from_memory:
        return Way("b", "(b) from memory", "float32", True, 1, work)
    return Way("a", "(a) plain: DataLoader, FC1 on every layer", "float32", True, 1, work)


# -- (c) and (d): our loop


@dataclass
class OurTrainer:
    """The loop of `wavcse train` and the searches on some layers: one model, or several together."""

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

    def work(self) -> dict[str, Work]:
        """By part, as a `Way` wants it."""
        num_train = min(STEPS * self.args.batch_size, len(self.splits["train"]))
        num_held_out = len(self.splits["validation"])
        return {
            "train": Work(self.train, self.num_models * num_train),
            "evaluate": Work(self.evaluate, self.num_models * num_held_out),
        }


def our_way(table: SearchTable, sizes: Sequence[int], batch_size: int, precision: str, num_models: int) -> Way:
    """(c), and (d) with several models."""
    name, title = ("c", "(c) with the algebra") if num_models == 1 else ("d", f"(d) {num_models} models together")
    work = _our_work(table, sizes, batch_size, precision, num_models)
    return Way(f"{name} {precision}", f"{title}, {precision}", precision, False, 1, work)


def _our_work(
    table: SearchTable, sizes: Sequence[int], batch_size: int, precision: str, num_models: int = 1
) -> dict[tuple[str, int], Work]:
    accelerator = _new_accelerator(table.features.device, precision)
    trainers = {size: OurTrainer(table, recipe(size, batch_size, precision), accelerator, num_models) for size in sizes}
    return {(part, size): work for size, trainer in trainers.items() for part, work in trainer.work().items()}


def _new_accelerator(device: torch.device, precision: str) -> Accelerator:
    AcceleratorState._reset_state(True)  # else a process keeps the precision of its first accelerator
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bfloat16" else "no")


# -- (e): our loop in several processes


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
        work = {key: Work(partial(_ask, ours, key), workers * num_clips) for key, num_clips in clips.items()}
        try:
            yield Way(f"e {precision}", f"(e) {workers} processes of (c), {precision}", precision, False, workers, work)
        finally:
            for own, process in zip(ours, processes):
                own.send(None)
                process.join()


def _ask(pipes: Sequence[Connection], job: tuple[str, int]) -> None:
    """Have all processes do a work, and wait for the last."""
    for pipe in pipes:
        pipe.send(job)
    for pipe in pipes:
        pipe.recv()


def _serve(pipe: Connection, reopen: Callable[[], SearchTable], sizes: Sequence[int], batch_size: int, precision: str) -> None:
    """A process of (e): says how many clips each work has, then does what it is asked for, until it is asked for nothing."""
    torch.set_num_threads(1)
    works = _our_work(reopen(), sizes, batch_size, precision)
    pipe.send({key: work.clips for key, work in works.items()})
    while (job := pipe.recv()) is not None:
        works[job].run()
        pipe.send(None)
