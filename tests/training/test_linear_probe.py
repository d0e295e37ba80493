"""The linear probe beside a training: against scikit-learn's ridge, and what a run says of a task that stays behind it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.train_accelerate import table, train
from wavcse.training.arguments import RunArguments
from wavcse.training.features import MemoryTable, SplitFeatures
from wavcse.training.linear_probe import RIDGES, linear_probes, ridge_scores, underfitted


@pytest.mark.parametrize("shape", [(50, 8), (20, 60)], ids=["more clips than numbers", "fewer"])
def test_scores_are_those_of_ridge_regression(shape):
    chance = np.random.default_rng(0)
    train_rows, tested = chance.standard_normal(shape), chance.standard_normal((7, shape[1]))
    labels = chance.integers(0, 3, shape[0])
    centred = train_rows - train_rows.mean(0)
    mean_eigenvalue = np.square(centred).sum() / min(shape)
    found = ridge_scores(*map(torch.from_numpy, (train_rows, labels, tested)), 3)
    for ridge, scores in zip(RIDGES, found):
        expected = Ridge(alpha=ridge * mean_eigenvalue).fit(train_rows, np.eye(3)[labels]).predict(tested)
        np.testing.assert_allclose(scores, expected, atol=1e-8)


def splits_of(features: np.ndarray, labels: np.ndarray, num_train: int) -> dict[str, SplitFeatures]:
    """`[N, K, D]` and classes `[N]`, the first clips for training and the others for validation."""
    own_table = MemoryTable(torch.from_numpy(features.astype(np.float32)))
    targets = {name: np.full(len(labels), IGNORED_LABEL) for name in ("train", "validation")}
    targets["train"][:num_train], targets["validation"][num_train:] = labels[:num_train], labels[num_train:]
    rows = {name: np.flatnonzero(own != IGNORED_LABEL) for name, own in targets.items()}
    composite = SimpleNamespace(rows=rows.get, scales={}, targets={name: {"word": own} for name, own in targets.items()})
    return {name: SplitFeatures(own_table, composite, name, torch.device("cpu")) for name in targets}


def test_the_layer_that_holds_the_classes_is_found():
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 2, 400)
    features = 1e-3 * chance.standard_normal((400, 3, 5))
    features[:, 1, 0] += 1e-2 * labels - 5.0  # far from zero, and small beside it: unscaled layers hide it
    (own,) = linear_probes(splits_of(features, labels, 300), {"word": 2}, [0, 4, 9]).values()
    assert (own["layer"], own["num_train"], own["num_validation"]) == (4, 300, 100)
    assert own["best_layer"] > 0.98
    assert own["together"] > 0.98


def test_clips_beyond_the_budget_are_drawn(monkeypatch):
    chance = np.random.default_rng(2)
    labels = chance.integers(0, 2, 90)
    features = chance.standard_normal((90, 2, 3)) + labels[:, None, None]
    monkeypatch.setattr("wavcse.training.linear_probe.MOST_PRODUCTS", 20 * 20 * 6)
    (own,) = linear_probes(splits_of(features, labels, 60), {"word": 2}, [0, 1]).values()
    assert (own["num_train"], own["num_validation"]) == (20, 30)


@pytest.mark.parametrize(
    ("probe", "accuracy", "clips", "words"),
    [
        (0.92, 0.839, 1000, "underfitted: 8.1 points below a linear probe on the same layers (83.9% of the validation clips "),
        (0.92, 0.839, 50, ""),  # so few clips that drawing them explains it
        (0.92, 0.913, 10**6, ""),  # too little to matter
        (0.80, 0.900, 1000, ""),
    ],
)
def test_only_a_lag_that_matters_is_called_underfitted(probe, accuracy, clips, words):
    for one in ({"together": probe, "best_layer": 0.1}, {"together": 0.1, "best_layer": probe}):
        found = underfitted({**one, "num_validation": clips}, accuracy)
        assert found.startswith(words) if words else not found


def test_a_run_shows_its_probe_and_else_stays_as_it_was(search_recipe, tmp_path, capsys, monkeypatch):
    args = RunArguments(**{**search_recipe, "save_hub": False, "num_epochs": 1, "output_dir": str(tmp_path / "with")})
    monkeypatch.setattr("wavcse.training.linear_probe.STANDARD_ERRORS", 0.0)  # few clips: every lag counts
    shown = train(args)
    out = capsys.readouterr().out
    probes = shown.pop("probe")
    assert set(probes) == set(args.tasks)
    for task, own in probes.items():
        assert f"{own['together']:.2%}, {own['best_layer']:.2%} (layer {own['layer']})" in out
        lag = max(own["together"], own["best_layer"]) - shown["tasks"][task]["accuracy"]["validation"]
        (words,) = [words for words in shown["warnings"] if words.startswith(f"{task}: ")] or [""]
        assert "better than chance" in words or (f"underfitted: {100 * lag:.1f} points" in words) == (lag >= 0.01)
    plain = train(replace(args, probe=False, output_dir=str(tmp_path / "without")))
    assert "linear probe" not in capsys.readouterr().out
    assert "probe" not in plain["config"]
    for left in ("train_seconds", "warnings"):
        shown.pop(left), plain.pop(left)
    assert shown == plain
    assert "linear probe" not in table({**plain, "warnings": []})
