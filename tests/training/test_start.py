"""What a network starts with: scaling, which is NumPy's, and components, which are scikit-learn's; the decoder beside them."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from wavcse import WavCSEModel
from wavcse.data.composite import load_composite
from wavcse.data.features import open_cache
from wavcse.data.manifest import Manifest
from wavcse.data.scaling import Moments, usable_scale
from wavcse.search import fit as fit_module
from wavcse.search.fit import fit_together
from wavcse.search.poolings import search_poolings
from wavcse.search.selection import layer_fit
from wavcse.search.table import read_table
from wavcse.tests.helpers.processes import run_in_two_processes
from wavcse.train_accelerate import train
from wavcse.training import start
from wavcse.training.arguments import RunArguments
from wavcse.training.features import cached_digests
from wavcse.training.heads import RECONSTRUCTION, MultiTaskNetwork, new_learner

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


# ---- principal components ----

PCA_START = {"layer_scaling": "standard", "pooling_type": "concat", "layer_projection_size": None, "start": "pca"}
DECODED = {**PCA_START, "embedding_size": 12, "pca_whiten": 0.5, "reconstruction_weight": 0.3}


def started(recipe, **changes) -> tuple[MultiTaskNetwork, np.ndarray]:
    """A network before its first step, and the training clips' scaled layers side by side."""
    args = arguments(recipe, **{**PCA_START, **changes})
    table = read_table(args)
    network = new_learner(args, table.config(args), torch.device("cpu")).network.eval()
    start.start_network(args, network, table.splits(args)["train"])
    layers = training_layers(args).astype(np.float64)
    if args.layer_scaling == "standard":
        layers = (layers - layers.mean(axis=0)) / layers.std(axis=0)
    return network, layers.reshape(len(layers), -1)


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_training_starts_from_scikit_learns_components(search_recipe, scaling):
    network, layers = started(search_recipe, embedding_size=12, layer_scaling=scaling)
    weight, bias = network.downstream.embedding_projection.parameters()
    theirs = PCA(12).fit(layers)
    signs = np.sign((weight.detach().numpy() * theirs.components_).sum(axis=1))
    embeddings = layers @ weight.detach().numpy().T + bias.detach().numpy()
    expected = theirs.transform(layers) * signs
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * np.abs(expected).max())


