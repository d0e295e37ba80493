"""report.md and report.html of an evaluation, and its pictures, each as SVG and PNG.

    python -m wavcse.eval.report runs/x/eval

makes them, pictures/ and results.md again from runs/x/eval/results/*.json and predictions/*.parquet; no figure
is typed by hand.
"""

from __future__ import annotations

from wavcse.eval.arguments import REPORT, ReportArguments

if __name__ == "__main__":
    REPORT.answer()  # before the imports below, which take seconds

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from wavcse.data import SPLITS
from wavcse.data.files import write_atomically
from wavcse.eval.metrics import UNITS
from wavcse.eval.results import read_results
from wavcse.eval.table import (
    FEW_SPEAKERS,
    TIED,
    Comparison,
    Row,
    compare,
    encoders_of,
    is_model,
    markdown_table,
    metric_title,
    metric_words,
    origins,
    rows_of,
    shown,
    shown_interval,
    size_words,
)
from wavcse.reports import page
from wavcse.reports.figures import draw_all, heat_map, new_axes, without_formulas
from wavcse.settings.command import DONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Evaluation of speech embeddings"
MOST_CLASSES = 20  # up to which the clips of each class are listed


def write_report(output_dir: str | Path, table_only: bool = False) -> str:
    """Make results.md, report.md, report.html and pictures/ of a folder; returns the comparison table with its notes.

    The same files give the same bytes. report.html needs no other file.

    Args:
        table_only: make results.md alone, which needs no pictures.

    Raises:
        ValueError: there are no result files, or one is broken.
    """
    folder = Path(output_dir)
    records = read_results(folder)
    comparisons = compare(rows_of(records), folder)
    table = markdown_table(records, comparisons)
    write_atomically(folder / "results.md", table)
    if not table_only:
        _draw(rows_of([record.with_texts(without_formulas) for record in records]), folder / "pictures")
        text = _text(rows_of([record.with_texts(page.inert) for record in records]), table, comparisons)
        page.write_page(folder / "report.md", TITLE, text)
    return table


def _text(rows: Sequence[Row], table: str, comparisons: Sequence[Comparison]) -> str:
    picture = ("Figures of all encoders, with 95 % intervals", f"pictures/{OVERVIEW}.png")
    parts = page.opening(TITLE, picture, _answer(rows, comparisons))
    parts += ["## Results", table.strip(), "## What was evaluated", *_evaluated(rows), "## Tasks"]
    for row in rows:
        parts += _task_section(row, [own for own in comparisons if own.row == row.name])
    parts += ["## Configuration", *_configuration(rows), *_versions_and_times(rows)]
    files = "results/ and, for † and all differences, predictions/ in DIR, the folder of the evaluation"
    parts.append(page.made_by("python -m wavcse.eval.report DIR", files))
    return "\n\n".join(parts) + "\n"


