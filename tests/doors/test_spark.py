"""Spark: `EmbedBatch` as the function of `mapInPandas`, in a local session with two threads."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from wavcse import WavCSEModel
from wavcse.doors.batches import EmbedBatch
from wavcse.tests.helpers.door_pages import run_first_block

pytestmark = pytest.mark.doors


@pytest.fixture(scope="module")
def spark():
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    options = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.driver.host": "127.0.0.1"}
    builder = sql.SparkSession.builder.master("local[2]")
    for name, value in options.items():
        builder = builder.config(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.getOrCreate()
        yield session
        session.stop()


def test_map_in_pandas_on_files_bytes_and_structs(spark, tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path / "hub")
    paths = [str(tmp_path / f"{number}.wav") for number in range(6)]
    for path, wave in zip(paths, waves(4_000, 8_000, 6_000, 5_000, 9_000, 7_000)):
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
    expected = dict(zip(paths, WavCSEModel.from_pretrained(tmp_path / "hub").eval().encode(paths)))
    content = {path: Path(path).read_bytes() for path in paths}
    for kind, audio in (
        ("string", lambda path: path),
        ("binary", content.get),
        ("struct<bytes:binary,path:string>", lambda path: (bytearray(content[path]), "clip.wav")),
    ):
        frame = spark.createDataFrame([(path, audio(path)) for path in paths], f"name string, audio {kind}").repartition(2)
        rows = frame.mapInPandas(EmbedBatch(tmp_path / "hub"), "name string, embedding array<float>").collect()
        assert sorted(row.name for row in rows) == paths
        for row in rows:
            np.testing.assert_allclose(row.embedding, expected[row.name], atol=1e-5)


def test_the_page_on_spark(spark, tiny_model, waves, tmp_path):
    paths = {"clips.parquet": tmp_path / "clips.parquet", "model": tmp_path / "hub"}
    tiny_model().save_pretrained(paths["model"])
    wave = waves(8_000)[0]
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    rows = [{"audio": {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}, "word": "yes"}]
    pq.write_table(pa.Table.from_pylist(rows), paths["clips.parquet"])
    (row,) = run_first_block("spark.md", paths, spark=spark)["frame"].collect()
    assert row.word == "yes"
    np.testing.assert_allclose(row.embedding, WavCSEModel.from_pretrained(paths["model"]).eval().encode(wave), atol=1e-5)
