"""The losses of tasks, and the network in training, which gives them for a batch of a stream.

Shapes: `B` clips, `T` frames, `C` classes, `V` symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from wavcse.finetuned_wavcse import FinetunedWavCSE, Readout, ReadoutOutput
from wavcse.finetuning.streams import Targets, TaskBatch
from wavcse.modeling_wavcse import IGNORED_LABEL, CosineHead, number_loss
from wavcse.steps.batches import gathered, run_groups
from wavcse.steps.freezing import Freezing


class TaskOutput(NamedTuple):
    """What a pass over a batch of a stream gives.

    Attributes:
        losses: task -> this process's part of its loss; the sum over processes is that of the whole batch.
        correct: task with classes -> how many of this process's clips it names rightly.
        norm: of the stream's gradient over all parameters, before it is clipped.
        cosines: other stream -> cosine between the two gradients of the parameters that both reach.
    """

    losses: dict[str, Tensor]
    correct: Mapping[str, Tensor] = {}
    norm: Tensor | None = None
    cosines: Mapping[str, Tensor] = {}


class MultiTaskNetwork(nn.Module):
    """What is trained: `model`, with a forward pass over a batch of a stream; what is frozen of it stays in eval mode.

    Args:
        joins_groups: what follows the pooling of a task runs once, on the vectors of all groups, and not once for each group.
            The same but for rounding; what earlier versions trained is repeated to the bit by what they did.
    """

    def __init__(self, model: FinetunedWavCSE, freezing: Freezing, joins_groups: bool = False):
        super().__init__()
        self.model, self.freezing, self.joins_groups = model, freezing, joins_groups

    def train(self, mode: bool = True) -> MultiTaskNetwork:
        """Set training mode."""
        super().train(mode)
        if mode:
            self.freezing.hold()
        return self

    def forward(self, batch: TaskBatch, seed: int) -> TaskOutput:
        """The losses of a batch's tasks; `seed` is the training loop's and draws nothing here."""
        run = partial(self.model.layers_of_group, tasks=list(batch.targets))
        layers = run_groups(self.model.upstream, batch.groups, run)
        read = self._read(layers, batch)
        losses = {name: self.loss(name, outputs, batch) for name, outputs in read.items()}
        of_classes = [name for name in read if self.model.readouts[name].kind == "classes"]
        return TaskOutput(losses, {name: num_correct(read[name], batch.targets[name]) for name in of_classes})

    def _read(self, layers: Sequence[Mapping[int | str, Tensor]], batch: TaskBatch) -> dict[str, list[ReadoutOutput]]:
        """What every task reads off the groups; a task with batch norms reads all of them at once."""
        readouts = self.model.readouts
        joined = [name for name in batch.targets if readouts[name].can_join]
        together = [name for name in joined if self.joins_groups or readouts[name].pooling is not None]
        apart = [name for name in batch.targets if name not in together]
        by_group = [self.model.read(of_group, apart) for of_group in layers]
        read = {name: [of_group[name] for of_group in by_group] for name in apart}
        read |= {name: [readouts[name].over_groups(layers)] for name in together}
        return {name: read[name] for name in batch.targets}

    def loss(self, name: str, read: Sequence[ReadoutOutput], batch: TaskBatch) -> Tensor:
        """A task's loss over the clips of the whole batch that have a label, this process's part of it."""
        readout, targets = self.model.readouts[name], batch.targets[name]
        if self.model.config.readouts[name]["loss"] == "ccc":
            return ccc_loss(torch.cat([one.logits for one in read]), targets, batch.num_clips)
        losses = clip_losses(readout, read, targets, self.model.config.readouts[name]["loss"])
        return losses.sum() / max(1, batch.counts[name])


def clip_losses(readout: Readout, read: Sequence[ReadoutOutput], targets: Targets, loss: str) -> Tensor:
    """Loss of every clip `[B]`, 0 without a label: in nats, of CTC per symbol of the text, of numbers in deviations.

    Args:
        read: of the groups that the clips came in.
    """
    if loss == "ctc":
        sizes = [len(one.logits) for one in read]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        return torch.cat(
            [ctc_losses(one.logits, targets[start : start + size]) for one, start, size in zip(read, starts, sizes)]
        )
    logits = torch.cat([one.logits for one in read])
    if loss == "l1":
        return torch.where(targets == IGNORED_LABEL, 0.0, logits - targets).abs()
    if readout.training and isinstance(readout.head, CosineHead):
        logits = readout.head.with_margin(logits, targets)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="none")


@torch.no_grad()
def num_correct(read: Sequence[ReadoutOutput], targets: Tensor) -> Tensor:
    """Of classes, clips `[B]` whose likeliest class is their label, a scalar; those without a label are none of them."""
    return (torch.cat([one.logits for one in read]).argmax(dim=1) == targets).sum()


def ctc_losses(logits: Tensor, texts: Sequence[Tensor | None]) -> Tensor:
    """Negative log probability of every text by CTC (Graves et al. 2006), divided by its symbols: `[b, T, V]` -> `[b]`.

    0 without a text, infinite for one that the frames cannot hold. Blank is symbol 0.
    """
    num_frames = logits.shape[1]
    log_probs = logits.float().log_softmax(dim=2).transpose(0, 1)
    lengths = torch.tensor([0 if text is None else len(text) for text in texts])
    given = [text for text in texts if text is not None]
    joined = torch.cat(given) if given else torch.zeros(0, dtype=torch.int64)
    frames = torch.full((len(texts),), num_frames)
    losses = F.ctc_loss(log_probs, joined.to(logits.device), frames, lengths, reduction="none")
    lengths = lengths.to(losses)
    return torch.where(lengths > 0, losses, 0.0 * losses) / lengths.clamp(min=1)


def ccc_loss(outputs: Tensor, targets: Tensor, num_clips: int) -> Tensor:
    """`1 - CCC` over the labelled clips of all processes, this process's part; 0 with fewer than two of them."""
    num_processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    both = gathered(torch.stack([outputs, targets.to(outputs)], dim=1), num_clips)
    is_there = both[:, 1] != IGNORED_LABEL
    if is_there.sum() < 2:
        return outputs.sum() * 0.0
    return number_loss(both[is_there, 0], both[is_there, 1].detach(), "ccc") / num_processes


