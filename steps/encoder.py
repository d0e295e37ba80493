"""The encoder in pre-training: transformers' `WavLMModel`, built or loaded, with parts that compute the same faster.

What is exchanged are classes of submodules only; parameters, their names and the saved folder stay transformers'.

Shapes: `B` clips of one length, `T` frames, `D` width, `H` heads, `C` channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
from transformers.audio_utils import hertz_to_mel, mel_to_hertz
from transformers.models.wavlm.modeling_wavlm import WavLMAttention, WavLMLayerNormConvLayer

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.configuration_wavcse import frame_geometry
from wavcse.packed_layers_wavcse import position_gate, summed_by_fours
from wavcse.training.products import linear, use_linear
from wavcse.upstream_wavcse import load_upstream, read_config

# What differs from WavLMConfig's defaults: the large shape (its norms look at no other frame, so the other clips of a batch do
# not matter) with biases in the stem (else its norms would hide how loud a frame is), and no random loss of layers or
# features beside the mask.
SHAPE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WINDOW = 400  # samples, 25 ms: of a filter that starts as a mel band, and of a mel frame
FRAME_HOP = 320  # samples between two frames of the encoder
PHASES = 4  # of each frequency in a first convolution that starts as a filterbank
MASKING = {"apply_spec_augment": True, "mask_time_prob": 0.05, "mask_feature_prob": 0.0, "layerdrop": 0.0}


def encoder_config(fields: Mapping[str, Any], init_from: str | None) -> WavLMConfig:
    """The configuration of a new encoder, or that of a checkpoint with `fields` changed.

    Raises:
        ValueError: the checkpoint is not a WavLM, a field is not one of WavLMConfig's or of another type there, or sizes do
            not fit together.
    """
    config = WavLMConfig(**SHAPE) if init_from is None else read_config(init_from)
    config = getattr(config, "upstream_config", config)  # of a wavCSE model
    if not isinstance(config, WavLMConfig):
        raise ValueError(f"init_from: {init_from} is a {config.model_type}; only a WavLM can be trained here.")
    unknown = sorted(set(fields) - set(config.to_dict()), key=str)
    if unknown:
        raise ValueError(f"encoder: {unknown} are no fields of WavLMConfig.")
    _check_types(fields)
    merged = {**config.to_dict(), **MASKING, **fields}
    _check_sizes(merged)
    merged["num_feat_extract_layers"] = len(merged["conv_dim"])
    return WavLMConfig(**merged)


def _check_types(fields: Mapping[str, Any]) -> None:
    """ValueError names the first field of another type than WavLMConfig's, which looks at each value as it is set."""
    config = WavLMConfig()
    for name, value in fields.items():
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            raise ValueError(f"Validation error for field {name!r} of encoder: {error.__cause__}") from error


def _check_sizes(merged: Mapping[str, Any]) -> None:
    """ValueError if the stem's lists differ in length, or the width cannot be shared among the heads."""
    lists = [len(merged[name]) for name in ("conv_dim", "conv_kernel", "conv_stride")]
    if len(set(lists)) > 1:
        raise ValueError(f"encoder: conv_dim, conv_kernel and conv_stride have {lists} entries; they must be as many.")
    if merged["num_attention_heads"] < 1:
        raise ValueError(f"encoder: num_attention_heads is {merged['num_attention_heads']}; it must be above 0.")
    if merged["hidden_size"] % merged["num_attention_heads"]:
        raise ValueError(
            f"encoder: hidden_size {merged['hidden_size']} must be a multiple of its {merged['num_attention_heads']} heads."
        )


def new_encoder(config: WavLMConfig, init_from: str | None = None) -> WavLMModel:
    """The encoder, random or a checkpoint's, with its fast parts in place.

    A random encoder whose first convolution spans the window of a spectrogram starts with that spectrogram's filters.
    """
    if init_from is None:
        encoder = WavLMModel(config)
        first = encoder.feature_extractor.conv_layers[0].conv
        if first.kernel_size[0] >= WINDOW:
            start_as_filterbank(first)
    else:
        encoder = load_upstream(init_from, config)
    return use_fast_parts(encoder)


