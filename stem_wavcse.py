"""From waveforms to the frames that the first block sees: strided and positional convolutions and a projection, on rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .packing_wavcse import Span
from .products_wavcse import FloatLinear, build_linear, gelu_, normed

MOMENT_WINDOWS = 2**17  # input windows of the first convolution at a time
FFT_SIZE = 512
FFT_FROM_KERNEL = 64  # shorter positional convolutions are faster done directly


class Stem:
    """Waveforms -> projected frames `[N, D]`: strided convolutions as matrix products on rows `[T, C]`, chunk by chunk.

    The base shape's group norm over time needs the mean and variance of the whole clip. They follow exactly from mean and
    covariance of the first convolution's input windows (10 x 10 numbers): the norm becomes a per-clip change of its weights.
    """

    def __init__(self, upstream: PreTrainedModel, precision: str, chunk_frames: int):
        self.chunk_frames = chunk_frames
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
        self.projection = build_linear([projection.projection], "float32" if precision == "float32" else "bfloat16")

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
            for a in range(span.start, span.end, self.chunk_frames):
                b = min(span.end, a + self.chunk_frames)
                features[a:b] = self._convolve(self.samples(waveform, a - span.start, b - span.start), first)
        if self.projection_norm is not None:
            features = normed(features, self.projection_norm)
        return self.projection(features).float()

    def _convolve(self, samples: Tensor, first: RowConvolution) -> Tensor:
        x = samples[:, None]
        for convolution, norm in zip([first, *self.convolutions[1:]], self.norms):
            x = convolution(x, gelu=True) if norm is None else gelu_(normed(convolution(x).float(), norm))
        return x


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

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        n, channels = (x.shape[0] - self.kernel) // self.stride + 1, x.shape[1]
        x = x.to(self.product.dtype).contiguous()
        return self.product(x.as_strided((n, self.kernel * channels), (self.stride * channels, 1)), gelu)

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
