"""A wavCSE model as one graph of tensors: a padded batch and its mask in, embeddings out, the same as alone.

The model itself lays clips end to end or groups them by length, which no graph of fixed operations can. Here clips stay
padded, and whatever would see the padding is told of it: the group norm of base shapes, Whisper's spectrogram, the encoder's
convolutions and attention, and the pooling over time.

Shapes: `B` clips, `T` frames of the longest, `M` = 2 T mel frames of Whisper, `K` selected layers, `D` upstream width, `E`
embedding size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.modeling_utils import PreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from wavcse.configuration_wavcse import WHISPER_SAMPLES_PER_FRAME, count_frames
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.pooling_wavcse import num_moments, statistics_of
from wavcse.upstream_wavcse import visiting_layers
from wavcse.whisper_wavcse import (
    DYNAMIC_RANGE,
    FFT_SAMPLES,
    HOP_SAMPLES,
    LEAST_POWER,
    visit_encoder_layers,
    window_and_filters,
)

# Waveform, convolutions, positions by a convolution, blocks: what `WaveformLayers` can tell of padding.
WAVEFORM_FAMILIES = ("wavlm", "wav2vec2", "hubert", "unispeech-sat", "data2vec-audio")
FAMILIES = (*WAVEFORM_FAMILIES, "whisper")

Visit = Callable[[int, Tensor], None]  # is called with the number of a layer and its frames `[B, T, D]`


class ExportableModel(nn.Module):
    """A copy of a model, in eval mode, that runs a padded batch without Python between its operations.

    Args:
        model: with an upstream of `FAMILIES`; a Whisper one in the context "clip".
        with_frames: also give the frames of the selected layers.

    Raises:
        ValueError: the upstream is of another family, or in the context "window".
    """

    def __init__(self, model: WavCSEModel, with_frames: bool = False):
        super().__init__()
        family = model.config.upstream_config.model_type
        if family not in FAMILIES:
            raise ValueError(
                f"A model with an upstream of the family {family} cannot be exported yet; those of {', '.join(FAMILIES)} can."
            )
        if model.config.context == "window":
            raise ValueError(
                "A Whisper model in the context 'window' cannot be exported: it fills every clip up to 30 s. One made with "
                "context='clip' can."
            )
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config, self.with_frames, self.downstream = model.config, with_frames, model.downstream
        self.layers = (WhisperLayers if family == "whisper" else WaveformLayers)(model.upstream)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Embed a right-padded batch.

        Args:
            input_values: float32 `[B, samples]`, from the model's feature extractor.
            attention_mask: int32 `[B, samples]`, 1 = audio, 0 = padding.

        Returns:
            Embeddings `[B, E]`; with frames also `[B, T, K, D]`, zeros in the padding, and the number of frames of each clip
            `[B]`.
        """
        lengths = attention_mask.sum(1)
        num_frames = count_frames(lengths, self.config.upstream_config)
        collected: dict[int, Tensor] = {}
        mask = self.layers(input_values, lengths, num_frames, collected.__setitem__)
        layers = [collected[layer] for layer in self.config.selected_layers]
        pooled = torch.stack([self._pooled(layer, mask, num_frames) for layer in layers], dim=1)  # [B, K, S * D]
        embeddings = self.downstream(pooled)
        if not self.with_frames:
            return embeddings
        return embeddings, torch.stack(layers, dim=2) * mask[:, :, None, None], num_frames

    def _pooled(self, frames: Tensor, mask: Tensor, num_frames: Tensor) -> Tensor:
        """`time_moments` and `statistics_of` over the frames of each clip: `[B, T, D]` -> `[B, S * D]`."""
        weights = (mask / num_frames[:, None])[:, :, None]
        mean = (frames * weights).sum(1)
        moments = [mean]
        if num_moments(self.config.temporal_pooling) == 2:
            moments.append(((frames - mean[:, None]).square() * weights).sum(1))
        return statistics_of(torch.stack(moments, dim=1))


