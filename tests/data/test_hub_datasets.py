"""Data sets in the Hub's formats where a manifest goes: the same clips, labels and splits, with audio never decoded."""

import io
import json
import os
import subprocess
import sys

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

from wavcse.data import hub_datasets
from wavcse.data.arguments import check_inputs
from wavcse.data.cache import build_cache
from wavcse.data.composite import TaskSource, load_task_clips
from wavcse.data.hub_datasets import DataSet, manifest_of
from wavcse.data.manifest import Manifest
from wavcse.embed import clips_of
from wavcse.tests.helpers.door_pages import run_first_block
from wavcse.tests.helpers.hub_server import HubServer, Repository, sha256

RATE = 16_000
WORDS = ("yes", "no")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of their own, and no torchcodec even where it is installed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("WAVCSE_DATASETS", str(tmp_path / "copies"))
    monkeypatch.setitem(sys.modules, "torchcodec", None)


def wav(number):
    """Bytes of a clip of its own."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(-9_000, 9_000, 800 + number).astype(np.int16)
    soundfile.write(buffer, noise, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def rows_of(*numbers):
    """Rows of a data set: audio, a class, a speaker, a number, a list, and times in a recording that is not there."""
    return [
        {
            "speech": {"bytes": wav(number), "path": f"{number}.wav"},
            "label": number % 2,
            "speaker": f"s{number % 3}",
            "age": 20.0 + number,
            "tags": ["a", "b"],
            "start": 7.5,
        }
        for number in numbers
    ]


FEATURES = {"label": ClassLabel(names=list(WORDS)), "speaker": Value("string"), "age": Value("float32")}
FEATURES |= {"tags": [Value("string")], "start": Value("float32")}


def data_set(*numbers):
    features = Features({"speech": {"bytes": Value("binary"), "path": Value("string")}, **FEATURES})
    return Dataset.from_list(rows_of(*numbers), features).cast_column("speech", Audio(sampling_rate=RATE))


def parquet_folder(folder):
    """As the Hub has it: `data/train-*.parquet` and `data/test-*.parquet`."""
    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        data_set(*numbers).to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def check(manifest, numbers=(0, 1, 2, 3, 4), splits=("train", "train", "train", "test", "test")):
    """Clips of these numbers, with their labels, and audio to the byte."""
    assert list(manifest.column("label")) == [WORDS[number % 2] for number in numbers]
    assert list(manifest.column("speaker")) == [f"s{number % 3}" for number in numbers]
    assert list(manifest.column("age")) == [str(20 + number) for number in numbers]
    assert list(manifest.split("split")) == list(splits)
    assert not {"tags", "start", "speech"} & set(manifest.table.columns)
    assert [clip.path.read_bytes() for clip in manifest.clips] == [wav(number) for number in numbers]
    assert [clip.fault for clip in manifest.clips] == [""] * len(numbers)


def test_a_folder_of_parquet_files(tmp_path):
    folder = parquet_folder(tmp_path / "speech")
    manifest = Manifest(str(folder))
    check(manifest)
    assert set(manifest.column("corpus")) == {"speech"}
    assert [clip.clip_id for clip in manifest.clips][::3] == ["audio/train/0000/00000000.wav", "audio/test/0000/00000000.wav"]
    before = manifest.path.stat().st_mtime_ns
    assert Manifest(str(folder)).path.stat().st_mtime_ns == before  # made once
    data_set(5).to_parquet(folder / "data/test-00000-of-00001.parquet")
    check(Manifest(str(folder)), (0, 1, 2, 5), ("train", "train", "train", "test"))


def test_one_parquet_file_options_and_slices(tmp_path):
    data_set(*range(6)).to_parquet(tmp_path / "all.parquet")
    path = str(tmp_path / "all.parquet")
    check(Manifest(path), range(6), ("train",) * 6)
    manifest = Manifest(f"{path}?split=train[:3],train[3:4]:validation,train[4:]:test&keyword=label&audio=speech")
    assert list(manifest.column("keyword")) == [WORDS[number % 2] for number in range(6)]
    assert list(manifest.split("split")) == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert "label" not in manifest.table.columns
    assert [clip.path.read_bytes() for clip in Manifest(f"{path}?split=train[1:3]&streaming=true").clips] == [wav(1), wav(2)]


@pytest.mark.parametrize("is_dict", [True, False])
def test_save_to_disk(tmp_path, is_dict):
    splits = DatasetDict({"train": data_set(0, 1, 2), "test": data_set(3, 4)})
    (splits if is_dict else splits["train"]).save_to_disk(tmp_path / "saved")
    numbers = (0, 1, 2, 3, 4) if is_dict else (0, 1, 2)
    check(Manifest(str(tmp_path / "saved")), numbers, ("train",) * 3 + ("test",) * (len(numbers) - 3))


def test_paths_and_arrays_of_a_saved_data_set(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(1))
    samples = np.linspace(-0.5, 0.5, 900, dtype=np.float32)
    paths = Dataset.from_dict({"audio": [str(tmp_path / "a.wav"), None]})
    paths.save_to_disk(tmp_path / "paths")
    first, second = Manifest(str(tmp_path / "paths")).clips
    assert first.real_path == str((tmp_path / "a.wav").resolve())
    assert second.fault == "has no 'file_name'"
    arrays = Dataset.from_list([{"audio": {"array": samples.tolist(), "sampling_rate": RATE}}])
    arrays.save_to_disk(tmp_path / "arrays")
    np.testing.assert_array_equal(Manifest(str(tmp_path / "arrays")).clips[0].load(RATE), samples)


def test_paths_behind_a_url_are_read(tmp_path):
    fsspec.filesystem("memory").pipe_file("/hub_datasets/1.wav", wav(1))
    Dataset.from_dict({"audio": ["memory://hub_datasets/1.wav"]}).save_to_disk(tmp_path / "urls")
    assert Manifest(str(tmp_path / "urls")).clips[0].path.read_bytes() == wav(1)


def write_tree(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_an_audiofolder_with_labels_by_folder(tmp_path):
    names = {f"{split}/{WORDS[n % 2]}/{n}.wav": n for split, ns in (("test", (3, 4)), ("train", (0, 1, 2))) for n in ns}
    write_tree(tmp_path / "folder", {name: wav(number) for name, number in names.items()} | {"README.md": "no audio"})
    manifest = Manifest(str(tmp_path / "folder"))
    assert [clip.clip_id for clip in manifest.clips] == [f"audio/{name}" for name in sorted(names)]
    assert list(manifest.column("label")) == [name.split("/")[1] for name in sorted(names)]
    assert list(manifest.split("split")) == [name.split("/")[0] for name in sorted(names)]
    assert [clip.path.read_bytes() for clip in manifest.clips] == [wav(names[name]) for name in sorted(names)]
    only = Manifest(f"{tmp_path / 'folder'}?split=test:validation")
    assert (len(only), set(only.split("split"))) == (2, {"validation"})
    with pytest.raises(ValueError, match=r"has no split 'train\[:1\]'; its folders are those of \['test', 'train'\]"):
        Manifest(f"{tmp_path / 'folder'}?split=train[:1]")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_audiofolder_with_metadata(tmp_path, kind):
    rows = {"train": [("0.wav", "yes", 20), ("sub/1.wav", "no", 21)], "dev": [("2.wav", "yes", 22)]}
    for split, own in rows.items():
        write_tree(tmp_path / "set" / split, {name: wav(int(name[-5])) for name, _, _ in own} | {"unlisted.wav": wav(9)})
        table = pa.Table.from_pylist([{"file_name": name, "word": word, "age": age} for name, word, age in own])
        if kind == "parquet":
            pq.write_table(table, tmp_path / "set" / split / "metadata.parquet")
        elif kind == "csv":
            table.to_pandas().to_csv(tmp_path / "set" / split / "metadata.csv", index=False)
        else:
            lines = "\n".join(map(json.dumps, table.to_pylist()))
            (tmp_path / "set" / split / "metadata.jsonl").write_text(lines)
    manifest = Manifest(str(tmp_path / "set"))
    assert [clip.clip_id for clip in manifest.clips] == ["audio/dev/2.wav", "audio/train/0.wav", "audio/train/sub/1.wav"]
    assert list(manifest.column("word")) == ["yes", "yes", "no"]
    assert list(manifest.column("age")) == ["22", "20", "21"]
    assert list(manifest.split("split")) == ["validation", "train", "train"]


def test_lines_of_metadata_are_objects_whatever_characters_they_hold(tmp_path):
    write_tree(tmp_path / "set", {"a.wav": wav(0), "sub/b.wav": wav(1)})
    rows = [{"file_name": "../a.wav", "words": "one\u2028two"}, {"file_name": "b.wav", "words": "x"}]
    table = tmp_path / "set/sub/metadata.jsonl"
    table.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    manifest = Manifest(str(tmp_path / "set"))
    assert [clip.clip_id for clip in manifest.clips] == ["audio/a.wav", "audio/sub/b.wav"]
    assert manifest.column("words")[0].split() == ["one", "two"]
    for line, message in (
        ("[1]", "line 2 is no object"),
        ("{", "line 2 is not JSON"),
        ('{"file_name": "../../c.wav"}', r"names '../../c.wav', which is not there"),
    ):
        table.write_text(f"\n{line}\n")
        with pytest.raises(ValueError, match=rf"metadata\.jsonl: {message}"):
            Manifest(str(tmp_path / "set"))


def test_leaks_are_found_as_in_any_manifest(tmp_path):
    folder = tmp_path / "speech"
    (folder / "data").mkdir(parents=True)
    data_set(0, 1, 2).to_parquet(folder / "data/train-00000-of-00001.parquet")
    data_set(4, 5).to_parquet(folder / "data/validation-00000-of-00001.parquet")
    data_set(2, 3).to_parquet(folder / "data/test-00000-of-00001.parquet")  # clip 2 is in two
    with pytest.raises(ValueError, match=r"audio/train/0000/00000002.wav.*are the same audio under two names"):
        load_task_clips("word", TaskSource((str(folder),), "label", ("split",)))
    with pytest.raises(ValueError, match=r"speaker \['s1', 's2'\] occur in both train and validation"):
        load_task_clips("word", TaskSource((str(folder),), "label", ("split",), disjoint_by="speaker"))


def test_every_program_takes_them_and_embed_lists_them(tmp_path):
    folder = parquet_folder(tmp_path / "speech")
    check_inputs([str(folder), f"{folder}?split=train", "hf://datasets/org/name@v1?config=en"], None)
    clips, paths, left_out = clips_of(str(folder))
    assert (len(clips), paths[0], left_out) == (5, "audio/train/0000/00000000.wav", {})
    write_tree(tmp_path / "audio", {"a/1.wav": wav(1)})
    assert clips_of(tmp_path / "audio").paths == ["a/1.wav"]  # a folder of audio is what it was
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder. Give a CSV or Parquet file"):
        check_inputs([str(tmp_path / "empty")], None)


def test_the_cache_of_a_data_set_is_that_of_its_files(tmp_path, upstream_folder):
    folder = parquet_folder(tmp_path / "speech")
    _, report = build_cache([str(folder)], str(upstream_folder), tmp_path / "cached")
    assert (report.added, report.skipped) == (5, [])
    names = [f"{number}.wav" for number in range(5)]
    write_tree(tmp_path, {name: wav(number) for number, name in enumerate(names)})
    (tmp_path / "m.csv").write_text("\n".join(["file_name", *names]))
    assert build_cache([tmp_path / "m.csv"], str(upstream_folder), tmp_path / "cached")[1].added == 0  # known by content


def test_the_page(tmp_path, tiny_model):
    data_set(0, 1, 2).rename_column("speech", "audio").to_parquet(tmp_path / "clips.parquet")
    tiny_model().save_pretrained(tmp_path / "model")
    paths = {"clips.parquet": tmp_path / "clips.parquet", "model": tmp_path / "model"}
    found = run_first_block("../datasets.md", paths)
    np.testing.assert_array_equal(found["waveform"], soundfile.read(io.BytesIO(wav(0)), dtype="float32")[0])
    assert found["embeddings"].shape == (3, 20)


def test_what_a_source_means():
    source = "hf://datasets/org/name@v1?config=en&split=train.360:train,dev&keyword=label&streaming=true"
    splits, columns = (("train.360", "train"), ("dev", "validation")), (("keyword", "label"),)
    assert DataSet.parse(source) == DataSet("org/name", True, "v1", "en", splits, None, columns, True)
    assert DataSet.parse("hf://datasets/squad") == DataSet("squad", True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("split=other", "split 'other' is not train, validation, test; say what it is for, as in other:train"),
        ("split=validation", "has no split 'validation'; its splits are .*train.*test"),
        ("split=train[:10%]", "a slice counts rows"),
        ("audio=label2", "has no column 'label2'; its columns are .*speech.*label"),
        ("configuration=en", "has no column 'en', which is asked for as 'configuration'.*the options config, split"),
        ("streaming=yes", "streaming is 'yes'; allowed: true, false"),
        ("split=train&split=test", "split is given twice; of several splits write split=ONE,OTHER"),
    ],
)
def test_mistakes_name_what_is_right(tmp_path, query, message):
    folder = parquet_folder(tmp_path / "speech")
    with pytest.raises(ValueError, match=message):
        Manifest(f"{folder}?{query}")
    assert not list((tmp_path / "copies").glob("*"))  # nothing half made


def test_splits_without_a_known_name_are_asked_for(tmp_path):
    DatasetDict({"clean": data_set(0), "train": data_set(1)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"say what 'clean' is for, as in \?split=clean:train"):
        Manifest(str(tmp_path / "saved"))
    check(Manifest(f"{tmp_path / 'saved'}?split=clean:test,train"), (0, 1), ("test", "train"))


def test_a_copy_that_was_killed_is_made_again(tmp_path, monkeypatch):
    folder = parquet_folder(tmp_path / "speech")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub_datasets, "_as_csv", stopped)
        with pytest.raises(KeyboardInterrupt):
            manifest_of(folder)
    assert not list((tmp_path / "copies").glob("*/metadata.csv"))
    check(Manifest(folder))


SCRIPT = """
import json, sys
from wavcse.data.manifest import Manifest