def _answer(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """Which encoder is best how often, and how the one model of the evaluation does."""
    encoders = encoders_of([record for row in rows for record in row.records.values()])
    wins = Counter(name for row in rows for name in row.best)
    words = ", ".join(f"`{name}` {count}" for name, count in wins.most_common())
    answer = [f"{_count(len(encoders), 'encoder')} on {_count(len(rows), 'task')}; rows that each is the best of: {words}."]
    models = [name for name in encoders if is_model(name)]
    if len(models) == 1:
        answer.append(_model_words(models[0], rows, comparisons))
    intervals = [row.first.interval for row in rows]
    few = sum(own.unit == "speaker" and own.units < FEW_SPEAKERS for own in intervals)
    if few:
        answer.append(
            f"In {_count(few, 'row')} fewer than {FEW_SPEAKERS} speakers were tested: those intervals are too narrow."
        )
    return answer


def _model_words(model: str, rows: Sequence[Row], comparisons: Sequence[Comparison]) -> str:
    """In how many rows a model is best, as good as the best as far as can be told, and behind."""
    won = [row.name for row in rows if model in row.best]
    own = [own for own in comparisons if own.other == model and own.row not in won and not own.obstacle]
    tied = sum(comparison.mark == TIED for comparison in own)
    counts = {
        "the best": len(won),
        "not distinguishable from the best": tied,
        "behind it": len(own) - tied,
    }
    found = [f"{words} in {count}" for words, count in counts.items() if count]
    return f"`{model}` is {', '.join(found)}." if found else f"`{model}` was not tested against the best."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _evaluated(rows: Sequence[Row]) -> list[str]:
    encoders = [[f"`{name}`", origin] for name, origin in origins(rows).items()]
    data = [[row.title, row.task.kind, row.data, ", ".join(row.task.protocols), size_words(row)] for row in rows]
    tasks = page.markdown_table(["task", "kind", "data", "protocol", "test split"], data)
    return [page.markdown_table(["encoder", "what it is"], encoders), tasks]


def _task_section(row: Row, comparisons: Sequence[Comparison]) -> list[str]:
    pictures = [f"![{title}](pictures/{name}.png)" for name, (title, _) in drawings_of(row).items()]
    return [f"### {row.title}", _corpus(row), _counts(row), _metrics(row, comparisons), *_choices(row), *pictures]


def _corpus(row: Row) -> str:
    """The data, and what the paper's data is where this stands in for it."""
    benchmark = row.task.benchmark
    lines = [f"Row `{row.name}`. Data: {row.data}, protocol {', '.join(row.task.protocols) or 'unnamed'}."]
    if benchmark:
        is_same = row.task.corpus == benchmark["corpus"]
        head = "" if is_same else "The paper's corpus, which this is not: "
        split = f"; split: {benchmark['split']} ({benchmark['split_source']})"
        lines.append(
            f"{head}{benchmark['title']}; source: {benchmark['source']}; licence: {benchmark['licence']}"
            + ("" if is_same and not row.is_split_as_published else split)
            + "."
        )
    if row.published:
        figures = {"the paper's model": row.published["paper"], **row.published["baselines"]}
        words = ", ".join(f"{name} {shown(value, row.unit)}" for name, value in figures.items())
        lines.append(f"{metric_words(row.primary, row.figure(row.best[0]))} in {row.published['origin']}: {words}.")
    return " ".join(lines)


def _counts(row: Row) -> str:
    counts = row.first.counts
    classes = counts.classes or {}
    names = row.task.classes if classes and len(row.task.classes) <= MOST_CLASSES else []
    sizes = {"clips": counts.clips, "trials": counts.trials, "speakers": counts.speakers}
    sizes = {kind: own for kind, own in sizes.items() if own is not None}
    lines = []
    for split in SPLITS:
        cells = [f"{own[split]:,}" if split in own else "" for own in sizes.values()]
        lines.append([split, *cells, *(str(classes[split].get(name, 0)) for name in names)])
    return page.markdown_table(["split", *sizes, *(f"`{name}`" for name in names)], lines)


def _metrics(row: Row, comparisons: Sequence[Comparison]) -> str:
    """Every figure of every encoder, and how far the best is from each."""
    found = {own.other: own for own in comparisons}
    metrics = {name: figure for record in row.records.values() for name, figure in record.metrics.items()}
    lines = []
    for encoder, record in row.records.items():
        figures = [record.metrics.get(name) for name in metrics]
        cells = [shown(own.value, own.unit) + shown_interval(own.interval, own.unit) if own else "" for own in figures]
        lines.append([f"**{encoder}**" if encoder in row.best else encoder, *cells, _difference(row, found.get(encoder))])
    names = [metric_words(name, figure) for name, figure in metrics.items()]
    return page.markdown_table(["encoder", *names, f"{row.best[0]} minus it [95 %, paired]"], lines)


def _difference(row: Row, comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.interval is None:
        return comparison.obstacle or "too few units"
    value = row.figure(comparison.best).value - row.figure(comparison.other).value
    return f"{shown(value, row.unit)}{shown_interval(comparison.interval, row.unit)} {comparison.mark}".strip()


def _choices(row: Row) -> list[str]:
    """What was fitted for each encoder and what validation chose: the plain fields of every run that are not test figures."""
    lines, fields = [], {}
    for encoder, record in row.records.items():
        for run in record.probe.runs or [{}]:
            every = {**asdict(record.probe), **run}
            chosen = {k: v for k, v in every.items() if k not in record.metrics and isinstance(v, int | float | str)}
            fields |= dict.fromkeys(chosen)
            lines.append((encoder, chosen))
    table = []
    for encoder, chosen in lines:
        values = [chosen.get(field, "") for field in fields]
        table.append([encoder, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)])
    words = [field.replace("_", " ") for field in fields]
    return ["What was fitted, and what the validation split chose:", page.markdown_table(["encoder", *words], table)]


def _configuration(rows: Sequence[Row]) -> list[str]:
    """How intervals were made, the settings of what was fitted, and the bytes that were read."""
    interval = rows[0].first.interval
    settings: dict[str, list[str]] = {}
    for row in rows:
        for record in row.records.values():
            if record.probe.settings is not None:
                own = json.dumps({"kind": record.probe.kind, **record.probe.settings}, indent=2)
                settings.setdefault(own, []).append(row.title)
    words = (
        f"Intervals: {interval.method}, {100 * interval.confidence:g} %, {interval.resamples} resamples, seed {interval.seed}."
    )
    blocks = [f"{', '.join(dict.fromkeys(titles))}:\n\n{page.fenced(own, 'json')}" for own, titles in settings.items()]
    manifests = [
        [row.title, f"`{manifest['path']}`", manifest["split_column"], f"`{manifest['sha256'][:12]}`"]
        for row in rows
        for manifest in row.first.manifests
    ]
    return [words, *blocks, page.markdown_table(["task", "manifest", "split column", "sha256"], manifests)]


def _versions_and_times(rows: Sequence[Row]) -> list[str]:
    """When, with which libraries (a column per set of versions: rows may be of different times), and how long it took."""
    records = [(row, encoder, record) for row in rows for encoder, record in row.records.items()]
    sets = list({json.dumps(own.versions, sort_keys=True): own.versions for _, _, own in records}.values())
    names = dict.fromkeys(name for own in sets for name in own)
    heads = ["version"] if len(sets) == 1 else [f"version {number + 1}" for number in range(len(sets))]
    versions = [[name, *(own.get(name, "") for own in sets)] for name in names]
    dates = sorted(record.date for _, _, record in records)
    kinds = dict.fromkeys(kind for _, _, record in records for kind in record.seconds)
    times = [[row.title, encoder, *(f"{own.seconds.get(kind, 0):.1f}" for kind in kinds)] for row, encoder, own in records]
    words = f"Evaluated from {dates[0]} to {dates[-1]}."
    if "embedding" in kinds:
        words += " Embedding: of the clips of all tasks, which are embedded together."
    return [
        *("## Versions", page.markdown_table(["library", *heads], versions)),
        *("## Times", words, page.markdown_table(["task", "encoder", *(f"{kind}, s" for kind in kinds)], times)),
    ]


# ---- pictures ----


OVERVIEW = "figures"
MOST_COUNTS = 20  # classes up to which a confusion matrix shows its counts
MOST_IN_LEGEND = 20  # labels up to which a map has a legend
RATE_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)  # of a DET curve, the ends of its axes too:
LOWEST_RATE = RATE_TICKS[0]  # below it one trial more or less is most of what is seen
MARKERS = "os^vD"

