"""`WavCSEFeatureExtractor`: transformers' numbers, and one defined answer for every kind of bad input."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, feature_extraction_wavcse
from wavcse.feature_extraction_wavcse import as_int16

RATE = 16_000


@pytest.fixture
def extractor():
    return WavCSEFeatureExtractor()


@pytest.mark.parametrize("padding", [{}, {"pad_to_multiple_of": 1000}, {"padding": "max_length", "max_length": 20_000}])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_equals_transformers(waves, padding, do_normalize):
    clips = [0.3 + clip for clip in waves(400, 16_000, 7_000, 16_000)]
    ours = WavCSEFeatureExtractor(do_normalize=do_normalize)(clips, sampling_rate=RATE, return_tensors="np", **padding)
    theirs = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)(
        clips, sampling_rate=RATE, return_tensors="np", **{"padding": True, **padding}
    )
    np.testing.assert_allclose(ours["input_values"], theirs["input_values"], atol=1e-6)
    np.testing.assert_array_equal(ours["attention_mask"], theirs["attention_mask"])
    assert (ours["input_values"].dtype, ours["attention_mask"].dtype) == (np.float32, np.int32)


def test_normalises_each_clip_over_its_own_samples(extractor, waves):
    batch = extractor([10 * clip for clip in waves(3_000, 9_000)], sampling_rate=RATE, return_tensors="np")
    for row, length in zip(batch["input_values"], (3_000, 9_000)):
        assert row[:length].mean() == pytest.approx(0, abs=1e-5)
        assert row[:length].std() == pytest.approx(1, abs=1e-4)
        assert (row[length:] == 0).all()
    assert batch["attention_mask"].sum(axis=1).tolist() == [3_000, 9_000]


FORMS = {
    "list of arrays": lambda clips: clips,
    "tuple": tuple,
    "2-D array": np.stack,
    "tensor": lambda clips: torch.from_numpy(np.stack(clips)),
    "list of tensors": lambda clips: [torch.from_numpy(clip) for clip in clips],
    "lists of floats": lambda clips: [clip.tolist() for clip in clips],
    "float64": lambda clips: [clip.astype(np.float64) for clip in clips],
    "object array": lambda clips: pd.Series(clips).to_numpy(),
    "series of arrays": pd.Series,
    "iterator": iter,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_batch(extractor, waves, form):
    clips = waves(2_000, 2_000)
    expected = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_values
    result = extractor(FORMS[form](clips), sampling_rate=RATE, return_tensors="pt").input_values
    assert torch.equal(result, expected)


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor, np.ndarray.tolist, pd.Series])
def test_one_clip_is_a_batch_of_one(extractor, waves, form):
    clip = waves(2_000)[0]
    result = extractor(form(clip), sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(result["input_values"], extractor([clip], sampling_rate=RATE)["input_values"])
    assert result["input_values"].shape == (1, 2_000)


def test_truncation_cuts_before_normalising(extractor, waves):
    clip = waves(5_000)[0]
    cut = extractor(clip, sampling_rate=RATE, padding="max_length", max_length=1_000, truncation=True, return_tensors="np")
    np.testing.assert_array_equal(cut["input_values"], extractor(clip[:1_000], sampling_rate=RATE)["input_values"])


def test_round_trip(tmp_path):
    config = WavCSEConfig(sampling_rate=8_000, do_normalize=False, max_duration_s=9.0)
    WavCSEFeatureExtractor.from_config(config).save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(again) is WavCSEFeatureExtractor
    assert (again.sampling_rate, again.do_normalize, again.max_duration_s, again.min_samples) == (8_000, False, 9.0, 400)
    assert again.return_attention_mask is True


# ---- bad input: one test per row of the table in docs/architecture.md ----


def test_wrong_rate(extractor, waves):
    with pytest.raises(ValueError, match="at 8000 Hz, but the model was trained at 16000 Hz. Resample"):
        extractor(waves(2_000), sampling_rate=8_000)


def test_missing_rate_warns(extractor, waves, log):
    clips = waves(2_000)
    without = extractor(clips)
    assert "No `sampling_rate` was given" in log.text
    np.testing.assert_array_equal(without["input_values"], extractor(clips, sampling_rate=RATE)["input_values"])


def test_given_rate_does_not_warn(extractor, waves, log):
    extractor(waves(2_000), sampling_rate=RATE)
    assert log.text == ""


@pytest.mark.parametrize(
    "clips", [np.zeros(0), [], [np.zeros(0)], [[]]], ids=["array", "list", "array in list", "list in list"]
)
def test_empty(extractor, clips):
    with pytest.raises(ValueError, match="clip 0: is empty"):
        extractor(clips, sampling_rate=RATE)


@pytest.mark.parametrize("samples", [1, 399])
def test_shorter_than_the_receptive_field(extractor, waves, samples):
    with pytest.raises(ValueError, match=rf"clip 1: has {samples} samples .* at least 400.*Pad"):
        extractor(waves(400, samples), sampling_rate=RATE)


def test_shortest_clip_is_embedded(tiny_model, embed, waves):
    assert embed(tiny_model(), waves(400)).isfinite().all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(extractor, waves, value):
    clips = waves(2_000, 2_000)
    clips[1][123] = value
    with pytest.raises(ValueError, match="clip 1: holds NaN or infinity .*sample 123"):
        extractor(clips, sampling_rate=RATE)


@pytest.mark.parametrize("device", ["cpu", "like a GPU"])
@pytest.mark.parametrize(("value", "message"), [(1e29, "beyond any audio format"), (1e6, "outweigh all others")])
def test_absurd_samples(extractor, waves, monkeypatch, device, value, message):
    clips = waves(2_000, 2_000)
    clips[1][123] = value
    if device != "cpu":
        monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)
    with pytest.raises(ValueError, match=f"clip 1: sample 123 is 1e.* {message}"):
        extractor(clips, sampling_rate=RATE, return_tensors="pt", device="cpu")


@pytest.mark.parametrize("device", ["cpu", "like a GPU"])
def test_the_loudest_clip_that_is_served_is_normalised_like_any(extractor, waves, monkeypatch, device):
    clip = waves(2_000)[0]
    loudest = clip * np.float32(2**31 / np.abs(clip).max())
    if device != "cpu":
        monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)
    of_both = extractor([100 * clip, loudest], sampling_rate=RATE, return_tensors="pt", device="cpu")["input_values"]
    torch.testing.assert_close(of_both[0], of_both[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "like a GPU"])
def test_quiet_clips_can_be_scaled_before_they_are_normalised(extractor, waves, monkeypatch, device):
    clip = waves(2_000)[0]
    if device != "cpu":
        monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)
    options = {"sampling_rate": RATE, "return_tensors": "pt", "device": "cpu"}
    clips = [clip, clip * np.float32(1e-5), np.zeros_like(clip)]
    plain, scaled = extractor(clips, **options), extractor(clips, scale_quiet=True, **options)
    assert plain["input_values"].std(dim=1).tolist() == pytest.approx([1, 0.0032, 0], abs=1e-3)
    assert scaled["input_values"].std(dim=1).tolist() == pytest.approx([1, 1, 0], abs=1e-3)
    torch.testing.assert_close(scaled["input_values"][1], plain["input_values"][0], rtol=0, atol=1e-4)
    assert torch.equal(scaled["input_values"][0], plain["input_values"][0])


def test_clips_that_come_with_their_rate_are_read_and_resampled(extractor, waves, tmp_path, log):
    first, second = waves(4_000, 3_000)
    soundfile.write(tmp_path / "first.wav", first, RATE, subtype="FLOAT")
    at_8k = {"array": second, "sampling_rate": 8_000}
    expected = extractor(
        [first, soxr.resample(second, 8_000, RATE, quality="HQ"), first], sampling_rate=RATE, return_tensors="np"
    )
    log.clear()
    path = tmp_path / "first.wav"
    found = extractor([path, at_8k, path.read_bytes()], return_tensors="np")  # no rate is missing
    assert log.text == ""
    np.testing.assert_array_equal(found["input_values"], expected["input_values"])
    found = extractor([str(path), at_8k, first], sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(found["input_values"], expected["input_values"])
    with pytest.raises(ValueError, match="at 8000 Hz, but the model was trained at 16000 Hz"):
        extractor([at_8k, first], sampling_rate=8_000)
    extractor([str(path)], sampling_rate=8_000)  # a file says its own


def test_a_long_file_is_cut_where_truncation_is_asked_for(waves, tmp_path):
    (clip,) = waves(20_000)
    soundfile.write(tmp_path / "long.wav", clip, RATE, subtype="FLOAT")
    extractor = WavCSEFeatureExtractor(max_duration_s=1.0)
    with pytest.raises(ValueError, match=r"long\.wav: lasts 1.2 s, more than max_duration_s=1"):
        extractor(tmp_path / "long.wav")
    cut = extractor(tmp_path / "long.wav", truncation=True, max_length=5_000, padding="max_length")
    np.testing.assert_array_equal(cut["input_values"], extractor(clip[:5_000], sampling_rate=RATE)["input_values"])


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (["clip.wav"], r"clip\.wav: cannot be read as audio \(No such file"),
        ([None], r"clip 0: is missing \(None\)"),
        ([b"RIFF"], "clip 0: cannot be read as audio"),
        ([np.zeros(800), {"array": np.zeros(800)}], "clip 1: 'sampling_rate' is missing beside 'array'"),
    ],
    ids=["no file", "None", "no audio", "no rate"],
)
def test_what_cannot_be_read(extractor, clips, message):
    with pytest.raises(ValueError, match=message):
        extractor(clips, sampling_rate=RATE)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integer_pcm_equals_floats(dtype, waves):
    extractor = WavCSEFeatureExtractor(do_normalize=False)
    clip = waves(2_000)[0]
    pcm = np.round(clip * (np.iinfo(dtype).max + 1)).astype(dtype)
    batch = extractor([pcm, clip], sampling_rate=RATE, return_tensors="np")["input_values"]
    np.testing.assert_allclose(batch[0], batch[1], atol=2**-16)


@pytest.mark.parametrize("clip", [np.zeros(800, np.uint8), np.zeros(800, np.int64), [0] * 800], ids=["uint8", "int64", "list"])
def test_other_integers(extractor, clip):
    with pytest.raises(ValueError, match="clip 0: has dtype u?int.*PCM as int16 or int32"):
        extractor(clip, sampling_rate=RATE)


@pytest.mark.parametrize(
    ("clips", "advice"),
    [
        (np.zeros((1, 2, 2_000)), r"clip 0: has shape \(2, 2000\).*Average the channels"),
        ([np.zeros(800), np.zeros((2_000, 2))], r"clip 1: has shape \(2000, 2\).*Average the channels"),
        (np.zeros((2_000, 2)), "clip 0: has 2 samples.*average its channels"),
    ],
    ids=["batch of stereo", "stereo in a list", "samples x channels"],
)
def test_stereo(extractor, clips, advice):
    with pytest.raises(ValueError, match=advice):
        extractor(clips, sampling_rate=RATE)


def test_clips_keep_their_length_until_tensors_are_asked_for(waves):
    """As in transformers, whose training scripts pad later, by `pad`; else the padding would be taken for audio there."""
    extractor, clips = WavCSEFeatureExtractor(), waves(4_000, 6_000)
    plain = extractor(clips, sampling_rate=RATE)["input_values"]
    assert [len(values) for values in plain] == [4_000, 6_000]
    later = extractor.pad([{"input_values": values, "labels": 0} for values in plain], return_tensors="pt")
    at_once = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    assert all(torch.equal(later[name], at_once[name]) for name in at_once)


def test_silence_has_a_finite_embedding(tiny_model, embed, waves):
    silent = embed(tiny_model(), [np.zeros(4_000, np.float32), *waves(4_000)])
    assert silent.isfinite().all()
    assert (silent[0] - silent[1]).abs().max() > 0.01


def test_absurdly_long(waves):
    extractor = WavCSEFeatureExtractor(max_duration_s=0.5)
    assert extractor(waves(8_000), sampling_rate=RATE)["input_values"][0].shape == (8_000,)
    with pytest.raises(ValueError, match="clip 1: lasts 1.0 s, more than max_duration_s=0.5. Cut it"):
        extractor(waves(8_000, 16_000), sampling_rate=RATE)


# ---- on the way to a GPU ----


@pytest.fixture
def sent(monkeypatch):
    """Extractors treat the CPU like a GPU."""
    monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)


@pytest.mark.parametrize("kind", ["16-bit", "float32", "silence"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_a_device_gets_what_a_cpu_gets(sent, waves, kind, do_normalize):
    clips = waves(8_000, 3_000, 400)
    if kind == "16-bit":
        clips = [(np.rint(clip / np.abs(clip).max() * 32_767) / 32_768).astype(np.float32) for clip in clips]
    if kind == "silence":
        clips = [np.zeros_like(clip) for clip in clips]
    extractor = WavCSEFeatureExtractor(do_normalize=do_normalize)
    on_device = extractor(clips, sampling_rate=16_000, return_tensors="pt", device="cpu")
    expected = extractor(
        clips, sampling_rate=16_000, padding="max_length", max_length=8_000, return_tensors="pt", device="cpu"
    )
    assert on_device["attention_mask"].dtype == torch.int32
    assert torch.equal(on_device["attention_mask"], expected["attention_mask"])
    torch.testing.assert_close(
        on_device["input_values"], expected["input_values"], rtol=0, atol=0 if not do_normalize else 2e-6
    )


@pytest.mark.parametrize("where", ["cpu", "like a GPU"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_prepared_clips_are_those_of_a_batch_without_its_padding(waves, monkeypatch, where, do_normalize):
    if where != "cpu":
        monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)
    clips, extractor = waves(8_000, 3_000, 400), WavCSEFeatureExtractor(do_normalize=do_normalize)
    clips[1] *= np.float32(1e-5)
    batch = extractor(clips, sampling_rate=RATE, return_tensors="pt", device="cpu", scale_quiet=True)["input_values"]
    prepared = extractor.prepare(clips, "cpu", scale_quiet=True)
    assert [len(waveform) for waveform in prepared] == [8_000, 3_000, 400]
    assert all(torch.equal(waveform, row[: len(waveform)]) for waveform, row in zip(prepared, batch))
    assert torch.equal(extractor.prepare(clips[:1], "cpu")[0], batch[0])


def test_samples_travel_in_16_bits_only_where_that_is_exact(waves):
    pcm = np.array([-32_768, -1, 0, 1, 32_767], dtype=np.int16)
    as_floats = (pcm / 32_768).astype(np.float32)
    np.testing.assert_array_equal(as_int16(as_floats), pcm)
    assert as_int16(as_floats * np.float32(1.1)) is None
    assert as_int16(np.array([0.5, 1.0], dtype=np.float32)) is None  # 32768 is out of range
    (clip,) = waves(1_000)
    assert as_int16(clip) is None


def test_embeddings_through_the_device_path(monkeypatch, tiny_model, waves):
    model, clips = tiny_model(), waves(8_000, 3_000)
    expected = model.encode(clips)
    monkeypatch.setattr(feature_extraction_wavcse, "_is_cpu", lambda device: False)
    through = model.encode(clips)
    assert not np.array_equal(through, expected)  # it went the other way
    np.testing.assert_allclose(through, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
