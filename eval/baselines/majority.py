"""Chance: no embedding at all. The probe can then only answer with the most frequent training label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class MajorityEncoder:
    """Embeddings of size 0."""

    name = "majority"
    sampling_rate = 16_000
    embedding_size = 0

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """An empty row per clip, `[N, 0]`."""
        return np.empty((len(waveforms), 0), dtype=np.float32)
