"""Whisper's encoder as an upstream, in both contexts, against transformers' own encoder and feature extractor."""

import copy

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel, packed_encoder_wavcse
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.upstream_wavcse import run_upstream
from wavcse.whisper_wavcse import log_mel_of_clip

WINDOW_S = 2
POSITIONS = WINDOW_S * 50
SHAPE = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": POSITIONS,
    "num_mel_bins": 80,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
# What tells the published ones apart, at widths for tests; `openai/whisper-large-v3` and distil-large-v3 have 128 bins.
PUBLISHED = {
    "tiny": {},
    "large-v3": {"num_mel_bins": 128, "encoder_layers": 5, "d_model": 40, "encoder_attention_heads": 5},
    "distil-large-v3": {"num_mel_bins": 128, "decoder_layers": 1, "encoder_ffn_dim": 128},
    "fine-tuned": {"apply_spec_augment": True, "mask_time_prob": 0.05, "dropout": 0.1, "encoder_layerdrop": 0.1},
}
SIZES = {"layer_projection_size": 8, "embedding_size": 20}
LENGTHS = (400, 9_000, 16_001, 32_000)
CONTEXTS = pytest.mark.parametrize("context", ["clip", "window"])
EXACT = 1e-5


def build_whisper(**changes) -> WhisperForConditionalGeneration:
    """A tiny Whisper with its decoder, as published checkpoints are, with windows of two seconds."""
    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in whisper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return whisper


def save(whisper, folder):
    whisper.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins, chunk_length=WINDOW_S).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whisper():
    return build_whisper()


@pytest.fixture(scope="module")
def checkpoint(whisper, tmp_path_factory):
    return save(whisper, tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def tiny(checkpoint):
    """Factory: a model on the checkpoint."""
    return lambda **fields: WavCSEModel.from_upstream(checkpoint, **{"selected_layers": [0, 2, 1, 3], **SIZES, **fields})


def encoder_states(encoder: WhisperEncoder, features: torch.Tensor) -> torch.Tensor:
    """Layers 0..N of one spectrogram `[1, mel bins, 2 T]` by a `WhisperEncoder` of T positions: `[N + 1, T, D]`."""
    length = features.shape[2] // 2
    config = copy.deepcopy(encoder.config)
    config.max_source_positions = length
    own = WhisperEncoder(config).eval()
    weights = encoder.state_dict()
    own.load_state_dict({**weights, "embed_positions.weight": weights["embed_positions.weight"][:length]})
    last = []
    own.layer_norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    with torch.no_grad():
        states = own(features, output_hidden_states=True).hidden_states
    return torch.cat([*states[:-1], *last])


def reference(whisper, waveform: np.ndarray, context: str) -> torch.Tensor:
    """Frames of all layers of one clip of at most one window: `[N + 1, frames with audio, D]`."""
    extractor = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins, chunk_length=WINDOW_S)
    options = {"padding": "longest", "pad_to_multiple_of": 320, "truncation": False} if context == "clip" else {}
    features = extractor(waveform, sampling_rate=16_000, return_tensors="pt", **options)["input_features"]
    return encoder_states(whisper.model.encoder, features)[:, : -(-len(waveform) // 320)]


def inputs_of(model, clips) -> dict:
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    return dict(feature_extractor(clips, sampling_rate=16_000, return_tensors="pt"))


def pooled(model, clips, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(model, clips), **kwargs).pooled_layers


def assert_close(actual, expected, tolerance=EXACT):
    """Per layer, relative to its largest value."""
    scale = expected.abs().amax(dim=-1, keepdim=True)
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= tolerance * scale).all(), ((actual - expected).abs() / scale).max()


# ---- the spectrogram ----


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("length", [400, 639, 640, 16_001, 63_800, 64_000, 70_001])
def test_the_spectrogram_is_that_of_transformers(bins, length):
    config = WhisperConfig(**{**SHAPE, "num_mel_bins": bins, "max_source_positions": 200})
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=4)
    seconds = np.arange(length) / 16_000
    tone = np.sin(2 * np.pi * 300 * seconds) * (seconds % 0.5 < 0.3)  # with silence: values far below the loudest
    noise = np.random.default_rng(0).standard_normal(length)
    for wave in (tone, 0.1 * noise, tone + 1e-4 * noise, 0 * noise):
        wave = wave.astype(np.float32)
        own_length = {"padding": "longest", "pad_to_multiple_of": 320, "truncation": False}
        expected = extractor(wave, sampling_rate=16_000, return_tensors="pt", **own_length)["input_features"][0].T
        actual = log_mel_of_clip(torch.from_numpy(wave), config, "clip")
        torch.testing.assert_close(actual, expected, atol=EXACT, rtol=0)
        pieces = [wave[start : start + 64_000] for start in range(0, length, 64_000)]
        expected = extractor(pieces, sampling_rate=16_000, return_tensors="pt")["input_features"].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(log_mel_of_clip(torch.from_numpy(wave), config, "window"), expected, atol=EXACT, rtol=0)


