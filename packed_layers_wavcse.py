"""What the packed encoder is made of: linear layers at each precision, and attention, on packed rows.

A pack is one matrix `[N, D]` that holds the frames of many windows one after another, without padding; a `Span` says which
rows belong to one of them. Attention goes clip by clip (`Attention`), or, on GPUs, for a whole pack in one kernel
(`FlexAttention`).

Shapes: `T` frames of a clip, `N` rows of a pack, `D` upstream width, `H` heads, `d = D / H`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .kernels_wavcse import (
    HAS_ONEDNN_LINEAR,
    FbgemmProduct,
    float32_library,
    forced_library,
    gelu_in_onednn,
    has_bfloat16,
    kind_of,
    low_type,
    once,
    onednn_linear,
    times_faster,
    uses_fbgemm,
    weight_steps,
)

try:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    HAS_FLEX = True
except ImportError:  # PyTorch before 2.5, or a build without it
    HAS_FLEX = False


logger = logging.get_logger(__name__)

# Of a pooled layer with that in float32: what the tests ask for, on small encoders with random weights.
LOWEST_COSINES = {"bfloat16": 0.998, "int8": 0.99}
AUTO_COSINE = 0.99
AUTO_MARGIN = 1.1  # of speed, below which `precision="auto"` stays exact
FEWEST_INT8_ROWS = 32  # that a GPU's int8 product takes
LAYOUT_ROWS = 1024  # of the inputs that the layout of copied weights is chosen for

gelu_ = torch.ops.aten.gelu_  # in place: fresh memory for every activation would cost more than the function itself
# By the library that multiplies float32, measured on a processor where it is the faster one.
FRAMES_BY_HEAD = {"onednn": 150, "mkl": 300}  # from here on head by head is faster than all heads at once
SCORE_ELEMENTS = {"onednn": 2**19, "mkl": 2**18}  # of one head's block of scores, [rows, T]: 1 or 2 MB stay in the cache
GROUP_ELEMENTS = 2**18  # scores of clips that attend together, [G, H, T, T]
NEAR_LENGTHS = 1.25  # the longest of them to the shortest: filling up costs less than a call for each
SQUARE_ELEMENTS = 2**18  # of the position bias of short clips that is kept, [H, T, T]: 1 MB stays in the cache
QUERY_ROWS = 128
MASK_ELEMENTS = 2**22  # of a block's position bias for all heads, [H, rows, T]: 16 MB
BLOCK_ROWS = 128  # of queries and keys that the kernel takes or skips together
MOST_SHAPES = 64  # that the kernel is compiled for: sizes of packs, types, with and without a bias
FEWEST_ROWS = 1024  # packs are filled up to this or twice, four times, ... as many rows: each size is compiled once


@dataclass(frozen=True)
class Span:
    """Rows `start` to `end` of a pack belong to one window; pooled are rows `keep_start` to `keep_end`."""

    start: int
    end: int
    keep_start: int
    keep_end: int


# ---- linear layers in float32, bfloat16 or int8 ----


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of rows in float32."""
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`x @ weight.T + bias`, `[N, in]` -> `[N, out]`, followed by GELU on request; by the faster library of this processor."""
    if not weight.is_mkldnn and not uses_onednn(x, kind_of(x, weight)):
        y = F.linear(x, weight, bias)
    elif gelu and (x.dtype != torch.float32 or gelu_in_onednn()):
        return onednn_linear(x, weight, bias, gelu)
    else:
        y = onednn_linear(x, weight, bias)
    return gelu_(y) if gelu else y


def uses_onednn(x: Tensor, kind: str = "long") -> bool:
    """Whether oneDNN multiplies such rows: float32 where it is the faster library, bfloat16 where it has instructions."""
    if x.device.type != "cpu" or not HAS_ONEDNN_LINEAR or not torch._C._get_mkldnn_enabled():
        return False
    return has_bfloat16() if x.dtype == torch.bfloat16 else float32_library(kind) == "onednn"


def own_layout(weight: Tensor) -> Tensor:
    """A copied `weight` in the order that oneDNN reads fastest; good for `linear` only."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS) if uses_onednn(weight) else weight


