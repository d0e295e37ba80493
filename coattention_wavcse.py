"""Emotion from what else is known of a clip: layers mixed with learnt weights, and attention that other tasks steer.

Wan et al. 2024, "Metadata-Enhanced Speech Emotion Recognition: Augmented Residual Integration and Co-Attention in Two-Stage
Fine-Tuning" (arXiv 2412.20707). Words, gender, speaker and style are read off a layer by hidden layers h_k; together they
say which frames matter for the emotion, and go into its classifier. The paper leaves the wiring open; its nearest relative is
CA-MSER (Zou et al. 2022), and this is the definition here:

    F = [F_N ; sum of softmax(a)_i F_i]                        ARI: block N beside a weighted sum of blocks 1..N-1, [B, T, 2D]
    c = [h_1 ; ... ; h_K]                                      what the other tasks hear
    s_t = v . tanh(W_q c + W_f F_t),  z = sum of softmax(s)_t F_t
    e = ReLU(W z)
    vector = ReLU(FC1 [e ; c]),  logits = FC2 vector           FC2 is the head of the readout

Shapes: `B` clips, `T` frames, `D` width of a frame, `H` hidden size, `K` other tasks, `C` their hidden sizes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ARI, WEIGHTED_BLOCKS = "ari", "weighted_blocks"  # taps that mix layers with weights which tasks may share
MIXES = (ARI, WEIGHTED_BLOCKS)
FUSIONS = ("content", "fixed", "cross", "none")
NEED_CONTEXT = ("fixed", "cross")  # attention that other tasks alone give
FUSION = {"hidden": 128, "dropout": 0.1}
OWN_OF_FUSION = {"fixed": {"frames": 149}, "cross": {"heads": 4}}  # 149 frames are CA-MSER's 3 s


class LayerMix(nn.Module):
    """Blocks of an encoder as one sequence of frames, with a learnt weight per block.

    "ari": the last block beside the weighted sum of all others, `[B, T, 2D]`; the paper's Eq. 3. "weighted_blocks": its rival,
    the weighted sum of all blocks, `[B, T, D]`.

    Args:
        num_blocks: N, at least 2.
        raw: leave the softmax out; the weights then start where the softmax would, at 1 / their number.

    Attributes:
        weights: of blocks 1 to N - 1, or to N; before their softmax.
    """

    def __init__(self, tap: str, num_blocks: int, raw: bool = False):
        super().__init__()
        self.last = num_blocks if tap == ARI else None
        self.blocks = range(1, num_blocks + (tap != ARI))
        self.raw = raw
        self.start = 1 / len(self.blocks) if raw else 0.0
        self.weights = nn.Parameter(torch.full((len(self.blocks),), self.start))

    def forward(self, layers: Mapping[int, Tensor]) -> Tensor:
        """Mix `layers`, block -> `[B, T, D]`."""
        mixed = sum(share * layers[block] for share, block in zip(self.shares(), self.blocks))
        return mixed if self.last is None else torch.cat([layers[self.last], mixed], dim=-1)

    def shares(self) -> Tensor:
        """What each block is multiplied with."""
        return self.weights if self.raw else self.weights.softmax(dim=0)


class HiddenLayer(nn.Sequential):
    """`h = Dropout(ReLU(Linear x))`, `[..., D]` -> `[..., H]`."""

    def __init__(self, input_size: int, size: int, dropout: float):
        super().__init__(nn.Linear(input_size, size), nn.ReLU(), nn.Dropout(dropout))
        self.size = size


class Fusion(nn.Module):
    """Frames and what other tasks hear -> the vector before the last layer of a classifier.

    Args:
        input_size: D.
        context_sizes: hidden size of each other task; none is possible for "content" and "none".
        kind: how frames become one vector: "content", the attention above, for any length; "fixed", CA-MSER's: a linear
            layer on c gives the weight of each of the first `frames` frames, by ReLU and without a softmax; "cross": the h_k
            are the K queries of multi-head attention over the frames, with a shortcut and a norm, and the mean over them
            is taken; "none": the mean of the frames.
        hidden: H of all layers here; kept as `size`.
        frames: of "fixed".
        heads: of "cross".
    """

    def __init__(
        self,
        input_size: int,
        context_sizes: Sequence[int],
        kind: str = "content",
        hidden: int = 128,
        dropout: float = 0.1,
        frames: int = 149,
        heads: int = 4,
    ):
        super().__init__()
        context_size = sum(context_sizes)
        self.size = hidden
        if kind == "content":
            self.attention = ContentAttention(input_size, context_size, hidden)
        elif kind == "fixed":
            self.attention = FixedAttention(context_size, frames)
        else:
            self.attention = CrossAttention(input_size, hidden, heads) if kind == "cross" else MeanAttention()
        self.dropout = nn.Dropout(dropout)
        self.of_frames = nn.Linear(hidden if kind == "cross" else input_size, hidden)
        self.together = nn.Linear(hidden + context_size, hidden)  # FC1

    def forward(self, frames: Tensor, context: Sequence[Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` and K of `[B, H_k]` -> vectors `[B, H]`, and the weight of every frame `[B, T]`.

        Args:
            mask: bool `[B, T]`, false for the padding to the right of a clip; `None` = no padding.
        """
        if mask is None:
            mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        attended, weights = self.attention(frames, context, mask)
        e = self.of_frames(self.dropout(attended)).relu()
        return self.together(torch.cat([e, *context], dim=1)).relu(), weights


