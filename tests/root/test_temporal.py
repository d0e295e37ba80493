"""Pooling over time: mean and standard deviation, alone, in pieces, and through every way in which a layer is pooled."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor

import wavcse.packed_encoder_wavcse as packed_encoder_wavcse
from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel
from wavcse.data import cache as cache_command
from wavcse.data.cache import build_cache
from wavcse.data.features import open_cache
from wavcse.data.files import read_json
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.eval.baselines import build_encoders
from wavcse.eval.encoder import check_encoder
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.pooling_wavcse import pooled_frames, pooled_pieces, time_moments
from wavcse.search.fit import fit
from wavcse.search.table import read_table
from wavcse.training.arguments import RunArguments

RATE = 16_000
LAYERS = [3, 0, 2]  # the last block, the input of the first, one between
every_shape = pytest.mark.parametrize(
    ("family", "norm"), [(family, norm) for family in ("wavlm", "wav2vec2", "hubert") for norm in ("layer", "group")]
)


def statistics(frames: np.ndarray) -> np.ndarray:
    """NumPy's mean and population standard deviation in double precision, `[T, D]` -> `[2 D]`."""
    frames = np.asarray(frames, dtype=np.float64)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def inputs_of(model: WavCSEModel, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    return WavCSEFeatureExtractor.from_config(model.config)(clips, sampling_rate=RATE, return_tensors="pt")


def hidden_states(model: WavCSEModel, clip: np.ndarray) -> list[np.ndarray]:
    """All layers `[T, D]` of one clip, from the ordinary transformers module."""
    with torch.no_grad():
        return [state[0].numpy() for state in model(**inputs_of(model, [clip]), output_hidden_states=True).hidden_states]


def expected_layers(model: WavCSEModel, clips: list[np.ndarray], layers=LAYERS) -> np.ndarray:
    states = [hidden_states(model, clip) for clip in clips]
    return np.stack([[statistics(own[layer]) for layer in layers] for own in states])


# ---- the formula ----


def test_a_case_worked_by_hand():
    frames = torch.tensor([[1.0, -2.0], [3.0, -2.0], [5.0, 4.0]])
    wanted = [3.0, 0.0, (8 / 3) ** 0.5, 8**0.5]  # means 3 and 0; squared deviations 4 + 0 + 4 and 4 + 4 + 16
    torch.testing.assert_close(pooled_frames(frames, "mean_std"), torch.tensor(wanted))
    torch.testing.assert_close(pooled_frames(frames, "mean"), torch.tensor(wanted[:2]))


@pytest.mark.parametrize("temporal_pooling", ["mean", "mean_std"])
def test_pieces_do_not_show(temporal_pooling):
    """Two clips in three and two pieces, far from zero, where a difference of squares would lose the deviation."""
    rng = np.random.default_rng(0)
    clips = [(1000 + rng.standard_normal((count, 2, 8)) * 0.1 + np.linspace(0, 1, count)[:, None, None]) for count in (90, 31)]
    cuts = [(0, 0, 17), (1, 0, 30), (0, 17, 18), (0, 18, 90), (1, 30, 31)]
    pieces = [torch.tensor(clips[clip][start:end], dtype=torch.float32) for clip, start, end in cuts]  # [T, K, D]
    moments = [time_moments(piece.transpose(0, 1), temporal_pooling) for piece in pieces]
    found = pooled_pieces([clip for clip, *_ in cuts], [len(piece) for piece in pieces], torch.stack(moments), 2)
    wanted = np.stack([[statistics(clip.astype(np.float32)[:, layer]) for layer in (0, 1)] for clip in clips])
    np.testing.assert_allclose(found, wanted[..., : found.shape[-1]], rtol=2e-4)
    assert found.shape == (2, 2, 8 if temporal_pooling == "mean" else 16)


def test_an_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="temporal_pooling is 'median'; allowed: 'mean', 'mean_std'"):
        pooled_frames(torch.zeros(4, 2), "median")


def test_equal_frames_have_a_finite_gradient():
    frames = torch.full((1, 5, 3), 2.0, requires_grad=True)
    pooled = pooled_frames(frames, "mean_std")
    pooled.sum().backward()
    assert torch.isfinite(frames.grad).all()
    torch.testing.assert_close(pooled[0, 3:], torch.zeros(3), atol=1e-5, rtol=0)


# ---- the model ----


