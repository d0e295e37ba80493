"""Layers of an audio checkpoint that wavCSE does not run itself: its own feature extractor and forward pass, clip by clip.

Shapes: `N` clips, `L` layers, `T` frames of a clip, `D` size of a pooled layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from wavcse.eval.checkpoint import Checkpoint
from wavcse.pooling_wavcse import num_moments, pooled_frames
from wavcse.upstream_wavcse import visiting_layers

WINDOW_S = 60.0  # a longer clip goes through in equal parts, each as a clip of its own
TRIAL_S = (1.0, 0.5)  # noise that the model is tried out with; clips below the shorter one may be too short for it


class HiddenStateLayers:
    """Layers of any audio checkpoint that `AutoFeatureExtractor` and `AutoModel` load.

    What decides is what the model does, not what it is called: it has to take what its feature extractor makes of a clip, and
    to give frames `[1, T, D]` for every layer, more of them for a longer clip. Layers are read from the blocks where they can
    be found, so without a final LayerNorm; else they are the model's `hidden_states`. One clip at a time, so that there is no
    padding that a batch could show through.

    Args:
        checkpoint: with safetensors weights; none of its own code is run.
        device: torch device.
        temporal_pooling: "mean" or "mean_std".

    Raises:
        ValueError: it cannot be loaded, takes no audio, or gives no such frames; or the pooling is unknown.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu", temporal_pooling: str = "mean"):
        self.temporal_pooling, moments = temporal_pooling, num_moments(temporal_pooling)
        options = {"revision": checkpoint.revision, "trust_remote_code": False}
        with checkpoint.loading():
            self.feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **options)
            if not isinstance(self.feature_extractor, SequenceFeatureExtractor):
                raise ValueError(f"Its preprocessor, {type(self.feature_extractor).__name__}, does not take audio.")
            model = AutoModel.from_pretrained(checkpoint.path, dtype=torch.float32, use_safetensors=True, **options)
        self.model = model.to(device).eval()
        self.sampling_rate: int = self.feature_extractor.sampling_rate
        try:
            self.encoder = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
            self.num_layers, width = self._try_out()
            self.layer_size = moments * width
        except Exception as error:  # whatever a foreign model raises, the answer is the same
            raise ValueError(
                f"The model {str(checkpoint)!r} of type {self.model.config.model_type!r} gives no frames to pool over time "
                f"({type(error).__name__}: {error})."
            ) from error

    def pooled(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """`[N, L, D]`; ValueError for a clip that is too short."""
        return torch.stack([self._pooled(f"clip {i}", waveform) for i, waveform in enumerate(waveforms)])

    @torch.inference_mode()
    def _try_out(self) -> tuple[int, int]:
        noise = np.random.default_rng(0).standard_normal(int(TRIAL_S[0] * self.sampling_rate)).astype(np.float32)
        longer, shorter = (self._frames(0.1 * noise[: int(seconds * self.sampling_rate)]) for seconds in TRIAL_S)
        if len({layer.shape[1:] for layer in longer}) != 1 or longer[0].ndim != 2:
            raise ValueError(f"its layers have the shapes {[tuple(layer.shape) for layer in longer]}")
        if not all(len(one) > len(other) for one, other in zip(longer, shorter)):
            raise ValueError("clips are cut or padded to one length, so what is pooled over time would not be theirs")
        return len(longer), longer[0].shape[1]

    def _pooled(self, name: str, waveform: np.ndarray) -> Tensor:
        """`[L, D]` of one clip, over all frames of all its parts."""
        num_parts = max(1, math.ceil(len(waveform) / (WINDOW_S * self.sampling_rate)))
        try:
            parts = [self._frames(part) for part in np.array_split(waveform, num_parts)]
        except Exception as error:
            if len(waveform) >= TRIAL_S[-1] * self.sampling_rate:
                raise
            raise ValueError(f"{name}: has {len(waveform)} samples, too few for this model ({error}).") from error
        return torch.stack([pooled_frames(torch.cat(layer), self.temporal_pooling) for layer in zip(*parts)])

    def _frames(self, waveform: np.ndarray) -> list[Tensor]:
        """Layers of one clip, float32 `[T, D]` each, without frames that its feature extractor added."""
        inputs = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").to(self.model.device)
        layers = [layer[0].float() for layer in self._layers(inputs)]
        mask = inputs.get("attention_mask")
        if mask is None or any(len(layer) != mask.shape[1] for layer in layers):
            return layers  # without a mask, or with one over samples: a single clip has no padding there
        return [layer[mask[0].bool()] for layer in layers]

    def _layers(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        if not _has_blocks(self.encoder):
            return self.encoder(**inputs, output_hidden_states=True).hidden_states
        layers: list[Tensor] = []
        with visiting_layers(self.encoder, lambda _, hidden: layers.append(hidden)):
            self.encoder(**inputs)
        return layers


def _has_blocks(model: nn.Module) -> bool:
    """Whether the blocks and their input are where `visiting_layers` reads them, as in all relatives of wav2vec2."""
    encoder = getattr(model, "encoder", None)
    blocks, entry = getattr(encoder, "layers", None), getattr(encoder, "dropout", None)
    return isinstance(blocks, nn.ModuleList) and isinstance(entry, nn.Module)