class FloatLinear:
    """A linear layer in float32 or bfloat16.

    Args:
        weight: `[out, in]`; float32 stays on this tensor unless it is `own`, a copy that nobody else reads.
        bias: `[out]` or `None`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: str, own: bool = False):
        self.out_features = len(weight)
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(precision, low_type(weight.device))
        own = own or weight.dtype != self.dtype
        weight = weight.detach().to(self.dtype).contiguous()
        self.weight = own_layout(weight) if own else weight
        self.bias = None if bias is None else bias.detach().to(self.dtype)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`[N, out]` in this layer's precision."""
        return linear(x.to(self.dtype), self.weight, self.bias, gelu)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        residual.add_(self(x))


class Int8Linear:
    """A linear layer with int8 weights (one scale per output) and inputs (one scale per row, taken as they come).

    Sums are whole numbers and exact.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        weight, self.out_features = weight.detach().float(), len(weight)
        self.dtype = low_type(weight.device)
        is_fbgemm = uses_fbgemm(weight.device)
        scale = _int8_scale(weight, FbgemmProduct.STEPS if is_fbgemm else weight_steps(weight.device))  # [out, 1]
        weight = (weight / scale).round_().to(torch.int8)
        self.fbgemm = FbgemmProduct(weight, scale.flatten()) if is_fbgemm else None
        self.weight = weight.T if self.fbgemm is None else None  # [in, out]
        self.scale, self.bias = scale.T, bias.detach().float()

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`[N, out]` in bfloat16 (see `low_type`), or in float32 after a GELU: the next layer takes its scales from it."""
        y = self._product(x)
        return gelu_(y) if gelu else y.to(self.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        residual.add_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = _int8_scale(x)  # [N, 1]
        if self.fbgemm is not None:
            y = self.fbgemm(x / scale)
            return torch.addcmul(self.bias, y, scale, out=y)
        quantised = (x / scale).round_().to(torch.int8)
        if x.device.type != "cpu":
            quantised = F.pad(quantised, (0, 0, 0, max(0, FEWEST_INT8_ROWS - len(x))))
        y = torch._int_mm(quantised, self.weight)[: len(x)].float()
        return torch.addcmul(self.bias, y.mul_(self.scale), scale, out=y)


def _int8_scale(rows: Tensor, steps: int = 127) -> Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12) / steps


def build_linear(layers: Sequence[nn.Linear], precision: str) -> FloatLinear | Int8Linear:
    """One layer, or several of the same input side by side, at the wanted precision."""
    if len(layers) == 1 and precision != "int8":
        weight, bias = layers[0].weight, layers[0].bias
    else:
        weight, bias = torch.cat([layer.weight.detach() for layer in layers]), torch.cat([_bias(layer) for layer in layers])
    return Int8Linear(weight, bias) if precision == "int8" else FloatLinear(weight, bias, precision)


def _bias(layer: nn.Linear) -> Tensor:
    """`[out]`; zeros where the layer has none, as Whisper's keys."""
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()


@cache
def relative_speed(precision: str) -> float:
    """How many times faster than in float32 this CPU multiplies at a precision; measured once (tens of ms)."""
    return once(precision, lambda: _measured_speed(precision))


def _measured_speed(precision: str) -> float:
    """Of a block's inner layer as it runs, with the scaling and rounding of its input."""
    layer = nn.Linear(512, 1024)
    with torch.no_grad():
        rows = torch.rand(128, 512)
        base, own = (partial(build_linear([layer], name), rows) for name in ("float32", precision))
        return times_faster(base, own)


def check_speed(precision: str, device: torch.device) -> None:
    """Say so, once, if a precision is slower than float32 here: there is no reason to use it."""
    if precision == "float32" or device.type != "cpu" or forced_library() is not None:
        return
    speed = relative_speed(precision)
    if speed < 1.0:
        logger.warning_once(
            f"precision={precision!r} multiplies at {speed:.2f} times the speed of float32 on this processor, which has no "
            "instructions for it: use 'float32', or 'auto' for the fastest."
        )


def fastest_precision(device: torch.device) -> str:
    """What `precision="auto"` stands for: the fastest precision of those that `LOWEST_COSINES` bounds well enough.

    On a CPU by measuring; on a GPU bfloat16 where it has that.
    """
    if device.type != "cpu":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    speeds = {precision: relative_speed(precision) for precision, cosine in LOWEST_COSINES.items() if cosine >= AUTO_COSINE}
    fastest = max(speeds, key=speeds.get)
    return fastest if speeds[fastest] > AUTO_MARGIN else "float32"


