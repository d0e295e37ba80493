"""Recursive layer selection with its rivals, their stability and their costs (section 4 of the paper)."""

from __future__ import annotations

from wavcse.search.arguments import LAYERS

if __name__ == "__main__":
    LAYERS.answer()  # before the imports below, which take seconds

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from wavcse.data.files import write_atomically
from wavcse.search.costs import cost_of, measured_speed
from wavcse.search.fit import has_diverged, settings_of
from wavcse.search.pictures import draw_layers
from wavcse.search.program import (
    as_read,
    expectation,
    recipe_text,
    search_program,
    task_facts,
    write_result,
)
from wavcse.search.report import layers_markdown
from wavcse.search.runner import FitError, Plan, first_divergence, run_plans
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
from wavcse.search.table import SearchTable
from wavcse.training.arguments import RunArguments
from wavcse.training.run import versions


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
    """Run the recursion and its rivals; write report, result, pictures and the recipes of two sets below `output_dir`.

    The recursion runs once per seed. The seeds' removal orders are joined by their mean ranks into one consensus order, whose
    sets are then trained with every seed; the choice is among these sets, by the mean validation accuracy over seeds.

    Args:
        table: the recipe's clips (`table_for`).
        args: the recipe; seeds count up from its own.
        rivals: of `RIVALS`.
        sizes: numbers of layers at which rivals are trained, all if not given; that of the best set is always one.
        measure_speed: time the recipe's upstream on this machine for every depth that the consensus sets need.

    Returns:
        What is written to results/layers.json.

    Raises:
        ValueError: an argument is out of range.
        FitError: a fit failed, or so many diverged that nothing is left to choose from. Sets that diverge are out of every
            choice and reported with the reason; a recursion that meets one is left out.
    """
    layers = table.layers
    sizes = _checked_sizes(sizes, len(layers))
    table.config(replace(args, selected_layers=layers))  # every mistake in the recipe shows before the first fit
    search = _Search(table, args, FitStore(output_dir / "fits"), workers, show_progress, [args.seed + i for i in range(seeds)])
    # Recursion and rivals depend on nothing but the recipe, so all their fits are queued together; some are shared.
    search.run({"recursion": partial(recursion, args, layers), **search.rivals(rivals, sizes)}, sizes)
    order = consensus_order([removal_ranks(rounds) for rounds in search.found["recursion"].values()])
    sets = [consensus_set(order, size) for size in range(1, len(layers) + 1)]
    search.run({"consensus": partial(fixed_sets, args, sets)}, [len(own) for own in sets])
    num_validation = {task: facts["num_validation"] for task, facts in task_facts(table.composite).items()}
    choice = choose(curve(search.found["consensus"]), num_validation, table.composite.scales)
    if choice["best"] not in sizes:  # rivals are compared with the best set at its own size
        size = [choice["best"]]
        search.run(search.rivals([name for name in rivals if name != "all"], size), size)
    report = _report(search, order, choice)
    report |= {"probe": probes} if (probes := table.probes_of(replace(args, selected_layers=layers))) else {}
    report["costs"] = _costs(table, args, sets, measure_speed)
    _write(output_dir, args, report)
    return report


def _checked_sizes(sizes: Sequence[int] | None, num_layers: int) -> list[int]:
    sizes = sorted(set(sizes or range(1, num_layers + 1)))
    if not 1 <= sizes[0] <= sizes[-1] <= num_layers:
        raise ValueError(f"sizes is {sizes}; the cache has {num_layers} layers, so each must lie between 1 and {num_layers}.")
    return sizes


@dataclass
class _Search:
    """The fits of all strategies, and what they found.

    Attributes:
        table, args, store, workers, show_progress: as for `search_layers` and `run_plans`.
        seeds: every strategy runs once with each.
        found: strategy -> seed -> trials, without those that diverged.
        lost: trials that diverged, with their strategy and seed.
    """

    table: SearchTable
    args: RunArguments
    store: FitStore
    workers: int
    show_progress: bool
    seeds: list[int]
    found: dict[str, dict[int, list[dict]]] = field(default_factory=dict)
    lost: list[dict] = field(default_factory=list)

    def rivals(self, names: Sequence[str], sizes: Sequence[int]) -> dict[str, Callable[[int], Plan]]:
        """Rivals of these names at these numbers of layers, as `run` wants them."""
        return {name: partial(RIVALS[name], self.args, self.table.layers, sizes=sizes) for name in names}

    def run(self, strategies: Mapping[str, Callable[[int], Plan]], sizes: Sequence[int]) -> None:
        """Do the fits of all strategies (name -> plan for a seed) together, and add their trials to what was found."""
        plans = {(name, seed): plan(seed) for name, plan in strategies.items() for seed in self.seeds}
        num_fits = sum(count_fits(name, len(self.table.layers), sizes) for name, _ in plans)
        for (name, seed), trials in run_plans(
            plans, self.table, self.store, self.workers, num_fits, self.show_progress
        ).items():
            self.found.setdefault(name, {}).setdefault(seed, []).extend(trials)
        self._set_apart()

    def _set_apart(self) -> None:
        """Move the trials that diverged to `lost`, and leave out what cannot be compared without them.

        The consensus is joined from whole recursions, and chosen among sets that every seed has trained.
        """
        lost = [
            {"strategy": name, "seed": seed, **trial}
            for name, trials in self.found.items()
            for seed, own in trials.items()
            for trial in own
            if has_diverged(trial)
        ]
        self.lost += lost
        for name, trials in self.found.items():
            self.found[name] = {seed: [trial for trial in own if not has_diverged(trial)] for seed, own in trials.items()}
        broken = {entry["seed"] for entry in lost if entry["strategy"] == "recursion"}
        self.found["recursion"] = {seed: own for seed, own in self.found["recursion"].items() if seed not in broken}
        uneven = [entry["layers"] for entry in lost if entry["strategy"] == "consensus"]
        if uneven:
            self.found["consensus"] = {
                seed: [trial for trial in own if trial["layers"] not in uneven]
                for seed, own in self.found["consensus"].items()
            }
        if not self.found["recursion"] or not any(self.found.get("consensus", {0: True}).values()):
            raise FitError(f"too many fits diverged to choose layers; the first: {first_divergence(lost)}")


