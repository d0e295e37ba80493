"""Clips in the plane, by PCA, t-SNE and UMAP, with the middles of their labels; what of the neighbourhoods the plane keeps.

Shapes: `N` clips, `E` size of a vector.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import mean_of, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.eval.probe import resampling_unit
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.retrieval.nearest import unit_rows
from wavcse.retrieval.projection import EXTRA, LEAST_ROWS, METHODS, points_of
from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "maps"
NEIGHBOURS = 5
MOST_LABELS = 12  # that are named in a picture, the most frequent ones


@dataclass
class MapsSettings(CheckedFields):
    """Settings of `maps`."""

    methods: list[str] = option(
        lambda: ["pca", "tsne"], "pca, tsne, umap; the last needs umap-learn.", choices=tuple(METHODS), commas=True
    )
    tasks: list[str] = option(list, "Tasks whose test clips are drawn.", "all with classes")
    most_clips: int = option(300, "Test clips; of more a draw.", at_least=LEAST_ROWS)


def draw_plane(study: Study, encoder: AnalyzedEncoder, task: str, settings: MapsSettings) -> dict[str, Any]:
    """Points of the test clips by every method, and how many of their neighbours have their label."""
    data, view = study.tasks[task], study.found("layers", encoder, task)["chosen"]
    rows = data.table.rows("test")
    if len(rows) > settings.most_clips:
        rows = np.sort(np.random.default_rng(study.seed).choice(rows, settings.most_clips, replace=False))
    vectors, labels = study.vectors(encoder, view, task)[rows], data.table.labels[rows].astype(str)
    unit, groups = resampling_unit(data, rows)
    chance = float(np.mean([np.sum(labels == own) - 1 for own in labels]) / (len(labels) - 1))
    keep = {"view": view, "title": data.task.title, "labels": labels.tolist()}
    near = {"vectors": mean_of(agreement(unit_rows(vectors), labels), groups, unit, study.seed, chance=chance)}
    points = {}
    for method in usable_methods(settings.methods):
        points[method] = points_of(vectors, method, study.seed)
        near[method] = mean_of(agreement(points[method], labels), groups, unit, study.seed, chance=chance)
    planes = {name: np.round(own, 4).tolist() for name, own in points.items()}
    return {**keep, "points": planes, "left_out": sorted(set(settings.methods) - set(points)), "neighbours": near}


def usable_methods(methods: Sequence[str]) -> list[str]:
    """Those whose library is installed."""
    return [method for method in methods if method != "umap" or importlib.util.find_spec("umap") is not None]


def agreement(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share of the `NEIGHBOURS` nearest points `[N, E]` that have the label of each, `[N]`."""
    squares = np.sum(points.astype(np.float64) ** 2, axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * points.astype(np.float64) @ points.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(points) - 1)]
    return np.mean(labels[nearest] == labels[:, None], axis=1)


def cells(study: Study, settings: MapsSettings) -> list[Cell]:
    """Every encoder on every task with classes and enough test clips."""
    return [
        encoder_cell(
            *(study, encoder, task, lambda e=encoder, t=task: draw_plane(study, e, t, settings)),
            *(study.found("layers", encoder, task)["chosen"], usable_methods(settings.methods)),
        )
        for encoder, task in study.pairs()
        if study.tasks[task].task.kind == "classification"
        and (not settings.tasks or task in settings.tasks)
        and len(study.tasks[task].table.rows("test")) >= LEAST_ROWS
    ]


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """What is not drawn; pictures are to be looked at."""
    missing = sorted({method for record in records for method in record["found"]["left_out"]})
    names = " and ".join(f"`{method}`" for method in missing)
    return [f'`maps` are without {names}: umap-learn is not installed (pip install "wavcse[{EXTRA}]").'] if missing else []


def section(records: Sequence[dict]) -> list[str]:
    """The pictures, and how much of the neighbourhoods they keep."""
    lines = []
    for record in records:
        near = record["found"]["neighbours"]
        chance = near["vectors"]["floor"]["chance"]
        words = [shown_figure(near[name]) if name in near else "–" for name in ("vectors", *METHODS)]
        view = record["found"]["view"].removeprefix("layer ")
        lines.append(
            [
                record["about"]["task"],
                record["about"]["encoder"],
                view,
                *words,
                f"{100 * chance:.1f}",
                str(near["vectors"]["n"]),
            ]
        )
    columns = ["task", "encoder", "vector", "vectors", *METHODS, "by chance", "clips"]
    return [
        *answers(records),
        f"Test clips at the chosen vector. The table: % of the {NEIGHBOURS} nearest clips that have the clip's label, by "
        "cosine of the vectors and in the plane. Distances between groups mean little in t-SNE and UMAP.",
        markdown_table(columns, lines),
        *(f"![{_name(record)}](pictures/{NAME}_{_name(record)}.png)" for record in _drawn(records)),
    ]


def _name(record: dict) -> str:
    return f"{record['about']['task']}_{record['about']['encoder']}"


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A picture per task and encoder."""
    return {f"{NAME}_{_name(record)}": partial(draw, name=_name(record)) for record in _drawn(records)}


def _drawn(records: Sequence[dict]) -> list[dict]:
    return [record for record in records if record["found"]["points"]]


def draw(records: Sequence[dict], name: str) -> Figure:
    """A plane per method: a point per clip, and the middle of every label by its name."""
    found = next(record["found"] for record in records if _name(record) == name)
    labels, planes = np.array(found["labels"]), found["points"]
    figure_, axes = new_axes(4.5 * len(planes), 4.2, columns=len(planes))
    names, counts = np.unique(labels, return_counts=True)
    named = set(names[np.argsort(-counts, kind="stable")[:MOST_LABELS]])
    for plot, (method, points) in zip(axes, planes.items()):
        points = np.array(points)
        for label in names:
            own = points[labels == label]
            dots = plot.scatter(*own.T, s=10, alpha=0.6)
            if label in named:
                color = dots.get_facecolor()[0][:3]
                plot.annotate(label, own.mean(axis=0), color=0.6 * color, weight="bold", ha="center", fontsize=8)
        plot.set_title(f"{name}: {method}")
        plot.set_xticks([])
        plot.set_yticks([])
    return figure_


ANALYSIS = Analysis(NAME, "Maps", MapsSettings, cells, answers, section, drawings, needs=("layers",))
