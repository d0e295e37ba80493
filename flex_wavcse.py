"""Attention of a whole pack in one kernel, for GPUs: FlexAttention with WavLM's gated position bias.

Launching kernels clip by clip would take longer than the arithmetic of short clips. Here all rows of a pack go through one
kernel, which skips blocks of keys that hold no row of the same clip and reads the bias from a table of distances as it goes.

Shapes: `N` rows of a pack, `D` upstream width, `H` heads, `d = D / H`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .attention_wavcse import Attention, RelativeBias
from .packing_wavcse import Span

try:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    HAS_FLEX = True
except ImportError:  # PyTorch before 2.5, or a build without it
    HAS_FLEX = False

BLOCK_ROWS = 128  # of queries and keys that the kernel takes or skips together
MOST_SHAPES = 64  # that the kernel is compiled for: sizes of packs, types, with and without a bias
FEWEST_ROWS = 1024  # packs are filled up to this or twice, four times, ... as many rows: each size is compiled once


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
        q, k, v = (_heads(_filled(rows, num_rows), self.num_heads) for rows in (query, key, value))
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
    """The compiled kernel of this process: one for all blocks and models, compiled anew for other shapes and types."""

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


def _heads(rows: Tensor, num_heads: int) -> Tensor:
    return rows.unflatten(1, (num_heads, -1)).transpose(0, 1)[None]  # [N, D] -> [1, H, N, d]