Colors = Mapping[str, object]  # encoder -> its colour, the same in all pictures
Panels = Mapping[str, Mapping]  # encoder -> its data of one kind of picture


def _draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the overview and every row's own pictures."""
    drawings = {OVERVIEW: partial(draw_overview, rows)}
    for row in rows:
        drawings |= {name: draw for name, (_, draw) in drawings_of(row).items()}
    draw_all(drawings, colors_of(encoders_of([record for row in rows for record in row.records.values()])), folder)


def colors_of(encoders: Sequence[str]) -> Colors:
    """One colour per encoder, the same in all pictures."""
    import matplotlib

    palette = matplotlib.colormaps["tab10"].colors
    return {name: palette[place % len(palette)] for place, name in enumerate(encoders)}


def drawings_of(row: Row) -> dict[str, tuple[str, Callable[[Colors], Figure]]]:
    """What a row has to show: name -> title and what draws it, given the colours of `colors_of`.

    Which pictures there are depends on what its results hold.
    """
    found = {}
    for kind, (words, draw) in PICTURES.items():
        panels = {name: record.figures[kind] for name, record in row.records.items() if record.figures.get(kind)}
        if panels and kind in PANEL_PER_ENCODER:  # of all encoders they would be too much to look at
            wanted = [name for name in dict.fromkeys([next(iter(row.records)), row.best[0]]) if name in panels]
            panels = {name: panels[name] for name in wanted or list(panels)[:1]}
        if panels:
            found[f"{row.name}__{kind}"] = (f"{row.title}: {words}", partial(draw, row, panels))
    return found


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
    scale = UNITS[unit].scale
    values = scale * np.array([row.figure(name).value for name in names])
    intervals = [row.figure(name).interval for name in names]
    ends = scale * np.array([interval or (np.nan, np.nan) for interval in intervals]).T
    errors = np.maximum(np.stack([values - ends[0], ends[1] - values]), 0)
    axes.barh(range(len(names)), values, xerr=errors, color=[colors[name] for name in names], capsize=2, ecolor="black")
    axes.set_yticks(range(len(names)), [f"{name}  {shown(row.figure(name).value, unit)}" for name in names], fontsize=8)
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


