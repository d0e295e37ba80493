"""Regression tasks beside classification: targets, losses, a run from the manifest to the Hub folder, what is refused."""

import json

import audmetric
import numpy as np
import pandas as pd
import pytest
import torch

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask
from wavcse.data.composite import load_composite
from wavcse.data.manifest import Manifest
from wavcse.doors.trainer import LabelledClips, metrics_per_task
from wavcse.hub.card import _task_row
from wavcse.modeling_wavcse import cross_entropy_per_task, losses_per_task, number_loss
from wavcse.search.fit import fit
from wavcse.search.table import read_table
from wavcse.train_accelerate import table, train
from wavcse.training.arguments import RunArguments

PITCHES = {"kind": "regression", "label_column": "pitch", "split_column": "split_ks"}
PITCH = {"pitch": {"kind": "regression", "loss": "mae", "mean": 600.0, "std": 200.0}}


@pytest.fixture(scope="module")
def manifest(toy_corpus, tmp_path_factory):
    """The toy corpus with the pitch of every word as a number, in Hz, missing in one training clip."""
    rows = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    pitch = 300.0 * (rows["keyword"].str[-1].astype(int) + 1)
    rows["pitch"] = [str(value) for value in pitch + np.random.default_rng(0).normal(0, 5, len(rows)).round(2)]
    rows.loc[np.flatnonzero(rows["split_ks"] == "train")[0], "pitch"] = ""
    rows["file_name"] = [str(toy_corpus.parent / name) for name in rows["file_name"]]
    path = tmp_path_factory.mktemp("numbers") / "metadata.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def recipe(search_recipe, manifest) -> dict:
    tasks = {"keyword": {**search_recipe["tasks"]["keyword"], "manifest": str(manifest)}}
    tasks["pitch"] = {**PITCHES, "manifest": str(manifest), "disjoint_by": "speaker_id"}
    dropouts = {"layer_dropout": 0.0, "embedding_dropout": 0.0}
    return {**search_recipe, "tasks": tasks, "num_epochs": 12, "scheduler_patience": 10, **dropouts}


def pitches(manifest, split: str) -> tuple[list, np.ndarray]:
    """Paths and numbers of a split, from the table itself."""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    rows = rows[(rows["split_ks"] == split) & (rows["pitch"] != "")]
    return list(rows["file_name"]), rows["pitch"].astype(float).to_numpy()


# ---- losses ----


def test_losses_of_numbers():
    generator = np.random.default_rng(0)
    x, y = (torch.from_numpy(generator.normal(size=50)) for _ in range(2))
    assert number_loss(x, y, "ccc").item() == pytest.approx(1 - audmetric.concordance_cc(y.numpy(), x.numpy()), abs=1e-6)
    assert number_loss(x, y, "mae").item() == pytest.approx(np.abs(x - y).mean().item())


def test_losses_per_task_leaves_out_what_is_missing_and_counts_shares():
    logits = {"word": torch.randn(4, 3), "pitch": torch.randn(4, 1), "age": torch.randn(4, 1)}
    labels = {"word": torch.tensor([0, 1, -100, 2]), "pitch": torch.tensor([0.5, -100.0, 1.5, -0.5])}
    losses = losses_per_task(logits, labels, number_losses={"pitch": "mae", "age": "ccc"})
    assert list(losses) == list(logits)
    assert losses["word"] == cross_entropy_per_task({"word": logits["word"]}, labels)["word"]
    rows = [0, 2, 3]
    torch.testing.assert_close(losses["pitch"], (logits["pitch"][rows, 0] - labels["pitch"][rows]).abs().mean())
    assert losses["age"] == 0
    counts = {"word": 3, "pitch": 6, "age": 1}  # of the whole batch
    halved = losses_per_task(logits, labels, counts, {"pitch": "mae", "age": "ccc"})
    torch.testing.assert_close(halved["pitch"], losses["pitch"] / 2)


# ---- targets ----