def test_a_whitened_start_and_its_decoder_give_the_layers_back(search_recipe):
    network, layers = started(search_recipe, embedding_size=12, pca_whiten=1.0, reconstruction_weight=0.1)
    given = torch.from_numpy(training_layers(arguments(search_recipe)))
    with torch.no_grad():
        embeddings = network.downstream(given)
        decoded = network.decoder(embeddings).numpy()
        error = network(given)[1].item() / len(given)
    np.testing.assert_allclose(np.cov(embeddings.numpy().T), np.eye(12), atol=1e-3)
    theirs = PCA(12).fit(layers)
    nearest = theirs.inverse_transform(theirs.transform(layers))
    np.testing.assert_allclose(decoded, nearest, atol=1e-3)
    assert error == pytest.approx(np.mean((nearest - layers) ** 2), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_type": "mean"}, "needs pooling_type concat and layer_projection_size null, and these are mean and None"),
        ({"layer_projection_size": 8}, "these are concat and 8"),
        ({"start": "random", "pca_whiten": 0.5}, "pca_whiten is 0.5; it belongs to start pca"),
        ({"start": "random", "freeze_embedding": True}, "freeze_embedding is True; it belongs to start pca"),
        ({"freeze_embedding": True, "reconstruction_weight": 0.1}, "a reconstruction_weight has nothing to change"),
        ({"embedding_size": 97}, "embedding_size is 97, but the layers of the 48 training clips vary in 47 directions"),
        ({"embedding_size": 48}, "Take at most 47, or more clips or layers"),
    ],
)
def test_a_start_that_cannot_be_is_refused(search_recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        started(search_recipe, **changes)


def test_a_frozen_embedding_stays_the_components_while_its_heads_learn(search_recipe, tmp_path):
    changes = {"embedding_size": 12, "pca_rotate": True, "freeze_embedding": True}
    untrained, _ = started(search_recipe, **changes)
    result = run(search_recipe, tmp_path / "run", **PCA_START, **changes, num_epochs=3, learning_rate=1e-2)
    found = checkpoint(tmp_path / "run")
    for name, value in untrained.downstream.state_dict().items():
        assert torch.equal(found[f"model.downstream.{name}"], value), name
    heads = [name for name in found if name.startswith("model.heads.") and name.endswith("weight")]
    assert heads
    assert not any(torch.equal(found[name], untrained.state_dict()[name.removeprefix("model.")]) for name in heads)
    assert result["config"]["freeze_embedding"] is True


def test_two_processes_decode_and_start_as_one(search_recipe, tmp_path):
    fields = {**search_recipe, **DECODED, "layer_dropout": 0.0, "embedding_dropout": 0.0, "num_epochs": 2}
    run(fields, tmp_path / "one", save_hub=True)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**fields, "save_hub": False}))
    command = (f"{ROOT}/train_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "two")
    for done in run_in_two_processes(*command):
        assert done.returncode == 0, done.stderr
    logs = [[json.loads(line) for line in open(tmp_path / name / "log.jsonl")] for name in ("one", "two")]
    for one, two in zip(*logs, strict=True):
        assert RECONSTRUCTION in one["train_loss"]
        assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
        assert two["validation"]["task_loss"] == pytest.approx(one["validation"]["task_loss"], abs=1e-4)
    assert checkpoint(tmp_path / "one")["model.decoder.weight"].shape == (96, 12)
    published = load_file(tmp_path / "one/hub/model.safetensors")
    assert not [name for name in published if "decoder" in name]
    model = WavCSEModel.from_pretrained(tmp_path / "one/hub")
    assert torch.equal(model.downstream.affine_map()[0], affine_map_of(checkpoint(tmp_path / "one")))


def affine_map_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    best = {name.removeprefix("best.downstream."): own for name, own in tensors.items()}
    return best["embedding_projection.weight"] / best["layer_scale"].flatten()


def test_a_strong_decoder_keeps_more_of_the_layers(search_recipe, tmp_path):
    """Against the same run whose decoder hardly counts: the layers' error on validation is lower."""
    errors = []
    for weight in (1e-6, 10.0):
        own = {**SCALED, "pooling_type": "concat", "num_epochs": 12, "learning_rate": 3e-3}
        run(search_recipe, tmp_path / str(weight), **own, reconstruction_weight=weight)
        last = json.loads((tmp_path / str(weight) / "log.jsonl").read_text().splitlines()[-1])
        errors.append(last["validation"]["task_loss"][RECONSTRUCTION])
    assert errors[1] < 0.9 * errors[0]


def test_searches_of_other_poolings_leave_the_start_out(search_recipe):
    args = arguments(search_recipe, **DECODED)
    other = args.with_pooling("mean", {}, seed=3)
    assert (other.start, other.pca_whiten, other.seed, other.reconstruction_weight) == ("random", 0.0, 3, 0.3)
    assert args.with_pooling("concat", {}).start == "pca"
    assert layer_fit(args, [3, 1], 0, "").args.selected_layers == [1, 3]


# ---- searches ----


@pytest.mark.parametrize("form", [{}, DECODED], ids=str)
def test_a_fit_is_the_run_of_its_recipe(search_recipe, tmp_path, form):
    args = arguments(search_recipe, **{**SCALED, **form}, selected_layers=[3, 1], output_dir=str(tmp_path))
    result = train(args)
    fitted = fit_together(read_table(args), [args])[0]
    assert fitted["validation"]["mean_accuracy"] == result["mean_accuracy"]["validation"]
    assert fitted["best_epoch"] == result["best_epoch"]
    assert fitted["curve"] == [json.loads(line)["validation"]["mean_accuracy"] for line in open(tmp_path / "log.jsonl")]


def test_a_search_finds_the_scaling_once_and_compares_concat_beside_the_ten(search_recipe, tmp_path, monkeypatch):
    args, found, networks = arguments(search_recipe, **{**SCALED, "num_epochs": 1}), [], []
    table, starts = read_table(args), fit_module.start_network
    monkeypatch.setattr("wavcse.search.table.layer_scaling", lambda blocks: (found.append(1), start.layer_scaling(blocks))[1])
    monkeypatch.setattr(fit_module, "start_network", lambda *own: (starts(*own), networks.append(own[1])))
    report = search_poolings(table, args, tmp_path, seeds=2, poolings=["mean", "concat"], show_progress=False)
    assert [row["name"] for row in report["poolings"]] == ["mean", "concat"]
    assert (len(found), len(networks)) == (1, 8)  # two poolings, seeds and sets of layers
    expected = training_layers(arguments(search_recipe, selected_layers=[0, 1, 3])).std(axis=0)
    for network in networks:
        if len(network.downstream.layer_scale) == 3:
            np.testing.assert_allclose(network.downstream.layer_scale, expected, rtol=1e-4)
