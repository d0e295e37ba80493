"""A saved folder is a complete Hub repository: it loads, and embeds to the bit alike, where `wavcse` does not exist."""

import ast
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import yaml

import wavcse
from wavcse import WavCSEForMultiTask
from wavcse.hub_repository_wavcse import CODE_FILES, HANDLER, SENTENCE_TRANSFORMERS
from wavcse.tests.helpers.strangers import run_without_wavcse

ROOT = Path(wavcse.__file__).parent
EXAMPLE = ROOT / "examples" / "embed_a_file.py"
RATE, OTHER_RATE = 16_000, 22_050
REPOSITORY = {*CODE_FILES, *SENTENCE_TRANSFORMERS, HANDLER, "README.md"}
REPOSITORY |= {"config.json", "model.safetensors", "preprocessor_config.json"}
ENTRIES = ("configuration", "feature_extraction", "finetuned", "modeling", "pipeline", "sentence_transformers", "endpoint")

LOAD = """
import numpy as np
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

folder, audio, saved_again, out = sys.argv[1:]
clip, rate = soundfile.read(audio, dtype="float32")
results = {}

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
inputs = extractor(clip, sampling_rate=rate, return_tensors="pt")
with torch.no_grad():
    results["AutoModel"] = model(**inputs).embeddings
    heads = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    results["logits"] = heads(**inputs).logits

embed = pipeline("feature-extraction", model=folder, trust_remote_code=True)
results["path"] = embed(audio, return_tensors=True)
results["bytes"] = embed(open(audio, "rb").read(), return_tensors=True)
results["array"] = embed(clip, return_tensors=True)
results["mapping"] = embed({"array": clip, "sampling_rate": rate}, return_tensors=True)
results["other rate"] = embed({"array": clip, "sampling_rate": OTHER_RATE}, return_tensors=True)
results["plain"] = embed(audio)
results["batch"] = embed([clip, clip[:5000], clip[::-1].copy()], batch_size=2, return_tensors=True)
results["batch as lists"] = embed([clip, clip[:5000]], batch_size=2)

model.save_pretrained(saved_again)
with torch.no_grad():
    results["saved again"] = AutoModel.from_pretrained(saved_again, trust_remote_code=True)(**inputs).embeddings

for loader in (AutoModel, AutoFeatureExtractor):
    try:
        loader.from_pretrained(folder)
    except ValueError as error:
        results[f"untrusted {loader.__name__}"] = str(error)
try:
    pipeline("feature-extraction", model=folder)
except ValueError as error:
    results["untrusted pipeline"] = str(error)
torch.save(results, out)
"""


@pytest.fixture(scope="module")
def trained(tiny_multi_task_model) -> WavCSEForMultiTask:
    """What a training run leaves: an embedding model with heads."""
    return tiny_multi_task_model()


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """The saved repository of `trained`."""
    folder = tmp_path_factory.mktemp("hub")
    trained.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(waves) -> np.ndarray:
    return waves(12_000)[0]


@pytest.fixture(scope="module")
def audio(clip, tmp_path_factory) -> Path:
    """`clip` as a file, without loss."""
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    soundfile.write(path, clip, RATE, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def remote(folder, audio, tmp_path_factory) -> dict:
    """What `LOAD` found in a process without `wavcse`, and where it saved the model again."""
    place = tmp_path_factory.mktemp("remote")
    script = LOAD.replace("OTHER_RATE", str(OTHER_RATE))
    run_without_wavcse(script, folder, audio, place / "again", place / "results.pt", modules=place)
    return {**torch.load(place / "results.pt"), "folder again": place / "again"}


# ---- what is in the folder ----


def test_saved_folder_is_complete(folder):
    assert {path.name for path in folder.iterdir()} == REPOSITORY  # safetensors only: nothing here is unpickled
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_every_code_file_is_listed():
    assert set(CODE_FILES) == {path.name for path in ROOT.glob("*_wavcse.py")}


def test_the_root_has_what_endpoints_start(folder):
    assert (ROOT / HANDLER).read_bytes() == (folder / HANDLER).read_bytes()


def test_saved_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_wavcse.WavCSEConfig",
        "AutoFeatureExtractor": "feature_extraction_wavcse.WavCSEFeatureExtractor",
        "AutoModel": "modeling_wavcse.WavCSEModel",
        "AutoModelForAudioClassification": "modeling_wavcse.WavCSEForMultiTask",
    }
    assert config["custom_pipelines"]["feature-extraction"]["impl"] == "pipeline_wavcse.WavCSEFeatureExtractionPipeline"
    assert (config["model_type"], config["dtype"]) == ("wavcse", "float32")
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessor["return_attention_mask"] is True
    assert preprocessor["auto_map"] == {"AutoFeatureExtractor": config["auto_map"]["AutoFeatureExtractor"]}
    assert (preprocessor["sampling_rate"], preprocessor["do_normalize"]) == (RATE, True)


def test_model_card(folder, trained, tmp_path):
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("transformers", "feature-extraction")
    assert "| selected layers | 0, 1, 3 |" in card
    assert "emotion (2 classes), keyword (3 classes)" in card
    (tmp_path / "README.md").write_text("written by hand")
    trained.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "written by hand"