class Projections:
    """Linear layers of one width that share their input. Below float32 they are one product, whose input is rounded once."""

    def __init__(self, layers: Sequence[nn.Linear], precision: str):
        self.count = len(layers)
        together = [[layer] for layer in layers] if precision == "float32" else [layers]  # float32 keeps the module's weights
        self.products = [build_linear(part, precision) for part in together]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[N, in]` -> one `[N, out]` per layer."""
        outputs = [product(x) for product in self.products]
        return outputs[0].chunk(self.count, dim=1) if len(outputs) < self.count else tuple(outputs)


# ---- attention, clip by clip ----
#
# No tensor of `T x T` per head is kept, but of short clips: scores exist for a block of query rows at a time. WavLM's position
# bias depends on key minus query position only. With the queries in reverse order it becomes a plain view of one vector per
# head (row r starts one further on), so it is never written out for a long clip.


class Attention:
    """Attention of every clip of a pack among its own frames; short neighbours of about one length go together.

    Args:
        num_heads: H.
        bias: position bias of all blocks; `None` = none.
    """

    def __init__(self, num_heads: int, bias: RelativeBias | None):
        self.num_heads, self.bias = num_heads, bias

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` each, gate `[N, H]` -> `[N, D]`."""
        by_head = frames_by_head(value, gate is not None)
        parts = []
        for start, lengths in groups_of(tuple(spans), GROUP_ELEMENTS // self.num_heads, NEAR_LENGTHS, by_head):
            at = slice(start, start + sum(lengths))
            rows = query[at], key[at], value[at], None if gate is None else gate[at]
            parts.append(self._long(*rows) if lengths[0] >= by_head else self._short(*rows, lengths))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _long(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
        """Of one clip, head by head."""
        attended = torch.empty_like(value)
        q, k, v, out = (rows.unflatten(1, (self.num_heads, -1)).transpose(0, 1) for rows in (query, key, value, attended))
        if gate is None:
            attend_by_head(q, k, v, None, None, out)
        else:
            attend_by_head(q.flip(1), k, v, self.bias.reversed_rows(len(query)), gate.T[..., None].flip(1), out)
        return attended

    def _short(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        """Of several clips in one call; the shorter are filled up with frames that nobody attends to."""
        longest, filling = max(lengths), None
        if min(lengths) < longest:
            filling = Filling.of(lengths, value.device)
            query, key, value = (rows.index_select(0, filling.taken) for rows in (query, key, value))
            gate = None if gate is None else gate.index_select(0, filling.taken)
        shape = (len(lengths), longest, self.num_heads, -1)
        q, k, v = (rows.view(shape).transpose(1, 2) for rows in (query, key, value))  # [G, H, T, d]
        if gate is None:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if filling is None else ~filling.hidden)
        else:
            hidden = None if filling is None else filling.hidden
            attended = attend_with_bias(q, k, v, self.bias, gate.view(shape).transpose(1, 2), hidden)
        attended = attended.transpose(1, 2).reshape(len(value), -1)
        return attended if filling is None else attended.index_select(0, filling.kept)


@lru_cache(maxsize=8)  # all blocks ask for those of one pack
def groups_of(spans: tuple[Span, ...], elements: int, ratio: float, longest: float) -> list[tuple[int, tuple[int, ...]]]:
    """`(first row, T of each window)` of neighbours that attend together.

    Args:
        spans: of a pack.
        elements: scores in a head of a group of several.
        ratio: of the longest in a group to the shortest, at most.
        longest: windows of so many frames go alone.
    """
    groups: list[tuple[int, list[int]]] = []
    for span in spans:
        frames = span.end - span.start
        lengths = [*groups[-1][1], frames] if groups else []
        is_near = lengths and max(lengths) < longest and max(lengths) <= ratio * min(lengths)
        if is_near and len(lengths) * max(lengths) ** 2 <= elements:
            groups[-1][1].append(frames)
        else:
            groups.append((span.start, [frames]))
    return [(start, tuple(lengths)) for start, lengths in groups]


@dataclass(frozen=True)
class Filling:
    """Rows of several windows laid out as `[G, T]`, all as long as the longest.

    Attributes:
        taken: which of the windows' rows is at each place, `[G * T]`; a window's last one where it has no more.
        kept: the places of the windows' own rows, in order.
        hidden: `[G, 1, 1, T]`, True at places without a row of their own.
    """

    taken: Tensor
    kept: Tensor
    hidden: Tensor

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Filling:
        """For windows of so many rows each."""
        frames, place = torch.tensor(lengths)[:, None], torch.arange(max(lengths))
        first = frames.cumsum(dim=0) - frames
        is_own = place < frames  # [G, T]
        taken = (first + torch.minimum(place, frames - 1)).flatten()
        kept = is_own.flatten().nonzero().flatten()
        return cls(*(tensor.to(device) for tensor in (taken, kept, ~is_own[:, None, None])))


def frames_by_head(x: Tensor, has_bias: bool) -> float:
    """From how many frames on attention goes head by head: its scores then fit the cache better than those of all heads.

    Without a bias PyTorch's fused attention never writes scores out, and MKL's products are behind it at every length.
    """
    if uses_onednn(x):
        return FRAMES_BY_HEAD["onednn"]
    return FRAMES_BY_HEAD["mkl"] if has_bias and x.device.type == "cpu" and x.dtype == torch.float32 else math.inf


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gate: Tensor | None, out: Tensor) -> None:
    """Attention of a clip in products of one head's query rows with all its keys.

    Scores and softmax are float32 in every case, the sum over values has the values' precision.

    Args:
        q, k, v: `[H, T, d]`; `q` in reverse order if there is a bias.
        bias: `[H, T, T]`, a view, for the reversed queries; `None` with oneDNN only.
        gate: `[H, T, 1]`, likewise.
        out: `[H, T, d]`, receives the result in the frames' order.
    """
    num_heads, num_frames, size = q.shape
    by_onednn = uses_onednn(v)
    rows = max(1, SCORE_ELEMENTS["onednn" if by_onednn else "mkl"] // num_frames)
    # One block for the scores of all: fresh memory costs as much again. oneDNN makes its own.
    block = None if by_onednn else q.new_empty(min(rows, num_frames), num_frames)
    for head in range(num_heads):  # both libraries want operands that lie in one piece
        queries = (q[head].float() * size**-0.5).contiguous()
        keys, values = k[head].float().contiguous(), v[head].T.contiguous()
        for a in range(0, num_frames, rows):
            of_queries, of_rows = queries[a : a + rows], slice(a, a + rows)
            if by_onednn:
                scores = linear(of_queries, keys)
                if bias is not None:
                    scores.addcmul_(bias[head, of_rows], gate[head, of_rows])
                weights = torch.softmax(scores, dim=-1).to(v.dtype)
            else:  # with a bias, or else `frames_by_head` would not have sent it here
                scores = torch.mul(bias[head, of_rows], gate[head, of_rows], out=block[: len(of_queries)])
                weights = torch.softmax(scores.addmm_(of_queries, keys.T), dim=-1, out=scores)
            b = min(a + rows, num_frames)
            if bias is None:
                out[head, a:b] = linear(weights, values)
            else:
                out[head, num_frames - b : num_frames - a] = linear(weights, values).flip(0)


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: RelativeBias, gate: Tensor, hidden: Tensor | None) -> Tensor:
    """As `attend_by_head`, for G clips of one length, by PyTorch's fused attention on blocks of query rows of all heads.

    Args:
        q, k, v: `[G, H, T, d]`.
        bias: gives that of a block.
        gate: `[G, H, T, 1]`.
        hidden: `[G, 1, 1, T]`, True for keys that nobody attends to; `None` = there are none.

    Returns:
        `[G, H, T, d]`.
    """
    num_heads, num_frames = q.shape[1:3]
    rows = min(QUERY_ROWS, max(16, MASK_ELEMENTS // (num_heads * num_frames)))
    parts = []
    for a in range(0, num_frames, rows):
        block = slice(a, min(a + rows, num_frames))
        mask = bias.rows(num_frames, block.start, block.stop) * gate[:, :, block]
        if hidden is not None:
            mask.masked_fill_(hidden, -math.inf)
        parts.append(F.scaled_dot_product_attention(q[:, :, block], k, v, attn_mask=mask.to(q.dtype)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class Gate:
    """WavLM's gate of the position bias, from the block's input: `[N, D]` -> `[N, H]`."""

    def __init__(self, attention: nn.Module):
        layer = attention.gru_rel_pos_linear
        self.weight, self.bias = summed_by_fours(layer.weight.detach().float(), layer.bias.detach().float())
        self.constant = attention.gru_rel_pos_const.detach().float().flatten()[:, None]  # [H, 1]

    def __call__(self, h: Tensor) -> Tensor:
        return position_gate(h.unflatten(1, (len(self.constant), -1)), self.weight, self.bias, self.constant).squeeze(-1)


def summed_by_fours(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `[8, d]` and bias `[8]` of WavLM's `gru_rel_pos_linear` -> `[2, d]` and `[2]`.

    The module projects each head to eight numbers and sums them by fours; summing the weights first gives two.
    """
    return weight.unflatten(0, (2, 4)).sum(dim=1), bias.unflatten(0, (2, 4)).sum(dim=1)


