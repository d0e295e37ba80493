"""The training loop, the same for one model (`train_accelerate.py`), for many in turn and for many together (`search/`).

A `Learner` is a model in training. `train_epoch` takes learners of one shape, which go through the epoch in step, each over
its own order of the clips; one learner alone is the ordinary case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.modeling_wavcse import combine_losses, cross_entropy_per_task
from wavcse.training.arguments import RunArguments
from wavcse.training.features import Batch, SplitFeatures, epoch_order
from wavcse.training.network import MultiTaskNetwork
from wavcse.training.products import linear
from wavcse.training.run import Learner, first_reason
from wavcse.training.together import losses_together

EVALUATION_BATCH = 4096  # clips; evaluation keeps no gradients


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint. `epoch` counts finished epochs."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -math.inf
    train_seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a split.

    `loss` has the penalties in it, as it drives the schedule; `is_correct` task -> bool, one per clip with a label for it, in
    the order of the split, on the CPU.
    """

    loss: float
    task_loss: dict[str, float]
    accuracy: dict[str, float]
    mean_accuracy: float
    is_correct: dict[str, Tensor]

    def figures(self) -> dict:
        """All but the single clips, for a log."""
        return {name: value for name, value in vars(self).items() if name != "is_correct"}


def new_learner(args: RunArguments, config: WavCSEConfig, device: torch.device) -> Learner:
    """An untrained model of the recipe, its weights drawn from the recipe's seed."""
    torch.manual_seed(args.seed)
    network = MultiTaskNetwork(config).to(device)
    optimizer = AdamW(network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    scheduler = ReduceLROnPlateau(optimizer, "min", factor=args.scheduler_factor, patience=args.scheduler_patience)
    return Learner(args, network, network, optimizer, scheduler, Progress())


def train_epoch(
    accelerator: Accelerator, splits: Sequence[dict[str, SplitFeatures]], learners: Sequence[Learner], epoch: int
) -> list[dict]:
    """One pass over the training clips, then validation; returns each learner's log entry.

    A learner whose loss or weights are not finite any more gets a `divergence`, the same on all processes, and no epoch of it
    counts or becomes the best from then on. The caller decides what follows; the other learners are not touched by it.

    Args:
        splits: each learner's splits, of one set of clips.
        learners: networks of one shape with one batch size; several of them in one process only.
        epoch: its number, from 1.
    """
    started = time.perf_counter()
    totals, steps = [{} for _ in learners], 0
    for learner in learners:
        learner.model.train()
    torch.manual_seed(_dropout_seed(learners[0].args.seed, epoch, accelerator.process_index))
    for batches in _batches(accelerator, splits, learners, epoch):
        losses = train_step(accelerator, learners, batches)
        totals = [{task: total.get(task, 0.0) + own[task] for task in own} for total, own in zip(totals, losses)]
        steps += 1
    train_losses = [{task: float(accelerator.reduce(t, "sum")) / steps for task, t in own.items()} for own in totals]
    seconds = time.perf_counter() - started
    entries = []
    for learner, own_splits, train_loss in zip(learners, splits, train_losses):
        validation = evaluate(accelerator, learner, own_splits["validation"])
        learner.divergence = learner.divergence or first_reason(
            accelerator, _divergence(learner.args, epoch, train_loss, validation)
        )
        if not learner.divergence:
            learner.scheduler.step(validation.loss)
            update_progress(learner, epoch, validation.mean_accuracy, seconds)
        entry = {"epoch": epoch, "train_loss": train_loss, "validation": validation.figures()}
        num_clips = steps * learner.args.batch_size
        entry |= {"learning_rate": learner.optimizer.param_groups[0]["lr"], "seconds": round(seconds, 4)}
        entries.append({**entry, "clips_per_s": round(min(num_clips, len(own_splits["train"])) / seconds, 1)})
    return entries


def _divergence(args: RunArguments, epoch: int, train_loss: dict[str, float], validation: Evaluation) -> str:
    """What is not finite after an epoch, and what to try; empty if all is well. It costs nothing: the figures are at hand."""
    losses = {"training": train_loss, "validation": validation.task_loss}
    wrong = [
        f"the {split} loss of {task} is {value:g}"
        for split, own in losses.items()
        for task, value in own.items()
        if not math.isfinite(value)
    ]
    if not wrong and not math.isfinite(validation.loss):  # the penalties sum over all weights
        wrong = [f"the penalties of the weights are {validation.loss:g}"]
    if not wrong:
        return ""
    precision = "" if args.mixed_precision == "no" else f" or mixed_precision no ({args.mixed_precision})"
    return (
        f"the training diverged in epoch {epoch}: {', '.join(wrong)}. Try a smaller learning_rate ({args.learning_rate:g} "
        f"here), l1 ({args.l1:g}) or l2 ({args.l2:g}){precision}."
    )


def _dropout_seed(seed: int, epoch: int, rank: int) -> int:
    """Dropout draws from here on; a continued run repeats it."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


def _batches(accelerator: Accelerator, splits: Sequence[dict[str, SplitFeatures]], learners: Sequence[Learner], epoch: int):
    streams = []
    for learner, own_splits in zip(learners, splits):
        args, train = learner.args, own_splits["train"]
        order = epoch_order(len(train), args.seed, epoch, args.batch_size, args.drop_last)
        streams.append(train.batches(args.batch_size, order, accelerator.process_index, accelerator.num_processes))
    return zip(*streams, strict=True)


def train_step(accelerator: Accelerator, learners: Sequence[Learner], batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """One update of every learner on its own batch; returns this process's part of each one's task losses."""
    with accelerator.autocast():
        losses = _losses(learners, batches)
    # Data-parallel training averages gradients over the processes: each one's part counts `num_processes` times.
    loss = accelerator.num_processes * sum(
        combine_losses(own, learner.args.loss_weights()) for own, learner in zip(losses, learners)
    )
    accelerator.backward(loss)
    for learner in learners:
        learner.network.add_penalty_gradient(learner.args.l1, learner.args.l2)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
    return [{task: loss.detach() for task, loss in own.items()} for own in losses]


def _losses(learners: Sequence[Learner], batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    if len(learners) > 1:
        return losses_together([learner.network for learner in learners], batches)
    (learner,), (batch,) = learners, batches
    return [cross_entropy_per_task(learner.model(batch.features, batch.rows), batch.labels, batch.num_labelled)]


@torch.no_grad()
def evaluate(accelerator: Accelerator, learner: Learner, split: SplitFeatures) -> Evaluation:
    """Figures of the learner's present weights on a split; every process sees all of it."""
    network = learner.network.eval()
    heads = network.folded_heads()
    counts = {task: split.num_labelled(task) for task in heads}
    sums, is_correct = dict.fromkeys(heads, 0.0), {task: [] for task in heads}
    for batch in split.batches(EVALUATION_BATCH):
        with accelerator.autocast():
            pooled = network.downstream.pool(network.gather(batch.features))
            logits = {task: linear(pooled[batch.rows[task]], *head) for task, head in heads.items()}
        losses = cross_entropy_per_task(logits, batch.labels, counts)
        for task, values in logits.items():
            sums[task] += losses[task]
            is_correct[task].append(values.argmax(dim=1) == batch.labels[task])
    joined = {task: torch.cat(parts).cpu() for task, parts in is_correct.items()}
    accuracy = {task: values.double().mean().item() for task, values in joined.items()}
    loss = combine_losses(sums, learner.args.loss_weights()) + network.penalty(learner.args.l1, learner.args.l2)
    task_loss = {task: float(value) for task, value in sums.items()}
    return Evaluation(float(loss), task_loss, accuracy, sum(accuracy.values()) / len(accuracy), joined)


def update_progress(learner: Learner, epoch: int, accuracy: float, seconds: float) -> None:
    """Count the epoch, and keep its weights if the mean of the validation accuracies is the best so far."""
    progress = learner.progress
    progress.epoch = epoch
    progress.train_seconds += seconds
    if accuracy > progress.best_accuracy:
        progress.best_epoch, progress.best_accuracy = epoch, accuracy
        learner.keep_weights()
