"""report.md and report.html of an evaluation, with its pictures.

    python -m wavcse.eval.report runs/x/eval

makes them, pictures/ and results.md anew from runs/x/eval/results/*.json and predictions/*.parquet; no figure
is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wavcse.data.files import write_atomically
from wavcse.eval.notes import origins
from wavcse.eval.pictures import OVERVIEW, draw_pictures, pictures_of
from wavcse.eval.records import read_results
from wavcse.eval.results import mark_of, markdown_table
from wavcse.eval.rows import Row, encoders_of, metric_words, rows_of, shown, shown_interval, size_words
from wavcse.eval.significance import Comparison, compare
from wavcse.reports import page
from wavcse.reports.figures import without_formulas
from wavcse.settings.command import DONE, command_line

MOST_CLASSES = 20  # up to which the clips of each class are listed
SPLITS = ("train", "validation", "test")


def write_report(output_dir: str | Path) -> str:
    """Make results.md, report.md, report.html and pictures/ of a folder; returns the comparison table with its notes.

    The same files give the same bytes. report.html needs no other file.

    Raises:
        ValueError: there are no result files, or one is broken.
    """
    folder = Path(output_dir)
    records = read_results(folder)
    rows = rows_of(records)
    comparisons = compare(rows, folder)
    table = markdown_table(records, comparisons)
    write_atomically(folder / "results.md", table)
    draw_pictures(rows_of(without_formulas(records)), encoders_of(records), folder / "pictures")
    text = _text(rows_of(page.inert(records)), table, comparisons)
    page.write_page(folder / "report.md", "Evaluation of speech embeddings", text)
    return table


def _text(rows: Sequence[Row], table: str, comparisons: Sequence[Comparison]) -> str:
    head = (
        "Made by `python -m wavcse.eval.report` from the result files and predictions beside it; no figure is typed by hand. "
        "Speech clips become embeddings of fixed size; what follows says how much of each task can be read from them."
    )
    parts = ["# Evaluation of speech embeddings", head, "## What was evaluated", *_evaluated(rows)]
    parts += ["## Results", table.strip(), _picture("Figures of all encoders, with 95 % intervals", OVERVIEW), "## Tasks"]
    for row in rows:
        parts += _task_section(row, [own for own in comparisons if own.row == row.name])
    parts += ["## Configuration", *_configuration(rows), "## Versions", _versions(rows), "## Times", *_times(rows)]
    return "\n\n".join(parts) + "\n"


def _picture(title: str, name: str) -> str:
    return f"![{title}](pictures/{name}.png)"


def _evaluated(rows: Sequence[Row]) -> list[str]:
    encoders = [[f"`{name}`", origin] for name, origin in origins(rows).items()]
    data = [[row.title, row.task["kind"], row.data, ", ".join(row.task["protocols"]), size_words(row)] for row in rows]
    tasks = page.markdown_table(["task", "kind", "data", "protocol", "test split"], data)
    return [page.markdown_table(["encoder", "what it is"], encoders), tasks]


def _task_section(row: Row, comparisons: Sequence[Comparison]) -> list[str]:
    pictures = [_picture(title, name) for name, title in pictures_of(row).items()]
    metrics = _metrics(row, comparisons)
    return [f"### {row.title}", _corpus(row), _counts(row), metrics, *_choices(row), *pictures]


def _corpus(row: Row) -> str:
    """The data, and what the paper's data is where this stands in for it."""
    benchmark = row.task["benchmark"]
    lines = [f"Row `{row.name}`. Data: {row.data}, protocol {', '.join(row.task['protocols']) or 'unnamed'}."]
    if benchmark:
        is_same = row.task["corpus"] == benchmark["corpus"]
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
    counts = row.first["counts"]
    classes = counts.get("classes", {})
    names = row.task["classes"] if classes and len(row.task["classes"]) <= MOST_CLASSES else []
    sizes = [kind for kind in ("clips", "trials", "speakers") if kind in counts]
    lines = []
    for split in SPLITS:
        cells = [f"{counts[kind][split]:,}" if split in counts[kind] else "" for kind in sizes]
        lines.append([split, *cells, *(str(classes[split].get(name, 0)) for name in names)])
    return page.markdown_table(["split", *sizes, *(f"`{name}`" for name in names)], lines)


