"""`encode_frames` and windows of `encode`: frames of every upstream family against its own hidden states and pooled layers."""

import numpy as np
import pytest
import soundfile
import torch

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel
from wavcse.data.arguments import EmbedSettings
from wavcse.data.manifest import Clip
from wavcse.embed import Embedder
from wavcse.tests.helpers.door_pages import link_root, run_first_block
from wavcse.upstream_wavcse import run_frames

RATE = 16_000
LAYERS = [3, 0, 2]  # in any order
LENGTHS = (12_000, 900, 5_000, 40_000)  # the last in windows
WHISPER = {"d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_source_positions": 50}
DATA2VEC = {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2, "do_stable_layer_norm": False}
# Name -> family, norm, fields of the upstream, fields of the model.
MODELS = {
    "wavlm base": ("wavlm", "group", {}, {"window_s": 1.0}),
    "wavlm large": ("wavlm", "layer", {}, {"window_s": 1.0, "temporal_pooling": "mean_std"}),
    "wav2vec2": ("wav2vec2", "layer", {}, {"window_s": 1.0}),
    "hubert": ("hubert", "group", {}, {"window_s": 1.0}),
    "unispeech-sat": ("unispeech-sat", "layer", {}, {"window_s": 1.0}),
    "data2vec": ("data2vec-audio", "layer", DATA2VEC, {"window_s": 1.0}),
    "no packed form": ("wav2vec2", "group", {"hidden_act": "gelu_new"}, {}),
}


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
SEW = {**SIZES, "conv_dim": [16] * 13, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
MOONSHINE = {"hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 4, "encoder_num_attention_heads": 4}
OTHERS = {  # name -> fields of the upstream, and of the model; families with a stem of their own
    "whisper clip": ({"model_type": "whisper", **WHISPER}, {"context": "clip"}),
    "whisper window": ({"model_type": "whisper", **WHISPER}, {"context": "window"}),
    "sew": ({"model_type": "sew", **SEW}, {"window_s": 1.0}),
    "sew-d": ({"model_type": "sew-d", **SEW}, {"window_s": 1.0}),
    "wav2vec2-bert": ({"model_type": "wav2vec2-bert", **SIZES}, {"window_s": 1.0}),
    "moonshine": ({"model_type": "moonshine", **MOONSHINE}, {"window_s": 1.0}),
}
# Family -> centre of the first frame and distance of frames, ms; of all others 25 ms are a frame, every 20 ms.
TIMES_MS = {"whisper": (0, 20), "sew": (22.5, 40), "sew-d": (22.5, 40), "wav2vec2-bert": (17.5, 20)}
TIMES_MS |= {"moonshine": (27.96875, 24)}


@pytest.fixture(scope="module", params=[*MODELS, *OTHERS])
def model(request, tiny_model) -> WavCSEModel:
    if request.param in MODELS:
        family, norm, upstream, fields = MODELS[request.param]
        return tiny_model(family, norm, upstream, selected_layers=[0, 2, 3], **fields)
    torch.manual_seed(0)
    upstream, fields = OTHERS[request.param]
    sizes = {"layer_projection_size": 8, "embedding_size": 20}
    return WavCSEModel(WavCSEConfig(upstream, selected_layers=[0, 2, 3], **sizes, **fields)).eval()


def pooled(model: WavCSEModel, clips: list[np.ndarray]) -> np.ndarray:
    """Means over time `[B, K, D]`."""
    prepared = WavCSEFeatureExtractor.from_config(model.config).prepare(clips)
    with torch.no_grad():
        return model.pool_layers(prepared, layers=LAYERS)[..., : model.upstream.config.hidden_size].numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-5 of each layer's largest value; `[..., K, D]`."""
    largest = np.abs(expected).max(axis=tuple(axis for axis in range(expected.ndim) if axis != expected.ndim - 2))
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= 1e-5 * largest[:, None]).all()


def test_the_mean_over_time_is_the_pooled_layer(model, waves):
    clips = waves(*LENGTHS)
    found = model.encode_frames(clips, layers=LAYERS)
    assert len(found) == len(clips)
    for own, expected in zip(found, pooled(model, clips)):
        assert own.frames.dtype == np.float32
        assert own.frames.shape == (len(own.times_ms), 3, 32)
        assert_close(own.frames.mean(axis=0), expected)


def test_alone_is_as_in_a_batch(model, waves):
    clips = waves(*LENGTHS)
    together = model.encode_frames(clips, layers=LAYERS)
    for clip, own in zip(clips, together):
        alone = model.encode_frames(clip, layers=LAYERS)
        assert_close(alone.frames, own.frames)
        np.testing.assert_array_equal(alone.times_ms, own.times_ms)
    for two, own in zip(model.encode_frames(clips, layers=LAYERS, batch_size=2), together):
        assert_close(two.frames, own.frames)


def test_frames_are_the_hidden_states_of_the_transformers_modules(model, waves):
    clip = waves(12_000)[0]
    prepared = WavCSEFeatureExtractor.from_config(model.config).prepare([clip])
    with torch.no_grad():
        states = model(prepared, output_hidden_states=True).hidden_states
    expected = torch.stack([states[layer][0] for layer in LAYERS], dim=1).numpy()
    assert_close(model.encode_frames(clip, layers=LAYERS).frames, expected)
    (ordinary,) = run_frames(model.upstream, prepared, LAYERS, model.config.context)
    assert_close(ordinary.detach().numpy(), expected)


def test_times_are_the_centres_of_the_frames(model, waves):
    frames, times = model.encode_frames(waves(12_000)[0], layers=0)
    first, hop = TIMES_MS.get(model.config.upstream_config.model_type, (12.5, 20))
    np.testing.assert_allclose(times, first + hop * np.arange(len(frames)))
    assert 750 - 3 * hop <= times[-1] <= 750


# ---- of one model ----


@pytest.fixture(scope="module")
def wavlm(tiny_model) -> WavCSEModel:
    return tiny_model("wavlm", "layer")


def test_a_click_is_in_the_frames_of_its_time(tiny_model):
    """Before any block, the frames that a click changes are those around its time."""
    model = tiny_model("wavlm", "layer", do_normalize=False)
    clip = np.float32(1e-3) * np.sin(np.arange(16_000), dtype=np.float32)
    click = clip.copy()
    click[8_000:8_016] = 0.5
    quiet, loud = (model.encode_frames(samples, layers=0) for samples in (clip, click))
    changed = np.abs(quiet.frames - loud.frames).max(axis=(1, 2))
    assert (changed * loud.times_ms).sum() / changed.sum() == pytest.approx(500, abs=20)


def test_what_is_given_back(wavlm, waves):
    clips = waves(4_000, 3_000)
    (own,) = wavlm.encode_frames(clips[:1])
    assert own.frames.shape == (12, 3, 32)  # of the selected layers
    tensors = wavlm.encode_frames(clips, layers=[1], convert_to_numpy=False)
    assert [type(one.frames) for one in tensors] == [torch.Tensor] * 2
    assert wavlm.encode_frames([]) == []
    low = wavlm.encode_frames(clips[0], precision="bfloat16").frames
    assert 0 < np.abs(low - own.frames).max() < 0.05 * np.abs(own.frames).max()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (4, "layers: 4 is none of them; this model has 0 to 3, up to its highest selected layer"),
        ([0, -1], "layers: -1 is none of them"),
        (["1"], "layers: '1' is none of them"),
        ([], "layers: none is named"),
    ],
)
def test_layers_that_do_not_exist(wavlm, waves, layers, message):
    with pytest.raises(ValueError, match=message):
        wavlm.encode_frames(waves(4_000), layers=layers)


