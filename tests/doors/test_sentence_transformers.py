"""`SentenceTransformer(folder, trust_remote_code=True)`: the clips and the vectors of `encode`, and its own settings."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from wavcse import WavCSEConfig
from wavcse.hub_repository_wavcse import SENTENCE_TRANSFORMERS
from wavcse.tests.helpers.door_pages import link_root, run_first_block

ROOT = Path(__file__).parents[2]
RATE = 16_000


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("wavlm", "group")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def door(folder):
    """The folder as sentence-transformers loads it."""
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def clips(waves, tmp_path_factory) -> list:
    """Every form of a clip, at three rates and four lengths, in one list."""
    place = tmp_path_factory.mktemp("audio")
    first, second, third, fourth = waves(12_000, 3_000, 700, 20_000)
    soundfile.write(place / "mono.wav", first, RATE, subtype="FLOAT")
    soundfile.write(place / "stereo.flac", np.stack([second, third.repeat(5)[:3_000]], axis=1), 8_000)
    return [
        str(place / "mono.wav"),
        third,
        {"array": fourth, "sampling_rate": 44_100},
        place / "stereo.flac",
        torch.from_numpy(second),
        (place / "mono.wav").read_bytes(),
        {"array": first, "sampling_rate": 8_000},
    ]


# ---- without the library ----


def test_the_root_and_every_saved_folder_hold_its_files(folder):
    for name, content in SENTENCE_TRANSFORMERS.items():
        assert json.loads((folder / name).read_text()) == content
        assert (ROOT / name).read_bytes() == (folder / name).read_bytes()


def test_its_own_settings_are_kept(model, tmp_path):
    (tmp_path / "config_sentence_transformers.json").write_text('{"truncate_dim": 7}')
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text()) == {"truncate_dim": 7}


def test_the_file_can_be_read_without_the_library(monkeypatch):
    for name in ("sentence_transformers", "sentence_transformers.base.modules.transformer"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "wavcse.sentence_transformers_wavcse", raising=False)
    module = importlib.import_module("wavcse.sentence_transformers_wavcse")
    assert module.WavCSETransformer.__mro__[1] is object


# ---- with it ----


@pytest.mark.doors
def test_every_form_of_a_clip_gives_the_vector_of_encode(model, door, clips):
    expected = model.encode(clips)
    for batch_size in (1, 3, 32):
        np.testing.assert_allclose(door.encode(clips, batch_size=batch_size), expected, rtol=1e-5, atol=1e-6)
    for clip, vector in zip(clips, expected):
        np.testing.assert_allclose(door.encode([clip])[0], vector, rtol=1e-5, atol=1e-6)
    one = door.encode(clips[0])
    assert (one.shape, one.dtype) == ((20,), np.float32)


@pytest.mark.doors
def test_other_rates_are_resampled(model, door, waves):
    (clip,) = waves(12_000)
    at_8k = soxr.resample(clip, RATE, 8_000, quality="HQ")
    found = door.encode({"array": at_8k, "sampling_rate": 8_000})
    np.testing.assert_allclose(found, model.encode(soxr.resample(at_8k, 8_000, RATE, quality="HQ")), rtol=1e-5, atol=1e-6)
    assert np.abs(found - model.encode(at_8k)).max() > 1e-3


@pytest.mark.doors
def test_options_of_the_library(door, clips):
    plain = door.encode(clips)
    np.testing.assert_array_equal(door.encode(clips, truncate_dim=7), plain[:, :7])
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(door.encode(clips, normalize_embeddings=True), unit, rtol=1e-5)
    np.testing.assert_allclose(door.similarity(plain, plain), unit @ unit.T, atol=1e-5)
    assert torch.equal(door.encode(clips, convert_to_tensor=True), torch.from_numpy(plain))
    assert door.get_embedding_dimension() == 20
    with pytest.warns(FutureWarning):
        assert door.get_sentence_embedding_dimension() == 20
    assert door.encode(clips, precision="ubinary").shape == (7, 3)


@pytest.mark.doors
def test_quiet_clips_can_be_scaled(model, door, waves):
    quiet = 1e-5 * waves(8_000)[0]
    found = door.encode([quiet], processing_kwargs={"audio": {"scale_quiet": True}})
    np.testing.assert_allclose(found, model.encode([quiet], scale_quiet=True), rtol=1e-5, atol=1e-6)


@pytest.mark.doors
def test_prompts_are_refused_with_a_reason(folder, door, clips):
    library = pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="The prompt 'query: ' cannot be used: this model embeds speech and reads no text"):
        door.encode(clips, prompt="query: ")
    prompted = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", prompts={"query": "find: "})
    with pytest.raises(ValueError, match="The prompt 'find: ' cannot be used"):
        prompted.encode_query(clips)
    np.testing.assert_array_equal(door.encode_query(clips), door.encode(clips))


@pytest.mark.doors
def test_bad_clips_are_named(door, waves, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"bad\.wav: cannot be read as audio"):
        door.encode([str(tmp_path / "bad.wav")])
    with pytest.raises(ValueError, match="has 100 samples"):
        door.encode([waves(100)[0]])


@pytest.mark.doors
def test_a_saved_copy_keeps_vectors_and_settings(folder, clips, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    door = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", truncate_dim=7)
    door.save_pretrained(str(tmp_path))
    again = library.SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert again.get_embedding_dimension() == 7
    np.testing.assert_array_equal(again.encode(clips), door.encode(clips))


@pytest.mark.doors
def test_it_trains(folder, clips):
    """A loss of the library on two clips reaches FC2."""
    library = pytest.importorskip("sentence_transformers")
    door = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    features = door.preprocess(clips[:2])
    first, second = door(features)["sentence_embedding"]
    torch.cosine_similarity(first, second, dim=0).backward()
    assert door[0].model.downstream.embedding_projection.weight.grad.abs().max() > 0


@pytest.mark.doors
def test_the_page(waves, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", waves(16_000)[0], RATE)
    names = run_first_block("sentence_transformers.md")
    assert names["embeddings"].shape == (2, WavCSEConfig.from_pretrained(tmp_path).embedding_size)
    assert names["door"].similarity(names["embeddings"], names["embeddings"])[0, 1] == pytest.approx(1, abs=1e-3)
