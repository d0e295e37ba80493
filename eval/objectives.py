"""What a probe learns and what validation looks at: classes, agreement on a rating scale, or a number with its unit.

Shapes: `B` clips, `C` classes, `T` targets, `O` outputs of the linear layer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor, nn

CCC_EPSILON = 1e-8  # keeps the ratio finite for a batch whose labels and outputs are the same constant


class Objective(Protocol):
    """A loss for training and a figure for the choice of epoch and learning rate.

    Attributes:
        num_outputs: O.
        criterion: name of the figure.
        greater_is_better: its direction.
    """

    num_outputs: int
    criterion: str
    greater_is_better: bool

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of outputs `[B, O]`, a scalar."""
        ...

    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs `[B, O]` in the scale of the labels: classes `[B]` or numbers `[B, T]`."""
        ...

    def figure(self, predictions: Tensor, labels: Tensor) -> float:
        """How good predictions are."""
        ...

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """The best single prediction for training labels, `[]` or `[T]`: what is left without an embedding."""
        ...


class ClassObjective:
    """Softmax cross-entropy of `C` classes; validation looks at the accuracy."""

    criterion = "accuracy"
    greater_is_better = True

    def __init__(self, num_classes: int):
        self.num_outputs = num_classes

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, C]` and class indices `[B]`."""
        return nn.functional.cross_entropy(outputs, labels)

    def predict(self, outputs: Tensor) -> Tensor:
        """Most likely classes `[B]`."""
        return outputs.argmax(dim=1)

    def figure(self, predictions: Tensor, labels: Tensor) -> float:
        """Accuracy."""
        return (predictions == labels).double().mean().item()

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """The most frequent class; the first in class order if several are equally frequent."""
        return np.bincount(labels).argmax()


class ConcordanceObjective:
    """`1 - mean CCC` of `T` ratings over the batch; validation looks at the mean CCC over all its clips.

    Ratings are mapped from their scale (1 to 5, say) to 0..1, where freshly initialised outputs are not far off; CCC is the
    same on both as long as labels and outputs are mapped alike.

    Args:
        label_range: lowest and highest rating of the scale.
    """

    criterion = "ccc"
    greater_is_better = True

    def __init__(self, num_targets: int, label_range: tuple[float, float]):
        self.num_outputs = num_targets
        self.low, self.span = label_range[0], label_range[1] - label_range[0]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """`1 - mean CCC` of outputs on the 0..1 scale `[B, T]` and ratings `[B, T]`."""
        return 1 - concordance(outputs, (labels - self.low) / self.span).mean()

    def predict(self, outputs: Tensor) -> Tensor:
        """Ratings on the original scale `[B, T]`."""
        return self.low + self.span * outputs

    def figure(self, predictions: Tensor, labels: Tensor) -> float:
        """Mean CCC of the targets."""
        return concordance(predictions.double(), labels.double()).mean().item()

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Mean ratings `[T]`; their CCC is 0, as that of any constant."""
        return labels.mean(axis=0)


class AbsoluteErrorObjective:
    """L1 loss of one or several numbers, standardised on training; validation looks at the mean absolute error in their unit.

    Args:
        train_labels: `[N, T]`.
    """

    criterion = "mae"
    greater_is_better = False

    def __init__(self, train_labels: np.ndarray):
        self.num_outputs = train_labels.shape[1]
        self.mean = float(train_labels.mean())
        self.scale = float(train_labels.std()) or 1.0

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean absolute difference of standardised outputs `[B, T]` and numbers `[B, T]`, in standard deviations."""
        return nn.functional.l1_loss(outputs, (labels - self.mean) / self.scale)

    def predict(self, outputs: Tensor) -> Tensor:
        """Numbers in their unit, `[B, T]`."""
        return self.mean + self.scale * outputs

    def figure(self, predictions: Tensor, labels: Tensor) -> float:
        """Mean absolute error."""
        return (predictions.double() - labels).abs().mean().item()

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Medians `[T]`, which have the smallest absolute error."""
        return np.median(labels, axis=0)


def concordance(x: Tensor, y: Tensor) -> Tensor:
    """Concordance correlation coefficient of every column, `[B, T]`, `[B, T]` -> `[T]`.

    `2 cov / (var_x + var_y + (mean_x - mean_y)^2)` with population moments (Lin 1989), differentiable; 0 for a constant.
    """
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    covariance = ((x - mean_x) * (y - mean_y)).mean(dim=0)
    variances = x.var(dim=0, correction=0) + y.var(dim=0, correction=0)
    return 2 * covariance / (variances + (mean_x - mean_y).square() + CCC_EPSILON)
