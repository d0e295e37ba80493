"""All layers of a transformers audio checkpoint, from which the layer baselines read.

Shapes: `N` clips, `L` layers, `D` size of a pooled layer: the width of the upstream, or twice that for mean and standard
deviation. Layer 0 is the input of the first block, layer i the output of block i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.eval.baselines.hidden_states import HiddenStateLayers
from wavcse.eval.checkpoint import Checkpoint
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import config_from_upstream
from wavcse.upstream_wavcse import UpstreamRunner, load_upstream


class LayerSource(Protocol):
    """Speech clips -> all layers of one upstream, pooled over time.

    Attributes:
        sampling_rate: rate in Hz of the waveforms.
        num_layers: L, blocks + 1.
        layer_size: D.
        temporal_pooling: "mean" or "mean_std".
        identity: model, hash of its weights, revision.
    """

    sampling_rate: int
    num_layers: int
    layer_size: int
    temporal_pooling: str
    identity: dict[str, str]

    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, L, D]`; asked again for the same list, it computes nothing. ValueError for a clip it cannot serve."""
        ...


class UpstreamLayers:
    """`LayerSource` of any transformers audio checkpoint; none of its own code is run.

    A family that wavCSE has as an upstream goes through the same packed path as in a wavCSE model. Any other checkpoint goes
    through as transformers runs it, if that gives frames (`HiddenStateLayers`).

    Args:
        model: folder or Hub id (`id@revision`).
        device: torch device.
        precision: "float32" (also `None`), "bfloat16" or "int8"; the latter two for the families of the packed path.
        temporal_pooling: "mean", or "mean_std": mean and standard deviation of the frames.

    Raises:
        ValueError: it cannot be loaded, its weights are not safetensors, it is no audio model, it gives no frames, or the
            precision is not available.
    """

    def __init__(
        self,
        model: str,
        device: str | torch.device = "cpu",
        precision: str | None = None,
        temporal_pooling: str = "mean",
    ):
        checkpoint = Checkpoint.parse(model)
        self.identity, self.temporal_pooling = checkpoint.identity(precision), temporal_pooling
        with checkpoint.loading():
            config = AutoConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision, trust_remote_code=False)
        if getattr(config, "_commit_hash", None):
            self.identity["revision"] = config._commit_hash
        packed = _config_of_all_layers(checkpoint, config, temporal_pooling)
        if packed is not None:
            self.passes = PackedLayers(checkpoint, packed, device, precision)
        elif precision in (None, "float32"):
            self.passes = HiddenStateLayers(checkpoint, device, temporal_pooling)
        else:
            raise ValueError(f"precision={precision!r} is not available for {model!r} of type {config.model_type!r}.")
        self.sampling_rate = self.passes.sampling_rate
        self.num_layers, self.layer_size = self.passes.num_layers, self.passes.layer_size
        self._last: tuple[Sequence[np.ndarray], np.ndarray] | None = None

    @torch.inference_mode()
    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """All layers, pooled over time, float32 `[N, L, D]`; those of the last batch are kept with it."""
        if self._last is None or self._last[0] is not waveforms:
            self._last = (waveforms, self.passes.pooled(waveforms).float().cpu().numpy())
        return self._last[1]


class PackedLayers:
    """Layers of a WavLM, wav2vec2, HuBERT or Whisper checkpoint, by the code that runs them in a wavCSE model.

    Args:
        config: selects all layers.
    """

    def __init__(self, checkpoint: Checkpoint, config: WavCSEConfig, device: str | torch.device, precision: str | None):
        self.config, self.precision = config, precision or config.precision
        with checkpoint.loading():
            upstream = load_upstream(checkpoint.path, config.upstream_config, revision=checkpoint.revision)
        self.upstream, self.run_upstream = upstream.to(device).eval(), UpstreamRunner()
        self.feature_extractor = WavCSEFeatureExtractor.from_config(config)
        self.sampling_rate: int = config.sampling_rate
        self.num_layers, self.layer_size = len(config.selected_layers), config.pooled_size

    def pooled(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """`[N, L, D]`."""
        device, config = self.upstream.device, self.config
        inputs = self.feature_extractor(waveforms, sampling_rate=self.sampling_rate, return_tensors="pt", device=device)
        options = {"window_frames": config.window_frames, "temporal_pooling": config.temporal_pooling}
        output = self.run_upstream(self.upstream, **inputs, layers=config.selected_layers, precision=self.precision, **options)
        return output.pooled_layers


def _config_of_all_layers(checkpoint: Checkpoint, config: PretrainedConfig, temporal_pooling: str) -> WavCSEConfig | None:
    """The wavCSE configuration of the whole upstream, or `None` if wavCSE cannot have it as an upstream."""
    options = {"revision": checkpoint.revision}
    layers = range(getattr(config, "num_hidden_layers", 0) + 1)
    try:
        return config_from_upstream(checkpoint.path, options, selected_layers=layers, temporal_pooling=temporal_pooling)
    except ValueError:  # of another family, or with parts that no layer shows
        return None
