"""Which Python files run: those of the folder that is loaded, be it the second one, a copy, or `wavcse` imported before."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

import wavcse
from wavcse import WavCSEForMultiTask, WavCSEModel
from wavcse.hub_repository_wavcse import AUTO_MAP, CODE_FILES

ROOT = Path(wavcse.__file__).parent
POOLED = "return (scale * mean ** (1.0 / p)).to(x.dtype)"  # of learned_norm

LOAD = """
import json, sys
import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

folders, clip, out = json.loads(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
found = {}
for when in ("before", "after"):
    if when == "after":
        import wavcse
    for name in [*folders, "first"]:
        folder = folders[name]
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        heads = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            from_heads = heads(**extractor(clip, sampling_rate=16000, return_tensors="pt")).embeddings[0]
        vectors = {"AutoModel": model.encode(clip), "heads": from_heads}
        if when == "before":
            vectors["pipeline"] = pipeline("feature-extraction", model=folder, trust_remote_code=True)(clip)[0]
            again = f"{out}/{name}/hub"
            model.save_pretrained(again)
            vectors["saved again"] = AutoModel.from_pretrained(again, trust_remote_code=True).encode(clip)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
            fresh = AutoModel.from_config(config, trust_remote_code=True)
            assert type(fresh) is type(model) or name == "subclass", (type(fresh), type(model))
        found[f"{name} {when}"] = {
            "class": type(model).__name__,
            "of wavcse": type(model).__module__.startswith("wavcse."),
            "vectors": {way: np.asarray(vector).tolist() for way, vector in vectors.items()},
        }
json.dump(found, open(f"{out}/found.json", "w"))
"""

SUBCLASS = '''
"""A model of somebody's own."""

from .modeling_wavcse import WavCSEModel


class Louder(WavCSEModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.embeddings = 10 * output.embeddings
        return output
'''


@pytest.fixture(scope="module")
def trained(tiny_multi_task_model) -> WavCSEForMultiTask:
    return tiny_multi_task_model(upstream={"conv_dim": [16, 16], "conv_kernel": [400, 3], "conv_stride": [160, 2]})


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory) -> dict[str, Path]:
    """Three saved models whose folders have one name: as saved, with another pooling, and with a class of its own."""
    place = tmp_path_factory.mktemp("runs")
    folders = {name: place / name / "hub" for name in ("first", "second", "subclass")}
    for folder in folders.values():
        trained.save_pretrained(folder)
    pooling = (folders["second"] / "pooling_wavcse.py").read_text(encoding="utf-8")
    assert POOLED in pooling
    (folders["second"] / "pooling_wavcse.py").write_text(pooling.replace(POOLED, "return 0.0 * x[:, 0]"), encoding="utf-8")
    (folders["subclass"] / "louder.py").write_text(SUBCLASS, encoding="utf-8")
    config = json.loads((folders["subclass"] / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoModel"] = "louder.Louder"
    (folders["subclass"] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folders


@pytest.fixture(scope="module")
def clip(waves) -> np.ndarray:
    return waves(4_000)[0]


@pytest.fixture(scope="module")
def found(folders, clip, tmp_path_factory) -> dict:
    """What one process found that loaded all folders one after the other, before and after `import wavcse`."""
    place = tmp_path_factory.mktemp("found")
    np.save(place / "clip.npy", clip)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place), "HF_MODULES_CACHE": str(place / "modules")}
    arguments = [json.dumps({name: str(folder) for name, folder in folders.items()}), str(place / "clip.npy"), str(place)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads((place / "found.json").read_text()), "place": place}


@pytest.fixture(scope="module")
def expected(trained, clip, embed) -> dict[str, np.ndarray]:
    """Vectors that each folder's code gives."""
    vector = embed(trained, [clip])[0].numpy()
    nothing_pooled = trained.wavcse.downstream.embedding_projection.bias.detach().numpy()
    return {"first": vector, "second": nothing_pooled, "subclass": vector}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["first", "second", "subclass"])
def test_what_a_folder_holds_is_what_runs(found, expected, name, when):
    for way, vector in found[f"{name} {when}"]["vectors"].items():
        factor = 10 if name == "subclass" and way != "heads" else 1
        np.testing.assert_allclose(vector, factor * expected[name], rtol=1e-5, atol=1e-6, err_msg=way)


@pytest.mark.slow
def test_the_class_is_the_folders(found):
    names = {name: (model["class"], model["of wavcse"]) for name, model in found.items() if name != "place"}
    assert names["subclass before"] == names["subclass after"] == ("Louder", False)
    assert names["second after"] == ("WavCSEModel", False)
    assert names["first after"] == ("WavCSEModel", True)  # the same files: the class that is imported already


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "second", "subclass"])
def test_a_copy_holds_the_code_that_ran(found, folders, name):
    copy = found["place"] / name / "hub"
    for file in (*CODE_FILES, *(["louder.py"] if name == "subclass" else [])):
        assert (copy / file).read_bytes() == (folders[name] / file).read_bytes()
    auto_map = json.loads((copy / "config.json").read_text())["auto_map"]
    assert auto_map == {**AUTO_MAP, **({"AutoModel": "louder.Louder"} if name == "subclass" else {})}


# ---- registered subclasses ----


@pytest.fixture
def louder(tmp_path, monkeypatch) -> type[WavCSEModel]:
    """A subclass in a file of its own, outside the package, registered for `AutoModel`."""
    place = tmp_path / "own"
    place.mkdir()
    (place / "louder.py").write_text(SUBCLASS.replace("from .", "from wavcse."), encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "louder", raising=False)
    louder = importlib.import_module("louder").Louder
    louder.register_for_auto_class("AutoModel")
    return louder


def test_a_registered_subclass_is_saved(louder, tmp_path, tiny_config, folders):
    louder(tiny_config()).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"] == {
        **AUTO_MAP,
        "AutoModel": "louder.Louder",
    }
    assert (tmp_path / "saved" / "louder.py").read_text() == (tmp_path / "own" / "louder.py").read_text()
    assert "| `louder.py` | `" in (tmp_path / "saved" / "README.md").read_text()  # among the files that run
    # Saved again as what it was made of, nothing points at the subclass any more, be its file there or not.
    plain = WavCSEModel.from_pretrained(tmp_path / "saved")
    for folder in (tmp_path / "plain", tmp_path / "saved"):
        plain.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_a_registered_subclass_is_pushed(louder, tiny_config, monkeypatch):
    pushed = {}

    def upload(folder: Path, repo_id: str, **kwargs) -> None:
        pushed.update({path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".py")})

    monkeypatch.setattr("wavcse.modeling_wavcse.upload_repository", upload)
    louder(tiny_config()).push_to_hub("somebody/louder")
    assert json.loads(pushed["config.json"])["auto_map"]["AutoModel"] == "louder.Louder"
    assert "class Louder" in pushed["louder.py"]


def test_a_registered_configuration_keeps_its_entry(louder, tmp_path, monkeypatch, tiny_config):
    source = "from wavcse.configuration_wavcse import WavCSEConfig\n\n\nclass OwnConfig(WavCSEConfig):\n    pass\n"
    (tmp_path / "own" / "own_config.py").write_text(source, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "own_config", raising=False)
    own_config = importlib.import_module("own_config").OwnConfig
    own_config.register_for_auto_class()
    WavCSEModel(own_config.from_dict(tiny_config().to_dict())).save_pretrained(tmp_path / "saved")
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map == {**AUTO_MAP, "AutoConfig": "own_config.OwnConfig"}
    assert (tmp_path / "saved" / "own_config.py").read_text() == source


# ---- transformers 4 ----


@pytest.mark.parametrize("module", ["", ".configuration_wavcse", ".feature_extraction_wavcse", ".modeling_wavcse"])
def test_transformers_4_is_told_what_is_needed(module, monkeypatch):
    """Executed as transformers 4 would: with its version, and without the names that it does not have."""
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    monkeypatch.delattr(transformers, "initialization", raising=False)
    monkeypatch.setitem(sys.modules, "transformers.initialization", None)
    if module:
        package = types.ModuleType("of_a_folder")
        package.__path__ = [str(ROOT)]
    else:
        spec = importlib.util.spec_from_file_location(
            "of_a_folder", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "of_a_folder", package)
    for registry in (CONFIG_MAPPING, FEATURE_EXTRACTOR_MAPPING):  # the package adds itself
        monkeypatch.setattr(registry, "_extra_content", dict(registry._extra_content))
    if not module:
        spec.loader.exec_module(package)
    for _ in range(2):  # the second time too
        with pytest.raises(ImportError, match=r"^wavCSE needs transformers 5\.0 or newer, and 4\.57\.1 is installed: `pip "):
            importlib.import_module(f"of_a_folder{module}") if module else package.WavCSEModel


def test_another_folder_in_the_same_modules(tmp_path, monkeypatch):
    """transformers 5.0 runs the entry file of a second folder of one name in the first one's module."""
    place = tmp_path / "of_one_name"
    shutil.copytree(ROOT, place, ignore=lambda folder, names: [name for name in names if name not in CODE_FILES])
    (place / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.import_module("of_one_name.configuration_wavcse")
    first = importlib.import_module("of_one_name.pooling_wavcse")
    entry.__transformers_module_hash__ = "of the first"
    entry.__spec__.loader.exec_module(entry)
    assert importlib.import_module("of_one_name.pooling_wavcse") is not first
    assert sys.modules["of_one_name.configuration_wavcse"] is entry
    for name in [name for name in sys.modules if name.startswith("of_one_name")]:
        monkeypatch.delitem(sys.modules, name)
