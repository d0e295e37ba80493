"""Many linear probes of classes at once: those of `fit_probe`, but for rounding, in a small part of the time.

A probe of one vector of some hundred numbers keeps a core busy with calls, not with products. Here the probes of several
vectors of one size, each with all learning rates, take their steps together: same first weights, same order of clips, same
loss, penalties, optimiser (AdamW) and rule of when to stop. A probe that has stopped is carried along and changes no more.

Shapes: `K` vectors per clip, `N` clips, `B` of a batch, `E` size of a vector, `R` learning rates, `C` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wavcse.data import SPLITS
from wavcse.data.scaling import usable_scale
from wavcse.eval.probe import ClassObjective, ProbeRun, ProbeSettings, StandardisedProbe, fit_on_task, rows_of_epoch
from wavcse.eval.task import TaskData

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of `torch.optim.AdamW`
MOST_NUMBERS = 2**26  # of the vectors that are stacked: 256 MB


def fit_all(
    vectors: Mapping[str, np.ndarray],
    data: TaskData,
    objective: object,
    seed: int = 0,
    settings: ProbeSettings | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, ProbeRun]:
    """`fit_on_task` of several vectors per clip, name -> float32 `[N, E]`; those of one size are fitted together.

    Raises:
        ValueError: as `fit_on_task`.
    """
    settings, found = settings or ProbeSettings(), {}
    for names in _stacks({name: own.shape for name, own in vectors.items()}):
        if isinstance(objective, ClassObjective) and vectors[names[0]].shape[1]:
            runs = _fit_stack(np.stack([vectors[name] for name in names]), data, seed, settings, device)
        else:
            runs = [fit_on_task(vectors[name], data, objective, seed, settings=settings, device=device) for name in names]
        found |= dict(zip(names, runs))
    return {name: found[name] for name in vectors}


def _stacks(shapes: Mapping[str, tuple[int, int]]) -> Iterable[list[str]]:
    """Names of vectors of one size, no more together than memory should hold."""
    for shape in dict.fromkeys(shapes.values()):
        names = [name for name, own in shapes.items() if own == shape]
        most = max(1, MOST_NUMBERS // max(1, math.prod(shape)))
        yield from (names[start : start + most] for start in range(0, len(names), most))


@dataclass
class _Best:
    """The best epoch of every probe so far, and whether it is still trained: `[K, R]` each; and weights and biases of all."""

    gain: np.ndarray
    loss: np.ndarray
    epoch: np.ndarray
    lowest_loss: np.ndarray
    last_gain: np.ndarray
    is_running: np.ndarray
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, stack: _Stack) -> _Best:
        """Before the first epoch."""
        shape = tuple(stack.bias.shape[:2])
        numbers = [np.full(shape, value) for value in (-np.inf, np.inf, 0, np.inf, 0, True)]
        return cls(*numbers, stack.weight.clone(), stack.bias.clone())

    def look_at(
        self,
        epoch: int,
        rows: np.ndarray,
        columns: np.ndarray,
        gain: np.ndarray,
        loss: np.ndarray,
        stack: _Stack,
        patience: int,
    ) -> None:
        """Keep what is better than before, by the rule of `fit_probe`, and say which probes have waited long enough."""
        for k, r in np.ndindex(gain.shape):
            at = rows[k], columns[r]
            if not self.is_running[at] or not np.isfinite(loss[k, r]):  # classes have an accuracy even then
                self.is_running[at] = False
                continue
            if gain[k, r] > self.gain[at] or loss[k, r] < self.lowest_loss[at]:
                self.lowest_loss[at], self.last_gain[at] = min(loss[k, r], self.lowest_loss[at]), epoch
            if (gain[k, r], -loss[k, r]) > (self.gain[at], -self.loss[at]):
                self.gain[at], self.loss[at], self.epoch[at] = gain[k, r], loss[k, r], epoch
                self.weight[at], self.bias[at] = stack.weight[k, r], stack.bias[k, r]
            self.is_running[at] = epoch - self.last_gain[at] < patience


def _fit_stack(
    stack: np.ndarray, data: TaskData, seed: int, settings: ProbeSettings, device: str | torch.device
) -> list[ProbeRun]:
    """A probe per vector, `[K, N, E]`."""
    rows = {split: data.table.rows(split) for split in SPLITS}
    moments = [moment(stack[:, rows["train"]], axis=1, dtype=np.float64) for moment in (np.mean, np.std)]
    means, scales = moments[0].astype(np.float32), usable_scale(*moments).astype(np.float32)
    means, scales = (torch.from_numpy(own).to(device)[:, None] for own in (means, scales))
    parts = {}
    for split in SPLITS:
        labels = torch.from_numpy(data.labels[rows[split]]).to(device) if split != "test" else None
        parts[split] = ((torch.from_numpy(stack[:, rows[split]]).to(device) - means) / scales, labels)
    best = _train(parts["train"], parts["validation"], len(data.classes), seed, settings)
    runs = []
    for k in range(len(stack)):
        usable = [r for r in range(len(settings.learning_rates)) if best.epoch[k, r]]
        if not usable:
            rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
            raise ValueError(f"{data.task.name}: the probe diverged with every learning rate ({rates}).")
        r = max(usable, key=lambda r: (best.gain[k, r], -best.loss[k, r]))
        head = nn.utils.skip_init(nn.Linear, stack.shape[2], len(data.classes), device=device)
        with torch.no_grad():
            head.weight.copy_(best.weight[k, r])
            head.bias.copy_(best.bias[k, r])
            predicted = head(parts["test"][0][k]).argmax(dim=1).cpu().numpy()
        probe = StandardisedProbe(means[k, 0], scales[k, 0], head.eval())
        chosen = (float(best.gain[k, r]), settings.learning_rates[r], int(best.epoch[k, r]))
        runs.append(ProbeRun(predicted, *chosen, probe))
    return runs


@torch.no_grad()
def _train(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], num_classes: int, seed: int, settings: ProbeSettings
) -> _Best:
    """Train all probes with all learning rates, each to the epoch at which it would stop by itself."""
    inputs = [own[0] for own in (train, validation)]
    stack = _Stack(len(inputs[0]), inputs[0].shape[2], num_classes, seed, settings, inputs[0].device)
    best, order = _Best.of(stack), torch.Generator().manual_seed(seed)
    rows, columns = (np.arange(size) for size in best.gain.shape)  # of the probes that are still trained
    for epoch in range(1, settings.max_epochs + 1):
        for clips in rows_of_epoch(train[1], order, settings):
            stack.step(inputs[0].index_select(1, clips), train[1].index_select(0, clips))
        best.look_at(epoch, rows, columns, *stack.validate(inputs[1], validation[1]), stack, settings.patience)
        is_running = best.is_running[np.ix_(rows, columns)]
        if not is_running.any():
            break
        kept = [np.flatnonzero(is_running.any(axis=axis)) for axis in (1, 0)]
        if is_running.shape != tuple(map(len, kept)):
            stack.keep(*kept)
            inputs = [own[kept[0]] for own in inputs] if len(kept[0]) < len(rows) else inputs
            rows, columns = rows[kept[0]], columns[kept[1]]
    return best


class _Stack:
    """Weights `[K, R, C, E]`, biases `[K, R, C]`, and their moments."""

    def __init__(
        self, num_vectors: int, size: int, num_classes: int, seed: int, settings: ProbeSettings, device: torch.device
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Linear(size, num_classes)
        shape = (num_vectors, len(settings.learning_rates))
        self.weight, self.bias = (own.detach().to(device).expand(*shape, *own.shape).clone() for own in head.parameters())
        self.moments = [(torch.zeros_like(own), torch.zeros_like(own)) for own in (self.weight, self.bias)]
        self.rates = torch.tensor(settings.learning_rates, device=device)
        self.settings, self.steps = settings, 0

    def keep(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Go on with some vectors and some learning rates only."""

        def part(own: Tensor) -> Tensor:
            return own[rows][:, columns].clone()

        self.weight, self.bias, self.rates = part(self.weight), part(self.bias), self.rates[columns]
        self.moments = [tuple(map(part, pair)) for pair in self.moments]

    def outputs(self, inputs: Tensor) -> Tensor:
        """Of inputs `[K, B, E]`, `[K, B, R, C]`."""
        weights = self.weight.flatten(1, 2)
        return torch.baddbmm(self.bias.flatten(1)[:, None], inputs, weights.mT).unflatten(2, self.bias.shape[1:])

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of AdamW on the mean cross-entropy of `[K, B, E]` and `[B]`, with the penalties of the probe."""
        errors = self.outputs(inputs).softmax(dim=-1)
        errors[:, torch.arange(len(labels), device=labels.device), :, labels] -= 1
        errors = errors.flatten(2).div_(len(labels))  # of the loss by the outputs, [K, B, R * C]
        gradients = (torch.bmm(errors.mT, inputs).view_as(self.weight), errors.sum(dim=1).view_as(self.bias))
        self.steps += 1
        for own, gradient, moments in zip((self.weight, self.bias), gradients, self.moments):
            gradient.add_(own.sign(), alpha=self.settings.l1).add_(own, alpha=2 * self.settings.l2)
            self._update(own, gradient, *moments)

    def _update(self, own: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> None:
        rates = self.rates.view(1, -1, *[1] * (own.ndim - 2))
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        scales = [1 - beta**self.steps for beta in BETAS]
        own.mul_(1 - rates * self.settings.weight_decay)
        own.sub_(first.div(second.sqrt().div_(math.sqrt(scales[1])).add_(EPSILON)).mul_(rates / scales[0]))

    def validate(self, inputs: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and loss of every probe, `[K, R]` each."""
        outputs = self.outputs(inputs)
        accuracy = (outputs.argmax(dim=-1) == labels[None, :, None]).double().mean(dim=1)
        targets = labels[None, :, None].expand(outputs.shape[:-1])
        loss = nn.functional.cross_entropy(outputs.flatten(0, 2), targets.flatten(), reduction="none")
        return accuracy.cpu().numpy(), loss.view(targets.shape).mean(dim=1).double().cpu().numpy()
