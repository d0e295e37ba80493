"""Exported models: the model's own numbers in a padded batch, for every upstream family, and through the real runtimes."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from wavcse import WavCSEFeatureExtractor, WavCSEModel
from wavcse.benchmarks import bench_export
from wavcse.data.files import write_json
from wavcse.doors.export import load_run, padded, write_onnx, write_to_card, write_torch_export
from wavcse.doors.exportable import ExportableModel
from wavcse.eval.encoder import SavedModel
from wavcse.hub.build import build_repository
from wavcse.hub.source import read_source
from wavcse.tests.helpers.door_pages import run_first_block
from wavcse.tests.helpers.tiny_families import MOONSHINE, WHISPER
from wavcse_cli import main

FAMILIES = [
    *((family, norm, {}) for family in ("wavlm", "wav2vec2", "hubert") for norm in ("group", "layer")),
    ("unispeech-sat", "group", {}),
    ("data2vec-audio", "layer", {"do_stable_layer_norm": False}),
    ("hubert", "group", {"conv_pos_batch_norm": True}),
]
SAMPLES = (9001, 4000, 1201, 720)
FOUND = {"error": 1e-6, "batch_error": 2e-7, "cosine": 0.99, "megabytes": 2, "speed": 7, "model_speed": 9, "threads": 1}


def wide(model):
    """The model with weights far from those at initialisation, so that attention and norms show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.upstream.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
    return model


@pytest.mark.parametrize("temporal_pooling", ["mean", "mean_std"])
@pytest.mark.parametrize(("family", "norm", "changes"), FAMILIES)
def test_a_padded_batch_has_the_models_own_embeddings(family, norm, changes, temporal_pooling, tiny_model, waves):
    model = wide(tiny_model(family, norm, changes, temporal_pooling=temporal_pooling))
    exportable, clips = ExportableModel(model), [torch.tensor(wave) for wave in waves(*SAMPLES)]
    with torch.no_grad():
        own = torch.cat([model(clip[None]).embeddings for clip in clips])
        together = exportable(*padded(clips))
        alone = torch.cat([exportable(*padded([clip])) for clip in clips])
    assert (together - own).abs().max() <= 1e-5 * own.abs().max()
    assert (together - alone).abs().max() <= 1e-5 * own.abs().max()


def test_frames_are_those_of_the_model_without_padding(tiny_model, waves):
    model = wide(tiny_model("wavlm", "group"))
    clips = [torch.tensor(wave) for wave in waves(*SAMPLES)]
    with torch.no_grad():
        _, frames, num_frames = ExportableModel(model, with_frames=True)(*padded(clips))
        states = [model(clip[None], output_hidden_states=True).hidden_states for clip in clips]
    assert num_frames.tolist() == [state[0].shape[1] for state in states]
    for row, state in enumerate(states):
        own = torch.stack([state[layer][0] for layer in model.config.selected_layers], dim=1)
        torch.testing.assert_close(frames[row, : num_frames[row]], own, atol=1e-5, rtol=1e-4)
        assert not frames[row, num_frames[row] :].any()


@pytest.fixture(scope="module")
def whisper():
    """Factory: a tiny Whisper model with positions for 2 s."""

    def make(**fields) -> WavCSEModel:
        upstream = {**WHISPER, "model_type": "whisper", "dropout": 0.0}
        own = {"selected_layers": [0, 1, 3], "layer_projection_size": 8, "embedding_size": 20, "do_normalize": False}
        return wide(WavCSEModel(WavCSEModel.config_class(upstream, **{**own, **fields}))).eval()

    return make


def sounds(*lengths: int) -> list[torch.Tensor]:
    """Clips with a loud beginning and a quiet end, below the range that Whisper's spectrogram keeps."""
    generator = np.random.default_rng(0)
    decays = [np.exp(-np.arange(length) / 900) * generator.standard_normal(length) for length in lengths]
    return [torch.from_numpy(decay.astype(np.float32)) for decay in decays]


@pytest.mark.parametrize("temporal_pooling", ["mean", "mean_std"])
def test_whisper_has_its_own_embeddings_at_the_clips_own_length(temporal_pooling, whisper):
    model = whisper(temporal_pooling=temporal_pooling)
    # The last mel frame looks 40 samples beyond the last whole frame of 20 ms: on none, some and all of them there is audio.
    exportable, clips = ExportableModel(model), sounds(400, 401, 16_000, 16_001, 15_990, 15_841, 31_999)
    with torch.no_grad():
        own = torch.cat([model(clip[None]).embeddings for clip in clips])
        together = exportable(*padded(clips))
        alone = torch.cat([exportable(*padded([clip])) for clip in clips])
    assert (together - own).abs().max() <= 1e-5 * own.abs().max()
    assert (together - alone).abs().max() <= 1e-5 * own.abs().max()
    with pytest.raises(RuntimeError), torch.no_grad():
        exportable(*padded(sounds(32_001)))  # there are no positions for it


