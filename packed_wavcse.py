"""The upstream for inference: packed frames without any padding, only their pooling over time kept, exact in float32.

The ordinary transformers module pads a batch, builds attention tensors of `T x T` and keeps every hidden state. Here the
frames of many clips lie one after another in one matrix `[N, D]`; everything that works frame by frame (projections, norms,
feed-forward) runs on all of them at once, attention runs clip by clip on blocks of query rows, and of each layer only its mean
(and standard deviation) over time remains. Memory grows with the length of a clip, not with its square. Weights stay where
they are: float32 uses the upstream's own tensors, and what is rearranged (convolutions, gates, position bias) is derived from
them and never saved.

Shapes: `T` frames of a clip, `N` frames of all clips of a pack, `D` upstream width, `H` heads, `d = D / H`, `C` stem channels,
`S` moments (`temporal_wavcse`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .attention_wavcse import Attention, Gate, RelativeBias
from .configuration_wavcse import PRECISIONS
from .flex_wavcse import HAS_FLEX, FlexAttention
from .packing_wavcse import CPU_BUDGET, GPU_BUDGET, Span, Window, kept_rows, packs, spans_of, windows_of
from .products_wavcse import Projections, build_linear, normed
from .stem_wavcse import PositionalConvolution, RowConvolution, Stem
from .temporal_wavcse import num_moments, pooled_pieces, time_moments


class PackedUpstream:
    """An encoder's weights arranged for inference; made anew when they change (`is_current`).

    Args:
        upstream: WavLM, wav2vec2 or HuBERT of the base (group norm, norm after) or large (layer norm, norm before) shape.
        precision: "float32" (exact), "bfloat16" or "int8" for the matrix products. Residuals, norms, softmax, gates and means
            are float32 in every case.

    Raises:
        ValueError: the upstream has a part that is not known here; `unsupported_part` tells without raising.
    """

    def __init__(self, upstream: PreTrainedModel, precision: str = "float32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}.")
        reason = unsupported_part(upstream)
        if reason:
            raise ValueError(f"This upstream cannot run packed: {reason}.")
        self.precision = precision
        self.fingerprint = weights_fingerprint(upstream)
        self.config, self.device = upstream.config, upstream.device
        self.budget = CPU_BUDGET if self.device.type == "cpu" else GPU_BUDGET
        self.stem = Stem(upstream, precision, self.budget.stem_frames)
        self.position = PositionalConvolution(upstream.encoder.pos_conv_embed.conv, precision)
        norm_before = is_norm_before(upstream)
        self.first_norm = None if norm_before else upstream.encoder.layer_norm
        bias = RelativeBias(upstream) if has_relative_bias(upstream) else None
        self.blocks = [
            Block(block, norm_before, bias, precision, self.budget.product_rows) for block in upstream.encoder.layers
        ]

    def is_current(self, upstream: PreTrainedModel, precision: str) -> bool:
        """Whether this arrangement still belongs to the upstream's weights, device and the wanted precision."""
        return self.precision == precision and self.fingerprint == weights_fingerprint(upstream)

    @torch.no_grad()
    def __call__(
        self,
        waveforms: Sequence[Tensor],
        layers: Sequence[int],
        window_frames: int | None = None,
        temporal_pooling: str = "mean",
    ) -> Tensor:
        """The wanted layers, pooled over time.

        Args:
            waveforms: one float32 tensor `[samples]` per clip, normalised, without padding.
            layers: K layer numbers; 0 = input of the first block.
            window_frames: a longer clip goes through in windows of this many frames (`windows_of`), and is pooled over all
                its frames; `None` = every clip in one piece.
            temporal_pooling: "mean" or "mean_std".

        Returns:
            `[B, K, D]`, float32; with "mean_std" `[B, K, 2 D]`, means first.

        Raises:
            ValueError: the pooling is unknown.
            FloatingPointError: a value is not finite.
        """
        with torch.autocast(self.device.type, enabled=False):  # the precision is this object's, whatever surrounds the call
            pooled = self._pooled(waveforms, layers, window_frames, temporal_pooling)
        self._check_finite(pooled, waveforms)
        return pooled

    def _pooled(
        self, waveforms: Sequence[Tensor], layers: Sequence[int], window_frames: int | None, temporal_pooling: str
    ) -> Tensor:
        num_frames = [self.stem.num_frames(len(waveform)) for waveform in waveforms]
        windows = [
            Window(clip, *window) for clip, frames in enumerate(num_frames) for window in windows_of(frames, window_frames)
        ]
        first = [self.stem.first_convolution(waveform) for waveform in waveforms]
        shape = (len(layers), num_moments(temporal_pooling), self.config.hidden_size)
        moments = [torch.zeros(0, *shape, device=self.device)]  # of the windows, pack by pack
        for pack in packs(windows, self.budget.pack_frames):
            cut = [(self.stem.samples(waveforms[w.clip], w.start, w.end), first[w.clip]) for w in pack]
            moments.append(self._moments(cut, pack, layers, temporal_pooling))
        kept_frames = [window.keep_end - window.keep_start for window in windows]
        return pooled_pieces([window.clip for window in windows], kept_frames, torch.cat(moments), len(waveforms))

    def _check_finite(self, pooled: Tensor, waveforms: Sequence[Tensor]) -> None:
        if torch.isfinite(pooled).all():
            return
        # A clip with such samples comes first: blocks of the positional convolution carry them on into its neighbours.
        at_fault = [clip for clip, waveform in enumerate(waveforms) if not torch.isfinite(waveform).all()]
        at_fault += [clip for clip, own in enumerate(pooled) if not torch.isfinite(own).all()]
        raise FloatingPointError(
            f"clip {at_fault[0]}: the upstream gave values that are not finite at precision={self.precision!r}. "
            "Check its weights and the clip, or use precision='float32'."
        )

    def _moments(
        self,
        waveforms: list[tuple[Tensor, RowConvolution]],
        pack: Sequence[Window],
        layers: Sequence[int],
        temporal_pooling: str,
    ) -> Tensor:
        """Moments of the windows of the pack, `[windows, K, S, D]`."""
        spans = spans_of(pack)
        x = self.position(self.stem(waveforms, spans), spans)
        if self.first_norm is not None:
            x = normed(x, self.first_norm)
        moments = {0: span_moments(x, spans, temporal_pooling)} if 0 in layers else {}
        for layer, block in enumerate(self.blocks[: max(layers)], start=1):
            if layer == max(layers) and temporal_pooling == "mean":
                moments[layer] = block.last_means(x, spans)[:, None]
            else:
                x = block(x, spans)
                if layer in layers:
                    moments[layer] = span_moments(x, spans, temporal_pooling)
        return torch.stack([moments[layer] for layer in layers], dim=1)


