"""Pictures of an evaluation, each as SVG and PNG, from the result files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from wavcse.eval.rows import Row, metric_title, metric_words, shown, size_words
from wavcse.reports.figures import draw_all, heat_map, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVERVIEW = "figures"
MOST_COUNTS = 20  # classes up to which a confusion matrix shows its counts
MOST_IN_LEGEND = 20  # labels up to which a map has a legend
RATE_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)  # of a DET curve, the ends of its axes too:
LOWEST_RATE = RATE_TICKS[0]  # below it one trial more or less is most of what is seen
MARKERS = "os^vD"
UNIT_WORDS = {"percent": " %", "years": " years", "plain": ""}

Colors = Mapping[str, object]


def draw_pictures(rows: Sequence[Row], encoders: Sequence[str], folder: Path) -> list[Path]:
    """Draw the overview and every row's own pictures; returns the files."""
    drawings = {OVERVIEW: partial(draw_overview, rows)}
    for row in rows:
        drawings |= {name: draw for name, (_, draw) in drawings_of(row).items()}
    return draw_all(drawings, colors_of(encoders), folder)


def pictures_of(row: Row) -> dict[str, str]:
    """Name -> title of a row's own pictures; which there are depends on what its records hold."""
    return {name: title for name, (title, _) in drawings_of(row).items()}


def colors_of(encoders: Sequence[str]) -> Colors:
    """One colour per encoder, the same in all pictures."""
    import matplotlib

    palette = matplotlib.colormaps["tab10"].colors
    return {name: palette[place % len(palette)] for place, name in enumerate(encoders)}


def drawings_of(row: Row) -> dict[str, tuple[str, Callable[[Colors], Figure]]]:
    """What a row has to show: name -> title and what draws it, given the colours of `colors_of`."""
    title = row.title
    found = {
        "confusion": (f"{title}: confusion matrix", _confusion),
        "det": (f"{title}: DET curves", _det),
        "scatter": (f"{title}: predicted against true", _scatter),
        "map": (f"{title}: embedding map", _map),
    }
    return {f"{row.name}__{kind}": (words, partial(draw, row)) for kind, (words, draw) in found.items() if _having(row, kind)}


def _having(row: Row, kind: str) -> dict[str, Mapping]:
    """Encoder -> its data for a kind of picture."""
    return {name: record["figures"][kind] for name, record in row.records.items() if record["figures"].get(kind)}


def _looked_at(row: Row, kind: str) -> dict[str, Mapping]:
    """Of the first encoder and of the best one, where they are two: a matrix per baseline would be too much to look at."""
    having = _having(row, kind)
    wanted = [name for name in dict.fromkeys([next(iter(row.records)), row.best[0]]) if name in having]
    return {name: having[name] for name in wanted or list(having)[:1]}


def draw_overview(rows: Sequence[Row], colors: Colors) -> Figure:
    """All figures with their intervals, a panel per row; the best in bold, the paper's as a line where it may stand."""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = new_axes(4.2 * columns, lines * (1.2 + 0.26 * len(colors)), columns, lines)
    for row, own in zip(rows, axes):
        _bars(own, row, colors)
    for own in axes[len(rows) :]:
        own.set_axis_off()
    return figure


def _bars(axes: Axes, row: Row, colors: Colors) -> None:
    names = list(row.records)
    unit = row.unit
    scale = 100 if unit == "percent" else 1
    values = scale * np.array([row.figure(name)["value"] for name in names])
    intervals = [row.figure(name)["interval"] for name in names]
    ends = scale * np.array([interval or (np.nan, np.nan) for interval in intervals]).T
    errors = np.maximum(np.stack([values - ends[0], ends[1] - values]), 0)
    axes.barh(range(len(names)), values, xerr=errors, color=[colors[name] for name in names], capsize=2, ecolor="black")
    axes.set_yticks(range(len(names)), [f"{name}  {shown(row.figure(name)['value'], unit)}" for name in names], fontsize=8)
    for label, name in zip(axes.get_yticklabels(), names):
        label.set_fontweight("bold" if name in row.best else "normal")
    if row.published:
        axes.axvline(scale * row.published["paper"], color="black", linestyle="--", linewidth=1, label="paper")
    axes.invert_yaxis()
    axes.set_title(f"{row.title}\n{size_words(row)}", fontsize=9)
    dashed = "; dashed: the paper" if row.published else ""
    axes.set_xlabel(metric_words(row.primary, row.figure(names[0])) + dashed, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)


