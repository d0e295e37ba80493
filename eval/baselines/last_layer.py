"""The usual way to use a speech model without training: the time mean of its last layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wavcse.eval.encoder import WavCSEEncoder, identity_of


class LastLayerEncoder:
    """Mean-pooled last block of a wavCSE model's upstream, `[N, D]`; shares the model's forward pass.

    A wavCSE model holds the upstream up to its highest selected layer only, so that layer is meant.

    Raises:
        ValueError: no model is given.
    """

    name = "last_layer"

    def __init__(self, model: WavCSEEncoder | None):
        if model is None:
            raise ValueError("The baseline 'last_layer' reads a layer of the model: give --model.")
        self.model = model
        config = model.model.config
        self.position = config.selected_layers.index(max(config.selected_layers))  # selected layers are in any order
        self.sampling_rate = model.sampling_rate
        self.embedding_size = config.upstream_config.hidden_size
        self.identity = {**identity_of(model), "layer": str(max(config.selected_layers))}

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, D]`."""
        return self.model.forward(waveforms).pooled_layers[:, self.position].float().cpu().numpy()
