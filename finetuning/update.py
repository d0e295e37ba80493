"""One update of several streams: a backward pass for each, and their gradients as one (Vaessen and van Leeuwen 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from wavcse.finetuning.arguments import GradientSettings
from wavcse.finetuning.gradients import clip, combined, cosine, norm_of
from wavcse.finetuning.losses import TaskOutput
from wavcse.finetuning.streams import TaskBatch
from wavcse.training.run import Learner

Gradients = list[Tensor | None]  # of the learner's parameters, in their order; None where a loss does not reach


class StreamGradients:
    """How `steps.loop.update` gets its gradient from a batch of every stream.

    Gradients are summed over processes here and not by data-parallel wrappers, which know one backward pass per update alone.
    """

    def __init__(self, settings: GradientSettings):
        self.settings = settings

    def __call__(
        self, accelerator: Accelerator, learner: Learner, batches: Sequence[TaskBatch], loss_of: Callable, seed: int
    ) -> tuple[list[TaskOutput], Tensor, Tensor]:
        """Outputs with their norms and cosines, the sum of the losses, and the norm of the gradient, which parameters have."""
        how, parameters = self.settings, [one for one in learner.network.parameters() if one.requires_grad]
        outputs, gradients, losses = [], [], []
        for batch in batches:
            with accelerator.autocast():  # the network is no wrapper of accelerate's, which would do this
                output = learner.model(batch.to(accelerator.device), seed)
            losses.append(loss_of(output, learner.args, learner.progress.step, accelerator.num_processes))
            accelerator.backward(losses[-1])
            own = taken(parameters)
            summed_over_processes(accelerator, own)
            norm = norm_of(own)
            if how.clip == "each":
                clip(own, how.kind, how.max)
            outputs.append(output._replace(norm=norm))
            gradients.append(own)
        outputs = self._with_cosines(batches, outputs, gradients)
        total = combined(gradients, how.combine)
        norm = norm_of(total)
        if how.clip == "total":
            clip(total, how.kind, how.max)
        for parameter, gradient in zip(parameters, total):
            parameter.grad = gradient
        return outputs, torch.stack([loss.detach() for loss in losses]).sum(), norm

    def _with_cosines(
        self, batches: Sequence[TaskBatch], outputs: Sequence[TaskOutput], gradients: Sequence[Gradients]
    ) -> list[TaskOutput]:
        found: list[dict[str, Tensor]] = [{} for _ in outputs]
        for one, other in itertools.combinations(range(len(batches)), 2):
            if (value := cosine(gradients[one], gradients[other])) is not None:
                found[one][batches[other].stream] = value
        return [output._replace(cosines=own) for output, own in zip(outputs, found)]


def taken(parameters: Sequence[torch.nn.Parameter]) -> Gradients:
    """The gradients of parameters, which have none afterwards."""
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def summed_over_processes(accelerator: Accelerator, gradients: Gradients) -> None:
    """Sum gradients over all processes, in place; the same ones are missing on each."""
    if accelerator.num_processes == 1:
        return
    given = [gradient for gradient in gradients if gradient is not None]
    if not given:
        return
    flat = torch.cat([gradient.flatten() for gradient in given])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(given, flat.split([gradient.numel() for gradient in given])):
        gradient.copy_(part.view_as(gradient))
