"""Damaged files and full disks: named, set aside and made again; nothing that is already written is lost."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from wavcse.data import embedding_table
from wavcse.data import features as features_module
from wavcse.data.cache import build_cache
from wavcse.data.cache import main as cache_main
from wavcse.data.embedding_table import EmbeddedClip, EmbeddingParts
from wavcse.data.features import FeatureCache, open_cache
from wavcse.data.files import DamagedFile, locked, read_json, write_json
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.embed import embed_corpus
from wavcse.eval.embeddings import EmbeddingStore
from wavcse.eval.results import finished_results, read_result, write_result
from wavcse.search.store import FitStore
from wavcse.steps.audio_store import build_store
from wavcse.tests.helpers.evaluation_folder import add_result, planted
from wavcse.training import checkpoint as checkpoint_module
from wavcse.training.arguments import RunArguments
from wavcse.training.checkpoint import Checkpoint, finished_state, read_tensors
from wavcse.training.run import RunFolder

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def flip_a_bit(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


DAMAGES = {
    "a number": flip_a_bit,
    "the header's length": lambda path: flip_a_bit(path, 5),
    "the header": lambda path: flip_a_bit(path, 12),
    "cut short": cut_short,
    "empty": empty,
}


@pytest.fixture(scope="module")
def built(toy_corpus, upstream_folder, tmp_path_factory):
    """A cache of several shards."""
    out = tmp_path_factory.mktemp("caches")
    build_cache([toy_corpus], str(upstream_folder), out, batch_seconds=4.0, shard_mb=0.01)
    return out


@pytest.fixture
def cache_root(built, tmp_path):
    return shutil.copytree(built, tmp_path / "caches")


def values_of(root):
    cache = open_cache(root)
    digests = sorted(cache.location)
    return cache.read(digests, range(4))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused_by_readers_and_made_again_by_the_builder(
    damage, cache_root, built, toy_corpus, upstream_folder, capsys
):
    expected = values_of(built)
    shard = sorted(cache_root.glob("*/*.safetensors"))[1]
    DAMAGES[damage](shard)
    with pytest.raises(DamagedFile, match=f"{shard}: is damaged.*Run the command that made the cache again"):
        values_of(cache_root)
    command = ["--manifest", str(toy_corpus), "--upstream", str(upstream_folder), "--out", str(cache_root)]
    assert cache_main([*command, "--batch_seconds", "4"]) == 0
    printed = capsys.readouterr()
    assert f"{shard}: is damaged" in printed.err
    assert f"set aside as {shard.name}.damaged" in printed.err
    assert "96 clips" in printed.out
    np.testing.assert_allclose(values_of(cache_root), expected, atol=1e-5)
    assert not shard.exists()


def test_clips_of_sound_shards_are_read_beside_a_damaged_one(cache_root):
    shards = sorted(cache_root.glob("*/*.safetensors"))
    flip_a_bit(shards[1])
    cache = open_cache(cache_root)
    of_shard = {number: [d for d, (shard, _) in cache.location.items() if shard == number] for number in (0, 1)}
    assert np.isfinite(cache.read(of_shard[0], [0])).all()
    with pytest.raises(DamagedFile, match=shards[1].name):
        cache.read(of_shard[1], [0])


def test_shards_of_an_earlier_version_are_read_as_they_are(cache_root, built):
    expected = values_of(built)
    for shard in cache_root.glob("*/*.safetensors"):
        shard.rename(shard.with_stem(shard.stem.rpartition("-")[0]))
    np.testing.assert_array_equal(values_of(cache_root), expected)


def test_a_damaged_description_of_a_cache_is_written_again_by_the_builder(
    cache_root, built, toy_corpus, upstream_folder, capsys
):
    (about,) = cache_root.glob("*/cache.json")
    about.write_text(about.read_text().replace("16000", "16001"))
    with pytest.raises(DamagedFile, match="cache.json: is damaged"):
        open_cache(cache_root)
    _, report = build_cache([toy_corpus], str(upstream_folder), cache_root)
    assert (report.added, report.present) == (0, 96)
    assert "set aside as cache.json.damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(values_of(cache_root), values_of(built))


def test_a_second_builder_of_the_same_cache_is_refused(cache_root, toy_corpus, upstream_folder, monkeypatch):
    (folder,) = {path.parent for path in cache_root.glob("*/cache.json")}
    monkeypatch.setattr("wavcse.data.cache._extract", lambda *args, **kwargs: pytest.fail("it went on"))
    monkeypatch.setattr("wavcse.data.files._held", {})
    with locked(folder), monkeypatch.context() as other:
        other.setattr("wavcse.data.files._held", {})  # as in another process
        with pytest.raises(ValueError, match=f"{folder}: another run is at work there"):
            build_cache([toy_corpus], str(upstream_folder), cache_root)


def test_a_full_disk_stops_the_cache_with_one_line_and_the_same_command_continues(
    built, toy_corpus, upstream_folder, tmp_path, monkeypatch, capsys
):
    save, shards = features_module.save_file, []

    def save_two(*args, **kwargs):
        if len(shards) == 2:
            raise FULL
        shards.append(args)
        save(*args, **kwargs)

    command = ["--manifest", str(toy_corpus), "--upstream", str(upstream_folder), "--out", str(tmp_path / "c")]
    command += ["--batch_seconds", "4", "--shard_mb", "0.01"]
    monkeypatch.setattr(features_module, "save_file", save_two)
    assert cache_main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wavcse cache: ")]
    assert line.endswith(".safetensors: No space left on device. Make room; the same command continues where it was.")
    assert str(tmp_path / "c") in line
    assert not list(tmp_path.rglob("*.partial"))
    assert 0 < len(open_cache(tmp_path / "c")) < 96
    monkeypatch.undo()
    assert cache_main(command) == 0
    np.testing.assert_array_equal(values_of(tmp_path / "c"), values_of(built))


@pytest.mark.parametrize(
    "content", [b"{", b'{"/a.wav": {"stamp": [1, 2], "digest": "0", "duration_s": 1}, "crc32": "00000000"}']
)
def test_damaged_facts_of_files_are_gathered_again(content, cache_root, toy_corpus, capsys):
    expected = json.loads((cache_root / "digests.json").read_text())
    (cache_root / "digests.json").write_bytes(content)
    facts = Inspector(cache_root).inspect(Manifest(toy_corpus).clips)
    assert "digests.json: is damaged" in capsys.readouterr().err
    assert all(fact.digest for fact in facts)
    assert json.loads((cache_root / "digests.json").read_text()) == expected


def parts_of(out, repair=True):
    return EmbeddingParts(out, {"embedding_size": 4, "weights_sha256": "abc"}, repair)


def write_parts(out):
    parts = parts_of(out)
    for name in "ab":
        embeddings = np.full((1, 4), ord(name), np.float32)
        parts.write([EmbeddedClip(name, f"digest of {name}", 1.0, 0.1, np.zeros(1), np.ones(1), embeddings)])
    return parts


@pytest.mark.parametrize("damage", ["a number", "cut short", "empty"])
def test_a_damaged_part_is_set_aside_and_its_clips_count_as_missing(damage, tmp_path, capsys):
    out = tmp_path / "o.parquet"
    parts = write_parts(out)
    (of_a,) = (path for path in parts.folder.glob("part-*.parquet") if b"digest of a" in path.read_bytes())
    (parts.folder / "left.partial").touch()
    (tmp_path / "o.parquet.0123.partial").touch()
    DAMAGES[damage](of_a)
    again = parts_of(out)
    assert again.finished() == {("b", "digest of b")}
    assert f"{of_a}: is damaged" in capsys.readouterr().err
    assert of_a.with_name(f"{of_a.name}.damaged").exists()
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(RuntimeError, match="1 clips are in no part, such as a"):
        again.merge(pd.DataFrame({"id": ["a"], "path": ["a"], "digest": ["digest of a"]}), {}, with_times=False)


def test_parts_whose_settings_are_damaged_are_set_aside_together(tmp_path, capsys):
    parts = write_parts(tmp_path / "o.parquet")
    key = parts.folder / "key.json"
    key.write_text(key.read_text().replace("abc", "abd"))
    assert parts_of(tmp_path / "o.parquet").finished() == set()
    assert "key.json: is damaged" in capsys.readouterr().err
    assert len(list((tmp_path / "o.parquet.parts.damaged").glob("part-*.parquet"))) == 2


def test_a_full_disk_at_the_end_of_embedding_keeps_the_parts(tmp_path, monkeypatch):
    out = tmp_path / "o.parquet"
    parts = write_parts(out)
    wanted = pd.DataFrame({"id": ["b", "a"], "path": ["b", "a"], "digest": ["digest of b", "digest of a"]})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "Error writing bytes to file.")  # as of pyarrow: no name, words of its own

    monkeypatch.setattr(embedding_table, "write_table", full)
    with pytest.raises(OSError) as error:
        parts.merge(wanted, {}, with_times=False)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["o.parquet.parts"]
    monkeypatch.undo()
    parts_of(out).merge(wanted, {}, with_times=False)
    assert list(pd.read_parquet(out)["id"]) == ["b", "a"]


def test_a_second_run_that_makes_the_same_table_is_refused(toy_corpus, tiny_model, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "hub")
    monkeypatch.setattr("wavcse.data.files._held", {})
    with locked(tmp_path / "o.parquet", is_file=True), monkeypatch.context() as other:
        other.setattr("wavcse.data.files._held", {})
        with pytest.raises(ValueError, match="o.parquet: another run is at work there"):
            embed_corpus(toy_corpus, str(tmp_path / "hub"), tmp_path / "o.parquet")


class Tiny:
    """A network in training, with its checkpoint."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer)
        self.checkpoint = Checkpoint(folder, self.model, self.optimizer, self.scheduler)

    def train(self, epoch):
        self.model(torch.ones(3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.checkpoint.save({"epoch": epoch}, {"weight": self.model.weight.detach().clone()})
        return self.model.weight.detach().clone()


@pytest.fixture
def trained(tmp_path):
    """A folder with checkpoints of epochs 2 and 1, and the weights of each epoch."""
    tiny = Tiny(tmp_path / "last")
    return tmp_path / "last", {epoch: tiny.train(epoch) for epoch in (1, 2)}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(name, damage, trained, capsys):
    folder, weights = trained
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        DAMAGES[damage](path)
    tiny = Tiny(folder)
    state, best = tiny.checkpoint.load(torch.device("cpu"))
    assert state == {"epoch": 1}
    assert torch.equal(tiny.model.weight, weights[1])
    assert torch.equal(best["weight"], weights[1])
    assert capsys.readouterr().err.startswith(f"{path}: is ")
    assert torch.equal(tiny.train(2), weights[2])  # as if nothing had happened
    assert torch.equal(read_tensors(folder)["model.weight"], weights[2])
    assert folder.with_name("last.damaged").exists()
    assert torch.equal(read_tensors(folder.with_name("last.old"))["model.weight"], weights[1])


def test_without_a_sound_checkpoint_the_file_and_the_way_out_are_named(trained):
    folder, _ = trained
    for place in (folder, folder.with_name("last.old")):
        cut_short(place / "tensors.safetensors")
    message = f"{folder}/tensors.safetensors: is damaged.*start again with --overwrite"
    with pytest.raises(DamagedFile, match=message):
        Tiny(folder).checkpoint.load(torch.device("cpu"))


def test_a_kill_between_the_two_renames_leaves_the_checkpoint_before(trained):
    folder, weights = trained
    shutil.rmtree(folder)
    tiny = Tiny(folder)
    assert tiny.checkpoint.load(torch.device("cpu"))[0] == {"epoch": 1}
    assert torch.equal(tiny.train(2), weights[2])
    assert finished_state(folder) == {"epoch": 2}


def test_checkpoints_of_an_earlier_version_have_no_checksum_and_are_read(trained):
    folder, weights = trained
    plain = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({name: plain[name] for name in ("state", "scheduler", "groups")}))
    tiny = Tiny(folder)
    assert tiny.checkpoint.load(torch.device("cpu"))[0] == {"epoch": 2}
    assert torch.equal(tiny.model.weight, weights[2])


def test_a_full_disk_leaves_the_last_checkpoint_and_names_the_file(trained, monkeypatch):
    folder, weights = trained
    tiny = Tiny(folder)
    tiny.checkpoint.load(torch.device("cpu"))

    def full(*args):
        raise FULL

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(OSError) as error:
        tiny.train(3)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder / "tensors.safetensors"))
    assert [path.name for path in folder.parent.iterdir()] == ["last"]
    assert torch.equal(load_file(folder / "tensors.safetensors")["model.weight"], weights[2])


