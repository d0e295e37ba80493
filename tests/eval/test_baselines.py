"""Baselines: MFCCs against an independent computation, the layers of a wavCSE model against its hidden states."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from wavcse import WavCSEFeatureExtractor, WavCSEModel
from wavcse.eval.baselines import BASELINES, build_encoders
from wavcse.eval.baselines.layers import BestLayerEncoder
from wavcse.eval.baselines.mfcc import PAPER_FRAMES, MFCCEncoder, deltas, mel_filters, mfcc
from wavcse.eval.encoder import WavCSEEncoder, check_encoder, untrain


def to_mel(frequency_hz: np.ndarray | float) -> np.ndarray | float:
    return 2595 * np.log10(1 + frequency_hz / 700)


def mfcc_by_definition(waveform: np.ndarray) -> np.ndarray:
    """MFCCs from SciPy's periodogram, mel edges and filters by interpolation, and the DCT-II written as a sum."""
    window = scipy.signal.windows.hann(400, sym=False)
    frames = np.stack([waveform[start : start + 400] for start in range(0, len(waveform) - 399, 160)])
    _, power = scipy.signal.periodogram(frames, 16_000, window, 512, detrend=False, scaling="spectrum")
    power[:, 1:-1] /= 2  # one-sided: SciPy doubles what has a mirror image
    power *= window.sum() ** 2  # scaling="spectrum" divides by this
    grid_hz = np.linspace(0, 8000, 200_001)
    edges_hz = np.interp(np.linspace(0, to_mel(8000), 42), to_mel(grid_hz), grid_hz)
    bins_hz = np.arange(257) * 16_000 / 512
    log_mel = np.log([power @ np.interp(bins_hz, edges_hz[m : m + 3], [0, 1, 0]) for m in range(40)]).T
    k, n = np.arange(13)[:, None], np.arange(40)[None, :]
    basis = np.sqrt(2 / 40) * np.cos(np.pi * k * (2 * n + 1) / 80)
    basis[0] /= np.sqrt(2)
    return log_mel @ basis.T


