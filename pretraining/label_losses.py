"""The losses of LASR on utterance embeddings and their labels (Vashishth et al. 2023, section 3).

The paper sums over utterances; here a loss is the mean over the anchors that have a positive (another utterance of the same
label) and a negative (one of another label), so that the weight does not hang on the batch size. Utterances without a label
are in no set.

Shapes: `B` utterances, `D` their size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcse.modeling_wavcse import IGNORED_LABEL

CLAMP = 1e-6  # arccos has an infinite slope at +-1


class LabelLossOutput(NamedTuple):
    """A label loss and what it saw: scalars.

    `positive_distance` and `negative_distance` are means over anchors of the angular distance to the farthest positive and to
    the closest negative; `active_share` is the share of anchors whose triplet has a gradient (of all anchors for GE2E).
    """

    loss: Tensor
    positive_distance: Tensor
    negative_distance: Tensor
    active_share: Tensor


def cosine_matrix(embeddings: Tensor) -> Tensor:
    """Cosine similarity of all pairs, `[B, D]` -> `[B, B]`; a zero vector is similar to nothing (0)."""
    unit = F.normalize(embeddings, dim=1)
    return unit @ unit.T


def angular_distance(cosine: Tensor) -> Tensor:
    """`arccos(cosine) / pi`, in [0, 1]; clamped, so that the gradient is finite at identical and at opposite vectors."""
    return torch.arccos(cosine.clamp(-1 + CLAMP, 1 - CLAMP)) / math.pi


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs are positives (same label, not itself) and which negatives: two bool `[B, B]`."""
    is_labelled = labels != IGNORED_LABEL
    both = is_labelled[:, None] & is_labelled[None, :]
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return both & same & ~itself, both & ~same


class LabelLoss(nn.Module, ABC):
    """What all label losses share: which anchors count, and the hardest distances.

    Args:
        margin: of a triplet (gamma), in units of the angular distance.
    """

    def __init__(self, margin: float = 0.2):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> LabelLossOutput:
        """The loss of a batch.

        Args:
            embeddings: `[B, D]`; computed in float32 whatever they are.
            labels: `[B]`, `IGNORED_LABEL` where there is none.
            generator: draws the pairs of the losses that draw any; on the CPU, so that every device draws the same.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = cosine_matrix(embeddings.float())
            positives, negatives = pair_masks(labels)
            anchors = positives.any(dim=1) & negatives.any(dim=1)
            cosine, positives, negatives = cosine[anchors], positives[anchors], negatives[anchors]
            distance = angular_distance(cosine)
            per_anchor = self.per_anchor(cosine, distance, positives, negatives, generator)
            count = max(1, len(per_anchor))
            far, near = farthest(distance, positives), closest(distance, negatives)
            return LabelLossOutput(
                per_anchor.sum() / count,
                far.detach().sum() / count,
                near.detach().sum() / count,
                (per_anchor > 0).sum() / count,
            )

    @abstractmethod
    def per_anchor(
        self, cosine: Tensor, distance: Tensor, positives: Tensor, negatives: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The loss of each of A anchors, `[A]`, from matrices `[A, B]`."""


class HardTriplet(LabelLoss):
    """Eq. 2: the farthest positive against the closest negative."""

    def per_anchor(self, cosine, distance, positives, negatives, generator):
        return F.relu(self.margin + farthest(distance, positives) - closest(distance, negatives))


class RandomTriplet(LabelLoss):
    """Eq. 1 with a random positive and a random negative per anchor."""

    def per_anchor(self, cosine, distance, positives, negatives, generator):
        positive = _at(distance, _drawn(positives, generator))
        return F.relu(self.margin + positive - _at(distance, _drawn(negatives, generator)))


class SemiHardTriplet(LabelLoss):
    """Eq. 1 with a random positive and the closest negative that is farther than it (Schroff et al. 2015).

    Where no negative is farther than the positive, the farthest of them is taken.
    """

    def per_anchor(self, cosine, distance, positives, negatives, generator):
        positive = _at(distance, _drawn(positives, generator))
        farther = negatives & (distance > positive[:, None])
        negative = torch.where(farther.any(dim=1), closest(distance, farther), farthest(distance, negatives))
        return F.relu(self.margin + positive - negative)


class GE2E(LabelLoss):
    """The contrast of generalised end-to-end training (Wan et al. 2018) on the hardest pairs, as Eq. 4 means it.

    With distances, as printed, Eq. 4 pushes positives apart and pulls negatives together. With similarities
    `s = w cos + b`, w > 0, as in the work it cites, the loss `1 - sigmoid(min s+) + sigmoid(max s-)` does what the text says.
    """

    def __init__(self, margin: float = 0.2):
        super().__init__(margin)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # w, positive by construction
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def per_anchor(self, cosine, distance, positives, negatives, generator):
        similarity = self.log_scale.exp() * cosine + self.bias
        return 1 - closest(similarity, positives).sigmoid() + farthest(similarity, negatives).sigmoid()


LABEL_LOSSES: dict[str, type[LabelLoss]] = {
    "hard_triplet": HardTriplet,
    "semi_hard_triplet": SemiHardTriplet,
    "random_triplet": RandomTriplet,
    "ge2e": GE2E,
}


def farthest(values: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each row where `mask`, `[A, B]` -> `[A]`."""
    return values.masked_fill(~mask, -torch.inf).amax(dim=1) if len(values) else values.sum(dim=1)


def closest(values: Tensor, mask: Tensor) -> Tensor:
    """The smallest value of each row where `mask`, `[A, B]` -> `[A]`."""
    return -farthest(-values, mask)


def _drawn(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """The column of one random True per row, `[A]`."""
    scores = torch.rand(mask.shape, generator=generator).to(mask.device)
    return scores.masked_fill(~mask, -1.0).argmax(dim=1)


def _at(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns[:, None])[:, 0]