def _metrics(row: Row, comparisons: Sequence[Comparison]) -> str:
    found = {own.other: own for own in comparisons}
    metrics = {name: figure for record in row.records.values() for name, figure in record["metrics"].items()}
    lines = []
    for encoder, record in row.records.items():
        cells = [_figure(record["metrics"][name]) if name in record["metrics"] else "" for name in metrics]
        lines.append([f"**{encoder}**" if encoder in row.best else encoder, *cells, _difference(row, found.get(encoder))])
    names = [metric_words(name, figure) for name, figure in metrics.items()]
    return page.markdown_table(["encoder", *names, f"{row.best[0]} minus it [95 %, paired]"], lines)


def _figure(figure: Mapping) -> str:
    return shown(figure["value"], figure["unit"]) + shown_interval(figure)


def _difference(row: Row, comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.interval is None:
        return comparison.obstacle or "too few units"
    value = row.figure(comparison.best)["value"] - row.figure(comparison.other)["value"]
    ends = ", ".join(shown(end, row.unit) for end in comparison.interval)
    return f"{shown(value, row.unit)} [{ends}] {mark_of(comparison)}".strip()


def _choices(row: Row) -> list[str]:
    """What was fitted for each encoder and what validation chose: the plain fields of every run that are no test figure."""
    lines, fields = [], {}
    for encoder, record in row.records.items():
        for run in record["probe"].get("runs", [{}]):
            every = {**record["probe"], **run}
            chosen = {k: v for k, v in every.items() if k not in record["metrics"] and isinstance(v, int | float | str)}
            fields |= dict.fromkeys(chosen)
            lines.append((encoder, chosen))
    table = [[encoder, *(_plain(chosen.get(field, "")) for field in fields)] for encoder, chosen in lines]
    words = [field.replace("_", " ") for field in fields]
    return ["What was fitted, and what the validation split chose:", page.markdown_table(["encoder", *words], table)]


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _configuration(rows: Sequence[Row]) -> list[str]:
    interval = rows[0].first["interval"]
    settings: dict[str, list[str]] = {}
    for row in rows:
        for record in row.records.values():
            if "settings" in record["probe"]:
                own = json.dumps({"kind": record["probe"]["kind"], **record["probe"]["settings"]}, indent=2)
                settings.setdefault(own, []).append(row.title)
    words = (
        f"Intervals: {interval['method']}, {100 * interval['confidence']:g} %, {interval['resamples']} resamples, seed "
        f"{interval['seed']}."
    )
    blocks = [f"{', '.join(dict.fromkeys(titles))}:\n\n{page.fenced(own, 'json')}" for own, titles in settings.items()]
    return [words, *blocks, _manifests(rows)]


def _manifests(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for manifest in row.first["manifests"]:
            lines.append([row.title, f"`{manifest['path']}`", manifest["split_column"], f"`{manifest['sha256'][:12]}`"])
    return page.markdown_table(["task", "manifest", "split column", "sha256"], lines)


def _versions(rows: Sequence[Row]) -> str:
    """One column per set of versions: rows may have been evaluated at different times."""
    sets: dict[str, Mapping] = {}
    for row in rows:
        for record in row.records.values():
            sets.setdefault(json.dumps(record["versions"], sort_keys=True), record["versions"])
    names = dict.fromkeys(name for own in sets.values() for name in own)
    lines = [[name, *(own.get(name, "") for own in sets.values())] for name in names]
    return page.markdown_table(
        ["library", *(f"version{'' if len(sets) == 1 else f' {i + 1}'}" for i in range(len(sets)))], lines
    )


def _times(rows: Sequence[Row]) -> list[str]:
    dates = sorted(record["date"] for row in rows for record in row.records.values())
    kinds = dict.fromkeys(kind for row in rows for record in row.records.values() for kind in record["seconds"])
    lines = [
        [row.title, encoder, *(f"{record['seconds'].get(kind, 0):.1f}" for kind in kinds)]
        for row in rows
        for encoder, record in row.records.items()
    ]
    words = f"Evaluated from {dates[0]} to {dates[-1]}."
    if "embedding" in kinds:
        words += " Embedding: of the clips of all tasks, which are embedded together."
    return [words, page.markdown_table(["task", "encoder", *(f"{kind}, s" for kind in kinds)], lines)]


@command_line("wavcse eval")
def main(argv: Sequence[str] | None = None) -> int:
    """Regenerate the report of a folder and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.eval.report",
        description="Make report.md, report.html and pictures/ anew from the result files.",
    )
    parser.add_argument("output_dir", help="folder that `wavcse eval` wrote")
    args = parser.parse_args(argv)
    print(write_report(args.output_dir), end="")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
