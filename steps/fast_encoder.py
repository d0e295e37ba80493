"""Parts of an encoder in training that compute what transformers' own do, faster, and clips of several lengths in one pass.

The clips of a batch differ in length, and none is padded. Length by length they would go through in small products, with much
around them; here the stem takes a list of groups, each of clips of one length, and lays their frames one after another into
one row of `N` frames. What works frame by frame does not notice. What mixes frames, attention and the positional convolution,
keeps clips apart, as the `Pack` says that the stem has filled.

What is exchanged are classes of submodules; parameters, their names and the saved folder stay transformers'.

Shapes: `B` clips of one length, `T` frames, `N` frames of all groups, `D` width, `H` heads, `d = D / H`, `C` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.hubert.modeling_hubert import (
    HubertAttention,
    HubertFeatureEncoder,
    HubertLayerNormConvLayer,
    HubertPositionalConvEmbedding,
)
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2Attention,
    Wav2Vec2FeatureEncoder,
    Wav2Vec2LayerNormConvLayer,
    Wav2Vec2PositionalConvEmbedding,
)
from transformers.models.wavlm.modeling_wavlm import (
    WavLMAttention,
    WavLMFeatureEncoder,
    WavLMLayerNormConvLayer,
    WavLMPositionalConvEmbedding,
)

from wavcse.packed_encoder_wavcse import convolved_by_fft, fits_fft, positional_spectrum
from wavcse.packed_layers_wavcse import position_gate, summed_by_fours
from wavcse.training.fast_parts import linear, use_linear


class Pack:
    """Which frames of the row that an encoder is working on belong to which clips: the clips and frames of every group."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def groups(self, row: Tensor) -> list[Tensor]:
        """`[1, N, D]` -> every group's `[B, T, D]`, a view; what is of one group is `[B, T, D]` already."""
        if len(self.shapes) == 1:
            return [row]
        parts = row[0].split([clips * frames for clips, frames in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes)]

    def row(self, groups: Sequence[Tensor]) -> Tensor:
        """The way back."""
        return groups[0] if len(groups) == 1 else torch.cat([group.flatten(0, 1) for group in groups])[None]

    def places(self, gap: int) -> Tensor:
        """Where every frame lies if a gap goes before each clip, `[N]`."""
        lengths = torch.tensor([frames for clips, frames in self.shapes for _ in range(clips)])
        return torch.arange(int(lengths.sum())) + gap * torch.arange(1, len(lengths) + 1).repeat_interleave(lengths)


class PackedStem(nn.Module):
    """The convolutions of any of the three families; the groups of a list one after another."""

    def forward(self, waveforms: Tensor | Sequence[Tensor]) -> Tensor:
        """Normalised waveforms `[B, samples]` -> `[B, C, T]`; a list of such groups -> `[1, C, N]`."""
        groups = [self._convolved(own).transpose(1, 2) for own in ([waveforms] if torch.is_tensor(waveforms) else waveforms)]
        self.pack.shapes = [group.shape[:2] for group in groups]
        return self.pack.row(groups).transpose(1, 2)

    def _convolved(self, waveforms: Tensor) -> Tensor:
        hidden = waveforms[:, None]
        for layer in self.conv_layers:
            hidden = layer(hidden)
        return hidden

    def _freeze_parameters(self) -> None:
        self.requires_grad_(False)  # as transformers' own method of this name


class PackedPositions(nn.Module):
    """The positional convolution; a long kernel in the frequency domain, on all clips at once (float32 on a CPU)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, T, D]` or `[1, N, D]` -> the same."""
        if hidden_states.device.type != "cpu" or hidden_states.dtype != torch.float32 or not fits_fft(self.conv):
            return self.pack.row([self._direct(group) for group in self.pack.groups(hidden_states)])
        gap = self.conv.kernel_size[0] // 2
        at = self.pack.places(gap)
        spectrum = positional_spectrum(self.conv.weight, self.conv.groups)
        row = convolved_by_fft(hidden_states.flatten(0, 1), at, int(at[-1]) + 1, spectrum, self.conv.kernel_size[0])
        return self.activation(row.index_select(0, at - gap) + self.conv.bias).view(hidden_states.shape)

    def _direct(self, frames: Tensor) -> Tensor:
        return self.activation(self.padding(self.conv(frames.transpose(1, 2)))).transpose(1, 2)


class PackedAttention(nn.Module):
    """The attention of wav2vec2 and HuBERT, clip by clip, by PyTorch's fused kernel."""

    def forward(self, hidden_states: Tensor, attention_mask: None = None, **kwargs) -> tuple[Tensor, None]:
        """`[B, T, D]` or `[1, N, D]` -> the same, and no weights."""
        return attended(self, hidden_states, attention_mask, [None] * len(self.pack.shapes)), None


