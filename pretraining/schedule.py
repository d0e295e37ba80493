"""The learning rate as a function of the step, so that nothing of it has to be remembered."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAYS = ("inverse_sqrt", "cosine", "linear", "constant")


def learning_rate_factor(warmup_steps: int, max_steps: int, decay: str) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak.

    Linear warm-up, then `inverse_sqrt` (Vaswani et al. 2017, the papers' choice; goes on falling, whatever `max_steps`),
    `cosine` or `linear` (both reach zero after `max_steps`), or `constant`.
    """
    warmup = max(1, warmup_steps)
    shapes = {
        "inverse_sqrt": lambda step, _: math.sqrt(warmup / (step + 1)),
        "cosine": lambda _, done: 0.5 * (1 + math.cos(math.pi * done)),
        "linear": lambda _, done: 1 - done,
        "constant": lambda _, __: 1.0,
    }

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return shapes[decay](step, done)

    return factor
