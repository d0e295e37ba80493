"""The feature cache: equal to the model, resumable, one result whatever the batches and processes."""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel
from wavcse.data import cache as cache_module
from wavcse.data.cache import build_cache, main
from wavcse.data.features import FeatureCache, open_cache, open_shard
from wavcse.data.files import read_json
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.tests.helpers.processes import Child, run_in_two_processes

LAYERS = [0, 1, 2, 3]


def features_by_clip(cache, manifest):
    clips = Manifest(manifest).clips
    facts = Inspector(cache.folder.parent).inspect(clips, save=False)
    return dict(zip([clip.clip_id for clip in clips], cache.read([fact.digest for fact in facts], LAYERS)))


@pytest.fixture(scope="module")
def built(toy_corpus, upstream_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches")
    cache, report = build_cache([toy_corpus], str(upstream_folder), out)
    assert (report.added, report.present, report.skipped) == (96, 0, [])
    return cache


def test_cached_layers_are_what_the_model_pools(built, toy_corpus, upstream_folder):
    model = WavCSEModel.from_upstream(str(upstream_folder), selected_layers=LAYERS)
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    cached = features_by_clip(built, toy_corpus)
    for clip in Manifest(toy_corpus).clips[::7]:
        inputs = feature_extractor(clip.load(16_000), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).pooled_layers[0].numpy()
        np.testing.assert_allclose(cached[clip.clip_id], expected, atol=1e-5)


@pytest.fixture(scope="module")
def whisper_caches(waves_corpus, tmp_path_factory):
    """A manifest of two clips, a tiny Whisper, and its caches in both contexts."""
    folder, out = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("caches")
    torch.manual_seed(0)
    shape = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    shape |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 20, "pad_token_id": 0}
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 50}
    WhisperForConditionalGeneration(WhisperConfig(**shape)).save_pretrained(folder)
    caches = {context: build_cache([waves_corpus], str(folder), out, context=context)[0] for context in ("clip", "window")}
    return folder, caches


@pytest.fixture(scope="module")
def waves_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, length in (("a.wav", 9_000), ("b.wav", 20_000)):
        soundfile.write(folder / name, 0.1 * np.random.default_rng(length).standard_normal(length), 16_000)
    (folder / "metadata.csv").write_text("clip_id,file_name\na,a.wav\nb,b.wav\n")
    return folder / "metadata.csv"


def test_each_context_of_whisper_has_its_own_cache(whisper_caches, waves_corpus):
    folder, caches = whisper_caches
    assert caches["clip"].folder != caches["window"].folder
    clip = Manifest(waves_corpus).clips[0]
    for context, cache in caches.items():
        trained_on_it = WavCSEConfig(cache.key.upstream_config, selected_layers=[0], **cache.key.layer_fields)
        assert (cache.key.context, trained_on_it.context) == (context, context)
        model = WavCSEModel.from_upstream(str(folder), selected_layers=[0, 1, 2], context=context)
        inputs = {"sampling_rate": 16_000, "return_tensors": "pt"}
        inputs = WavCSEFeatureExtractor.from_config(model.config)(clip.load(16_000), **inputs)
        facts = Inspector(cache.folder.parent).inspect([clip], save=False)
        with torch.no_grad():
            expected = model(**inputs).pooled_layers
        np.testing.assert_allclose(cache.read([facts[0].digest], [0, 1, 2]), expected, atol=1e-5)


def test_a_cache_from_before_the_choice_is_one_of_windows(whisper_caches, waves_corpus, built):
    """Its description says nothing of a context, and its folder has the name of then."""
    folder, caches = whisper_caches
    about = caches["window"].folder / "cache.json"
    fields = read_json(about)
    assert fields.pop("context") == "window"
    about.write_text(json.dumps(fields))
    cache, report = build_cache([waves_corpus], str(folder), about.parent.parent, context="window")
    assert (cache.folder, report.added, report.present, cache.key.context) == (about.parent, 0, 2, "window")
    assert built.key.context is None


