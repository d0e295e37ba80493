"""The shape of the vectors, without any label to learn: how layers resemble each other, how many directions they use.

Linear CKA (Kornblith et al., ICML 2019) by its unbiased estimate (Nguyen et al., ICLR 2021), which is 0 for vectors that have
nothing to do with each other, however few clips there are; mean cosine between clips; effective rank (Roy and Vetterli,
EUSIPCO 2007); and the share of the variance that lies between speakers, and between labels. Intervals: a jackknife.

Shapes: `N` clips, `D` size of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import figure, half_width, jackknifed, rows_without, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, cell_name, encoder_cell
from wavcse.reports.figures import heat_map, new_axes
from wavcse.reports.page import markdown_table
from wavcse.retrieval.nearest import unit_rows
from wavcse.settings.fields import CheckedFields, check_choice, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "geometry"
SHUFFLES = 20
DECIMALS = 4  # of the tables of CKA in records


@dataclass
class GeometrySettings(CheckedFields):
    """Settings of `geometry`."""

    most_clips: int = option(300, "Clips per task; of more a draw.", at_least=8)
    compare_on: list[str] = option(list, "Tasks on whose clips encoders are compared.", "all", commas=True)


def gram_of(vectors: np.ndarray) -> np.ndarray:
    """Products of all pairs of clips, float64 `[N, N]`."""
    vectors = vectors.astype(np.float64)
    return vectors @ vectors.T


def u_centred(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix `[N, N]` as the unbiased HSIC takes it: diagonal 0, rows and columns of sum 0 (Szekely and Rizzo 2014)."""
    n = len(gram)
    gram = gram - np.diag(np.diag(gram))
    rows = gram.sum(axis=0) / (n - 2)
    centred = gram - rows[:, None] - rows[None, :] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear CKA of two Gram matrices `[N, N]` of the same clips, N > 3; nan where one of them does not vary."""
    return float(np.sum(cka_direction(one) * cka_direction(other)))


def cka_direction(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix `[N, N]`, centred and of length 1, so that CKA is a product of two; nan where the vectors do not vary."""
    centred = u_centred(gram)
    square = np.sum(centred**2)
    if square <= 1e-20 * np.sum(gram**2):  # nothing but rounding
        return np.full_like(centred, np.nan)
    return centred / np.sqrt(square)