def _confusion(row: Row, colors: Colors) -> Figure:
    panels = _looked_at(row, "confusion")
    num_classes = len(next(iter(panels.values()))["labels"])
    side = max(3.2, min(9.0, 1.2 + 0.32 * num_classes))
    figure, axes = new_axes((side + 1.2) * len(panels), side, len(panels))
    for own, (name, data) in zip(axes, panels.items()):
        counts = np.array(data["counts"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        numbers = counts if num_classes <= MOST_COUNTS else np.empty((0, 0), dtype=int)
        heat_map(own, shares, numbers, data["labels"], data["labels"], "share of the true class", "d")
        own.tick_params(axis="x", rotation=90)
        own.tick_params(labelsize=8 if num_classes <= MOST_COUNTS else 6)
        own.set_title(f"{name}\n{_figure_words(row, name)}", fontsize=9)
        own.set(xlabel="predicted", ylabel="true")
    figure.suptitle(row.title, fontsize=10)
    return figure


def _det(row: Row, colors: Colors) -> Figure:
    figure, (axes,) = new_axes(6, 5.6)
    for name, curve in _having(row, "det").items():
        errors = row.records[name]["metrics"]["eer"]["value"]
        x, y = (_probit(np.array(curve[key])) for key in ("false_acceptance", "false_rejection"))
        axes.plot(x, y, color=colors[name], linewidth=1.4, label=f"{name}, EER {shown(errors, 'percent')} %")
        axes.plot(*[_probit(np.array([errors]))] * 2, "o", color=colors[name], markersize=6, markeredgecolor="black")
    words = [f"{100 * rate:g}" for rate in RATE_TICKS]
    axes.set_xticks(_probit(np.array(RATE_TICKS)), words)
    axes.set_yticks(_probit(np.array(RATE_TICKS)), words)
    ends = _probit(np.array([LOWEST_RATE, RATE_TICKS[-1]]))
    axes.plot(ends, ends, color="gray", linestyle=":", linewidth=1)
    axes.set(xlim=ends, ylim=ends, xlabel="false acceptance, %", ylabel="false rejection, %", title=row.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="circle: equal error rate", title_fontsize=8)
    return figure


def _probit(rates: np.ndarray) -> np.ndarray:
    """Normal deviates of rates; those at the ends, which have none, are drawn beyond the frame."""
    return norm.ppf(np.clip(rates, LOWEST_RATE / 10, 1 - LOWEST_RATE / 10))


def _scatter(row: Row, colors: Colors) -> Figure:
    panels = _looked_at(row, "scatter")
    figure, axes = new_axes(4.6 * len(panels), 4.6, len(panels))
    values = [value for data in panels.values() for value in (*data["true"], *data["predicted"])]
    margin = 0.05 * (max(values) - min(values)) or 0.5
    limits = (min(values) - margin, max(values) + margin)
    for own, (name, data) in zip(axes, panels.items()):
        own.plot(limits, limits, color="gray", linestyle=":", linewidth=1)
        own.scatter(data["true"], data["predicted"], s=12, alpha=0.5, color=colors[name], linewidths=0)
        unit = ", years" if row.unit == "years" else ""
        own.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true{unit}", ylabel=f"predicted{unit}")
        own.set_title(f"{name}\n{_figure_words(row, name)}", fontsize=9)
    figure.suptitle(row.title, fontsize=10)
    return figure


def _figure_words(row: Row, encoder: str) -> str:
    """`CCC 0.412, MAE 5.21`: an encoder's figures over the whole test split."""
    figures = row.records[encoder]["metrics"]
    own = {name: figures[name] for name in row.task["metrics"] if name in figures}
    chosen = {name: own[name] for name in ("ccc", "mae") if name in own} or dict([next(iter(own.items()))])
    return ", ".join(
        f"{metric_title(name)} {shown(figure['value'], figure['unit'])}{UNIT_WORDS[figure['unit']]}"
        for name, figure in chosen.items()
    )


def _map(row: Row, colors: Colors) -> Figure:
    name, data = next(iter(_having(row, "map").items()))
    x, y, labels = np.array(data["x"]), np.array(data["y"]), np.array(data["label"])
    kinds = sorted(set(data["label"]))
    has_legend = len(kinds) <= MOST_IN_LEGEND
    figure, (axes,) = new_axes(7.4 if has_legend else 5.6, 5.2)
    for place, (kind, color) in enumerate(zip(kinds, _label_colors(len(kinds)))):
        mine = labels == kind
        axes.scatter(x[mine], y[mine], s=18, color=color, marker=MARKERS[place % len(MARKERS)], linewidths=0, label=kind)
    axes.set(xticks=[], yticks=[], title=f"{row.title}\n{name}, {len(x)} test clips, t-SNE")
    axes.set_aspect("equal", adjustable="datalim")
    if has_legend:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.set_xlabel(f"{len(kinds)} labels, a colour and shape each")
    return figure


def _label_colors(number: int) -> Sequence[object]:
    import matplotlib

    if number <= 10:
        return matplotlib.colormaps["tab10"].colors[:number]
    return [matplotlib.colormaps["turbo"](place / (number - 1)) for place in range(number)]
