"""Read tables of embeddings block by block, so that a table larger than memory can be searched, reduced and drawn.

Shapes: `N` rows of a table, `n` of a block, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wavcse.data.embedding_table import ROW_GROUP_ROWS, read_metadata
from wavcse.data.files import read_json
from wavcse.data.manifest import file_stamp

COLUMN = "embedding"


class StoredEmbeddings:
    """A table that `wavcse embed` has made, or the folder of parts of a run that is not done yet.

    Args:
        path: the Parquet file, or a folder whose `*.parquet` files are read in the order of their names.

    Attributes:
        metadata: what the vectors depend on: model, hash of its weights, precision, size, normalisation.
        embedding_size: E.
        files: the Parquet files.
        columns: all columns but the embedding.

    Raises:
        ValueError: there is no such file, or it is no table of embeddings.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        self.files = files
        if not files or not files[0].is_file():
            what = "holds no Parquet files" if self.path.is_dir() else "there is no such file"
            raise ValueError(f"{self.path}: {what}; give a table that `wavcse embed` has made.")
        key = self.path / "key.json"
        self.metadata: dict = read_json(key) if key.is_file() else read_metadata(files[0])
        self.embedding_size: int = self.metadata["embedding_size"]
        self._files = [pq.ParquetFile(file) for file in files]
        self.columns = [name for name in self._files[0].schema_arrow.names if name != COLUMN]
        if COLUMN not in self._files[0].schema_arrow.names:
            raise ValueError(f"{files[0]}: has no column {COLUMN!r}; its columns are {self.columns}.")
        groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        self._groups = [(file, group, file.metadata.row_group(group).num_rows) for file, group in groups]
        self._starts = np.cumsum([0, *(rows for _, _, rows in self._groups)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def stamps(self) -> list[list[int]]:
        """What changes when the files do: size and time of each."""
        return [list(file_stamp(file)) for file in self.files]

    def blocks(self, rows: int = ROW_GROUP_ROWS) -> Iterator[np.ndarray]:
        """All embeddings in order, float32 `[n, E]` with n at most `rows`; no more than a block is held.

        Raises:
            ValueError: an embedding is missing or has another size.
        """
        for file in self._files:
            for batch in file.iter_batches(rows, columns=[COLUMN]):
                yield self._numbers(batch.column(0))

    def ranges(self) -> np.ndarray:
        """The smallest and the largest value of each number over all rows, float32 `[2, E]`: what int8 is calibrated with."""
        low = np.full(self.embedding_size, np.inf, np.float32)
        high = -low
        for block in self.blocks():
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
        return np.stack([low, high])

    def embeddings(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Embeddings of some rows, `[len(positions), E]`; only the row groups that hold them are read."""
        positions = np.asarray(positions, dtype=np.int64)
        found = np.empty((len(positions), self.embedding_size), np.float32)
        for where, table in self._read(positions, [COLUMN]):
            found[where] = self._numbers(table[COLUMN].combine_chunks())
        return found

    def rows(self, positions: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The other columns of some rows, in the order of `positions`."""
        positions = np.asarray(positions, dtype=np.int64)
        frames = [table.to_pandas().set_index(where) for where, table in self._read(positions, columns or self.columns)]
        return pd.concat(frames).sort_index() if frames else pd.DataFrame(columns=list(columns or self.columns))

    def _read(self, positions: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Per row group that holds some of the rows: which of `positions` these are, and the rows."""
        groups = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(groups):
            file, group, _ = self._groups[number]
            where = np.flatnonzero(groups == number)
            table = file.read_row_group(group, columns=list(columns))
            yield where, table.take(pa.array(positions[where] - self._starts[number]))

    def _numbers(self, column: pa.Array) -> np.ndarray:
        numbers = column.flatten()
        if column.null_count or numbers.null_count or len(numbers) != len(column) * self.embedding_size:
            raise ValueError(f"{self.path}: not every row has an embedding of {self.embedding_size} numbers.")
        return numbers.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(len(column), -1)
