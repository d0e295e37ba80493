"""One update of an encoder in training, whatever its loss: what `pretrain_accelerate.py` and `wavcse finetune` run."""

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

from wavcse.steps.arguments import UpdateArguments, learning_rate_factor
from wavcse.steps.batches import CropBatch
from wavcse.training.run import Learner, all_finite, first_reason


@dataclass
class StepProgress:
    """How far a run is; saved with every checkpoint. `step` counts finished updates, those skipped with them."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    train_seconds: float = 0.0


def new_learner(
    args: UpdateArguments,
    network: nn.Module,
    rates: Mapping[nn.Module, float] | None = None,
    new_scheduler: Callable[[Optimizer], Any] | None = None,
) -> Learner:
    """AdamW over everything that is trained; weight decay on matrices only.

    Args:
        rates: parts of the network -> their learning rate, in place of the settings'.
        new_scheduler: optimiser -> scheduler, in place of the one of the settings' `decay`.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    own = {weight: rate for part, rate in (rates or {}).items() for weight in part.parameters()}
    groups = []
    for rate in dict.fromkeys([args.learning_rate, *own.values()]):
        some = [weight for weight in trained if own.get(weight, args.learning_rate) == rate]
        groups += [
            {"params": [weight for weight in some if weight.dim() > 1], "weight_decay": args.weight_decay, "lr": rate},
            {"params": [weight for weight in some if weight.dim() <= 1], "weight_decay": 0.0, "lr": rate},
        ]
    optimizer = AdamW(groups, lr=args.learning_rate, betas=tuple(args.adam_betas), fused=True)
    if new_scheduler is not None:
        scheduler = new_scheduler(optimizer)
    else:
        scheduler = LambdaLR(optimizer, learning_rate_factor(args.warmup_steps, args.max_steps, args.decay))
    return Learner(args, network, network, optimizer, scheduler, StepProgress())


def update(
    accelerator: Accelerator,
    learner: Learner,
    batches: Sequence[CropBatch],
    figures: BatchFigures,
    loss_of: Callable[[Any, Any, int, int], Tensor],
    gradients_of: GradientsOf | None = None,
) -> None:
    """One update from the batches of one step; a gradient that is not finite changes nothing.

    Args:
        loss_of: (output of the network, settings, step, number of processes) -> loss.
        gradients_of: how the batches' gradients come into the parameters; they accumulate (`accumulated`) if not given.

    Raises:
        FloatingPointError: `max_skipped_steps` updates in a row had such a gradient.
    """
    args, progress = learner.args, learner.progress
    step = progress.step
    learner.model.train()
    seed = np.random.SeedSequence([args.seed, step])
    pair_seed, dropout_seed = (int(word >> 2) for word in seed.generate_state(2, np.uint64))
    torch.manual_seed(dropout_seed + accelerator.process_index)
    outputs, loss, norm = (gradients_of or accumulated)(accelerator, learner, batches, loss_of, pair_seed)
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


def accumulated(
    accelerator: Accelerator,
    learner: Learner,
    batches: Sequence[CropBatch],
    loss_of: Callable[[Any, Any, int, int], Tensor],
    seed: int,
) -> tuple[list[Any], Tensor, Tensor]:
    """The mean gradient over batches, scaled down to `max_grad_norm`: outputs, the last loss, and the norm before."""
    args, outputs = learner.args, []
    for part, batch in enumerate(batches):
        is_last = part == len(batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(learner.model):
            output = learner.model(batch.to(accelerator.device), seed + part)
            loss = loss_of(output, args, learner.progress.step, accelerator.num_processes)
            accelerator.backward(loss / len(batches))
        outputs.append(output)
    return outputs, loss, accelerator.clip_grad_norm_(learner.network.parameters(), args.max_grad_norm)


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


def _what_to_try(args: UpdateArguments) -> str:
    rest = "" if args.mixed_precision == "no" else f", or train with mixed_precision no ({args.mixed_precision} here)"
    label = f" or label_weight ({args.label_weight:g})" if getattr(args, "label_weight", 0) else ""
    return f"Lower learning_rate ({args.learning_rate:g} here){label}{rest}; the last checkpoint is from before."


# (accelerator, learner, batches, loss_of, seed) -> outputs of the batches, a loss for messages, norm of the gradient
GradientsOf = Callable[[Accelerator, Learner, Sequence[Any], Callable, int], tuple[list[Any], Tensor, Tensor]]


class BatchFigures(Protocol):
    """An account of the batches of successful updates."""

    def add(self, batch: CropBatch, output: Any) -> None:
        """Take a batch, and the network's output for it, into account."""
        ...