def cka_table(one: Sequence[np.ndarray], other: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
    """CKA of every Gram matrix of one list with every one of another, `[A, B]`, of some rows."""
    first, second = (
        np.stack([cka_direction(gram if rows is None else gram[np.ix_(rows, rows)]).ravel() for gram in grams])
        for grams in (one, other)
    )
    return first @ second.T


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine over all pairs of different clips."""
    units, n = unit_rows(vectors.astype(np.float64)), len(vectors)
    return float((np.sum(units.sum(axis=0) ** 2) - np.sum(units**2)) / (n * (n - 1)))


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the singular values, as shares, of the vectors without their mean."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(centred @ centred.T), 0))
    if not values.sum():
        return 0.0
    shares = values[values > 1e-7 * values.max()] / values.sum()  # what is left of zero squares of rounding
    return float(np.exp(-np.sum(shares * np.log(shares))))


def variance_between(vectors: np.ndarray, groups: np.ndarray) -> float:
    """The share of the variance, over all dimensions together, that lies between the means of groups `[N]`."""
    vectors = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    total = np.sum(vectors**2)
    if not total:
        return 0.0
    parts = (vectors[groups == group] for group in np.unique(groups))
    return float(sum(len(part) * np.sum(part.mean(axis=0) ** 2) for part in parts) / total)


# ---- one encoder on the clips of one task ----


def geometry_of(study: Study, encoder: AnalyzedEncoder, task: str, settings: GeometrySettings) -> dict[str, Any]:
    """Figures of every vector, and CKA between all of them."""
    data, rows = study.tasks[task], drawn(study, task, settings.most_clips)
    labels, speakers = data.table.labels[rows].astype(str), data.speakers[rows].astype(str)
    is_known = bool((speakers != "").all())
    groups = speakers if is_known else rows.astype(str)
    unit = "speaker" if is_known else "clip"
    jackknife = partial(jackknifed, groups=groups, unit=unit, seed=study.seed)
    noise = np.random.default_rng(study.seed)
    views = []
    for view in encoder.views:
        vectors = study.vectors(encoder, view, task)[rows]
        floor = {"noise": effective_rank(noise.standard_normal(vectors.shape))}
        own = {
            "view": view.name,
            "mean_cosine": jackknife(lambda kept, v=vectors: mean_cosine(v[kept]), chance=0.0),
            "effective_rank": jackknife(lambda kept, v=vectors: effective_rank(v[kept]), **floor),
        }
        for name, column in {"label": labels, **({"speaker": speakers} if is_known else {})}.items():
            if name == "label" or not data.has_known_speakers:
                own[f"variance_{name}"] = _variance(vectors, column, jackknife, study.seed)
        views.append(own)
    return {"title": data.task.title, "views": views, **_ckas(study, encoder, encoder, task, rows, groups, unit)}


def _variance(vectors: np.ndarray, column: np.ndarray, jackknife: Callable, seed: int) -> dict[str, Any]:
    """The share between the groups of a column, beside that of the column in random order."""
    rng = np.random.default_rng(seed)
    shuffled = np.mean([variance_between(vectors, rng.permutation(column)) for _ in range(SHUFFLES)])
    own = jackknife(lambda kept: variance_between(vectors[kept], column[kept]), shuffled=float(shuffled))
    return {**own, "interval": own["interval"] and np.clip(own["interval"], 0, 1).tolist()}


def drawn(study: Study, task: str, most: int) -> np.ndarray:
    """Rows of at most so many clips of a task, the same for every encoder."""
    num_clips = len(study.tasks[task].table.clips)
    if num_clips <= most:
        return np.arange(num_clips)
    return np.sort(np.random.default_rng(study.seed).choice(num_clips, most, replace=False))


def _ckas(
    study: Study, one: AnalyzedEncoder, other: AnalyzedEncoder, task: str, rows: np.ndarray, groups: np.ndarray, unit: str
) -> dict[str, Any]:
    """CKA of all vectors of two encoders, with half of each interval and with the floor of clips in random order.

    Of the most similar two (not the same) a figure besides.
    """
    names = [[view.name for view in encoder.views] for encoder in (one, other)]
    grams = [[gram_of(study.vectors(e, view, task)[rows]) for view in e.views] for e in (one, other)]
    values, half = cka_table(*grams), None
    without = [cka_table(*grams, kept) for kept in rows_without(groups, study.seed)]
    if len(without) > 2:
        half = half_width(np.array(without))
    order = np.random.default_rng(study.seed).permutation(len(rows))
    shuffled = cka_table(grams[0], [gram[np.ix_(order, order)] for gram in grams[1]])
    tables = {"cka": values, "cka_half_width": half, "cka_shuffled": shuffled}
    found = {"rows": names[0], "columns": names[1], **{name: _rounded(table) for name, table in tables.items()}}
    compared = values.copy()
    if one is other:
        np.fill_diagonal(compared, -np.inf)
    if not np.isfinite(compared).any():
        return {**found, "nearest": None}
    i, j = np.unravel_index(np.nanargmax(compared), compared.shape)
    interval = None if half is None else (values[i, j] - half[i, j], values[i, j] + half[i, j])
    counts = (len(rows), len(np.unique(groups)), unit)
    nearest = figure(values[i, j], interval, *counts, shuffled=float(shuffled[i, j]))
    return {**found, "nearest": {"views": [names[0][i], names[1][j]], **nearest}}


def _rounded(table: np.ndarray | None) -> list[list[float]] | None:
    return None if table is None else np.round(table, DECIMALS).tolist()


def compare_encoders(study: Study, one: AnalyzedEncoder, other: AnalyzedEncoder, task: str, most: int) -> dict[str, Any]:
    """CKA between the vectors of two encoders."""
    rows = drawn(study, task, most)
    speakers = study.tasks[task].speakers[rows].astype(str)
    is_known = bool((speakers != "").all())
    return _ckas(study, one, other, task, rows, *((speakers, "speaker") if is_known else (rows.astype(str), "clip")))


def cells(study: Study, settings: GeometrySettings) -> list[Cell]:
    """Every encoder on every task; and every pair of encoders, on every task or those that are named."""
    found = [
        encoder_cell(study, encoder, task, lambda e=encoder, t=task: geometry_of(study, e, t, settings))
        for encoder, task in study.pairs()
    ]
    for task in settings.compare_on:
        check_choice("analyses.geometry: compare_on", task, study.tasks)
    pairs = combinations(study.encoders, 2)
    for (one, other), task in product(pairs, settings.compare_on or study.tasks):
        about = {"task": task, "encoder": one.name, "other": other.name}
        key = [*study.key_of_task(one, task), *study.key_of_task(other, task)]
        compute = partial(compare_encoders, study, one, other, task, settings.most_clips)
        found.append(Cell(cell_name(task, one.name, other.name), about, key, compute))
    return found


# ---- what is shown ----


def _single(records: Sequence[dict]) -> list[dict]:
    return [record for record in records if "other" not in record["about"]]


def answers(records: Sequence[dict]) -> list[str]:
    """Nothing: what it says stands at the beginning of its section."""
    return []


def _variances(records: Sequence[dict]) -> list[str]:
    """How much of the variance is between speakers, and how much between labels."""
    words = []
    for encoder in dict.fromkeys(record["about"]["encoder"] for record in _single(records)):
        own = [record["found"]["views"][-1] for record in _single(records) if record["about"]["encoder"] == encoder]
        both = [view for view in own if "variance_speaker" in view]
        if both:
            shares = [100 * np.median([v[f"variance_{n}"]["value"] for v in both]) for n in ("speaker", "label")]
            words.append(f"`{encoder}` {shares[0]:.0f} and {shares[1]:.0f} %")
    return (
        [f"Variance of the last vector between speakers and between labels, median over tasks: {', '.join(words)}."]
        if words
        else []
    )


HOW = (
    "Mean cosine over pairs of clips; effective rank, beside that of noise of the same size; shares of the variance between "
    "labels and between speakers, beside those of shuffled ones. Intervals leave out speakers (jackknife). CKA is unbiased: 0 "
    "for vectors that have nothing to do with each other. The maps are of the clips of the first task; the intervals of their "
    "cells, and the maps of the other tasks, are in records/geometry."
)


def section(records: Sequence[dict]) -> list[str]:
    """A table of all vectors, the maps, and pairs of encoders."""
    lines = []
    for record in _single(records):
        for view in record["found"]["views"]:
            rank = view["effective_rank"]
            lines.append(
                [
                    *(record["about"]["task"], record["about"]["encoder"], view["view"].removeprefix("layer ")),
                    shown_figure(view["mean_cosine"], "plain"),
                    f"{shown_figure(rank, 'plain')}, noise {rank['floor']['noise']:.0f}",
                    *(_share(view.get(f"variance_{name}")) for name in ("label", "speaker")),
                    f"{rank['n']} clips, {rank['units']} {rank['unit']}s",
                ]
            )
    columns = ["task", "encoder", "vector", "mean cosine", "effective rank", "variance between labels, %"]
    columns += ["between speakers, %", "n"]
    pairs = [record for record in records if "other" in record["about"] and record["found"]["nearest"]]
    nearest = []
    for record in pairs:
        own = record["found"]["nearest"]
        views = [view.removeprefix("layer ") for view in own["views"]]
        names = [f"`{record['about'][name]}` {view}" for name, view in zip(("encoder", "other"), views)]
        nearest.append([*names, shown_figure(own, "plain"), f"{own['floor']['shuffled']:.3f}", record["about"]["task"]])
    blocks = [
        *_variances(records),
        HOW,
        *(f"![{name}: CKA of its vectors](pictures/{NAME}_{name}.png)" for name in _drawn(records)),
    ]
    if nearest:
        table = markdown_table(["vector", "most similar of another encoder", "CKA", "shuffled clips", "clips of"], nearest)
        blocks += ["The most similar vectors of every two encoders, task by task:", table]
    return [*blocks, markdown_table(columns, lines)]


def _share(own: dict | None) -> str:
    return "–" if own is None else f"{shown_figure(own)}, shuffled {100 * own['floor']['shuffled']:.0f}"


def _drawn(records: Sequence[dict]) -> list[str]:
    several = [record for record in _single(records) if len(record["found"]["rows"]) > 1]
    return list(dict.fromkeys(record["about"]["encoder"] for record in several))


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A map per encoder, of the clips of the first task."""
    return {f"{NAME}_{name}": partial(draw, encoder=name) for name in _drawn(records)}


def draw(records: Sequence[dict], encoder: str) -> Figure:
    """CKA of all vectors of an encoder."""
    found = next(record["found"] for record in _single(records) if record["about"]["encoder"] == encoder)
    names = [name.removeprefix("layer ") for name in found["rows"]]
    values = np.array(found["cka"])
    figure_, (axes,) = new_axes(2.5 + 0.55 * len(names), 1.6 + 0.5 * len(names))
    heat_map(axes, values, values, names, names, "linear CKA")
    axes.set_title(encoder)
    return figure_


ANALYSIS = Analysis(NAME, "Geometry: the shape of the vectors", GeometrySettings, cells, answers, section, drawings)
