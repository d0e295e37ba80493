"""Softmax attention on packed rows, clip by clip, with WavLM's gated position bias where the upstream has it.

No tensor of `T x T` per head and clip is kept: scores exist for a block of query rows at a time. The bias depends on key minus
query position only. With the queries in reverse order it becomes a plain view of one vector per head (row r starts one further
on), so it is never written out either.

Shapes: `T` frames of a clip, `N` rows of a pack, `D` upstream width, `H` heads, `d = D / H`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .packing_wavcse import Span
from .products_wavcse import linear, uses_onednn

FRAMES_BY_HEAD = 150  # from here on head by head is faster than all heads at once
SCORE_ELEMENTS = 2**19  # of one head's block of scores, [rows, T]: 2 MB stay in the processor's cache
QUERY_ROWS = 128
MASK_ELEMENTS = 2**22  # of a block's position bias for all heads, [H, rows, T]: 16 MB


class Attention:
    """Attention of every clip of a pack among its own frames.

    Args:
        num_heads: H.
        bias: position bias of all blocks; `None` = none.
    """

    def __init__(self, num_heads: int, bias: RelativeBias | None):
        self.num_heads, self.bias = num_heads, bias

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, spans: Sequence[Span]) -> Tensor:
        """`[N, D]` each, gate `[N, H]` -> `[N, D]`."""
        attended = torch.empty_like(value)
        for span in spans:
            at, num_frames = slice(span.start, span.end), span.end - span.start
            q, k, v, out = (_heads(rows[at], self.num_heads) for rows in (query, key, value, attended))
            bias = clip_gate = None
            if gate is not None:
                bias, clip_gate, q = self.bias.reversed_rows(num_frames), gate[at].T.flip(1)[..., None], q.flip(1)
            attend = attend_by_head if uses_onednn(value) and num_frames >= FRAMES_BY_HEAD else attend_all_heads
            attend(q, k, v, bias, clip_gate, out)
        return attended


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gate: Tensor | None, out: Tensor) -> None:
    """Attention in products of one head's query rows with all its keys.

    Scores and softmax are float32 in every case, the sum over values has the values' precision.

    Args:
        q, k, v: `[H, T, d]`; `q` in reverse order if there is a bias.
        bias: `[H, T, T]`, a view, for the reversed queries.
        gate: `[H, T, 1]`, likewise.
        out: `[H, T, d]`, receives the result in the frames' order.
    """
    num_heads, num_frames, size = q.shape
    rows = max(1, SCORE_ELEMENTS // num_frames)
    for head in range(num_heads):  # oneDNN wants operands that lie in one piece
        queries = (q[head].float() * size**-0.5).contiguous()
        keys, values = k[head].float().contiguous(), v[head].T.contiguous()
        for a in range(0, num_frames, rows):
            scores = linear(queries[a : a + rows], keys)
            if bias is not None:
                scores.addcmul_(bias[head, a : a + rows], gate[head, a : a + rows])
            _put(out[head], a, linear(torch.softmax(scores, dim=-1).to(v.dtype), values), bias is not None)


def attend_all_heads(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gate: Tensor | None, out: Tensor) -> None:
    """As `attend_by_head`, by PyTorch's fused attention on blocks of query rows of all heads."""
    if bias is None:
        out.copy_(F.scaled_dot_product_attention(q[None], k[None], v[None])[0])
        return
    num_heads, num_frames, _ = q.shape
    rows = min(QUERY_ROWS, max(16, MASK_ELEMENTS // (num_heads * num_frames)))
    for a in range(0, num_frames, rows):
        mask = (bias[:, a : a + rows] * gate[:, a : a + rows]).to(q.dtype)
        z = F.scaled_dot_product_attention(q[None, :, a : a + rows], k[None], v[None], attn_mask=mask[None])[0]
        _put(out, a, z, True)


def _put(out: Tensor, a: int, z: Tensor, is_reversed: bool) -> None:
    """Rows `a` and following of a result, in the order of the queries, to their frames in `[..., T, d]`."""
    b, num_frames = a + z.shape[-2], out.shape[-2]
    if is_reversed:
        out[..., num_frames - b : num_frames - a, :] = z.flip(-2)
    else:
        out[..., a:b, :] = z


def _heads(rows: Tensor, num_heads: int) -> Tensor:
    return rows.unflatten(1, (num_heads, -1)).transpose(0, 1)  # [T, D] -> [H, T, d], a view


class Gate:
    """WavLM's gate of the position bias, from the block's input: `[N, D]` -> `[N, H]` (Chen et al. 2022, section III-B).

    The module projects each head to eight numbers and sums them by fours; summing the weights first gives two.
    """

    def __init__(self, attention: nn.Module):
        layer = attention.gru_rel_pos_linear
        self.weight = layer.weight.detach().float().unflatten(0, (2, 4)).sum(dim=1)  # [2, d]
        self.bias = layer.bias.detach().float().unflatten(0, (2, 4)).sum(dim=1)
        self.constant = attention.gru_rel_pos_const.detach().float().flatten()  # [H]
        self.num_heads = len(self.constant)

    def __call__(self, h: Tensor) -> Tensor:
        update, reset = F.linear(h.unflatten(1, (self.num_heads, -1)), self.weight, self.bias).sigmoid_().unbind(-1)
        return update * (reset * self.constant - 1.0) + 2.0


class RelativeBias:
    """WavLM's bucketed position bias as one vector per head over all distances, as long as the longest clip so far."""

    def __init__(self, upstream: PreTrainedModel):
        self.attention = upstream.encoder.layers[0].attention
        self.num_frames = 0
        self.table = torch.empty(0)
        self.farthest = upstream.config.max_bucket_distance  # the bias is the same beyond
        self.saturated: Tensor | None = None  # the bias up to there

    def reversed_rows(self, num_frames: int) -> Tensor:
        """`[H, T, T]` as a view: row r is the bias of query `T - 1 - r` towards keys 0..T-1."""
        if num_frames > self.num_frames:
            self.num_frames, self.table = num_frames, self.by_distance(num_frames - 1)
        num_heads, length = self.table.shape
        return self.table.as_strided((num_heads, num_frames, num_frames), (length, 1, 1), self.num_frames - num_frames)

    def by_distance(self, farthest: int) -> Tensor:
        """`[H, 2 * farthest + 1]`, contiguous: the bias at key minus query = `-farthest`..`farthest`."""
        # Buckets on the CPU, so that a border cannot fall differently on a GPU.
        bucket = self.attention._relative_positions_bucket(torch.arange(-farthest, farthest + 1))
        embedding = self.attention.rel_attn_embed.weight.detach().float()
        return embedding[bucket.to(embedding.device)].T.contiguous()