@pytest.mark.parametrize("name", CODE_FILES)
def test_imports_of_the_code_files(name):
    """Remote code is copied file by file: it may lean on torch, transformers, NumPy and its own siblings only."""
    tree = ast.parse((ROOT / name).read_text())
    optional = {inner for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    siblings = {file.removesuffix(".py") for file in CODE_FILES}
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", *sys.stdlib_module_names}  # transformers needs the Hub's
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}"
            assert node.module in siblings, f"line {node.lineno}"
            assert node not in optional, f"line {node.lineno}"
            assert "*" not in {alias.name for alias in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.Import | ast.ImportFrom) and node not in optional:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {module.partition(".")[0] for module in modules} <= allowed, f"line {node.lineno}"


# ---- in a process where `wavcse` does not exist ----


@pytest.mark.parametrize("way", ["AutoModel", "path", "bytes", "array", "mapping", "saved again"])
def test_embedding_is_bit_equal(remote, trained, clip, embed, way):
    assert remote[way].shape == (1, 20)
    assert torch.equal(remote[way], embed(trained, [clip]))


def test_other_rate_is_resampled(remote, trained, clip, embed):
    resampled = soxr.resample(clip, OTHER_RATE, RATE, quality="HQ")
    assert torch.equal(remote["other rate"], embed(trained, [resampled]))
    assert (remote["other rate"] - remote["array"]).abs().max() > 1e-3


def test_plain_result_is_a_nested_list(remote):
    assert isinstance(remote["plain"], list)
    assert len(remote["plain"]) == 1
    assert {type(number) for number in remote["plain"][0]} == {float}
    assert remote["plain"] == remote["path"].tolist()


def test_batched_pipeline(remote, trained, clip, embed):
    expected = [embed(trained, [wave]) for wave in (clip, clip[:5_000], clip[::-1].copy())]
    assert [tuple(embedding.shape) for embedding in remote["batch"]] == [(1, 20)] * 3
    torch.testing.assert_close(torch.cat(remote["batch"]), torch.cat(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(remote["batch as lists"]), torch.stack(expected[:2]), atol=1e-5, rtol=0)


def test_heads_load_remotely(remote, trained, clip):
    extractor = wavcse.WavCSEFeatureExtractor.from_config(trained.config)
    with torch.no_grad():
        logits = trained(**extractor(clip, sampling_rate=RATE, return_tensors="pt")).logits
    assert remote["logits"].keys() == logits.keys() == {"keyword", "emotion"}
    assert all(torch.equal(remote["logits"][task], logits[task]) for task in logits)


def test_remotely_loaded_model_saves_a_complete_folder(remote):
    again = remote["folder again"]
    assert {path.name for path in again.iterdir()} == REPOSITORY
    assert all((again / name).read_bytes() == (ROOT / name).read_bytes() for name in CODE_FILES)


@pytest.mark.parametrize("loader", ["AutoModel", "AutoFeatureExtractor", "pipeline"])
def test_without_trust_the_error_says_so(remote, loader):
    assert "trust_remote_code=True" in remote[f"untrusted {loader}"]


RUN_EXAMPLE = """
import runpy

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def example(folder, audio, clip, tmp_path_factory) -> list[str]:
    """Lines that the example prints for two files: `audio`, and the first half second of it as flac."""
    place = tmp_path_factory.mktemp("example")
    soundfile.write(place / "half.flac", clip[:8_000], RATE)
    arguments = (EXAMPLE, audio, "half.flac", "--model", folder)
    return run_without_wavcse(RUN_EXAMPLE, *arguments, modules=place).splitlines()


@pytest.mark.slow
def test_example(example, trained, audio, clip, embed):
    embeddings = [embed(trained, [wave]) for wave in (clip, np.round(clip[:8_000] * 2**15) / 2**15)]
    assert len(example) == 3
    for line, name, embedding in zip(example, (str(audio), "half.flac"), embeddings):
        assert line.startswith(f"{name}: shape (1, 20), ")
        printed = [float(number) for number in line.split(", ")[-1].split()[:8]]
        assert printed == pytest.approx(embedding[0, :8].tolist(), abs=1e-3)
    similarity = torch.cosine_similarity(*embeddings).item()
    assert float(example[2].removeprefix("cosine similarity: ")) == pytest.approx(similarity, abs=1e-3)


@pytest.mark.parametrize(
    ("files", "message"), [(["a.wav"], "model.safetensors is missing"), (["a.wav"] * 3, "one file, or two")]
)
def test_example_says_what_is_missing(files, message, tmp_path, monkeypatch, capsys):
    script = tmp_path / "clone without weights" / "examples" / EXAMPLE.name
    script.parent.mkdir(parents=True)
    script.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(script), *files])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("part", ENTRIES)
def test_each_entry_names_every_file_it_needs(part):
    """transformers 5.0 does not follow the imports of imported files."""

    def named(name: str) -> set[str]:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        return {f"{node.module}.py" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}

    entry = f"{part}_wavcse.py"
    needed, pending = set(), named(entry)
    while pending:
        needed |= pending
        pending = {inner for name in pending for inner in named(name)} - needed
    assert named(entry) == needed - {entry}
