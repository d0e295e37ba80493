"""The upstream for inference: packed frames without any padding, only time means kept, exact in float32.

The ordinary transformers module pads a batch, builds attention tensors of `T x T` and keeps every hidden state. Here the
frames of many clips lie one after another in one matrix `[N, D]`; everything that works frame by frame (projections, norms,
feed-forward) runs on all of them at once, attention runs clip by clip on blocks of query rows, and of each layer only its mean
over time remains. Memory grows with the length of a clip, not with its square. Weights stay where they are: float32 uses the
upstream's own tensors, and what is rearranged (convolutions, gates, position bias) is derived from them and never saved.

Shapes: `T` frames of a clip, `N` frames of all clips of a pack, `D` upstream width, `H` heads, `d = D / H`, `C` stem channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_wavcse import PRECISIONS

STEM_CHUNK_FRAMES = 50  # 1 s: what the stem works on stays in the processor's cache
PACK_FRAMES = 4096  # 82 s; more frames do not speed the products up, they only take memory
ROWS_PER_PRODUCT = 1024  # of the feed-forward, whose inner width is four times D
QUERY_ROWS = 128
MASK_ELEMENTS = 2**22  # of a block's position bias, [H, rows, T]: 16 MB
MOMENT_WINDOWS = 2**17  # input windows of the first convolution at a time
FFT_SIZE = 512
FFT_FROM_KERNEL = 64  # shorter positional convolutions are faster done directly

gelu_ = torch.ops.aten.gelu_  # in place: fresh memory for every activation would cost more than the function itself


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
        self.stem = Stem(upstream, precision)
        self.position = PositionalConvolution(upstream.encoder.pos_conv_embed.conv, precision)
        norm_before = is_norm_before(upstream)
        self.first_norm = None if norm_before else upstream.encoder.layer_norm
        bias = RelativeBias(upstream) if has_relative_bias(upstream) else None
        self.blocks = [Block(block, norm_before, bias, precision) for block in upstream.encoder.layers]

    def is_current(self, upstream: PreTrainedModel, precision: str) -> bool:
        """Whether this arrangement still belongs to the upstream's weights, device and the wanted precision."""
        return self.precision == precision and self.fingerprint == weights_fingerprint(upstream)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[Tensor], layers: Sequence[int], window_frames: int | None = None) -> Tensor:
        """Time means of the wanted layers.

        Args:
            waveforms: one float32 tensor `[samples]` per clip, normalised, without padding.
            layers: K layer numbers; 0 = input of the first block.
            window_frames: a longer clip goes through in windows of this many frames (`windows_of`), and the mean is taken
                over all its frames; `None` = every clip in one piece.

        Returns:
            `[B, K, D]`, float32.

        Raises:
            FloatingPointError: a value is not finite.
        """
        with torch.autocast(self.device.type, enabled=False):  # the precision is this object's, whatever surrounds the call
            means = self._means(waveforms, layers, window_frames)
        self._check_finite(means, waveforms)
        return means

    def _means(self, waveforms: Sequence[Tensor], layers: Sequence[int], window_frames: int | None) -> Tensor:
        total = torch.zeros(len(waveforms), len(layers), self.config.hidden_size, device=self.device)
        num_frames = [self.stem.num_frames(len(waveform)) for waveform in waveforms]
        windows = [
            Window(clip, *window) for clip, frames in enumerate(num_frames) for window in windows_of(frames, window_frames)
        ]
        first = [self.stem.first_convolution(waveform) for waveform in waveforms]
        for pack in packs(windows):
            cut = [(self.stem.samples(waveforms[w.clip], w.start, w.end), first[w.clip]) for w in pack]
            means = self._pooled(cut, pack, layers)
            for window, mean in zip(pack, means):  # weighted by frames
                total[window.clip] += mean * ((window.keep_end - window.keep_start) / num_frames[window.clip])
        return total

    def _check_finite(self, means: Tensor, waveforms: Sequence[Tensor]) -> None:
        if torch.isfinite(means).all():
            return
        # A clip with such samples comes first: blocks of the positional convolution carry them on into its neighbours.
        at_fault = [clip for clip, waveform in enumerate(waveforms) if not torch.isfinite(waveform).all()]
        at_fault += [clip for clip, mean in enumerate(means) if not torch.isfinite(mean).all()]
        raise FloatingPointError(
            f"clip {at_fault[0]}: the upstream gave values that are not finite at precision={self.precision!r}. "
            "Check its weights and the clip, or use precision='float32'."
        )

    def _pooled(self, waveforms: list[tuple[Tensor, RowConvolution]], pack: Sequence[Window], layers: Sequence[int]) -> Tensor:
        spans = spans_of(pack)
        x = self.position(self.stem(waveforms, spans), spans)
        if self.first_norm is not None:
            x = normed(x, self.first_norm)
        means = {0: time_means(x, spans)} if 0 in layers else {}
        for layer, block in enumerate(self.blocks[: max(layers)], start=1):
            if layer == max(layers):
                means[layer] = block.last(x, spans)
            else:
                x = block(x, spans)
                if layer in layers:
                    means[layer] = time_means(x, spans)
        return torch.stack([means[layer] for layer in layers], dim=1)


