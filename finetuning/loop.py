"""The loop of every fine-tuning: updates of a network on its tasks, with looks at the validation split between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from wavcse.finetuning.losses import TaskFigures, TaskOutput, weighted_sum
from wavcse.finetuning.streams import TaskBatch
from wavcse.steps.loop import GradientsOf, StepProgress, update
from wavcse.training.run import Run


@dataclass
class LoopProgress(StepProgress):
    """How far a run is, which step validation likes best so far, and whether it has seen enough."""

    best_step: int = 0
    is_stopped: bool = False


class Loader(Protocol):
    """Gives the batches of `max_steps` updates."""

    @property
    def max_steps(self) -> int:
        """Updates of the whole training."""
        ...

    def updates(self, first_step: int) -> Iterator[Sequence[TaskBatch]]:
        """The batches of each update from `first_step` (from 0) on."""
        ...


@dataclass(frozen=True)
class Training(ABC):
    """A prepared run; what it looks for, and how it says so, is each program's own.

    Args:
        run: of a learner whose network is a `MultiTaskNetwork` and whose progress is a `LoopProgress`.
        validate_every: updates between two looks.
        weights: task -> weight of its loss.
        gradients_of: makes one gradient of the batches of an update; `None` = they are parts of one batch, and accumulate.
    """

    run: Run
    loader: Loader
    validate_every: int
    weights: Mapping[str, float]
    gradients_of: GradientsOf | None

    @abstractmethod
    def look(self) -> dict[str, float]:
        """Figures of the validation split; the weights are kept if they are the best so far, and the run may be stopped."""

    @abstractmethod
    def line(self, trained: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
        """What the log says of the updates since the line before, and of a look."""

    def train(self, show_progress: bool = True, words: str | None = None) -> None:
        """Update until the last step, or until a look stops the run; goes on where it was.

        Args:
            words: before the progress bar.

        Raises:
            FloatingPointError: the training diverged, or too many steps in a row were not finite.
        """
        run, loader = self.run, self.loader
        run.resume()
        learner, progress, figures = run.learner, run.learner.progress, TaskFigures()
        if progress.is_stopped:
            return
        with run.bar(loader.max_steps, words, show_progress) as bar:
            for batches in loader.updates(progress.step):
                learner.network.freezing.at(progress.step)
                update(run.accelerator, learner, batches, figures, self._loss_of, self.gradients_of)
                bar.update()
                is_last = progress.step == loader.max_steps
                if progress.step % self.validate_every and not is_last:
                    continue
                found = self.look()
                self._log(figures, found, run.lap())
                bar.set_postfix({name: f"{value:.3g}" for name, value in found.items()})
                figures = TaskFigures()
                run.save_when_due(must=is_last or progress.is_stopped)
                if progress.is_stopped:
                    break

    def _loss_of(self, output: TaskOutput, *_: Any) -> Tensor:
        return weighted_sum(output, self.weights)

    def _log(self, figures: TaskFigures, found: Mapping[str, float], seconds: float) -> None:
        run, progress = self.run, self.run.learner.progress
        scalars = self.line(figures.entry(run.accelerator), found) | self._rates() | {"skipped_steps": progress.skipped}
        scalars |= {"seconds": round(seconds, 3), "audio_s_per_s": round(figures.audio_s / max(seconds, 1e-9), 1)}
        run.log({"step": progress.step} | scalars, scalars)

    def _rates(self) -> dict[str, float]:
        """The learning rate, and the encoder's where it has its own: of the groups of weights the first, and the next.

        `new_learner` makes two groups of each rate.
        """
        args, rates = self.run.args, self.run.learner.scheduler.get_last_lr()
        encoder = getattr(args, "encoder_learning_rate", None)
        own = {} if encoder is None else {"encoder_learning_rate": rates[0 if encoder == args.learning_rate else 2]}
        return {"learning_rate": rates[0], **own}
