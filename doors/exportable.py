"""A wavCSE model as one graph of tensors: a padded batch and its mask in, embeddings out, the same as alone.

The model itself lays clips end to end or groups them by length, which no graph of fixed operations can. Here clips stay
padded, and whatever would see the padding is told of it: the group norm of base shapes, the encoder's convolutions and
attention, and the pooling over time.

Shapes: `B` clips, `T` frames of the longest, `K` selected layers, `D` upstream width, `E` embedding size.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from wavcse.configuration_wavcse import count_frames
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.pooling_wavcse import num_moments, statistics_of
from wavcse.upstream_wavcse import visiting_layers

# Waveform, convolutions, positions by a convolution, blocks: what `ExportableModel` can tell of padding.
FAMILIES = ("wavlm", "wav2vec2", "hubert", "unispeech-sat", "data2vec-audio")


class ExportableModel(nn.Module):
    """A copy of a model, in eval mode, that runs a padded batch without Python between its operations.

    Args:
        model: with an upstream of `FAMILIES`.
        with_frames: also give the frames of the selected layers.

    Raises:
        ValueError: the upstream is of another family.
    """

    def __init__(self, model: WavCSEModel, with_frames: bool = False):
        super().__init__()
        family = model.config.upstream_config.model_type
        if family not in FAMILIES:
            raise ValueError(
                f"A model with an upstream of the family {family} cannot be exported yet; those of {', '.join(FAMILIES)} can."
            )
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config, self.with_frames = model.config, with_frames
        self.upstream, self.downstream = model.upstream, model.downstream
        for name, module in list(self.upstream.named_modules()):
            if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module):
                self.upstream.set_submodule(name, _without_weight_norm(module))
            elif isinstance(module, WavLMAttention):
                module.forward = partial(_wavlm_attention, module)
        positions = self.upstream.encoder.pos_conv_embed.modules()
        self.position_convolutions = [module for module in positions if isinstance(module, nn.Conv1d)]

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
        features = self._stem(input_values, lengths).transpose(1, 2)
        num_frames = count_frames(lengths, self.config.upstream_config)
        mask = _mask_of(num_frames, features.shape[1])
        hidden = self.upstream.feature_projection(features)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        layers = self._layers(hidden, mask)
        pooled = torch.stack([self._pooled(layer, mask, num_frames) for layer in layers], dim=1)  # [B, K, S * D]
        embeddings = self.downstream(pooled)
        if not self.with_frames:
            return embeddings
        return embeddings, torch.stack(layers, dim=2) * mask[:, :, None, None], num_frames

    def _stem(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms `[B, samples]` -> features `[B, C, T]`. Convolutions have no padding here, so frames see whole audio."""
        hidden = waveforms[:, None]
        for layer in self.upstream.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden = layer.conv(hidden)
                lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
                hidden = layer.activation(_group_norm(norm, hidden, _mask_of(lengths, hidden.shape[2])))
            else:
                hidden = layer(hidden)
        return hidden

    def _layers(self, hidden: Tensor, mask: Tensor) -> list[Tensor]:
        """The selected layers, each `[B, T, D]`."""
        collected: dict[int, Tensor] = {}

        def without_padding(module: nn.Module, inputs: tuple) -> tuple:
            return (inputs[0] * mask[:, None].to(inputs[0].dtype),)  # zeros, as a convolution pads a clip alone

        hooks = [module.register_forward_pre_hook(without_padding) for module in self.position_convolutions]
        try:
            with visiting_layers(self.upstream, collected.__setitem__):
                self.upstream.encoder(hidden * mask[:, :, None], attention_mask=mask)
        finally:
            for hook in hooks:
                hook.remove()
        return [collected[layer] for layer in self.config.selected_layers]

    def _pooled(self, frames: Tensor, mask: Tensor, num_frames: Tensor) -> Tensor:
        """`time_moments` and `statistics_of` over the frames of each clip: `[B, T, D]` -> `[B, S * D]`."""
        weights = (mask / num_frames[:, None])[:, :, None]
        mean = (frames * weights).sum(1)
        moments = [mean]
        if num_moments(self.config.temporal_pooling) == 2:
            moments.append(((frames - mean[:, None]).square() * weights).sum(1))
        return statistics_of(torch.stack(moments, dim=1))


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


def _mask_of(lengths: Tensor, longest: int) -> Tensor:
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
    mask = _mask_of(lengths, longest)
    return torch.randn(num_clips, longest, generator=generator) * mask, mask.int()