def test_values_that_are_not_finite_name_the_clip(tiny_model, waves):
    model = tiny_model("wavlm", "layer")
    with torch.no_grad():
        model.upstream.encoder.layers[0].feed_forward.output_dense.bias[0] = np.nan
    with pytest.raises(FloatingPointError, match="clip 0: the upstream gave values that are not finite"):
        model.encode_frames(waves(4_000), layers=2)


# ---- windows ----


def test_windows_are_the_embeddings_of_their_stretches(wavlm, waves, tmp_path):
    long, short = waves(20_000, 3_000)
    soundfile.write(tmp_path / "long.wav", long, RATE, subtype="FLOAT")
    first, second = wavlm.encode([tmp_path / "long.wav", short], window_s=0.5, hop_s=0.3, batch_size=2)
    np.testing.assert_allclose(first.start_s, [0, 0.3, 0.6, 0.75])
    np.testing.assert_allclose(first.end_s, [0.5, 0.8, 1.1, 1.25])
    stretches = [long[round(a * RATE) : round(b * RATE)] for a, b in zip(first.start_s, first.end_s)]
    np.testing.assert_allclose(first.embeddings, wavlm.encode(stretches), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.embeddings, wavlm.encode([short]), rtol=1e-5, atol=1e-6)
    assert (second.start_s.tolist(), second.end_s.tolist()) == ([0.0], [3_000 / RATE])
    one = wavlm.encode(long, window_s=0.5, normalize_embeddings=True, truncate_dim=7, convert_to_tensor=True)
    assert one.embeddings.shape == (3, 7)
    torch.testing.assert_close(one.embeddings.norm(dim=1), torch.ones(3))