def test_fewer_epochs_than_are_done_are_refused_and_change_nothing(tmp_path):
    folder, args = RunFolder(tmp_path), RunArguments(num_epochs=3, output_dir=str(tmp_path), save_hub=False)
    folder.prepare(args, "data")
    Tiny(folder.last).train(3)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="holds 3 epochs of this run, and num_epochs is 2. Give at least 3"):
        folder.prepare(RunArguments(num_epochs=2, output_dir=str(tmp_path), save_hub=False), "data")
    assert (tmp_path / "config.yaml").read_bytes() == before
    folder.prepare(args, "data")
    folder.prepare(RunArguments(num_epochs=5, output_dir=str(tmp_path), save_hub=False), "data")


def test_a_damaged_run_folder_is_refused_with_the_files_name(tmp_path):
    folder, args = RunFolder(tmp_path), RunArguments(output_dir=str(tmp_path), save_hub=False)
    folder.prepare(args, "data")
    sound = folder.data.read_text()
    folder.data.write_text(sound.replace("data", "dbta", 2))
    with pytest.raises(DamagedFile, match="data.json: is damaged"):
        folder.prepare(args, "data")
    folder.data.write_text(sound)
    (tmp_path / "config.yaml").write_bytes(b"seed: [1")
    with pytest.raises(ValueError, match="config.yaml: cannot be read as YAML"):
        folder.prepare(args, "data")


