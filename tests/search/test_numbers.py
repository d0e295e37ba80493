"""Searches on numbers beside classes: the CCC in place of an accuracy, in every choice, interval and report."""

from __future__ import annotations

import json
from dataclasses import replace

import audmetric
import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, norm

from wavcse.data.composite import CompositeSet, Scale
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search.bootstrap import interval, number_answers, resampled_figures
from wavcse.search.fit import fit, fit_together, settings_of
from wavcse.search.hparams import search_hparams
from wavcse.search.layers import search_layers
from wavcse.search.poolings import search_poolings
from wavcse.search.stability import against_chance, choose
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable
from wavcse.training.arguments import RunArguments

L, D, NUM_CLIPS = 4, 12, 450
CLASSES = ["a", "b", "c"]
UPSTREAM = {
    "model_type": "wavlm",
    "hidden_size": D,
    "num_hidden_layers": L - 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TASKS = {
    "keyword": {"manifest": "planted.csv", "label_column": "keyword"},
    "age": {"manifest": "planted.csv", "label_column": "age", "kind": "regression"},
}
SCALE = Scale(mean=40.0, std=15.0)


def arguments(**changes) -> RunArguments:
    sizes = {"layer_projection_size": 12, "embedding_size": 16, "layer_dropout": 0.0, "embedding_dropout": 0.0}
    fields = {"tasks": TASKS, "batch_size": 75, "num_epochs": 6, "learning_rate": 2e-2, "selected_layers": [0, 1, 2, 3]}
    return RunArguments(**{**fields, **sizes, **changes}, save_hub=False)


def planted(only_numbers: bool = False) -> SearchTable:
    """Noise, with the class in layer 1 and the number, standardised, in layer 3; every fifth clip has no number."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((NUM_CLIPS, L, D))
    words = generator.integers(len(CLASSES), size=NUM_CLIPS)
    ages = generator.standard_normal(NUM_CLIPS).astype(np.float32)
    features[:, 1] = 2 * generator.standard_normal((len(CLASSES), D))[words] + 0.5 * features[:, 1]
    features[:, 3] = ages[:, None] * generator.standard_normal(D) + 0.5 * features[:, 3]
    split = generator.permutation(NUM_CLIPS) % 3
    has_age = np.arange(NUM_CLIPS) % 5 > 0
    targets = {
        name: {
            "keyword": np.where(split == i, words, IGNORED_LABEL),
            "age": np.where((split == i) & has_age, ages, np.float32(IGNORED_LABEL)),
        }
        for i, name in enumerate(("train", "validation", "test"))
    }
    classes = {"keyword": CLASSES, "age": []}
    if only_numbers:
        targets, classes = {name: {"age": own["age"]} for name, own in targets.items()}, {"age": []}
    composite = CompositeSet([], classes, targets, scales={"age": SCALE})
    return SearchTable(torch.from_numpy(features.astype(np.float32)), composite, UPSTREAM, f"planted {only_numbers}")


def numbers_of(table: SearchTable, split: str) -> np.ndarray:
    targets = table.composite.targets[split]["age"]
    return targets[targets != IGNORED_LABEL].astype(np.float64)


def test_a_fit_has_the_ccc_its_outputs_have_and_averages_it_with_the_accuracy():
    table = planted()
    result = fit(table, arguments(selected_layers=[1, 3]))
    for split in ("validation", "test"):
        own, expected = result[split], numbers_of(table, split)
        assert own["ccc"]["age"] == pytest.approx(
            audmetric.concordance_cc(expected, np.array(own["outputs"]["age"])), abs=1e-4
        )
        assert own["ccc"]["age"] > 0.5
        assert own["mae"]["age"] == pytest.approx(15 * np.abs(expected - own["outputs"]["age"]).mean(), rel=1e-4)
        assert own["mean_accuracy"] == pytest.approx((own["accuracy"]["keyword"] + own["ccc"]["age"]) / 2)
        assert set(own["is_correct"]) == {"keyword"}


def test_the_loss_of_numbers_names_a_fit():
    other = {**TASKS, "age": {**TASKS["age"], "loss": "mae"}}
    assert settings_of(arguments())["losses"] == {"age": {"kind": "regression", "loss": "ccc"}}
    assert settings_of(arguments(tasks=other))["losses"]["age"]["loss"] == "mae"
    assert "losses" not in settings_of(arguments(tasks={"keyword": TASKS["keyword"]}))


def test_fits_together_are_fits_alone():
    table, args = planted(), arguments(num_epochs=2)
    many = [args, replace(args, seed=1, learning_rate=1e-2)]
    for own, together in zip(many, fit_together(table, many)):
        alone = fit(table, own)
        assert (together["curve"], together["validation"]) == (alone["curve"], alone["validation"])


def test_layers_are_chosen_by_the_mean_of_accuracy_and_ccc(tmp_path):
    table = planted()
    report = search_layers(table, arguments(), tmp_path, seeds=2, rivals=["all"], sizes=[4], show_progress=False)
    assert report["sets"]["2"] == [1, 3]  # the layer of the classes and that of the numbers
    best = report["choice"]["best"]
    point = next(own for own in report["curves"]["consensus"] if own["size"] == best)
    for split in ("validation", "test"):
        tasks = point[split]["tasks"]
        assert point[split]["mean"] == pytest.approx((tasks["keyword"]["mean"] + tasks["age"]["mean"]) / 2)
    assert point["validation"]["mean"] == max(own["validation"]["mean"] for own in report["curves"]["consensus"])
    counts = {split: len(numbers_of(table, split)) for split in ("train", "validation", "test")}
    expected = {"kind": "regression", **{f"num_{split}": number for split, number in counts.items()}, "majority": 0.0}
    assert report["tasks"]["age"] == expected
    assert report["chance"]["age"]["is_above"]
    assert (set(report["probe"]), report["chance"]["age"]["accuracy"]) == ({"keyword"}, point["test"]["tasks"]["age"]["mean"])
    text = (tmp_path / "layers.md").read_text()
    assert "age: the figure is the CCC x 100 in place of an accuracy, also in the means over tasks." in text
    assert f"age {'/'.join(map(str, counts.values()))} clips, numbers" in text
    assert (tmp_path / "recipe.yaml").exists()


def test_poolings_are_compared_by_the_ccc_of_resampled_clips(tmp_path):
    table, args = planted(only_numbers=True), arguments(tasks={"age": TASKS["age"]}, num_epochs=4, selected_layers=[0, 3])
    names = ["weighted_average", "mean"]
    report = search_poolings(table, args, tmp_path, seeds=2, poolings=names, show_progress=False)
    store, expected = FitStore(tmp_path / "fits"), numbers_of(table, "test")
    for row in report["poolings"]:
        own = args.with_pooling(row["pooling_type"], row["pooling_kwargs"])
        fits = [store.get(store.key(replace(own, seed=seed), table.fingerprint)) for seed in (0, 1)]
        outputs = [np.array(one["test"]["outputs"]["age"]) for one in fits]
        mean = np.mean([audmetric.concordance_cc(expected, one) for one in outputs])
        assert row["test"]["tasks"]["age"]["mean"] == row["test"]["mean"] == pytest.approx(mean, abs=1e-4)

        def mean_ccc(*given):
            return np.mean([audmetric.concordance_cc(given[0], one) for one in given[1:]])

        drawn = bootstrap(
            (expected, *outputs), mean_ccc, paired=True, vectorized=False, method="percentile", n_resamples=1500, rng=0
        )
        assert row["test"]["interval"] == pytest.approx(list(drawn.confidence_interval), abs=0.01)
    assert "CCC x 100" in (tmp_path / "poolings.md").read_text()


@pytest.mark.slow
def test_hyper_parameters_are_judged_by_the_mean_of_accuracy_and_ccc(tmp_path):
    report = search_hparams(
        planted(), arguments(num_epochs=2), tmp_path, 2, 1, batch_sizes=[75], learning_rates=[2e-2], show_progress=False
    )
    figures = report["best"]["validation"]
    assert figures["mean"] == pytest.approx((figures["tasks"]["keyword"]["mean"] + figures["tasks"]["age"]["mean"]) / 2)
    assert json.loads((tmp_path / "results/hparams.json").read_text()) == report
    assert "CCC x 100" in (tmp_path / "hparams.md").read_text()


def test_resampled_cccs_by_hand():
    generator = np.random.default_rng(1)
    targets, outputs = generator.standard_normal(3), generator.standard_normal((2, 2, 3))  # models, seeds, clips
    answers = {"age": number_answers(outputs, targets)}
    drawn = resampled_figures(answers, {"age": np.arange(3)}, num_resamples=3000)["age"]
    samples = [np.array(rows) for rows in np.ndindex(3, 3, 3)]
    with np.errstate(invalid="ignore"):
        exact = [
            [np.mean([audmetric.concordance_cc(targets[rows], one[rows]) for one in model]) for rows in samples]
            for model in outputs
        ]
    for values, own in zip(drawn, np.nan_to_num(exact)):  # every draw is one of the 27, as often as it should be
        assert np.abs(values[:, None] - own).min(axis=1).max() < 1e-6
        assert values.mean() == pytest.approx(own.mean(), abs=0.05)
    assert interval(drawn[0])[0] <= np.median(drawn[0]) <= interval(drawn[0])[1]


def test_chance_and_standard_error_of_a_ccc_by_hand():
    verdicts = against_chance(
        {"age": {"mean": 0.3}, "pitch": {"mean": 0.1}},
        {"age": 0.0, "pitch": 0.0},
        {"age": 103, "pitch": 103},
        ["age", "pitch"],
    )
    half = norm.ppf(1 - 0.025 / 2) / 10  # 5 % shared by two tasks, variance 1 / (N - 3)
    assert verdicts["age"]["interval"] == pytest.approx([np.tanh(np.arctanh(0.3) - half), np.tanh(np.arctanh(0.3) + half)])
    assert [own["is_above"] for own in verdicts.values()] == [True, False]
    figures = {"mean": 0.6, "deviation": None, "values": [0.6]}
    point = {"size": 2, "validation": {**figures, "tasks": {"keyword": {"mean": 0.8}, "age": {"mean": 0.4}}}}
    choice = choose([point], {"keyword": 100, "age": 103}, ["age"])
    assert choice["standard_error"] == pytest.approx(np.sqrt(0.16 / 100 + 0.84**2 / 100) / 2)
