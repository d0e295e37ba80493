"""What a network starts with: its layers' scaling, which is NumPy's over the training clips, in every way of training."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from wavcse import WavCSEModel
from wavcse.data.composite import load_composite
from wavcse.data.features import open_cache
from wavcse.data.manifest import Manifest
from wavcse.data.scaling import Moments, usable_scale
from wavcse.search import fit as fit_module
from wavcse.search.fit import fit_together
from wavcse.search.poolings import search_poolings
from wavcse.search.table import read_table
from wavcse.tests.helpers.processes import run_in_two_processes
from wavcse.train_accelerate import train
from wavcse.training import start
from wavcse.training.arguments import RunArguments
from wavcse.training.features import cached_digests

ROOT = start.__file__.rsplit("/", 2)[0]
SCALED = {"layer_scaling": "standard", "num_epochs": 2}


def arguments(recipe, **changes) -> RunArguments:
    return RunArguments(**{**recipe, "save_hub": False, **changes})


def run(recipe, folder, **changes):
    return train(arguments(recipe, output_dir=str(folder), **changes))


def checkpoint(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/tensors.safetensors")


def training_layers(args: RunArguments) -> np.ndarray:
    """`[N, K, D]` of the clips that are in the training split of any task."""
    cache, composite = open_cache(args.cache_dir), load_composite(args.task_sources())
    return cache.read(cached_digests(cache, composite), args.selected_layers)[composite.rows("train")]


@pytest.fixture(scope="module")
def scaled_run(search_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "scaled"
    run(search_recipe, folder, **SCALED, save_hub=True)
    return folder


# ---- moments ----


def test_moments_of_blocks_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(1000.0, 0.01, (257, 3, 4)).astype(np.float32)
    rows[:, 0, 0] = 7.0
    moments = Moments()
    for block in np.array_split(rows, [1, 5, 200]):
        moments.add(torch.from_numpy(block))
    mean, scale = moments.scaling()
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose((moments.squares / moments.count).sqrt(), exact.std(axis=0), rtol=1e-9)
    assert scale[0, 0] == 1.0
    assert (torch.from_numpy(rows)[:, 0, 0] - mean[0, 0] == 0).all()


def test_what_is_rounding_noise_beside_its_mean_is_constant():
    mean, std = np.array([1.0, 1.0, 0.0, -1e3]), np.array([1.1e-6, 0.9e-6, 1e-30, 1e-4])
    np.testing.assert_array_equal(usable_scale(mean, std), [1.1e-6, 1.0, 1e-30, 1.0])


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no training clip"):
        Moments().scaling()


# ---- training ----


def test_the_scaling_of_a_run_is_numpys_over_its_training_clips(search_recipe, scaled_run):
    layers = training_layers(arguments(search_recipe)).astype(np.float64)
    tensors = checkpoint(scaled_run)
    np.testing.assert_allclose(tensors["model.downstream.layer_mean"], layers.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(tensors["model.downstream.layer_scale"], layers.std(axis=0), rtol=1e-6)
    assert torch.equal(tensors["best.downstream.layer_scale"], tensors["model.downstream.layer_scale"])


def test_the_hub_model_scales_as_the_network_did(scaled_run, toy_corpus):
    model = WavCSEModel.from_pretrained(scaled_run / "hub")
    best = {name.removeprefix("best.downstream."): own for name, own in checkpoint(scaled_run).items()}
    clip = Manifest(toy_corpus).clips[0].load(16_000)
    prepared = [torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))]
    layers = (model.pool_layers(prepared) - best["layer_mean"]) / best["layer_scale"]
    projected = layers @ best["layer_projection.weight"].T + best["layer_projection.bias"]
    pooled = projected.abs().pow(16).mean(dim=1).pow(1 / 16)
    expected = pooled @ best["embedding_projection.weight"].T + best["embedding_projection.bias"]
    np.testing.assert_allclose(model.encode(clip), expected[0], rtol=1e-3, atol=1e-3)


def test_killed_or_from_disk_it_is_the_same_run(search_recipe, scaled_run, tmp_path, monkeypatch):
    run(search_recipe, tmp_path, **{**SCALED, "num_epochs": 1}, features_in="disk")
    monkeypatch.setattr(start, "layer_scaling", None)  # a checkpoint has it
    run(search_recipe, tmp_path, **SCALED)
    one, other = checkpoint(scaled_run), checkpoint(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_find_the_same_scaling(search_recipe, scaled_run, tmp_path):
    fields = {**search_recipe, **SCALED, "num_epochs": 1, "save_hub": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    command = (f"{ROOT}/train_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "two")
    for done in run_in_two_processes(*command):
        assert done.returncode == 0, done.stderr
    one, two = checkpoint(scaled_run), checkpoint(tmp_path / "two")
    for name in ("layer_mean", "layer_scale"):
        assert torch.equal(one[f"model.downstream.{name}"], two[f"model.downstream.{name}"])


def test_what_is_left_as_it_was_does_not_change_the_name_of_a_run(search_recipe):
    assert "layer_scaling" not in arguments(search_recipe).identity()
    assert arguments(search_recipe, layer_scaling="standard").identity()["layer_scaling"] == "standard"


# ---- searches ----


@pytest.mark.parametrize("form", [{}, {"pooling_type": "concat", "layer_projection_size": None}], ids=str)
def test_a_fit_is_the_run_of_its_recipe(search_recipe, tmp_path, form):
    args = arguments(search_recipe, **SCALED, **form, selected_layers=[3, 1], output_dir=str(tmp_path))
    result = train(args)
    fitted = fit_together(read_table(args), [args])[0]
    assert fitted["validation"]["mean_accuracy"] == result["mean_accuracy"]["validation"]
    assert fitted["best_epoch"] == result["best_epoch"]
    assert fitted["curve"] == [json.loads(line)["validation"]["mean_accuracy"] for line in open(tmp_path / "log.jsonl")]


def test_a_search_finds_the_scaling_once_and_compares_concat_beside_the_ten(search_recipe, tmp_path, monkeypatch):
    args, found, networks = arguments(search_recipe, **{**SCALED, "num_epochs": 1}), [], []
    table, starts = read_table(args), fit_module.start_network
    monkeypatch.setattr("wavcse.search.table.layer_scaling", lambda split: (found.append(1), start.layer_scaling(split))[1])
    monkeypatch.setattr(fit_module, "start_network", lambda *own: (starts(*own), networks.append(own[1])))
    report = search_poolings(table, args, tmp_path, seeds=2, poolings=["mean", "concat"], show_progress=False)
    assert [row["name"] for row in report["poolings"]] == ["mean", "concat"]
    assert (len(found), len(networks)) == (1, 8)  # two poolings, seeds and sets of layers
    expected = training_layers(arguments(search_recipe, selected_layers=[0, 1, 3])).std(axis=0)
    for network in networks:
        if len(network.downstream.layer_scale) == 3:
            np.testing.assert_allclose(network.downstream.layer_scale, expected, rtol=1e-4)
