"""Probes: what a very simple model finds in frozen embeddings.

The paper's Phase 2 (section 3 and footnote 1): one linear layer, batch 64, L1 1e-7 and L2 1e-5; softmax cross-entropy for
classes. What the paper leaves open is the authors' Phase 1 choice (AdamW, weight decay 5e-8), or is chosen on the validation
split (learning rate, epoch); the losses of numbers are in `wavcse.eval.objectives`. A probe is never given a test label.

Shapes: `N` clips, `E` embedding size, `O` outputs, `T` targets of a regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wavcse.eval.objectives import Objective

CONSTANT_DIMENSION = 1e-6  # a standard deviation below this share of the mean is rounding noise, not information


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of the linear probe."""

    learning_rates: tuple[float, ...] = (1e-2, 2.5e-3, 5e-4, 1e-4)  # the authors' Phase 1 rate and its neighbours
    batch_size: int = 64
    min_steps_per_epoch: int = 10  # a small training split is passed over several times per epoch
    max_epochs: int = 100
    patience: int = 10  # epochs in which neither the validation figure nor the validation loss gets better
    l1: float = 1e-7
    l2: float = 1e-5
    weight_decay: float = 5e-8


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings `[N, E]` (float32) and their labels: class indices `[N]`, or numbers `[N, T]` (float32)."""

    embeddings: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ProbeRun:
    """One fitted probe.

    Args:
        predictions: of the test clips, in the scale of the labels: classes `[N]` or numbers `[N, T]`.
        validation: the objective's figure on the validation clips.
        learning_rate, epoch: what validation chose; None where nothing was to choose.
    """

    predictions: np.ndarray
    validation: float
    learning_rate: float | None = None
    epoch: int | None = None


@dataclass
class _Candidate:
    learning_rate: float
    state: dict[str, Tensor]
    epoch: int = 0
    gain: float = -math.inf  # the validation figure, or what is lacking to it: more is better
    loss: float = math.inf


def fit_probe(
    train: LabelledEmbeddings,
    validation: LabelledEmbeddings,
    test_embeddings: np.ndarray,
    objective: Objective,
    seed: int = 0,
    settings: ProbeSettings | None = None,
    device: str | torch.device = "cpu",
) -> ProbeRun:
    """Fit on `train`, choose on `validation`, predict the test clips.

    Embeddings are standardised with the training split's mean and standard deviation, so that one grid of learning rates suits
    encoders of any scale. An encoder without dimensions (E = 0) gets the best constant for the objective.

    Args:
        test_embeddings: `[N, E]`; there is no argument for test labels.
        objective: loss, outputs and the figure that validation looks at.
        seed: of the initial weights and the order of the clips; the same seed gives the same predictions.

    Raises:
        ValueError: no learning rate had an epoch whose outputs are finite; one that diverges is not chosen.
    """
    if train.embeddings.shape[1] == 0:
        return _best_constant(train, validation, len(test_embeddings), objective)
    settings = settings or ProbeSettings()
    mean, scale = _standardiser(train.embeddings)
    standardised = [
        torch.from_numpy((embeddings - mean) / scale).to(device)
        for embeddings in (train.embeddings, validation.embeddings, test_embeddings)
    ]
    labels = [torch.from_numpy(part.labels).to(device) for part in (train, validation)]
    train_part, validation_part = zip(standardised, labels)
    candidates = [
        _train_linear(train_part, validation_part, objective, rate, seed, settings) for rate in settings.learning_rates
    ]
    candidates = [candidate for candidate in candidates if candidate.state]
    if not candidates:
        rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
        raise ValueError(
            f"the probe diverged with every learning rate ({rates}): look at the scale of the embeddings and of the labels."
        )
    best = max(candidates, key=lambda candidate: (candidate.gain, -candidate.loss))
    outputs = nn.functional.linear(standardised[2], best.state["weight"], best.state["bias"])
    figure = best.gain if objective.greater_is_better else -best.gain
    return ProbeRun(objective.predict(outputs).cpu().numpy(), figure, best.learning_rate, best.epoch)


def _best_constant(train: LabelledEmbeddings, validation: LabelledEmbeddings, num_test: int, objective: Objective) -> ProbeRun:
    constant = objective.constant(train.labels).astype(train.labels.dtype)
    of_validation, of_test = (np.repeat(constant[None], size, axis=0) for size in (len(validation.labels), num_test))
    return ProbeRun(of_test, objective.figure(torch.from_numpy(of_validation), torch.from_numpy(validation.labels)))


def _standardiser(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = embeddings.mean(axis=0, dtype=np.float64), embeddings.std(axis=0, dtype=np.float64)
    informative = std > CONSTANT_DIMENSION * np.abs(mean)
    return mean.astype(np.float32), np.where(informative, std, 1.0).astype(np.float32)


def _train_linear(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    objective: Objective,
    learning_rate: float,
    seed: int,
    settings: ProbeSettings,
) -> _Candidate:
    linear = _new_linear(train[0].shape[1], objective.num_outputs, seed).to(train[0].device)
    optimiser = torch.optim.AdamW(linear.parameters(), lr=learning_rate, weight_decay=settings.weight_decay, fused=True)
    order = torch.Generator().manual_seed(seed)
    best, lowest_loss, last_gain = _Candidate(learning_rate, {}), math.inf, 0
    for epoch in range(1, settings.max_epochs + 1):
        _train_epoch(linear, optimiser, objective, train, order, settings)
        gain, loss = _validate(linear, objective, *validation)
        if not (math.isfinite(gain) and math.isfinite(loss)):  # classes have an accuracy even then
            break
        if gain > best.gain or loss < lowest_loss:
            lowest_loss, last_gain = min(loss, lowest_loss), epoch
        # Equal accuracies are common with few validation clips; the lower validation loss then decides.
        if (gain, -loss) > (best.gain, -best.loss):
            state = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
            best = _Candidate(learning_rate, state, epoch, gain, loss)
        if epoch - last_gain >= settings.patience:
            break
    return best


def _new_linear(embedding_size: int, num_outputs: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        return nn.Linear(embedding_size, num_outputs)


def _train_epoch(
    linear: nn.Linear,
    optimiser: torch.optim.Optimizer,
    objective: Objective,
    train: tuple[Tensor, Tensor],
    order: torch.Generator,
    settings: ProbeSettings,
) -> None:
    embeddings, labels = train
    num_passes = math.ceil(settings.min_steps_per_epoch * settings.batch_size / len(labels))
    passes = [torch.randperm(len(labels), generator=order).to(labels.device) for _ in range(num_passes)]
    for rows in [rows for order_of_pass in passes for rows in order_of_pass.split(settings.batch_size)]:
        loss = objective.loss(linear(embeddings.index_select(0, rows)), labels.index_select(0, rows))
        optimiser.zero_grad()
        loss.backward()
        for parameter in linear.parameters():  # + l1 sum |p| + l2 sum p^2, biases too, as in the authors' code
            parameter.grad.add_(parameter.detach().sign(), alpha=settings.l1).add_(parameter.detach(), alpha=2 * settings.l2)
        optimiser.step()


@torch.no_grad()
def _validate(linear: nn.Linear, objective: Objective, embeddings: Tensor, labels: Tensor) -> tuple[float, float]:
    outputs = linear(embeddings)
    figure = objective.figure(objective.predict(outputs), labels)
    return (figure if objective.greater_is_better else -figure), objective.loss(outputs, labels).item()