def position_gate(heads: Tensor, weight: Tensor, bias: Tensor, constant: Tensor) -> Tensor:
    """WavLM's gate of the position bias (Chen et al. 2022, section III-B): `[..., d]` -> `[..., 1]`.

    Args:
        heads: the block's input, head by head.
        weight, bias: of `summed_by_fours`.
        constant: `gru_rel_pos_const` of each head, in a shape that fits `[..., 1]`.
    """
    update, reset = F.linear(heads, weight, bias).sigmoid().split(1, dim=-1)
    return update * (reset * constant - 1.0) + 2.0


class RelativeBias:
    """WavLM's bucketed position bias as one vector per head over all distances, as long as the longest clip so far."""

    def __init__(self, upstream: PreTrainedModel):
        self.attention = upstream.encoder.layers[0].attention
        self.num_frames = 0
        self.table = torch.empty(0)
        self.square = torch.empty(0, 0, 0)
        self.farthest = upstream.config.max_bucket_distance  # the bias is the same beyond
        self.saturated: Tensor | None = None  # the bias up to there

    def reversed_rows(self, num_frames: int) -> Tensor:
        """`[H, T, T]` as a view: row r is the bias of query `T - 1 - r` towards keys 0..T-1."""
        if num_frames > self.num_frames:
            self.num_frames, self.table = num_frames, self.by_distance(num_frames - 1)
        num_heads, length = self.table.shape
        return self.table.as_strided((num_heads, num_frames, num_frames), (length, 1, 1), self.num_frames - num_frames)

    def rows(self, num_frames: int, start: int, end: int) -> Tensor:
        """`[H, end - start, T]`: the bias of queries `start` to `end` towards keys 0..T-1.

        Of short clips it is a part of one tensor `[H, T, T]`, which is kept: the bias of the longest is that of all.
        """
        num_heads = self.attention.rel_attn_embed.embedding_dim
        if num_heads * num_frames**2 > SQUARE_ELEMENTS:
            return self.reversed_rows(num_frames)[:, num_frames - end : num_frames - start].flip(1)
        if num_frames > self.square.shape[1]:
            self.square = self.reversed_rows(num_frames).flip(1)
        return self.square[:, start:end, :num_frames]

    def by_distance(self, farthest: int) -> Tensor:
        """`[H, 2 * farthest + 1]`, contiguous: the bias at key minus query = `-farthest`..`farthest`."""
        # Buckets on the CPU, so that a border cannot fall differently on a GPU.
        bucket = self.attention._relative_positions_bucket(torch.arange(-farthest, farthest + 1))
        embedding = self.attention.rel_attn_embed.weight.detach().float()
        return embedding[bucket.to(embedding.device)].T.contiguous()