class BiasedAttention(WavLMAttention):
    """WavLM's, without the averaged weights that transformers computes and drops.

    The position bias exists once, not once per clip, and the gate's eight outputs per head are summed in its weights.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: None = None, position_bias: Tensor | None = None, index: int = 0, **kwargs
    ) -> tuple[Tensor, None, Tensor]:
        """`[B, T, D]` or `[1, N, D]` -> the same, no weights, and the longest clip's position bias for the next block."""
        if position_bias is None:
            longest = max(frames for _, frames in self.pack.shapes)
            position_bias = self.compute_bias(longest, longest)  # [H, T, T]
        gates = self.pack.groups(self._gate(hidden_states.unflatten(2, (self.num_heads, self.head_dim))))
        biases = [
            gate.transpose(1, 2)[..., None] * position_bias[:, :frames, :frames]
            for gate, (_, frames) in zip(gates, self.pack.shapes)
        ]
        return attended(self, hidden_states, attention_mask, biases), None, position_bias

    def _gate(self, heads: Tensor) -> Tensor:
        """`[B, T, H, d]` -> `[B, T, H]`."""
        layer = self.gru_rel_pos_linear
        return position_gate(heads, *summed_by_fours(layer.weight, layer.bias), self.gru_rel_pos_const.view(-1, 1)).squeeze(-1)


def attended(layer: nn.Module, hidden_states: Tensor, attention_mask: None, biases: Sequence[Tensor | None]) -> Tensor:
    """What an attention layer makes of `[B, T, D]` or `[1, N, D]`; `biases` of every group are added to its scores."""
    if attention_mask is not None:
        raise ValueError("In training clips are not padded; no attention_mask is taken.")
    pack, found, dropout = layer.pack, [], layer.dropout if layer.training else 0.0
    projected = [pack.groups(projection(hidden_states)) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)]
    for *group, bias in zip(*projected, biases):
        query, key, value = (x.unflatten(2, (layer.num_heads, layer.head_dim)).transpose(1, 2) for x in group)
        bias = None if bias is None else bias.to(query.dtype)
        own = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        found.append(own.transpose(1, 2).flatten(2))
    return layer.out_proj(pack.row(found))


class RowConvLayer(GradientCheckpointingLayer):
    """A convolution of the stem as a product on rows `[T, C]`, where its norm works too; in and out are `[B, C, T]` views."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, C, T]` -> `[B, C', T']`."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        windows = hidden_states.transpose(1, 2).unfold(1, kernel, stride)  # [B, T', C, kernel], a view
        rows = linear(windows.flatten(2), self.conv.weight.flatten(1), self.conv.bias)
        return self.activation(self.layer_norm(rows)).transpose(1, 2)


OF_STEMS = dict.fromkeys((WavLMLayerNormConvLayer, Wav2Vec2LayerNormConvLayer, HubertLayerNormConvLayer), RowConvLayer)
THAT_TAKE_PACKS = {
    **dict.fromkeys((WavLMFeatureEncoder, Wav2Vec2FeatureEncoder, HubertFeatureEncoder), PackedStem),
    **dict.fromkeys(
        (WavLMPositionalConvEmbedding, Wav2Vec2PositionalConvEmbedding, HubertPositionalConvEmbedding), PackedPositions
    ),
    **dict.fromkeys((Wav2Vec2Attention, HubertAttention), PackedAttention),
    WavLMAttention: BiasedAttention,
}


def use_fast_parts(encoder: PreTrainedModel) -> PreTrainedModel:
    """Exchange transformers' own parts for those above, and linear layers for those of `fast_parts`.

    Stems with group norms have one norm only, so that their convolutions stay. A HuBERT with `conv_pos_batch_norm` takes no
    packs: its batch norm sees the clips of one length.
    """
    exchanged = dict(OF_STEMS)
    if getattr(encoder.encoder.pos_conv_embed, "batch_norm", None) is None:
        exchanged |= THAT_TAKE_PACKS
    pack = Pack()
    for module in encoder.modules():
        if type(module) in exchanged:
            module.__class__, module.pack = exchanged[type(module)], pack
    encoder.feature_extractor._requires_grad = False  # of the waveform, for gradient checkpointing; costs a product
    use_linear(encoder)
    return encoder


def takes_packs(encoder: PreTrainedModel) -> bool:
    """Whether clips of several lengths can go through an encoder in one pass."""
    return isinstance(getattr(encoder, "feature_extractor", None), PackedStem)
