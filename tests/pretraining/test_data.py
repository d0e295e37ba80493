"""What pre-training may hear: filters, held-out speakers, label faults, the decoded store, and the batches."""

import itertools
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from wavcse.audio_wavcse import SUPPORTED
from wavcse.data.manifest import Clip
from wavcse.feature_extraction_wavcse import normalized
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.pretraining.arguments import PRETRAIN, ClipSource, PretrainArguments
from wavcse.pretraining.clips import PretrainingClips, load_clips, with_label_faults
from wavcse.steps.audio_store import build_store
from wavcse.steps.batches import CropReader
from wavcse.steps.crops import CropPlanner
from wavcse.steps.encoder import encoder_config, receptive_field

MANIFEST = """file_name,start,end,language,speaker_id,licence,split
a.wav,0,1,en,anna,CC0-1.0,train
a.wav,1,2,en,ben,CC0-1.0,train
b.wav,,,de,clara,CC-BY-NC-4.0,train
c.wav,,,,,CC0-1.0,train
d.wav,,,de,dora,MIT,
"""
HELD_OUT = "file_name,speaker_id,split,split_sid\nx.wav,ben,test,\ny.wav,anna,train,validation\nd.wav,,val,\n"
RECIPES = sorted((Path(__file__).parents[2] / "conf").glob("pretrain_*.yaml"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(MANIFEST)
    (tmp_path / "held_out.csv").write_text(HELD_OUT)
    return tmp_path


def loaded(folder, where=None, **settings):
    return load_clips({"one": ClipSource(str(folder / "train.csv"), where or {})}, "language", **settings)


def test_only_allowed_rows_are_used(folder):
    clips = loaded(folder, {"licence": ("CC0-1.0", "MIT"), "split": ("train", "")})
    assert clips.names == ["one/a.wav#0-1", "one/a.wav#1-2", "one/c.wav", "one/d.wav"]
    assert clips.labels == ["de", "en"]
    assert clips.targets.tolist() == [1, 1, IGNORED_LABEL, 0]
    assert clips.left_out == {"where": 1, "held_out": 0}


def test_held_out_speakers_and_clips_do_not_occur(folder):
    clips = loaded(folder, exclude_speakers_of=[str(folder / "held_out.csv")])
    assert clips.names == ["one/a.wav#0-1", "one/b.wav", "one/c.wav"]  # ben is in a test split, d.wav is itself in validation
    assert clips.left_out == {"where": 0, "held_out": 2}
    stricter = loaded(folder, exclude_speakers_of=[str(folder / "held_out.csv")], exclude_split_columns=["split", "split_sid"])
    assert stricter.names == ["one/b.wav", "one/c.wav"]  # anna is in a validation split of speaker identification


@pytest.mark.parametrize(
    ("where", "settings", "message"),
    [
        ({"license": ("MIT",)}, {}, "no column 'license'"),
        ({"licence": ("GPL",)}, {}, "no clip"),
        ({}, {"exclude_speakers_of": ["held_out.csv"], "exclude_split_columns": ["fold"]}, "none of the columns"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(folder, where, settings, message):
    if "exclude_speakers_of" in settings:
        settings["exclude_speakers_of"] = [str(folder / name) for name in settings["exclude_speakers_of"]]
    with pytest.raises(ValueError, match=message):
        loaded(folder, where, **settings)


def test_any_column_can_be_the_label(folder):
    sources = {"one": ClipSource(str(folder / "train.csv"))}
    assert load_clips(sources, "speaker_id").labels == ["anna", "ben", "clara", "dora"]
    assert (load_clips(sources, "emotion").targets == IGNORED_LABEL).all()


def many_clips(count=4000, num_labels=5):
    names = [f"one/{i}.wav" for i in range(count)]
    return PretrainingClips(names, [Clip(name, None) for name in names], np.arange(count) % num_labels, list("abcde"), {})


def test_labels_go_missing_at_the_rate_and_by_the_clip():
    clips = many_clips()
    missing = [with_label_faults(clips, rate, 0.0, 0) == IGNORED_LABEL for rate in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert [mask.mean() for mask in missing] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.03)
    assert all((less <= more).all() for less, more in itertools.pairwise(missing))  # the same clips and some more
    half = PretrainingClips(clips.names[::2], clips.clips[::2], clips.targets[::2], clips.labels, {})
    assert np.array_equal(with_label_faults(half, 0.5, 0.3, 0), with_label_faults(clips, 0.5, 0.3, 0)[::2])


def test_noisy_labels_are_other_labels_all_alike():
    clips = many_clips()
    noisy = with_label_faults(clips, 0.0, 0.5, 1)
    wrong = noisy != clips.targets
    assert wrong.mean() == pytest.approx(0.5, abs=0.03)
    assert set(noisy) == set(range(5))
    counts = Counter((noisy[wrong] - clips.targets[wrong]) % 5)
    assert all(counts[shift] == pytest.approx(wrong.sum() / 4, rel=0.15) for shift in (1, 2, 3, 4))
    assert np.array_equal(with_label_faults(clips, 0.0, 1.0, 1) == clips.targets, np.zeros(4000, dtype=bool))


def test_the_store_holds_what_the_files_hold(tmp_path):
    generator = np.random.default_rng(0)
    waves = {"a.flac": (16_000, 20_000), "b.wav": (8_000, 12_345)}
    written = {}
    for name, (rate, length) in waves.items():
        written[name] = 0.3 * generator.standard_normal(length).clip(-3, 3)
        soundfile.write(tmp_path / name, written[name], rate)
    paths = [tmp_path / name for name in waves]
    store = build_store(tmp_path / "audio", [*paths, paths[0]])
    assert store.samples_of(Clip("a", paths[0])) == (0, 20_000)
    assert store.samples_of(Clip("a#0.5-1", paths[0], 0.5, 1.0)) == (8_000, 8_000)
    np.testing.assert_allclose(store.read(paths[0], 100, 500), written["a.flac"][100:600], atol=1e-4)
    assert store.samples_of(Clip("b", paths[1]))[1] == pytest.approx(2 * 12_345, abs=1)
    for start_s, end_s in ((0.5, 9.0), (2.0, None), (-1.0, None), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="part of it is at|must be finite"):
            store.samples_of(Clip("a#part", paths[0], start_s, end_s))
    (folder,) = (tmp_path / "audio").iterdir()
    before = (folder / "audio.int16").stat().st_mtime_ns
    build_store(tmp_path / "audio", paths)
    assert (folder / "audio.int16").stat().st_mtime_ns == before  # decoded once
    assert {path.name for path in folder.iterdir()} == {"audio.int16", "index.json"}


def test_a_file_that_is_not_audio_leaves_no_store(tmp_path):
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"a\.wav"):
        build_store(tmp_path / "audio", [tmp_path / "a.wav"])
    assert not list((tmp_path / "audio").rglob("*.*"))
    with pytest.raises(ValueError, match=r"b\.wav: cannot be read"):
        build_store(tmp_path / "audio", [tmp_path / "b.wav"])


def test_a_file_that_is_not_audio_costs_no_other(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.25), 16_000)
    (tmp_path / "b.wav").write_text("not audio")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "loop.wav", "gone.wav")]
    for _ in range(2):  # made, and opened
        store = build_store(tmp_path / "audio", paths)
        assert store.samples_of(Clip("a", paths[0])) == (0, 16_000)
        reader = CropReader([Clip(path.stem, path) for path in paths], store, encoder_config({}, None))
        np.testing.assert_array_equal(reader.num_samples, [16_000, 0, 0, 0])
        assert sorted(reader.unusable) == [1, 2, 3]
        assert reader.unusable[1].startswith("b: cannot be read as audio (")
        assert reader.unusable[3] == "gone: cannot be read as audio (No such file or directory). " + SUPPORTED


def planner(targets, seconds, **settings):
    args = PretrainArguments(**{"batch_seconds": 48.0, "labels_per_batch": 4, "crop_s": 3.0, **settings})
    num_samples = (np.array(seconds) * 16_000).astype(np.int64)
    return CropPlanner(args, num_samples, np.array(targets), 720, lambda length: (length - 720) // 320 + 1)


def test_batches_are_p_labels_by_k_clips_within_the_seconds():
    rng = np.random.default_rng(0)
    targets, seconds = rng.integers(0, 6, 300), rng.uniform(0.8, 8.0, 300)
    plan = planner(targets, seconds)
    for step in range(20):
        crops = plan.crops(step)
        counts = Counter(targets[crop.clip] for crop in crops)
        assert len(counts) == 4
        assert max(counts.values()) - min(counts.values()) <= 1
        assert min(counts.values()) >= 2
        total = sum(crop.num_samples for crop in crops) / 16_000
        assert 45.0 < total <= 48.0
        for crop in crops:
            assert crop.num_samples == int(min(seconds[crop.clip], 3.0) / 0.5) * 8000
            assert 0 <= crop.start <= int(seconds[crop.clip] * 16_000) - crop.num_samples
            assert crop.mask.shape == ((crop.num_samples - 720) // 320 + 1,)
            assert crop.mask.any()
        assert [crop.num_samples for crop in crops] == sorted((crop.num_samples for crop in crops), reverse=True)
        assert len({crop.clip for crop in crops}) == len(crops)


def test_a_batch_follows_from_seed_and_step():
    targets, seconds = np.arange(100) % 5, np.linspace(1, 5, 100)
    first, second = planner(targets, seconds), planner(targets, seconds)
    first.crops(3)  # what was drawn before does not matter
    for a, b in zip(first.crops(7), second.crops(7), strict=True):
        assert a[:3] == b[:3]
        assert np.array_equal(a.mask, b.mask)
    assert [crop[:3] for crop in first.crops(7)] != [crop[:3] for crop in first.crops(8)]
    assert [crop[:3] for crop in first.crops(7)] != [crop[:3] for crop in first.crops(7, part=1)]
    assert [crop[:3] for crop in first.crops(7)] != [crop[:3] for crop in planner(targets, seconds, seed=1).crops(7)]


def test_unlabelled_clips_have_their_share_of_the_batches():
    targets = np.where(np.arange(400) % 4, IGNORED_LABEL, np.arange(400) // 4 % 5)  # three quarters have none
    plan = planner(targets, np.full(400, 3.0))
    drawn = [targets[crop.clip] for step in range(50) for crop in plan.crops(step)]
    assert np.mean(np.array(drawn) == IGNORED_LABEL) == pytest.approx(0.75, abs=0.04)
    assert all(len({targets[crop.clip] for crop in plan.crops(step)} - {IGNORED_LABEL}) >= 2 for step in range(50))
    nothing = planner(np.full(50, IGNORED_LABEL), np.full(50, 3.0))
    assert len(nothing.crops(0)) == 16


def test_labels_are_drawn_by_their_hours():
    targets = np.repeat([0, 1, 2], [400, 100, 25])
    settings = {"labels_per_batch": 1, "batch_seconds": 6.0}
    for exponent, expected in ((0.5, [4 / 7, 2 / 7, 1 / 7]), (0.0, [1 / 3] * 3), (1.0, [0.762, 0.19, 0.048])):
        plan = planner(targets, np.full(525, 3.0), label_exponent=exponent, **settings)
        drawn = Counter(targets[plan.crops(step)[0].clip] for step in range(1500))
        assert [drawn[label] / 1500 for label in range(3)] == pytest.approx(expected, abs=0.04)


def test_without_balancing_clips_are_drawn_by_their_length():
    seconds = np.repeat([1.0, 4.0], [400, 100])
    plan = planner(np.arange(500) % 3, seconds, labels_per_batch=0)
    drawn = [seconds[crop.clip] for step in range(100) for crop in plan.crops(step)]
    assert np.mean(np.array(drawn) == 4.0) == pytest.approx(0.5, abs=0.05)


def test_short_clips_are_left_out_and_counted():
    plan = planner([0, 0, 1, 1, 1], [0.2, 3, 3, 3, 0.4], labels_per_batch=2)
    assert plan.num_too_short == 2
    assert {crop.clip for step in range(5) for crop in plan.crops(step)} == {1, 2, 3}
    with pytest.raises(ValueError, match="no clip is as long"):
        planner([0, 1], [0.1, 0.2])


def test_waveforms_are_normalised_as_the_preprocessor_does_it():
    from transformers import Wav2Vec2FeatureExtractor

    waves = np.random.default_rng(0).standard_normal((3, 5000)).astype(np.float32) * 0.01 + 0.5
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(list(waves), sampling_rate=16_000, return_tensors="pt").input_values
    torch.testing.assert_close(normalized(torch.from_numpy(waves)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missing_label_rate": 1.5}, "missing_label_rate"),
        ({"label_loss": "triplet"}, "hard_triplet"),
        ({"batch_seconds": 10.0}, "batch_seconds"),
        ({"decay": "step"}, "inverse_sqrt"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"mask_probability": 1.0}, "mask_probability"),
        ({"length_step_s": 5.0}, "length_step_s"),
        ({"length_step_s": 6e-5}, r"length_step_s is 6e-05; it must be at least one sample, 6\.25e-05 s"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"adam_betas": [0.9]}, r"adam_betas is \[0\.9\]; it must be two numbers from 0 to below 1"),
        ({"adam_betas": [0.9, 0.98, 0.99]}, r"adam_betas is \[0\.9, 0\.98, 0\.99\]; it must be two numbers"),
        ({"adam_betas": [0.9, 1]}, r"adam_betas is \[0\.9, 1\]; it must be two numbers from 0 to below 1"),
        ({"adam_betas": [-0.1, 0.98]}, r"adam_betas is \[-0\.1, 0\.98\]; it must be two numbers from 0 to below 1"),
        ({"adam_betas": [0.9, float("nan")]}, r"adam_betas is \[0\.9, nan\]; it must be two numbers from 0 to below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainArguments(**settings)


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("max_steps", None, "a whole number"),
        ("max_steps", 10.0, "a whole number"),
        ("max_steps", "many", "a whole number"),
        ("codebook_size", True, "a whole number"),
        ("learning_rate", None, "a number"),
        ("learning_rate", "fast", "a number"),
        ("margin", False, "a number"),
        ("margin", [0.2], "a number"),
        ("freeze_stem", 1, "true or false"),
        ("freeze_stem", None, "true or false"),
        ("label_column", None, "a text"),
        ("note", 3, "a text"),
        ("data", ["a.csv"], "a mapping"),
        ("encoder", "small", "a mapping"),
        ("adam_betas", None, "a list of numbers"),
        ("adam_betas", 0.9, "a list of numbers"),
        ("adam_betas", [0.9, "0.98"], "a list of numbers"),
        ("adam_betas", [0.9, True], "a list of numbers"),
        ("exclude_speakers_of", "a.csv", "a list of texts"),
        ("exclude_split_columns", ["split", None], "a list of texts"),
        ("init_from", False, "a text or null"),
        ("stop_after_s", "soon", "a number or null"),
        ("stop_after_s", True, "a number or null"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(name, value, needed):
    quotes = " (YAML needs yes, no, on and off in quotes)" if name == "init_from" else ""
    with pytest.raises(ValueError, match="^" + re.escape(f"{name} is {value!r}; {needed} is needed{quotes}.") + "$"):
        PretrainArguments(**{name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(PretrainArguments)])
def test_every_setting_has_a_type_that_is_checked(name):
    with pytest.raises(ValueError, match=rf"^{name} is <object .*>; .* is needed\.$"):
        PretrainArguments(**{name: object()})


def test_whole_numbers_are_numbers_and_an_empty_section_is_an_empty_mapping(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data:\nencoder:\ncrop_s: 2\nlength_step_s: 6.25e-5\nadam_betas: [0, 0.98]\nstop_after_s: 60\ninit_from: null\n"
    )
    args = PRETRAIN.parse([str(tmp_path / "recipe.yaml")])
    assert (args.data, args.encoder, args.crop_s, args.adam_betas) == ({}, {}, 2, [0, 0.98])
    assert (args.length_step_s, args.stop_after_s, args.init_from) == (6.25e-5, 60, None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_sound(path):
    args = PRETRAIN.parse([str(path)])
    for source in args.clip_sources().values():  # recordings of people by their licence, synthetic speech by its split
        assert "licence" in source.where or set(source.where.values()) == {("train",)}, source
    if args.init_from:  # a later stage goes on with what another recipe of these has made
        assert args.init_from in {PRETRAIN.parse([str(other)]).output_dir for other in RECIPES if other != path}
        assert not args.encoder
        return
    config = encoder_config(args.encoder, None)
    assert config.feat_extract_norm == "layer"
    assert receptive_field(config) == 720


def test_a_recipe_with_a_misspelt_field_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("lambda: 3\n")
    with pytest.raises(ValueError, match="unknown fields"):
        PRETRAIN.parse([str(tmp_path / "recipe.yaml")])
    (tmp_path / "recipe.yaml").write_text("data: {one: {manifest: a.csv, wehre: {}}}\nlabel_weight: 2\n")
    args = PRETRAIN.parse([str(tmp_path / "recipe.yaml"), "--label_weight", "3", "--exclude_speakers_of", "a.csv", "b.csv"])
    assert (args.label_weight, args.exclude_speakers_of) == (3.0, ["a.csv", "b.csv"])
    with pytest.raises(ValueError, match=r"data\.one: unknown fields \['wehre'\]"):
        args.clip_sources()
