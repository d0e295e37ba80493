"""The upstream for inference: packed frames without any padding, only their pooling over time kept, exact in float32.

The ordinary transformers module pads a batch, builds attention tensors of `T x T` and keeps every hidden state. Here the
frames of many clips lie one after another in one matrix `[N, D]`; everything that works frame by frame (projections, norms,
feed-forward) runs on all of them at once, attention runs clip by clip on blocks of query rows, and of each layer only its mean
(and standard deviation) over time remains. Memory grows with the length of a clip, not with its square. Weights stay where
they are: float32 uses the upstream's own tensors, and what is rearranged (convolutions, gates, position bias) is derived from
them and never saved.

Shapes: `T` frames of a clip, `N` frames of all clips of a pack, `D` upstream width, `H` heads, `d = D / H`, `C` stem channels,
`S` moments (`pooling_wavcse`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_wavcse import MODULE_FAMILIES, PRECISIONS, TWO_SHAPES, count_frames, frame_geometry, is_whisper
from .packed_layers_wavcse import (
    HAS_FLEX,
    Attention,
    FlexAttention,
    FloatLinear,
    Gate,
    Projections,
    RelativeBias,
    Span,
    build_linear,
    check_speed,
    gelu_,
    normed,
)
from .pooling_wavcse import num_moments, pooled_pieces, time_moments
from .whisper_wavcse import log_mel_of_clip

MOMENT_WINDOWS = 2**17  # input windows of the first convolution at a time
FFT_SIZE = 256  # twice a kernel of 128: with 512 short clips wait for twice as many weights, long ones gain nothing
FFT_FROM_KERNEL = 64  # shorter positional convolutions are faster done directly
KEPT_BYTES = 2**25 - 2**16  # just below the largest block that teaches glibc anything


class PackedUpstream:
    """An encoder's weights arranged for inference; to be made again when their `fingerprint` changes (`weights_fingerprint`).

    Args:
        upstream: WavLM, wav2vec2 or HuBERT of the base (group norm, norm after) or large (layer norm, norm before) shape, or
            Whisper's encoder.
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
        self.precision, self.fingerprint = precision, weights_fingerprint(upstream)
        self.config, self.device = upstream.config, upstream.device
        self.budget = CPU_BUDGET if self.device.type == "cpu" else GPU_BUDGET
        if self.device.type == "cpu":
            keep_freed_memory()
        entrance = WhisperEntrance if is_whisper(upstream.config) else WaveformEntrance
        self.entrance = entrance(upstream, precision, self.budget)
        norm_before = is_norm_before(upstream)
        bias = RelativeBias(upstream) if has_relative_bias(upstream) else None
        self.blocks = [Block(block, norm_before, bias, precision, self.budget.product_rows) for block in blocks_of(upstream)]
        check_speed(precision, self.device)

    @torch.no_grad()
    def __call__(
        self,
        waveforms: Sequence[Tensor],
        layers: Sequence[int],
        window_frames: int | None = None,
        temporal_pooling: str = "mean",
        context: str | None = None,
    ) -> Tensor:
        """The wanted layers, pooled over time.

        Args:
            waveforms: one float32 tensor `[samples]` per clip, normalised, without padding.
            layers: K layer numbers; 0 = input of the first block.
            window_frames: a longer clip goes through in windows of this many frames (`windows_of`), and is pooled over all
                its frames; `None` = every clip in one piece.
            temporal_pooling: "mean" or "mean_std".
            context: of Whisper, "clip" or "window"; `None` for all others.

        Returns:
            `[B, K, D]`, float32; with "mean_std" `[B, K, 2 D]`, means first.

        Raises:
            ValueError: the pooling is unknown.
            FloatingPointError: a value is not finite.
        """
        windows = clip_windows(waveforms, self.config, window_frames, context)
        shape = (len(layers), num_moments(temporal_pooling), self.config.hidden_size)
        moments = [torch.zeros(0, *shape, device=self.device)]  # of the windows, pack by pack
        with torch.autocast(self.device.type, enabled=False):  # the precision is this object's, whatever surrounds the call
            for x, spans in self._inputs(waveforms, windows, context):
                moments.append(self._moments(x, spans, layers, temporal_pooling))
            kept_frames = [window.keep_end - window.keep_start for window in windows]
            pooled = pooled_pieces([window.clip for window in windows], kept_frames, torch.cat(moments), len(waveforms))
        if not torch.isfinite(pooled).all():
            raise self._not_finite(pooled, waveforms)
        return pooled

    @torch.no_grad()
    def frames(
        self,
        waveforms: Sequence[Tensor],
        layers: Sequence[int],
        window_frames: int | None = None,
        context: str | None = None,
    ) -> list[Tensor]:
        """The wanted layers frame by frame: what `__call__` pools, one `[T, K, D]` per clip; arguments and errors as there."""
        windows = clip_windows(waveforms, self.config, window_frames, context)
        kept: list[Tensor] = []
        with torch.autocast(self.device.type, enabled=False):
            for x, spans in self._inputs(waveforms, windows, context):
                kept += self._frames(x, spans, layers)
        frames = joined_windows(windows, kept)
        if not all(own.isfinite().all() for own in frames):
            raise self._not_finite(frames, waveforms)
        return frames

    def _inputs(
        self, waveforms: Sequence[Tensor], windows: Sequence[Window], context: str | None
    ) -> Iterator[tuple[Tensor, list[Span]]]:
        """Pack by pack, the input of the first block `[N, D]` and where its windows lie."""
        clips = [self.entrance.prepared(waveform, context) for waveform in waveforms]
        for pack in packs(windows, self.budget.pack_frames):
            spans = spans_of(pack)
            yield self.entrance([(clips[window.clip], window.start, window.end) for window in pack], spans), spans

    def _frames(self, x: Tensor, spans: Sequence[Span], layers: Sequence[int]) -> list[Tensor]:
        """From the input of the first block `[N, D]`, the kept frames of every window of a pack, `[T, K, D]` each."""
        taken = torch.empty(len(x), len(layers), x.shape[1], device=x.device)
        for layer in range(max(layers) + 1):
            if layer > 0:
                x = self.blocks[layer - 1](x, spans)
            for k in (k for k, wanted in enumerate(layers) if wanted == layer):
                taken[:, k] = x
        return [taken[span.keep_start : span.keep_end] for span in spans]

    def _not_finite(self, pooled: Sequence[Tensor], waveforms: Sequence[Tensor]) -> FloatingPointError:
        # A clip with such samples comes first: blocks of the positional convolution carry them on into its neighbours.
        at_fault = [clip for clip, waveform in enumerate(waveforms) if not torch.isfinite(waveform).all()]
        at_fault += [clip for clip, own in enumerate(pooled) if not torch.isfinite(own).all()]
        return FloatingPointError(
            f"clip {at_fault[0]}: the upstream gave values that are not finite at precision={self.precision!r}. "
            "Check its weights and the clip, or use precision='float32'."
        )

    def _moments(self, x: Tensor, spans: Sequence[Span], layers: Sequence[int], temporal_pooling: str) -> Tensor:
        """From the input of the first block `[N, D]`, the moments of the windows of a pack, `[windows, K, S, D]`."""
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
    """`[N, D]` -> `[B, S, D]`, the moments of every window's kept rows; of whole windows of one length in one go."""
    moments = []
    shape = lambda span: (span.end - span.start, span.keep_start - span.start, span.end - span.keep_end)  # noqa: E731
    for (frames, before, behind), group in itertools.groupby(spans, key=shape):
        group = list(group)
        if not before and not behind:
            rows = x[group[0].start : group[-1].end].unflatten(0, (len(group), frames))
            moments.append(time_moments(rows, temporal_pooling))
        else:
            moments += [time_moments(x[span.keep_start : span.keep_end], temporal_pooling)[None] for span in group]
    return torch.cat(moments)


