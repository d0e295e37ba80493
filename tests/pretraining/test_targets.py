"""BEST-RQ's targets against NumPy, their frames against the encoder's, their spread on speech, and the masks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.fft import dct
from transformers import WavLMConfig, WavLMModel

from wavcse.feature_extraction_wavcse import normalized
from wavcse.pretraining.quantizer import RandomProjectionQuantizer
from wavcse.steps.crops import span_mask

PRETRAIN = Path(__file__).parents[3] / "shared" / "pretrain"
SEVEN = {"conv_dim": [8] * 7}
FIVE = {"conv_dim": [8] * 5, "conv_kernel": [20, 3, 3, 2, 2], "conv_stride": [10, 4, 2, 2, 2]}
TWO = {"conv_dim": [8] * 2, "conv_kernel": [400, 3], "conv_stride": [160, 2]}
ONE = {"conv_dim": [8], "conv_kernel": [320], "conv_stride": [320]}
STEMS = {"seven": SEVEN, "five": FIVE, "two": TWO, "one": ONE}


def config_of(stem):
    return WavLMConfig(
        **STEMS[stem], num_feat_extract_layers=len(STEMS[stem]["conv_dim"]), feat_extract_norm="layer",
        do_stable_layer_norm=True, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip


def slaney_filters(num_mels):
    """Triangles evenly spaced on Slaney's mel scale (linear to 1 kHz, then logarithmic), `[201, num_mels]`."""
    edges_mel = np.linspace(0, 15 + 27 * np.log(8000 / 1000) / np.log(6.4), num_mels + 2)
    edges = np.where(edges_mel < 15, edges_mel * 200 / 3, 1000 * np.exp((edges_mel - 15) * np.log(6.4) / 27))
    bins = np.arange(201) * 40.0
    filters = np.zeros((201, num_mels))
    for m, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:])):
        filters[:, m] = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    return filters


