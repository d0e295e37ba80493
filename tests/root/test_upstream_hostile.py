"""Foreign repositories as upstreams: nothing of theirs runs, and weights are read from safetensors only."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, WavLMModel

from wavcse import WavCSEConfig, WavCSEModel
from wavcse.data.cache import build_cache
from wavcse.eval.baselines.layers import UpstreamLayers
from wavcse.eval.encoder import SavedModel
from wavcse.modeling_wavcse import config_from_upstream
from wavcse.upstream_wavcse import load_upstream, read_config


class Payload:
    """Pickled: a call that makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path) -> Path:
    """What every planted file would make."""
    return tmp_path / "code-ran"


@pytest.fixture
def hostile(upstream_folder, tmp_path, marker) -> Path:
    """A WavLM whose configuration and preprocessor name a Python file beside them, with pickled weights of every kind."""
    folder = tmp_path / "hostile"
    shutil.copytree(upstream_folder, folder)
    for name in ("evil.py", "modeling_wavlm.py", "configuration_wavlm.py", "__init__.py"):
        (folder / name).write_text(
            f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Extractor: pass\n",
            encoding="utf-8",
        )
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoFeatureExtractor": "evil.Extractor"}
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**fields, "auto_map": auto_map}), encoding="utf-8")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    return folder


def change(folder: Path, file: str, **fields) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


@pytest.fixture(autouse=True)
def no_questions(monkeypatch):
    """transformers asks on the terminal whether code may run; nobody is to be asked."""

    def refuse(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", refuse)


def test_code_beside_an_upstream_never_runs(hostile, marker, upstream_folder, tmp_path, toy_corpus):
    model = WavCSEModel.from_upstream(str(hostile), selected_layers=[0, 2])
    expected = WavLMModel.from_pretrained(upstream_folder).state_dict()
    assert torch.equal(
        model.upstream.state_dict()["encoder.layers.1.final_layer_norm.bias"],
        expected["encoder.layers.1.final_layer_norm.bias"],
    )
    assert model.config.do_normalize is True
    build_cache([toy_corpus], str(hostile), tmp_path / "cache")
    UpstreamLayers(str(hostile))
    assert not marker.exists()


@pytest.mark.parametrize("load", [config_from_upstream, read_config, UpstreamLayers, WavCSEModel.from_upstream])
def test_a_foreign_kind_of_model_is_refused(hostile, marker, load):
    change(hostile, "config.json", model_type="evil")
    with pytest.raises(ValueError, match="model_type 'evil'.*is not run here|code of its own, which is not run here"):
        load(str(hostile))
    assert not marker.exists()


def test_what_is_no_upstream_is_named(hostile):
    change(hostile, "config.json", model_type=["evil"])
    with pytest.raises(
        ValueError,
        match=r"model_type \['evil'\]; an upstream is one of wavlm, wav2vec2, hubert, whisper, .* or",
    ):
        read_config(str(hostile))
    change(hostile, "config.json", model_type="wavlm", hidden_size="wide")
    with pytest.raises(ValueError, match="hidden_size"):
        WavCSEModel.from_upstream(str(hostile), selected_layers=[0])


def test_a_preprocessor_of_its_own_is_not_passed_over(hostile, marker):
    change(hostile, "preprocessor_config.json", feature_extractor_type=None)
    (hostile / "preprocessor_config.json").write_text('{"auto_map": {"AutoFeatureExtractor": "evil.Extractor"}}')
    change(hostile, "config.json", feature_extractor_type="EvilExtractor")
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json is none of transformers' own.*give `sampling_rate` and `do_n"
    ):
        config_from_upstream(str(hostile), selected_layers=[0])
    config = config_from_upstream(str(hostile), selected_layers=[0], sampling_rate=8_000, do_normalize=False)
    assert (config.sampling_rate, config.do_normalize) == (8_000, False)
    assert not marker.exists()


@pytest.mark.parametrize("pickled", ["hostile", "honest"])
def test_pickled_weights_are_refused_with_the_way_out(hostile, marker, upstream_folder, pickled, toy_corpus, tmp_path):
    (hostile / "model.safetensors").unlink()
    if pickled == "honest":
        torch.save(WavLMModel.from_pretrained(upstream_folder).state_dict(), hostile / "pytorch_model.bin")
    config = AutoConfig.from_pretrained(upstream_folder)
    for load in (
        lambda: WavCSEModel.from_upstream(str(hostile), selected_layers=[0, 2]),
        lambda: load_upstream(str(hostile), config),
        lambda: build_cache([toy_corpus], str(hostile), tmp_path / "cache"),
        lambda: SavedModel(str(hostile)).weights_sha256(),
    ):
        with pytest.raises(
            ValueError, match=r"No safetensors weights of '.*hostile' were found.*not read.*save_pretrained\(folder"
        ):
            load()
    assert not marker.exists()


def test_a_wavcse_model_is_read_from_safetensors_only(tiny_model, tmp_path, marker):
    tiny_model().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").unlink()
    (tmp_path / "saved" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises((OSError, ValueError), match="model.safetensors"):
        WavCSEModel.from_pretrained(tmp_path / "saved")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the trap would have shown


def test_code_beside_a_wavcse_model_does_not_run_as_an_upstream(tiny_model, tmp_path, marker):
    tiny_model().save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.py"):
        file.write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    assert isinstance(read_config(str(tmp_path / "saved")), WavCSEConfig)
    WavCSEModel.from_upstream(str(tmp_path / "saved"), selected_layers=[0, 1])
    assert not marker.exists()
