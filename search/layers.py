"""Recursive layer selection with its rivals, their stability and their costs (section 4 of the paper).

    python -m wavcse.search.layers conf/quickstart.yaml --output_dir runs/layers --seeds 3 --workers 2

CONFIG is a training recipe; its fields can be overridden as in training (`--num_epochs 20`). Left in the folder: `layers.md`,
`results/layers.json`, `pictures/`, `recipe.yaml` and `recipe_smallest.yaml` to train with, and `fits/`, one file per finished
fit: the same command goes on where a killed one was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import numpy as np
import yaml

from wavcse.data.composite import IGNORED_LABEL, CompositeSet
from wavcse.data.features import write_atomically
from wavcse.search.costs import cost_of, measured_speed
from wavcse.search.fit import settings_of
from wavcse.search.pictures import draw_layers
from wavcse.search.report import layers_markdown
from wavcse.search.runner import Plan, run_plans
from wavcse.search.selection import RIVALS, accuracy_of, count_fits, fixed_sets, recursion
from wavcse.search.stability import (
    against_chance,
    choose,
    consensus_order,
    consensus_set,
    curve,
    paired_difference,
    removal_ranks,
    stability,
)
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable, table_for
from wavcse.training.arguments import RunArguments, parse_arguments
from wavcse.training.run_folder import versions

Trials = dict[int, list[dict]]  # seed -> trials


def search_layers(
    table: SearchTable,
    args: RunArguments,
    output_dir: Path,
    seeds: int = 3,
    workers: int = 1,
    rivals: Sequence[str] = tuple(RIVALS),
    sizes: Sequence[int] | None = None,
    measure_speed: bool = False,
    show_progress: bool = True,
) -> dict:
    """Run the recursion and its rivals, and write what the module's docstring names below `output_dir`.

    The recursion runs once per seed. The seeds' removal orders are joined by their mean ranks into one consensus order, whose
    sets are then trained with every seed; the choice is among these sets, by the mean validation accuracy over seeds.

    Args:
        table: the recipe's clips (`table_for`).
        args: the recipe; seeds count up from its own.
        rivals: of `RIVALS`.
        sizes: numbers of layers at which rivals and consensus sets are trained, all if not given.
        measure_speed: time the recipe's upstream on this machine for every depth that the consensus sets need.

    Returns:
        What is written to results/layers.json.

    Raises:
        ValueError: an argument is out of range.
        FitError: a fit failed.
    """
    layers = table.layers
    sizes = _checked_sizes(sizes, len(layers))
    _check(seeds, rivals, args, measure_speed)
    table.config(replace(args, selected_layers=layers))  # every mistake in the recipe shows before the first fit
    seed_list = [args.seed + i for i in range(seeds)]
    store = FitStore(output_dir / "fits")
    plans: dict[tuple[str, int], Plan] = {("recursion", seed): recursion(args, layers, seed) for seed in seed_list}
    plans |= {(name, seed): RIVALS[name](args, layers, seed, sizes) for name in rivals for seed in seed_list}
    num_fits = sum(count_fits(name, len(layers), sizes) for name, _ in plans)
    found = _by_strategy(run_plans(plans, table, store, workers, num_fits, show_progress))
    order = consensus_order([removal_ranks(found["recursion"][seed]) for seed in seed_list])
    sets = [consensus_set(order, size) for size in sizes]
    plans = {("consensus", seed): fixed_sets(args, sets, seed) for seed in seed_list}
    found |= _by_strategy(run_plans(plans, table, store, workers, len(sets) * seeds, show_progress))
    report = _report(table, args, found, order, sizes)
    report["costs"] = _costs(table, args, sets, measure_speed)
    _write(output_dir, args, report)
    return report


def _checked_sizes(sizes: Sequence[int] | None, num_layers: int) -> list[int]:
    sizes = sorted(set(sizes or range(1, num_layers + 1)))
    if not 1 <= sizes[0] <= sizes[-1] <= num_layers:
        raise ValueError(f"sizes is {sizes}; the cache has {num_layers} layers, so each must lie between 1 and {num_layers}.")
    return sizes


def _check(seeds: int, rivals: Sequence[str], args: RunArguments, measure_speed: bool) -> None:
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; at least 1 is needed.")
    unknown = sorted(set(rivals) - set(RIVALS))
    if unknown:
        raise ValueError(f"rivals {unknown} unknown; allowed: {', '.join(RIVALS)}.")
    if measure_speed and not args.upstream:
        raise ValueError("upstream is not given, so its speed cannot be measured.")


def _by_strategy(found: Mapping[tuple[str, int], list[dict]]) -> dict[str, Trials]:
    strategies: dict[str, Trials] = {}
    for (name, seed), trials in found.items():
        strategies.setdefault(name, {})[seed] = trials
    return strategies


def _report(
    table: SearchTable, args: RunArguments, found: Mapping[str, Trials], order: Sequence[int], sizes: Sequence[int]
) -> dict:
    ranks = [removal_ranks(rounds) for rounds in found["recursion"].values()]
    tasks = _task_facts(table.composite)
    curves = {name: curve(trials) for name, trials in found.items()}
    choice = choose(curves["consensus"], {task: facts["num_validation"] for task, facts in tasks.items()})
    best = next(point for point in curves["consensus"] if point["size"] == choice["best"])
    majority = {task: facts["majority"] for task, facts in tasks.items()}
    num_test = {task: facts["num_test"] for task, facts in tasks.items()}
    report = {
        "settings": settings_of(args),
        "data": table.fingerprint,
        "note": args.note,
        "num_layers": len(order),
        "seeds": list(found["recursion"]),
        "tasks": tasks,
        "order": list(order),
        "sets": {size: consensus_set(order, size) for size in sizes},
        "choice": choice,
        "chance": against_chance(best["test"]["tasks"], majority, num_test),
        "stability": stability(ranks, order),
        "over_rivals": _over_rivals(found, choice["best"]),
        "curves": curves,
        "trials": found,
        "versions": versions(),
    }
    return json.loads(json.dumps(report))  # as a reader of the file sees it


def _task_facts(composite: CompositeSet) -> dict[str, dict]:
    facts = {}
    for task, classes in composite.classes.items():
        labels = {split: of_split[task][of_split[task] != IGNORED_LABEL] for split, of_split in composite.targets.items()}
        most_frequent = np.bincount(labels["train"]).argmax()
        facts[task] = {
            "num_classes": len(classes),
            **{f"num_{split}": len(own) for split, own in labels.items()},
            "majority": float(np.mean(labels["test"] == most_frequent)),
        }
    return facts


def _over_rivals(found: Mapping[str, Trials], size: int) -> dict[str, dict]:
    """Best consensus set minus every rival at the same size (all layers: at theirs), paired by seed."""
    best = [next(trial for trial in own if len(trial["layers"]) == size) for own in found["consensus"].values()]
    ours, differences = list(map(accuracy_of, best)), {}
    for name, trials in found.items():
        if name in ("recursion", "consensus"):
            continue
        theirs = [[trial for trial in own if name == "all" or len(trial["layers"]) == size] for own in trials.values()]
        differences[name] = paired_difference(ours, [float(np.mean(list(map(accuracy_of, own)))) for own in theirs])
    return differences


def _costs(table: SearchTable, args: RunArguments, sets: Sequence[Sequence[int]], measure_speed: bool) -> list[dict]:
    costs = [{"size": len(layers), **cost_of(table.upstream_config, layers)} for layers in sets]
    if measure_speed:
        speeds = {blocks: measured_speed(args, blocks) for blocks in {cost["blocks"] for cost in costs}}
        costs = [{**cost, "audio_s_per_s": speeds[cost["blocks"]]} for cost in costs]
    return costs


def _write(output_dir: Path, args: RunArguments, report: dict) -> None:
    (output_dir / "results").mkdir(parents=True, exist_ok=True)
    write_atomically(output_dir / "results" / "layers.json", json.dumps(report, indent=1) + "\n")
    for name, size in (("recipe", report["choice"]["best"]), ("recipe_smallest", report["choice"]["smallest"])):
        own = output_dir / ("final" if name == "recipe" else "final_smallest")
        final = replace(args, selected_layers=report["sets"][str(size)], output_dir=str(own))
        write_atomically(output_dir / f"{name}.yaml", recipe_text(final, report, size))
    draw_layers(report, output_dir / "pictures")
    write_atomically(output_dir / "layers.md", layers_markdown(report))


def recipe_text(args: RunArguments, report: Mapping, size: int) -> str:
    """The recipe as YAML, what differs from the defaults only, with what to expect of it on top."""
    point = next(point for point in report["curves"]["consensus"] if point["size"] == size)
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(RunArguments)}
    changed = {name: value for name, value in asdict(args).items() if value != defaults[name] or name == "selected_layers"}
    validation, test = (point[split]["mean"] for split in ("validation", "test"))
    head = (
        f"# {size} of {report['num_layers']} layers, chosen by wavcse.search.layers over {len(report['seeds'])} seed(s).\n"
        f"# What to expect: a mean accuracy of about {validation:.2%} on validation and {test:.2%} on test, which is what\n"
        "# a weighted average of them gives.\n"
    )
    return head + yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=127)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 with one line of explanation where the recipe or the data do not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.search.layers",
        description="Choose layers by recursive elimination, beside its rivals. Fields of the recipe can be overridden.",
        epilog="Example: python -m wavcse.search.layers conf/quickstart.yaml --output_dir runs/layers --num_epochs 20",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="training recipe (YAML), as for train_accelerate.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results, pictures, recipes and fits")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per set; the spread between them judges differences")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS), help="other ways to choose layers")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of layers to compare at (default: all)")
    parser.add_argument("--measure_speed", action="store_true", help="time the upstream for every set")
    own, overrides = parser.parse_known_args(argv)
    try:
        args = parse_arguments([own.config, *overrides])
        if own.workers < 1:
            raise ValueError(f"workers is {own.workers}; at least 1 is needed.")
        with table_for(args, own.output_dir / "fits", own.workers) as table:
            options = (own.seeds, own.workers, own.rivals, own.sizes, own.measure_speed)
            search_layers(table, args, own.output_dir, *options)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print((own.output_dir / "layers.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