class ContentAttention(nn.Module):
    """Each frame is scored by what it holds and what the other tasks hear; without other tasks by what it holds alone."""

    def __init__(self, input_size: int, context_size: int, size: int):
        super().__init__()
        self.of_context = nn.Linear(context_size, size, bias=False) if context_size else None
        self.of_frames = nn.Linear(input_size, size)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, frames: Tensor, context: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Fusion`; the weights of a clip sum to 1."""
        scored = self.of_frames(frames)
        if self.of_context is not None:
            scored = scored + self.of_context(torch.cat(list(context), dim=1))[:, None]
        scores = self.score(scored.tanh())[..., 0].masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=1)
        return weighted(frames, weights), weights


class FixedAttention(nn.Module):
    """The other tasks give every place in a clip its weight, whatever is heard there; frames behind `frames` have none."""

    def __init__(self, context_size: int, frames: int):
        super().__init__()
        self.of_context = nn.Linear(context_size, frames)

    def forward(self, frames: Tensor, context: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Fusion`; weights are 0 or greater and need not sum to 1."""
        known = self.of_context(torch.cat(list(context), dim=1)).relu()
        behind = known.new_zeros(len(known), max(0, frames.shape[1] - known.shape[1]))
        weights = torch.cat([known, behind], dim=1)[:, : frames.shape[1]] * mask
        return weighted(frames, weights), weights


class CrossAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with a query per other task, as MMER (Ghosh et al. 2023) has it."""

    def __init__(self, input_size: int, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(size, size), nn.Linear(size, size)
        self.key, self.value = nn.Linear(input_size, size), nn.Linear(input_size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, frames: Tensor, context: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Fusion`, with vectors `[B, H]`; the weights are means over heads and queries."""
        tasks = torch.stack(list(context), dim=1)  # [B, K, H]
        query, key, value = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.query(tasks), self.key(frames), self.value(frames))
        )  # [B, heads, K or T, H / heads]
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=3)
        heard = self.out((weights @ value).transpose(1, 2).flatten(2))
        return self.norm(tasks + heard).mean(dim=1), weights.mean(dim=(1, 2))


class MeanAttention(nn.Module):
    """All frames alike."""

    def forward(self, frames: Tensor, context: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Fusion`."""
        weights = mask / mask.sum(dim=1, keepdim=True).to(frames.dtype)
        return weighted(frames, weights), weights


def weighted(frames: Tensor, weights: Tensor) -> Tensor:
    """Sum over time of frames `[B, T, D]` times weights `[B, T]`: `[B, D]`."""
    return torch.einsum("bt,btd->bd", weights, frames)
