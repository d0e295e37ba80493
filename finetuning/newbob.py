"""`decay: newbob`: learning rates that fall where validation gains too little, as in the recipes of SpeechBrain."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class NewBob:
    """All learning rates of an optimiser times `factor` after every look that gained too little.

    The gain is relative: (error of the look before - error) / error of the look before; of an error of 0 it is 0. The first
    look changes nothing.

    Args:
        threshold: least gain that leaves the rates.

    Attributes:
        error: of the last look; `None` before the first one.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 0.9, threshold: float = 0.0025):
        self.optimizer, self.factor, self.threshold = optimizer, factor, threshold
        self.error: float | None = None

    def look(self, error: float) -> None:
        """Take an error of the validation split, 0 or greater, into account."""
        before, self.error = self.error, error
        if before is None or (before > 0 and (before - error) / before >= self.threshold):
            return
        for group in self.optimizer.param_groups:
            group["lr"] *= self.factor

    def step(self) -> None:
        """Nothing, after an update: rates change at looks alone."""

    def get_last_lr(self) -> list[float]:
        """The rates of the optimiser's groups."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the rates themselves are in the optimiser's."""
        return {"error": self.error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.error = state.get("error")