def _confusion(row: Row, panels: Panels, colors: Colors) -> Figure:
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


def _det(row: Row, panels: Panels, colors: Colors) -> Figure:
    figure, (axes,) = new_axes(6, 5.6)
    for name, curve in panels.items():
        errors = row.records[name].metrics["eer"].value
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


def _scatter(row: Row, panels: Panels, colors: Colors) -> Figure:
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
    figures = row.records[encoder].metrics
    own = {name: figures[name] for name in row.task.metrics if name in figures}
    chosen = {name: own[name] for name in ("ccc", "mae") if name in own} or dict([next(iter(own.items()))])
    return ", ".join(
        f"{metric_title(name)} {shown(figure.value, figure.unit)} {UNITS[figure.unit].words}".strip()
        for name, figure in chosen.items()
    )


def _map(row: Row, panels: Panels, colors: Colors) -> Figure:
    import matplotlib

    name, data = next(iter(panels.items()))
    x, y, labels = np.array(data["x"]), np.array(data["y"]), np.array(data["label"])
    kinds = sorted(set(data["label"]))
    palette = matplotlib.colormaps["tab10"].colors
    if len(kinds) > len(palette):
        palette = [matplotlib.colormaps["turbo"](place / (len(kinds) - 1)) for place in range(len(kinds))]
    has_legend = len(kinds) <= MOST_IN_LEGEND
    figure, (axes,) = new_axes(7.4 if has_legend else 5.6, 5.2)
    for place, (kind, color) in enumerate(zip(kinds, palette)):
        mine = labels == kind
        axes.scatter(x[mine], y[mine], s=18, color=color, marker=MARKERS[place % len(MARKERS)], linewidths=0, label=kind)
    axes.set(xticks=[], yticks=[], title=f"{row.title}\n{name}, {len(x)} test clips, t-SNE")
    axes.set_aspect("equal", adjustable="datalim")
    if has_legend:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.set_xlabel(f"{len(kinds)} labels, a colour and shape each")
    return figure


# What a result may hold of a row to be drawn (`figures`): kind -> title and what draws it.
PICTURES: dict[str, tuple[str, Callable[[Row, Panels, Colors], Figure]]] = {
    "confusion": ("confusion matrix", _confusion),
    "det": ("DET curves", _det),
    "scatter": ("predicted against true", _scatter),
    "map": ("embedding map", _map),
}
PANEL_PER_ENCODER = ("confusion", "scatter")  # shown for the first encoder and the best one


# ---- command line ----


@REPORT.main
def main(args: ReportArguments) -> int:
    """Regenerate the report of a folder, or only its table, and print the table."""
    print(write_report(args.output_dir, args.table_only), end="")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
