"""What a study found, and its report: figures of every variant from result files, tables, pictures, study.md and study.html.

No figure in them is typed by hand. A program gives its own facts of a variant, the table of its variants and further sections.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from wavcse.data.files import json_text, write_atomically
from wavcse.eval.results import Result
from wavcse.eval.table import Row, rows_of, shown, shown_interval
from wavcse.reports.figures import draw_all, new_axes
from wavcse.reports.page import fenced, inert, made_by, markdown_table, opening, write_page
from wavcse.settings.recipes import checked_fields

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = "pictures"
FILES = ("study.json", "study.md", "study.html", "speed.json")
MEASURED = {
    "speed": "times real time, one thread",
    "parameters": "parameters in millions",
    "megabytes": "megabytes of safetensors",
}
MEAN = "mean"  # as the task of a plot: mean validation accuracy over the tasks
NONE = "–"
AREA_PER_MB = 4.0  # points², of a mark in a picture


@dataclass(frozen=True)
class Layout:
    """What a program says of its studies.

    Attributes:
        title: of the report; command: that made it, without the study's file.
        how: how a variant is judged, a sentence from the facts.
        validation: what the validation table needs to be read.
        variants: the table of the variants; sections: further blocks, between the figures and the pictures.
    """

    title: str
    command: str
    how: Callable[[Mapping], str]
    validation: str
    variants: Callable[[Mapping], str]
    sections: Callable[[Mapping], list[str]]


@dataclass(frozen=True)
class Plot:
    """A picture: one point per variant.

    Attributes:
        x: a field of the recipe, or one of `MEASURED`.
        task: a row of the evaluation, or `MEAN`.
        variants: which are drawn; unless given, all but the reference.
        reference: variants that are drawn as lines, for example the one without a label loss.
    """

    x: str
    task: str
    variants: tuple[str, ...]
    reference: tuple[str, ...] = ()


def read_plots(
    plots: Sequence[Any], variants: Sequence[str], fields: Sequence[str], rows: Sequence[str], has_speed: bool
) -> list[Plot]:
    """The pictures of a study's file; ValueError names the first that cannot be drawn.

    Args:
        variants: their names; fields: of the recipe, that a picture can have as its x.
        rows: of the evaluation.
    """
    return [_plot(f"plots[{number}]", plot, variants, fields, rows, has_speed) for number, plot in enumerate(plots)]


def _plot(where: str, plot: Any, variants: Sequence[str], fields: Sequence[str], rows: Sequence[str], has_speed: bool) -> Plot:
    plot = checked_fields(where, plot, ("x", "task", "variants", "reference"))
    reference = tuple(plot.get("reference") or ())
    drawn = tuple(plot.get("variants") or (name for name in variants if name not in reference))
    found = Plot(plot.get("x"), plot.get("task", MEAN), drawn, reference)
    allowed = [*(name for name in MEASURED if has_speed or name != "speed"), *fields]
    for name, value, known in (("x", found.x, allowed), ("task", found.task, [*rows, MEAN])):
        if value not in known:
            raise ValueError(f"{where}: {name} is {value!r}; allowed: {', '.join(known)}.")
    unknown = [name for name in (*drawn, *reference) if name not in variants]
    if unknown:
        raise ValueError(f"{where}: {unknown} are not variants; there are {', '.join(variants)}.")
    return found


def study_facts(
    known: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    baselines: Sequence[str],
    encoders: Mapping[str, str],
    results: Sequence[Result],
    versions: Mapping[str, str],
) -> dict:
    """All that tables and pictures of a study show, as JSON values.

    Args:
        known: of the whole study: its file, `recipe`, `overrides`, the folder of its `evaluation`, `plots`.
        variants: name -> the program's own facts; at least `own` and `settings`.
        baselines: encoders beside the variants.
        encoders: variant or baseline -> what result files call it.

    Returns:
        `known`; `variants` and `baselines`: name -> facts; `rows`: row of the evaluation -> what it is; `best`: the variant
        with the highest mean validation accuracy.
    """
    rows = rows_of([own for own in results if own.encoder["name"] in encoders.values()])
    judged = {name: _judged(rows, encoder) for name, encoder in encoders.items()}
    facts = {name: {**own, **judged[name]} for name, own in variants.items()}
    best = max(facts, key=lambda name: facts[name]["mean_validation"] or 0.0)
    return {
        **known,
        "rows": {row.name: _row_facts(row) for row in rows},
        "best": best if facts[best]["mean_validation"] is not None else None,
        "variants": facts,
        "baselines": {name: judged[name] for name in baselines},
        "versions": dict(versions),
    }


def _row_facts(row: Row) -> dict[str, str]:
    return {"title": row.title, "kind": row.task.kind, "metric": row.primary, "unit": row.unit}


def _judged(rows: Sequence[Row], encoder: str) -> dict:
    """Test figures of every row; validation figures of the classifications, where something was chosen, and their mean.

    There is no mean where a classification is missing: it would not be of the same tasks as the others' means.
    """
    here = [row for row in rows if encoder in row.records]
    validation = {row.name: found for row in here if (found := _validation(row.records[encoder])) is not None}
    classifications = [row.name for row in rows if row.task.kind == "classification"]
    accuracies = [validation[name]["accuracy"] for name in classifications if name in validation]
    is_whole = bool(accuracies) and len(accuracies) == len(classifications)
    return {
        "validation": validation,
        "mean_validation": statistics.fmean(accuracies) if is_whole else None,
        "test": {row.name: {"metric": row.primary, **asdict(row.figure(encoder))} for row in here},
    }


def _validation(result: Result) -> dict | None:
    """Validation accuracy, the mean over the probes' seeds, and the layer that it chose."""
    accuracies = [run["validation_accuracy"] for run in result.probe.runs or () if "validation_accuracy" in run]
    if not accuracies:
        return None
    return {"accuracy": statistics.fmean(accuracies), "layer": result.probe.candidate}


