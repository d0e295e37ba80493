"""Tables of trainings that were tested in folds: WA and UA of each, and how much each differs from the others' first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wavcse.eval.metrics import METRICS
from wavcse.eval.table import shown, shown_interval
from wavcse.finetuning.predictions import OF_CLIPS, Folds, fold_figures, paired
from wavcse.reports.page import markdown_table
from wavcse.studies.report import NONE

TITLES = {"accuracy": "WA", "uar": "UA"}  # as papers on emotion call them; of other figures the metric's own
WORDS = (
    "Mean over the folds, and pooled: of all test clips of all folds, with 95 % intervals over speakers. The difference is of "
    "the pooled figures, paired: on the same clips, with the same speakers drawn."
)


def main_figure(kind: str) -> str:
    """The figure of a kind of task that trainings are compared by: the last, of classes UA."""
    return OF_CLIPS[kind][-1]


def fold_facts(trainings: Mapping[str, Folds], kind: str) -> dict[str, dict[str, Any]]:
    """Name of a training -> `figures` (as `fold_figures`) and `difference`, figure -> as `paired`, to the first training.

    Args:
        kind: of the task.
    """
    figure = main_figure(kind)
    facts, first = {}, next(iter(trainings.values()), None)
    for name, folds in trainings.items():
        difference = {} if folds is first else {figure: paired(folds, first, figure)}
        facts[name] = {"figures": fold_figures(folds, kind), "difference": difference}
    return facts


def fold_table(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per training: each figure as the mean over the folds and pooled, and the difference to the first line."""
    figures = list(dict.fromkeys(figure for own in facts.values() for figure in own["figures"]))
    compared = list(dict.fromkeys(figure for own in facts.values() for figure in own["difference"]))
    first = next(iter(facts))
    heads = [f"{titled(figure)}, {how}" for figure in figures for how in ("mean of folds", "pooled [95 %]")]
    heads += [f"{titled(figure)} minus {first}'s [95 %]" for figure in compared]
    lines = []
    for name, own in facts.items():
        cells = [cell for figure in figures for cell in _cells(own["figures"].get(figure))]
        lines.append([name, *cells, *(_with_interval(own["difference"].get(figure), "difference") for figure in compared)])
    return markdown_table(["", *heads], lines)


def against_facts(trainings: Mapping[str, Folds], kind: str, against: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """`first`, `second`, `figure` and what `paired` says of them, for the pairs that were both tested."""
    figure = main_figure(kind)
    pairs = [(first, second) for first, others in against.items() for second in others]
    return [
        {"first": first, "second": second, "figure": figure, **paired(trainings[first], trainings[second], figure)}
        for first, second in pairs
        if {first, second} <= set(trainings)
    ]


def against_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """A line per pair: its difference with the interval."""
    lines = [[own["first"], own["second"], titled(own["figure"]), _with_interval(own, "difference")] for own in facts]
    return markdown_table(["", "compared with", "figure", "difference, pooled [95 %]"], lines)


def single_folds_table(facts: Mapping[str, Mapping[str, Any]], figure: str, tested: Sequence[str]) -> str:
    """A line per training, a column per fold, under what the fold tests."""
    unit = METRICS[figure].unit
    lines = [[name, *(shown(value, unit) for value in own["figures"][figure]["folds"])] for name, own in facts.items()]
    return markdown_table([titled(figure), *tested], lines)


def titled(figure: str) -> str:
    """What tables call a figure, with its unit."""
    metric = METRICS[figure]
    return f"{TITLES.get(figure, metric.title)}{', %' if metric.unit == 'percent' else ''}"


def _cells(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return [NONE, NONE]
    return [shown(record["mean"], record["unit"]), _with_interval(record, "pooled")]


def _with_interval(record: Mapping[str, Any] | None, name: str) -> str:
    if record is None:
        return NONE
    return f"{shown(record[name], record['unit'])}{shown_interval(record['interval'], record['unit'])}"
