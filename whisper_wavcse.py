"""Whisper's encoder as an upstream: log-mel windows of 30 s through its transformers module, pooled over the real frames only.

Whisper always sees 30 s; what a clip does not fill is silence that the encoder attends to, by its design. A longer clip goes
through window by window, and its layers are pooled over all its frames.

Shapes: `B` clips, `K` layers, `T` = 1500 frames of a window (20 ms each), `D` encoder width, `S` moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_wavcse import WHISPER_SAMPLES_PER_FRAME, count_frames
from .pooling_wavcse import pooled_pieces, time_moments

SAMPLING_RATE_HZ = 16_000
WINDOWS_PER_BATCH = 4


def build_encoder(config: PretrainedConfig) -> WhisperEncoder:
    """The encoder of `config`, random weights."""
    return WhisperEncoder(config)


def pool_layers(
    encoder: PreTrainedModel, waveforms: Sequence[Tensor], layers: Sequence[int], temporal_pooling: str = "mean"
) -> Tensor:
    """The wanted layers pooled over time, `[B, K, D]`, or `[B, K, 2 D]` with "mean_std".

    Args:
        waveforms: one tensor `[samples]` per clip at 16 kHz, not normalised, without padding.
        layers: 0 = input of the first block (with positions), i = output of block i; never the final LayerNorm.
    """
    window = encoder.config.max_source_positions * WHISPER_SAMPLES_PER_FRAME
    pieces = [(clip, piece) for clip, waveform in enumerate(waveforms) for piece in waveform.split(window)]
    frames = [count_frames(len(piece), encoder.config) for _, piece in pieces]
    moments: list[Tensor] = []
    for start in range(0, len(pieces), WINDOWS_PER_BATCH):
        batch = slice(start, start + WINDOWS_PER_BATCH)
        moments += _window_moments(encoder, [piece for _, piece in pieces[batch]], frames[batch], layers, temporal_pooling)
    return pooled_pieces([clip for clip, _ in pieces], frames, torch.stack(moments), len(waveforms))


def _window_moments(
    encoder: PreTrainedModel,
    pieces: Sequence[Tensor],
    frames: Sequence[int],
    layers: Sequence[int],
    temporal_pooling: str,
) -> list[Tensor]:
    """Of every piece of at most one window, the moments `[K, S, D]` of its frames that hold audio."""
    features = log_mel(encoder.config, pieces).to(encoder.device, encoder.dtype)
    hidden: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable:
        return lambda module, inputs, *output: hidden.update({layer: _first(output[0] if output else inputs)})

    # Without blocks, the final norm receives what the first block would.
    entry = [*encoder.layers, encoder.layer_norm][0]
    hooks = [entry.register_forward_pre_hook(keep(0))]
    hooks += [block.register_forward_hook(keep(layer)) for layer, block in enumerate(encoder.layers, start=1)]
    try:
        encoder(features)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        torch.stack([time_moments(hidden[layer][piece, :count], temporal_pooling) for layer in layers])
        for piece, count in enumerate(frames)
    ]


def log_mel(config: PretrainedConfig, pieces: Sequence[Tensor]) -> Tensor:
    """transformers' own Whisper features of pieces of at most one window: `[B, mel bins, 2 T]`."""
    seconds = config.max_source_positions * WHISPER_SAMPLES_PER_FRAME // SAMPLING_RATE_HZ
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
    arrays = [piece.detach().float().cpu().numpy() for piece in pieces]
    return extractor(arrays, sampling_rate=SAMPLING_RATE_HZ, return_tensors="pt")["input_features"]


def _first(output: Tensor | tuple) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