sys.modules["torchcodec"] = None
for source in sys.argv[1:]:
    manifest = Manifest(source)
    clips = [clip.path.read_bytes().hex() for clip in manifest.clips]
    print(json.dumps({"table": manifest.table.to_dict("list"), "clips": clips, "path": str(manifest.path)}))
"""


@pytest.mark.slow
def test_data_sets_of_the_loopback_hub(tmp_path):
    """Parquet, streamed and not, and an audiofolder, of a branch; then without the Hub."""
    folder = parquet_folder(tmp_path / "speech")
    in_parquet = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}
    in_folders = {f"{split}/{WORDS[n % 2]}/{n}.wav": wav(n) for n, split in enumerate(("train", "train", "test", "test"))}
    with HubServer() as hub:
        for name, files in (("speech", in_parquet), ("folder", in_folders)):
            hub.repositories[f"datasets/org/{name}"] = repository = Repository(private=False)
            repository.commit("v1", files, "data")
            hub.objects.update({sha256(content): content for content in files.values()})
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

        def tables(*sources, **more):
            command = [sys.executable, "-c", SCRIPT, *sources]
            done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, done.stderr[-3000:]
            return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

        sources = [
            "hf://datasets/org/speech@v1",
            "hf://datasets/org/speech@v1?split=test&streaming=true",
            "hf://datasets/org/folder@v1",
        ]
        whole, streamed, folder = tables(*sources)
        assert whole["clips"] == [wav(number).hex() for number in range(5)]
        assert whole["table"]["split"] == ["train"] * 3 + ["test"] * 2
        assert whole["table"]["label"] == [WORDS[number % 2] for number in range(5)]
        assert streamed["clips"] == [wav(number).hex() for number in (3, 4)]
        labels = sorted(zip(folder["table"]["split"], folder["table"]["label"]))
        assert labels == [("test", "no"), ("test", "yes"), ("train", "no"), ("train", "yes")]
        assert sorted(folder["clips"]) == sorted(wav(number).hex() for number in range(4))
        assert not any(
            request.startswith("GET /datasets") and "resolve/v1" in request for request in hub.requests
        )  # by commit
    assert [one["path"] for one in tables(*sources, HF_HUB_OFFLINE="1")] == [one["path"] for one in (whole, streamed, folder)]
