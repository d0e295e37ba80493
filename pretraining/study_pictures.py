"""Pictures of a study, each as SVG and PNG, from study.json: a figure against a setting, or against what a variant costs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.pretraining.study_config import MEAN, MEASURED
from wavcse.reports.figures import draw_all, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AREA_PER_MB = 4.0  # points²


def draw_plots(facts: Mapping, folder: Path) -> list[Path]:
    """Draw every plot of a study; returns the files. Pictures of plots that the study no longer has are removed."""
    shutil.rmtree(folder, ignore_errors=True)
    drawings = {plot_name(facts, number): partial(_draw, plot=plot) for number, plot in enumerate(facts["plots"])}
    return draw_all(drawings, facts, folder)


def plot_name(facts: Mapping, number: int) -> str:
    """Of the files of a plot."""
    plot = facts["plots"][number]
    return f"{number}_{plot['task']}_{plot['x']}"


def _draw(facts: Mapping, plot: Mapping) -> Figure:
    figure, (axes,) = new_axes(6.5, 4.4)
    names = [name for name in plot["variants"] if _x(facts, plot, name) is not None and _has_figure(facts, plot, name)]
    if _is_scale(facts, plot, names):
        names.sort(key=lambda name: _x(facts, plot, name))
    (_draw_mean if plot["task"] == MEAN else _draw_task)(axes, facts, plot, names)
    for name in names:
        axes.annotate(
            name, (_x(facts, plot, name), _y(facts, plot, name)), textcoords="offset points", xytext=(5, 5), fontsize=7
        )
    split = "validation" if plot["task"] == MEAN else "test"
    for place, name in enumerate(name for name in plot["reference"] if _has_figure(facts, plot, name)):
        label = f"{name}, {split}"
        axes.axhline(_y(facts, plot, name), color=f"C{place}", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel(MEASURED.get(plot["x"], plot["x"]))
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)  # names stand to the right of their points
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return figure


def _is_scale(facts: Mapping, plot: Mapping, names: Sequence[str]) -> bool:
    """Whether the points lie along one setting, so that a line through them means something."""
    return plot["x"] not in MEASURED and all(isinstance(_x(facts, plot, name), int | float) for name in names)


def _has_figure(facts: Mapping, plot: Mapping, name: str) -> bool:
    """Not of a variant that is still to be trained."""
    return name in facts["variants"] and _y(facts, plot, name) is not None


def _x(facts: Mapping, plot: Mapping, name: str) -> float | str | None:
    own = facts["variants"].get(name, {})
    if plot["x"] == "speed":
        return own["speed"]["times_real_time"] if "speed" in own else None
    if plot["x"] == "parameters":
        return own["parameters"] / 1e6 if own else None
    return own.get("megabytes") if plot["x"] == "megabytes" else own.get("settings", {}).get(plot["x"])


def _y(facts: Mapping, plot: Mapping, name: str) -> float | None:
    """In percent where it is a share."""
    own = facts["variants"][name]
    if plot["task"] == MEAN:
        return None if own["mean_validation"] is None else 100 * own["mean_validation"]
    figure = own["test"].get(plot["task"])
    return None if figure is None else _scale(figure) * figure["value"]


def _scale(figure: Mapping) -> int:
    return 100 if figure["unit"] == "percent" else 1


def _draw_mean(axes: Axes, facts: Mapping, plot: Mapping, names: Sequence[str]) -> None:
    """Validation only: the area of a mark is the size of the file."""
    x, y = ([read(facts, plot, name) for name in names] for read in (_x, _y))
    areas = [AREA_PER_MB * facts["variants"][name]["megabytes"] for name in names]
    axes.scatter(x, y, s=areas, alpha=0.6, color=["C2" if name == facts["best"] else "C0" for name in names])
    axes.set(ylabel="mean validation accuracy, %", title="Area: size of the weights; green: the best")


def _draw_task(axes: Axes, facts: Mapping, plot: Mapping, names: Sequence[str]) -> None:
    """Test figures with their intervals, and beside them the validation accuracies, which choices are made by."""
    row = facts["rows"][plot["task"]]
    x = [_x(facts, plot, name) for name in names]
    figures = [facts["variants"][name]["test"][plot["task"]] for name in names]
    values = np.array([_y(facts, plot, name) for name in names])
    ends = np.array([[_scale(own) * end for end in own["interval"] or (np.nan, np.nan)] for own in figures]).reshape(-1, 2)
    errors = np.maximum(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0)
    line = "-" if _is_scale(facts, plot, names) else ""
    axes.errorbar(x, values, yerr=errors, fmt=f"o{line}", color="black", capsize=3, markersize=5, label="test, 95 % interval")
    validation = [facts["variants"][name]["validation"].get(plot["task"]) for name in names]
    if names and all(validation):
        accuracies = [100 * own["accuracy"] for own in validation]
        axes.plot(x, accuracies, f"o{line and ':'}", color="gray", markersize=5, fillstyle="none", label="validation accuracy")
    axes.set(ylabel=f"{row['metric']}, %" if row["unit"] == "percent" else row["metric"], title=row["title"])
