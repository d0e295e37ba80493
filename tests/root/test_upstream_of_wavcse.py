"""The upstream inside a saved wavCSE model: the same layers as in the model, wherever an upstream is asked for."""

import logging

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import WhisperConfig

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel
from wavcse.data.cache import build_cache, main
from wavcse.data.features import open_cache
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.train_accelerate import train
from wavcse.training.arguments import RunArguments

RATE = 16_000
SIZES = {"layer_projection_size": 8, "embedding_size": 20}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": 100,
}
SHAPES = {"wavlm-layer": ("wavlm", "layer"), "wav2vec2-group": ("wav2vec2", "group"), "hubert-layer": ("hubert", "layer")}
TASKS = {"keyword": {"labels": ["yes", "no"]}}


def saved(config: WavCSEConfig, folder) -> WavCSEModel:
    """Write a model whose weights are spread as trained ones are; returns its `WavCSEModel`."""
    torch.manual_seed(0)
    model = (WavCSEForMultiTask if config.tasks else WavCSEModel)(config).eval()
    with torch.no_grad():
        for parameter in model.base_model.upstream.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.wavcse if config.tasks else model


def pooled(model: WavCSEModel, clips) -> torch.Tensor:
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    with torch.no_grad():
        return model(**feature_extractor(clips, sampling_rate=RATE, return_tensors="pt")).pooled_layers


@pytest.fixture
def config_of(tiny_config):
    """Factory: `config_of(name, **fields)`, a configuration with layers 0, 1 and 3 of one kind of upstream."""

    def make(name: str, **fields) -> WavCSEConfig:
        if name != "whisper":
            return tiny_config(*SHAPES[name], **fields)
        return WavCSEConfig(WhisperConfig(**WHISPER), selected_layers=[0, 1, 3], do_normalize=False, **SIZES, **fields)

    return make


@pytest.mark.parametrize("tasks", [TASKS, {}], ids=["heads", "bare"])
@pytest.mark.parametrize("name", [*SHAPES, "whisper"])
def test_the_layers_are_the_models_to_the_bit(name, tasks, config_of, waves, tmp_path, log):
    model = saved(config_of(name, tasks=tasks), tmp_path)
    clips = waves(400, 9_000, 16_000)
    with log.at_level(logging.INFO):
        taken = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[3, 0, 1], **SIZES)
    assert not [r.getMessage() for r in log.records if r.levelno >= logging.WARNING or "unexpected" in r.getMessage().lower()]
    assert torch.equal(pooled(taken, clips), pooled(model, clips)[:, [2, 0, 1]])
    assert taken.config.tasks == {}  # only the upstream was taken


@pytest.mark.parametrize("name", ["wavlm-layer", "whisper"])
def test_it_is_saved_under_its_own_names(name, config_of, tmp_path):
    """Saved apart, as pre-training from it does, it is a plain transformers model: no name of the wavCSE model is left."""
    saved(config_of(name, tasks=TASKS), tmp_path / "wavcse")
    upstream = WavCSEModel.from_upstream(str(tmp_path / "wavcse"), selected_layers=[0, 3], **SIZES).upstream
    upstream.save_pretrained(tmp_path / "upstream")
    stored = safetensors.torch.load_file(tmp_path / "upstream" / "model.safetensors")
    assert stored.keys() == upstream.state_dict().keys()
    again = type(upstream).from_pretrained(tmp_path / "upstream").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in upstream.state_dict().items())


def test_fewer_layers_load_fewer_blocks(tiny_config, waves, tmp_path):
    model = saved(tiny_config(tasks=TASKS), tmp_path)
    taken = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1], **SIZES)
    assert len(taken.upstream.encoder.layers) == 1
    clip = waves(9_000)
    torch.testing.assert_close(pooled(taken, clip)[:, 0], pooled(model, clip)[:, 1], atol=1e-6, rtol=1e-6)


def test_a_layer_that_was_not_saved(tiny_config, tmp_path):
    saved(tiny_config(tasks=TASKS), tmp_path)  # of four blocks it needs three
    with pytest.raises(ValueError, match="asks for layer 4.* layers 0 to 3"):
        WavCSEModel.from_upstream(str(tmp_path), selected_layers=[0, 4])


