"""What an upstream gives without any training: its last layer, the mean of its layers, its best layer, pooled over time.

All of them read one `LayerSource`, so that together they cost one pass over the audio.

Shapes: `N` clips, `L` layers, `D` size of a pooled layer (`LayerSource`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wavcse.eval.baselines.upstream import LayerSource


class LayerEncoder:
    """What the three have in common.

    Args:
        source: where the layers come from: a wavCSE model (its upstream ends at the highest selected layer) or a checkpoint.
        name: in tables; the baseline's own if not given.

    Raises:
        ValueError: no source is given.
    """

    baseline: str
    num_candidates = 1

    def __init__(self, source: LayerSource | None, name: str | None = None):
        if source is None:
            raise ValueError(f"The baseline {self.baseline!r} reads layers of a model: give --model.")
        self.source, self.name = source, name or self.baseline
        self.sampling_rate, self.embedding_size = source.sampling_rate, source.layer_size

    @property
    def identity(self) -> dict[str, str]:
        """The source's, which layers are read, and how they are pooled over time unless by the mean."""
        return {**self._source_identity, "layers": f"0-{self.source.num_layers - 1}"}

    @property
    def _source_identity(self) -> dict[str, str]:
        pooling = self.source.temporal_pooling
        return {**self.source.identity, **({} if pooling == "mean" else {"temporal_pooling": pooling})}


class LastLayerEncoder(LayerEncoder):
    """The usual way: the last block, `[N, D]`."""

    baseline = "last_layer"

    @property
    def identity(self) -> dict[str, str]:
        """The source's, and which layer is read."""
        return {**self._source_identity, "layer": str(self.source.num_layers - 1)}

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, D]`."""
        return self.source.all_layers(waveforms)[:, -1]


class MeanLayersEncoder(LayerEncoder):
    """All layers, averaged with equal weights, `[N, D]`."""

    baseline = "mean_layers"

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, D]`."""
        return self.source.all_layers(waveforms).mean(axis=1)


class BestLayerEncoder(LayerEncoder):
    """Every layer, for each task to take the one that is best on its validation clips; candidate i is layer i."""

    baseline = "best_layer"

    def __init__(self, source: LayerSource | None, name: str | None = None):
        super().__init__(source, name)
        self.num_candidates = self.source.num_layers

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, L * D]`, layer after layer."""
        return self.source.all_layers(waveforms).reshape(len(waveforms), -1)