def test_targets_are_standardised_by_the_training_clips(recipe, manifest):
    composite = load_composite(RunArguments(**recipe).task_sources())
    _, train_numbers = pitches(manifest, "train")
    mean, std = composite.scales["pitch"]
    assert (mean, std) == (pytest.approx(train_numbers.mean()), pytest.approx(train_numbers.std()))
    for split in ("train", "validation", "test"):
        targets = composite.targets[split]["pitch"]
        _, numbers = pitches(manifest, split)
        assert sorted(targets[targets != -100] * std + mean) == pytest.approx(sorted(numbers), rel=1e-5)
    assert f"pitch: numbers with mean {mean:g} and standard deviation {std:g} of 23 training clips" in composite.class_counts()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", r"has 'high' as its label; a number is needed"),
        ("inf", r"has 'inf' as its label"),
        ("1e9", "standard deviations from the mean of the training clips"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(recipe, manifest, tmp_path, value, message):
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    rows.loc[np.flatnonzero(rows["split_ks"] == "test")[0], "pitch"] = value
    rows.to_csv(tmp_path / "wrong.csv", index=False)
    task = {"pitch": {**recipe["tasks"]["pitch"], "manifest": str(tmp_path / "wrong.csv")}}
    with pytest.raises(ValueError, match=message):
        load_composite(RunArguments(**{**recipe, "tasks": task}).task_sources())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ranking"}, "kind is 'ranking'; allowed: classification, regression"),
        ({"loss": "mse"}, "loss is 'mse'; allowed: ccc, mae"),
        ({"classes": ["a", "b"]}, "a regression task has none"),
        ({"kind": "classification", "loss": "ccc"}, "is 'ccc'; allowed: 'cross_entropy', 'aam_softmax'"),
    ],
)
def test_wrong_tasks_are_refused(recipe, fields, message):
    with pytest.raises(ValueError, match=message):
        RunArguments(**{**recipe, "tasks": {"pitch": {**recipe["tasks"]["pitch"], **fields}}})


# ---- a run ----


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "numbers"
    return folder, train(RunArguments(**recipe, output_dir=str(folder)))


def test_numbers_are_learnt_and_the_folder_tells_them(finished, manifest):
    folder, result = finished
    figures = result["tasks"]["pitch"]
    assert figures["ccc"]["test"] > 0.5
    assert figures["num_clips"] == {"train": 23, "validation": 12, "test": 12}
    paths, numbers = pitches(manifest, "test")
    model = WavCSEForMultiTask.from_pretrained(folder / "hub")
    found = np.array(model.predict(paths, task="pitch"))
    assert np.abs(found - numbers).mean() == pytest.approx(figures["mae"]["test"], rel=1e-3)
    assert audmetric.concordance_cc(numbers, found) == pytest.approx(figures["ccc"]["test"], abs=1e-3)
    assert isinstance(model.predict(paths[0])["pitch"], float)


def test_the_epoch_is_chosen_by_the_mean_of_accuracy_and_ccc(finished):
    folder, result = finished
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scores = []
    for entry in entries:
        validation = entry["validation"]
        scores.append((validation["accuracy"]["keyword"] + validation["ccc"]["pitch"]) / 2)
        assert validation["mean_accuracy"] == pytest.approx(scores[-1])
    assert result["best_epoch"] == 1 + int(np.argmax(scores))
    assert "CCC" in table(result)


@pytest.mark.slow
def test_fast_parts_change_nothing(recipe, finished, tmp_path):
    plain = train(RunArguments(**recipe, output_dir=str(tmp_path), fast_parts=False, save_hub=False))
    figures, expected = plain["tasks"]["pitch"], finished[1]["tasks"]["pitch"]
    assert figures["ccc"]["validation"] == pytest.approx(expected["ccc"]["validation"], abs=1e-3)


def test_the_card_shows_numbers(finished, recipe):
    row = _task_row("pitch", finished[1]["tasks"]["pitch"], recipe["tasks"]["pitch"])
    ccc = finished[1]["tasks"]["pitch"]["ccc"]
    assert row[2] == "a number"
    assert f"CCC {ccc['validation']:.4g}, {ccc['test']:.4g}; mean absolute error" in row[4]


