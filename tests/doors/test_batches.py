"""`EmbedBatch`: the same column of embeddings, whatever the library, the type of the batch and that of its cells."""

import io
import os
import pickle
import shutil
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, List, Value, load_dataset
from fsspec.implementations.local import LocalFileSystem

from wavcse import WavCSEModel
from wavcse.data.embedding_table import write_table
from wavcse.doors import ray_corpus
from wavcse.doors.batches import EmbedBatch
from wavcse.doors.ray_corpus import Parts
from wavcse.tests.helpers.door_pages import run_first_block

RATE = 16_000
LENGTHS = (9_000, 5_000, 12_000, 5_000, 7_000)


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(waves, tmp_path_factory):
    """Five wav files."""
    folder = tmp_path_factory.mktemp("clips")
    for number, wave in enumerate(waves(*LENGTHS)):
        soundfile.write(folder / f"{number}.wav", wave, RATE, subtype="FLOAT")
    return [str(folder / f"{number}.wav") for number in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def expected(hub, clips):
    """What `encode` says, float32 `[5, E]`."""
    return WavCSEModel.from_pretrained(hub).eval().encode(clips)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own for `datasets`, and no torchcodec even where it is installed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "torchcodec", None)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def close(found, expected):
    np.testing.assert_allclose(np.stack(list(found)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def parquet_with_bytes(folder, clips):
    """A Parquet file as the Hub has them: an `Audio` column with the bytes inside, and labels."""
    rows = {"audio": [{"bytes": content(path), "path": f"{n}.wav"} for n, path in enumerate(clips)], "word": list("abcde")}
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "word": Value("string")})
    table = Dataset.from_dict(rows, features).cast_column("audio", Audio(sampling_rate=RATE))
    table.to_parquet(folder / "train.parquet")
    return str(folder / "train.parquet")


def test_datasets_map_on_paths(hub, clips, expected, cache):
    rows = Dataset.from_dict({"audio": clips, "word": list("abcde")}).cast_column("audio", Audio(decode=False))
    result = rows.map(EmbedBatch(hub), batched=True, batch_size=2)
    assert result["word"] == list("abcde")
    assert result.features["embedding"] == List(Value("float32"))
    close(result["embedding"], expected)


def test_datasets_map_on_parquet_with_bytes_loaded_and_streamed(hub, clips, expected, cache, tmp_path):
    path = parquet_with_bytes(tmp_path, clips)
    loaded = load_dataset("parquet", data_files=path, split="train").cast_column("audio", Audio(decode=False))
    close(loaded.map(EmbedBatch(hub), batched=True, remove_columns="audio")["embedding"], expected)
    streamed = load_dataset("parquet", data_files=path, split="train", streaming=True)
    rows = list(streamed.cast_column("audio", Audio(decode=False)).map(EmbedBatch(hub), batched=True, batch_size=3))
    assert [row["word"] for row in rows] == list("abcde")
    close([row["embedding"] for row in rows], expected)


def test_the_page_on_datasets(hub, clips, expected, cache, tmp_path):
    paths = {"clips.parquet": parquet_with_bytes(tmp_path, clips), "model": hub}
    close(run_first_block("datasets.md", paths)["rows"]["embedding"], expected)


def test_datasets_map_in_arrow_and_on_decoded_cells(hub, clips, expected, cache, tmp_path):
    path = parquet_with_bytes(tmp_path, clips)
    rows = load_dataset("parquet", data_files=path, split="train").cast_column("audio", Audio(decode=False))
    close(rows.with_format("arrow").map(EmbedBatch(hub), batched=True).with_format(None)["embedding"], expected)

    def decoder(path):
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        return SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=samples, sample_rate=RATE))

    close(EmbedBatch(hub)({"audio": [decoder(path) for path in clips]})["embedding"], expected)