class WaveformLayers(nn.Module):
    """The encoder of a family that takes waveforms."""

    def __init__(self, upstream: PreTrainedModel):
        super().__init__()
        self.upstream = upstream
        for name, module in list(upstream.named_modules()):
            if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module):
                upstream.set_submodule(name, _without_weight_norm(module))
            elif isinstance(module, WavLMAttention):
                module.forward = partial(_wavlm_attention, module)
        positions = upstream.encoder.pos_conv_embed.modules()
        self.position_convolutions = [module for module in positions if isinstance(module, nn.Conv1d)]

    def forward(self, waveforms: Tensor, lengths: Tensor, num_frames: Tensor, visit: Visit) -> Tensor:
        """Show every layer `[B, T, D]` to `visit`; the mask of the frames that are there is returned, bool `[B, T]`."""
        features = self._stem(waveforms, lengths).transpose(1, 2)
        mask = mask_of(num_frames, features.shape[1])
        hidden = self.upstream.feature_projection(features)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        with without_padding(dict.fromkeys(self.position_convolutions, mask)), visiting_layers(self.upstream, visit):
            self.upstream.encoder(hidden * mask[:, :, None], attention_mask=mask)
        return mask

    def _stem(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms `[B, samples]` -> features `[B, C, T]`. Convolutions have no padding here, so frames see whole audio."""
        hidden = waveforms[:, None]
        for layer in self.upstream.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden = layer.conv(hidden)
                lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                hidden = layer.activation(_group_norm(norm, hidden, mask_of(lengths, hidden.shape[2])))
            else:
                hidden = layer(hidden)
        return hidden


class WhisperLayers(nn.Module):
    """Whisper's spectrogram and encoder, every clip at its own length (context "clip").

    The spectrogram is `log_mel` of `whisper_wavcse` with a table of sines in the place of the FFT. It is computed in float64:
    else rounding would show in quiet sounds beside loud ones, and int8 would be used for it too.
    """

    def __init__(self, upstream: PreTrainedModel):
        super().__init__()
        self.upstream = upstream
        window, filters = window_and_filters(upstream.config.num_mel_bins, torch.device("cpu"))
        angles = torch.outer(torch.arange(FFT_SAMPLES), torch.arange(len(filters))).double() * (2 * math.pi / FFT_SAMPLES)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1) * window.double()[:, None]
        self.register_buffer("waves", waves)  # [400, 2 * 201]
        self.register_buffer("filters", filters.double())  # [201, mel bins]

    def forward(self, waveforms: Tensor, lengths: Tensor, num_frames: Tensor, visit: Visit) -> Tensor:
        """As `WaveformLayers.forward`."""
        longest = (waveforms.shape[1] + WHISPER_SAMPLES_PER_FRAME - 1) // WHISPER_SAMPLES_PER_FRAME
        mask, mel_mask = mask_of(num_frames, longest), mask_of(2 * num_frames, 2 * longest)
        features = self._log_mel(waveforms, lengths, mel_mask).transpose(1, 2)
        hidden = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[:, None, None]  # [B, 1, 1, T], added to scores
        with without_padding(dict.fromkeys((self.upstream.conv1, self.upstream.conv2), mel_mask)):
            visit_encoder_layers(self.upstream, features, visit, attention_mask=hidden)
        return mask

    def _log_mel(self, waveforms: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """`[B, samples]` -> `[B, M, mel bins]`; `mask` is that of the mel frames, `[B, M]`."""
        at = torch.arange(mask.shape[1])[:, None] * HOP_SAMPLES + torch.arange(FFT_SAMPLES) - FFT_SAMPLES // 2  # [M, 400]
        ends = mask.sum(1)[:, None, None] * HOP_SAMPLES  # of the clips, filled up with zeros to whole frames
        mirrored = torch.where(at.abs() < ends, at.abs(), 2 * ends - 2 - at.abs())  # [B, M, 400]
        is_heard = (mirrored >= 0) & (mirrored < lengths[:, None, None])
        places = mirrored.clamp(min=0).minimum(lengths[:, None, None] - 1).flatten(1)
        frames = waveforms.gather(1, places).unflatten(1, (mask.shape[1], FFT_SAMPLES)) * is_heard
        cosines, sines = (frames.double() @ self.waves).chunk(2, dim=-1)
        power = (cosines.square() + sines.square()) @ self.filters
        level = power.clamp(min=LEAST_POWER).log() / math.log(10)  # ONNX has natural logarithms alone
        level = level.masked_fill(~mask[:, :, None], math.log10(LEAST_POWER))
        level = level.maximum(level.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE)
        return ((level + 4.0) / 4.0).float()


@contextmanager
def without_padding(masks: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Meanwhile a convolution sees zeros in the padding, as it does beyond the end of a clip alone.

    Args:
        masks: bool `[B, T]` of what a convolution takes, `[B, C, T]`.
    """

    def masked(module: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0] * masks[module][:, None].to(inputs[0].dtype),)

    hooks = [module.register_forward_pre_hook(masked) for module in masks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without_weight_norm(module: nn.Conv1d) -> nn.Conv1d:
    """The same convolution with its weight computed once. (`remove_parametrizations` would change the class of copies too.)"""
    sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
    plain = nn.Conv1d(*sizes, groups=module.groups, bias=module.bias is not None)
    plain.load_state_dict({name: getattr(module, name).detach() for name in plain.state_dict()})
    return plain.requires_grad_(False)


def _wavlm_attention(
    module: WavLMAttention,
    hidden_states: Tensor,
    attention_mask: Tensor,
    position_bias: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None, Tensor]:
    """`WavLMAttention.forward` for any batch and length: transformers' own has shapes in it that depend on the example.

    Args:
        hidden_states: `[B, T, D]`.
        attention_mask: bool `[B, T]`.
        position_bias: `[1, heads, T, T]`, of the first block.
    """
    split = (hidden_states.shape[0], hidden_states.shape[1], module.num_heads, module.head_dim)
    if position_bias is None:
        position_bias = module.compute_bias(split[1], split[1])[None]
    gates = module.gru_rel_pos_linear(hidden_states.view(split).transpose(1, 2)).unflatten(-1, (2, 4)).sum(-1)
    gate_a, gate_b = torch.sigmoid(gates).chunk(2, dim=-1)  # [B, heads, T, 1]
    gated = (gate_a * (gate_b * module.gru_rel_pos_const - 1.0) + 2.0) * position_bias
    bias = gated.masked_fill(~attention_mask[:, None, None], float("-inf"))
    query, key, value = (
        projection(hidden_states).view(split).transpose(1, 2) for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    context = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return module.out_proj(context.transpose(1, 2).flatten(2)), None, position_bias


def mask_of(lengths: Tensor, longest: int) -> Tensor:
    """`[B]` -> bool `[B, longest]`, true for what is there."""
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


def _group_norm(norm: nn.GroupNorm, hidden: Tensor, mask: Tensor) -> Tensor:
    """A group norm of one channel a group over the frames that are there: `[B, C, T]`, mask `[B, T]`."""
    weights = (mask / mask.sum(1, keepdim=True))[:, None]
    mean = (hidden * weights).sum(2, keepdim=True)
    variance = ((hidden - mean).square() * weights).sum(2, keepdim=True)
    normed = (hidden - mean) * torch.rsqrt(variance + norm.eps)
    return normed * norm.weight[None, :, None] + norm.bias[None, :, None]


def example_inputs(config, num_clips: int = 2, seconds: float = 1.0) -> tuple[Tensor, Tensor]:
    """Noise for a graph to be traced with: clips of unequal length, and their mask."""
    longest = max(round(seconds * config.sampling_rate), 4 * config.min_samples)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([longest - row * (longest // 4) for row in range(num_clips)])
    mask = mask_of(lengths, longest)
    return torch.randn(num_clips, longest, generator=generator) * mask, mask.int()
