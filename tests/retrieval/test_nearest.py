"""The exact search against sorting all similarities at once, and the table that it reads block by block."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from wavcse.data.embedding_table import write_table
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.nearest import nearest_rows, recall


@pytest.fixture
def write(tmp_path):
    """`write(embeddings, name)` -> a table as `wavcse embed` writes it."""

    def make(embeddings, name="table.parquet"):
        rows = pd.DataFrame({"id": [f"{i}" for i in range(len(embeddings))], "path": "a.wav", "seconds": 1.0})
        write_table(tmp_path / name, rows, embeddings, {"embedding_size": embeddings.shape[1], "model": "m"})
        return tmp_path / name

    return make


@pytest.mark.parametrize("rows", [1, 7, 100, 1000])
def test_the_nearest_rows_are_those_of_sorting_all(rows):
    generator = np.random.default_rng(0)
    table, queries = generator.normal(size=(500, 12)).astype(np.float32), generator.normal(size=(3, 12)).astype(np.float32)
    table[40] = 3 * table[20]  # as similar as the row before it
    queries[0] = table[20]
    blocks = [table[start : start + rows] for start in range(0, 500, rows)]
    positions, similarities = nearest_rows(blocks, queries, 9)
    a, b = (x.astype(np.float64) for x in (queries, table))
    wanted = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(similarities, -np.sort(-wanted, axis=1)[:, :9], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(wanted, positions, 1), similarities, atol=1e-6)
    assert set(positions[0][:2]) == {20, 40}


def test_there_are_no_more_neighbours_than_rows():
    positions, similarities = nearest_rows([np.eye(3, dtype=np.float32)], np.eye(3, dtype=np.float32)[:1], 10)
    assert positions.tolist() == [[0, 1, 2]]
    assert similarities.tolist() == [[1, 0, 0]]


def test_recall_counts_exact_neighbours_that_were_found():
    assert recall(np.array([[3, 1], [7, -1]]), np.array([[1, 3], [7, 8]])) == 0.75


def test_a_table_of_many_blocks_reads_as_one(write):
    embeddings = np.random.default_rng(1).normal(size=(10_000, 8)).astype(np.float32)  # three row groups
    table = StoredEmbeddings(write(embeddings))
    assert (len(table), table.embedding_size, table.columns) == (10_000, 8, ["id", "path", "seconds"])
    blocks = list(table.blocks(1500))
    assert max(map(len, blocks)) == 1500
    np.testing.assert_array_equal(np.concatenate(blocks), embeddings)
    some = [9999, 0, 4096, 4095, 0]
    np.testing.assert_array_equal(table.embeddings(some), embeddings[some])
    assert list(table.rows(some)["id"]) == [str(row) for row in some]


def test_a_folder_of_parts_is_one_table(write, tmp_path):
    embeddings = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    (tmp_path / "parts").mkdir()
    for part in range(3):
        write(embeddings[2 * part : 2 * part + 2], f"parts/part-{part}.parquet")
    table = StoredEmbeddings(tmp_path / "parts")
    np.testing.assert_array_equal(np.concatenate(list(table.blocks())), embeddings)
    np.testing.assert_array_equal(table.embeddings([5, 1]), embeddings[[5, 1]])


def test_a_search_holds_a_block_and_not_the_table(write):
    embeddings = np.random.default_rng(2).normal(size=(40_000, 200)).astype(np.float32)  # 32 MB in ten row groups
    path, query = write(embeddings), embeddings[123:124]
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    try:
        positions, _ = nearest_rows(StoredEmbeddings(path).blocks(), query, 1)
    finally:
        pa.set_memory_pool(usual)
    assert positions.item() == 123
    assert 0 < counting.max_memory() < embeddings.nbytes / 2


def test_what_is_no_table_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        StoredEmbeddings(tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match="holds no Parquet files"):
        StoredEmbeddings(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is not a table of embeddings"):
        StoredEmbeddings(tmp_path / "other.parquet")
