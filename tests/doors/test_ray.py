"""Ray: `EmbedBatch` as actors of Ray Data, and `wavcse embed --engine ray`, on a local cluster of two workers."""

import importlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from wavcse import WavCSEModel
from wavcse.data.arguments import EmbedSettings
from wavcse.data.shards import pieces_of_clips, pieces_of_url
from wavcse.doors import ray_corpus
from wavcse.doors.batches import EmbedBatch
from wavcse.doors.ray_corpus import EmbedPieces, embed_on_ray
from wavcse.embed import embed_corpus, main
from wavcse.tests.helpers.door_pages import run_first_block

pytestmark = pytest.mark.doors
RATE = 16_000


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A cluster of two CPUs in processes of this machine."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(waves, tmp_path_factory):
    """A folder of 24 clips."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, wave in enumerate(waves(*range(4_000, 16_000, 500))):
        (folder / f"speaker{number % 3}").mkdir(exist_ok=True)
        soundfile.write(folder / f"speaker{number % 3}" / f"{number:02d}.wav", wave, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def expected(hub, corpus):
    """Path -> what `encode` says."""
    paths = sorted(map(str, corpus.rglob("*.wav")))
    return dict(zip(paths, WavCSEModel.from_pretrained(hub).eval().encode(paths)))


class EmbedAndDie(EmbedBatch):
    """Its first worker is killed by the system in the middle of its second batch."""

    def __init__(self, mark: str, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.mark, self.batches = Path(mark), 0

    def __call__(self, batch):
        found = super().__call__(batch)
        self.batches += 1
        if self.batches == 2:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                return found
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def check(rows, expected):
    """Every clip once, with its embedding."""
    assert sorted(row["name"] for row in rows) == sorted(expected)
    scale = max(np.abs(vector).max() for vector in expected.values())
    for row in rows:
        np.testing.assert_allclose(row["embedding"], expected[row["name"]], atol=1e-5 * scale)


def test_map_batches_with_actors(ray, hub, expected):
    rows = [{"audio": path, "name": path} for path in expected]
    options = {"fn_constructor_args": [str(hub)], "batch_size": 4, "concurrency": (1, 2)}  # from one to two actors
    for batch_format in ("numpy", "pandas", "pyarrow"):
        found = ray.data.from_items(rows).map_batches(EmbedBatch, batch_format=batch_format, **options)
        check(found.take_all(), expected)


def test_a_lost_worker_is_replaced_and_nothing_is_lost_or_twice(ray, hub, expected, tmp_path):
    rows = ray.data.from_items([{"audio": path, "name": path} for path in expected], override_num_blocks=6)
    arguments = {"fn_constructor_args": [str(tmp_path / "killed"), str(hub)], "batch_size": 4, "concurrency": 2}
    found = rows.map_batches(EmbedAndDie, batch_format="pyarrow", **arguments).take_all()
    assert (tmp_path / "killed").exists()
    check(found, expected)


def test_the_page_on_ray(ray, hub, waves, tmp_path):
    wave = waves(8_000)[0]
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    rows = [{"audio": {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}, "word": "yes"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    paths = {"clips.parquet": tmp_path / "clips.parquet", "model": hub, "embedded": tmp_path / "embedded"}
    run_first_block("ray.md", paths)
    (row,) = pq.read_table(tmp_path / "embedded").to_pylist()
    assert row["word"] == "yes"
    np.testing.assert_allclose(row["embedding"], WavCSEModel.from_pretrained(hub).eval().encode(wave), atol=1e-5)


# --- wavcse embed --engine ray -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(hub, corpus, tmp_path_factory):
    """The folder embedded by one process."""
    out = tmp_path_factory.mktemp("alone") / "alone.parquet"
    embed_corpus(corpus, str(hub), out)
    return pd.read_parquet(out)


def as_parquet(corpus, folder):
    """The corpus as two Parquet files with the audio inside, in the same order; row groups of four."""
    folder.mkdir()
    names = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*.wav"))
    for number, part in enumerate((names[:14], names[14:])):
        rows = [{"audio": {"bytes": (corpus / name).read_bytes(), "path": name}} for name in part]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet", row_group_size=4)
    return folder


def as_tar(corpus, folder):
    """The same as two tar shards."""
    folder.mkdir()
    names = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*.wav"))
    for number, part in enumerate((names[:14], names[14:])):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for name in part:
                shard.add(corpus / name, name)
    return folder


def same(out, alone):
    """Every row of the single process once, in its order."""
    found = pd.read_parquet(out)
    assert list(found["path"]) == list(alone["path"])
    np.testing.assert_allclose(found["seconds"], alone["seconds"])
    expected = np.stack(list(alone["embedding"]))
    np.testing.assert_allclose(np.stack(list(found["embedding"])), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return found


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of four clips."""
    for function in (pieces_of_clips, pieces_of_url):
        monkeypatch.setattr(function, "__defaults__", (4,))


