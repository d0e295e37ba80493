"""Figures of reports: axes side by side, heat maps, and every figure as a drawing (SVG) and as pixels (PNG)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from wavcse.hub_repository_wavcse import with_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shown = TypeVar("Shown")


def draw_all(drawings: Mapping[str, Callable[[Shown], Figure]], shown: Shown, folder: Path) -> list[Path]:
    """Draw pictures of what is shown, name -> what draws it, into a folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, draw in drawings.items() for path in save_figure(draw(without_formulas(shown)), folder / name)]


def without_formulas(shown: Shown) -> Shown:
    """What is shown, with dollar signs in its texts that matplotlib draws: two of them would enclose a formula."""
    return with_texts(shown, lambda text: text.replace("$", "\\$"))


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """The figure as `stem`.svg and `stem`.png; the same figure gives the same bytes."""
    import matplotlib

    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
    with matplotlib.rc_context({"svg.hashsalt": stem.name}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def new_axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """A figure of this size in inches with a grid of axes, row by row. It needs no screen and is not kept by matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def heat_map(
    axes: Axes,
    colors: np.ndarray,
    figures: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    label: str,
    number_format: str = ".2f",
) -> None:
    """Cells `[rows, columns]` in colours, each with its figure, NaN left blank; `label` says what the colours mean."""
    image = axes.imshow(colors, aspect="auto", cmap="viridis")
    axes.figure.colorbar(image, label=label)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    middle = (np.nanmin(colors) + np.nanmax(colors)) / 2
    for (i, j), value in np.ndenumerate(figures):
        if np.isnan(value):
            continue
        color = "white" if colors[i, j] <= middle else "black"
        axes.text(j, i, format(value, number_format), ha="center", va="center", color=color)