def write_study(facts: Mapping, layout: Layout, folder: Path) -> Path:
    """Write study.json, draw the pictures, write study.md and study.html into `folder`; returns the path of study.md."""
    text = json_text(facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "study.json", text)
    facts = json.loads(text)
    draw_plots(facts, folder / PICTURES)
    return write_page(folder / "study.md", layout.title, study_text(inert(facts), layout))


def study_text(facts: Mapping, layout: Layout) -> str:
    """study.md from the values of study.json."""
    first = _plot_link(facts, 0) if facts["plots"] else None
    parts = [*opening(layout.title, first, _answer(facts, layout)), "## Variants", layout.variants(facts)]
    parts += ["## Validation accuracy", layout.validation, _validation_table(facts)]
    parts += ["## Test figures", _test_words(facts), _test_table(facts), *layout.sections(facts)]
    if len(facts["plots"]) > 1:
        links = [_plot_link(facts, number) for number in range(1, len(facts["plots"]))]
        parts += ["## Pictures", *("![{}]({})".format(*link) for link in links)]
    parts += ["## Settings", _settings(facts), made_by(f"{layout.command} {facts['study']}")]
    return "\n\n".join(parts) + "\n"


def _answer(facts: Mapping, layout: Layout) -> list[str]:
    """Which variant is best, by what, and where the baselines are."""
    means = {name: own["mean_validation"] for name, own in {**facts["variants"], **facts["baselines"]}.items()}
    lines = []
    if facts["best"]:
        lines.append(f"Highest mean validation accuracy: `{facts['best']}`, {percent(means[facts['best']])} %.")
        others = sorted(set(facts["variants"]) - {facts["best"]}, key=lambda name: -(means[name] or 0))
        lines += [f"Next: {', '.join(f'`{name}` {percent(means[name])} %' for name in others[:2])}."] if others else []
    baselines = [f"`{name}` {percent(means[name])} %" for name in facts["baselines"] if means[name] is not None]
    lines += [f"Beside them: {', '.join(baselines)}."] if baselines else []
    lines.append(f"Every variant changes the recipe `{facts['recipe']}`; {layout.how(facts)}")
    return [*lines, "Another seed moves every figure, so small differences say nothing."]


def marked(facts: Mapping, name: str) -> str:
    """The name of a variant or baseline, the best variant's in bold."""
    return f"**{name}**" if name == facts["best"] else name


def _own_fields(own: Mapping) -> dict:
    """As the study gives them."""
    return {**own["own"], **({"untrained": True} if own.get("untrained") else {})}


def percent(share: float | None) -> str:
    """A share as a cell of a table."""
    return NONE if share is None else shown(share, "percent")


def _validation_table(facts: Mapping) -> str:
    rows = [name for name, row in facts["rows"].items() if row["kind"] == "classification"]
    everyone = {**facts["variants"], **facts["baselines"]}
    lines = []
    for name, own in everyone.items():
        cells = [_validation_cell(own["validation"].get(row)) for row in rows]
        lines.append([marked(facts, name), percent(own["mean_validation"]), *cells])
    return markdown_table(["variant", "mean", *(facts["rows"][row]["title"] for row in rows)], lines)


def _validation_cell(found: Mapping | None) -> str:
    if found is None:
        return NONE
    return percent(found["accuracy"]) + ("" if found["layer"] is None else f" ({found['layer']})")


def _test_words(facts: Mapping) -> str:
    metrics = dict.fromkeys(row["metric"] for row in facts["rows"].values())
    return (
        f"Primary metric ({', '.join(metrics)}; shares in %) with its 95 % bootstrap interval; test clips chose nothing. The "
        f"best of a task in bold. Which differences are more than chance: `{facts['evaluation']}/report.md`, made by "
        "`python -m wavcse.eval.report`."
    )


def _test_table(facts: Mapping) -> str:
    everyone = {**facts["variants"], **facts["baselines"]}
    best = {row: _best(everyone, row) for row in facts["rows"]}
    lines = []
    for name, own in everyone.items():
        cells = [_test_cell(own["test"].get(row), name in best[row]) for row in facts["rows"]]
        lines.append([marked(facts, name), *cells])
    return markdown_table(["variant", *(row["title"] for row in facts["rows"].values())], lines)


def _best(everyone: Mapping[str, Mapping], row: str) -> list[str]:
    figures = {name: own["test"][row] for name, own in everyone.items() if row in own["test"]}
    is_greater_better = next(iter(figures.values()))["greater_is_better"]
    best = (max if is_greater_better else min)(figure["value"] for figure in figures.values())
    return [name for name, figure in figures.items() if figure["value"] == best]


def _test_cell(figure: Mapping | None, is_best: bool) -> str:
    if figure is None:
        return NONE
    value = shown(figure["value"], figure["unit"])
    return (f"**{value}**" if is_best else value) + shown_interval(figure["interval"], figure["unit"])


def _plot_link(facts: Mapping, number: int) -> tuple[str, str]:
    """Title and file of a plot."""
    plot = facts["plots"][number]
    what = "mean validation accuracy" if plot["task"] == MEAN else facts["rows"][plot["task"]]["title"]
    return f"{what} against {MEASURED.get(plot['x'], plot['x'])}", f"{PICTURES}/{plot_name(facts, number)}.png"


def _settings(facts: Mapping) -> str:
    settings = {"recipe": facts["recipe"], "overrides": facts["overrides"]}
    settings |= {
        "variants": {name: _own_fields(own) for name, own in facts["variants"].items()},
        "versions": facts["versions"],
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=127)
    return fenced(text, "yaml")


# -- pictures


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
