"""Whisper's encoder as an upstream, against transformers' own model on hand-made windows."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.whisper_wavcse import log_mel_of_clip

WINDOW_S = 2
SHAPE = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": WINDOW_S * 50,
    "num_mel_bins": 80,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SIZES = {"layer_projection_size": 8, "embedding_size": 20}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Whisper with its decoder, as published checkpoints are, with windows of two seconds."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in whisper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whisper.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=WINDOW_S).save_pretrained(folder)
    return folder, whisper


def reference(whisper, waveform, layers):
    """Frames of the wanted layers of one clip of at most one window: `[K, frames with audio, D]`."""
    features = WhisperFeatureExtractor(chunk_length=WINDOW_S)(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        states = whisper.model.encoder(features["input_features"], output_hidden_states=True).hidden_states
    return torch.stack([states[layer][0] for layer in layers])[:, : -(-len(waveform) // 320)]


def pooled(model, clips):
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    with torch.no_grad():
        return model(**feature_extractor(clips, sampling_rate=16_000, return_tensors="pt")).pooled_layers


def test_layers_are_the_means_over_real_frames(checkpoint, waves):
    folder, whisper = checkpoint
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[0, 2, 1], **SIZES)
    assert not model.config.do_normalize  # read from the checkpoint's own preprocessor
    clips = waves(400, 9_000, 16_001, 32_000)
    together = pooled(model, clips)
    for clip, result in zip(clips, together):
        torch.testing.assert_close(result, reference(whisper, clip, [0, 2, 1]).mean(dim=1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pooled(model, [clip])[0], result, atol=1e-5, rtol=1e-5)


def test_the_last_layer_is_without_the_final_norm(checkpoint, waves):
    """The reference is what the encoder's final norm receives."""
    folder, whisper = checkpoint
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[3], **SIZES)
    encoder, clip = whisper.model.encoder, waves(20_000)[0]
    seen = []
    hook = encoder.layer_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    reference(whisper, clip, [0])
    hook.remove()
    expected = seen[0][0, : -(-20_000 // 320)].mean(dim=0)
    torch.testing.assert_close(pooled(model, [clip])[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_only_the_needed_blocks_of_the_encoder_are_loaded(checkpoint, waves):
    folder, whisper = checkpoint
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[0, 1], **SIZES)
    names = {name for name, _ in model.upstream.named_parameters()}
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0"}
    assert not [name for name in names if "decoder" in name]
    assert torch.equal(model.upstream.conv1.weight, whisper.model.encoder.conv1.weight)
    only_input = WavCSEModel.from_upstream(str(folder), selected_layers=[0], **SIZES)
    clip = waves(8_000)[0]
    torch.testing.assert_close(pooled(only_input, [clip])[:, 0], pooled(model, [clip])[:, 0])


def test_a_long_clip_is_the_frame_weighted_mean_of_its_windows(checkpoint, waves):
    folder, whisper = checkpoint
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[0, 2], **SIZES)
    clip = waves(2 * 32_000 + 8_000)[0]
    frames = torch.cat([reference(whisper, clip[a : a + 32_000], [0, 2]) for a in (0, 32_000, 64_000)], dim=1)
    torch.testing.assert_close(pooled(model, [clip])[0], frames.mean(dim=1), atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same_model(checkpoint, waves, tmp_path):
    model = WavCSEModel.from_upstream(str(checkpoint[0]), selected_layers=[0, 2], **SIZES)
    model.save_pretrained(tmp_path)
    again = WavCSEModel.from_pretrained(tmp_path)
    clips = waves(9_000, 5_000)
    np.testing.assert_array_equal(again.encode(clips), model.encode(clips))


def test_an_unfrozen_encoder_gets_gradients(checkpoint, waves):
    model = WavCSEModel.from_upstream(str(checkpoint[0]), selected_layers=[0, 2], freeze_upstream=False, **SIZES)
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    model(**feature_extractor(waves(9_000), sampling_rate=16_000, return_tensors="pt")).embeddings.sum().backward()
    trained = [parameter for parameter in model.upstream.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_what_whisper_cannot_give_is_refused(checkpoint, waves):
    model = WavCSEModel.from_upstream(str(checkpoint[0]), selected_layers=[0, 2], **SIZES)
    with pytest.raises(ValueError, match="pooled layers at precision='float32' only"):
        model.encode(waves(9_000), precision="bfloat16")
    with pytest.raises(ValueError, match="clip 0: has 399 samples"):
        pooled(model, waves(399))
    with pytest.raises(ValueError, match="has layers 0 to 3"):
        WavCSEConfig(upstream_config=WhisperConfig(**SHAPE), selected_layers=[4])


def test_packed_blocks_are_those_of_the_module_at_the_clips_own_length(checkpoint, waves):
    """The reference runs the module's layers one after another on the clip's own frames."""
    encoder = checkpoint[1].model.encoder
    clips = [torch.from_numpy(wave) for wave in waves(400, 9_000, 16_001, 32_000)]
    packed = {precision: PackedUpstream(encoder, precision) for precision in ("float32", "bfloat16", "int8")}
    expected = []
    for clip in clips:
        with torch.no_grad():
            hidden = log_mel_of_clip(clip, encoder.config, "clip").T[None]
            for convolution in (encoder.conv1, encoder.conv2):
                hidden = torch.nn.functional.gelu(convolution(hidden))
            layers = [hidden.transpose(1, 2) + encoder.embed_positions.weight[: hidden.shape[2]]]
            for block in encoder.layers:
                output = block(layers[-1], None)
                layers.append(output[0] if isinstance(output, tuple) else output)
        expected.append(torch.stack([layer[0].mean(dim=0) for layer in layers]))
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2), ("int8", 4e-2)):
        actual = packed[precision](clips, range(4), context="clip")
        for clip, own, wanted in zip(clips, actual, expected):
            assert (own - wanted).abs().max() <= tolerance * wanted.abs().max(), (precision, len(clip))
            alone = packed[precision]([clip], range(4), context="clip")[0]
            assert (alone - own).abs().max() <= (1e-6 if precision == "float32" else tolerance) * wanted.abs().max()


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
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        pieces = [wave[start : start + 64_000] for start in range(0, length, 64_000)]
        expected = extractor(pieces, sampling_rate=16_000, return_tensors="pt")["input_features"].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(log_mel_of_clip(torch.from_numpy(wave), config, "window"), expected, atol=1e-5, rtol=0)
