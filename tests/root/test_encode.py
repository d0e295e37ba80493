"""`model.encode`: every kind of input, one or many, equal to the model's own forward pass."""

import io
import logging
import re
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch
from transformers.utils import logging as transformers_logging

from wavcse import WavCSEFeatureExtractor
from wavcse.pipeline_wavcse import WavCSEFeatureExtractionPipeline

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


class Decoder:
    """The interface of torchcodec's `AudioDecoder`, which columns of `datasets` hold."""

    def __init__(self, *channels, rate=16_000):
        self.channels, self.rate = channels, rate

    def get_all_samples(self):
        if not self.channels:
            raise RuntimeError("the stream is broken")
        return SimpleNamespace(data=torch.from_numpy(np.stack(self.channels)), sample_rate=self.rate)


def objects(*items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


ONE_CLIP = {
    "tensor with gradient": lambda clip, path: torch.from_numpy(clip).requires_grad_(),
    "bfloat16 tensor": lambda clip, path: torch.from_numpy(clip).bfloat16(),
    "float64": lambda clip, path: clip.astype(np.float64),
    "list of floats": lambda clip, path: clip.tolist(),
    "object array of floats": lambda clip, path: clip.astype(object),
    "series of floats": lambda clip, path: pd.Series(clip),
    "nullable series": lambda clip, path: pd.Series(clip, dtype="Float32"),
    "list of 0-d tensors": lambda clip, path: list(torch.from_numpy(clip).bfloat16()),
    "BytesIO": lambda clip, path: io.BytesIO(path.read_bytes()),
    "open file": lambda clip, path: open(path, "rb"),
    "memoryview": lambda clip, path: memoryview(path.read_bytes()),
    "mapping of a list": lambda clip, path: {"raw": clip.tolist(), "sampling_rate": "16000"},
    "mapping with empty bytes": lambda clip, path: {"bytes": b"", "path": str(path)},
    "decoder": lambda clip, path: Decoder(clip),
    "decoder of two channels": lambda clip, path: Decoder(1.5 * clip, 0.5 * clip),
}


@pytest.fixture
def clip_and_path(waves, tmp_path):
    """A clip whose samples bfloat16 holds exactly, and the same as a file."""
    clip = torch.from_numpy(waves(8_000)[0]).bfloat16().float().numpy()
    soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
    return clip, tmp_path / "clip.wav"


@pytest.mark.parametrize("form", ONE_CLIP)
def test_every_form_of_a_clip_gives_the_same_vector_alone_and_in_a_list(model, clip_and_path, form):
    given, expected = ONE_CLIP[form](*clip_and_path), model.encode(clip_and_path[0])
    for _ in range(2):  # an open file can be read again
        np.testing.assert_array_equal(model.encode(given), expected)
    np.testing.assert_array_equal(model.encode([given]), expected[None])


MANY_CLIPS = {
    "series of paths": lambda clip, path: pd.Series([str(path), str(path)]),
    "series of strings": lambda clip, path: pd.Series([str(path), str(path)], dtype="string"),
    "categories": lambda clip, path: pd.Series([str(path), str(path)], dtype="category"),
    "array of paths": lambda clip, path: objects(path, path),
    "array of text": lambda clip, path: np.array([str(path), str(path)]),
    "object array of clips": lambda clip, path: objects(clip, clip),
    "column of paths": lambda clip, path: datasets.Dataset.from_dict({"file": [str(path)] * 2})["file"],
    "column of samples": lambda clip, path: datasets.Dataset.from_dict({"audio": [clip.tolist()] * 2})["audio"],
    "decoders": lambda clip, path: [Decoder(clip), Decoder(clip)],
    "2-D bfloat16 tensor": lambda clip, path: torch.from_numpy(np.stack([clip, clip])).bfloat16(),
    "iterator": lambda clip, path: iter([path, clip.tolist()]),
    "tuple": lambda clip, path: (path, clip),
}


@pytest.mark.parametrize("form", MANY_CLIPS)
def test_every_form_of_many_clips_gives_the_same_vectors(model, clip_and_path, form):
    clip, _ = clip_and_path
    np.testing.assert_array_equal(model.encode(MANY_CLIPS[form](*clip_and_path)), model.encode([clip, clip]))


@pytest.fixture(scope="module")
def pipe(model):
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    return WavCSEFeatureExtractionPipeline(model=model, feature_extractor=feature_extractor, task="feature-extraction")


def test_the_pipeline_takes_what_encode_takes(pipe, clip_and_path):
    clip, path = clip_and_path
    expected = pipe(clip)
    for form in ("list of floats", "bfloat16 tensor", "BytesIO", "series of floats", "decoder"):
        assert pipe(ONE_CLIP[form](clip, path)) == expected, form
    for form in ("series of paths", "array of paths", "column of samples", "decoders", "tuple"):
        assert pipe(MANY_CLIPS[form](clip, path)) == [expected, expected], form
    assert list(pipe(clip for clip in [clip, path])) == [expected, expected]
    assert pipe([]) == []


REFUSED = {
    "nothing": (lambda clip, path: None, "The input is of type NoneType. Give one clip or a list of clips"),
    "a number": (lambda clip, path: 3, "The input is of type int"),
    "a set": (lambda clip, path: {str(path)}, "is a set, which has no order"),
    "a table": (lambda clip, path: pd.DataFrame({"file_name": [str(path)]}), "is a table (DataFrame). Give the column"),
    "a dataset": (lambda clip, path: datasets.Dataset.from_dict({"a": [1]}), "is a table (Dataset). Give the column"),
    "array and rate": (lambda clip, path: (clip, 16_000), "clip 1: has shape (), a single number"),
    "missing path": (lambda clip, path: pd.Series([str(path), None]), "clip 1: is missing (nan). Drop its row"),
    "text file": (
        lambda clip, path: open(path, encoding="latin-1"),
        'clip 0: the file is open as text; open it with open(path, "rb")',
    ),
    "closed file": (lambda clip, path: closed(path), "clip 0: the open file cannot be read (read of closed file)"),
    "file at its end": (lambda clip, path: io.BytesIO(b""), "clip 0: the open file has nothing left to read"),
    "array of bytes": (lambda clip, path: np.array([b"RIFF"]), "array of bytes, from which NumPy drops zeros"),
    "masked": (lambda clip, path: np.ma.masked_less(clip, 0), "holds masked samples"),
    "sparse tensor": (lambda clip, path: torch.from_numpy(clip).to_sparse(), "cannot be read as an array of samples (Tensor:"),
    "ragged": (lambda clip, path: [[[0.1], [0.1, 0.2]]], "clip 0: cannot be read as an array of samples (list:"),
    "paths inside": (lambda clip, path: [[str(path)] * 2], "clip 0: has dtype <U"),
    "complex": (lambda clip, path: clip + 1j, "clip 0: has dtype complex64"),
    "broken decoder": (lambda clip, path: Decoder(), "clip 0: cannot be decoded (the stream is broken)"),
    "row of a dataset": (lambda clip, path: {"audio": {"array": clip}}, "'bytes' or 'path'; this one has 'audio'"),
    "array as bytes": (lambda clip, path: {"bytes": clip}, "'bytes' or 'path' holds ndarray; give an array as 'array'"),
    "rate in words": (
        lambda clip, path: {"array": clip, "sampling_rate": "fast"},
        "'sampling_rate' is 'fast'; it must be a whole",
    ),
    "broken rate": (
        lambda clip, path: {"array": clip, "sampling_rate": 22050.5},
        "'sampling_rate' is 22050.5; it must be a whole",
    ),
    "absurd rate": (
        lambda clip, path: {"array": clip, "sampling_rate": 1},
        "'sampling_rate' is 1; it must be a whole number of Hz",
    ),
}


def closed(path):
    with open(path, "rb") as file:
        return file


@pytest.mark.parametrize("form", REFUSED)
def test_what_holds_no_clip_is_refused_in_its_own_words(model, pipe, clip_and_path, form):
    make, message = REFUSED[form]
    for call in (model.encode, pipe):
        with pytest.raises(ValueError) as caught:
            call(make(*clip_and_path))
        # The pipeline sees one clip at a time, so it does not know their positions.
        assert (re.sub(r"^clip \d: ", "", message) if call is pipe else message) in str(caught.value)


def test_without_return_dict(tiny_model, waves):
    model, (clip,) = tiny_model("wavlm", "group"), waves(8_000)
    expected = model.encode(clip)
    model.config.return_dict = False
    np.testing.assert_array_equal(model.encode(clip), expected)
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    pipe = WavCSEFeatureExtractionPipeline(model=model, feature_extractor=feature_extractor, task="feature-extraction")
    np.testing.assert_allclose(pipe(clip)[0], expected, rtol=1e-6)


def test_autocast_around_it_changes_nothing(model, pipe, waves):
    (clip,) = waves(8_000)
    expected = model.encode(clip), pipe(clip)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(model.encode(clip), expected[0])
        assert pipe(clip) == expected[1]


def test_autocast_around_the_model_reaches_the_layers_after_the_upstream_only(model, waves):
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    inputs = feature_extractor(waves(8_000), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs)
        with torch.autocast("cpu", torch.bfloat16):
            inside = model(**inputs)
    assert torch.equal(inside.pooled_layers, plain.pooled_layers)
    assert (plain.embeddings.dtype, inside.embeddings.dtype) == (torch.float32, torch.bfloat16)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("do_normalize", [True, False])
def test_quiet_speech_drifts_to_silence_unless_it_is_scaled(tiny_model, waves, log, do_normalize):
    model, (clip,) = tiny_model("wavlm", "group", do_normalize=do_normalize), waves(8_000)
    loud, silent = model.encode(clip), model.encode(np.zeros_like(clip))
    assert "quieter" not in log.text
    for gain in (1e-3, 1e-6):
        quiet = model.encode([clip, clip * np.float32(gain)])[1]
        assert cosine(quiet, silent) > cosine(loud, silent)
        assert "1 of 2 clips are quieter than -60 dB of full scale" in log.text
        log.clear()
        scaled = model.encode(clip * np.float32(gain), scale_quiet=True)
        centred = clip - clip.mean()
        np.testing.assert_allclose(scaled, model.encode(centred * (0.1 / centred.std())), atol=1e-5 * np.abs(loud).max())
        assert log.text == ""
    np.testing.assert_array_equal(model.encode(clip, scale_quiet=True), loud)  # not quiet: not a bit changes
    np.testing.assert_array_equal(model.encode(np.zeros_like(clip), scale_quiet=True), silent)


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
    for wrong in (0, None, "long"):
        with pytest.raises(ValueError, match=f"batch_seconds is {wrong}; it must be a positive number"):
            model.encode(good, batch_seconds=wrong)


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