@dataclass(frozen=True)
class Window:
    """Frames `start` to `end` of a clip, of which `keep_start` to `keep_end` enter the mean; the rest is context."""

    clip: int
    start: int
    end: int
    keep_start: int
    keep_end: int


@dataclass(frozen=True)
class Span:
    """Rows `start` to `end` of a pack belong to one window; its mean is over rows `keep_start` to `keep_end`."""

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


def packs(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows in order, as many together as fit into `PACK_FRAMES`; a longer one goes alone."""
    pack: list[Window] = []
    room = 0
    for window in windows:
        frames = window.end - window.start
        if pack and frames > room:
            yield pack
            pack = []
        room = (room if pack else PACK_FRAMES) - frames
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


def time_means(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """`[N, D]` -> `[B, D]`, the mean of every window's kept rows."""
    return torch.stack([x[span.keep_start : span.keep_end].mean(dim=0) for span in spans])


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of rows in float32."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class Stem:
    """Waveforms -> projected frames `[N, D]`: strided convolutions as matrix products on rows `[T, C]`, chunk by chunk.

    The base shape's group norm over time needs the mean and variance of the whole clip. They follow exactly from mean and
    covariance of the first convolution's input windows (10 x 10 numbers): the norm becomes a per-clip change of its weights.
    """

    def __init__(self, upstream: PreTrainedModel, precision: str):
        layers = upstream.feature_extractor.conv_layers
        self.convolutions = [RowConvolution(layer.conv, precision) for layer in layers]
        first = layers[0].layer_norm
        self.group_norm = first if isinstance(first, nn.GroupNorm) else None
        self.norms = [None if self.group_norm else layer.layer_norm for layer in layers]
        self.hop = self.receptive_field = 1
        for convolution in reversed(self.convolutions):
            self.receptive_field = (self.receptive_field - 1) * convolution.stride + convolution.kernel
            self.hop *= convolution.stride
        projection = upstream.feature_projection
        self.projection_norm = getattr(projection, "layer_norm", None)
        self.projection = FloatLinear(projection.projection, precision)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples`."""
        return (num_samples - self.receptive_field) // self.hop + 1

    def first_convolution(self, waveform: Tensor) -> RowConvolution:
        """The first convolution for this clip; its group norm, where there is one, is over the whole clip."""
        first = self.convolutions[0]
        return first if self.group_norm is None else first.with_group_norm(waveform, self.group_norm)

    def samples(self, waveform: Tensor, start: int, end: int) -> Tensor:
        """The part of `[samples]` that frames `start` to `end` are made of."""
        return waveform[self.hop * start : self.hop * (end - 1) + self.receptive_field]

    def __call__(self, windows: Sequence[tuple[Tensor, RowConvolution]], spans: Sequence[Span]) -> Tensor:
        features = windows[0][0].new_empty(spans[-1].end, self.convolutions[-1].channels)
        for (waveform, first), span in zip(windows, spans):
            for a in range(span.start, span.end, STEM_CHUNK_FRAMES):
                b = min(span.end, a + STEM_CHUNK_FRAMES)
                features[a:b] = self._convolve(self.samples(waveform, a - span.start, b - span.start), first)
        if self.projection_norm is not None:
            features = normed(features, self.projection_norm)
        return self.projection(features).float()

    def _convolve(self, samples: Tensor, first: RowConvolution) -> Tensor:
        x = samples[:, None]
        for convolution, norm in zip([first, *self.convolutions[1:]], self.norms):
            x = convolution(x)
            x = gelu_(x if norm is None else normed(x, norm))
        return x


class RowConvolution:
    """A strided convolution on rows: `[n, C_in]` -> `[(n - kernel) // stride + 1, C_out]`, float32.

    The kernel's taps are taken in groups of `stride`: the rows of one group, side by side, are a plain view of the input with
    that many rows per output row, so each group is one matrix product and nothing is copied.
    """

    def __init__(self, conv: nn.Conv1d, precision: str):
        self.kernel, self.stride, self.channels = conv.kernel_size[0], conv.stride[0], conv.out_channels
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.weight = conv.weight.detach().permute(2, 1, 0).flatten(0, 1)  # [kernel * C_in, C_out]
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.groups = self._grouped(self.weight, conv.in_channels)

    def _grouped(self, weight: Tensor, channels: int) -> list[Tensor]:
        # One input channel makes rows of `stride` numbers, too thin for a fast product: those windows are copied out instead.
        taps = self.kernel if channels == 1 else self.stride
        return [group.to(self.dtype).contiguous() for group in weight.split(taps * channels)]

    def __call__(self, x: Tensor) -> Tensor:
        n, channels = (x.shape[0] - self.kernel) // self.stride + 1, x.shape[1]
        x = x.to(self.dtype).contiguous()
        y = None
        for first_tap, weight in zip(range(0, self.kernel, self.stride), self.groups):
            offset = x.storage_offset() + first_tap * channels
            rows = x.as_strided((n, weight.shape[0]), (self.stride * channels, 1), offset)
            y = torch.mm(rows, weight) if y is None else y.addmm_(rows, weight)
        y = y.float()
        return y if self.bias is None else y.add_(self.bias)

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
        weight = self.weight.double()  # [kernel, C]
        variance = ((covariance @ weight) * weight).sum(dim=0).clamp_min_(0)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        folded = object.__new__(RowConvolution)
        folded.__dict__ = dict(self.__dict__)
        folded.groups = self._grouped((weight * scale).float(), 1)
        folded.bias = (norm.bias - (mean @ weight) * scale).float()  # a bias of the convolution itself cancels in the norm
        return folded


class PositionalConvolution:
    """Adds `gelu(conv(x))` to the frames of every clip, the convolution grouped and padded with zeros to the same length.

    A long kernel is applied in the frequency domain on overlapping blocks (overlap-save) of all clips in one row, kept apart
    by half a kernel of zeros.
    """

    def __init__(self, conv: nn.Conv1d, precision: str):
        self.kernel, self.groups = conv.kernel_size[0], conv.groups
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self.spectrum = self._spectrum() if FFT_FROM_KERNEL <= self.kernel <= FFT_SIZE // 2 else None

    def _spectrum(self) -> Tensor:
        channels, width, _ = self.weight.shape
        spectrum = torch.fft.rfft(self.weight.float().flip(-1), n=FFT_SIZE)  # [D, width, frequencies]
        spectrum = spectrum.view(self.groups, channels // self.groups, width, -1)
        return spectrum.permute(3, 0, 2, 1).flatten(0, 1).contiguous()  # [frequencies * groups, width, width]

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        if self.spectrum is None:
            for span in spans:
                x[span.start : span.end] += gelu_(self._direct(x[span.start : span.end]))
            return x
        gap = self.kernel // 2
        starts = [gap * (i + 1) + span.start for i, span in enumerate(spans)]
        convolved = self._by_fft(x, spans, starts)
        for span, at in zip(spans, starts):
            y = convolved[at - gap : at - gap + span.end - span.start]
            x[span.start : span.end] += gelu_(y + self.bias)
        return x

    def _direct(self, x: Tensor) -> Tensor:
        y = F.conv1d(x.T[None], self.weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return y[0, :, : len(x)].T

    def _by_fft(self, x: Tensor, spans: Sequence[Span], starts: Sequence[int]) -> Tensor:
        width, step = x.shape[1], FFT_SIZE - self.kernel + 1
        num_blocks = -(-(starts[-1] + spans[-1].end - spans[-1].start) // step)
        row = x.new_zeros(num_blocks * step + self.kernel - 1, width)
        for span, at in zip(spans, starts):
            row[at : at + span.end - span.start] = x[span.start : span.end]
        blocks = row.as_strided((num_blocks, FFT_SIZE, width), (step * width, width, 1))
        spectra = torch.fft.rfft(blocks, dim=1)  # [blocks, frequencies, D]
        grouped = spectra.view(num_blocks, -1, self.groups, width // self.groups).permute(1, 2, 0, 3).flatten(0, 1)
        product = torch.bmm(grouped, self.spectrum)  # [frequencies * groups, blocks, width]
        product = product.view(-1, self.groups, num_blocks, width // self.groups).permute(2, 0, 1, 3).flatten(2)
        return torch.fft.irfft(product, n=FFT_SIZE, dim=1)[:, self.kernel - 1 :].flatten(0, 1)


class Block:
    """One transformer block on packed frames: attention clip by clip, everything else on all rows."""

    def __init__(self, block: nn.Module, norm_before: bool, bias: RelativeBias | None, precision: str):
        linear = Int8Linear if precision == "int8" else FloatLinear
        self.norm_before, self.bias = norm_before, bias
        self.attention_norm, self.output_norm = block.layer_norm, block.final_layer_norm
        self.num_heads = block.attention.num_heads
        self.query, self.key, self.value, self.output, self.inner, self.outer = (
            linear(module, precision) for module in _linear_layers(block)
        )
        self.gate = Gate(block.attention) if bias is not None else None

    def __call__(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` -> `[N, D]`; `x` itself is used for the result."""
        x = self._attended(x, spans)
        for rows in x.split(ROWS_PER_PRODUCT):
            if self.norm_before:
                self.outer.add_to(rows, gelu_(self.inner(normed(rows, self.output_norm))))
            else:
                self.outer.add_to(rows, gelu_(self.inner(rows)))
                rows.copy_(normed(rows, self.output_norm))
        return x

    def last(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
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
        for first, rows in zip(range(0, len(x), ROWS_PER_PRODUCT), x.split(ROWS_PER_PRODUCT)):
            inner = gelu_(self.inner(normed(rows, self.output_norm)))
            for total, span in zip(totals, spans):
                start, end = max(span.keep_start - first, 0), min(span.keep_end - first, len(rows))
                if start < end:
                    total += inner[start:end].sum(dim=0, dtype=torch.float32)
        return totals / x.new_tensor([span.keep_end - span.keep_start for span in spans])[:, None]

    def _attended(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        h = normed(x, self.attention_norm) if self.norm_before else x
        gate = None if self.gate is None else self.gate(h, self.num_heads)
        query, key, value = (projection(h) for projection in (self.query, self.key, self.value))
        attended = torch.empty_like(query)
        for span in spans:
            at = slice(span.start, span.end)
            q, k, v = (_heads(rows[at], self.num_heads) for rows in (query, key, value))
            if gate is None:
                _heads(attended[at], self.num_heads).copy_(F.scaled_dot_product_attention(q[None], k[None], v[None])[0])
            else:
                self._attend_with_bias(q, k, v, gate[at].T, attended[at])
        self.output.add_to(x, attended)
        return x if self.norm_before else normed(x, self.attention_norm)

    def _attend_with_bias(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, out: Tensor) -> None:
        """Attention `[H, T, d]` with the gated relative bias, block by block of query rows, into `out` `[T, D]`.

        The bias depends on key minus query position. With the queries in reverse order it becomes a plain view of one vector
        per head (row r starts one further on), so no `T x T` table is ever written.
        """
        num_heads, num_frames, _ = q.shape
        q, gate = q.flip(1), gate.flip(1)
        bias = self.bias.reversed_rows(num_frames)  # [H, T, T], a view
        size = min(QUERY_ROWS, max(16, MASK_ELEMENTS // (num_heads * num_frames)))
        for a in range(0, num_frames, size):
            b = min(num_frames, a + size)
            mask = (bias[:, a:b] * gate[:, a:b, None]).to(q.dtype)
            z = F.scaled_dot_product_attention(q[None, :, a:b], k[None], v[None], attn_mask=mask[None])[0]
            _heads(out[num_frames - b : num_frames - a], num_heads).copy_(z.flip(1))


def _heads(rows: Tensor, num_heads: int) -> Tensor:
    return rows.unflatten(1, (num_heads, -1)).transpose(0, 1)  # [T, D] -> [H, T, d], a view


class Gate:
    """WavLM's gate of the position bias, from the block's input: `[N, D]` -> `[N, H]` (Chen et al. 2022, section III-B).

    The module projects each head to eight numbers and sums them by fours; summing the weights first gives two.
    """

    def __init__(self, attention: nn.Module):
        linear = attention.gru_rel_pos_linear
        self.weight = linear.weight.detach().float().unflatten(0, (2, 4)).sum(dim=1)  # [2, d]
        self.bias = linear.bias.detach().float().unflatten(0, (2, 4)).sum(dim=1)
        self.constant = attention.gru_rel_pos_const.detach().float().flatten()  # [H]

    def __call__(self, h: Tensor, num_heads: int) -> Tensor:
        update, reset = F.linear(h.unflatten(1, (num_heads, -1)), self.weight, self.bias).sigmoid_().unbind(-1)
        return update * (reset * self.constant - 1.0) + 2.0


class RelativeBias:
    """WavLM's bucketed position bias as one vector per head over all distances, as long as the longest clip so far."""

    def __init__(self, upstream: PreTrainedModel):
        self.attention = upstream.encoder.layers[0].attention
        self.num_frames = 0
        self.table = torch.empty(0)

    def reversed_rows(self, num_frames: int) -> Tensor:
        """`[H, T, T]` as a view: row r is the bias of query `T - 1 - r` towards keys 0..T-1."""
        if num_frames > self.num_frames:
            self.num_frames = num_frames
            distance = torch.arange(-(num_frames - 1), num_frames)
            # Buckets on the CPU, so that a border cannot fall differently on a GPU.
            bucket = self.attention._relative_positions_bucket(distance)
            embedding = self.attention.rel_attn_embed.weight.detach().float()
            self.table = embedding[bucket.to(embedding.device)].T.contiguous()  # [H, 2 * num_frames - 1]
        length = self.table.shape[1]
        return self.table.as_strided(
            (self.table.shape[0], num_frames, num_frames), (length, 1, 1), self.num_frames - num_frames
        )


class FloatLinear:
    """A linear layer in float32 (on the module's own weights) or bfloat16."""

    def __init__(self, linear: nn.Linear, precision: str):
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.weight, self.bias = (tensor.detach().to(self.dtype) for tensor in (linear.weight, linear.bias))
        self.out_features = linear.out_features

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        if self.dtype == torch.float32:
            residual.addmm_(x, self.weight.T).add_(self.bias)
        else:
            residual.add_(self(x))


class Int8Linear:
    """A linear layer with int8 weights (one scale per output) and inputs (one scale per row, taken as they come)."""

    def __init__(self, linear: nn.Linear, precision: str):
        weight, self.out_features = linear.weight.detach().float(), linear.out_features
        self.scale = _int8_scale(weight)  # [out, 1]
        self.weight = (weight / self.scale).round_().to(torch.int8).T  # [in, out]
        self.scale, self.bias = self.scale.T, linear.bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x).to(torch.bfloat16)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        residual.add_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = _int8_scale(x)  # [N, 1]
        quantised = (x / scale).round_().to(torch.int8)
        return torch._int_mm(quantised, self.weight).float().mul_(scale).mul_(self.scale).add_(self.bias)


def _int8_scale(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12) / 127


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
    for block in upstream.encoder.layers:
        for linear in _linear_layers(block):
            if not isinstance(linear, nn.Linear):  # LoRA and the like: there is more to it than a weight and a bias
                return f"a linear layer of its blocks is a {type(linear).__name__}"
    return None


def _linear_layers(block: nn.Module) -> list[nn.Module]:
    attention, feed_forward = block.attention, block.feed_forward
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
    return [*projections, feed_forward.intermediate_dense, feed_forward.output_dense]
