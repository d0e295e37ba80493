"""HEAR 2021 and X-ARES: their own checks, and the vectors of `encode`."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from wavcse.doors import hear
from wavcse.doors.xares import WavCSEXaresEncoder
from wavcse.tests.helpers.door_pages import link_root, run_first_block


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("wavlm", "layer")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audio(waves) -> torch.Tensor:
    return torch.from_numpy(np.stack(waves(16_000, 16_000, 16_000)))


def test_hear_gives_the_embedding_and_the_frames(model, folder, audio):
    loaded = hear.load_model(str(folder))
    assert (loaded.sample_rate, loaded.scene_embedding_size, loaded.timestamp_embedding_size) == (16_000, 20, 32)
    scene = hear.get_scene_embeddings(audio, loaded)
    np.testing.assert_allclose(scene.numpy(), model.encode(audio), rtol=1e-5, atol=1e-6)
    frames, times = hear.get_timestamp_embeddings(audio, loaded)
    assert (frames.shape, times.shape) == ((3, 49, 32), (3, 49))
    np.testing.assert_allclose(times[1].numpy(), 12.5 + 20 * np.arange(49))
    with torch.no_grad():
        pooled = model.pool_layers([(row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt() for row in audio])
    torch.testing.assert_close(frames.mean(dim=1), pooled.mean(dim=1), rtol=0, atol=1e-5)


def test_hear_says_what_is_missing(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="name the folder or the Hub id"):
        hear.load_model()
    tiny_model("wavlm", "layer", sampling_rate=8_000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 8000 Hz; HEAR has 16000, 22050"):
        hear.load_model(str(tmp_path))


@pytest.mark.doors
def test_hears_own_validator_accepts_it(folder, monkeypatch):
    no_tensorflow = types.ModuleType("tensorflow")  # the validator asks which of the two a model is of
    no_tensorflow.Module, no_tensorflow.float32 = type("Module", (), {}), None
    monkeypatch.setitem(sys.modules, "tensorflow", no_tensorflow)
    pytest.importorskip("hearvalidator")
    validate = importlib.import_module("hearvalidator.validate")
    validate.ValidateModel("wavcse.doors.hear", str(folder), device="cpu")()


def test_the_page(tmp_path, monkeypatch):
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run_first_block("benchmarks.md")
    assert names["frames"].shape[:2] == names["times_ms"].shape


@pytest.mark.parametrize("frames", [False, True])
def test_xares_takes_the_embedding_or_the_frames(model, folder, audio, frames):
    encoder = WavCSEXaresEncoder(str(folder), frames=frames)
    found = encoder(audio)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16_000, 20.0)
    assert found.shape == (3, 49 if frames else 1, encoder.output_dim)
    if frames:
        expected = np.stack([own.frames.mean(axis=1) for own in model.encode_frames(audio)])
    else:
        expected = model.encode(audio)[:, None]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.doors
@pytest.mark.parametrize("frames", [False, True])
def test_xares_own_check_accepts_it(folder, frames):
    check = pytest.importorskip("xares.audio_encoder_checker")
    assert check.check_audio_encoder(WavCSEXaresEncoder(str(folder), frames=frames))
