"""Encoder, prediction head, quantiser and label loss as one module: the two losses of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMModel

from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.batches import Batch
from wavcse.pretraining.label_losses import LABEL_LOSSES, LabelLossOutput
from wavcse.pretraining.quantizer import RandomProjectionQuantizer
from wavcse.training.products import use_linear


class PretrainOutput(NamedTuple):
    """Losses and counts of a batch.

    Attributes:
        masked_loss: this process's part of the mean cross-entropy over all masked frames of all processes, in nats.
        label_loss: over all processes' utterances; the same on each.
        codes: this process's target codes, `[n]`; predictions: the most likely codes, `[n]`.
    """

    masked_loss: Tensor
    label_loss: LabelLossOutput
    codes: Tensor
    predictions: Tensor


class PretrainNetwork(nn.Module):
    """What is trained; `encoder` is what is kept of it.

    The embedding of an utterance is the mean of the encoder's output over its frames, from the same masked pass.
    """

    def __init__(self, args: PretrainArguments, encoder: WavLMModel):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, args.codebook_size)
        self.label_loss = LABEL_LOSSES[args.label_loss](args.margin)
        self.quantizer = RandomProjectionQuantizer(
            encoder.config,
            args.num_mels,
            args.num_cepstra,
            args.codebook_size,
            args.codebook_dim,
            args.codebook_seed,
        )
        if args.freeze_stem:
            encoder.freeze_feature_encoder()
        self.counts_labels = args.label_weight > 0  # else the label figures are for the log only
        self.label_loss.requires_grad_(self.counts_labels)
        use_linear(self.head)

    def forward(self, batch: Batch, pair_seed: int) -> PretrainOutput:
        """One pass over this process's share of a batch.

        Args:
            batch: the share, on this network's device.
            pair_seed: of the label loss's random pairs, the same on all processes.
        """
        frames = [self.encoder(group.waveforms, mask_time_indices=group.mask).last_hidden_state for group in batch.groups]
        embeddings = torch.cat([output.float().mean(dim=1) for output in frames])
        codes = torch.cat([self.quantizer(group.waveforms, group.mask) for group in batch.groups])
        logits = self.head(torch.cat([output[group.mask] for output, group in zip(frames, batch.groups)])).float()
        masked_loss = F.cross_entropy(logits, codes, reduction="sum") / batch.num_masked
        # The label loss comes last, so that its communication comes first in the backward pass of every process.
        with torch.set_grad_enabled(self.counts_labels and torch.is_grad_enabled()):
            everything = gathered(embeddings, len(batch.labels))
            label_loss = self.label_loss(everything, batch.labels, torch.Generator().manual_seed(pair_seed))
        return PretrainOutput(masked_loss, label_loss, codes, logits.argmax(dim=1))


def gathered(embeddings: Tensor, count: int) -> Tensor:
    """The `count` embeddings of all processes in the order of the batch, with gradients to the process that made them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return embeddings
    most = -(-count // torch.distributed.get_world_size())
    padded = F.pad(embeddings, (0, 0, 0, most - len(embeddings)))
    parts = differentiable.all_gather(padded.contiguous())
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]  # crop i is crop i // W of process i % W