def test_a_log_with_a_damaged_line_is_read_around_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(b'{"epoch": 1}\n\xff{"epo\n{"epocj": 2}\n3\n{"epoch": 3}\n')
    assert folder.keep_log_until(3) == [{"epoch": 1}, {"epoch": 3}]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, empty])
def test_a_damaged_fit_is_set_aside_and_done_again(damage, tmp_path, capsys):
    store = FitStore(tmp_path)
    result = {"validation": {"mean_accuracy": 0.1 + 0.2}, "layer_weights": [0.5, 0.25], "seconds": 1.5}
    store.put("k", result)
    assert store.get("k") == result
    path = tmp_path / "k.json"
    path.write_text(path.read_text().replace("0.25", "0.35")) if damage is flip_a_bit else damage(path)
    assert store.get("k") is None
    assert "k.json: is damaged" in capsys.readouterr().err
    store.put("k", result)
    assert store.get("k") == result


class Known:
    """An encoder as far as the store is concerned."""

    name, sampling_rate, embedding_size = "known", 16_000, 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_embeddings_of_an_evaluation_are_set_aside_and_their_clips_are_missing(damage, tmp_path, capsys):
    store = EmbeddingStore(tmp_path, Known())
    for place, digest in enumerate("ab"):
        store.add([digest], np.full((1, 2), ord(digest), np.float32), place)
        store.flush()
    path = next(path for path in store.folder.iterdir() if b'[\\"a\\"]' in path.read_bytes())
    (store.folder / "left.partial").touch()
    DAMAGES[damage](path)
    again = EmbeddingStore(tmp_path, Known())
    assert ("a" in again, "b" in again) == (False, True)
    assert f"{path}: is damaged" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))
    out = np.zeros((1, 2), np.float32)
    again.read(["b"], out, [0])
    assert out.tolist() == [[98, 98]]