def test_every_kind_of_cell_and_batch(hub, clips, expected):
    waves = [soundfile.read(path, dtype="float32")[0] for path in clips]
    memory = fsspec.filesystem("memory")
    for number, path in enumerate(clips):
        memory.pipe_file(f"/embed_batch/{number}.wav", content(path))
    remote = [f"memory://embed_batch/{number}.wav" for number in range(len(clips))]
    embed = EmbedBatch(hub, batch_seconds=1.0)
    for cells in (
        clips,
        remote,
        [content(path) for path in clips],
        waves,
        [{"array": wave, "sampling_rate": RATE} for wave in waves],
        [{"bytes": None, "path": path} for path in remote],
        [SimpleNamespace(asDict=lambda path=path: {"bytes": content(path), "path": "x.wav"}) for path in clips],  # Spark's Row
    ):
        close(embed({"audio": cells})["embedding"], expected)
    for cells in (clips, [content(path) for path in clips], [{"bytes": content(path), "path": "x"} for path in clips], waves):
        table = pa.table({"audio": cells, "word": list("abcde")})
        found = embed(table)
        assert found.column_names == ["word", "embedding"]
        assert found["embedding"].type == pa.list_(pa.float32(), expected.shape[1])
        close(found["embedding"].to_pylist(), expected)
        frames = list(embed(iter([table[:2].to_pandas(), table[2:].to_pandas()])))  # the contract of mapInPandas
        assert [list(frame["word"]) for frame in frames] == [list("ab"), list("cde")]
        close(pd.concat(frames)["embedding"], expected)


def test_arrays_at_another_rate(hub, waves):
    at_8k = waves(8_000)[0]
    right = EmbedBatch(hub)({"audio": [{"array": at_8k, "sampling_rate": 8_000}]})["embedding"]
    np.testing.assert_array_equal(EmbedBatch(hub, sampling_rate=8_000)({"audio": [at_8k]})["embedding"], right)
    assert np.abs(EmbedBatch(hub)({"audio": [at_8k]})["embedding"] - right).max() > 1e-3


def test_settings_are_those_of_wavcse_embed(hub, clips, expected):
    embed = EmbedBatch(hub, into="vector", normalize=True, truncate_dim=8)
    cut = expected[:, :8]
    close(embed({"audio": clips})["vector"], cut / np.linalg.norm(cut, axis=1, keepdims=True))
    with pytest.raises(ValueError, match="truncate_dim is 0"):
        EmbedBatch(hub, truncate_dim=0)


def test_windows_are_rows_of_their_own(hub, clips):
    table = pa.table({"audio": clips, "word": list("abcde")})
    found = EmbedBatch(hub, window_s=0.25)(table)
    assert found["word"].to_pylist() == [word for word, n in zip("abcde", (3, 2, 3, 2, 2)) for _ in range(n)]
    assert found["start_s"].to_pylist()[:3] == [0.0, 0.25, 0.3125]  # the last window ends where the clip ends
    samples = soundfile.read(clips[0], dtype="float32")[0][4_000:8_000]
    alone = EmbedBatch(hub)({"audio": [samples]})["embedding"]
    close([found["embedding"][1].as_py()], alone)


def test_a_bad_clip_stops_or_gets_a_null_and_its_reason(hub, clips, expected):
    cells = [clips[0], "/nowhere.wav", clips[1]]
    with pytest.raises(ValueError, match=r"^/nowhere.wav: "):
        EmbedBatch(hub)({"audio": cells})
    embed = EmbedBatch(hub, bad_clips="null")
    found = embed({"audio": cells})
    assert [vector is None for vector in found["embedding"]] == [False, True, False]
    close([found["embedding"][0], found["embedding"][2]], expected[:2])
    assert found["error"][::2] == [None, None]
    assert found["error"][1].startswith("/nowhere.wav: ")
    only_bad = embed(pa.table({"audio": ["/nowhere.wav"]}))
    assert only_bad.schema.field("embedding").type == pa.list_(pa.float32())
    assert "row 0: has 10 samples" in embed({"audio": [np.ones(10, np.float32)]})["error"][0]