def test_mfcc_equals_an_independent_computation(waves):
    (waveform,) = waves(4321)
    found = mfcc(waveform)
    assert found.shape == (1 + (4321 - 400) // 160, 13)
    np.testing.assert_allclose(found, mfcc_by_definition(waveform.astype(np.float64)), rtol=1e-6, atol=1e-6)


def test_a_tone_lands_in_its_mel_band():
    filters = mel_filters()
    assert filters.shape == (40, 257)
    tone_bin = 64  # 2 kHz; 2595 log10(1 + 2000 / 700) = 1521 mel, spacing 2840 / 41 = 69.3 mel: between bands 21 and 22
    assert set(np.flatnonzero(filters[:, tone_bin])) <= {20, 21}
    assert filters[:, tone_bin].sum() == pytest.approx(1.0, abs=0.05)


def test_deltas_equal_the_regression_formula():
    features = np.random.default_rng(0).standard_normal((9, 3))
    padded = np.pad(features, ((2, 2), (0, 0)), mode="edge")
    expected = [sum(n * (padded[t + 2 + n] - padded[t + 2 - n]) for n in (1, 2)) / 10 for t in range(9)]
    np.testing.assert_allclose(deltas(features), expected, atol=1e-12)
    np.testing.assert_allclose(deltas(np.arange(9.0)[:, None] * 3)[2:-2], 3.0)


def test_frames_of_the_evaluation_paper_hold_23_coefficients_two_deltas_and_five_neighbours_to_either_side(waves):
    """The numbers of Porjazovski et al. 2024, put together frame by frame."""
    (waveform,) = waves(4321)
    encoder = MFCCEncoder(**PAPER_FRAMES)
    (found,) = encoder.frames([waveform])
    coefficients = mfcc(waveform, 23)
    np.testing.assert_array_equal(coefficients[:, :13], mfcc(waveform))
    own = np.concatenate([coefficients, deltas(coefficients), deltas(deltas(coefficients))], axis=1)
    last = len(own) - 1
    expected = [np.concatenate([own[min(max(t + n, 0), last)] for n in range(-5, 6)]) for t in range(last + 1)]
    assert found.shape == (1 + (4321 - 400) // 160, 1, 3 * 23 * 11)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    (statistics,) = encoder.embed([waveform])
    np.testing.assert_allclose(statistics[: encoder.frame_size], found[:, 0].mean(axis=0), rtol=1e-4, atol=1e-5)
    assert encoder.embedding_size == len(statistics)


def test_mfcc_encoder_keeps_the_contract_and_serves_short_and_silent_clips(waves):
    encoder = MFCCEncoder()
    check_encoder(encoder)
    embeddings = encoder.embed([*waves(10, 400), np.zeros(8000, np.float32)])
    assert embeddings.shape == (3, 78)
    assert np.isfinite(embeddings).all()
    assert (embeddings[2, 39:] < 1e-6).all()  # silence has no variation


def test_mfcc_statistics_are_means_then_deviations(waves):
    (waveform,) = waves(8000)
    (embedding,) = MFCCEncoder().embed([waveform])
    coefficients = mfcc(waveform)
    np.testing.assert_allclose(embedding[:13], coefficients.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(embedding[39:52], coefficients.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(embedding[13:26], deltas(coefficients).mean(axis=0), atol=1e-6)


def test_majority_says_nothing_about_a_clip(waves):
    encoder = BASELINES["majority"](None)
    check_encoder(encoder)
    assert encoder.embed(waves(400, 800)).shape == (2, 0)


def hidden_states(model: WavCSEModel, waveform: np.ndarray) -> list[np.ndarray]:
    """Layers `[T, D]` of one clip, from the ordinary transformers module."""
    inputs = WavCSEFeatureExtractor.from_config(model.config)(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return [state[0].numpy() for state in model(**inputs, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize(("family", "norm"), [("wavlm", "layer"), ("wav2vec2", "group")])
def test_layers_of_a_model_are_the_time_means_of_its_hidden_states(family, norm, tiny_model, waves, tmp_path):
    model = tiny_model(family, norm, selected_layers=[3, 0, 1])  # the highest is not the last of the list
    model.save_pretrained(tmp_path)
    own, last, mean, best = build_encoders(str(tmp_path), "mine", ["last_layer", "mean_layers", "best_layer"])
    assert [encoder.name for encoder in (own, last, mean, best)] == ["mine", "last_layer", "mean_layers", "best_layer"]
    clips = waves(16_000, 4000)
    expected = np.array([[state.mean(axis=0) for state in hidden_states(model, clip)] for clip in clips])  # [N, L, D]
    np.testing.assert_allclose(last.embed(clips), expected[:, 3], atol=1e-5)
    np.testing.assert_allclose(mean.embed(clips), expected.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(best.embed(clips).reshape(2, 4, -1), expected, atol=1e-5)
    assert best.num_candidates == 4
    assert last.identity["layer"] == "3"
    assert best.identity == {**own.identity, "layers": "0-3"}
    for encoder in (own, last, mean, best):
        check_encoder(encoder)


def test_a_model_and_its_layers_cost_one_pass(tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    encoders = build_encoders(str(tmp_path), "wavcse", ["last_layer", "mean_layers", "best_layer"])
    calls = []
    encoders[0].model.register_forward_hook(lambda *_: calls.append(1))
    first, second = waves(4000, 5000), waves(4000, 5000, seed=1)
    for batch in (first, second):
        for encoder in encoders:
            encoder.embed(batch)
    assert len(calls) == 2
    np.testing.assert_array_equal(encoders[1].embed(first), encoders[1].embed(list(first)))


def test_reading_all_layers_changes_no_bit_of_the_embedding(tiny_model, waves, tmp_path):
    model = tiny_model(selected_layers=[3, 0, 2])
    model.save_pretrained(tmp_path)
    clips = waves(16_000, 5000, 700)
    inputs = WavCSEFeatureExtractor.from_config(model.config)(clips, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).embeddings.numpy()
    np.testing.assert_array_equal(WavCSEEncoder(str(tmp_path)).embed(clips), expected)


def test_layers_are_read_from_the_weights_of_the_model_itself(tiny_model, waves, tmp_path):
    """No second copy: what changes the model changes its layers from there on."""
    tiny_model(selected_layers=[0, 1, 3]).save_pretrained(tmp_path)
    own, best = build_encoders(str(tmp_path), "wavcse", ["best_layer"])
    clips = waves(5000)
    before = best.embed(clips).reshape(4, -1)
    with torch.no_grad():
        own.model.upstream.encoder.layers[1].feed_forward.output_dense.bias.add_(1.0)
    after = best.embed(list(clips)).reshape(4, -1)
    np.testing.assert_array_equal(after[:2], before[:2])
    assert (np.abs(after[2:] - before[2:]).max(axis=1) > 0.5).all()


def test_layers_need_a_model():
    for baseline in ("last_layer", "mean_layers", "best_layer"):
        with pytest.raises(ValueError, match="give --model"):
            BASELINES[baseline](None)


def test_frames_of_a_model_and_of_mfccs_have_the_pooled_layers_as_their_means(tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    clips = waves(16_000, 6_000)
    own = WavCSEEncoder(str(tmp_path))
    for frames, pooled in zip(own.frames(clips, [2, 0]), own.all_layers(clips)):
        np.testing.assert_allclose(frames.mean(axis=0), pooled[[2, 0]], atol=1e-5 * np.abs(pooled).max())
    for frames, statistics in zip(MFCCEncoder().frames(clips), MFCCEncoder().embed(clips)):
        np.testing.assert_allclose(frames[:, 0].mean(axis=0), statistics[:39], atol=1e-5 * np.abs(statistics).max())


def test_some_layers_are_read_in_the_order_asked_for_and_say_so(tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    own, clips = WavCSEEncoder(str(tmp_path)), waves(8_000, 6_000)
    whole, some = BestLayerEncoder(own), BestLayerEncoder(own, "some", [3, 1])
    np.testing.assert_array_equal(
        some.embed(clips).reshape(2, 2, -1), whole.embed(clips).reshape(2, whole.num_candidates, -1)[:, [3, 1]]
    )
    assert (whole.identity["layers"], some.identity["layers"], some.num_candidates) == ("0-3", "3,1", 2)
    with pytest.raises(ValueError, match="some: there is no layer 4; this model has 0 to 3"):
        BestLayerEncoder(own, "some", [4])


def test_an_untrained_twin_has_the_shape_and_other_weights_the_same_for_a_seed(tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    clips, vectors = waves(8_000), []
    for seed in (None, 1, 1, 2):
        own = WavCSEEncoder(str(tmp_path))
        if seed is not None:
            untrain(own.model, seed)
        vectors.append(own.embed(clips))
    np.testing.assert_array_equal(vectors[1], vectors[2])
    assert all(np.abs(vectors[1] - other).max() > 1e-3 for other in (vectors[0], vectors[3]))
