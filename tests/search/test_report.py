"""What layers.md and poolings.md say: verdicts by the test clips, every size in the race, no verdict from two seeds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy.stats import t

from wavcse.search import layers, runner
from wavcse.search.fit import settings_of
from wavcse.search.layers import search_layers
from wavcse.search.pooling_report import poolings_markdown
from wavcse.search.poolings import search_poolings
from wavcse.search.report import layers_markdown
from wavcse.search.table import read_table
from wavcse.training.arguments import RunArguments


def planted_fit(table, many, after_epoch=None) -> list[dict]:
    """In place of training: low layers have large weights; three layers are best on validation, one alone on test."""
    results = []
    for args in many:
        own = args.selected_layers
        noise = 0.001 * ((3 * sum(own) + 7 * args.seed + len(args.pooling_type)) % 5)
        value = {"validation": 0.9 - 0.05 * abs(len(own) - 3) + noise, "test": 0.9 - 0.1 * len(own) + noise - 0.01 * max(own)}
        figures = {
            split: {
                "accuracy": {"keyword": share, "speaker": share},
                "mean_accuracy": share,
                "is_correct": {task: "10" * (size // 2) for task, size in (("keyword", 12), ("speaker", 12))},
            }
            for split, share in value.items()
        }
        weights = [1 / (1 + layer) for layer in own]
        extra = {"layer_weights": weights, "best_epoch": 1, "seconds": 0.0}
        results.append({"settings": settings_of(args), **figures, **extra})
    return results


@pytest.fixture
def report(search_recipe, tmp_path, monkeypatch) -> dict:
    """Three seeds; rivals are trained at one and four layers only."""
    monkeypatch.setattr(runner, "fit_together", planted_fit)
    monkeypatch.setattr(layers, "draw_layers", lambda report, folder: [])
    args = RunArguments(**search_recipe)
    return search_layers(read_table(args), args, tmp_path, seeds=3, sizes=[1, 4], show_progress=False)


def test_a_size_without_rivals_can_win_and_then_meets_them(report):
    assert [point["size"] for point in report["curves"]["consensus"]] == [1, 2, 3, 4]
    assert report["choice"]["best"] == 3
    for name in ("top_weights", "top_single", "greedy", "random"):
        assert [point["size"] for point in report["curves"][name]] == [1, 3, 4]
    best = report["sets"]["3"]
    assert best == [0, 1, 2]
    for split in ("validation", "test"):
        ours = np.array(
            [trial[split]["mean_accuracy"] for own in report["trials"]["consensus"].values() for trial in own[2:3]]
        )
        theirs = np.array([own[0][split]["mean_accuracy"] for own in report["trials"]["all"].values()])
        shown = report["over_rivals"]["all"] if split == "validation" else report["over_rivals"]["all"]["test"]
        half = t.ppf(0.975, 2) * np.std(ours - theirs, ddof=1) / np.sqrt(3)
        mean = np.mean(ours - theirs)
        assert shown["mean"] == pytest.approx(mean)
        assert shown["interval"] == pytest.approx([mean - half, mean + half])


def test_the_verdict_over_rivals_is_that_of_the_test_clips(report):
    report = copy.deepcopy(report)
    for name, middle in (("all", 0.05), ("greedy", 0.0), ("random", -0.05)):
        own = {"mean": middle, "deviation": 0.01, "values": [], "interval": [middle - 0.01, middle + 0.01]}
        report["over_rivals"][name] = {**report["over_rivals"][name], "mean": 0.3, "interval": [0.2, 0.4], "test": own}
    report["over_rivals"] = {name: report["over_rivals"][name] for name in ("all", "greedy", "random")}
    text = layers_markdown(report)
    verdict = "better than: all layers; not distinguishable from: greedy forward; worse than: random sets"
    assert f"**On the test clips the best set is {verdict}.**" in text
    assert "| all layers | +30.00 [+20.00, +40.00] | +5.00 [+4.00, +6.00] |" in text


def test_rivals_are_shown_on_the_test_clips_and_removals_with_their_shares(report):
    text = layers_markdown(report)
    for split in ("validation", "test"):
        table = text.split(f"Mean {split} accuracy:")[1].split("\n\n")[1]
        point = next(own for own in report["curves"]["greedy"] if own["size"] == 3)[split]
        assert f"{100 * point['mean']:.2f} ± {100 * point['deviation']:.2f}" in table
    for number, layer in ((1, 3), (2, 2), (3, 1), (4, 0)):  # every seed drops the highest
        assert f"| {number} | {layer} | {number}.0 [{number}, {number}] | 100 % | {layer} (100 %) |" in text


@pytest.mark.parametrize(("seeds", "has_verdict"), [(2, False), (3, True)])
def test_two_seeds_say_nothing_on_rankings(search_recipe, tmp_path, monkeypatch, seeds, has_verdict):
    monkeypatch.setattr(runner, "fit_together", planted_fit)
    monkeypatch.setattr("wavcse.search.poolings.draw_poolings", lambda report, folder: [])
    args = RunArguments(**search_recipe)
    names = ["mean", "weighted_average", "gated"]
    found = search_poolings(read_table(args), args, tmp_path, seeds, poolings=names, constants="default", show_progress=False)
    text = poolings_markdown(found)
    assert ("fewer than 3 seeds, no verdict" in text) != has_verdict
    assert ("the ranking depends on the set." in text) == has_verdict
