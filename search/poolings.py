"""The ten layer poolings compared on one set of layers, with their constants, fixed and learned (Table 2 of the paper)."""

from __future__ import annotations

from wavcse.search.arguments import PAPER_POOLINGS, POOLS

if __name__ == "__main__":
    POOLS.answer()  # before the imports below, which take seconds

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wavcse.configuration_wavcse import LAYER_POOLINGS
from wavcse.data.files import write_atomically
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search.bootstrap import (
    Answers,
    class_answers,
    difference_of,
    interval,
    number_answers,
    resampled_figures,
    units_of,
)
from wavcse.search.fit import settings_of
from wavcse.search.pooling_pictures import draw_poolings
from wavcse.search.pooling_report import poolings_markdown
from wavcse.search.program import (
    as_read,
    expectation,
    recipe_text,
    search_program,
    task_facts,
    write_result,
)
from wavcse.search.runner import Fit, FitError, first_divergence, fit_all
from wavcse.search.stability import moments_of, paired_difference, rank_agreement
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable
from wavcse.training.arguments import RunArguments
from wavcse.training.run import versions

# The authors' constants: what their code tries, and beyond its ends. The cited originals learn them.
CONSTANTS = {
    "mixed": ("max_weight", (0.25, 0.5, 0.75)),
    "learned_norm": ("p", (2.0, 4.0, 8.0, 16.0, 32.0)),
    "log_sum_exp": ("r", (0.5, 1.0, 2.0, 5.0, 10.0)),
    "smooth_maximum": ("sharpness", (0.5, 1.0, 2.0, 5.0, 10.0)),
}
LEARNED = ("mixed", "learned_norm", "log_sum_exp")  # and `smooth_maximum`, which `auto` learns

Runs = list[dict]  # results of one setting, one per seed


def search_poolings(
    table: SearchTable,
    args: RunArguments,
    output_dir: Path,
    seeds: int = 3,
    workers: int = 1,
    poolings: Sequence[str] = PAPER_POOLINGS,
    constants: str = "authors",
    show_progress: bool = True,
) -> dict:
    """Fit every pooling with every constant and seed; write report, result, pictures and a recipe below `output_dir`.

    A pooling's constant is chosen by the mean validation accuracy over seeds on the recipe's layers. With these constants the
    poolings are compared there, and fitted on all layers too, to see whether their ranking depends on the set.

    Args:
        table: the recipe's clips (`table_for`).
        args: the recipe; its layers are the set, its own pooling plays no part; seeds count up from its own.
        poolings: of `POOLINGS`.
        constants: "authors", their grid, or "default", one constant each.

    Returns:
        What is written to results/poolings.json.

    Raises:
        ValueError: an argument is out of range.
        FitError: a fit failed, or every setting diverged. A setting that diverges with any seed is out of every choice and
            reported with the reason.
    """
    args = replace(args, selected_layers=sorted(args.selected_layers))  # equal sets are the same fit
    table.config(args)  # every mistake in the recipe shows before the first fit
    store = FitStore(output_dir / "fits")
    ways = (store, seeds, workers, show_progress)
    grid = _grid(poolings, constants)
    found = _fit_all(table, args, grid, *ways)
    rows = _best_constants(grid, found)
    sets = {"selected": (args, [found[i] for i in rows])}
    if args.selected_layers != table.layers:
        everything = replace(args, selected_layers=table.layers)
        sets["all"] = everything, _fit_all(table, everything, [grid[i] for i in rows], *ways)
    report = _report(table, args, grid, found, rows, sets)
    report |= {"probe": probes} if (probes := table.probes_of(args)) else {}
    _write(output_dir, args, report)
    return report


def _grid(poolings: Sequence[str], constants: str) -> list[dict]:
    """Every setting to fit: `name` (the row of the table it belongs to), `pooling_type`, `pooling_kwargs`."""
    grid = []
    for pooling in [own for own in LAYER_POOLINGS if own in poolings]:
        name, values = CONSTANTS.get(pooling, ("", ()))
        fixed = [{name: value} for value in values] if constants == "authors" and values else [{}]
        kwargs = [{**LAYER_POOLINGS[pooling], **own} for own in fixed]
        grid += [{"name": pooling, "pooling_type": pooling, "pooling_kwargs": own} for own in kwargs]
        if pooling in LEARNED:
            learned = {**LAYER_POOLINGS[pooling], "learnable": True}
            grid.append({"name": f"{pooling}, learned", "pooling_type": pooling, "pooling_kwargs": learned})
    return grid


def _with(args: RunArguments, setting: Mapping) -> RunArguments:
    return args.with_pooling(setting["pooling_type"], setting["pooling_kwargs"])


def _fit_all(
    table: SearchTable,
    args: RunArguments,
    grid: Sequence[Mapping],
    store: FitStore,
    seeds: int,
    workers: int,
    show_progress: bool,
) -> list[Runs]:
    """The results of every setting, one per seed."""
    fits = [
        Fit(
            replace(_with(args, setting), seed=args.seed + i),
            f"{setting['name']}, {len(args.selected_layers)} layers, seed {i}",
        )
        for i in range(seeds)
        for setting in grid
    ]
    results = fit_all(fits, table, store, workers, show_progress)
    return [results[i :: len(grid)] for i in range(len(grid))]


def _validation(runs: Runs) -> float:
    return float(np.mean([run["validation"]["mean_accuracy"] for run in runs]))


