"""Baselines: MFCCs against an independent computation, the last layer against the model's hidden states."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from wavcse import WavCSEFeatureExtractor
from wavcse.eval.baselines import BASELINES
from wavcse.eval.baselines.mfcc import MFCCEncoder, deltas, mel_filters, mfcc
from wavcse.eval.encoder import WavCSEEncoder, check_encoder


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


def test_last_layer_is_the_time_mean_of_the_highest_selected_layer(tiny_model, waves, tmp_path):
    model = tiny_model(selected_layers=[3, 0, 1])  # the highest is not the last of the list
    model.save_pretrained(tmp_path)
    encoder = WavCSEEncoder(str(tmp_path))
    baseline = BASELINES["last_layer"](encoder)
    check_encoder(baseline)
    (waveform,) = waves(16_000)
    inputs = WavCSEFeatureExtractor.from_config(model.config)(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True).hidden_states[3].mean(dim=1)
    np.testing.assert_allclose(baseline.embed([waveform]), expected.numpy(), atol=1e-5)
    assert baseline.identity["layer"] == "3"


def test_last_layer_shares_the_forward_pass_of_the_model(tiny_model, waves, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    encoder = WavCSEEncoder(str(tmp_path))
    baseline = BASELINES["last_layer"](encoder)
    calls = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    first, second = waves(4000, 5000), waves(4000, 5000, seed=1)
    for batch in (first, second):
        encoder.embed(batch)
        baseline.embed(batch)
    assert len(calls) == 2
    np.testing.assert_array_equal(baseline.embed(first), baseline.embed(list(first)))


def test_last_layer_needs_a_model():
    with pytest.raises(ValueError, match="give --model"):
        BASELINES["last_layer"](None)
