"""Any transformers audio checkpoint as a baseline: its layers against transformers' own hidden states, one clip at a time."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    BertConfig,
    BertModel,
    SeamlessM4TFeatureExtractor,
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.modeling_utils import PreTrainedModel

from wavcse.eval.__main__ import main
from wavcse.eval.baselines import BASELINES, build_encoders, short_name
from wavcse.eval.baselines.layers import HiddenStateLayers, UpstreamLayers, UpstreamPasses
from wavcse.eval.encoder import SavedModel, check_encoder

SAMPLING_RATE = 16_000
LAYER_BASELINES = ["last_layer", "mean_layers", "best_layer"]
WHISPER_WINDOW_S = 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
STEM = {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4}
LARGE = {**SIZES, **STEM, "num_conv_pos_embeddings": 16, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
BASE = {**SIZES, **STEM, "num_conv_pos_embeddings": 16}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MOONSHINE = {"encoder_num_hidden_layers": 3, "decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 4}
MOONSHINE |= {"decoder_num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 20}
FAMILIES = {  # model type -> fields of a tiny one; all but the last two are families of upstreams
    "wavlm": LARGE,
    "hubert": LARGE,
    "wav2vec2": BASE,
    "whisper": {**WHISPER, "max_source_positions": WHISPER_WINDOW_S * 50},
    "data2vec-audio": {**SIZES, **STEM, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
    "unispeech-sat": LARGE,
    "sew": {**BASE, "conv_dim": [16] * 13},
    "sew-d": {**BASE, "conv_dim": [16] * 13},
    "wav2vec2-bert": {**SIZES, "feature_projection_input_dim": 160, "position_embeddings_type": "relative"},
    "moonshine": MOONSHINE,
    "unispeech": LARGE,
    "speech_to_text": {**WHISPER, "max_source_positions": 6000, "conv_channels": 32, "input_feat_per_channel": 80},
}
OF_UPSTREAMS = list(FAMILIES)[:-2]


def feature_extractor(model_type: str):
    if model_type == "whisper":
        return WhisperFeatureExtractor(chunk_length=WHISPER_WINDOW_S)
    if model_type == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor()
    if model_type == "speech_to_text":
        return Speech2TextFeatureExtractor()
    return Wav2Vec2FeatureExtractor(do_normalize=model_type != "moonshine", return_attention_mask=True)


@pytest.fixture(scope="session")
def audio_checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Factory: folder of a tiny checkpoint of a family, weights spread so that layers differ."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            torch.manual_seed(0)
            model = AutoModel.from_config(AutoConfig.for_model(model_type, **FAMILIES[model_type])).eval()
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            made[model_type] = tmp_path_factory.mktemp("checkpoints") / f"tiny-{model_type}"
            model.save_pretrained(made[model_type])
            feature_extractor(model_type).save_pretrained(made[model_type])
        return made[model_type]

    return make


@pytest.mark.parametrize("model_type", FAMILIES)
def test_frames_have_no_padding_and_their_mean_is_the_pooled_layer(model_type, audio_checkpoint, waves):
    source = UpstreamLayers(str(audio_checkpoint(model_type)))
    clips = waves(16_000, 9_000, 40_000, 16_000)  # the third is longer than Whisper's window here
    layers = [source.num_layers - 1, 0]
    together = source.frames(clips, layers)
    for clip, frames, pooled in zip(clips, together, source.all_layers(clips)):
        assert frames.dtype == np.float32
        assert frames.shape[1:] == (2, source.layer_size)
        np.testing.assert_allclose(frames.mean(axis=0), pooled[layers], atol=1e-5 * np.abs(pooled).max())
        (alone,) = source.frames([clip], layers)
        np.testing.assert_allclose(alone, frames, atol=1e-5 * np.abs(frames).max())


def reference(folder: Path, clip: np.ndarray, temporal_pooling: str = "mean") -> np.ndarray:
    """`[L, D]` of one clip: transformers' hidden states, the last one as the final LayerNorm (if any) receives it."""
    model = AutoModel.from_pretrained(folder)
    extracted = AutoFeatureExtractor.from_pretrained(folder)(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    kind = model.config.model_type
    runs = model.encoder if model.config.is_encoder_decoder else model
    unnormalised = []
    if kind in ("wavlm", "hubert", "unispeech-sat", "unispeech", "whisper", "moonshine"):
        model.encoder.layer_norm.register_forward_pre_hook(lambda module, inputs: unnormalised.append(inputs[0]))
    with torch.no_grad():
        states = list(runs(**extracted, output_hidden_states=True).hidden_states)
    states[-1:] = unnormalised or states[-1:]
    frames = states[0].shape[1]
    if kind == "whisper":
        frames = math.ceil(len(clip) / 320)
    elif kind == "wav2vec2-bert":
        frames = int(extracted["attention_mask"].sum())
    layers = torch.stack([state[0, :frames] for state in states]).double().numpy()
    if temporal_pooling == "mean":
        return layers.mean(axis=1)
    return np.concatenate([layers.mean(axis=1), layers.std(axis=1)], axis=1)


def context_of(family: str) -> dict:
    """Whisper in windows, as transformers' feature extractor fills them; other families have no such choice."""
    return {"context": "window"} if family == "whisper" else {}


def counted(layers: UpstreamLayers) -> list[int]:
    """Sizes of the batches that go through the upstream from now on."""
    passes, run = [], layers.passes.pooled

    def pooled(waveforms):
        passes.append(len(waveforms))
        return run(waveforms)

    layers.passes.pooled = pooled
    return passes


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_time_means_of_the_hidden_states(family, audio_checkpoint, waves):
    folder = audio_checkpoint(family)
    layers = UpstreamLayers(str(folder), **context_of(family))
    assert isinstance(layers.passes, UpstreamPasses if family in OF_UPSTREAMS else HiddenStateLayers)
    assert (layers.num_layers, layers.layer_size, layers.sampling_rate) == (4, 32, SAMPLING_RATE)
    clips = waves(9_000, 16_001, 4_700, 16_001)
    found = layers.all_layers(clips)
    assert found.dtype == np.float32
    assert found.shape == (4, 4, 32)
    for clip, of_clip in zip(clips, found):
        expected = reference(folder, clip)
        np.testing.assert_allclose(of_clip, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
        differences = np.abs(np.diff(of_clip, axis=0)).max(axis=1)
        assert (differences > 1e-2 * np.abs(expected).max()).all()  # else a wrong layer would not show


def test_frames_that_a_feature_extractor_adds_are_left_out(audio_checkpoint, waves):
    folder, clips = audio_checkpoint("wav2vec2-bert"), waves(16_000, 16_160)  # an odd and an even number of mel frames
    with torch.no_grad():
        found = HiddenStateLayers(SavedModel(str(folder))).pooled(clips).numpy()
    np.testing.assert_allclose(found, [reference(folder, clip) for clip in clips], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_and_standard_deviation(family, audio_checkpoint, waves):
    folder, clips = audio_checkpoint(family), waves(9_000, 16_001)
    (encoder,) = build_encoders(str(folder), None, ["best_layer"], temporal_pooling="mean_std", **context_of(family))
    assert (encoder.embedding_size, encoder.identity["temporal_pooling"]) == (64, "mean_std")
    assert "temporal_pooling" not in UpstreamLayers(str(folder)).identity
    for clip, of_clip in zip(clips, encoder.embed(clips).reshape(2, 4, 64)):
        expected = reference(folder, clip, "mean_std")
        np.testing.assert_allclose(of_clip, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_whisper_checkpoints_are_read_at_the_clips_own_length_unless_asked_otherwise(audio_checkpoint, waves):
    folder, clips = str(audio_checkpoint("whisper")), waves(9_000, 16_001)
    own, windows = UpstreamLayers(folder), UpstreamLayers(folder, context="window")
    assert (own.identity["context"], windows.identity["context"]) == ("clip", "window")
    whole_window = waves(32_000)
    np.testing.assert_allclose(own.all_layers(whole_window), windows.all_layers(whole_window), rtol=1e-4, atol=1e-4)
    assert np.abs(own.all_layers(clips) - windows.all_layers(clips)).max() > 0.01
    with pytest.raises(ValueError, match="context is 'clip', a choice of Whisper alone; .* is of type 'hubert'"):
        build_encoders(str(audio_checkpoint("hubert")), None, [], context="clip")


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_depend_on_nothing_but_the_clip(family, audio_checkpoint):
    encoders = build_encoders(str(audio_checkpoint(family)), None, LAYER_BASELINES)
    for encoder in encoders:
        check_encoder(encoder)


@pytest.mark.parametrize("family", ["hubert", "unispeech"])
def test_readouts_are_taken_from_one_pass(family, audio_checkpoint, waves):
    last, mean, best = build_encoders(str(audio_checkpoint(family)), None, LAYER_BASELINES)
    passes = counted(best.source)
    first, second = waves(4000, 5000), waves(4500, seed=1)
    for batch in (first, second):
        means = best.source.all_layers(batch)
        assert (best.num_candidates, best.embedding_size) == (4, 32)
        for layer, candidate in enumerate(np.split(best.embed(batch), best.num_candidates, axis=1)):
            np.testing.assert_array_equal(candidate, means[:, layer])
        np.testing.assert_array_equal(last.embed(batch), means[:, 3])
        np.testing.assert_allclose(mean.embed(batch), sum(means[:, layer] for layer in range(4)) / 4, rtol=1e-5, atol=1e-6)
    assert passes == [2, 1]


def test_a_checkpoint_is_named_after_itself_and_shown_by_all_its_readouts(audio_checkpoint):
    folder = str(audio_checkpoint("hubert"))
    for name in (None, "wavcse"):
        names = [encoder.name for encoder in build_encoders(folder, name, ["majority", "mfcc"])]
        assert names == [*(f"tiny-hubert_{readout}" for readout in LAYER_BASELINES), "majority", "mfcc"]
    encoders = build_encoders(folder, "mine", ["mean_layers", "mean_layers"])
    assert [encoder.name for encoder in encoders] == ["mine_mean_layers"]
    assert short_name("facebook/hubert-large-ll60k@refs/pr/3") == "hubert-large-ll60k"
    assert short_name("somebody/a model+") == "a-model-"


def test_identity_says_what_was_read(audio_checkpoint):
    folder = audio_checkpoint("wav2vec2")
    last, mean, best = build_encoders(str(folder), None, LAYER_BASELINES)
    assert last.identity == {
        "model": f"{folder.parent.name}/{folder.name}",
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "config_sha256": best.identity["config_sha256"],
        "layer": "3",
    }
    assert mean.identity["layers"] == best.identity["layers"] == "0-3"


def test_identity_differs_with_all_that_changes_a_vector(audio_checkpoint, tmp_path):
    folder = audio_checkpoint("wav2vec2")
    shutil.copytree(folder, tmp_path / "other")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "other")
    requests = [(str(folder), None), (str(folder), "bfloat16"), (str(tmp_path / "other"), None)]
    identities = [UpstreamLayers(model, precision=precision).identity for model, precision in requests]
    kept = [{name: value for name, value in identity.items() if name != "model"} for identity in identities]
    assert kept[0] != kept[1]
    assert kept[0] != kept[2]
    assert kept[0] == {name: value for name, value in kept[1].items() if name != "precision"}


def test_shards_are_hashed_in_order(audio_checkpoint, waves, tmp_path):
    folder = audio_checkpoint("hubert")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    feature_extractor("hubert").save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    layers = UpstreamLayers(str(tmp_path))
    hashes = "".join(hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards)
    assert layers.identity["weights_sha256"] == hashlib.sha256(hashes.encode()).hexdigest()
    clips = waves(5000)
    np.testing.assert_array_equal(layers.all_layers(clips), UpstreamLayers(str(folder)).all_layers(clips))


def test_a_long_clip_is_the_frame_weighted_mean_of_its_parts(audio_checkpoint, waves, monkeypatch):
    layers = UpstreamLayers(str(audio_checkpoint("unispeech")))
    (clip,) = waves(13_200 + 2 * 13_199)
    parts = np.array_split(clip, 3)
    frames = [1 + (len(part) - 400) // 320 for part in parts]
    assert frames == [41, 40, 40]
    expected = np.average([layers.all_layers([part])[0] for part in parts], axis=0, weights=frames)
    monkeypatch.setattr("wavcse.eval.baselines.layers.WINDOW_S", 1.0)
    np.testing.assert_allclose(layers.all_layers([clip])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy.*", "ignore::RuntimeWarning:transformers.*")
@pytest.mark.parametrize("family", ["wav2vec2", "unispeech", "wav2vec2-bert"])
def test_a_clip_that_is_too_short_is_named(family, audio_checkpoint, waves):
    layers = UpstreamLayers(str(audio_checkpoint(family)))
    with pytest.raises(ValueError, match="clip 1: has 300 samples"):
        layers.all_layers(waves(5000, 300))


def test_other_precisions_are_for_the_packed_families(audio_checkpoint, waves):
    exact, rounded = (UpstreamLayers(str(audio_checkpoint("hubert")), precision=p) for p in (None, "bfloat16"))
    clips = waves(5000)
    assert 0 < np.abs(exact.all_layers(clips) - rounded.all_layers(clips)).max() < 0.2
    with pytest.raises(ValueError, match="precision='bfloat16' is not available for .* of type 'unispeech'"):
        UpstreamLayers(str(audio_checkpoint("unispeech")), precision="bfloat16")


@pytest.mark.usefixtures("quick_probes")
def test_checkpoints_are_compared_in_one_table(audio_checkpoint, toy_corpus, tmp_path):
    """One command line per checkpoint; the results of both stay in the folder."""
    common = ["--manifest", str(toy_corpus), "--tasks", "keyword", "--output_dir", str(tmp_path), "--device", "cpu"]
    for family in ("hubert", "unispeech"):
        assert main(["--model", str(audio_checkpoint(family)), "--baselines", "last_layer", *common]) == 0
    header = (tmp_path / "results.md").read_text().splitlines()[0]
    assert {"tiny-hubert_last_layer", "tiny-unispeech_last_layer"} <= {column.strip() for column in header.split("|")}
    record = json.loads((tmp_path / "results" / "keyword__tiny-hubert_last_layer.json").read_text())
    assert record["encoder"]["layer"] == "3"


def save(model: PreTrainedModel, folder: Path, extractor=None) -> Path:
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    return save(BertModel(BertConfig(vocab_size=30, **SIZES)), folder)


def bert_with_an_audio_preprocessor(folder: Path) -> Path:
    return save(BertModel(BertConfig(vocab_size=30, **SIZES)), folder, Wav2Vec2FeatureExtractor())


def of_fixed_length(folder: Path) -> Path:
    config = ASTConfig(**SIZES, max_length=64, num_mel_bins=32)
    return save(ASTModel(config), folder, ASTFeatureExtractor(max_length=64, num_mel_bins=32))


def of_unknown_type_with_code(folder: Path) -> Path:
    folder.mkdir()
    auto_map = {name: f"code.{name}" for name in ("AutoConfig", "AutoModel")}
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": auto_map}))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def damaged(folder: Path) -> Path:
    save(AutoModel.from_config(AutoConfig.for_model("hubert", **LARGE)), folder, Wav2Vec2FeatureExtractor())
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


REFUSALS = {
    bert: "cannot be loaded; give the folder of a saved wavCSE model or of a transformers audio model",
    bert_with_an_audio_preprocessor: "of type 'bert' gives no frames to pool over time",
    of_fixed_length: "cut or padded to one length",
    of_unknown_type_with_code: "cannot be loaded",
    damaged: "cannot be loaded",
    empty: "There is no config.json",
    Path: "cannot be loaded",
}


@pytest.mark.parametrize("make", REFUSALS, ids=lambda make: make.__name__)
def test_what_cannot_be_read_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match=REFUSALS[make]):
        build_encoders(str(make(tmp_path / "model")), None, [])
    assert not (tmp_path / "model" / "ran").exists()  # no code of a model that is not a wavCSE model


@pytest.mark.parametrize("family", ["hubert", "unispeech"])
def test_pickled_weights_are_refused_unread(family, audio_checkpoint, tmp_path):
    model = AutoModel.from_pretrained(audio_checkpoint(family))
    model.config.save_pretrained(tmp_path)
    feature_extractor(family).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"No safetensors weights.*pytorch_model.bin.*refs/pr/N.*save_pretrained"):
        build_encoders(str(tmp_path), None, [])


def test_baselines_are_checked_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"unknown \['lpc'\]; allowed: last_layer, mean_layers, best_layer, mfcc, "):
        build_encoders(str(tmp_path), None, ["lpc"])
    with pytest.raises(ValueError, match="'best_layer' reads layers of a model: give --model"):
        build_encoders(None, None, ["mfcc", "best_layer"])
    assert [encoder.name for encoder in build_encoders(None, None, ["majority", "mfcc"])] == ["majority", "mfcc"]
    assert list(BASELINES) == [*LAYER_BASELINES, "mfcc", "egemaps", "resemblyzer", "majority"]


def test_a_revision_is_read_off_the_id(tmp_path):
    assert SavedModel.parse("org/name@v1") == SavedModel("org/name", "v1")
    assert SavedModel.parse("org/name") == SavedModel("org/name")
    folder = tmp_path / "with@sign"
    folder.mkdir()
    assert SavedModel.parse(str(folder)) == SavedModel(str(folder))
    assert str(SavedModel("org/name", "v1")) == "org/name@v1"