def test_a_damaged_record_of_an_evaluation_is_evaluated_again_and_never_shown(tmp_path, capsys):
    add_result(tmp_path, "gender", "gender", "e", planted(np.random.default_rng(0), "gender", 0.1), "x")
    path = tmp_path / "results" / "gender__e.json"
    result = replace(read_result(path), key="k", note="0.9312")
    write_result(tmp_path, result)
    assert finished_results(tmp_path, ["gender"], "e", "k") == [read_result(path)] == [result]
    assert finished_results(tmp_path, ["gender"], "e", "another key") == []
    path.write_text(path.read_text().replace("0.9312", "0.9712"))
    with pytest.raises(DamagedFile, match="gender__e.json: is damaged"):
        read_result(path)
    assert finished_results(tmp_path, ["gender"], "e", "k") == []
    assert "set aside as gender__e.json.damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audio.int16", "index.json"])
def test_decoded_audio_that_is_damaged_is_decoded_again(name, toy_corpus, tmp_path, capsys):
    paths = [clip.path for clip in Manifest(toy_corpus).clips[:3]]
    store = build_store(tmp_path, paths)
    expected = store.read(paths[0], 0, 100)
    (folder,) = tmp_path.iterdir()
    flip_a_bit(folder / name, 50)
    np.testing.assert_array_equal(build_store(tmp_path, paths).read(paths[0], 0, 100), expected)
    assert f"{folder / name}: is damaged" in capsys.readouterr().err
    assert (tmp_path / f"{folder.name}.damaged").exists()


def test_a_cache_that_is_opened_to_be_added_to_is_cleared_of_what_a_kill_left(cache_root):
    cache = open_cache(cache_root)
    (cache.folder / "half.safetensors.0123.partial").touch()
    (cache.folder / ".tmpIDh3aT").touch()
    again = FeatureCache.create(cache_root, cache.key)
    assert again.location == cache.location
    assert not list(cache.folder.glob("*.partial"))
    assert not (cache.folder / ".tmpIDh3aT").exists()


def test_a_name_that_is_no_utf_8_is_written_as_json(tmp_path):
    record = {"caf\udce9.wav": ["é", 1]}
    write_json(tmp_path / "index.json", record)
    assert read_json(tmp_path / "index.json") == record
    assert "é" in (tmp_path / "index.json").read_text(encoding="utf-8")