def _best_constants(grid: Sequence[Mapping], found: Sequence[Runs]) -> list[int]:
    """Per row of the table the position of its best setting; ties go to the first. A row of which all diverged is left out."""
    sound = [i for i, runs in enumerate(found) if not first_divergence(runs)]
    if not sound:
        raise FitError(f"every setting diverged; the first: {first_divergence(found[0])}")
    names = dict.fromkeys(grid[i]["name"] for i in sound)
    own = {name: [i for i in sound if grid[i]["name"] == name] for name in names}
    return [max(positions, key=lambda i: _validation(found[i])) for positions in own.values()]


def _report(
    table: SearchTable,
    args: RunArguments,
    grid: Sequence[Mapping],
    found: Sequence[Runs],
    rows: Sequence[int],
    sets: Mapping[str, tuple[RunArguments, list[Runs]]],
) -> dict:
    best = max(range(len(rows)), key=lambda i: _validation(found[rows[i]]))
    compared = _compared([found[i] for i in rows], best, table)
    report = {
        "settings": settings_of(args),
        "data": table.fingerprint,
        "note": args.note,
        "num_layers": len(table.layers),
        "seeds": [run["settings"]["seed"] for run in found[0]],
        "tasks": task_facts(table.composite),
        "units": {split: _units(table, split) for split in ("validation", "test")},
        "grid": [{**setting, **_figures(runs)} for setting, runs in zip(grid, found)],
        "poolings": [{**grid[i], **figures} for i, figures in zip(rows, compared)],
        "best": grid[rows[best]]["name"],
        "sets": {
            name: {"layers": own.selected_layers, "poolings": [_figures(runs) for runs in many]}
            for name, (own, many) in sets.items()
        },
        "versions": versions(),
    }
    columns = list(zip(*(of["poolings"] for of in report["sets"].values())))  # a pooling on each set
    columns = [own for own in columns if not first_divergence(own)]
    figures = [np.transpose([own["validation"]["values"] for own in of]) for of in zip(*columns)]
    report["rank_agreement"] = rank_agreement(*figures) if len(figures) == 2 and len(columns) > 1 else None
    return as_read(report)


def _figures(runs: Runs) -> dict:
    """The moments of a setting over its seeds, or why it has none."""
    reason = first_divergence(runs)
    return {"diverged": reason} if reason else moments_of(runs)


def _units(table: SearchTable, split: str) -> dict[str, dict]:
    units = units_of(table.composite, table.groups, split)
    return {task: {"unit": unit, "number": len(np.unique(own))} for task, (unit, own) in units.items()}


def _compared(rows: Sequence[Runs], best: int, table: SearchTable) -> list[dict]:
    """Per row and split: moments over seeds, intervals over clips, and the best row minus it, paired by clip and by seed."""
    figures = [moments_of(runs) for runs in rows]
    for split in ("validation", "test"):
        resampled = _resampled(rows, table, split)
        for i, row in enumerate(figures):
            own = row[split]
            own["interval"] = interval(resampled["mean"][i])
            for task, moments in own["tasks"].items():
                moments["interval"] = interval(resampled[task][i])
            if i != best:
                mean = figures[best][split]["mean"] - own["mean"]
                own["difference"] = difference_of(mean, resampled["mean"][best] - resampled["mean"][i])
                own["difference_over_seeds"] = paired_difference(figures[best][split]["values"], own["values"])
    return figures


def _resampled(rows: Sequence[Runs], table: SearchTable, split: str) -> dict[str, np.ndarray]:
    """Task, or "mean" of the tasks -> figure of every row in every resample; a row is the mean over its seeds."""
    units = {task: own for task, (_, own) in units_of(table.composite, table.groups, split).items()}
    resampled = resampled_figures({task: _answers(rows, table, split, task) for task in units}, units)
    return {**resampled, "mean": np.mean(list(resampled.values()), axis=0)}


def _answers(rows: Sequence[Runs], table: SearchTable, split: str, task: str) -> Answers:
    if task not in table.composite.scales:
        return class_answers(np.stack([_mean_correct(runs, split, task) for runs in rows]))
    targets = table.composite.targets[split][task]
    outputs = np.array([[run[split]["outputs"][task] for run in runs] for runs in rows])
    return number_answers(outputs, targets[targets != IGNORED_LABEL].astype(np.float64))


def _mean_correct(runs: Runs, split: str, task: str) -> np.ndarray:
    digits = [np.frombuffer(run[split]["is_correct"][task].encode(), dtype=np.uint8) for run in runs]
    return np.mean(digits, axis=0) - ord("0")


def _write(output_dir: Path, args: RunArguments, report: dict) -> None:
    write_result(output_dir, "poolings", report)
    row = next(row for row in report["poolings"] if row["name"] == report["best"])
    chosen = replace(_with(args, row), output_dir=str(output_dir / "final"))
    among = f"{len(report['grid'])} settings over {len(report['seeds'])} seed(s)"
    head = [
        f"{row['name']}, chosen by wavcse.search.poolings among {among}.",
        f"{expectation(row['validation'], row['test'])}.",
    ]
    recipe = recipe_text(chosen, head, ("selected_layers", "pooling_type", "pooling_kwargs"))
    write_atomically(output_dir / "recipe.yaml", recipe)
    draw_poolings(report, output_dir / "pictures")
    write_atomically(output_dir / "poolings.md", poolings_markdown(report))


main = search_program(POOLS, search_poolings)


if __name__ == "__main__":
    sys.exit(main())
