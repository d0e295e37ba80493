"""An index of a table in a file beside it, so that a search need not read all: HNSW graphs of faiss or usearch.

Both keep vectors of length 1, so that the inner product is the cosine similarity. Hierarchical navigable small worlds:
Malkov and Yashunin 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from wavcse.data.files import kept_json, replacing, write_json
from wavcse.data.manifest import file_stamp
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.nearest import unit_rows
from wavcse.settings.libraries import optional_library

EXTRA = "index"
NEIGHBOURS = 32  # links of a vector in the graph
BUILD_WIDTH, SEARCH_WIDTH = 128, 128  # candidates that are kept while a vector is put in, and while one is looked for


class Index(Protocol):
    """What is asked of an index; positions are those of the table's rows."""

    def add(self, vectors: np.ndarray) -> None:
        """Put in the next rows, `[n, E]` of length 1."""

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest_rows`, of queries of length 1; position -1 where nothing was found."""

    def save(self, path: Path) -> None:
        """Write it to a file."""

    def load(self, path: Path) -> None:
        """Read what `save` has written."""


class FaissIndex:
    """`faiss.IndexHNSWFlat` with inner products."""

    def __init__(self, size: int):
        self.faiss = optional_library("faiss", EXTRA)
        self.index = self.faiss.IndexHNSWFlat(size, NEIGHBOURS, self.faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = BUILD_WIDTH

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(np.ascontiguousarray(vectors))

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        self.index.hnsw.efSearch = max(SEARCH_WIDTH, top)
        similarities, positions = self.index.search(np.ascontiguousarray(queries), top)
        return positions, similarities

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))

    def load(self, path: Path) -> None:
        self.index = self.faiss.read_index(str(path))


class UsearchIndex:
    """`usearch.index.Index` with inner products."""

    def __init__(self, size: int):
        self.usearch = optional_library("usearch.index", EXTRA)
        widths = {"connectivity": NEIGHBOURS, "expansion_add": BUILD_WIDTH, "expansion_search": SEARCH_WIDTH}
        self.index = self.usearch.Index(ndim=size, metric="ip", dtype="f32", **widths)

    def add(self, vectors: np.ndarray) -> None:
        start = len(self.index)
        self.index.add(np.arange(start, start + len(vectors)), np.ascontiguousarray(vectors))

    def search(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        self.index.expansion_search = max(SEARCH_WIDTH, top)
        positions = np.full((len(queries), top), -1, np.int64)
        similarities = np.full((len(queries), top), -np.inf, np.float32)
        for row, query in enumerate(queries):
            matches = self.index.search(query, top)
            positions[row, : len(matches)], similarities[row, : len(matches)] = matches.keys, 1 - matches.distances
        return positions, similarities

    def save(self, path: Path) -> None:
        self.index.save(str(path))

    def load(self, path: Path) -> None:
        self.index.load(str(path))


INDEXES: dict[str, Callable[[int], Index]] = {"faiss": FaissIndex, "usearch": UsearchIndex}


def index_of(table: StoredEmbeddings, library: str) -> tuple[Index, bool]:
    """The index of a table by a library of `INDEXES`, read from its file or built, and whether it was built.

    The file lies beside the table, `TABLE.faiss`, and what it was built from in `TABLE.faiss.json`: a table that has changed
    gets a new index.

    Raises:
        ImportError: the library is not installed.
    """
    index = INDEXES[library](table.embedding_size)
    path = table.path.with_name(f"{table.path.name}.{library}")
    about = path.with_name(f"{path.name}.json")
    key = {
        "rows": len(table),
        "stamps": table.stamps(),
        "links": NEIGHBOURS,
        "width": BUILD_WIDTH,
        "file": list(file_stamp(path)),
    }
    known = kept_json(about) or {}
    if all(known.get(name) == value for name, value in key.items()):
        index.load(path)
        return index, False
    for block in table.blocks():
        index.add(unit_rows(block))
    with replacing(path) as whole:
        index.save(whole)
    write_json(about, {**key, "file": list(file_stamp(path))})
    return index, True