@every_shape
def test_every_layer_of_every_shape(tiny_model, waves, family, norm):
    model = tiny_model(family, norm, selected_layers=LAYERS, temporal_pooling="mean_std")
    clips = waves(400, 9_000, 16_001, 700)
    with torch.no_grad():
        together = model(**inputs_of(model, clips))
        alone = torch.cat([model(**inputs_of(model, [clip])).pooled_layers for clip in clips])
    assert together.pooled_layers.shape == (4, 3, 2 * 32)
    expected = expected_layers(model, clips)
    np.testing.assert_allclose(together.pooled_layers, expected, atol=2e-5 * np.abs(expected).max())
    torch.testing.assert_close(alone, together.pooled_layers, atol=2e-5, rtol=1e-5)
    assert expected[1:3, :, 32:].min() > 1e-3  # deviations that would be missed


def test_means_are_those_of_the_mean_to_the_bit(tiny_model, waves):
    """All but the last layer, which the mean alone need not compute frame by frame."""
    model, clips = tiny_model(selected_layers=[0, 1, 2, 3]), waves(9_000, 30_000)
    by_clip = [torch.from_numpy(clip) for clip in clips]
    packed = PackedUpstream(model.upstream)
    for window_frames in (None, 20):
        mean = packed(by_clip, [0, 1, 2, 3], window_frames)
        both = packed(by_clip, [0, 1, 2, 3], window_frames, temporal_pooling="mean_std")
        assert torch.equal(both[:, :3, :32], mean[:, :3])
        torch.testing.assert_close(both[:, 3, :32], mean[:, 3], atol=1e-5, rtol=1e-5)


