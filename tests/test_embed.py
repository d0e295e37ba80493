"""`wavcse embed`: the model's own numbers, in order, whatever the batches, processes and interruptions."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from wavcse import WavCSEFeatureExtractor, WavCSEModel
from wavcse.data import corpus_pass
from wavcse.data.corpus_pass import CorpusClip, CorpusPass, batches_by_length, seconds_of, share_of_process
from wavcse.data.embedding_table import EmbeddingParts, read_metadata
from wavcse.data.manifest import Clip, Manifest
from wavcse.embed import Embedder, EmbedSettings, embed_corpus, main
from wavcse.encoding_wavcse import window_bounds
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.tests.helpers.processes import Child, run_in_two_processes

RATE = 16_000


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    """A saved tiny model."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(hub):
    return WavCSEModel.from_pretrained(hub).eval()


@pytest.fixture(scope="module")
def embedded(toy_corpus, hub, tmp_path_factory):
    """The toy corpus, embedded in one undisturbed run: the Parquet file."""
    out = tmp_path_factory.mktemp("embedded") / "toy.parquet"
    report = embed_corpus(toy_corpus, str(hub), out, batch_seconds=2.0)
    assert (report.rows, report.added, report.present, report.skipped) == (96, 96, 0, [])
    return out


def numbers(table):
    return np.stack(table["embedding"].to_numpy())


def expected(model, waveforms):
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    with torch.no_grad():
        return np.stack(
            [
                model(**feature_extractor(waveform, sampling_rate=RATE, return_tensors="pt")).embeddings[0].numpy()
                for waveform in waveforms
            ]
        )


def test_rows_are_the_models_embeddings_in_the_order_of_the_manifest(embedded, toy_corpus, model):
    table, clips = pd.read_parquet(embedded), Manifest(toy_corpus).clips
    assert list(table.columns) == ["id", "path", "seconds", "embedding"]
    assert list(table["id"]) == list(table["path"]) == [clip.clip_id for clip in clips]
    waveforms = [clip.load(RATE) for clip in clips]
    np.testing.assert_allclose(table["seconds"], [len(waveform) / RATE for waveform in waveforms])
    np.testing.assert_allclose(numbers(table), expected(model, waveforms), atol=1e-5)
    assert not embedded.with_name("toy.parquet.parts").exists()


