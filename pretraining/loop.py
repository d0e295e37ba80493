"""One update, and the figures of many: what `pretrain_accelerate.py` runs, and with a loss of its own `wavcse finetune`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.batches import Batch
from wavcse.pretraining.network import PretrainOutput
from wavcse.pretraining.schedule import learning_rate_factor
from wavcse.pretraining.step_arguments import StepArguments
from wavcse.training.loop import all_finite, first_reason


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint. `step` counts finished updates, those skipped with them."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    train_seconds: float = 0.0


@dataclass
class Learner:
    """A network in training.

    `network` is the bare one; `model` is it, or what Accelerate made of it (data-parallel with several processes).
    """

    args: StepArguments
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    progress: Progress


def new_learner(args: StepArguments, network: nn.Module) -> Learner:
    """AdamW over everything that is trained; weight decay on matrices only."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=args.learning_rate, betas=tuple(args.adam_betas), fused=True)
    scheduler = LambdaLR(optimizer, learning_rate_factor(args.warmup_steps, args.max_steps, args.decay))
    return Learner(args, network, network, optimizer, scheduler, Progress())


def update(
    accelerator: Accelerator,
    learner: Learner,
    batches: Sequence[Batch],
    figures: BatchFigures,
    loss_of: Callable[[Any, Any, int, int], Tensor] | None = None,
) -> None:
    """One update from the batches of one step (gradients accumulate over them); a gradient that is not finite changes nothing.

    Args:
        loss_of: (output of the network, settings, step, number of processes) -> loss; `None` = `total_loss`.

    Raises:
        FloatingPointError: `max_skipped_steps` updates in a row had such a gradient.
    """
    args, progress = learner.args, learner.progress
    step = progress.step
    learner.model.train()
    seed = np.random.SeedSequence([args.seed, step])
    pair_seed, dropout_seed = (int(word >> 2) for word in seed.generate_state(2, np.uint64))
    torch.manual_seed(dropout_seed + accelerator.process_index)
    outputs = []
    for part, batch in enumerate(batches):
        is_last = part == len(batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(learner.model):
            output = learner.model(batch.to(accelerator.device), pair_seed + part)
            loss = (loss_of or total_loss)(output, args, step, accelerator.num_processes)
            accelerator.backward(loss / len(batches))
        outputs.append(output)
    norm = accelerator.clip_grad_norm_(learner.network.parameters(), args.max_grad_norm)
    if torch.isfinite(norm):
        learner.optimizer.step()
        progress.skipped_in_row = 0
        for batch, output in zip(batches, outputs):
            figures.add(batch, output)
    else:
        progress.skipped, progress.skipped_in_row = progress.skipped + 1, progress.skipped_in_row + 1
    learner.optimizer.zero_grad()
    learner.scheduler.step()
    progress.step += 1
    if progress.skipped_in_row >= args.max_skipped_steps:
        raise FloatingPointError(
            f"{progress.skipped_in_row} steps in a row up to step {progress.step} had a loss or gradient that is not finite "
            f"(the last loss is {float(loss.detach()):g}). {_what_to_try(args)}"
        )


def refuse_divergence(accelerator: Accelerator, learner: Learner, figures: Mapping[str, Any]) -> None:
    """Called before figures are logged and weights are kept: neither may hold what is not finite.

    Every update has been looked at already, but its step can throw the weights anywhere. All processes must get here.

    Raises:
        FloatingPointError: on all processes, if anything is not finite on one.
    """
    wrong = [
        f"{name} is {value:g}" for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    wrong += [] if all_finite(learner.network.parameters()) else ["weights are not finite"]
    reason = first_reason(accelerator, ", ".join(wrong))
    if reason:
        raise FloatingPointError(
            f"the training diverged by step {learner.progress.step}: {reason}. {_what_to_try(learner.args)}"
        )


def _what_to_try(args: StepArguments) -> str:
    rest = "" if args.mixed_precision == "no" else f", or train with mixed_precision no ({args.mixed_precision} here)"
    label = f" or label_weight ({args.label_weight:g})" if getattr(args, "label_weight", 0) else ""
    return f"Lower learning_rate ({args.learning_rate:g} here){label}{rest}; the last checkpoint is from before."


def total_loss(output: PretrainOutput, args: PretrainArguments, step: int, num_processes: int = 1) -> Tensor:
    """L_SSL + lambda L_label (Eq. 3), such that the mean over processes of its gradient is that of the whole batch."""
    # Each process has its part of the masked loss, but all of the label loss.
    return num_processes * output.masked_loss + label_weight_at(args, step) * output.label_loss.loss


def label_weight_at(args: PretrainArguments, step: int) -> float:
    """Lambda at a step (from 0)."""
    return args.label_weight if step >= args.label_loss_start else 0.0


class BatchFigures(Protocol):
    """An account of the batches of successful updates."""

    def add(self, batch: Batch, output: Any) -> None:
        """Take a batch, and the network's output for it, into account."""
        ...


class Figures:
    """What a line of the log says, over the updates since the line before it."""

    def __init__(self, codebook_size: int, device: torch.device):
        self.sums: dict[str, Tensor | float] = {}
        self.code_counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)
        self.prediction_counts = torch.zeros_like(self.code_counts)
        self.batches, self.audio_s = 0, 0.0

    def add(self, batch: Batch, output: PretrainOutput) -> None:
        """Take a batch into account."""
        size = len(self.code_counts)
        self.code_counts += torch.bincount(output.codes, minlength=size)
        self.prediction_counts += torch.bincount(output.predictions, minlength=size)
        sums = {"masked_loss": output.masked_loss, "correct": (output.codes == output.predictions).sum()}
        sums |= output.label_loss._asdict()
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.batches += 1
        self.audio_s += batch.seconds

    def entry(self, accelerator: Accelerator, label_weight: float) -> dict:
        """The means over all processes.

        `masked_loss`, `code_entropy` (of the targets, the loss of a predictor that knows their frequencies only) in nats;
        perplexities in codes; `label_loss` without its weight; distances in units of pi. Empty if every update was skipped.
        """
        counts = accelerator.reduce(torch.stack([self.code_counts, self.prediction_counts]), "sum")
        if not self.batches:
            return {}
        sums = {name: float(accelerator.reduce(value, "sum")) for name, value in self.sums.items()}
        shared = self.batches * accelerator.num_processes  # every process has the same label figures
        masked_loss, label_loss = sums["masked_loss"] / self.batches, sums["loss"] / shared
        entropy, prediction_entropy = (entropy_of(one) for one in counts)
        return {
            "loss": masked_loss + label_weight * label_loss,
            "masked_loss": masked_loss,
            "label_loss": label_loss,
            "masked_accuracy": sums["correct"] / int(counts[0].sum()),
            "code_entropy": entropy,
            "code_perplexity": float(np.exp(entropy)),
            "prediction_perplexity": float(np.exp(prediction_entropy)),
            **{name: sums[name] / shared for name in ("positive_distance", "negative_distance", "active_share")},
            "masked_frames": int(counts[0].sum()),
        }


def entropy_of(counts: Tensor) -> float:
    """Entropy in nats of a distribution given by counts."""
    share = counts.double() / counts.sum()
    return float(-torch.xlogy(share, share).sum())