def test_the_spectrogram_of_a_long_clip_is_made_block_by_block(monkeypatch):
    config, clip = WhisperConfig(**SHAPE), torch.randn(50_000)
    whole = log_mel_of_clip(clip, config, "clip")
    monkeypatch.setattr("wavcse.whisper_wavcse.MEL_FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(log_mel_of_clip(clip, config, "clip"), whole, atol=1e-6, rtol=0)


# ---- layers ----


@CONTEXTS
@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_are_the_means_over_real_frames(name, context, waves, tmp_path):
    whisper = build_whisper(**PUBLISHED[name])
    layers = list(range(whisper.config.encoder_layers + 1))
    folder = save(whisper, tmp_path)
    model = WavCSEModel.from_upstream(folder, selected_layers=layers, context=context, **SIZES)
    assert not model.config.do_normalize  # read from the checkpoint's own preprocessor
    clips = waves(*LENGTHS)
    together = pooled(model, clips)
    for clip, result in zip(clips, together):
        assert_close(result, reference(whisper, clip, context).mean(dim=1))
        assert_close(pooled(model, [clip])[0], result, 2e-6)
    assert model.run_upstream.packed is not None


@CONTEXTS
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 2e-2), ("int8", 4e-2)])
def test_lower_precisions_are_close(tiny, whisper, waves, context, precision, tolerance):
    model = tiny(context=context, precision=precision)
    for clip in waves(*LENGTHS):
        found, expected = pooled(model, [clip])[0], reference(whisper, clip, context)[[0, 2, 1, 3]].mean(dim=1)
        assert_close(found, expected, tolerance)
        assert not torch.equal(found[1:], pooled(model, [clip], precision="float32")[0, 1:])


def test_only_the_needed_blocks_of_the_encoder_are_loaded(tiny, whisper, waves):
    model = tiny(selected_layers=[0, 1])
    names = {name for name, _ in model.upstream.named_parameters()}
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0"}
    assert not [name for name in names if "decoder" in name]
    assert torch.equal(model.upstream.conv1.weight, whisper.model.encoder.conv1.weight)
    only_input = tiny(selected_layers=[0])
    clip = waves(8_000)[0]
    torch.testing.assert_close(pooled(only_input, [clip])[:, 0], pooled(model, [clip])[:, 0])


def test_in_windows_a_long_clip_is_the_frame_weighted_mean_of_its_pieces(tiny, whisper, waves):
    model = tiny(context="window")
    clip = waves(2 * 32_000 + 8_000)[0]
    frames = torch.cat([reference(whisper, clip[a : a + 32_000], "window") for a in (0, 32_000, 64_000)], dim=1)
    assert_close(pooled(model, [clip])[0], frames[[0, 2, 1, 3]].mean(dim=1))


