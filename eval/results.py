"""The comparison table, made from the result files.

    python -m wavcse.eval.results runs/x/eval

writes runs/x/eval/results.md anew from runs/x/eval/results/*.json and predictions/*.parquet; no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wavcse.data.files import write_atomically
from wavcse.eval.notes import TIED, UNTESTED, notes_of
from wavcse.eval.records import read_results
from wavcse.eval.rows import Row, encoders_of, metric_words, rows_of, shown, shown_interval, size_words
from wavcse.eval.significance import Comparison, compare
from wavcse.reports import page
from wavcse.settings.command import DONE, command_line

PAPERS_COLUMN = "paper: wavCSE; its best baseline"


def write_table(output_dir: str | Path) -> str:
    """Make `output_dir`/results.md from the result files; returns its text. The same files give the same bytes.

    Raises:
        ValueError: there are no result files, or one is broken.
    """
    records = read_results(output_dir)
    text = markdown_table(records, compare(rows_of(records), output_dir))
    write_atomically(Path(output_dir) / "results.md", text)
    return text


def markdown_table(records: Sequence[dict], comparisons: Sequence[Comparison] = ()) -> str:
    """Tasks x encoders: primary metric, 95 % interval and n; the best of a row in bold, what is not told from it marked.

    Args:
        comparisons: of `compare`; an encoder that is in none of them is shown without a mark.
    """
    records = page.inert(list(records))
    rows, encoders = rows_of(records), encoders_of(records)
    marks = {(own.row, own.other): mark_of(own) for own in comparisons}
    has_paper = any(row.published for row in rows)
    lines = []
    for row in rows:
        cells = [row.task["title"], metric_words(row.primary, row.figure(row.best[0])), size_words(row)]
        cells += [_cell(row, encoder, marks.get((row.name, encoder), "")) for encoder in encoders]
        lines.append([*cells, *([_papers_cell(row)] if has_paper else [])])
    columns = ["task", "metric", "test split", *encoders, *([PAPERS_COLUMN] if has_paper else [])]
    notes = [f"- {note}" for note in notes_of(rows, comparisons)]
    return "\n".join([page.markdown_table(columns, lines), "", *notes]) + "\n"


def mark_of(comparison: Comparison) -> str:
    """The mark behind the figure of an encoder that was compared with the best of its row."""
    if comparison.obstacle:
        return UNTESTED
    return "" if comparison.is_distinguishable else TIED


def _cell(row: Row, encoder: str, mark: str) -> str:
    if encoder not in row.records:
        return "–"
    figure = row.figure(encoder)
    value = shown(figure["value"], row.unit)
    return (f"**{value}**" if encoder in row.best else f"{value}{mark}") + shown_interval(figure)


def _papers_cell(row: Row) -> str:
    """The paper's figure, and that of the best of the models that it compares with."""
    if not row.published:
        return ""
    baselines, value = row.published["baselines"], shown(row.published["paper"], row.unit)
    if not baselines:
        return value
    name = (max if row.is_greater_better else min)(baselines, key=baselines.get)
    return f"{value}; {name} {shown(baselines[name], row.unit)}"


@command_line("wavcse eval")
def main(argv: Sequence[str] | None = None) -> int:
    """Regenerate and print the table of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.eval.results", description="Make results.md anew from results/*.json, and print it."
    )
    parser.add_argument("output_dir", help="folder that `wavcse eval` wrote")
    args = parser.parse_args(argv)
    print(write_table(args.output_dir), end="")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