def test_wrong_arguments_say_what_is_right(hub):
    with pytest.raises(ValueError, match=r"no column 'audio'; its columns are \['speech'\]"):
        EmbedBatch(hub)({"speech": []})
    with pytest.raises(ValueError, match="bad_clips is 'skip'; allowed: raise, null"):
        EmbedBatch(hub, bad_clips="skip")
    with pytest.raises(ValueError, match="cannot be loaded"):
        EmbedBatch("/no/model")


def test_it_pickles_without_the_model_and_refuses_other_weights(hub, clips, expected, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(hub, folder)
    embed = EmbedBatch(folder)
    close(embed({"audio": clips})["embedding"], expected)
    pickled = pickle.dumps(embed)
    assert len(pickled) < 2_000
    assert pickled == pickle.dumps(EmbedBatch(folder))  # used or not: by this `datasets` finds its cache files
    close(pickle.loads(pickled)({"audio": clips})["embedding"], expected)
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="is another one on this machine: its weights_sha256 differs"):
        pickle.loads(pickled)({"audio": clips})
    assert pickle.dumps(EmbedBatch(folder)) != pickled


def test_the_settings_of_a_wav_in_memory(hub, waves):
    """Bytes of a stereo file are averaged, as everywhere."""
    left, right = waves(8_000, 8_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], axis=1), RATE, format="WAV", subtype="FLOAT")
    found = EmbedBatch(hub)({"audio": [buffer.getvalue(), (left + right) / 2]})["embedding"]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_clips_before_a_damage_are_a_group_unless_there_are_none():
    def shard(*clips):
        yield from clips
        raise tarfile.ReadError("cut short")

    clip = SimpleNamespace(source=b"audio")
    for clips in ([clip, clip], []):
        groups = []
        with pytest.raises(tarfile.ReadError):
            groups.extend(ray_corpus._at_once(shard(*clips)))
        assert groups == ([clips] if clips else [])


def test_shards_without_audio_are_refused(hub, tmp_path, monkeypatch):
    def in_this_process(todo, pieces, embed, out, *_):
        ray_corpus.EmbedPieces(embed, out)({"number": todo, "piece": [pieces[number] for number in todo]})

    monkeypatch.setattr(ray_corpus, "_run", in_this_process)
    (tmp_path / "note.txt").write_text("no audio")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(tmp_path / "note.txt", "note.txt")
    with pytest.raises(ValueError, match=r"shard\.tar: its shards hold no audio files"):
        ray_corpus.embed_on_ray(str(tmp_path / "shard.tar"), str(hub), str(tmp_path / "out"), device="cpu")


class KeepsListings(LocalFileSystem):
    """Finds only files that it saw when it last listed their folder, as the file system of S3 does."""

    cachable = False
    seen: frozenset = frozenset()

    def ls(self, path, detail=False, **options):
        self.seen = frozenset(os.listdir(path))
        return super().ls(path, detail=detail, **options)

    def open(self, path, *arguments, **options):
        if not self.seen:
            self.ls(Path(path).parent)
        if Path(path).name not in self.seen:
            raise FileNotFoundError(path)
        return super().open(path, *arguments, **options)

    def invalidate_cache(self, path=None):
        self.seen = frozenset()


def test_parts_that_workers_wrote_are_found_where_listings_are_kept(tmp_path, monkeypatch):
    parts = Parts(str(tmp_path))
    monkeypatch.setattr(parts, "files", KeepsListings())
    (tmp_path / "_wavcse.json").write_text("{}")
    assert parts.present() == {"_wavcse.json"}
    rows = pd.DataFrame({"id": ["a", "b"]})
    write_table(tmp_path / "part-000000.parquet", rows, np.zeros((2, 3), np.float32), {"clips": 2})
    assert parts.metadata(["part-000000.parquet"]) == [(2, {"clips": 2})]