def test_a_folder_is_embedded_as_by_one_process(ray, hub, corpus, alone, small_pieces, tmp_path, capsys):
    command = [str(corpus), "--model", str(hub), "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert main(command) == 0
    assert "24 rows of 24 clips; 6 parts embedded, 0 were there" in capsys.readouterr().out
    assert list(same(tmp_path / "out", alone)["id"]) == list(alone["id"])
    assert main(command) == 0
    assert "24 rows of 24 clips; 0 parts embedded, 6 were there" in capsys.readouterr().out
    assert main([*command, "--normalize"]) == 2
    assert "holds embeddings made with other settings (normalize False there, True now)" in capsys.readouterr().err


@pytest.mark.parametrize("make", [as_parquet, as_tar])
def test_shards_are_embedded_as_their_files(ray, hub, corpus, alone, small_pieces, tmp_path, make):
    shards = make(corpus, tmp_path / "shards")
    report = embed_on_ray(str(shards), str(hub), str(tmp_path / "out"), workers=2)
    assert (report.rows, report.clips, report.skipped) == (24, 24, [])
    assert same(tmp_path / "out", alone)["id"].is_unique


def test_a_url_and_windows(ray, hub, corpus, small_pieces, tmp_path):
    settings = EmbedSettings(window_s=0.2)
    embed_corpus(corpus, str(hub), tmp_path / "alone.parquet", settings)
    embed_on_ray(f"file://{corpus}", str(hub), f"file://{tmp_path}/out", settings)
    alone = pd.read_parquet(tmp_path / "alone.parquet")
    found = same(tmp_path / "out", alone)
    np.testing.assert_allclose(found[["start_s", "end_s"]], alone[["start_s", "end_s"]])


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The URL of an empty bucket of an S3 server on this machine, which programs that are started find by the environment."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = importlib.import_module("s3fs").S3FileSystem(endpoint_url=f"http://{host}:{port}", key="none", secret="none")
    files.mkdir("speech")
    yield files
    server.stop()


def test_shards_and_parts_in_a_bucket(bucket, hub, corpus, alone, tmp_path):
    bucket.put(str(as_tar(corpus, tmp_path / "shards")), "speech/shards", recursive=True)
    command = [sys.executable, "-m", "wavcse.embed", "s3://speech/shards", "--model", str(hub), "--engine", "ray"]
    for expected in ("24 rows of 24 clips; 2 parts embedded, 0 were there", "0 parts embedded, 2 were there"):
        done = subprocess.run([*command, "--out", "s3://speech/embedded"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert expected in done.stdout
    bucket.get("speech/embedded", str(tmp_path / "embedded"), recursive=True)
    same(tmp_path / "embedded", alone)


def test_a_killed_worker_and_a_killed_run_lose_nothing(ray, hub, corpus, alone, small_pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_corpus, "EmbedPieces", EmbedPiecesAndDie)
    out = tmp_path / "out"
    report = embed_on_ray(str(as_parquet(corpus, tmp_path / "shards")), str(hub), str(out), workers=2)
    assert Path(f"{out}.killed").exists()
    assert report.added == 7
    same(out, alone)
    lost = sorted(out.glob("part-*.parquet"))[3]  # what a run that was killed had not come to
    lost.unlink()
    report = embed_on_ray(str(tmp_path / "shards"), str(hub), str(out), workers=2)
    assert (report.added, report.present) == (1, 6)
    same(out, alone)


class EmbedPiecesAndDie(EmbedPieces):
    """The first worker that has embedded its second piece is killed before it writes the part."""

    pieces = 0

    def _part(self, piece):
        part = super()._part(piece)
        self.pieces += 1
        if self.pieces == 2:
            try:
                Path(f"{self.parts.out}.killed").touch(exist_ok=False)
            except FileExistsError:
                return part
            os.kill(os.getpid(), signal.SIGKILL)
        return part


def test_bad_clips_and_damaged_shards_are_listed(ray, hub, corpus, alone, tmp_path):
    shards = as_tar(corpus, tmp_path / "shards")
    cut = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(cut[: len(cut) // 2])
    with tarfile.open(shards / "0.tar", "a") as shard:
        shard.addfile(tarfile.TarInfo("empty.wav"), io.BytesIO())
    report = embed_on_ray(str(shards), str(hub), str(tmp_path / "out"))
    assert 14 < report.clips < 24
    assert [name for name, _ in report.skipped] == ["0.tar/empty.wav", "1.tar"]
    assert "is damaged" in report.skipped[1].reason
    listed = (tmp_path / "out/_skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == ["clip", "0.tar/empty.wav", "1.tar"]
    same(tmp_path / "out", alone[: report.clips])