def test_reading_takes_only_the_rows_and_layers_asked_for(built):
    digests = list(built.location)
    everything = built.read(digests, LAYERS)
    np.testing.assert_array_equal(built.read([digests[5], digests[2]], [3, 1]), everything[[5, 2]][:, [3, 1]])
    assert built.read(digests[:3], [2]).shape == (3, 1, 32)
    assert all(isinstance(shard, np.memmap) and not shard.flags.writeable for shard in built.shards)


def test_two_workers_cache_what_one_does(toy_corpus, upstream_folder, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(toy_corpus.parent, corpus)
    (corpus / "010.flac").write_text("no audio")
    manifest, found, files, skipped = corpus / "metadata.csv", [], [], []
    for workers in (1, 2):
        cache, report = build_cache(
            [manifest], str(upstream_folder), tmp_path / str(workers), batch_seconds=2, workers=workers
        )
        assert (report.added, [clip.clip_id for clip in report.skipped]) == (95, ["010.flac"])
        found.append(cache.read(sorted(cache.location), LAYERS))
        (shard,) = cache.paths
        files.append(shard.read_bytes())  # its clips are in one order too
        skipped.append((cache.folder / "skipped.csv").read_text())
    np.testing.assert_array_equal(*found)
    assert files[0] == files[1]
    assert skipped[0] == skipped[1]


def test_batches_do_not_change_a_vector(built, toy_corpus, upstream_folder, tmp_path):
    one_by_one, _ = build_cache([toy_corpus], str(upstream_folder), tmp_path, batch_seconds=0.01)
    expected, other = features_by_clip(built, toy_corpus), features_by_clip(one_by_one, toy_corpus)
    for clip in expected:
        np.testing.assert_allclose(other[clip], expected[clip], atol=1e-5)


def test_half_precision_is_half_the_size_and_close(built, toy_corpus, upstream_folder, tmp_path):
    half, _ = build_cache([toy_corpus], str(upstream_folder), tmp_path, dtype="float16")
    assert half.folder.name != built.folder.name
    assert half.shards[0].dtype == np.float16
    expected, other = features_by_clip(built, toy_corpus), features_by_clip(half, toy_corpus)
    for clip in expected:
        np.testing.assert_allclose(other[clip], expected[clip], rtol=5e-4, atol=1e-6)


def test_a_second_run_computes_nothing(built, toy_corpus, upstream_folder, monkeypatch):
    monkeypatch.setattr(cache_module, "_pooled_layers", lambda *a: pytest.fail("the upstream ran again"))
    cache, report = build_cache([toy_corpus], str(upstream_folder), built.folder.parent)
    assert (report.added, report.present, len(cache)) == (0, 96, 96)


def test_the_key_follows_the_weights_not_the_name(built, toy_corpus, upstream_folder, tiny_upstream, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(upstream_folder, renamed)
    same, report = build_cache([toy_corpus], str(renamed), built.folder.parent)
    assert same.folder == built.folder
    assert report.added == 0
    other = tiny_upstream(num_hidden_layers=3)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save_pretrained(renamed)
    changed, report = build_cache([toy_corpus], str(renamed), tmp_path / "caches")
    assert changed.folder.name != built.folder.name
    assert report.added == 96


def test_a_file_whose_content_changed_is_embedded_again(toy_corpus, upstream_folder, tmp_path):
    corpus = shutil.copytree(toy_corpus.parent, tmp_path / "corpus")
    build_cache([corpus / "metadata.csv"], str(upstream_folder), tmp_path / "caches")
    shutil.copyfile(corpus / "001.flac", corpus / "000.flac")
    cache, report = build_cache([corpus / "metadata.csv"], str(upstream_folder), tmp_path / "caches")
    assert report.added == 0  # the same audio is known under its content
    vectors = features_by_clip(cache, corpus / "metadata.csv")
    np.testing.assert_array_equal(vectors["000.flac"], vectors["001.flac"])


def test_bad_clips_are_skipped_listed_and_told_by_the_exit_code(toy_corpus, upstream_folder, tmp_path, capsys):
    corpus = shutil.copytree(toy_corpus.parent, tmp_path / "corpus")
    (corpus / "000.flac").write_bytes(b"this is not audio")
    (corpus / "001.flac").write_bytes((corpus / "002.flac").read_bytes()[:700])
    (corpus / "003.flac").unlink()
    assert (
        main(["--manifest", str(corpus / "metadata.csv"), "--upstream", str(upstream_folder), "--out", str(tmp_path / "c")])
        == 3
    )
    cache = open_cache(tmp_path / "c")
    assert len(cache) == 93
    with open(cache.folder / "skipped.csv", encoding="utf-8") as file:
        skipped = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert set(skipped) == {"000.flac", "001.flac", "003.flac"}
    assert all("cannot be read as audio" in reason for reason in skipped.values())
    assert "3 clips were skipped" in capsys.readouterr().out


def test_a_clip_that_is_too_short_or_too_long_is_skipped(waves, upstream_folder, tmp_path, monkeypatch):
    def with_a_low_limit(*arguments):
        config = all_layers(*arguments)
        config.max_duration_s = 1.0
        return config

    all_layers = cache_module.config_of_all_layers

    monkeypatch.setattr(cache_module, "config_of_all_layers", with_a_low_limit)
    for name, samples in zip(("short", "good", "long"), waves(300, 8000, 17_600)):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    (tmp_path / "m.csv").write_text("file_name\nshort.wav\ngood.wav\nlong.wav\n")
    cache, report = build_cache([tmp_path / "m.csv"], str(upstream_folder), tmp_path / "c")
    assert len(cache) == 1
    assert dict(report.skipped)["short.wav"].startswith("short.wav: has 300 samples (18.8 ms)")
    assert "lasts 1.1 s, more than max_duration_s=1" in dict(report.skipped)["long.wav"]


def test_quiet_clips_are_counted(waves, upstream_folder, tmp_path, capsys):
    (clip,) = waves(8_000)
    for name, gain in {"own": 1, "quiet": 1e-4, "silent": 0}.items():
        soundfile.write(tmp_path / f"{name}.wav", clip * np.float32(gain), 16_000, subtype="FLOAT")
    (tmp_path / "m.csv").write_text("file_name\nown.wav\nquiet.wav\nsilent.wav\n")
    options = ["--manifest", str(tmp_path / "m.csv"), "--upstream", str(upstream_folder), "--out", str(tmp_path / "c")]
    assert main(options) == 0
    assert "of these, 2 clips are quieter than -60 dB of full scale" in capsys.readouterr().out


def test_values_that_are_not_finite_stop_the_run(built):
    bad = np.full((1, 4, 32), np.nan, dtype=np.float32)
    with pytest.raises(FloatingPointError, match="not finite"):
        built.write_shard(bad, ["x"])
    assert "x" not in FeatureCache(built.folder)


def test_a_half_written_shard_is_not_read(built, toy_corpus, upstream_folder, tmp_path):
    root = shutil.copytree(built.folder.parent, tmp_path / "caches")
    folder = root / built.folder.name
    whole = next(folder.glob("*.safetensors"))
    array, _ = open_shard(whole)
    assert len(array) == 96
    whole.with_suffix(".partial").write_bytes(whole.read_bytes()[:1000])
    whole.unlink()
    assert len(FeatureCache(folder)) == 0
    cache, report = build_cache([toy_corpus], str(upstream_folder), root)
    assert (report.added, len(cache)) == (96, 96)


BUILD = """
import sys, time
from wavcse.data import cache
run = cache._pooled_layers
cache._pooled_layers = lambda *a: (time.sleep(0.05), run(*a))[1]  # slow enough to be killed in the middle
cache.build_cache([sys.argv[1]], sys.argv[2], sys.argv[3], batch_seconds=1.0, shard_mb=0.002)
"""


def test_killed_three_times_and_resumed_is_the_undisturbed_cache(built, toy_corpus, upstream_folder, tmp_path):
    out = tmp_path / "caches"
    for kill in range(1, 4):
        child = Child("-c", BUILD, toy_corpus, upstream_folder, out)
        child.kill_when(lambda kill=kill: len(list(out.glob("*/*.safetensors"))) >= 3 * kill)
        assert 0 < len(open_cache(out)) < 96
    done = len(open_cache(out))
    cache, report = build_cache([toy_corpus], str(upstream_folder), out)
    assert (report.present, report.added, len(cache)) == (done, 96 - done, 96)
    assert sum(len(shard) for shard in cache.shards) == 96  # none twice
    expected, resumed = features_by_clip(built, toy_corpus), features_by_clip(cache, toy_corpus)
    for clip in expected:
        np.testing.assert_allclose(resumed[clip], expected[clip], atol=1e-5)


def test_two_processes_share_the_work(built, toy_corpus, upstream_folder, tmp_path):
    options = ["--manifest", toy_corpus, "--upstream", upstream_folder, "--out", tmp_path / "caches", "--batch_seconds", "1"]
    first, second = run_in_two_processes("-m", "wavcse.data.cache", *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "96 clips; 96 added, 0 were there already" in first.stdout
    cache = open_cache(tmp_path / "caches")
    assert len(cache.shards) == 2  # one of each process
    expected, shared = features_by_clip(built, toy_corpus), features_by_clip(cache, toy_corpus)
    for clip in expected:
        np.testing.assert_allclose(shared[clip], expected[clip], atol=1e-5)


def test_mistakes_on_the_command_line_are_one_line(toy_corpus, upstream_folder, tmp_path, capsys):
    arguments = ["--upstream", str(upstream_folder), "--out", str(tmp_path)]
    assert main(["--manifest", "none.csv", *arguments]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
    assert main(["--manifest", str(toy_corpus), *arguments, "--batch_seconds", "0"]) == 2
    assert "batch_seconds is 0.0" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"holds no feature cache\. Make one with"):
        open_cache(Path(tmp_path))


@pytest.mark.parametrize(
    ("change", "what"),
    [(lambda key: key.pop("window_s"), "window_s"), (lambda key: key.update(format_version=99), "format_version")],
)
def test_a_cache_of_another_version_is_refused(built, tmp_path, change, what):
    folder = tmp_path / built.folder.name
    shutil.copytree(built.folder, folder)
    key = read_json(folder / "cache.json")
    change(key)
    (folder / "cache.json").write_text(json.dumps(key))
    with pytest.raises(ValueError, match=rf"made by another version of wavCSE \(differs in {what}\)\. Build the cache again"):
        open_cache(tmp_path)


@pytest.mark.kill
def test_killed_ten_times_at_random_moments_is_the_undisturbed_cache(toy_corpus, upstream_folder, tmp_path, monkeypatch):
    run, expected = cache_module._pooled_layers, []
    monkeypatch.setattr(cache_module, "_pooled_layers", lambda *args: (time.sleep(0.03), run(*args))[1])
    options = ["--upstream", str(upstream_folder), "--batch_seconds", "1", "--shard_mb", "0.002"]

    def check(root):
        cache = open_cache(root)
        assert sum(len(shard) for shard in cache.shards) == 96  # none twice
        expected.append((sorted(cache.location), cache.read(sorted(cache.location), LAYERS)))
        assert expected[-1][0] == expected[0][0]
        np.testing.assert_array_equal(expected[-1][1], expected[0][1])
        assert not list(root.rglob("*.partial"))
        assert not list(root.rglob("*.damaged"))

    start = lambda root: started(main, ["--manifest", str(toy_corpus), "--out", str(root), *options])  # noqa: E731
    print(run_killed(start, tmp_path, check))
