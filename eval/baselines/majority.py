"""Chance: how often the most frequent answer is right, without listening."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class MajorityEncoder:
    """Embeddings of size 0.

    What is fitted on them can only answer what suits the training clips best without looking: the most frequent label, the
    mean or median of the target, or one score for all trials.
    """

    name = "majority"
    sampling_rate = 16_000
    embedding_size = 0

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """An empty row per clip, `[N, 0]`."""
        return np.empty((len(waveforms), 0), dtype=np.float32)