def receptive_field(config: WavLMConfig) -> int:
    """Samples that a frame of the encoder's convolutions sees.

    Raises:
        ValueError: its frames are not 320 samples apart.
    """
    field, hop = frame_geometry(config)
    if hop != FRAME_HOP:
        raise ValueError(
            f"conv_stride {list(config.conv_stride)} gives a frame every {hop} samples; their product must be {FRAME_HOP}."
        )
    return field


@torch.no_grad()
def start_as_filterbank(conv: nn.Conv1d) -> None:
    """Set a convolution on waveforms to windowed waves: frequencies evenly spaced in mel, each in four phases.

    The rectified four phases together carry a band's magnitude, which random filters of this length are slow to find
    (Zeghidour et al. 2018, "Learning filterbanks from raw speech", start theirs alike). Each filter has the length that
    the usual random start gives it. They are trained like every weight.
    """
    channels, _, kernel = conv.weight.shape
    top_mel = hertz_to_mel(SAMPLING_RATE_HZ / 2, mel_scale="slaney")
    bands = -(-channels // PHASES)
    frequencies = mel_to_hertz(np.linspace(0, top_mel, bands + 2)[1:-1], mel_scale="slaney")
    angle = 2 * np.pi * np.outer(frequencies, np.arange(kernel) - kernel / 2) / SAMPLING_RATE_HZ
    waves = np.stack([np.cos(angle + phase) for phase in np.arange(PHASES) * 2 * np.pi / PHASES], axis=1)
    filters = waves.reshape(-1, kernel)[:channels] * np.hanning(kernel)
    filters *= math.sqrt(2) / np.linalg.norm(filters, axis=1, keepdims=True)
    conv.weight.copy_(torch.from_numpy(filters)[:, None])


def use_fast_parts(encoder: WavLMModel) -> WavLMModel:
    """Exchange the classes of attention, stem layers and linear layers for those below and of `training.products`."""
    for module in encoder.modules():
        if type(module) is WavLMAttention:
            module.__class__ = FusedAttention
        elif type(module) is WavLMLayerNormConvLayer:
            module.__class__ = RowConvLayer
    encoder.feature_extractor._requires_grad = False  # of the waveform, for gradient checkpointing; costs a product
    use_linear(encoder)
    return encoder


def save_upstream(encoder: WavLMModel, folder: Path) -> None:
    """Write the transformers folder, with the preprocessor, that `WavCSEModel.from_upstream` takes."""
    encoder.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE_HZ, do_normalize=True, return_attention_mask=True).save_pretrained(
        folder
    )


class FusedAttention(WavLMAttention):
    """WavLM's attention without padding and without the averaged weights that transformers computes and drops.

    The position bias exists once, not once per clip, and the gate's eight outputs per head are summed in its weights.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, position_bias: Tensor | None = None, index: int = 0, **kwargs
    ) -> tuple[Tensor, None, Tensor]:
        """`[B, T, D]` -> the same, no weights, and the position bias `[H, T, T]` for the next block."""
        if attention_mask is not None:
            raise ValueError("In pre-training clips are not padded; no attention_mask is taken.")
        if position_bias is None:
            position_bias = self.compute_bias(hidden_states.shape[1], hidden_states.shape[1])
        query, key, value = (self._heads(layer(hidden_states)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        bias = self._gate(self._heads(hidden_states)) * position_bias
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None, position_bias

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gate(self, x: Tensor) -> Tensor:
        """`[B, H, T, d]` -> `[B, H, T, 1]`."""
        layer = self.gru_rel_pos_linear
        return position_gate(x, *summed_by_fours(layer.weight, layer.bias), self.gru_rel_pos_const)


class RowConvLayer(WavLMLayerNormConvLayer):
    """A convolution of the stem as a product on rows `[T, C]`, where its norm works too; in and out are `[B, C, T]` views."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, C, T]` -> `[B, C', T']`."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        windows = hidden_states.transpose(1, 2).unfold(1, kernel, stride)  # [B, T', C, kernel], a view
        rows = linear(windows.flatten(2), self.conv.weight.flatten(1), self.conv.bias)
        return self.activation(self.layer_norm(rows)).transpose(1, 2)
