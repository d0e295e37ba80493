"""The weights that the repository ships: they load from the root as a stranger loads them, and do what the code promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

import wavcse
from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel
from wavcse.hub.verify import fixed_clip, verify_repository
from wavcse.hub_repository_wavcse import CODE_FILES
from wavcse.tools import readme
from wavcse.tools.install import MAX_MEGABYTES, MODEL_FILES
from wavcse.upstream_wavcse import run_upstream

ROOT = Path(wavcse.__file__).parent
WEIGHTS = ROOT / "model.safetensors"


@pytest.fixture(scope="module")
def model() -> WavCSEModel:
    return WavCSEModel.from_pretrained(ROOT).eval()


@pytest.fixture(scope="module")
def inputs(model):
    """Three clips of other lengths, and what the model takes of them."""
    clip = fixed_clip(model.config)
    clips = [clip, clip[: len(clip) // 3], np.concatenate([clip[::-1], clip])]
    return WavCSEFeatureExtractor.from_config(model.config)(clips, sampling_rate=16_000, return_tensors="pt")


def test_all_three_files_are_there_and_small():
    assert all((ROOT / name).is_file() for name in MODEL_FILES)
    assert WEIGHTS.stat().st_size <= 1e6 * MAX_MEGABYTES


def test_the_configuration_is_that_of_a_saved_model(tmp_path):
    config = WavCSEConfig.from_pretrained(ROOT)
    assert config.tasks
    norm = getattr(config.upstream_config, "feat_extract_norm", "layer")
    assert norm == "layer"  # the same alone and in a batch, for transformers too
    WavCSEForMultiTask.from_pretrained(ROOT).save_pretrained(tmp_path)
    for field in ("auto_map", "custom_pipelines", "selected_layers", "tasks"):
        assert getattr(WavCSEConfig.from_pretrained(tmp_path), field) == getattr(config, field)
    assert (tmp_path / "preprocessor_config.json").read_text() == (ROOT / "preprocessor_config.json").read_text()


def test_the_shortest_clip_is_what_its_stem_needs(model):
    least = model.config.min_samples
    assert WavCSEFeatureExtractor.from_pretrained(ROOT).min_samples == least
    assert 400 <= least < 1_600
    noise = fixed_clip(model.config)
    assert np.isfinite(model.encode(noise[:least])).all()
    wanted = rf"clip 0: has {least - 1} samples \([\d.]+ ms\); the upstream needs at least {least} for one frame"
    with pytest.raises(ValueError, match=wanted):
        model.encode(noise[: least - 1])


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert", "whisper"])
def test_published_upstreams_need_400_samples(family):
    assert WavCSEConfig({"model_type": family}, selected_layers=[0]).min_samples == 400


def test_it_loads_without_this_package(tmp_path):
    """`AutoModel` and `pipeline` in a fresh process, offline; the files that ran are the root's."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in (*CODE_FILES, *MODEL_FILES):
        shutil.copyfile(ROOT / name, folder / name)
    assert verify_repository(folder, ROOT) <= 1e-5


@pytest.mark.slow
def test_the_example_takes_it_by_itself(tmp_path, model):
    clip = fixed_clip(model.config)
    soundfile.write(tmp_path / "clip.wav", clip, model.config.sampling_rate, subtype="FLOAT")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-P", ROOT / "examples" / "embed_a_file.py", "clip.wav", "clip.wav"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, _, similarity = done.stdout.splitlines()
    printed = [float(number) for number in first.split(", ")[-1].split()[:8]]
    assert printed == pytest.approx(model.encode(clip)[:8].tolist(), abs=1e-3)
    assert similarity == "cosine similarity: 1.0000"


@torch.no_grad()
def test_the_packed_path_equals_the_ordinary_one(model, inputs):
    packed = model(**inputs).pooled_layers
    ordinary = run_upstream(model.upstream, **inputs, layers=model.config.selected_layers, **model.config.upstream_options)
    ordinary = ordinary.pooled_layers
    torch.testing.assert_close(packed, ordinary, atol=1e-4 * float(ordinary.abs().max()), rtol=0)
    assert (ordinary[0] - ordinary[2]).abs().max() > 1e-2  # clips differ


@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_a_batch(model, inputs):
    together = model(**inputs).embeddings
    for i, length in enumerate(inputs["attention_mask"].sum(dim=1)):
        alone = model(inputs["input_values"][i : i + 1, :length]).embeddings[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5 * float(together.abs().max()), rtol=0)


def test_it_serves_as_an_upstream(model, inputs):
    same = {name: getattr(model.config, name) for name in ("selected_layers", "temporal_pooling")}
    taken = WavCSEModel.from_upstream(str(ROOT), embedding_size=8, **same)
    with torch.no_grad():
        assert torch.equal(taken(**inputs).pooled_layers, model(**inputs).pooled_layers)


def test_the_quickstart_asks_for_layers_that_it_holds():
    recipe = yaml.safe_load((ROOT / "conf" / "quickstart.yaml").read_text(encoding="utf-8"))
    assert recipe["upstream"] == "."
    assert max(recipe["selected_layers"]) <= WavCSEConfig.from_pretrained(ROOT).num_hidden_layers


def test_the_readme_is_what_the_files_give(capsys):
    assert readme.main(["--check"]) == 0, capsys.readouterr().err


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "conf" / "README.md", *(ROOT / "docs").glob("*.md")]
    pages += (ROOT / "results").rglob("*.md")
    assert len(pages) > 20
    for page in pages:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not lost, f"{page}: {lost}"