def test_a_long_clip_is_pooled_over_the_frames_of_all_its_windows(tiny_model, waves, monkeypatch):
    model = tiny_model(selected_layers=[0, 3])
    kept: list[list[torch.Tensor]] = []  # of every pooled layer of a pack, the rows of its windows
    moments = packed_encoder_wavcse.span_moments

    def recorded(x: torch.Tensor, spans: list, temporal_pooling: str) -> torch.Tensor:
        kept.append([x[span.keep_start : span.keep_end].clone() for span in spans])
        return moments(x, spans, temporal_pooling)

    monkeypatch.setattr(packed_encoder_wavcse, "span_moments", recorded)
    clip = torch.from_numpy(waves(40_000)[0])
    found = PackedUpstream(model.upstream)([clip], [0, 3], 50, temporal_pooling="mean_std")[0]
    assert len(kept[0]) > 2
    for layer, windows in zip(found, kept):
        rows = torch.cat(windows)
        assert len(rows) == 124
        np.testing.assert_allclose(layer, statistics(rows.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_low_precision_is_near(tiny_model, waves, precision):
    model = tiny_model(selected_layers=LAYERS, temporal_pooling="mean_std")
    inputs = inputs_of(model, waves(9_000, 20_000))
    with torch.no_grad():
        exact, low = model(**inputs).pooled_layers, model(**inputs, precision=precision).pooled_layers
    assert not torch.equal(exact, low)
    for half in (slice(0, 32), slice(32, 64)):
        assert nn.functional.cosine_similarity(exact[..., half], low[..., half], dim=-1).min() > 0.99


def test_gradients_reach_the_upstream_of_a_clip_of_one_frame(tiny_model, waves):
    model = tiny_model(selected_layers=LAYERS, temporal_pooling="mean_std", freeze_upstream=False)
    model(**inputs_of(model, waves(400, 9_000))).embeddings.square().sum().backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_whisper_pools_the_frames_that_hold_audio(waves):
    upstream = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80, max_source_positions=100
    )
    torch.manual_seed(0)
    config = WavCSEConfig(
        upstream,
        [2, 1, 0],
        temporal_pooling="mean_std",
        context="window",
        embedding_size=8,
        layer_projection_size=8,
        do_normalize=False,
    )
    model = WavCSEModel(config).eval()
    clips = waves(9_000, 5 * 32_000 + 8_000)  # the second one in six windows of two seconds, more than go together
    with torch.no_grad():
        found = model(**inputs_of(model, clips)).pooled_layers
    extractor = WhisperFeatureExtractor(chunk_length=2)
    for clip, own in zip(clips, found):
        frames = [np.empty((2, 0, 32))]
        for start in range(0, len(clip), 32_000):
            piece = clip[start : start + 32_000]
            features = extractor(piece, sampling_rate=RATE, return_tensors="pt")["input_features"]
            with torch.no_grad():
                states = model.upstream(features, output_hidden_states=True).hidden_states
            frames.append(np.stack([states[layer][0, : -(-len(piece) // 320)].numpy() for layer in (0, 1)]))
        expected = np.stack([statistics(layer) for layer in np.concatenate(frames, axis=1)])
        np.testing.assert_allclose(own.flip(0)[:2], expected, rtol=1e-3, atol=1e-4)


def test_the_model_comes_back_with_its_pooling(tiny_model, waves, tmp_path):
    model, clips = tiny_model(selected_layers=LAYERS, temporal_pooling="mean_std"), waves(5_000, 12_000)
    model.save_pretrained(tmp_path)
    loaded = WavCSEModel.from_pretrained(tmp_path)
    assert (loaded.config.temporal_pooling, loaded.config.pooled_size) == ("mean_std", 64)
    assert np.array_equal(loaded.encode(clips), model.encode(clips))
    card = (tmp_path / "README.md").read_text()
    assert "| pooling over time | `mean_std` |" in card
    assert "outputs.pooled_layers.shape)  # torch.Size([2, 3, 64])" in card


# ---- cache, training, evaluation ----


def test_cached_layers_are_what_the_model_pools(toy_corpus, upstream_folder, tmp_path):
    cache, report = build_cache([toy_corpus], str(upstream_folder), tmp_path, temporal_pooling="mean_std")
    assert report.added == 96
    model = WavCSEModel.from_upstream(str(upstream_folder), selected_layers=LAYERS, temporal_pooling="mean_std")
    clips = Manifest(toy_corpus).clips[:3]
    facts = Inspector(tmp_path).inspect(clips, save=False)
    cached = cache.read([fact.digest for fact in facts], LAYERS)
    expected = expected_layers(model, [clip.load(RATE) for clip in clips])
    np.testing.assert_allclose(cached, expected, atol=2e-5 * np.abs(expected).max())


def test_the_command_keeps_caches_of_both_poolings_apart(toy_corpus, upstream_folder, tmp_path, capsys):
    command = ["--manifest", str(toy_corpus), "--upstream", str(upstream_folder), "--out", str(tmp_path)]
    assert cache_command.main(command) == 0
    assert cache_command.main([*command, "--temporal_pooling", "mean_std"]) == 0
    assert "96 added" in capsys.readouterr().out.splitlines()[-2]
    sizes = {open_cache(path.parent).key.temporal_pooling: open_cache(path.parent) for path in tmp_path.glob("*/cache.json")}
    shapes = {name: cache.shards[0].shape[1:] for name, cache in sizes.items()}
    assert shapes == {"mean": (4, 32), "mean_std": (4, 64)}
    with pytest.raises(ValueError, match="several feature caches; name one of them: .*mean.*, .*mean"):
        open_cache(tmp_path)


def test_a_cache_of_another_version_is_passed_over(toy_corpus, upstream_folder, tmp_path):
    cache, _ = build_cache([toy_corpus], str(upstream_folder), tmp_path)
    older = tmp_path / "0123456789ab"
    older.mkdir()
    key = read_json(cache.folder / "cache.json")
    (older / "cache.json").write_text(json.dumps({**key, "format_version": 1}))
    assert open_cache(tmp_path).folder == cache.folder
    with pytest.raises(ValueError, match="another version"):
        open_cache(older)


def test_a_search_fits_models_that_pool_as_the_cache(toy_corpus, upstream_folder, tmp_path):
    build_cache([toy_corpus], str(upstream_folder), tmp_path / "cache", temporal_pooling="mean_std")
    task = {"manifest": str(toy_corpus), "label_column": "speaker_id", "split_column": "split_sid"}
    sizes = {"selected_layers": LAYERS, "layer_projection_size": 16, "embedding_size": 24, "num_epochs": 2}
    args = RunArguments(
        tasks={"speaker": task}, cache_dir=str(tmp_path / "cache"), output_dir=str(tmp_path / "run"), save_hub=False, **sizes
    )
    table = read_table(args)
    assert (table.features.shape[2], table.config(args).temporal_pooling) == (64, "mean_std")
    assert fit(table, args)["validation"]["accuracy"].keys() == {"speaker"}


def test_layer_baselines_of_a_model_pool_as_it_does(tiny_model, waves, tmp_path):
    model = tiny_model(selected_layers=[3, 0], temporal_pooling="mean_std")
    model.save_pretrained(tmp_path)
    own, best = build_encoders(str(tmp_path), None, ["best_layer"])
    clips = waves(9_000, 5_000)
    expected = expected_layers(model, clips, layers=[0, 1, 2, 3])
    np.testing.assert_allclose(best.embed(clips).reshape(2, 4, 64), expected, atol=2e-5 * np.abs(expected).max())
    for encoder in (own, best):
        check_encoder(encoder)
    with pytest.raises(ValueError, match="temporal_pooling is 'mean', but the model .* pools by 'mean_std'"):
        build_encoders(str(tmp_path), None, ["best_layer"], temporal_pooling="mean")
