"""Pictures of a layer selection, each as SVG and PNG, from results/layers.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.reports.figures import draw_all, new_axes
from wavcse.search.report import TITLES, is_regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "consensus": ("black", "o"),
    "recursion": ("tab:blue", "s"),
    "all": ("tab:gray", "*"),
    "top_weights": ("tab:cyan", "^"),
    "top_single": ("tab:orange", "v"),
    "greedy": ("tab:green", "D"),
    "random": ("tab:red", "x"),
}


def draw_layers(report: Mapping, folder: Path) -> list[Path]:
    """Draw first_round, weights, accuracy and cost; returns the files."""
    return draw_all({"first_round": _first_round, "weights": _weights, "accuracy": _accuracy, "cost": _cost}, report, folder)


def _weights_of_rounds(report: Mapping) -> np.ndarray:
    """`[rounds, layers, seeds]`, NaN where a layer is gone."""
    trials = list(report["trials"]["recursion"].values())
    weights = np.full((report["num_layers"], report["num_layers"], len(trials)), np.nan)
    for seed, rounds in enumerate(trials):
        for i, trial in enumerate(rounds):
            weights[i, trial["layers"], seed] = trial["layer_weights"]
    return weights


def _first_round(report: Mapping) -> Figure:
    weights = _weights_of_rounds(report)[0]
    figure, (axes,) = new_axes(7, 3.6)
    spread = weights.std(axis=1, ddof=1) if weights.shape[1] > 1 else None
    axes.bar(range(len(weights)), weights.mean(axis=1), yerr=spread, capsize=2)
    axes.axhline(1 / len(weights), color="gray", linestyle=":", label="equal weights")
    axes.set(xlabel="layer", ylabel="weight", title="Layer weights of the first round, mean and deviation over seeds")
    axes.legend()
    return figure


def _weights(report: Mapping) -> Figure:
    weights = _weights_of_rounds(report)
    is_there = ~np.isnan(weights)
    mean = np.where(is_there, weights, 0).sum(axis=2) / np.maximum(is_there.sum(axis=2), 1)
    # Times the number of layers left, so that equal weights look equal in every round.
    shown = np.ma.masked_array(mean * np.arange(len(mean), 0, -1)[:, None], mask=~is_there.any(axis=2))
    figure, (axes,) = new_axes(7, 6)
    image = axes.imshow(shown, aspect="auto", cmap="viridis", extent=(-0.5, len(mean) - 0.5, len(mean) + 0.5, 0.5))
    figure.colorbar(image, label="weight / equal weight, mean over seeds that have the layer")
    axes.set(xlabel="layer", ylabel="round", title="Layer weights over the rounds")
    return figure


def _accuracy(report: Mapping) -> Figure:
    tasks = list(report["tasks"])
    figure, axes = new_axes(6 + 4 * len(tasks), 4.4, 1 + len(tasks))
    for name in TITLES:
        if name in report["curves"]:
            _plot_curve(axes[0], name, report["curves"][name])
    axes[0].axvline(report["choice"]["best"], color="black", linestyle=":", linewidth=1)
    axes[0].axvline(report["choice"]["smallest"], color="gray", linestyle=":", linewidth=1)
    axes[0].set(title="Mean validation accuracy", xlabel="layers", ylabel="%")
    axes[0].legend(fontsize=7)
    points = report["curves"]["consensus"]
    for task, own in zip(tasks, axes[1:]):
        for split, line in (("validation", "-"), ("test", "--")):
            _plot_band(own, points, [point[split]["tasks"][task] for point in points], "black", line, split)
        facts = report["tasks"][task]
        chance, unit = ("a constant", "CCC x 100") if is_regression(facts) else ("most frequent class", "%")
        own.axhline(100 * facts["majority"], color="gray", linestyle=":", label=chance)
        own.set(title=f"{task}, consensus sets", xlabel="layers", ylabel=unit)
        own.legend(fontsize=7)
    return figure


def _plot_curve(axes: Axes, name: str, points: Sequence[Mapping]) -> None:
    color, marker = STYLES[name]
    if name == "all":
        axes.axhline(100 * points[0]["validation"]["mean"], color=color, linestyle="--", label=TITLES[name])
        return
    _plot_band(axes, points, [point["validation"] for point in points], color, f"{marker}-", TITLES[name])


def _plot_band(axes: Axes, points: Sequence[Mapping], moments: Sequence[Mapping], color: str, line: str, label: str) -> None:
    sizes = [point["size"] for point in points]
    mean = 100 * np.array([own["mean"] for own in moments])
    deviation = 100 * np.array([own["deviation"] or 0.0 for own in moments])
    axes.plot(sizes, mean, line, color=color, label=label, markersize=4, linewidth=1.2)
    axes.fill_between(sizes, mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0)


def _cost(report: Mapping) -> Figure:
    points, of_size = report["curves"]["consensus"], {own["size"]: own for own in report["costs"]}
    costs = [of_size[point["size"]] for point in points]  # a set that diverged has a cost and no point
    is_measured = "audio_s_per_s" in costs[0]
    cost = [own["audio_s_per_s" if is_measured else "gflop_per_audio_s"] for own in costs]
    mean = [100 * point["validation"]["mean"] for point in points]
    deviation = [100 * (point["validation"]["deviation"] or 0.0) for point in points]
    figure, (axes,) = new_axes(6.5, 4.4)
    axes.errorbar(cost, mean, yerr=deviation, fmt="o", color="black", markersize=4, elinewidth=0.8)
    for x, y, point in zip(cost, mean, points):
        axes.annotate(str(point["size"]), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    for name, color in (("best", "tab:green"), ("smallest", "tab:orange")):
        i = next(i for i, point in enumerate(points) if point["size"] == report["choice"][name])
        axes.plot(
            cost[i], mean[i], "o", color=color, markersize=9, fillstyle="none", label=f"{name}: {points[i]['size']} layers"
        )
    label = "seconds of audio per second, measured" if is_measured else "GFLOP per second of audio"
    axes.set(xlabel=label, ylabel="mean validation accuracy in %", title="Cost of the upstream against accuracy")
    axes.legend(fontsize=8)
    return figure
