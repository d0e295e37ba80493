"""Pictures of a comparison of poolings, each as SVG and PNG, from results/poolings.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.reports.figures import draw_all, heat_map, new_axes
from wavcse.search.pooling_report import pictures_of, setting_words
from wavcse.search.report import is_regression

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_poolings(report: Mapping, folder: Path) -> list[Path]:
    """Draw poolings, constants and sets; returns the files."""
    drawings = {"poolings": _poolings, "constants": _constants, "sets": _sets}
    return draw_all({name: drawings[name] for name in pictures_of(report)}, report, folder)


def _poolings(report: Mapping) -> Figure:
    rows = sorted(report["poolings"], key=lambda row: row["validation"]["mean"])
    tasks, height = list(report["tasks"]), np.arange(len(rows))
    figure, axes = new_axes(4 + 3 * len(tasks), 1.2 + 0.33 * len(rows), 1 + len(tasks))
    for own, task in zip(axes, [None, *tasks]):
        for split, color, shift in (("validation", "black", 0.12), ("test", "tab:orange", -0.12)):
            figures = [row[split] if task is None else row[split]["tasks"][task] for row in rows]
            mean = 100 * np.array([figure["mean"] for figure in figures])
            ends = 100 * np.array([figure["interval"] for figure in figures]).T
            errors = np.abs(ends - mean)
            own.errorbar(mean, height + shift, xerr=errors, fmt="o", color=color, markersize=4, linewidth=1, label=split)
        unit = "CCC x 100" if task and is_regression(report["tasks"][task]) else "%"
        own.set(title=task or "mean of the tasks", xlabel=unit, yticks=height, yticklabels=[])
        own.grid(axis="x", alpha=0.3)
    axes[0].set_yticklabels([row["name"] for row in rows])
    axes[0].legend(fontsize=7)
    return figure


def _constants(report: Mapping) -> Figure:
    families: dict[str, list[Mapping]] = {}
    for setting in report["grid"]:
        if setting_words(setting) and "diverged" not in setting:
            pooling = setting["pooling_type"]
            families.setdefault("smooth_maximum" if pooling == "auto" else pooling, []).append(setting)  # `auto` learns it
    figure, axes = new_axes(1 + 3 * len(families), 3.2, len(families))
    for own, (pooling, settings) in zip(axes, families.items()):
        mean = [100 * setting["validation"]["mean"] for setting in settings]
        deviation = [100 * (setting["validation"]["deviation"] or 0.0) for setting in settings]
        own.errorbar(range(len(mean)), mean, yerr=deviation, fmt="o", color="black", markersize=4, capsize=2)
        labels = [setting_words(setting).replace(" at the start", "\nlearned") for setting in settings]
        own.set_xticks(range(len(mean)), labels, rotation=60, fontsize=7)
        own.set(title=pooling)
    axes[0].set_ylabel("mean validation accuracy in %")
    return figure


def _sets(report: Mapping) -> Figure:
    sets, rows = report["sets"], report["poolings"]
    mean = 100 * np.array([[_mean(own) for own in of["poolings"]] for of in sets.values()]).T
    order = np.argsort(-mean[:, 0], kind="stable")
    columns = [f"{name}\n{len(own['layers'])} layers" for name, own in sets.items()]
    figure, (axes,) = new_axes(3.6 + 1.1 * len(sets), 1.4 + 0.3 * len(rows))
    shown = (mean - np.nanmax(mean, axis=0))[order]
    heat_map(axes, shown, mean[order], columns, [rows[i]["name"] for i in order], "below the best of the set, in points")
    axes.set(title="Mean validation accuracy in %")
    return figure


def _mean(figures: Mapping) -> float:
    return np.nan if "diverged" in figures else figures["validation"]["mean"]