def test_windows_are_those_of_wavcse_embed(wavlm, waves, tmp_path):
    """Quiet clips too, which are scaled before they are cut."""
    loud, quiet = waves(20_000, 9_000)
    clips = [loud, quiet * np.float32(1e-5)]
    wavlm.save_pretrained(tmp_path / "hub")
    for index, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{index}.wav", clip, RATE, subtype="FLOAT")
    settings = EmbedSettings(window_s=0.5, hop_s=0.2, scale_quiet=True)
    embedder = Embedder(str(tmp_path / "hub"), settings, torch.device("cpu"), 60.0)
    paths = [str(tmp_path / f"{index}.wav") for index in range(2)]
    loaded = [embedder.load(Clip(path, path)) for path in paths]
    for found, (_, _, start_s, end_s, rows) in zip(
        wavlm.encode(paths, window_s=0.5, hop_s=0.2, scale_quiet=True), embedder.compute(loaded)
    ):
        np.testing.assert_array_equal(found.start_s, start_s)
        np.testing.assert_array_equal(found.end_s, end_s)
        np.testing.assert_allclose(found.embeddings, rows, rtol=1e-5, atol=1e-6)


def test_only_the_windows_of_a_long_clip_must_suit_the_model(tiny_model, waves):
    model = tiny_model("wavlm", "layer", max_duration_s=1.0)
    clip = waves(40_000)[0]
    with pytest.raises(ValueError, match="lasts 2.5 s, more than max_duration_s=1"):
        model.encode(clip)
    assert len(model.encode(clip, window_s=1.0).embeddings) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 0.01}, "window_s is 0.01; a window of this model has 0.025 to 7200 s"),
        ({"window_s": 8000.0}, "window_s is 8000.0; a window"),
        ({"window_s": 1.0, "hop_s": 0.0}, "hop_s is 0.0 and window_s 1.0; 0 < hop_s <= window_s must hold"),
        ({"window_s": 1.0, "hop_s": 2.0}, "0 < hop_s <= window_s must hold"),
        ({"hop_s": 2.0}, "hop_s is the distance of windows; give window_s too"),
        ({"batch_size": 0}, "batch_size is 0; it must be a positive number of clips"),
    ],
)
def test_options_out_of_range(wavlm, waves, options, message):
    with pytest.raises(ValueError, match=message):
        wavlm.encode(waves(4_000), **options)


def test_options_as_users_of_sentence_transformers_type_them(wavlm, waves):
    clips = waves(4_000, 9_000, 3_000)
    plain = wavlm.encode(clips)
    np.testing.assert_allclose(wavlm.encode(clips, batch_size=1), plain, rtol=1e-5, atol=1e-6)
    tensor = wavlm.encode(clips, batch_size=32, convert_to_tensor=True)
    assert torch.equal(tensor, torch.from_numpy(plain))


def test_the_page(waves, tmp_path, monkeypatch):
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", waves(64_000)[0], RATE)
    names = run_first_block("windows_and_frames.md")
    config = WavCSEConfig.from_pretrained(tmp_path)
    assert names["windows"].embeddings.shape == (3, config.embedding_size)
    assert names["frames"].frames.shape[1:] == (2, config.upstream_config.hidden_size)
