"""Two recordings side by side: `wavcse compare`, whose options and help are in `retrieval/arguments.py`."""

from __future__ import annotations

from wavcse.retrieval.arguments import COMPARE, CompareArguments

if __name__ == "__main__":
    COMPARE.answer()  # before the imports below, which take seconds

import sys

import numpy as np

from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.nearest import unit_rows
from wavcse.retrieval.query import embed_recordings, embedder_for, embedder_of
from wavcse.settings.command import DONE

SCALE_ROWS = 1000  # of a table, whose pairs are a scale


def pair_similarities(table: StoredEmbeddings, seed: int = 0) -> np.ndarray:
    """Cosine similarities of all pairs among up to `SCALE_ROWS` rows of a table, drawn at random; sorted."""
    rows = np.random.default_rng(seed).permutation(len(table))[:SCALE_ROWS]
    units = unit_rows(table.embeddings(rows))
    return np.sort((units @ units.T)[np.triu_indices(len(rows), 1)])


@COMPARE.main
def main(args: CompareArguments) -> int:
    """The command line."""
    table = StoredEmbeddings(args.table) if args.table is not None else None
    if table is not None and len(table) < 2:
        raise ValueError(f"{args.table}: has {len(table)} rows; a scale needs pairs of them.")
    embedder = embedder_for(args.model, args.device) if table is None else embedder_of(table, args.model, args.device)
    one, other = unit_rows(embed_recordings(embedder, [args.first, args.second]))
    similarity = float(one @ other)
    print(f"cosine similarity {similarity:.4f}")
    if table is not None:
        pairs = pair_similarities(table)
        share = np.searchsorted(pairs, similarity) / len(pairs)
        print(f"{share:.1%} of {len(pairs)} pairs of clips in {args.table} are less similar (median {np.median(pairs):.4f})")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