def reference_codes(waveform, quantizer, num_frames, field, num_cepstra):
    """All targets of a clip in double precision, frame by frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    offset = max(0, (field - 560) // 2)
    filters = slaney_filters(80)
    mel = []
    for start in range(offset, len(waveform) - 399, 160):
        power = np.abs(np.fft.fft(waveform[start : start + 400] * window)[:201]) ** 2
        mel.append(np.log(np.maximum(power @ filters, 1e-2)))
    mel = np.array(mel)
    mel = dct(mel, norm="ortho")[:, :num_cepstra] if num_cepstra else mel
    mel = (mel - mel.mean(axis=0)) / np.maximum(mel.std(axis=0), 1e-2)
    codes = []
    projection, codebook = quantizer.projection.double().numpy(), quantizer.codebook.double().numpy()
    for t in range(num_frames):
        stacked = np.concatenate([mel[min(2 * t, len(mel) - 1)], mel[min(2 * t + 1, len(mel) - 1)]])
        projected = stacked @ projection
        distances = np.linalg.norm(codebook - projected / np.linalg.norm(projected), axis=1)
        codes.append(int(distances.argmin()))
    return np.array(codes)


@pytest.mark.parametrize("num_cepstra", [0, 20])
@pytest.mark.parametrize(("stem", "field"), [("seven", 400), ("five", 360), ("two", 720), ("one", 320)])
def test_targets_equal_an_independent_computation(stem, field, num_cepstra):
    generator = np.random.default_rng(0)
    waveform = generator.standard_normal(16_000) * np.linspace(0.1, 2, 16_000) + np.sin(np.arange(16_000) * 0.1)
    quantizer = RandomProjectionQuantizer(config_of(stem), num_cepstra=num_cepstra, codebook_size=512)
    num_frames = (16_000 - field) // 320 + 1
    mask = torch.ones(1, num_frames, dtype=torch.bool)
    codes = quantizer(torch.tensor(waveform[None], dtype=torch.float32), mask).numpy()
    expected = reference_codes(waveform, quantizer, num_frames, field, num_cepstra)
    assert len(set(expected)) > num_frames / 2  # the comparison means something
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("num_samples", [1040, 1041, 7999, 8000, 8319, 8320, 8321, 16_000])
def test_there_is_a_target_for_every_frame_of_the_encoder(stem, num_samples):
    config = config_of(stem)
    waveforms = torch.randn(2, num_samples)
    with torch.no_grad():
        num_frames = WavLMModel(config).eval()(waveforms).last_hidden_state.shape[1]
    assert RandomProjectionQuantizer(config).features(waveforms).shape == (2, num_frames, 160)


def test_targets_look_where_the_frame_looks():
    """A click at sample 8000 is loudest in the target of the frame that has it in its middle: 24, of samples 7680 to 8400."""
    quantizer = RandomProjectionQuantizer(config_of("two"))
    quiet = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    click = quiet.clone()
    click[0, 8000] += 50.0
    assert quantizer.features(click)[0].mean(dim=1).argmax() == 24


def test_projection_and_codebook_are_as_the_paper_says_and_are_kept():
    quantizer = RandomProjectionQuantizer(config_of("two"), codebook_size=4096, seed=3)
    bound = np.sqrt(6 / (160 + 16))
    assert quantizer.projection.abs().max() <= bound
    assert quantizer.projection.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(4096))
    assert set(quantizer.state_dict()) == {"projection", "codebook"}
    assert not list(quantizer.parameters())
    again, other = (RandomProjectionQuantizer(config_of("two"), codebook_size=4096, seed=seed) for seed in (3, 4))
    assert torch.equal(again.codebook, quantizer.codebook)
    assert not torch.equal(other.codebook, quantizer.codebook)


def test_loudness_and_silence_do_not_matter():
    quantizer = RandomProjectionQuantizer(config_of("two"))
    waveforms = torch.randn(1, 16_000)
    mask = torch.ones(1, 48, dtype=torch.bool)
    codes = [quantizer(normalized(scale * waveforms), mask) for scale in (0.01, 1.0)]
    assert (codes[0] == codes[1]).float().mean() > 0.95  # the normaliser's epsilon is not quite nothing at 0.01
    assert torch.isfinite(quantizer.features(torch.zeros(1, 16_000))).all()


def test_a_stem_of_another_hop_is_refused():
    config = config_of("two")
    config.conv_stride = [160, 4]
    with pytest.raises(ValueError, match="every 640 samples"):
        RandomProjectionQuantizer(config)


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match="too short"):
        RandomProjectionQuantizer(config_of("two")).features(torch.randn(1, 600))


@pytest.mark.skipif(not PRETRAIN.exists(), reason="needs ../shared/pretrain")
@pytest.mark.parametrize(("num_cepstra", "least", "most_frequent"), [(0, 100, 0.3), (20, 1000, 0.03)])
@pytest.mark.parametrize("name", ["librispeech_en_00.ogg", "kerstin_de_00.ogg"])
def test_codes_do_not_collapse_on_speech(name, num_cepstra, least, most_frequent):
    samples, rate = soundfile.read(PRETRAIN / "audio" / name, frames=16_000 * 120, dtype="float32")
    assert rate == 16_000
    crops = normalized(torch.from_numpy(samples[: 16_000 * 120].reshape(40, -1)))
    quantizer = RandomProjectionQuantizer(config_of("two"), num_cepstra=num_cepstra)
    mask = torch.ones(40, (48_000 - 720) // 320 + 1, dtype=torch.bool)
    counts = torch.bincount(quantizer(crops, mask), minlength=8192).double()
    share = counts / counts.sum()
    perplexity = float(torch.exp(-torch.xlogy(share, share).sum()))
    assert perplexity > least  # of 5,920 frames
    assert share.max() < most_frequent


def test_spans_cover_a_third():
    rng = np.random.default_rng(0)
    masks = np.array([span_mask(rng, 400, 0.02, 20) for _ in range(500)])
    assert masks[:, 30:].mean() == pytest.approx(1 - 0.98**20, abs=0.02)


@pytest.mark.parametrize("num_frames", [1, 5, 20, 49])
def test_there_is_always_a_span_and_none_shorter_but_at_the_end(num_frames):
    rng = np.random.default_rng(1)
    for _ in range(200):
        mask = span_mask(rng, num_frames, 0.001, 20)
        assert mask.shape == (num_frames,)
        starts = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int)])) == 1)
        ends = np.flatnonzero(np.diff(np.concatenate([mask.astype(int), [0]])) == -1)
        assert len(starts) >= 1
        assert all(end - start + 1 >= 20 or end == num_frames - 1 for start, end in zip(starts, ends))
