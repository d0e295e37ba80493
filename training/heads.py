"""Heads on cached features: the network, and what is around the steps of an epoch: order, dropout, validation, schedule.

The steps themselves are `train_accelerate.py`'s; training runs and searches share it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.composite import Scale
from wavcse.modeling_wavcse import (
    CosineHead,
    WavCSEDownstream,
    WavCSEForMultiTask,
    WavCSEHeads,
    combine_losses,
    concordance,
    losses_per_task,
    number_loss,
)
from wavcse.training.arguments import RunArguments
from wavcse.training.fast_parts import Dropout, linear, use_linear
from wavcse.training.features import FeatureBatch, PooledLayers, SplitFeatures, epoch_order
from wavcse.training.run import Learner, first_reason

EVALUATION_BATCH = 4096  # clips; evaluation keeps no gradients
RECONSTRUCTION = "layers.reconstruction"  # beside the tasks' names, which have no dot


class TrainingOutput(NamedTuple):
    """What a network with a decoder or cut embeddings gives.

    Attributes:
        logits: task -> `[B, C]`.
        error: of the decoder: the squared error of the decoded scaled layers, a mean over their K * D numbers, summed over the
            clips; `None` without one.
        cuts: logits of the embedding's first numbers, one mapping per Matryoshka size.
    """

    logits: dict[str, Tensor]
    error: Tensor | None
    cuts: list[dict[str, Tensor]]


NetworkOutput = dict[str, Tensor] | TrainingOutput


class MultiTaskNetwork(nn.Module):
    """`WavCSEDownstream` and `WavCSEHeads` in sequence: `[B, K, D]` -> `{task: [B, C]}`; weights PyTorch's defaults.

    With `fast_parts` (`training/fast_parts.py`) it computes the same in another way. With a decoder, which serves training
    alone, it also makes the layers out of the embedding again. With `matryoshka_sizes` the heads also read the first numbers
    of the embedding.
    """

    def __init__(
        self,
        config: WavCSEConfig,
        fast_parts: bool = True,
        has_decoder: bool = False,
        matryoshka_sizes: Sequence[int] = (),
    ):
        super().__init__()
        self.matryoshka_sizes = tuple(matryoshka_sizes)
        self.downstream = WavCSEDownstream(config)
        self.heads = WavCSEHeads(config)
        num_layers = len(config.selected_layers)
        self.decoder = nn.Linear(config.embedding_size, num_layers * config.pooled_size) if has_decoder else None
        self.number_losses = {name: task["loss"] for name, task in config.tasks.items() if task["kind"] == "regression"}
        self.fast_parts = fast_parts
        if fast_parts:
            self.downstream.dropout = Dropout(config.layer_dropout)
            self.heads.dropout = Dropout(config.embedding_dropout)
            use_linear(self)

    def forward(self, features: PooledLayers | Tensor, rows: Mapping[str, Tensor] | None = None) -> NetworkOutput:
        """Logits of all clips, or of task t for the clips `rows[t]` only; `features` may be what `gather` returned.

        Of a network with a decoder or Matryoshka sizes a `TrainingOutput`.
        """
        layers = self.downstream.scaled(self.gather(features) if isinstance(features, PooledLayers) else features)
        embeddings = self.downstream.project(layers)
        logits = self.heads(embeddings, rows)
        if not self.is_extended:
            return logits
        error = None
        if self.decoder is not None:
            error = (self.decoder(embeddings).float() - layers.flatten(1)).square().mean(dim=1).sum()
        cuts = [cut_logits(self.heads, embeddings, size, rows) for size in self.matryoshka_sizes]
        return TrainingOutput(logits, error, cuts)

    @property
    def is_extended(self) -> bool:
        """Whether training wants more than logits of the whole embedding."""
        return self.decoder is not None or bool(self.matryoshka_sizes)

    def gather(self, features: PooledLayers) -> Tensor:
        """The clips' layers from their table: `[B, K, D]`; as a fast part `[B, D]`, a linear pooling applied here.

        Layers that are scaled are pooled afterwards, as they are, and a decoder needs them one by one.
        """
        pooling = self.downstream.layer_pooling
        if not (self.fast_parts and pooling.is_linear) or self.downstream.is_scaled or self.decoder is not None:
            return features.stacked()
        return features.averaged(pooling.layer_weights.to(features.table.device))

    def folded(self) -> Callable[[PooledLayers, Mapping[str, Tensor]], dict[str, Tensor]]:
        """`forward` without dropout, FC2 and each linear head made one map of the pooled layers, `[C, 512]`."""
        last = self.downstream.embedding_projection
        whole = {task: head for task, head in self.heads.tasks.items() if isinstance(head, CosineHead)}
        heads = {
            task: (linear(head.weight, last.weight.T), linear(last.bias, head.weight, head.bias))
            for task, head in self.heads.tasks.items()
            if task not in whole
        }

        def logits(features: PooledLayers, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
            pooled = self.downstream.pool(self.downstream.scaled(self.gather(features)))
            embeddings = last(pooled) if whole else None
            return {
                task: head(embeddings[rows[task]]) if task in whole else linear(pooled[rows[task]], *heads[task])
                for task, head in self.heads.tasks.items()
            }

        return logits

    def penalty(self, l1: float, l2: float) -> Tensor:
        """`l1 sum |w| + l2 sum w^2` over all parameters, biases and heads too (as the authors' code does); has a gradient."""
        return sum(l1 * weight.abs().sum() + l2 * weight.square().sum() for weight in self.parameters())

    @torch.no_grad()
    def fast_penalty(self, l1: float, l2: float) -> Tensor:
        """The value of `penalty`, all parameters at once."""
        absolute, square = (torch.stack(torch._foreach_norm(list(self.parameters()), order)) for order in (1, 2))
        return l1 * absolute.sum() + l2 * square.square().sum()

    @torch.no_grad()
    def add_penalty_gradient(self, l1: float, l2: float) -> None:
        """Add the gradient of `penalty` to that of every parameter: in closed form, for no graph has to hold the weights."""
        weights = [weight for weight in self.parameters() if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        torch._foreach_add_(gradients, weights, alpha=2 * l2)
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=l1)


def cut_logits(
    heads: WavCSEHeads, embeddings: Tensor, size: int, rows: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Logits of the first `size` numbers of embeddings `[B, E]`, as `WavCSEHeads.forward` gives those of all.

    A head is cut to its first `size` columns and keeps its bias: MRL-E of Kusupati et al. 2022, one set of weights for all
    sizes. Dropout is drawn for every size by itself.
    """
    first = heads.dropout(embeddings[:, :size].contiguous())
    return {
        name: functional_call(head, {"weight": head.weight[:, :size]}, (first if rows is None else first[rows[name]],))
        for name, head in heads.tasks.items()
    }


def every_logits(output: NetworkOutput) -> list[dict[str, Tensor]]:
    """The logits of the whole embedding, then of each Matryoshka size."""
    return [output.logits, *output.cuts] if isinstance(output, TrainingOutput) else [output]


def losses_of(
    network: MultiTaskNetwork,
    output: NetworkOutput,
    labels: Mapping[str, Tensor],
    num_labelled: Mapping[str, int | Tensor],
    num_clips: int,
) -> dict[str, Tensor]:
    """What is to be minimised: `losses_per_task`, and with a decoder its mean error under `RECONSTRUCTION`.

    With Matryoshka sizes a task's loss is the mean of those of all sizes, the whole embedding among them.

    Args:
        num_labelled, num_clips: of the whole batch over all processes.
    """
    by_size = [
        losses_per_task(logits, labels, num_labelled, network.number_losses, network.heads.margins)
        for logits in every_logits(output)
    ]
    losses = {task: sum(own[task] for own in by_size) / len(by_size) for task in by_size[0]}
    error = output.error if isinstance(output, TrainingOutput) else None
    return losses if error is None else {**losses, RECONSTRUCTION: error / num_clips}


def total_loss(losses: Mapping[str, Tensor], args: RunArguments) -> Tensor:
    """The tasks' losses as `combine_losses` weighs them, plus `reconstruction_weight` times the decoder's."""
    tasks = {task: loss for task, loss in losses.items() if task != RECONSTRUCTION}
    total = combine_losses(tasks, args.loss_weights())
    return total + args.reconstruction_weight * losses[RECONSTRUCTION] if RECONSTRUCTION in losses else total


@dataclass
class EpochProgress:
    """How far a run is; saved with every checkpoint. `epoch` counts finished epochs."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -math.inf
    train_seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a split.

    `loss` has the penalties in it, as it drives the schedule; `is_correct` task -> bool, one per clip with a label for it, in
    the order of the split, on the CPU. Of regression tasks `ccc` and, in the unit of the labels, `mae`, over the whole split,
    and `outputs`, standardised numbers per clip as those of `is_correct`; `mean_accuracy` is the mean over all tasks, of
    accuracies and CCCs.
    """

    loss: float
    task_loss: dict[str, float]
    accuracy: dict[str, float]
    mean_accuracy: float
    is_correct: dict[str, Tensor]
    ccc: dict[str, float] = field(default_factory=dict)
    mae: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def figures(self) -> dict:
        """All but the single clips, for a log; without figures of numbers where there are none."""
        left_out = {"is_correct", "outputs", *(name for name in ("ccc", "mae") if not getattr(self, name))}
        return {name: value for name, value in vars(self).items() if name not in left_out}


def new_learner(args: RunArguments, config: WavCSEConfig, device: torch.device) -> Learner:
    """An untrained model of the recipe, its weights drawn from the recipe's seed."""
    torch.manual_seed(args.seed)
    has_decoder = args.reconstruction_weight > 0
    network = MultiTaskNetwork(config, args.fast_parts, has_decoder, args.matryoshka_sizes).to(device)
    network.downstream.requires_grad_(not args.freeze_embedding)
    optimizer = AdamW(network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    scheduler = ReduceLROnPlateau(optimizer, "min", factor=args.scheduler_factor, patience=args.scheduler_patience)
    return Learner(args, network, network, optimizer, scheduler, EpochProgress())


def begin_epoch(accelerator: Accelerator, learner: Learner, epoch: int) -> None:
    """Dropout is on, and draws from (seed, epoch, process), so that a continued run repeats it."""
    learner.model.train()
    seed = np.random.SeedSequence([learner.args.seed, epoch, accelerator.process_index])
    torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def epoch_batches(accelerator: Accelerator, args: RunArguments, train: SplitFeatures, epoch: int) -> Iterator[FeatureBatch]:
    """This process's part of every batch, in the order of (seed, epoch)."""
    order = epoch_order(len(train), args.seed, epoch, args.batch_size, args.drop_last)
    return train.batches(args.batch_size, order, accelerator.process_index, accelerator.num_processes)


def end_epoch(
    accelerator: Accelerator,
    learner: Learner,
    splits: Mapping[str, SplitFeatures],
    epoch: int,
    train_loss: dict[str, float],
    steps: int,
    seconds: float,
) -> dict:
    """Validate, drive the schedule, keep the best weights; returns the log's entry.

    A learner whose loss or weights are not finite any more gets a `divergence`, the same on all processes, and no epoch of it
    counts or becomes the best from then on. The caller decides what follows.
    """
    validation = evaluate(accelerator, learner, splits["validation"])
    reason = first_reason(accelerator, _divergence(learner.args, epoch, train_loss, validation))
    learner.divergence = learner.divergence or reason
    if not learner.divergence:
        learner.scheduler.step(validation.loss)
        update_progress(learner, epoch, validation.mean_accuracy, seconds)
    entry = {"epoch": epoch, "train_loss": train_loss, "validation": validation.figures()}
    entry |= {"learning_rate": learner.optimizer.param_groups[0]["lr"], "seconds": round(seconds, 4)}
    num_clips = min(steps * learner.args.batch_size, len(splits["train"]))
    return {**entry, "clips_per_s": round(num_clips / seconds, 1)}


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


@torch.no_grad()
def evaluate(accelerator: Accelerator, learner: Learner, split: SplitFeatures) -> Evaluation:
    """Figures of the learner's present weights on a split; every process sees all of it."""
    args, network = learner.args, learner.network.eval()
    predict = network.folded() if network.fast_parts and not network.is_extended else network
    penalty = network.fast_penalty if network.fast_parts else network.penalty
    counts = {task: split.num_labelled(task) for task in network.heads.tasks}
    number_losses = args.number_losses()
    numbers = {task: ([], []) for task in number_losses}  # outputs of every size, targets: CCC is one of the whole split
    sums, is_correct = {}, {task: [] for task in counts if task not in numbers}
    for batch in split.batches(EVALUATION_BATCH):
        with accelerator.autocast():
            output = predict(batch.features, batch.rows)
        losses = losses_of(network, output, batch.labels, counts, len(split))
        sums = {task: sums.get(task, 0.0) + loss for task, loss in losses.items()}
        by_size = every_logits(output)
        for task, values in by_size[0].items():
            if task in numbers:
                outputs = torch.cat([own[task] for own in by_size], dim=1)
                for parts, part in zip(numbers[task], (outputs, batch.labels[task])):
                    parts.append(part.double())
            else:
                is_correct[task].append(values.argmax(dim=1) == batch.labels[task])
    joined = {task: torch.cat(parts).cpu() for task, parts in is_correct.items()}
    accuracy = {task: values.double().mean().item() for task, values in joined.items()}
    ccc, mae, outputs = {}, {}, {}
    for task, loss in number_losses.items():
        by_size, targets = map(torch.cat, numbers[task])
        sums[task] = sum(number_loss(own, targets, loss) for own in by_size.unbind(1)) / by_size.shape[1]
        own = by_size[:, 0]
        ccc[task] = concordance(own[:, None], targets[:, None]).item()
        mae[task] = split.scales[task].std * (own - targets).abs().mean().item()
        outputs[task] = own.cpu()
    scores = [*accuracy.values(), *ccc.values()]
    loss = total_loss(sums, args) + penalty(args.l1, args.l2)
    task_loss = {task: float(value) for task, value in sums.items()}
    return Evaluation(float(loss), task_loss, accuracy, sum(scores) / len(scores), joined, ccc, mae, outputs)


def update_progress(learner: Learner, epoch: int, accuracy: float, seconds: float) -> None:
    """Count the epoch, and keep its weights if the mean of the validation accuracies is the best so far."""
    progress = learner.progress
    progress.epoch = epoch
    progress.train_seconds += seconds
    if accuracy > progress.best_accuracy:
        progress.best_epoch, progress.best_accuracy = epoch, accuracy
        learner.keep_weights()


def model_config(
    args: RunArguments,
    upstream_config: Mapping,
    classes: Mapping[str, list[str]],
    layer_fields: Mapping | None = None,
    scales: Mapping[str, Scale] | None = None,
) -> WavCSEConfig:
    """The model to train: the recipe's sizes, the tasks' labels, the cache's upstream and what it did (`layer_fields`).

    Args:
        classes, scales: as of `CompositeSet`.
    """
    weights, numbers, losses = args.loss_weights(), args.number_losses(), args.task_losses()
    tasks: dict[str, dict] = {}
    for name, labels in classes.items():
        if name in numbers:
            own = {"kind": "regression", "loss": numbers[name], **(scales or {})[name]._asdict()}
        else:
            own = {"kind": "classification", "labels": labels, **losses[name]}
        tasks[name] = {**own, "loss_weight": weights[name]}
    return WavCSEConfig(upstream_config=upstream_config, **(layer_fields or {}), **args.model_fields(), tasks=tasks)


def load_network(model: WavCSEForMultiTask, weights: dict[str, Tensor]) -> None:
    """Put trained weights of a `MultiTaskNetwork` into the complete model, which has no decoder."""
    parts = nn.ModuleDict({"downstream": model.wavcse.downstream, "heads": model.heads})
    parts.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("decoder.")})
