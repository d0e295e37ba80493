"""Exact search for the nearest rows of a table, by cosine similarity, block after block.

Shapes: `Q` queries, `N` rows of the table, `n` rows of a block, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[n, E]` scaled to length 1; one of zeros stays one, and so is similar to nothing."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest_rows(blocks: Iterable[np.ndarray], queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` rows that are most similar to each query, best first; of equals the earlier row.

    Args:
        blocks: the table, in order, as arrays `[n, E]`.
        queries: `[Q, E]`, of any length; 0 < top.

    Returns:
        Positions int64 `[Q, k]` and cosine similarities float32 `[Q, k]`, with k the smaller of `top` and N.
    """
    queries = unit_rows(queries)
    found = np.empty((len(queries), 0), np.int64)
    similarities = np.empty((len(queries), 0), np.float32)
    start = 0
    for block in blocks:
        of_block = queries @ unit_rows(block).T  # [Q, n]
        positions = np.broadcast_to(np.arange(start, start + len(block)), of_block.shape)
        found, similarities = np.concatenate([found, positions], 1), np.concatenate([similarities, of_block], 1)
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :top]
        found, similarities = np.take_along_axis(found, best, 1), np.take_along_axis(similarities, best, 1)
        start += len(block)
    return found, similarities


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact neighbours, positions `[Q, k]`, that an index has found, `[Q, k]` with -1 for none."""
    return float(np.mean([np.isin(wanted, own).mean() for wanted, own in zip(exact, found)]))