def test_audio_settings_are_the_models_unless_given(tiny_config, tmp_path):
    settings = {"sampling_rate": 8_000, "do_normalize": False, "window_s": 0.5, "max_duration_s": 9.0}
    saved(tiny_config(tasks=TASKS, **settings), tmp_path)
    taken = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1], do_normalize=True, **SIZES)
    assert {name: getattr(taken.config, name) for name in settings} == {**settings, "do_normalize": True}


def test_none_of_its_python_files_is_run(tiny_config, waves, tmp_path):
    model = saved(tiny_config(tasks=TASKS), tmp_path)
    for path in tmp_path.glob("*.py"):
        path.write_text("raise SystemExit('this file was run')\n")
    assert torch.equal(
        pooled(WavCSEModel.from_upstream(str(tmp_path), selected_layers=[0, 1, 3], **SIZES), waves(5_000)),
        pooled(model, waves(5_000)),
    )


def test_missing_weights_are_reported(tiny_config, tmp_path, log):
    saved(tiny_config(tasks=TASKS), tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["wavcse.upstream.encoder.layers.1.feed_forward.output_dense.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    WavCSEModel.from_upstream(str(tmp_path), selected_layers=[2], **SIZES)
    assert "feed_forward.output_dense.weight" in log.text


# ---- the cache and what is trained on it ----


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    """A saved model with its upstream up to layer 3; windows of 0.1 s, which show in every clip of the toy corpus."""
    folder = tmp_path_factory.mktemp("wavcse")
    saved(tiny_config(tasks=TASKS, window_s=0.1), folder)
    return folder


def test_cached_layers_are_the_models_to_the_bit(folder, toy_corpus, tmp_path, monkeypatch):
    model = WavCSEModel.from_pretrained(folder).eval()
    monkeypatch.chdir(folder)  # as in the root of this repository
    assert main(["--manifest", str(toy_corpus), "--upstream", ".", "--out", str(tmp_path), "--batch_seconds", "0.01"]) == 0
    cache = open_cache(tmp_path)
    assert (cache.key.upstream, cache.key.window_s) == (folder.name, 0.1)
    clips = Manifest(toy_corpus).clips[::7]
    facts = Inspector(tmp_path).inspect(clips, save=False)
    cached = cache.read([fact.digest for fact in facts], [0, 1, 3])
    expected = torch.cat([pooled(model, [clip.load(RATE)]) for clip in clips])
    np.testing.assert_array_equal(cached, expected.numpy())


def test_the_cache_of_an_upstream_serves_the_model_made_of_all_of_it(upstream_folder, toy_corpus, tmp_path):
    original, _ = build_cache([toy_corpus], str(upstream_folder), tmp_path / "caches")
    WavCSEModel.from_upstream(str(upstream_folder), selected_layers=[0, 3], **SIZES).save_pretrained(tmp_path / "model")
    again, report = build_cache([toy_corpus], str(tmp_path / "model"), tmp_path / "caches")
    assert again.folder == original.folder
    assert (report.added, report.present) == (0, 96)


def test_training_takes_it_and_saves_it_on(folder, search_recipe, toy_corpus, tmp_path, waves):
    build_cache([toy_corpus], str(folder), tmp_path / "caches")
    places = {"cache_dir": str(tmp_path / "caches"), "upstream": str(folder), "output_dir": str(tmp_path / "run")}
    train(RunArguments(**{**search_recipe, **places, "num_epochs": 1}))
    trained, model = (WavCSEModel.from_pretrained(path).eval() for path in (tmp_path / "run" / "hub", folder))
    assert torch.equal(pooled(trained, waves(5_000)), pooled(model, waves(5_000)))


def test_the_command_line_refuses_what_is_no_model(tmp_path, toy_corpus, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "wavcse", "selected_layers": []}')
    assert main(["--manifest", str(toy_corpus), "--upstream", str(tmp_path), "--out", str(tmp_path / "caches")]) == 2
    assert "selected_layers" in capsys.readouterr().err
