"""Which rows of a pack belong to which clip: windows of long clips, packs of windows, the rows that each keeps.

A pack is one matrix `[N, D]` that holds the frames of many windows one after another, without padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How much goes through at a time: what a CPU's cache holds, or what keeps a GPU busy. It changes no value.

    Args:
        pack_frames: rows of a pack; a longer clip goes alone.
        stem_frames: output frames of the convolutional stem.
        product_rows: of the feed-forward, whose inner width is four times D.
    """

    pack_frames: int
    stem_frames: int
    product_rows: int


CPU_BUDGET = Budget(pack_frames=1024, stem_frames=50, product_rows=512)
GPU_BUDGET = Budget(pack_frames=2**16, stem_frames=2**12, product_rows=2**14)


@dataclass(frozen=True)
class Window:
    """Frames `start` to `end` of a clip, of which `keep_start` to `keep_end` are pooled; the rest is context."""

    clip: int
    start: int
    end: int
    keep_start: int
    keep_end: int


@dataclass(frozen=True)
class Span:
    """Rows `start` to `end` of a pack belong to one window; pooled are rows `keep_start` to `keep_end`."""

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


def kept_rows(x: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """Of every window, the rows `[T, D]` that are pooled."""
    return [x[span.keep_start : span.keep_end] for span in spans]
