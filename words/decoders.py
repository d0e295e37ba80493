"""Decoders that say a word frame by frame, each given the frame before (teacher forcing): they train the embeddings.

Shapes: `B` words, `T` frames, `F` coefficients, `H` hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DecoderCell(nn.Module):
    """An LSTM cell with what the authors add to it.

    gates i, f, g, o = W_x x + W_h h (+ W_e e) + b; with peepholes (Gers and Schmidhuber 2000) + p_i c and p_f c of the cell
    state before, and + p_o c' of the new one.

    Args:
        peephole: whether the cell state enters the gates i, f and o.
        condition_size: of a vector e that enters all four gates at each step; 0 = none.
    """

    def __init__(self, input_size: int, hidden_size: int, peephole: bool = False, condition_size: int = 0):
        super().__init__()
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.condition = nn.Linear(condition_size, 4 * hidden_size, bias=False) if condition_size else None
        self.peephole = nn.Parameter(torch.zeros(3, hidden_size)) if peephole else None

    def forward(self, given: Tensor, state: tuple[Tensor, Tensor], condition: Tensor | None = None) -> Tensor:
        """Hidden states `[B, T, H]` for inputs `[B, T, F]`, from an initial (h, c) of `[B, H]` each."""
        gates = self.input(given)
        if self.condition is not None:
            gates = gates + self.condition(condition)[:, None]
        outputs, (hidden, cell) = [], state
        for own in gates.unbind(dim=1):
            into, forget, new, out = (own + self.hidden(hidden)).chunk(4, dim=-1)
            if self.peephole is not None:
                into, forget = into + self.peephole[0] * cell, forget + self.peephole[1] * cell
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
            if self.peephole is not None:
                out = out + self.peephole[2] * cell
            hidden = torch.sigmoid(out) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1)


class FrameDecoder(nn.Module):
    """A word's frames from an embedding."""

    def __init__(self, num_mfcc: int, hidden_size: int, peephole: bool = False, condition_size: int = 0):
        super().__init__()
        self.cell = DecoderCell(num_mfcc, hidden_size, peephole, condition_size)
        self.output = nn.Linear(hidden_size, num_mfcc)

    def forward(self, wanted: Tensor, state: tuple[Tensor, Tensor], condition: Tensor | None = None) -> Tensor:
        """Frames `[B, T, F]` as they are said where `wanted` are to be said."""
        return self.output(self.cell(frames_before(wanted), state, condition))


class AttentiveDecoder(nn.Module):
    """A word's frames from the encoder's outputs, by additive attention (Bahdanau et al. 2015).

    context = sum_t softmax_t(v^T tanh(W_h h + W_e e_t)) e_t enters an LSTM beside the frame before; v is one vector for all
    words.
    """

    def __init__(self, num_mfcc: int, hidden_size: int):
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.cell = nn.LSTMCell(hidden_size + num_mfcc, hidden_size)
        self.output = nn.Linear(hidden_size, num_mfcc)

    def forward(self, wanted: Tensor, state: tuple[Tensor, Tensor], encoded: Tensor, is_real: Tensor) -> Tensor:
        """Frames `[B, T, F]`.

        Args:
            encoded: outputs of the encoder, `[B, T, H]`.
            is_real: `[B, T]`, false where a word has no frame, which is never looked at.
        """
        keys, (hidden, cell), outputs = self.key(encoded), state, []
        for before in frames_before(wanted).unbind(dim=1):
            scores = self.score(torch.tanh(self.query(hidden)[:, None] + keys)).squeeze(-1)
            weights = scores.masked_fill(~is_real, -torch.inf).softmax(dim=-1)
            context = torch.einsum("bt,bth->bh", weights, encoded)
            hidden, cell = self.cell(torch.cat([context, before], dim=-1), (hidden, cell))
            outputs.append(hidden)
        return self.output(torch.stack(outputs, dim=1))


def frames_before(frames: Tensor) -> Tensor:
    """The frame before each of `[B, T, F]`; zeros before the first."""
    return torch.cat([torch.zeros_like(frames[:, :1]), frames[:, :-1]], dim=1)


def real_frames(lengths: Tensor, longest: int) -> Tensor:
    """`[B, T]`: true for the frames that words have."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def frame_error(said: Tensor, wanted: Tensor, is_real: Tensor, power: int) -> Tensor:
    """Mean absolute (`power` 1) or squared (2) error over all coefficients of real frames."""
    return (said - wanted)[is_real].abs().pow(power).mean()
