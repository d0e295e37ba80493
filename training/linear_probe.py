"""What a plain linear classifier reads from the cached layers: a yardstick for every task that is trained on them.

A trained task that is far behind it is underfitted: the embedding has thrown away, or not learnt to use, what the layers hold.
The classifier is a ridge regression on the classes, in closed form, on standardised layers: on each by itself, and on all side
by side. It learns from the training clips and is judged on the validation clips, which also choose its ridge and the best
single layer; no test clip is read.

Shapes: `N` training clips, `M` validation clips, `K` selected layers, `D` size of a pooled layer, `E` numbers of a clip, `C`
classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.training.features import SplitFeatures
from wavcse.training.start import layer_scaling

RIDGES = (0.01, 0.1, 1.0)  # of the mean eigenvalue
MOST_PRODUCTS = 5e10  # of N x N x E: two to three seconds of one core per task; more clips are drawn from
LEAST_LAG = 0.01  # of the accuracy: what is less is not worth a warning
STANDARD_ERRORS = 1.96
SMALLEST = 1e-6  # mean eigenvalue, where no dimension varies


@dataclass(frozen=True)
class LinearProbe:
    """What the classifier finds for one task; accuracies are of the validation clips.

    Attributes:
        together: accuracy from all layers side by side.
        best_layer: accuracy from the best single layer, which is `layer`.
        num_train, num_validation: clips that it has learnt from, and is judged on.
    """

    together: float
    best_layer: float
    layer: int
    num_train: int
    num_validation: int


def linear_probes(splits: Mapping[str, SplitFeatures], classes: Mapping[str, int], layers: Sequence[int]) -> dict[str, dict]:
    """The fields of a `LinearProbe` for every task.

    Args:
        splits: "train" and "validation" are read.
        classes: task -> C, of those that have classes.
        layers: numbers of the layers that the splits hold, K of them.
    """
    return {task: asdict(_probe(splits, task, num_classes, layers)) for task, num_classes in classes.items()}


def underfitted(probe: Mapping[str, Any], accuracy: float) -> str:
    """Words where a trained task is behind its probe by more than drawing the clips explains; else empty.

    Args:
        probe: fields of a `LinearProbe`.
        accuracy: of the trained task on the same validation clips.
    """
    best = max(probe["together"], probe["best_layer"])
    spread = math.sqrt((best * (1 - best) + accuracy * (1 - accuracy)) / probe["num_validation"])
    if best - accuracy < max(LEAST_LAG, STANDARD_ERRORS * spread):
        return ""
    return (
        f"underfitted: {100 * (best - accuracy):.1f} points below a linear probe on the same layers ({accuracy:.1%} of the "
        f"validation clips against {best:.1%})"
    )


def _probe(splits: Mapping[str, SplitFeatures], task: str, num_classes: int, layers: Sequence[int]) -> LinearProbe:
    tested, answers = _labelled(splits["validation"], task)
    features, labels = _labelled(splits["train"], task, most=math.isqrt(int(MOST_PRODUCTS / tested[0].numel())))
    mean, scale = layer_scaling([features])
    features, tested = (features - mean) / scale, (tested - mean) / scale

    def accuracy(place: int | slice) -> float:
        train, validation = (part[:, place].flatten(1) for part in (features, tested))
        tried = (scores.argmax(1) == answers for scores in ridge_scores(train, labels, validation, num_classes))
        return max(is_correct.double().mean().item() for is_correct in tried)

    single = [accuracy(place) for place in range(len(layers))]
    best = int(np.argmax(single))
    together = accuracy(slice(None)) if len(layers) > 1 else single[0]
    return LinearProbe(together, single[best], layers[best], len(labels), len(answers))


def _labelled(split: SplitFeatures, task: str, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Layers `[n, K, D]` and classes `[n]` of the clips that have a label for the task; `most` of them, evenly drawn."""
    places = (split.labels[task] != IGNORED_LABEL).nonzero()[:, 0]
    if most is not None and len(places) > most:
        places = places[np.sort(np.random.default_rng(0).permutation(len(places))[:most])]
    features = split.table.take(split.rows[places].to(split.device)).stacked()
    return features.float(), split.labels[task][places].to(split.device)


def ridge_scores(train: Tensor, labels: Tensor, tested: Tensor, num_classes: int) -> list[Tensor]:
    """Scores `[M, C]` of the classes for each of `RIDGES`: regression of the one-hot classes `[N, C]` on `train` `[N, E]`.

    With a ridge `r` it is the minimum over W of `|train W - classes|^2 + r t |W|^2`, both centred, `t` the mean eigenvalue of
    the products; solved in E or in N unknowns, whichever are fewer.
    """
    centre = train.mean(dim=0)
    train, tested = train - centre, tested - centre
    classes = torch.nn.functional.one_hot(labels, num_classes).to(train.dtype)
    share = classes.mean(dim=0)
    if train.shape[1] <= len(train):
        solve, right = _solver(train.T @ train), train.T @ (classes - share)
        return [tested @ solve(ridge, right) + share for ridge in RIDGES]
    solve, products = _solver(train @ train.T), tested @ train.T
    return [products @ solve(ridge, classes - share) + share for ridge in RIDGES]


def _solver(products: Tensor) -> Callable[[float, Tensor], Tensor]:
    """`solve(r, right)` of `(products + r t I) x = right`."""
    mean_eigenvalue = products.diagonal().mean().clamp(min=SMALLEST)

    def solve(ridge: float, right: Tensor) -> Tensor:
        shifted = products.clone()
        shifted.diagonal().add_(ridge * mean_eigenvalue)
        return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))

    return solve
