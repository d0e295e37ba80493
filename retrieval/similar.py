"""The nearest clips of a table: `wavcse similar`, whose options and help are in `retrieval/arguments.py`."""

from __future__ import annotations

from wavcse.retrieval.arguments import SIMILAR, SimilarArguments

if __name__ == "__main__":
    SIMILAR.answer()  # before the imports below, which take seconds

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.data.files import write_atomically
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.index import Index, index_of
from wavcse.retrieval.nearest import nearest_rows, recall, unit_rows
from wavcse.retrieval.query import embed_recordings, embedder_of
from wavcse.settings.command import DONE

RECALL_ROWS = 100  # of the table, that an index is tried with


def similar(table: StoredEmbeddings, query: np.ndarray, top: int, index: Index | None = None) -> pd.DataFrame:
    """The rows of a table that are most similar to a query, best first: `rank`, `similarity`, and the table's columns.

    Args:
        query: `[E]`.
        index: asked in place of the exact search.
    """
    top, query = min(top, len(table)), np.asarray(query, np.float32)[None]
    positions, similarities = index.search(unit_rows(query), top) if index else nearest_rows(table.blocks(), query, top)
    is_found = positions[0] >= 0
    rows = table.rows(positions[0][is_found])
    rows.insert(0, "rank", np.arange(1, len(rows) + 1))
    rows.insert(1, "similarity", similarities[0][is_found])
    return rows


def measured_recall(table: StoredEmbeddings, index: Index, top: int) -> tuple[float, int]:
    """Recall of an index against the exact search, with evenly spread rows of the table as queries, and how many these are."""
    top = min(top, len(table))
    rows = np.unique(np.linspace(0, len(table) - 1, min(RECALL_ROWS, len(table))).astype(int))
    queries = table.embeddings(rows)
    exact, _ = nearest_rows(table.blocks(), queries, top)
    return recall(index.search(unit_rows(queries), top)[0], exact), len(rows)


@SIMILAR.main
def main(args: SimilarArguments) -> int:
    """The command line."""
    table = StoredEmbeddings(args.table)
    (query,) = embed_recordings(embedder_of(table, args.model, args.device), [args.query])
    index = None
    if args.index is not None:
        index, is_new = index_of(table, args.index)
        share, count = measured_recall(table, index, args.top)
        done = "built" if is_new else "read"
        print(f"index {args.index}: {done}; recall@{args.top} {share:.3f} of exact search, {count} rows as queries")
    ranked = similar(table, query, args.top, index)
    print(ranked.drop(columns="path", errors="ignore").to_string(index=False, float_format="{:.4f}".format))
    if args.out is not None:
        write_atomically(Path(args.out), ranked.to_csv(index=False))
        print(f"{args.out}: {len(ranked)} of {len(table)} rows")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