class Block:
    """One transformer block on packed frames: attention clip by clip, everything else on all rows."""

    def __init__(self, block: nn.Module, norm_before: bool, bias: RelativeBias | None, precision: str, product_rows: int):
        self.norm_before, self.product_rows = norm_before, product_rows
        own, self.attention_norm, self.output_norm = attention_of(block), attention_norm_of(block), block.final_layer_norm
        attention = FlexAttention if HAS_FLEX and self.output_norm.weight.is_cuda else Attention
        self.attention = attention(own.num_heads, bias)
        query, key, value, output, inner, outer = _linear_layers(block)
        self.projections = Projections([query, key, value], precision)
        self.output, self.inner, self.outer = (build_linear([layer], precision) for layer in (output, inner, outer))
        self.gate = Gate(own) if bias is not None else None

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` -> `[N, D]`; `x` itself is used for the result."""
        x = self._attended(x, spans)
        for rows in self._parts(x):
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
        first = 0
        for rows in self._parts(x):
            inner = self.inner(normed(rows, self.output_norm), gelu=True)
            for total, span in zip(totals, spans):
                start, end = max(span.keep_start - first, 0), min(span.keep_end - first, len(rows))
                if start < end:
                    total += inner[start:end].sum(dim=0, dtype=torch.float32)
            first += len(rows)
        return totals / x.new_tensor([span.keep_end - span.keep_start for span in spans])[:, None]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rows of the feed-forward, in as few parts as may be, of about one size: small products are slow ones."""
        return x.chunk(-(-len(x) // self.product_rows))

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
    """Changes whenever a parameter is written to, replaced or moved, or a module is replaced or wrapped; reads no weight."""
    found: list = []
    for module in modules_in(upstream):
        found.append(id(module))
        for weight in module._parameters.values():
            if weight is not None:
                found.append((weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype))
    return tuple(found)


def modules_in(module: nn.Module) -> list[nn.Module]:
    """A module and all below it. `Module.modules` names them too, and takes as long as a block of a small encoder."""
    found = [module]
    for own in found:  # it grows
        found += [child for child in own._modules.values() if child is not None]
    return found


def blocks_of(upstream: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of an upstream; Whisper's and Moonshine's encoders are upstreams by themselves."""
    if upstream.config.model_type == "sew-d":
        return upstream.encoder.encoder.layer
    return upstream.layers if upstream.config.model_type in ("whisper", "moonshine") else upstream.encoder.layers


def attention_of(block: nn.Module) -> nn.Module:
    """The attention of a block, under either family's name."""
    return block.self_attn if hasattr(block, "self_attn") else block.attention


def attention_norm_of(block: nn.Module) -> nn.LayerNorm:
    """The norm beside a block's attention, under either family's name."""
    return block.self_attn_layer_norm if hasattr(block, "self_attn_layer_norm") else block.layer_norm


def is_norm_before(upstream: PreTrainedModel) -> bool:
    """Whether blocks normalise their input (large shape, Whisper) rather than their output (base shape, data2vec)."""
    family = upstream.config.model_type
    return is_whisper(upstream.config) or (family in TWO_SHAPES and upstream.config.do_stable_layer_norm)


def has_relative_bias(upstream: PreTrainedModel) -> bool:
    """Whether attention has WavLM's gated position bias."""
    return any(hasattr(attention_of(block), "gru_rel_pos_const") for block in blocks_of(upstream))


def unsupported_part(upstream: PreTrainedModel) -> str | None:
    """What keeps an upstream from running packed, or `None`; such a one runs as the ordinary transformers module."""
    config, of_whisper = upstream.config, is_whisper(upstream.config)
    if config.model_type in MODULE_FAMILIES:
        return "the packed path does not have its kind of blocks"
    for name in ("activation_function",) if of_whisper else ("feat_extract_activation", "hidden_act"):
        if getattr(config, name) != "gelu":
            return f"{name} is {getattr(config, name)!r}, not 'gelu'"
    if getattr(config, "adapter_attn_dim", None) is not None:
        return "its blocks have attention adapters"
    if getattr(config, "conv_pos_batch_norm", False):
        return "its positional convolution has a batch norm"
    if any(parameter.dtype != torch.float32 for parameter in upstream.parameters()):
        return "its weights are not float32"
    layers = [] if of_whisper else [getattr(upstream.feature_projection, "projection", upstream.feature_projection)]
    for block in blocks_of(upstream):
        layers += [*_linear_layers(block)]
        layers += [attention_of(block).gru_rel_pos_linear] if hasattr(attention_of(block), "gru_rel_pos_linear") else []
    for layer in layers:
        if not isinstance(layer, nn.Linear):  # LoRA and the like: there is more to it than a weight and a bias
            return f"one of its linear layers is a {type(layer).__name__}"
    return None


def _linear_layers(block: nn.Module) -> list[nn.Module]:
    attention = attention_of(block)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
    if hasattr(block, "fc1"):
        return [*projections, block.fc1, block.fc2]
    return [*projections, block.feed_forward.intermediate_dense, block.feed_forward.output_dense]


# ---- waveforms to the frames that the first block sees ----


class WaveformEntrance:
    """What the first block of a family that takes waveforms sees: stem, positions and, in the base shape, a norm."""

    def __init__(self, upstream: PreTrainedModel, precision: str, budget: Budget):
        self.stem = Stem(upstream, precision, budget)
        embed = upstream.encoder.pos_conv_embed
        is_stack = hasattr(embed, "layers")  # data2vec's
        self.position = StackedConvolutions(embed) if is_stack else PositionalConvolution(embed.conv)
        self.norm = None if is_norm_before(upstream) else upstream.encoder.layer_norm

    def prepared(self, waveform: Tensor, context: None = None) -> tuple[Tensor, RowConvolution]:
        """What is found out about a whole clip `[samples]` before it is cut into windows."""
        return waveform, self.stem.first_convolution(waveform)

    def __call__(self, windows: Sequence[tuple[tuple, int, int]], spans: Sequence[Span]) -> Tensor:
        """Frames `start` to `end` of each `(prepared clip, start, end)`, `[N, D]`."""
        cut = [(self.stem.samples(waveform, start, end), first) for (waveform, first), start, end in windows]
        x = self.position(self.stem(cut, spans), spans)
        return x if self.norm is None else normed(x, self.norm)


class WhisperEntrance:
    """What the first block of Whisper sees: the log-mel spectrogram through two convolutions, plus positions."""

    def __init__(self, upstream: PreTrainedModel, precision: str, budget: Budget):
        self.config = upstream.config
        self.convolutions = [RowConvolution(conv, precision) for conv in (upstream.conv1, upstream.conv2)]
        self.positions = upstream.embed_positions.weight.detach()

    def prepared(self, waveform: Tensor, context: str) -> Tensor:
        """The log-mel spectrogram `[2 T, mel bins]` of a whole clip `[samples]`."""
        return log_mel_of_clip(waveform, self.config, context)

    def __call__(self, windows: Sequence[tuple[Tensor, int, int]], spans: Sequence[Span]) -> Tensor:
        """Frames `start` to `end` of each `(spectrogram, start, end)`, `[N, D]`."""
        x = self.positions.new_empty(spans[-1].end, self.positions.shape[1])
        for (spectrogram, start, end), span in zip(windows, spans):
            rows = spectrogram[2 * start : 2 * end]
            for convolution in self.convolutions:
                rows = convolution(F.pad(rows, (0, 0, 1, 1)), gelu=True)
            torch.add(rows, self.positions[: end - start], out=x[span.start : span.end])
        return x


class Stem:
    """Waveforms -> projected frames `[N, D]`: strided convolutions as matrix products on rows `[T, C]`, chunk by chunk.

    The base shape's group norm over time needs the mean and variance of the whole clip. They follow exactly from mean and
    covariance of the first convolution's input windows (10 x 10 numbers): the norm becomes a per-clip change of its weights.
    """

    def __init__(self, upstream: PreTrainedModel, precision: str, budget: Budget):
        fitting = round(budget.stem_elements / elements_per_frame(upstream.config))
        self.chunk_frames = min(max(fitting, 1), budget.stem_frames)
        layers = upstream.feature_extractor.conv_layers
        self.convolutions = [RowConvolution(layer.conv, precision) for layer in layers]
        first = layers[0].layer_norm
        self.group_norm = first if isinstance(first, nn.GroupNorm) else None
        self.norms = [None if self.group_norm else layer.layer_norm for layer in layers]
        self.receptive_field, self.hop = frame_geometry(upstream.config)
        projection = upstream.feature_projection
        self.projection_norm = getattr(projection, "layer_norm", None)
        self.projection = FloatLinear(projection.projection.weight, projection.projection.bias, precision)

    def first_convolution(self, waveform: Tensor) -> RowConvolution:
        """The first convolution for this clip; its group norm, where there is one, is over the whole clip."""
        first = self.convolutions[0]
        return first if self.group_norm is None else first.with_group_norm(waveform, self.group_norm)

    def samples(self, waveform: Tensor, start: int, end: int) -> Tensor:
        """The part of `[samples]` that frames `start` to `end` are made of."""
        return waveform[self.hop * start : self.hop * (end - 1) + self.receptive_field]

    def __call__(self, windows: Sequence[tuple[Tensor, RowConvolution]], spans: Sequence[Span]) -> Tensor:
        features = windows[0][0].new_empty(spans[-1].end, self.convolutions[-1].channels)
        for pieces in self._pieces(windows, spans):
            first, end = pieces[0][0], pieces[-1][1]
            features[first:end] = self._convolve([samples for _, _, samples, _ in pieces], pieces[0][3])
        if self.projection_norm is not None:
            features = normed(features, self.projection_norm)
        return self.projection(features).float()

    def _pieces(
        self, windows: Sequence[tuple[Tensor, RowConvolution]], spans: Sequence[Span]
    ) -> Iterator[list[tuple[int, int, Tensor, RowConvolution]]]:
        """`(first row, end, samples, first convolution)` of parts of windows, as many together as make a chunk."""
        pieces: list[tuple[int, int, Tensor, RowConvolution]] = []
        for (waveform, first), span in zip(windows, spans):
            for a in range(span.start, span.end, self.chunk_frames):
                b = min(span.end, a + self.chunk_frames)
                if pieces and (self.group_norm is not None or b - pieces[0][0] > self.chunk_frames):
                    yield pieces
                    pieces = []
                pieces.append((a, b, self.samples(waveform, a - span.start, b - span.start), first))
        yield pieces

    def _convolve(self, pieces: Sequence[Tensor], first: RowConvolution) -> Tensor:
        x, lengths = torch.cat(pieces)[:, None] if len(pieces) > 1 else pieces[0][:, None], [len(piece) for piece in pieces]
        for convolution, norm in zip([first, *self.convolutions[1:]], self.norms):
            x = convolution(x, norm is None, lengths)
            if norm is not None:
                x = gelu_(normed(x.float(), norm))
            lengths = [convolution.num_rows(n) for n in lengths]
        return x


def elements_per_frame(config: PretrainedConfig) -> float:
    """How many numbers the widest product of the stem takes or gives for a frame."""
    rows, most, channels = math.prod(config.conv_stride), 0.0, 1
    for kernel, stride, out_channels in zip(config.conv_kernel, config.conv_stride, config.conv_dim):
        rows /= stride
        most = max(most, rows * kernel * channels, rows * out_channels)
        channels = out_channels
    return most


class RowConvolution:
    """A strided convolution on rows, `[n, C_in]` -> `[(n - kernel) // stride + 1, C_out]`, as one matrix product.

    The rows under the kernel lie side by side, so the product's left side is a view of the input, whose rows overlap.

    Args:
        conv: gives kernel, stride and, where they are not given, weight and bias.
        weight: `[C_out, kernel, C_in]`.
        bias: `[C_out]`.
    """

    def __init__(self, conv: nn.Conv1d, precision: str, weight: Tensor | None = None, bias: Tensor | None = None):
        self.conv, self.precision = conv, precision
        self.kernel, self.stride, self.channels = conv.kernel_size[0], conv.stride[0], conv.out_channels
        weight, bias = (conv.weight.transpose(1, 2), conv.bias) if weight is None else (weight, bias)
        self.product = FloatLinear(weight.flatten(1), bias, precision, own=True)

    def __call__(self, x: Tensor, gelu: bool = False, lengths: Sequence[int] = ()) -> Tensor:
        """Of one clip, or of several of so many rows each, which lie one after another in `x`."""
        x = x.to(self.product.dtype).contiguous()
        if len(lengths) < 2:
            return self.product(self._under_kernel(x, 0, len(x)), gelu)
        starts = itertools.accumulate(lengths, initial=0)
        return self.product(torch.cat([self._under_kernel(x, start, n) for start, n in zip(starts, lengths)]), gelu)

    def num_rows(self, length: int) -> int:
        """How many rows a clip of so many gives."""
        return (length - self.kernel) // self.stride + 1

    def _under_kernel(self, x: Tensor, start: int, length: int) -> Tensor:
        channels = x.shape[1]
        shape, strides = (self.num_rows(length), self.kernel * channels), (self.stride * channels, 1)
        return x.as_strided(shape, strides, x.storage_offset() + start * channels)

    def with_group_norm(self, waveform: Tensor, norm: nn.GroupNorm) -> RowConvolution:
        """This convolution (of one input channel) followed by a norm over the time of `waveform`, as one convolution."""
        windows = waveform.unfold(0, self.kernel, self.stride)  # [n, kernel], a view
        total = waveform.new_zeros(self.kernel, dtype=torch.float64)
        products = waveform.new_zeros(self.kernel, self.kernel, dtype=torch.float64)
        for part in windows.split(MOMENT_WINDOWS):
            part = part.double()
            total += part.sum(dim=0)
            products += part.T @ part
        mean = total / len(windows)
        covariance = products / len(windows) - torch.outer(mean, mean)
        weight = self.conv.weight.detach()[:, 0].double()  # [C, kernel]
        variance = ((weight @ covariance) * weight).sum(dim=1).clamp_min_(0)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        bias = norm.bias - (weight @ mean) * scale  # a bias of the convolution itself cancels in the norm
        return RowConvolution(self.conv, self.precision, (weight * scale[:, None]).float(), bias.float())


class PositionalConvolution:
    """Adds `gelu(conv(x))` to the frames of every clip, the convolution grouped and padded with zeros to the same length.

    A long kernel is applied in the frequency domain, to all clips in one row, kept apart by half a kernel of zeros.
    """

    def __init__(self, conv: nn.Conv1d):
        self.kernel, self.groups = conv.kernel_size[0], conv.groups
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self.spectrum = positional_spectrum(self.weight, self.groups) if fits_fft(conv) else None

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        if self.spectrum is None:
            for span in spans:
                x[span.start : span.end] += gelu_(self.direct(x[span.start : span.end]))
            return x
        gap = self.kernel // 2
        places = [torch.arange(span.start, span.end) + gap * i for i, span in enumerate(spans, start=1)]
        at = torch.cat(places).to(x.device)
        convolved = convolved_by_fft(x, at, spans[-1].end + gap * len(spans), self.spectrum, self.kernel)
        return x.add_(gelu_(convolved.index_select(0, at - gap).add_(self.bias)))

    def direct(self, x: Tensor) -> Tensor:
        """The convolution alone, on the frames of one clip `[T, D]`."""
        y = F.conv1d(x.T[None], self.weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return y[0, :, : len(x)].T


def fits_fft(conv: nn.Conv1d) -> bool:
    """Whether a positional convolution is faster in the frequency domain."""
    return FFT_FROM_KERNEL <= conv.kernel_size[0] <= FFT_SIZE // 2


def positional_spectrum(weight: Tensor, groups: int) -> Tensor:
    """The weight `[D, D / groups, kernel]` of a grouped convolution as `convolved_by_fft` takes it, differentiable."""
    width = weight.shape[1]
    spectrum = torch.fft.rfft(weight.float().flip(-1), n=FFT_SIZE).view(groups, width, width, -1)
    return spectrum.permute(3, 0, 2, 1).flatten(0, 1).contiguous()  # [frequencies * groups, width, width]


def convolved_by_fft(x: Tensor, at: Tensor, length: int, spectrum: Tensor, kernel: int) -> Tensor:
    """Convolve a row of `length` frames on overlapping blocks (overlap-save); differentiable.

    The frames are zero but for `x` `[N, D]` at the places `at` `[N]`. The result is half a kernel early.
    """
    width, step = x.shape[1], FFT_SIZE - kernel + 1
    groups, num_blocks = len(spectrum) // (FFT_SIZE // 2 + 1), -(-length // step)
    row = x.new_zeros(num_blocks * step + kernel - 1, width).index_copy_(0, at, x)
    blocks = row.unfold(0, FFT_SIZE, step).transpose(1, 2)  # [blocks, FFT_SIZE, D], a view
    spectra = torch.fft.rfft(blocks, dim=1)  # [blocks, frequencies, D]
    grouped = spectra.view(num_blocks, -1, groups, width // groups).permute(1, 2, 0, 3).flatten(0, 1)
    product = torch.bmm(grouped, spectrum)  # [frequencies * groups, blocks, width]
    product = product.view(-1, groups, num_blocks, width // groups).permute(2, 0, 1, 3).flatten(2)
    return torch.fft.irfft(product, n=FFT_SIZE, dim=1)[:, kernel - 1 :].flatten(0, 1)


class StackedConvolutions:
    """Adds data2vec's positions to the frames of every clip: grouped convolutions in turn, each with a norm and a GELU."""

    def __init__(self, embed: nn.Module):
        self.layers = [(PositionalConvolution(layer.conv), layer.layer_norm) for layer in embed.layers]

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        for span in spans:
            y = x[span.start : span.end]
            for convolution, norm in self.layers:
                y = gelu_(normed(convolution.direct(y), norm))
            x[span.start : span.end] += y
        return x


# ---- which rows of a pack belong to which clip ----


@dataclass(frozen=True)
class Budget:
    """How much goes through at a time: what a CPU's cache holds, or what keeps a GPU busy. It changes no value.

    Args:
        pack_frames: rows of a pack; a longer clip goes alone.
        stem_frames: output frames of the convolutional stem, at most.
        product_rows: of the feed-forward, whose inner width is four times D, at most.
        stem_elements: of the widest product of the stem: WavLM's has 49,152 per frame.
    """

    pack_frames: int
    stem_frames: int
    product_rows: int
    stem_elements: int = 50 * 49_152


CPU_BUDGET = Budget(pack_frames=1024, stem_frames=256, product_rows=512)
GPU_BUDGET = Budget(pack_frames=2**16, stem_frames=2**12, product_rows=2**14, stem_elements=2**12 * 49_152)


@cache
def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MB of freed memory in this process instead of returning it to the system after every call.

    By default it returns what is free at the top of the heap as soon as that is more than twice the largest mapped block that
    was ever freed, of up to 32 MB (`mallopt(3)`, "dynamic mmap threshold"). A call's intermediate results come to 10 to 50 MB,
    so the next call would get them as fresh pages, which the system fills with zeros one by one: 40,000 of them for 8 s in
    WavLM-Large. Freeing one block of the largest size that counts is enough; its pages are never touched. Other allocators
    know nothing of it.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


@dataclass(frozen=True)
class Window:
    """Frames `start` to `end` of a clip, of which `keep_start` to `keep_end` are pooled; the rest is context."""

    clip: int
    start: int
    end: int
    keep_start: int
    keep_end: int


def windows_of(num_frames: int, window_frames: int | None) -> list[tuple[int, int, int, int]]:
    """Cut a clip into `(start, end, keep_start, keep_end)`: the kept parts cover every frame once.

    A clip up to `window_frames` is one window. A longer one is cut into windows of that length, spread evenly, that overlap by
    at least a tenth; each frame is kept by the window in which it has more context.
    """
    if window_frames is None or num_frames <= window_frames:
        return [(0, num_frames, 0, num_frames)]
    step = window_frames - window_frames // 10
    count = -(-(num_frames - window_frames) // step) + 1
    starts = [round(i * (num_frames - window_frames) / (count - 1)) for i in range(count)]
    borders = [(a + window_frames + b) // 2 for a, b in itertools.pairwise(starts)]
    return [
        (start, start + window_frames, keep_start, keep_end)
        for start, keep_start, keep_end in zip(starts, [0, *borders], [*borders, num_frames])
    ]


def clip_windows(
    waveforms: Sequence[Tensor], config: PretrainedConfig, window_frames: int | None, context: str | None
) -> list[Window]:
    """The windows of every clip, in order.

    Whisper has positions for so many frames only. In its context "window" every window has all of them: what the clip does not
    fill is silence, and windows do not overlap, as that model was trained and as transformers runs it.
    """
    most = config.max_source_positions if is_whisper(config) else None
    windows = []
    for clip, waveform in enumerate(waveforms):
        frames = count_frames(len(waveform), config)
        if context == "window":
            cut = [(start, start + most, start, min(start + most, frames)) for start in range(0, frames, most)]
        else:
            cut = windows_of(frames, min(filter(None, (most, window_frames)), default=None))
        windows += [Window(clip, *window) for window in cut]
    return windows


def joined_windows(windows: Sequence[Window], frames: Sequence[Tensor]) -> list[Tensor]:
    """Of every clip, the kept frames of its windows, `[T, ...]` each, one after another."""
    clips: dict[int, list[Tensor]] = {}
    for window, own in zip(windows, frames):
        clips.setdefault(window.clip, []).append(own)
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in clips.values()]


def packs(windows: Sequence[Window], pack_frames: int) -> Iterator[list[Window]]:
    """Windows in order, as many together as fit into `pack_frames`; a longer one goes alone."""
    pack: list[Window] = []
    room = 0
    for window in windows:
        frames = window.end - window.start
        if pack and frames > room:
            yield pack
            pack = []
        room = (room if pack else pack_frames) - frames
        pack.append(window)
    if pack:
        yield pack


def spans_of(pack: Sequence[Window]) -> list[Span]:
    """The rows of every window in a pack."""
    spans, row = [], 0
    for window in pack:
        at = row - window.start
        spans.append(Span(row, at + window.end, at + window.keep_start, at + window.keep_end))
        row = at + window.end
    return spans
