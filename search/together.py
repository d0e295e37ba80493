"""Several networks of one shape as one: their parameters stacked, every product batched over the networks.

The mathematics is `MultiTaskNetwork.forward` itself, mapped over the stack. It fills a GPU that one small network leaves
idle; on a CPU one network after another is faster (docs/search.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call, vmap

from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.training.features import FeatureBatch, SplitFeatures
from wavcse.training.heads import (
    RECONSTRUCTION,
    MultiTaskNetwork,
    begin_epoch,
    end_epoch,
    epoch_batches,
    losses_of,
    total_loss,
)
from wavcse.training.run import Learner


def train_epoch_together(
    accelerator: Accelerator, learners: Sequence[Learner], splits: Sequence[Mapping[str, SplitFeatures]], epoch: int
) -> list[dict]:
    """`train_epoch` of several learners in step, each over its own order of the clips; returns their entries.

    Args:
        learners: of one shape and one batch size, in one process.
        splits: each learner's, of one set of clips.
    """
    started = time.perf_counter()
    for learner in reversed(learners):
        begin_epoch(accelerator, learner, epoch)  # one stream of dropout for all: the first learner seeds it last
    totals, steps = [{} for _ in learners], 0
    streams = [epoch_batches(accelerator, learner.args, own["train"], epoch) for learner, own in zip(learners, splits)]
    for batches in zip(*streams, strict=True):
        losses = train_step_together(accelerator, learners, batches)
        totals = [{task: total.get(task, 0.0) + own[task] for task in own} for total, own in zip(totals, losses)]
        steps += 1
    train_losses = [{task: float(own) / steps for task, own in total.items()} for total in totals]
    seconds = time.perf_counter() - started
    return [
        end_epoch(accelerator, learner, own, epoch, train_loss, steps, seconds)
        for learner, own, train_loss in zip(learners, splits, train_losses)
    ]


def train_step_together(
    accelerator: Accelerator, learners: Sequence[Learner], batches: Sequence[FeatureBatch]
) -> list[dict[str, Tensor]]:
    """`train_step` of every learner on its own batch."""
    with accelerator.autocast():
        losses = losses_together([learner.network for learner in learners], batches)
    accelerator.backward(sum(total_loss(own, learner.args) for own, learner in zip(losses, learners)))
    for learner in learners:
        learner.network.add_penalty_gradient(learner.args.l1, learner.args.l2)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
    return [{task: loss.detach() for task, loss in own.items()} for own in losses]


def losses_together(networks: Sequence[MultiTaskNetwork], batches: Sequence[FeatureBatch]) -> list[dict[str, Tensor]]:
    """Each network's `losses_of` on its own batch; gradients reach the networks' own parameters.

    The batches have one number of clips. Dropout rates may differ, but one rate is 0 in all networks or in none.
    """
    layers = torch.stack([network.gather(batch.features) for network, batch in zip(networks, batches)])
    parameters = _stacked([dict(network.named_parameters()) for network in networks])
    buffers = _stacked([dict(network.named_buffers()) for network in networks])
    rows = {task: _padded([batch.rows[task] for batch in batches], 0) for task in batches[0].rows}
    labels = {task: _padded([batch.labels[task] for batch in batches], IGNORED_LABEL) for task in batches[0].labels}
    # Labels that pad a task are ignored. Losses are summed (a count of 1) and then divided by the real counts.
    counts = {task: torch.tensor([batch.num_labelled[task] for batch in batches]) for task in batches[0].num_labelled}
    counts[RECONSTRUCTION] = torch.tensor([batch.num_clips for batch in batches])

    def losses(parameters: Mapping, buffers: Mapping, layers: Tensor, rows: Mapping, labels: Mapping) -> dict[str, Tensor]:
        output = functional_call(networks[0], {**parameters, **buffers}, (layers, rows))
        return losses_of(networks[0], output, labels, dict.fromkeys(labels, 1), 1)

    sums = vmap(losses, randomness="different")(parameters, buffers, layers, rows, labels)
    return [{task: sums[task][i] / counts[task][i].clamp(min=1) for task in sums} for i in range(len(networks))]


def _stacked(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([tensors[name] for tensors in named]) for name in named[0]}


def _padded(tensors: Sequence[Tensor], value: int) -> Tensor:
    """`[M, longest]`, padded with `value`."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)