@pytest.fixture(scope="module")
def long_clip(whisper):
    """A clip of 3.35 windows and its layers, `[N + 1, T, D]`: every frame from the window in which it has more context."""
    clip = np.random.default_rng(3).standard_normal(107_111).astype(np.float32)
    frames = -(-len(clip) // 320)
    spectrogram = log_mel_of_clip(torch.from_numpy(clip), whisper.config, "clip").T[None]
    starts = [round(i * (frames - POSITIONS) / 3) for i in range(4)]
    states = [
        encoder_states(whisper.model.encoder, spectrogram[:, :, 2 * start : 2 * (start + POSITIONS)]) for start in starts
    ]
    depth = [[min(t - start, start + POSITIONS - 1 - t) for start in starts] for t in range(frames)]
    best = [max(range(4), key=lambda window, own=own: (own[window], window)) for own in depth]
    return clip, torch.stack([states[window][:, t - starts[window]] for t, window in enumerate(best)], dim=1)


def test_a_long_clip_goes_in_overlapping_windows(tiny, long_clip, waves):
    model, (clip, states) = tiny(), long_clip
    found = pooled(model, [waves(9_000)[0], clip])[1]
    assert_close(found, states[[0, 2, 1, 3]].mean(dim=1))
    both = pooled(tiny(temporal_pooling="mean_std"), [clip])[0]
    assert_close(both[:, :32], found, 2e-6)
    assert_close(both[:, 32:], states[[0, 2, 1, 3]].std(dim=1, correction=0), 2e-5)


def test_shorter_windows_can_be_asked_for(tiny):
    config = tiny(window_s=1.0).config
    assert (config.window_frames, tiny().config.window_frames) == (50, POSITIONS)
    assert tiny(context="window", window_s=1.0).config.window_frames == POSITIONS


# ---- frames, attention maps, gradients: by the transformers modules ----


@CONTEXTS
def test_hidden_states_are_the_encoders_frames(tiny, whisper, waves, context):
    model, clips = tiny(context=context), waves(16_001, 400, 16_001)
    with torch.no_grad():
        output = model(**inputs_of(model, clips), output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for row, clip in enumerate(clips):
        expected = reference(whisper, clip, context)
        for layer, hidden in enumerate(output.hidden_states):
            assert hidden.shape == (3, 51, 32)
            assert_close(hidden[row, : expected.shape[1]], expected[layer])
            assert not hidden[row, expected.shape[1] :].any()
    assert_close(output.pooled_layers, pooled(model, clips), 1e-5)


def test_hidden_states_of_a_long_clip_are_put_together(tiny, long_clip, waves):
    model, (clip, states) = tiny(), long_clip
    with torch.no_grad():
        output = model(**inputs_of(model, [clip, waves(9_000)[0]]), output_hidden_states=True)
    for layer, hidden in enumerate(output.hidden_states):
        assert_close(hidden[0], states[layer])
    assert_close(output.pooled_layers, pooled(model, [clip, waves(9_000)[0]]))


def test_attention_maps_are_given_by_eager_attention(tiny, long_clip, waves):
    model = tiny()
    model.upstream.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs_of(model, waves(16_001, 9_000)), output_attentions=True).attentions
    assert [tuple(own.shape) for own in maps] == [(2, 4, 51, 51)] * 3
    torch.testing.assert_close(maps[0][0].sum(dim=-1), torch.ones(4, 51))
    assert not maps[0][1, :, :, 29:].any()
    with torch.no_grad(), pytest.raises(ValueError, match="more frames than go through together .*Whisper.s positions"):
        model(**inputs_of(model, [long_clip[0]]), output_attentions=True)


@CONTEXTS
def test_an_unfrozen_encoder_gets_the_gradients_of_the_module(tiny, whisper, waves, context):
    """The reference differentiates `WhisperEncoder.forward` on one clip."""
    model, clip = tiny(freeze_upstream=False, context=context, selected_layers=[0, 2]), waves(16_000)[0]
    weights = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    (model(**inputs_of(model, [clip])).pooled_layers[0] * weights).sum().backward()
    trained = {name: parameter.grad for name, parameter in model.upstream.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    extractor = WhisperFeatureExtractor(chunk_length=WINDOW_S if context == "window" else 1)  # the clip's own second
    features = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
    config = copy.deepcopy(whisper.config)
    config.max_source_positions = features.shape[2] // 2
    own = WhisperEncoder(config).eval()
    state = whisper.model.encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][: config.max_source_positions]
    own.load_state_dict(state)
    states = own(features, output_hidden_states=True).hidden_states
    (torch.stack([states[0][0, :50].mean(dim=0), states[2][0, :50].mean(dim=0)]) * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name in ("conv1.weight", "conv2.bias", "layers.0.self_attn.k_proj.weight", "layers.1.fc2.weight"):
        assert_close(trained[name].flatten(), expected[name].flatten(), 1e-4)


def test_layerdrop_in_training_passes_a_block_by(whisper):
    encoder = copy.deepcopy(whisper.model.encoder).train()
    encoder.layerdrop, encoder.dropout = 1.0, 0.0
    found = run_upstream(encoder, torch.randn(1, 8_000), None, [0, 3], context="clip").pooled_layers
    assert torch.equal(found[:, 0], found[:, 1])


# ---- which context a model has ----


def test_a_new_model_sees_the_clip_and_a_saved_one_keeps_its_context(tiny, waves, tmp_path):
    clips = waves(9_000, 5_000)
    for context in ("clip", "window"):
        model = tiny(context=context)
        model.save_pretrained(tmp_path / context)
        loaded = WavCSEModel.from_pretrained(tmp_path / context)
        assert loaded.config.context == context
        np.testing.assert_array_equal(loaded.encode(clips), model.encode(clips))
        again = WavCSEModel.from_upstream(str(tmp_path / context), selected_layers=[0, 1], **SIZES)
        assert again.config.context == context
    assert tiny().config.context == "clip"
    assert not np.allclose(tiny().encode(clips), tiny(context="window").encode(clips), atol=1e-4)
    with pytest.raises(ValueError, match="context is 'window', but the weights .* were trained with 'clip'"):
        WavCSEModel.from_pretrained(tmp_path / "clip", context="window")


def test_a_saved_configuration_without_the_field_means_windows(tiny):
    fields = tiny().config.to_dict()
    del fields["context"]
    assert WavCSEConfig.from_dict(fields).context == "window"
    assert WavCSEConfig.from_dict({**fields, "context": "clip"}).context == "clip"
    assert WavCSEConfig(upstream_config=WhisperConfig(**SHAPE), selected_layers=[1]).context == "clip"


def test_other_upstreams_have_no_context():
    assert WavCSEConfig().context is None
    assert "context" not in WavCSEConfig().to_diff_dict()
    with pytest.raises(ValueError, match="context is 'clip'; it is a choice of Whisper upstreams alone"):
        WavCSEConfig(context="clip")
    with pytest.raises(ValueError, match="context is 'half'; allowed: 'clip', 'window'"):
        WavCSEConfig(upstream_config=WhisperConfig(**SHAPE), selected_layers=[1], context="half")


# ---- what Whisper cannot give ----


def test_what_whisper_cannot_give_is_refused(tiny, waves):
    model = tiny()
    with pytest.raises(ValueError, match="clip 0: has 399 samples"):
        pooled(model, waves(399))
    with pytest.raises(ValueError, match="precision='bfloat16' is for inference on pooled layers"):
        pooled(model, waves(9_000), precision="bfloat16", output_hidden_states=True)
    with pytest.raises(ValueError, match="has layers 0 to 3"):
        WavCSEConfig(upstream_config=WhisperConfig(**SHAPE), selected_layers=[4])


def test_a_precision_that_the_blocks_do_not_have_is_refused_when_the_model_is_made(tmp_path, waves):
    folder = save(build_whisper(activation_function="relu"), tmp_path)
    with pytest.raises(ValueError, match="not available for this whisper upstream: activation_function is 'relu', not 'gelu'"):
        WavCSEModel.from_upstream(folder, selected_layers=[1], precision="int8", **SIZES)
    model = WavCSEModel.from_upstream(folder, selected_layers=[1], **SIZES)
    assert pooled(model, waves(9_000)).isfinite().all()  # by the modules
    with pytest.raises(ValueError, match="not available for this whisper upstream"):
        model.encode(waves(9_000), precision="int8")


def test_packs_do_not_show(whisper, monkeypatch):
    clips = [torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (9_000, 400, 31_000, 20_000)]
    packed = PackedUpstream(whisper.model.encoder)
    expected = packed(clips, [0, 1, 3], context="clip")
    for rows in (1, 64, 10_000):
        monkeypatch.setattr(packed, "budget", packed_encoder_wavcse.Budget(rows, 50, 512))
        assert_close(packed(clips, [0, 1, 3], context="clip"), expected, 2e-6)
