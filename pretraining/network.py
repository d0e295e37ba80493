"""Encoder, prediction head, quantiser and label loss as one module: the losses of a batch, their sum, and their figures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.label_losses import LABEL_LOSSES, LabelLossOutput
from wavcse.pretraining.quantizer import RandomProjectionQuantizer
from wavcse.steps.batches import CropBatch, encode_groups, gathered
from wavcse.steps.encoder import freeze_stem
from wavcse.training.fast_parts import use_linear


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

    def __init__(self, args: PretrainArguments, encoder: PreTrainedModel):
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
            freeze_stem(encoder)
        self.counts_labels = args.label_weight > 0  # else the label figures are for the log only
        self.label_loss.requires_grad_(self.counts_labels)
        if args.fast_parts:
            use_linear(self.head)

    def forward(self, batch: CropBatch, pair_seed: int) -> PretrainOutput:
        """One pass over this process's share of a batch.

        Args:
            batch: the share, on this network's device.
            pair_seed: of the label loss's random pairs, the same on all processes.
        """
        frames, embeddings = encode_groups(self.encoder, batch.groups)
        codes = torch.cat([self.quantizer(group.waveforms, group.mask) for group in batch.groups])
        logits = self.head(torch.cat([output[group.mask] for output, group in zip(frames, batch.groups)])).float()
        masked_loss = F.cross_entropy(logits, codes, reduction="sum") / batch.num_masked
        # The label loss comes last, so that its communication comes first in the backward pass of every process.
        with torch.set_grad_enabled(self.counts_labels and torch.is_grad_enabled()):
            everything = gathered(embeddings, len(batch.labels))
            label_loss = self.label_loss(everything, batch.labels, torch.Generator().manual_seed(pair_seed))
        return PretrainOutput(masked_loss, label_loss, codes, logits.argmax(dim=1))


def total_loss(output: PretrainOutput, args: PretrainArguments, step: int, num_processes: int = 1) -> Tensor:
    """L_SSL + lambda L_label (Eq. 3), such that the mean over processes of its gradient is that of the whole batch."""
    # Each process has its part of the masked loss, but all of the label loss.
    return num_processes * output.masked_loss + label_weight_at(args, step) * output.label_loss.loss


def label_weight_at(args: PretrainArguments, step: int) -> float:
    """Lambda at a step (from 0)."""
    return args.label_weight if step >= args.label_loss_start else 0.0


class Figures:
    """What a line of the log says, over the updates since the line before it."""

    def __init__(self, codebook_size: int, device: torch.device):
        self.sums: dict[str, Tensor | float] = {}
        self.code_counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)
        self.prediction_counts = torch.zeros_like(self.code_counts)
        self.batches, self.audio_s = 0, 0.0

    def add(self, batch: CropBatch, output: PretrainOutput) -> None:
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