def weighted_sum(output: TaskOutput, weights: Mapping[str, float]) -> Tensor:
    """Eq. 1 of Vaessen and van Leeuwen 2023 of one stream."""
    return sum(weights[name] * loss for name, loss in output.losses.items())


class TaskFigures:
    """Losses, accuracies, gradient norms and cosines over the updates since the line of the log before."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.correct: dict[str, Tensor] = {}
        self.clips: dict[str, int] = {}
        self.audio_s, self.batches = 0.0, 0

    def add(self, batch: TaskBatch, output: TaskOutput) -> None:
        """Take a batch into account."""
        found = {f"{name}.train_loss": loss for name, loss in output.losses.items() if batch.counts[name]}
        if output.norm is not None:
            found[f"{batch.stream}.gradient_norm"] = output.norm
        found |= {f"{batch.stream}.{other}.gradient_cosine": value for other, value in output.cosines.items()}
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
            self.counts[name] = self.counts.get(name, 0) + 1
        for name, value in output.correct.items():
            if not batch.counts[name]:
                continue
            self.correct[name] = self.correct.get(name, 0) + value
            self.clips[name] = self.clips.get(name, 0) + batch.counts[name]
        self.audio_s, self.batches = self.audio_s + batch.seconds, self.batches + 1

    def entry(self, accelerator: Accelerator) -> dict[str, float]:
        """Their means, of all clips together for accuracies, 0 to 1; empty if every update was skipped."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        for name in means:
            if name.endswith("loss"):  # each process has its part
                means[name] = accelerator.reduce(means[name], "sum")
        for name, clips in self.clips.items():
            means[f"{name}.train_accuracy"] = int(accelerator.reduce(self.correct[name], "sum")) / clips
        return {name: float(value) for name, value in means.items()}