def test_a_fit_of_a_search_is_the_run(recipe, finished):
    args = RunArguments(**recipe)
    fitted, (_, result) = fit(read_table(args), args), finished
    assert fitted["best_epoch"] == result["best_epoch"]
    for split in ("validation", "test"):
        assert fitted[split]["mean_accuracy"] == result["mean_accuracy"][split]
        for name in ("ccc", "mae"):
            assert fitted[split][name]["pitch"] == result["tasks"]["pitch"][name][split]


# ---- the model ----


def test_labels_of_a_regression_task_are_numbers_in_their_unit(tiny_multi_task_model, waves):
    model = tiny_multi_task_model(tasks=PITCH)
    inputs = WavCSEFeatureExtractor()(waves(4_000, 4_000), sampling_rate=16_000, return_tensors="pt")
    output = model(**inputs, labels=torch.tensor([700.0, float("nan")]))
    assert output.logits.shape == (2, 1)
    torch.testing.assert_close(output.loss, (output.logits[0, 0] - 0.5).abs())
    assert model.predict(waves(4_000)[0]) == pytest.approx(600 + 200 * output.logits[0, 0].item(), rel=1e-4)
    assert (model.config.id2label, model.config.num_labels) == ({0: "pitch"}, 1)


def test_one_label_asks_for_a_number(tiny_multi_task_model, tmp_path):
    tiny_multi_task_model().save_pretrained(tmp_path)
    model = WavCSEForMultiTask.from_pretrained(tmp_path, num_labels=1)
    assert model.config.tasks == {"label": {"kind": "regression", "loss": "mae", "mean": 0.0, "std": 1.0, "loss_weight": 1.0}}
    assert model.heads.tasks["label"].out_features == 1


def test_a_head_keeps_its_scale(tiny_multi_task_model, tmp_path):
    tiny_multi_task_model(tasks=PITCH).save_pretrained(tmp_path)
    assert WavCSEForMultiTask.from_pretrained(tmp_path).config.tasks["pitch"]["std"] == 200.0
    other = {"pitch": {**PITCH["pitch"], "std": 100.0}}
    with pytest.raises(ValueError, match=r"tasks\['pitch'\].* was trained with \(a number\)"):
        WavCSEForMultiTask.from_pretrained(tmp_path, tasks=other)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "regression", "labels": ["a", "b"]}, "'labels'] is unknown; a task has kind, loss, mean, std, loss_weight"),
        ({"kind": "regression", "std": 0.0}, "'std'] is 0.0"),
        ({"kind": "regression", "loss": "mse"}, "'loss'] is 'mse'; allowed: 'ccc', 'mae'"),
    ],
)
def test_wrong_configurations_are_refused(task, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        WavCSEConfig(tasks={"pitch": task})


def test_collator_and_figures_of_trainer(tiny_multi_task_model, toy_corpus):
    model = tiny_multi_task_model(tasks=PITCH)
    clips = Manifest(toy_corpus).clips[:3]
    rows = [{"audio": str(clip.path), "pitch": pitch} for clip, pitch in zip(clips, (310.0, None, "590.5"))]
    labels = LabelledClips(model)(rows)["labels"]
    assert torch.equal(labels.isnan(), torch.tensor([False, True, False]))
    assert labels[[0, 2]].tolist() == [310.0, 590.5]
    evaluation = type("Evaluation", (), {})()
    evaluation.predictions = np.array([[-1.5], [0.0], [0.0]], dtype=np.float32)  # 300, 600, 600
    evaluation.label_ids = labels.numpy()
    figures = metrics_per_task(model)(evaluation)
    assert figures["mae"] == pytest.approx((10.0 + 9.5) / 2)
    assert figures["ccc"] == pytest.approx(audmetric.concordance_cc([310.0, 590.5], [300.0, 600.0]))