def test_whisper_in_windows_and_families_of_modules_are_refused(tmp_path, whisper, capsys):
    whisper(context="window").save_pretrained(tmp_path / "whisper")
    assert main(["export", "--model", str(tmp_path / "whisper"), "--format", "torch-export"]) == 2
    assert "whisper model in the context 'window' cannot be exported" in capsys.readouterr().err.lower()
    moonshine = WavCSEModel.config_class({"model_type": "moonshine", **MOONSHINE}, selected_layers=[1])
    with pytest.raises(ValueError, match="upstream of the family moonshine cannot be exported yet; those of wavlm, .* can"):
        ExportableModel(WavCSEModel(moonshine))


def record_exports(folder, *names: str) -> None:
    """As if these files had been exported from the weights that lie in the folder."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    digest = SavedModel.parse(str(folder)).weights_sha256()
    write_json(folder / "exports.json", {name: {**FOUND, "weights_sha256": digest} for name in names}, indent=1)


def test_the_card_gets_one_section_that_later_exports_replace(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    before = card.read_text()
    record_exports(tmp_path, "onnx/model.onnx")
    assert write_to_card(tmp_path)
    record_exports(tmp_path, "onnx/model.onnx", "torch_export/model.pt2")
    assert write_to_card(tmp_path)
    text = card.read_text()
    row = "| `torch_export/model.pt2` | 2.0 | 1.0e-06 | 2.0e-07 | 0.990000 | 7 / 9 (1) |"
    assert text.count("## Exported files") == text.count(row) == text.count("## Python files that run") == 1
    start, end = text.index("## Exported files"), text.index("## Python files that run")
    assert text[:start] + text[end:] == before
    card.write_text("mine")
    assert not write_to_card(tmp_path)
    assert card.read_text() == "mine"


def test_a_later_save_or_push_keeps_the_section_and_tells_of_other_weights(tiny_model, tmp_path):
    model, pushed = tiny_model(), tmp_path.with_name(f"{tmp_path.name}-pushed")
    model.save_pretrained(tmp_path)
    record_exports(tmp_path, "onnx/model.onnx", "torch_export/model.pt2")
    write_to_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    pushed.mkdir()
    assert build_repository(read_source(tmp_path), pushed, "me/it")
    assert (pushed / "onnx/model.onnx").is_file()
    assert text[text.index("## Exported files") : text.index("## Python files")] in (pushed / "README.md").read_text()
    (tmp_path / "torch_export/model.pt2").unlink()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| `onnx/model.onnx` | of other weights: export it again |  |  |  |  |\n" in text
    assert "model.pt2" not in text
    (tmp_path / "exports.json").write_text('{"onnx/model.onnx": {"error": "none"}}')
    model.save_pretrained(tmp_path)
    assert "## Exported files" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "torch-export", "--precision", "int8"], "precision int8 is for format onnx"),
        (["--clips", "absent.wav"], "absent.wav: there is no such audio file"),
        (["--model", "org/name"], "org/name is on the Hub; give the folder of the files with --out"),
    ],
)
def test_what_cannot_be_exported_is_named(words, message, hub, capsys):
    assert main(["export", *(["--model", str(hub)] if "--model" not in words else []), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    """A base-shape WavLM, whose group norm and position bias both have to be told of padding."""
    folder = tmp_path_factory.mktemp("hub")
    wide(tiny_model("wavlm", "group")).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_torch_export_program_runs_any_batch_and_length(hub, tmp_path, waves):
    assert main(["export", "--model", str(hub), "--format", "torch-export", "--out", str(tmp_path)]) == 0
    program = torch.export.load(tmp_path / "torch_export/model.pt2").module()
    model = WavCSEModel.from_pretrained(hub).eval()
    for lengths in ((5000,), (1201, 9001, 720), (16_000, 16_000)):
        clips = [torch.tensor(wave) for wave in waves(*lengths)]
        with torch.no_grad():
            own = model(clips).embeddings
            assert (program(*padded(clips)) - own).abs().max() <= 1e-5 * own.abs().max()


@pytest.mark.slow
def test_a_torch_export_program_of_whisper_runs_any_batch_and_length(whisper, tmp_path):
    model = whisper()
    write_torch_export(model, tmp_path / "model.pt2", with_frames=True)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for lengths in ((5000,), (1201, 9001, 720), (31_000, 32_000)):
        clips = sounds(*lengths)
        with torch.no_grad():
            own = torch.cat([model(clip[None]).embeddings for clip in clips])
            embeddings, frames, num_frames = program(*padded(clips))
        assert (embeddings - own).abs().max() <= 1e-5 * own.abs().max()
        assert num_frames.tolist() == [-(-length // 320) for length in lengths]
        assert frames.shape == (len(lengths), num_frames.max(), 3, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "batches"),
    [
        ("eager", ((5000, 3000), (1201, 9001, 720))),
        ("aot_eager", ((5000, 3000),)),
        pytest.param(
            "inductor", ((5000, 3000),), marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
        ),
    ],
)
def test_a_compiled_model_has_the_same_numbers(backend, batches, hub, waves):
    torch.compiler.reset()
    model = WavCSEModel.from_pretrained(hub).eval()
    compiled = torch.compile(model, backend=backend)
    for lengths in batches:  # the second is compiled again
        inputs = padded([torch.tensor(wave) for wave in waves(*lengths)])
        with torch.no_grad():
            own, found = model(*inputs).embeddings, compiled(*inputs).embeddings
        assert (found - own).abs().max() <= 1e-5 * own.abs().max()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0  # something was compiled


@pytest.mark.doors
def test_the_page_runs_and_onnxruntime_gives_the_models_embeddings(hub, tmp_path, monkeypatch, waves, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path / "model"
    shutil.copytree(hub, folder)
    monkeypatch.chdir(tmp_path)
    run_first_block("export.md")
    shown = capsys.readouterr().out
    assert shown.count("README.md: says so") == 2
    assert "`onnx/model_qint8.onnx`" in (folder / "README.md").read_text()
    exports = json.loads((folder / "exports.json").read_text())
    assert exports["onnx/model.onnx"]["error"] <= 1e-5
    assert exports["onnx/model.onnx"]["batch_error"] <= 1e-5
    assert 0.9 < exports["onnx/model_qint8.onnx"]["cosine"] < 0.999999
    assert exports["onnx/model_qint8.onnx"]["megabytes"] < exports["onnx/model.onnx"]["megabytes"]
    model = WavCSEModel.from_pretrained(folder).eval()
    extractor = WavCSEFeatureExtractor.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    for lengths in ((5000,), (1201, 9001, 720), (16_000, 16_000)):
        clips = waves(*lengths)
        inputs = extractor(clips, sampling_rate=16_000, return_tensors="np", return_attention_mask=True)
        found = session.run(["embeddings"], {name: inputs[name] for name in ("input_values", "attention_mask")})[0]
        own = model.encode(clips)
        np.testing.assert_allclose(found, own, atol=1e-5 * np.abs(own).max())


@pytest.mark.doors
def test_the_benchmark_writes_errors_and_speeds(hub, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(bench_export, "WORKLOADS", {"1 clip of 0.2 s": (1, 0.2)})
    monkeypatch.setattr(bench_export, "CORPORA", ())
    titles = ["ONNX int8", "torch-export float32"]
    bench_export.main(["--model", str(hub), "--rounds", "2", "--out", str(tmp_path / "export.json"), "--files", *titles])
    files = json.loads((tmp_path / "export.json").read_text())["files"]
    assert list(files) == titles
    for title, own in files.items():
        assert own["error"] <= 1e-5 if title.endswith("float32") else 1e-5 < own["error"] < 0.5
        assert own["speeds"][0]["file_audio_s_per_cpu_s"] > 0
    text = (tmp_path / "export.md").read_text()
    assert f"| ONNX int8            | {files['ONNX int8']['megabytes']:.1f} " in text
    assert "5 clips of noise." in text
    assert text in capsys.readouterr().out


@pytest.mark.doors
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnxruntime_gives_whispers_embeddings(precision, whisper, tmp_path):
    pytest.importorskip("onnxruntime")
    model = whisper(temporal_pooling="mean_std")
    write_onnx(model, tmp_path / "model.onnx", precision=precision)
    run = load_run(tmp_path / "model.onnx")
    for lengths in ((5000,), (1201, 9001, 720), (31_000, 32_000)):
        clips = sounds(*lengths)
        with torch.no_grad():
            own = torch.cat([model(clip[None]).embeddings for clip in clips])
        error = (run(*padded(clips)) - own).abs().max() / own.abs().max()
        assert error <= 1e-5 if precision == "float32" else 1e-4 < error < 0.2


@pytest.mark.doors
def test_onnx_frames_are_an_output(hub, tmp_path, waves):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", "--model", str(hub), "--frames", "--out", str(tmp_path)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model_frames.onnx")
    values, mask = padded([torch.tensor(wave) for wave in waves(*SAMPLES)])
    _, frames, num_frames = session.run(None, {"input_values": values.numpy(), "attention_mask": mask.numpy()})
    exportable = ExportableModel(WavCSEModel.from_pretrained(hub), with_frames=True)
    with torch.no_grad():
        wanted = exportable(values, mask)
    np.testing.assert_allclose(frames, wanted[1], atol=1e-4)
    assert num_frames.tolist() == wanted[2].tolist()