def test_a_fresh_process_reads_a_folder_of_weights_without_code(embedded, toy_corpus, hub, tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(hub / name, tmp_path / name)
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((tmp_path / name).read_text())
        fields.pop("auto_map", None)
        (tmp_path / name).write_text(json.dumps(fields))
    command = [sys.executable, "-m", "wavcse.embed", toy_corpus, "--model", tmp_path, "--out", tmp_path / "out.parquet"]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    table = pd.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_allclose(numbers(table), numbers(pd.read_parquet(embedded)), atol=1e-5)


def test_a_folder_is_all_audio_below_it_in_the_order_of_its_paths(embedded, toy_corpus, hub, tmp_path):
    for i, clip in enumerate(Manifest(toy_corpus).clips):
        (tmp_path / f"corpus/{i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip.path, tmp_path / f"corpus/{i % 3}/{clip.clip_id}")
    (tmp_path / "corpus/notes.txt").write_text("no audio")
    embed_corpus(tmp_path / "corpus", str(hub), tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["id"]) == sorted(f"{i % 3}/{i:03d}.flac" for i in range(96))
    of_manifest = pd.read_parquet(embedded).set_index("id")["embedding"]
    for name, embedding in zip(table["id"], table["embedding"]):
        np.testing.assert_allclose(embedding, of_manifest[name.split("/")[1]], atol=1e-5)


def test_clips_inside_a_file_have_its_path_and_their_own_id(waves, hub, model, tmp_path):
    (wave,) = waves(32_000)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    (tmp_path / "m.csv").write_text("file_name,start,end\na.wav,0.5,1.0\na.wav,,\na.wav,1.0,\n")
    embed_corpus(tmp_path / "m.csv", str(hub), tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["id"]) == ["a.wav#0.5-1.0", "a.wav", "a.wav#1.0-"]
    assert set(table["path"]) == {"a.wav"}
    np.testing.assert_allclose(numbers(table), expected(model, [wave[8000:16_000], wave, wave[16_000:]]), atol=1e-5)


def test_datasets_and_pyarrow_read_it(embedded, hub, tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.load_dataset("parquet", data_files=str(embedded), split="train", cache_dir=str(tmp_path))
    assert dataset.features["embedding"].length == 20
    np.testing.assert_array_equal(dataset.with_format("numpy")["embedding"][:], numbers(pd.read_parquet(embedded)))
    assert [str(kind) for kind in pq.read_schema(embedded).types] == [
        *("string",) * 2,
        "double",
        "fixed_size_list<element: float>[20]",
    ]
    metadata = read_metadata(embedded)
    assert (metadata["precision"], metadata["embedding_size"], metadata["wavcse_version"]) == ("float32", 20, "0.1.0")
    assert metadata["model"].endswith(hub.name)
    assert len(metadata["weights_sha256"]) == 64
    with pytest.raises(ValueError, match="is not a table of embeddings"):
        read_metadata(hub / "config.json")


def test_batches_do_not_change_a_vector(embedded, toy_corpus, hub, tmp_path):
    embed_corpus(toy_corpus, str(hub), tmp_path / "out.parquet", batch_seconds=0.01)
    np.testing.assert_allclose(
        numbers(pd.read_parquet(tmp_path / "out.parquet")), numbers(pd.read_parquet(embedded)), atol=1e-6
    )


EMBED = """
import sys, time
from wavcse import embed
compute = embed.Embedder.compute
embed.Embedder.compute = lambda self, loaded: (time.sleep(0.05), compute(self, loaded))[1]  # to be killed in the middle
embed.PART_INTERVAL_S = 0.0
embed.embed_corpus(sys.argv[1], sys.argv[2], sys.argv[3], batch_seconds=2.0)
"""


def test_killed_three_times_and_resumed_is_the_undisturbed_file(embedded, toy_corpus, hub, tmp_path):
    out = tmp_path / "toy.parquet"
    for kill in range(1, 4):
        child = Child("-c", EMBED, toy_corpus, hub, out)
        child.kill_when(lambda kill=kill: len(list(tmp_path.glob("*.parts/part-*.parquet"))) >= 3 * kill)
        assert not out.exists()
    report = embed_corpus(toy_corpus, str(hub), out, batch_seconds=2.0)
    assert 0 < report.added < 90
    assert report.added + report.present == 96
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(embedded))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.parquet", "toy.skipped.csv"]


def test_two_workers_write_what_one_writes(toy_corpus, hub, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    shutil.copytree(toy_corpus.parent, corpus)
    (corpus / "010.flac").write_text("no audio")
    soundfile.write(corpus / "020.flac", np.zeros(200), RATE)
    for workers in "12":
        options = ["--model", str(hub), "--batch_seconds", "2", "--workers", workers, "--device", "cpu"]
        assert main([str(corpus / "metadata.csv"), *options, "--out", str(tmp_path / f"{workers}.parquet")]) == 3
        assert "94 clips embedded" in capsys.readouterr().out
    one, two = (pd.read_parquet(tmp_path / f"{workers}.parquet") for workers in "12")
    assert list(one["id"]) == list(two["id"]) == [f"{i:03d}.flac" for i in range(96) if i not in (10, 20)]
    np.testing.assert_array_equal(numbers(one), numbers(two))
    skipped = (tmp_path / "1.skipped.csv").read_text()
    assert skipped == (tmp_path / "2.skipped.csv").read_text()
    assert [line.split(",")[0] for line in skipped.splitlines()] == ["clip", "010.flac", "020.flac"]


def test_a_worker_that_is_killed_is_one_line_and_the_same_command_continues(
    embedded, toy_corpus, hub, tmp_path, monkeypatch, capsys
):
    def compute_or_die(self, loaded, compute=Embedder.compute):
        if min(clip.num_samples for clip in loaded) == 0.2 * RATE and not (tmp_path / "died").exists():  # of the last batches
            (tmp_path / "died").touch()
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, loaded)

    monkeypatch.setattr(Embedder, "compute", compute_or_die)
    out = tmp_path / "out.parquet"
    command = [str(toy_corpus), "--model", str(hub), "--out", str(out), "--batch_seconds", "2", "--workers", "2"]
    monkeypatch.setattr(Embedder, "_check", lambda self: None)
    assert main([*command, "--device", "cpu"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wavcse embed: ")]
    assert "died (SIGKILL), perhaps for lack of memory, in one of the batches that begin with " in line
    assert not out.exists()
    assert main([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert 40 < int(said.partition(" were there already")[0].rpartition(" ")[2]) < 96
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(embedded), check_exact=True)


def test_a_finished_run_is_not_computed_again(embedded, toy_corpus, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(CorpusPass, "__iter__", lambda self: pytest.fail("clips were embedded again"))
    for path in (embedded, embedded.with_name("toy.skipped.csv")):
        shutil.copyfile(path, tmp_path / path.name)
    report = embed_corpus(toy_corpus, str(hub), tmp_path / "toy.parquet")
    assert (report.rows, report.added, report.present) == (96, 0, 96)


def test_two_processes_make_the_same_file(embedded, toy_corpus, hub, tmp_path):
    options = [toy_corpus, "--model", hub, "--out", tmp_path / "out.parquet", "--batch_seconds", "2"]
    first, second = run_in_two_processes("-m", "wavcse.embed", *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "96 rows of 20 numbers; 96 clips embedded, 0 were there already" in first.stdout
    assert "of the time waiting for audio" in first.stdout
    table, alone = pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(embedded)
    pd.testing.assert_frame_equal(table.drop(columns="embedding"), alone.drop(columns="embedding"))
    np.testing.assert_allclose(numbers(table), numbers(alone), atol=1e-6)


def test_truncation_and_normalisation(embedded, toy_corpus, hub, tmp_path):
    full = numbers(pd.read_parquet(embedded))
    embed_corpus(toy_corpus, str(hub), tmp_path / "a.parquet", EmbedSettings(truncate_dim=7))
    np.testing.assert_allclose(numbers(pd.read_parquet(tmp_path / "a.parquet")), full[:, :7], atol=1e-6)
    embed_corpus(toy_corpus, str(hub), tmp_path / "b.parquet", EmbedSettings(truncate_dim=7, normalize=True))
    unit = full[:, :7] / np.linalg.norm(full[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(numbers(pd.read_parquet(tmp_path / "b.parquet")), unit, atol=1e-5)
    assert read_metadata(tmp_path / "b.parquet")["embedding_size"] == 7


def test_precision(embedded, toy_corpus, hub, tmp_path):
    embed_corpus(toy_corpus, str(hub), tmp_path / "out.parquet", EmbedSettings(precision="bfloat16"))
    rounded, exact = numbers(pd.read_parquet(tmp_path / "out.parquet")), numbers(pd.read_parquet(embedded))
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    assert read_metadata(tmp_path / "out.parquet")["precision"] == "bfloat16"


def test_windows_cover_the_clip_and_are_the_embeddings_of_its_stretches(waves, hub, model, tmp_path):
    long, short, exact = waves(41_000, 5000, 24_000)
    for name, wave in {"long": long, "short": short, "exact": exact}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE, subtype="FLOAT")
    (tmp_path / "m.csv").write_text("file_name\nlong.wav\nshort.wav\nexact.wav\n")
    report = embed_corpus(tmp_path / "m.csv", str(hub), tmp_path / "o.parquet", EmbedSettings(window_s=1.0, hop_s=0.5), 2.0)
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert list(table.columns) == ["id", "path", "seconds", "start_s", "end_s", "embedding"]
    assert (report.rows, report.added) == (len(table), 3) == (8, 3)
    assert list(table["id"]) == ["long.wav"] * 5 + ["short.wav"] + ["exact.wav"] * 2
    np.testing.assert_allclose(table["start_s"], [0, 0.5, 1, 1.5, 41 / 16 - 1, 0, 0, 0.5])
    np.testing.assert_allclose(table["end_s"], [1, 1.5, 2, 2.5, 41 / 16, 5 / 16, 1, 1.5])
    np.testing.assert_allclose(table["seconds"], [41 / 16] * 5 + [5 / 16] + [1.5] * 2)
    of_name = {"long.wav": long, "short.wav": short, "exact.wav": exact}
    bounds = zip(table["id"], (table["start_s"] * RATE).astype(int), (table["end_s"] * RATE).astype(int))
    stretches = [of_name[name][start:end] for name, start, end in bounds]
    np.testing.assert_allclose(numbers(table), expected(model, stretches), atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 99, 100, 101, 130, 131, 1000])
def test_window_bounds(num_samples):
    bounds = window_bounds(num_samples, window=100, hop=30)
    covered = np.zeros(num_samples, dtype=bool)
    for start, end in bounds:
        covered[start:end] = True
    assert covered.all()
    assert {end - start for start, end in bounds} == {min(num_samples, 100)}
    assert len(set(bounds)) == len(bounds)


def test_corrupt_clips_are_skipped_listed_and_told_by_the_exit_code(embedded, toy_corpus, hub, tmp_path, capsys):
    corpus = shutil.copytree(toy_corpus.parent, tmp_path / "corpus")
    (corpus / "000.flac").write_bytes(b"this is not audio")
    (corpus / "001.flac").write_bytes((corpus / "002.flac").read_bytes()[:700])
    (corpus / "003.flac").unlink()
    soundfile.write(corpus / "004.flac", np.zeros(300), RATE)
    manifest = pd.read_csv(corpus / "metadata.csv", dtype=str, keep_default_na=False)
    bad_rows = pd.DataFrame({"file_name": ["005.flac", "", "006\0.flac"], "start": ["nan", "0", ""]})
    pd.concat([manifest, bad_rows]).fillna("").to_csv(corpus / "metadata.csv", index=False)
    options = [str(corpus / "metadata.csv"), "--model", str(hub), "--out", str(tmp_path / "out.parquet")]
    for said in ("92 clips embedded, 0 were there already", "0 clips embedded, 92 were there already"):
        assert main(options) == 3
        output = capsys.readouterr().out
        assert said in output
        assert "7 clips were skipped, see" in output
    with open(tmp_path / "out.skipped.csv", encoding="utf-8") as file:
        skipped = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    bad_rows = ["005.flac#nan-", f"row {len(manifest) + 2}#0-", "006\\0.flac"]
    assert list(skipped) == ["000.flac", "001.flac", "003.flac", "004.flac", *bad_rows]
    assert "has 300 samples" in skipped["004.flac"]
    assert all(reason.startswith(f"{name}: ") and str(tmp_path) not in reason for name, reason in skipped.items())
    table, whole = pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(embedded)
    left = whole[~whole["id"].isin(list(skipped))]
    assert list(table["id"]) == list(left["id"])
    np.testing.assert_allclose(numbers(table), numbers(left), atol=1e-5)


def test_a_folder_with_links_hidden_and_other_files(waves, hub, model, tmp_path, capsys):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for name in ("a.wav", "b.WAVE", "c.aiff", ".hidden.wav", ".git/d.wav", "deep/e.caf", "notes.txt", "f.m4a", "g.m4a"):
        path = corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".aiff": "AIFF", ".caf": "CAF"}.get(path.suffix, "WAV")
        soundfile.write(path, waves(4_000)[0], RATE, format=kind, subtype="FLOAT")
    elsewhere.mkdir()
    soundfile.write(elsewhere / "h.oga", waves(4_000)[0], RATE, format="OGG", subtype="VORBIS")
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "again").symlink_to(corpus / "deep")
    (elsewhere / "loop").symlink_to(corpus)
    assert main([str(corpus), "--model", str(hub), "--out", str(tmp_path / "out.parquet")]) == 0
    assert "3 files with other suffixes were left out (.m4a 2, .txt 1)" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["id"]) == ["a.wav", "b.WAVE", "c.aiff", "deep/e.caf", "linked/h.oga"]
    np.testing.assert_allclose(numbers(table)[:4], expected(model, waves(4_000) * 4), atol=1e-5)


@pytest.fixture(scope="module")
def quiet_corpus(waves, tmp_path_factory):
    """Manifest of a clip at its own level, twice very quiet, and digital silence."""
    folder = tmp_path_factory.mktemp("quiet")
    (clip,) = waves(20_000)
    for name, gain in {"own": 1, "quiet": 1e-3, "quieter": 1e-6, "silent": 0}.items():
        soundfile.write(folder / f"{name}.wav", clip * np.float32(gain), RATE, subtype="FLOAT")
    (folder / "m.csv").write_text("file_name\nown.wav\nquiet.wav\nquieter.wav\nsilent.wav\n")
    return folder / "m.csv"


def test_quiet_clips_are_counted_and_listed(quiet_corpus, hub, model, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    for _ in range(2):  # the second run finds the file whole
        assert main([str(quiet_corpus), "--model", str(hub), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "3 clips are quieter than -60 dB of full scale, so that their embeddings drift to that of silence" in said
        assert "the first: quiet.wav; see" in said
        assert "--scale_quiet brings them" in said
    with open(tmp_path / "out.quiet.csv", encoding="utf-8") as file:
        levels = {row["clip"]: float(row["level_db"]) for row in csv.DictReader(file)}
    assert levels == {"quiet.wav": pytest.approx(-80, abs=1), "quieter.wav": pytest.approx(-140, abs=1), "silent.wav": -np.inf}
    np.testing.assert_allclose(
        numbers(pd.read_parquet(out)), expected(model, [clip.load(RATE) for clip in Manifest(quiet_corpus).clips]), atol=1e-6
    )


def test_a_killed_run_forgets_no_quiet_clip(quiet_corpus, hub, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(EmbeddingParts, "merge", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(quiet_corpus, str(hub), out)
    monkeypatch.undo()
    report = embed_corpus(quiet_corpus, str(hub), out)
    assert (report.added, report.present) == (0, 4)
    assert [clip.clip_id for clip in report.quiet] == ["quiet.wav", "quieter.wav", "silent.wav"]


def test_a_run_that_an_earlier_version_began_is_finished(quiet_corpus, hub, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(EmbeddingParts, "merge", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(quiet_corpus, str(hub), out)
    monkeypatch.undo()
    (part,) = (tmp_path / "out.parquet.parts").glob("part-*.parquet")
    pq.write_table(pq.read_table(part).drop_columns("rms"), part.with_name("part-earlier.parquet"))
    part.unlink()
    key = tmp_path / "out.parquet.parts/key.json"
    stated = json.loads(key.read_text())
    key.write_text(json.dumps({name: value for name, value in stated.items() if name not in ("scale_quiet", "crc32")}))
    report = embed_corpus(quiet_corpus, str(hub), out)
    assert (report.added, report.present, report.quiet) == (0, 4, [])


@pytest.mark.parametrize("window_s", [None, 0.5])
def test_quiet_clips_can_be_scaled(quiet_corpus, hub, model, tmp_path, window_s):
    out = tmp_path / "out.parquet"
    embed_corpus(quiet_corpus, str(hub), out, EmbedSettings(window_s=window_s, scale_quiet=True))
    table = pd.read_parquet(out)
    rows = {name: np.stack(list(part["embedding"])) for name, part in table.groupby("id")}
    scale = np.abs(rows["own.wav"]).max()
    np.testing.assert_allclose(rows["quiet.wav"], rows["own.wav"], atol=1e-3 * scale)
    np.testing.assert_allclose(rows["quieter.wav"], rows["own.wav"], atol=1e-3 * scale)
    if window_s is None:
        clips = [clip.path for clip in Manifest(quiet_corpus).clips]
        np.testing.assert_allclose(numbers(table), model.encode(clips, scale_quiet=True), atol=1e-6)
    assert read_metadata(out)["scale_quiet"] is True
    with pytest.raises(ValueError, match=r"other settings \(scale_quiet True there, None now\)"):
        embed_corpus(quiet_corpus, str(hub), out, EmbedSettings(window_s=window_s))


def test_the_same_audio_under_two_names_is_there_twice(toy_corpus, hub, tmp_path):
    for name in ("a.flac", "b.flac"):
        shutil.copyfile(toy_corpus.parent / "000.flac", tmp_path / name)
    report = embed_corpus(tmp_path, str(hub), tmp_path / "out.parquet")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert report.added == 2
    assert list(table["id"]) == ["a.flac", "b.flac"]
    np.testing.assert_allclose(*numbers(table), atol=1e-6)


def test_other_settings_clips_or_contents_are_refused(toy_corpus, hub, waves, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    soundfile.write(corpus / "a.wav", waves(8000)[0], RATE)
    out = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    embed_corpus(corpus, str(hub), out)
    key = {name: read_metadata(out)[name] for name in ("precision", "weights_sha256", "window_s")}
    with pytest.raises(ValueError, match=r"other settings \(precision 'float32' there, 'bfloat16' now\)"):
        embed_corpus(corpus, str(hub), out, EmbedSettings(precision="bfloat16"))
    soundfile.write(corpus / "b.wav", waves(8000)[0], RATE)
    with pytest.raises(ValueError, match="holds other clips, or their audio has changed"):
        embed_corpus(corpus, str(hub), out)
    out.unlink()
    parts.mkdir()
    (parts / "key.json").write_text(json.dumps(key))  # an unfinished run with windows of no length
    with pytest.raises(ValueError, match=r"parts: holds embeddings made with other settings .*window_s None there, 1.0 now"):
        embed_corpus(corpus, str(hub), out, EmbedSettings(window_s=1.0))


WRONG = {
    "none.csv --model {hub} --out o.parquet": "none.csv: no such file",
    "{empty} --model {hub} --out o.parquet": "holds no audio files (.wav, .wave, ",
    "{corpus} --model {empty} --out o.parquet": "cannot be loaded",
    "{corpus} --model {hub} --out {empty}": "is a folder; give the name of the Parquet file",
    "{corpus} --model {hub} --out o.parquet --truncate_dim 21": "truncate_dim is 21; the model's embeddings have 1 to 20",
    "{corpus} --model {hub} --out o.parquet --batch_seconds 0": "batch_seconds is 0.0",
    "{corpus} --model {hub} --out o.parquet --hop_s 1": "give window_s too",
    "{corpus} --model {hub} --out o.parquet --window_s 1 --hop_s 2": "0 < hop_s <= window_s",
    "{corpus} --model {hub} --out o.parquet --window_s 0.01": "needs at least 0.025 s",
    "{corpus} --model {hub} --out o.parquet --device tpu9": "device is 'tpu9', which is not available here",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_one_clear_line(line, toy_corpus, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(line.format(corpus=toy_corpus, hub=hub, empty=tmp_path / "empty").split()) == 2
    (message,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("wavcse embed: ")]
    assert WRONG[line] in message
    assert not (tmp_path / "o.parquet").exists()


def test_a_corpus_without_a_usable_clip_is_refused(hub, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(b"no audio")
    assert main([str(tmp_path), "--model", str(hub), "--out", str(tmp_path / "out.parquet")]) == 2
    assert "None of the 1 clips can be used; the first: a.wav: cannot be read as audio" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def corpus_clips(*durations_s):
    return [CorpusClip(row, Clip(f"{row}", None), f"{row}", seconds) for row, seconds in enumerate(durations_s)]


def test_batches_are_of_similar_length_and_within_the_budget():
    batches = batches_by_length(corpus_clips(1.0, 4.0, 2.0, 2.5, 9.0, 1.0, 1.5), batch_seconds=5.0)
    assert [[item.row for item in batch] for batch in batches] == [[4], [1], [3, 2], [6, 0, 5]]
    with pytest.raises(ValueError, match="batch_seconds is 0"):
        batches_by_length(corpus_clips(1.0), 0)


def test_processes_get_whole_batches_and_nearly_equal_seconds():
    durations_s = np.random.default_rng(0).uniform(1, 15, 500)
    batches = batches_by_length(corpus_clips(*durations_s), batch_seconds=60.0)
    shares = [share_of_process(batches, process, 4) for process in range(4)]
    assert sorted(item.row for share in shares for batch in share for item in batch) == list(range(500))
    seconds = [sum(map(seconds_of, share)) for share in shares]
    assert max(seconds) - min(seconds) <= 60.0
    assert all(batch in batches for share in shares for batch in share)


def test_a_pass_measures_how_long_it_waits_for_audio(tmp_path, monkeypatch):
    """On a clock that only waiting and computing move."""
    clips = [CorpusClip(row, Clip(f"{row}", tmp_path), f"{row}", 1.0) for row in range(8)]
    now_s = [0.0]

    class Late:
        def result(self) -> tuple[None, bool]:
            now_s[0] += 3.0
            return None, False

    def compute(loaded: list) -> None:
        now_s[0] += 1.0

    monkeypatch.setattr(corpus_pass, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    monkeypatch.setattr(corpus_pass, "decoded_ahead", lambda batches, load: [(batch, [Late()]) for batch in batches])
    slow_audio = CorpusPass([[item] for item in clips], lambda clip: None, compute)
    assert len(list(slow_audio)) == 8
    assert (slow_audio.report.elapsed_s, slow_audio.report.waiting_s, slow_audio.report.waiting_share) == (32.0, 24.0, 0.75)
    assert (slow_audio.report.clips, slow_audio.report.audio_s) == (8, 8.0)


def test_a_pass_counts_quiet_clips_that_it_computed(tmp_path):
    clips = [CorpusClip(row, Clip(f"{row}", tmp_path / f"{row}"), f"{row}", 1.0) for row in range(4)]
    levels = {"0": 0.1, "1": 1e-5, "2": 0.0, "3": 1e-4}

    def load(clip):
        return clip.clip_id, levels[clip.clip_id] * np.sin(np.arange(1000))

    def compute(loaded):
        if any(name == "3" for name, _ in loaded):
            raise FloatingPointError("clip 0: is not finite")
        return [name for name, _ in loaded]

    corpus_pass = CorpusPass([clips], load, compute, waveform_of=lambda loaded: loaded[1])
    assert [name for _, names in corpus_pass for name in names] == ["0", "1", "2"]
    assert (corpus_pass.report.quiet, list(corpus_pass.report.skipped)) == ({1, 2}, [3])


def test_a_clip_that_cannot_be_computed_costs_no_neighbour(tmp_path):
    clips = [CorpusClip(row, Clip(f"{row}.wav", tmp_path / f"{row}.wav"), f"{row}", 1.0) for row in range(4)]

    def compute(names):
        if "2.wav" in names:
            raise FloatingPointError(f"clip {names.index('2.wav')}: is not finite")
        return names

    corpus_pass = CorpusPass([clips], lambda clip: clip.clip_id, compute)
    assert [name for _, names in corpus_pass for name in names] == ["0.wav", "1.wav", "3.wav"]
    assert corpus_pass.report.skipped == {2: "2.wav: is not finite"}


@pytest.mark.kill
def test_killed_ten_times_at_random_moments_is_the_undisturbed_table(toy_corpus, hub, tmp_path, monkeypatch):
    compute, expected = Embedder.compute, []
    monkeypatch.setattr(Embedder, "compute", lambda self, loaded: (time.sleep(0.03), compute(self, loaded))[1])
    monkeypatch.setattr("wavcse.embed.PART_INTERVAL_S", 0.0)

    def start(folder):
        folder.mkdir(exist_ok=True)
        options = ["--model", str(hub), "--out", str(folder / "toy.parquet"), "--batch_seconds", "2"]
        return started(main, [str(toy_corpus), *options])

    def check(folder):
        expected.append(pd.read_parquet(folder / "toy.parquet"))
        pd.testing.assert_frame_equal(expected[-1], expected[0], check_exact=True)
        assert sorted(path.name for path in folder.iterdir()) == ["toy.parquet", "toy.skipped.csv"]

    print(run_killed(start, tmp_path, check))