def _report(search: _Search, order: Sequence[int], choice: dict) -> dict:
    table, args, found = search.table, search.args, search.found
    ranks = [removal_ranks(rounds) for rounds in found["recursion"].values()]
    tasks = task_facts(table.composite)
    curves = {name: curve(trials) for name, trials in found.items() if any(trials.values())}
    best = next(point for point in curves["consensus"] if point["size"] == choice["best"])
    majority = {task: facts["majority"] for task, facts in tasks.items()}
    num_test = {task: facts["num_test"] for task, facts in tasks.items()}
    report = {
        "settings": settings_of(args),
        "data": table.fingerprint,
        "note": args.note,
        "num_layers": len(order),
        "seeds": search.seeds,
        "tasks": tasks,
        "order": list(order),
        "sets": {size: consensus_set(order, size) for size in range(1, len(order) + 1)},
        "choice": choice,
        "chance": against_chance(best["test"]["tasks"], majority, num_test, table.composite.scales),
        "stability": stability(ranks, order),
        "over_rivals": _over_rivals(found, choice["best"]),
        "curves": curves,
        "trials": found,
        **({"diverged": search.lost} if search.lost else {}),
        "versions": versions(),
    }
    return as_read(report)


def _over_rivals(found: Mapping[str, Mapping[int, list[dict]]], size: int) -> dict[str, dict]:
    """Best consensus set minus every rival at the same size (all layers: at theirs), paired by seed.

    Of the validation accuracies, and in `test` of the test accuracies, which neither the best set nor a rival was chosen by.
    A rival that diverged at that size with any seed is left out.
    """
    best = [[trial for trial in own if len(trial["layers"]) == size] for own in found["consensus"].values()]
    differences = {}
    for name, trials in found.items():
        if name in ("recursion", "consensus"):
            continue
        theirs = [[trial for trial in own if name == "all" or len(trial["layers"]) == size] for own in trials.values()]
        if not all(theirs):  # it diverged with a seed, so there are no pairs
            continue
        validation, test = (
            paired_difference(
                *([float(np.mean([accuracy_of(trial, split) for trial in own])) for own in of] for of in (best, theirs))
            )
            for split in ("validation", "test")
        )
        differences[name] = {**validation, "test": test}
    return differences


def _costs(table: SearchTable, args: RunArguments, sets: Sequence[Sequence[int]], measure_speed: bool) -> list[dict]:
    context = table.layer_fields.get("context")
    costs = [{"size": len(layers), **cost_of(table.upstream_config, layers, context)} for layers in sets]
    if measure_speed:
        speeds = {blocks: measured_speed(args, blocks, context) for blocks in {cost["blocks"] for cost in costs}}
        costs = [{**cost, "audio_s_per_s": speeds[cost["blocks"]]} for cost in costs]
    return costs


def _write(output_dir: Path, args: RunArguments, report: dict) -> None:
    write_result(output_dir, "layers", report)
    for name, size in (("recipe", report["choice"]["best"]), ("recipe_smallest", report["choice"]["smallest"])):
        own = output_dir / ("final" if name == "recipe" else "final_smallest")
        final = replace(args, selected_layers=report["sets"][str(size)], output_dir=str(own))
        write_atomically(output_dir / f"{name}.yaml", recipe_text(final, _recipe_head(report, size)))
    draw_layers(report, output_dir / "pictures")
    write_atomically(output_dir / "layers.md", layers_markdown(report))


def _recipe_head(report: Mapping, size: int) -> list[str]:
    point = next(point for point in report["curves"]["consensus"] if point["size"] == size)
    chosen = f"{size} of {report['num_layers']} layers, chosen by wavcse.search.layers over {len(report['seeds'])} seed(s)."
    return [chosen, f"{expectation(point['validation'], point['test'])}, which is what", "a weighted average of them gives."]


main = search_program(LAYERS, search_layers)


if __name__ == "__main__":
    sys.exit(main())
