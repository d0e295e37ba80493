"""An encoder with a classifier on the mean over its frames, and the figures of its training.

Shapes: `B` clips, `T` frames, `D` width, `C` classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from wavcse.steps.batches import CropBatch, Group, encode_groups
from wavcse.training.fast_parts import use_linear


class ClassOutput(NamedTuple):
    """`loss`: mean cross-entropy in nats; `logits` `[B, C]`, in the order of the batch."""

    loss: Tensor
    logits: Tensor


class ClassifierNetwork(nn.Module):
    """What is fine-tuned: all of the encoder, and one linear layer on its time means."""

    def __init__(self, encoder: PreTrainedModel, num_classes: int, fast_parts: bool = True):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_classes)
        if fast_parts:
            use_linear(self.head)

    def forward(self, batch: CropBatch, seed: int) -> ClassOutput:
        """Loss and logits of a batch; `seed` is the training loop's and draws nothing here."""
        logits = self.logits(batch.groups)
        return ClassOutput(F.cross_entropy(logits, batch.labels), logits)

    def logits(self, groups: list[Group]) -> Tensor:
        """`[B, C]`, float32."""
        _, embeddings = encode_groups(self.encoder, groups)
        return self.head(embeddings).float()


def loss_of(output: ClassOutput, *_: Any) -> Tensor:
    """The loss of a batch, for the training loop."""
    return output.loss


class ClassFigures:
    """Training loss and accuracy over the updates since the line of the log before."""

    def __init__(self):
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.batches, self.clips, self.audio_s = 0, 0, 0.0

    def add(self, batch: CropBatch, output: ClassOutput) -> None:
        """Take a batch into account."""
        labels = batch.labels.to(output.logits.device)
        self.loss = self.loss + output.loss.detach().double()
        self.correct = self.correct + (output.logits.argmax(dim=1) == labels).sum()
        self.batches, self.clips, self.audio_s = self.batches + 1, self.clips + len(labels), self.audio_s + batch.seconds

    def entry(self) -> dict:
        """`train_loss` in nats and `train_accuracy`, 0 to 1; empty if every update was skipped."""
        if not self.batches:
            return {}
        return {"train_loss": float(self.loss) / self.batches, "train_accuracy": int(self.correct) / self.clips}
