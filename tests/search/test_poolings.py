"""Comparing poolings: planted data decide which wins, the bootstrap meets scipy's and a case by hand, files agree."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import bootstrap, kendalltau, spearmanr

from wavcse.data.composite import CompositeSet
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search import runner
from wavcse.search.arguments import PAPER_POOLINGS
from wavcse.search.bootstrap import class_answers, difference_of, interval, resampled_figures, units_of
from wavcse.search.poolings import LEARNED, main, search_poolings
from wavcse.search.runner import Fit, FitError, fit_all
from wavcse.search.stability import rank_agreement
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable, read_table
from wavcse.train_accelerate import train
from wavcse.training.arguments import TRAIN, RunArguments

L, D, NUM_CLIPS, CLASSES = 6, 12, 600, ["a", "b", "c"]
UPSTREAM = {
    "model_type": "wavlm",
    "hidden_size": D,
    "num_hidden_layers": L - 1,
    "num_attention_heads": 2,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 4,
}


def arguments(**changes) -> RunArguments:
    sizes = {"layer_projection_size": 24, "embedding_size": 24, "layer_dropout": 0.0, "embedding_dropout": 0.0}
    tasks = {"keyword": {"manifest": "planted.csv", "label_column": "keyword"}}
    fields = {"tasks": tasks, "batch_size": 100, "num_epochs": 12, "learning_rate": 1e-2, **sizes}
    return RunArguments(**{**fields, "selected_layers": list(range(L)), **changes}, save_hub=False)


def planted(winner: str) -> SearchTable:
    """Two layers of every clip, drawn for each clip, are opposite: they cancel in a mean and stand out in a maximum.

    They carry the class where the maximum is to win; else all layers carry it, and the two are strong noise.
    """
    generator = np.random.default_rng(0)
    labels = generator.integers(len(CLASSES), size=NUM_CLIPS)
    signal = 2 * generator.standard_normal((len(CLASSES), D))[labels]
    features = 0.3 * generator.standard_normal((NUM_CLIPS, L, D))
    pair = np.argsort(generator.random((NUM_CLIPS, L)), axis=1)[:, :2]
    odd = signal if winner == "max" else 20 * generator.standard_normal((NUM_CLIPS, D))
    features += 0 if winner == "max" else signal[:, None]
    for column, sign in zip(pair.T, (1, -1)):
        features[np.arange(NUM_CLIPS), column] += sign * odd
    split = generator.permutation(NUM_CLIPS) % 3
    targets = {
        name: {"keyword": np.where(split == i, labels, IGNORED_LABEL)}
        for i, name in enumerate(("train", "validation", "test"))
    }
    composite = CompositeSet([], {"keyword": CLASSES}, targets)
    return SearchTable(torch.from_numpy(features.astype(np.float32)), composite, UPSTREAM, f"planted for {winner}")


@pytest.mark.parametrize(("winner", "loser"), [("max", "mean"), ("mean", "max")])
def test_the_pooling_that_the_data_call_for_wins(tmp_path, winner, loser):
    report = search_poolings(planted(winner), arguments(), tmp_path, seeds=2, poolings=["max", "mean"], show_progress=False)
    assert report["best"] == winner
    rows = {row["name"]: row for row in report["poolings"]}
    assert rows[winner]["test"]["mean"] > rows[loser]["test"]["mean"] + 0.15
    difference = rows[loser]["test"]["difference"]
    assert difference["is_distinguishable"]
    assert difference["mean"] == pytest.approx(rows[winner]["test"]["mean"] - rows[loser]["test"]["mean"])
    assert difference["interval"][0] < difference["mean"] < difference["interval"][1]
    assert difference["p"] == pytest.approx(2 / 2001)
    text = (tmp_path / "poolings.md").read_text()
    assert f"**Best: {winner}**" in text
    (verdict,) = [line for line in text.splitlines() if line.startswith("**Best")]
    assert loser in verdict.split("worse: ")[1].split(";")[0]


@pytest.mark.slow
@pytest.mark.usefixtures("real_pictures")
def test_constants_are_chosen_on_validation_and_figures_come_from_the_fits(tmp_path, monkeypatch):
    counted, do_fit = [], runner.fit_together
    monkeypatch.setattr(runner, "fit_together", lambda table, many: (counted.extend(many), do_fit(table, many))[1])
    table, args = planted("max"), arguments(num_epochs=2, selected_layers=[4, 0, 2])
    report = search_poolings(table, args, tmp_path, seeds=2, show_progress=False)
    grid, rows = report["grid"], report["poolings"]
    assert [row["name"] for row in rows] == [
        name + tail for name in PAPER_POOLINGS for tail in (["", ", learned"] if name in LEARNED else [""])
    ]
    assert len(grid) == 6 + (3 + 1) + (5 + 1) + (5 + 1) + 5
    assert len(counted) == 2 * (len(grid) + len(rows)) == len(list((tmp_path / "fits").glob("*.json")))
    for row in rows:
        own = [setting for setting in grid if setting["name"] == row["name"]]
        best = max(own, key=lambda setting: setting["validation"]["mean"])
        assert (row["pooling_kwargs"], row["test"]["values"]) == (best["pooling_kwargs"], best["test"]["values"])
    assert report["best"] == max(rows, key=lambda row: row["validation"]["mean"])["name"]

    store, row = FitStore(tmp_path / "fits"), rows[-1]
    own = replace(args, pooling_type="self_attention", selected_layers=[0, 2, 4])
    fits = [store.get(store.key(replace(own, seed=seed), table.fingerprint)) for seed in (0, 1)]
    right = np.mean([list(map(int, fit["test"]["is_correct"]["keyword"])) for fit in fits], axis=0)
    assert row["test"]["tasks"]["keyword"]["mean"] == pytest.approx(right.mean())
    expected = bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert row["test"]["interval"] == pytest.approx(list(expected), abs=0.006)

    assert report["sets"]["selected"]["layers"] == [0, 2, 4]
    assert report["sets"]["all"]["layers"] == list(range(L))
    means = [[own["validation"]["mean"] for own in of["poolings"]] for of in report["sets"].values()]
    assert report["rank_agreement"]["spearman"] == pytest.approx(spearmanr(*means).statistic)
    assert json.loads((tmp_path / "results/poolings.json").read_text()) == report
    for name in ("poolings", "constants", "sets"):
        assert f"(pictures/{name}.png)" in (tmp_path / "poolings.md").read_text()
        assert (tmp_path / f"pictures/{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / f"pictures/{name}.svg").read_text()[:2000]

    # a fit that another search left there counts
    fit_all([Fit(replace(own, seed=5), "")], table, store, show_progress=False)
    before = len(counted)
    search_poolings(table, replace(args, seed=4), tmp_path, 2, poolings=["self_attention"], show_progress=False)
    assert len(counted) == before + 3  # seed 5 on the selected layers is there


# -- the bootstrap


def test_a_paired_bootstrap_by_hand():
    correct = np.array([[1.0, 1.0], [1.0, 0.0]])  # the second clip tells the models apart
    answers = {"keyword": class_answers(correct)}
    drawn = resampled_figures(answers, {"keyword": np.array([7, 3])}, num_resamples=20_000)["keyword"]
    difference = drawn[0] - drawn[1]
    shares = [np.mean(difference == value) for value in (0.0, 0.5, 1.0)]  # the second clip drawn 0, 1 or 2 times
    assert shares == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.01)
    found = difference_of(0.5, difference)
    assert (found["interval"], found["is_distinguishable"]) == ([0.0, 1.0], False)
    assert found["p"] == pytest.approx(2 * 1 / 4, abs=0.02)
    assert difference_of(0.5, difference + 0.01)["is_distinguishable"]
    assert difference_of(-0.5, -difference - 0.01)["p"] == pytest.approx(2 / 20_001)


def test_a_paired_bootstrap_is_scipys():
    generator = np.random.default_rng(3)
    correct = (generator.random((2, 300)) < [[0.8], [0.74]]).astype(float)
    answers = {"keyword": class_answers(correct)}
    drawn = resampled_figures(answers, {"keyword": np.arange(300)}, num_resamples=8000)["keyword"]
    expected = bootstrap(
        tuple(correct),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=8000,
        rng=0,
    )
    assert np.std(drawn[0] - drawn[1], ddof=1) == pytest.approx(expected.standard_error, rel=0.03)
    assert interval(drawn[0] - drawn[1]) == pytest.approx(list(expected.confidence_interval), abs=0.004)


def test_speakers_are_drawn_whole_and_alike_in_every_task():
    speakers = np.repeat(np.arange(30), 10)
    right = (np.random.default_rng(0).random(30) < 0.5).astype(float)[speakers]  # a speaker is always right or always wrong
    correct = {"keyword": right[None], "emotion": right[None], "speaker": right[None, :200]}
    units = {"keyword": speakers, "emotion": speakers, "speaker": -1 - np.arange(200)}
    answers = {task: class_answers(own) for task, own in correct.items()}
    drawn = resampled_figures(answers, units, num_resamples=4000)
    share = right.mean()
    assert np.std(drawn["keyword"]) == pytest.approx(np.sqrt(share * (1 - share) / 30), rel=0.05)
    assert np.std(drawn["speaker"]) == pytest.approx(np.sqrt(0.25 / 200), rel=0.1)
    assert np.array_equal(drawn["keyword"], drawn["emotion"])
    assert abs(np.corrcoef(drawn["keyword"][0], drawn["speaker"][0])[0, 1]) < 0.05


def test_a_task_draws_the_speakers_that_its_splits_keep_apart(search_recipe):
    table = read_table(RunArguments(**search_recipe))
    test = units_of(table.composite, table.groups, "test")
    assert test["speaker"][0] == "clip"  # the task has the same speakers in all splits
    assert len(np.unique(test["speaker"][1])) == 12
    assert (test["keyword"][0], len(np.unique(test["keyword"][1]))) == ("clip", 12)  # one speaker cannot be drawn
    train = units_of(table.composite, table.groups, "train")["keyword"]
    assert train[0] == "speaker"
    assert sorted(np.unique(train[1], return_counts=True)[1]) == [12, 12]


def test_rank_agreement_by_hand():
    first, second = [[1, 2, 3, 4], [2, 1, 3, 4]], [[1, 2, 3, 4], [1, 2, 4, 3]]
    found = rank_agreement(first, second)
    means = [1.5, 1.5, 3, 4], [1, 2, 3.5, 3.5]
    assert found["spearman"] == pytest.approx(spearmanr(*means).statistic)
    assert found["kendall_tau"] == pytest.approx(kendalltau(*means).statistic)
    assert found["within"] == pytest.approx({"mean": 0.8, "min": 0.8, "max": 0.8})  # one neighbouring swap: 1 - 6 * 2 / 60
    assert found["across"] == pytest.approx({"mean": 0.8, "min": 0.8, "max": 0.8})
    assert rank_agreement([[1, 1]], [[1, 2]]) == {"spearman": None, "kendall_tau": None, "across": None, "within": None}


# -- the command


def test_the_program_leaves_a_recipe_that_trains(search_config, tmp_path, capsys):
    options = ["--poolings", "log_sum_exp", "max", "--constants", "default", "--seeds", "1", "--workers", "1"]
    overrides = ["--selected_layers", "3", "1", "--num_epochs", "1"]
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options, *overrides]) == 0
    assert "## Table 2 of the paper, test" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/results/poolings.json").read_text())
    best = next(row for row in report["poolings"] if row["name"] == report["best"])
    assert [row["name"] for row in report["poolings"]] == ["max", "log_sum_exp", "log_sum_exp, learned"]
    recipe = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert recipe["selected_layers"] == [1, 3]
    assert (recipe["pooling_type"], recipe["pooling_kwargs"]) == (best["pooling_type"], best["pooling_kwargs"])
    result = train(TRAIN.parse([str(tmp_path / "out/recipe.yaml")]))
    assert result["mean_accuracy"]["test"] == best["test"]["mean"]
    assert (tmp_path / "out/final/hub/model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "seeds is 0"),
        (["--workers", "0"], "workers is 0"),
        (["--selected_layers", "1", "9"], "selected_layers asks for layer 9"),
        (["--learning_rate", "0"], "learning_rate is 0"),
        (["--poolings", "max", "median"], "poolings is 'median' (did you mean mean?); allowed: weighted_average"),
        (["--poolings"], "--poolings is without a value"),
        (["--constants", "all"], "constants is 'all'; allowed: authors, default"),
    ],
)
def test_bad_options_are_refused_in_one_line(search_config, tmp_path, capsys, options, message):
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/fits/*"))


def test_settings_that_diverge_are_out_of_the_choice_and_reported(tmp_path, monkeypatch):
    """One constant with one seed, a whole pooling, and on all layers a third."""
    do_fit = runner.fit_together

    def some_diverge(table, many):
        results = []
        for args, result in zip(many, do_fit(table, many)):
            is_lost = (args.pooling_kwargs.get("p") == 2.0 and args.seed == 1) or args.pooling_type == "log_sum_exp"
            is_lost |= args.pooling_type == "mean" and len(args.selected_layers) == L
            lost = {"settings": result["settings"], "diverged": "the training diverged in epoch 1: x.", "seconds": 0.0}
            results.append(lost if is_lost else result)
        return results

    monkeypatch.setattr(runner, "fit_together", some_diverge)
    poolings = ["mean", "max", "learned_norm", "log_sum_exp"]
    args = arguments(num_epochs=2, selected_layers=[0, 1])
    report = search_poolings(planted("max"), args, tmp_path, seeds=2, poolings=poolings, show_progress=False)
    assert {row["name"] for row in report["poolings"]} == {"mean", "max", "learned_norm", "learned_norm, learned"}
    assert next(row for row in report["poolings"] if row["name"] == "learned_norm")["pooling_kwargs"]["p"] != 2.0
    assert sum("diverged" in setting for setting in report["grid"]) == 7  # p = 2, and r six times
    assert ["diverged" in own for own in report["sets"]["all"]["poolings"]] == [False, True, False, False]
    text = (tmp_path / "poolings.md").read_text()
    assert "Diverged, and so out of the choice: learned_norm (p = 2), log_sum_exp (r = 0.5)" in text
    assert "| log_sum_exp | r = 1 | diverged | diverged |" in text
    monkeypatch.setattr(runner, "fit_together", lambda table, many: list(map(lost_fit, many)))
    with pytest.raises(FitError, match="every setting diverged; the first: the training diverged"):
        search_poolings(planted("max"), args, tmp_path / "all", seeds=1, poolings=["mean"], show_progress=False)


def lost_fit(args: RunArguments) -> dict:
    return {"settings": {"seed": args.seed}, "diverged": "the training diverged in epoch 1: x."}
