"""Several networks of one shape as one: their parameters stacked, every product batched over the networks.

The mathematics is `MultiTaskNetwork.forward` itself, mapped over the stack. It fills a GPU that one small network leaves
idle; on a CPU one network after another is faster (docs/search.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from wavcse.modeling_wavcse import IGNORED_LABEL, cross_entropy_per_task
from wavcse.training.features import Batch
from wavcse.training.network import MultiTaskNetwork


def losses_together(networks: Sequence[MultiTaskNetwork], batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Each network's `cross_entropy_per_task` on its own batch; gradients reach the networks' own parameters.

    The batches have one number of clips. Dropout rates may differ, but one rate is 0 in all networks or in none.
    """
    layers = torch.stack([network.gather(batch.features) for network, batch in zip(networks, batches)])
    parameters = _stacked([dict(network.named_parameters()) for network in networks])
    buffers = _stacked([dict(network.named_buffers()) for network in networks])
    rows = {task: _padded([batch.rows[task] for batch in batches], 0) for task in batches[0].rows}
    labels = {task: _padded([batch.labels[task] for batch in batches], IGNORED_LABEL) for task in batches[0].labels}
    counts = {task: torch.tensor([batch.num_labelled[task] for batch in batches]) for task in batches[0].num_labelled}

    def losses(parameters: Mapping, buffers: Mapping, layers: Tensor, rows: Mapping, labels: Mapping) -> dict[str, Tensor]:
        logits = functional_call(networks[0], {**parameters, **buffers}, (layers, rows))
        return cross_entropy_per_task(logits, labels, dict.fromkeys(labels, 1))

    sums = vmap(losses, randomness="different")(parameters, buffers, layers, rows, labels)
    return [{task: sums[task][i] / counts[task][i].clamp(min=1) for task in sums} for i in range(len(networks))]


def _stacked(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([tensors[name] for tensors in named]) for name in named[0]}


def _padded(tensors: Sequence[Tensor], value: int) -> Tensor:
    """`[M, longest]`, filled up with `value`."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)