def span_moments(x: Tensor, spans: Sequence[Span], temporal_pooling: str) -> Tensor:
    """`[N, D]` -> `[B, S, D]`, the moments of every window's kept rows."""
    return torch.stack([time_moments(rows, temporal_pooling) for rows in kept_rows(x, spans)])


class Block:
    """One transformer block on packed frames: attention clip by clip, everything else on all rows."""

    def __init__(self, block: nn.Module, norm_before: bool, bias: RelativeBias | None, precision: str, product_rows: int):
        self.norm_before, self.product_rows = norm_before, product_rows
        self.attention_norm, self.output_norm = block.layer_norm, block.final_layer_norm
        attention = FlexAttention if HAS_FLEX and block.layer_norm.weight.is_cuda else Attention
        self.attention = attention(block.attention.num_heads, bias)
        query, key, value, output, inner, outer = _linear_layers(block)
        self.projections = Projections([query, key, value], precision)
        self.output, self.inner, self.outer = (build_linear([layer], precision) for layer in (output, inner, outer))
        self.gate = Gate(block.attention) if bias is not None else None

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` -> `[N, D]`; `x` itself is used for the result."""
        x = self._attended(x, spans)
        for rows in x.split(self.product_rows):
            if self.norm_before:
                self.outer.add_to(rows, self.inner(normed(rows, self.output_norm), gelu=True))
            else:
                self.outer.add_to(rows, self.inner(rows, gelu=True))
                rows.copy_(normed(rows, self.output_norm))
        return x

    def last_means(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """Time means `[B, D]` of this block's output, when no later block needs the frames.

        With the norm before, the block ends in a sum with a linear layer, which may be applied to the mean.
        """
        if not self.norm_before:
            return time_means(self(x, spans), spans)
        x = self._attended(x, spans)
        means = time_means(x, spans)
        self.outer.add_to(means, self._inner_means(x, spans).to(means.dtype))
        return means

    def _inner_means(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """Time means of the feed-forward's inner activations, `[B, 4 D]`."""
        totals = x.new_zeros(len(spans), self.inner.out_features)
        for first, rows in zip(range(0, len(x), self.product_rows), x.split(self.product_rows)):
            inner = self.inner(normed(rows, self.output_norm), gelu=True)
            for total, span in zip(totals, spans):
                start, end = max(span.keep_start - first, 0), min(span.keep_end - first, len(rows))
                if start < end:
                    total += inner[start:end].sum(dim=0, dtype=torch.float32)
        return totals / x.new_tensor([span.keep_end - span.keep_start for span in spans])[:, None]

    def _attended(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        h = normed(x, self.attention_norm) if self.norm_before else x
        gate = None if self.gate is None else self.gate(h)
        attended = self.attention(*self.projections(h), gate, spans)
        self.output.add_to(x, attended)
        return x if self.norm_before else normed(x, self.attention_norm)


def time_means(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """`[N, D]` -> `[B, D]`, the mean of every window's kept rows."""
    return span_moments(x, spans, "mean")[:, 0]


def weights_fingerprint(upstream: PreTrainedModel) -> tuple:
    """Changes whenever a parameter is written to, replaced or moved; costs microseconds, reads no weight."""
    return tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version, parameter.dtype)
        for parameter in upstream.parameters()
    )


def is_norm_before(upstream: PreTrainedModel) -> bool:
    """Whether blocks normalise their input (large shape) rather than their output (base shape)."""
    return bool(upstream.config.do_stable_layer_norm)


def has_relative_bias(upstream: PreTrainedModel) -> bool:
    """Whether attention has WavLM's gated position bias."""
    return len(upstream.encoder.layers) > 0 and hasattr(upstream.encoder.layers[0].attention, "gru_rel_pos_const")


def unsupported_part(upstream: PreTrainedModel) -> str | None:
    """What keeps an upstream from running packed, or `None`; such a one runs as the ordinary transformers module."""
    config = upstream.config
    for name in ("feat_extract_activation", "hidden_act"):
        if getattr(config, name) != "gelu":
            return f"{name} is {getattr(config, name)!r}, not 'gelu'"
    if getattr(config, "adapter_attn_dim", None) is not None:
        return "its blocks have attention adapters"
    if getattr(config, "conv_pos_batch_norm", False):
        return "its positional convolution has a batch norm"
    if any(parameter.dtype != torch.float32 for parameter in upstream.parameters()):
        return "its weights are not float32"
    projection = upstream.feature_projection
    layers = [getattr(projection, "projection", projection)]
    for block in upstream.encoder.layers:
        layers += [*_linear_layers(block), getattr(block.attention, "gru_rel_pos_linear", layers[0])]
    for layer in layers:
        if not isinstance(layer, nn.Linear):  # LoRA and the like: there is more to it than a weight and a bias
            return f"one of its linear layers is a {type(layer).__name__}"
    return None


def _linear_layers(block: nn.Module) -> list[nn.Module]:
    attention, feed_forward = block.attention, block.feed_forward
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
    return [*projections, feed_forward.intermediate_dense, feed_forward.output_dense]
