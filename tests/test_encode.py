"""`model.encode`: every kind of input, one or many, equal to the model's own forward pass."""

import logging

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers.utils import logging as transformers_logging

LENGTHS = (8_000, 3_000, 16_000, 400, 5_000)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("wavlm", "group")


def test_a_list_gives_a_matrix_in_input_order(model, waves, embed):
    clips = waves(*LENGTHS)
    result = model.encode(clips)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, embed(model, clips).numpy(), atol=1e-5)
    for i in (4, 0, 2):
        np.testing.assert_allclose(model.encode([clips[i]])[0], result[i], atol=1e-5)


def test_one_clip_gives_a_vector(model, waves):
    clip = waves(8_000)[0]
    assert model.encode(clip).shape == (20,)
    np.testing.assert_array_equal(model.encode(clip), model.encode([clip])[0])
    np.testing.assert_array_equal(model.encode(torch.from_numpy(clip)), model.encode(clip))
    np.testing.assert_allclose(model.encode(np.stack([clip, clip]))[1], model.encode(clip), atol=1e-6)


def test_every_kind_of_input(model, waves, tmp_path):
    clip = waves(8_000)[0]
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, 16_000, subtype="FLOAT")
    expected = model.encode(clip)
    for same in (path, str(path), path.read_bytes(), {"array": clip, "sampling_rate": 16_000}, {"path": str(path)}):
        np.testing.assert_array_equal(model.encode(same), expected)
    at_8k = soxr.resample(clip, 16_000, 8_000, quality="HQ")
    back = soxr.resample(at_8k, 8_000, 16_000, quality="HQ")
    np.testing.assert_array_equal(model.encode({"array": at_8k, "sampling_rate": 8_000}), model.encode(back))
    assert model.encode([path, clip, {"array": at_8k, "sampling_rate": 8_000}]).shape == (3, 20)


@pytest.mark.parametrize("batch_seconds", [0.01, 0.7, 1000.0])
def test_the_batch_does_not_change_the_result(model, waves, batch_seconds):
    clips = waves(*LENGTHS)
    np.testing.assert_allclose(model.encode(clips, batch_seconds=batch_seconds), model.encode(clips), atol=1e-6)


def test_options(model, waves):
    clips = waves(8_000, 3_000)
    plain = model.encode(clips)
    np.testing.assert_array_equal(model.encode(clips, truncate_dim=7), plain[:, :7])
    unit = model.encode(clips, normalize_embeddings=True, truncate_dim=7)
    np.testing.assert_allclose(unit, plain[:, :7] / np.linalg.norm(plain[:, :7], axis=1, keepdims=True), rtol=1e-5)
    tensor = model.encode(clips, convert_to_numpy=False)
    torch.nn.Linear(tensor.shape[1], 2)(tensor).sum().backward()  # a head can train on it
    assert torch.equal(tensor, torch.from_numpy(plain))
    low = model.encode(clips, precision="bfloat16")
    assert not np.array_equal(low, plain)
    cosine = (low * plain).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(plain, axis=1)
    assert cosine.min() > 0.99


def test_training_mode_and_gradients_do_not_reach_the_result(tiny_model, waves):
    model = tiny_model(freeze_upstream=False, layer_dropout=0.9)
    expected = model.encode(waves(4_000))
    np.testing.assert_array_equal(model.train().encode(waves(4_000)), expected)


def test_no_clips_give_an_empty_matrix(model):
    assert model.encode([]).shape == (0, 20)


def test_bad_input_names_the_clip(model, waves, tmp_path):
    good = waves(8_000)[0]
    (tmp_path / "bad.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"bad\.wav: cannot be read as audio"):
        model.encode([good, tmp_path / "bad.wav"])
    with pytest.raises(ValueError, match="clip 1: has 100 samples"):
        model.encode([good, good[:100]])
    with pytest.raises(ValueError, match="truncate_dim is 21; it must lie in 1..20"):
        model.encode(good, truncate_dim=21)
    with pytest.raises(ValueError, match="batch_seconds is 0"):
        model.encode(good, batch_seconds=0)


def test_the_progress_bar_follows_the_log_level(model, waves, capsys):
    transformers_logging.enable_progress_bar()
    model.encode(waves(4_000, 4_000), show_progress_bar=True)
    assert "encode" in capsys.readouterr().err
    level = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity(logging.WARNING)
        model.encode(waves(4_000))
        assert capsys.readouterr().err == ""
    finally:
        transformers_logging.set_verbosity(level)