# ---- attention of a whole pack in one kernel, for GPUs ----
#
# Launching kernels clip by clip would take longer than the arithmetic of short clips. Here all rows of a pack go through one
# kernel, which skips blocks of keys that hold no row of the same clip and reads the bias from a table of distances as it goes.


class FlexAttention:
    """As `Attention`, all clips of a pack at once; it falls back to `Attention` where the kernel cannot be compiled.

    Args:
        num_heads: H.
        bias: position bias of all blocks; `None` = none.
        is_compiled: run the compiled kernel; PyTorch's uncompiled one writes all scores out, and is for tests.
    """

    def __init__(self, num_heads: int, bias: RelativeBias | None, is_compiled: bool = True):
        self.num_heads, self.bias, self.is_compiled = num_heads, bias, is_compiled
        self.clip_by_clip = Attention(num_heads, bias)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` each, gate `[N, H]` -> `[N, D]`."""
        attended = None if Kernel.is_broken else self._attend(query, key, value, gate, tuple(spans))
        return self.clip_by_clip(query, key, value, gate, spans) if attended is None else attended

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, spans: tuple[Span, ...]
    ) -> Tensor | None:
        num_rows = padded_rows(len(query))
        shape = (1, num_rows, self.num_heads, -1)
        q, k, v = (_filled(rows, num_rows).view(shape).transpose(1, 2) for rows in (query, key, value))  # [1, H, N, d]
        score = None if gate is None else biased_score(_filled(gate, num_rows), self.table(), self.bias.farthest)
        run = Kernel.run if self.is_compiled else flex_attention
        attended = run(q, k, v, score_mod=score, block_mask=block_mask(spans, num_rows, query.device))
        return None if attended is None else attended[0].transpose(0, 1).flatten(1)[: len(query)]

    def table(self) -> Tensor:
        """The bias `[H, 2 * farthest + 1]`; it is the same for all distances beyond."""
        if self.bias.saturated is None:
            self.bias.saturated = self.bias.by_distance(self.bias.farthest)
        return self.bias.saturated


class Kernel:
    """The compiled kernel of this process: one for all blocks and models, compiled again for other shapes and types."""

    compiled: Callable | None = None
    is_broken = False  # it could not be compiled here

    @classmethod
    def run(cls, *args, **kwargs) -> Tensor | None:
        """As `flex_attention`; `None`, and a warning for the first time, where it cannot be compiled."""
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        if cls.compiled is None:
            cls.compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        try:
            with config.patch({limit: MOST_SHAPES}):
                return cls.compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise what they like
            cls.is_broken = True
            warnings.warn(f"FlexAttention does not run here ({error}); attention goes clip by clip.", stacklevel=2)
            return None


def biased_score(gate: Tensor, table: Tensor, farthest: int) -> Callable:
    """FlexAttention's `score_mod`: adds `gate[query, head] * table[head, key - query]`, equal beyond `farthest` frames."""

    def score(s: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = (key - query).clamp(-farthest, farthest)
        return s + gate[query, head] * table[head, distance + farthest]

    return score


def padded_rows(num_rows: int) -> int:
    """The smallest of 1024, 2048, 4096, ... that holds so many rows."""
    return max(FEWEST_ROWS, 1 << (num_rows - 1).bit_length())


def clips_of_rows(spans: Sequence[Span], num_rows: int) -> Tensor:
    """Which window each row belongs to, `[N]`; -1 for filling."""
    clips = torch.full((num_rows,), -1, dtype=torch.int32)
    for i, span in enumerate(spans):
        clips[span.start : span.end] = i
    return clips


@lru_cache(maxsize=1)  # all blocks of the upstream ask for the same
def block_mask(spans: tuple[Span, ...], num_rows: int, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries sees: those from the start of its first row's clip to the end of its last's."""
    num_blocks = num_rows // BLOCK_ROWS
    first, last = torch.arange(num_blocks), torch.arange(num_blocks)
    for span in spans:
        inside = slice(span.start // BLOCK_ROWS, (span.end - 1) // BLOCK_ROWS + 1)
        first[inside] = first[inside].clamp(max=inside.start)
        last[inside] = last[inside].clamp(min=inside.stop - 1)
    indices = first[:, None] + torch.arange(num_blocks)  # [blocks, blocks]; the kernel reads as many as there are
    counts, indices = (last - first + 1).int(), indices.clamp(max=num_blocks - 1).int()

    def same_clip(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return clip_of_row[query] == clip_of_row[key]

    clip_of_row = clips_of_rows(spans, num_rows).to(device)
    counts, indices = counts[None, None].to(device), indices[None, None].to(device)
    return BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=BLOCK_ROWS, mask_mod=same_clip)


def _filled(rows: Tensor, num_rows: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, num_rows - len(rows)))
