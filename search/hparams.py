"""Sizes, penalties, dropouts, batch size and learning rate, searched as in section 3 of the paper.

First a grid over batch size and learning rate, then Bayesian optimisation of the rest at the best point of the grid
(`search/study.py`).
"""

from __future__ import annotations

from wavcse.search.arguments import HPARAMS

if __name__ == "__main__":
    HPARAMS.answer()  # before the imports below, which take seconds

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from wavcse.data.files import write_atomically
from wavcse.search.fit import settings_of
from wavcse.search.hparams_report import draw_hparams, hparams_markdown
from wavcse.search.program import (
    as_read,
    expectation,
    recipe_text,
    search_program,
    task_facts,
    write_result,
)
from wavcse.search.runner import Fit, FitError, at_hand, first_divergence, fit_all, worker_pool
from wavcse.search.stability import moments_of, paired_difference
from wavcse.search.store import FitStore
from wavcse.search.study import (
    StudyObjective,
    database_errors,
    finished,
    importances,
    is_recipe,
    open_study,
    requeue_lost,
    run_trial,
    search_space,
    set_damaged_database_aside,
)
from wavcse.search.table import SearchTable
from wavcse.settings.processes import one_thread
from wavcse.training.arguments import RunArguments
from wavcse.training.run import versions

BATCH_FACTORS = (0.5, 1, 2)
RATE_FACTORS = (0.4, 1, 2.5)

Runs = list[dict]  # results of one setting, one per seed


def search_hparams(
    table: SearchTable,
    args: RunArguments,
    output_dir: Path,
    trials: int = 40,
    seeds: int = 3,
    workers: int = 1,
    batch_sizes: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    show_progress: bool = True,
) -> dict:
    """Search, and write report, result, pictures and a recipe below `output_dir`.

    Everything is chosen by the mean over seeds of the mean validation accuracy; test figures of the recipe and of the best
    trial are read after all choices.

    Args:
        table: the recipe's clips (`table_for`).
        args: the recipe: its layers and pooling stay, its own settings are the first trial; seeds count up from its own.
        trials: of the Bayesian optimisation, those of an earlier run in this folder counted.
        workers: processes, each with its own trial; on a GPU a trial's seeds train together in this process instead.
        batch_sizes, learning_rates: the grid; half, once and twice, and 0.4, 1 and 2.5 times the recipe's if not given.

    Returns:
        What is written to results/hparams.json.

    Raises:
        ValueError: an argument is out of range.
        FitError: a fit failed, or every point of the grid diverged. Points and trials that diverge are out of every choice and
            reported with the reason.
    """
    table.config(args)  # every mistake in the recipe shows before the first fit
    store = FitStore(output_dir / "fits")
    grid = _grid(args, batch_sizes, learning_rates)
    found = _fit_seeds(table, grid, store, seeds, workers, show_progress)
    base = grid[_best_point(found)]
    # Another best point or other data start a study of their own: trials of two recipes cannot be compared.
    name = f"{store.key(base, table.fingerprint)}-{seeds}"
    objective = StudyObjective(base, seeds, output_dir / "hparams.sqlite", name)
    set_damaged_database_aside(objective.path)
    with database_errors(objective.path):
        study = open_study(objective)
        requeue_lost(study, base)
        _run_trials(study, table, store, objective, trials, workers, show_progress)
        done = _recipe_first(study, base)[:trials]
    ends = [replace(base, **trial.params) for trial in (done[0], _best(done))]
    runs = _fit_seeds(table, ends, store, seeds, 1, show_progress=False)  # all in the store
    report = as_read({"grid": _points(grid, found), **_report(table, objective, done, dict(zip(("recipe", "best"), runs)))})
    _write(output_dir, base, report)
    return report


def _grid(args: RunArguments, batch_sizes: Sequence[int] | None, learning_rates: Sequence[float] | None) -> list[RunArguments]:
    sizes = batch_sizes or [max(1, round(args.batch_size * factor)) for factor in BATCH_FACTORS]
    rates = learning_rates or [args.learning_rate * factor for factor in RATE_FACTORS]
    pairs = itertools.product(sorted(set(sizes)), sorted(set(rates)))
    return [replace(args, batch_size=size, learning_rate=rate) for size, rate in pairs]


def _best_point(found: Sequence[Runs]) -> int:
    sound = [i for i, runs in enumerate(found) if not first_divergence(runs)]
    if not sound:
        raise FitError(f"every point of the grid diverged; the first: {first_divergence(found[0])}")
    return max(sound, key=lambda i: moments_of(found[i])["validation"]["mean"])


def _points(grid: Sequence[RunArguments], found: Sequence[Runs]) -> list[dict]:
    """The grid with its figures, or why there are none."""
    points = []
    for own, runs in zip(grid, found):
        reason = first_divergence(runs)
        figures = {"diverged": reason} if reason else {"validation": moments_of(runs)["validation"]}
        points.append({"batch_size": own.batch_size, "learning_rate": own.learning_rate, **figures})
    return points


def _fit_seeds(
    table: SearchTable, many: Sequence[RunArguments], store: FitStore, seeds: int, workers: int, show_progress: bool
) -> list[Runs]:
    """The results of every setting, one per seed."""
    fits = [
        Fit(replace(own, seed=own.seed + i), f"batch size {own.batch_size}, learning rate {own.learning_rate:g}, seed {i}")
        for own in many
        for i in range(seeds)
    ]
    results = fit_all(fits, table, store, workers, show_progress)
    return [results[i * seeds : (i + 1) * seeds] for i in range(len(many))]


def _run_trials(
    study: optuna.Study,
    table: SearchTable,
    store: FitStore,
    objective: StudyObjective,
    trials: int,
    workers: int,
    is_shown: bool,
) -> None:
    """Trials until so many are finished, here or in workers."""
    places = range(len(finished(study)), trials)
    if workers == 1 or table.features.device.type == "cuda":
        steps = (run_trial(study, place, table, store, objective) for place in places)
    else:
        steps = _in_workers(places, table, store, objective, workers)
    with one_thread(), tqdm(total=trials, initial=places.start, desc="trials", unit="trial", disable=not is_shown) as bar:
        for _ in steps:
            bar.update()
            if any(trial.state == TrialState.COMPLETE for trial in finished(study)):
                bar.set_postfix_str(f"best {study.best_value:.2%}")
        while not is_recipe(_recipe_first(study, objective.args)[0], objective.args):  # still queued after a kill
            run_trial(study, len(finished(study)), table, store, objective)


def _recipe_first(study: optuna.Study, args: RunArguments) -> list[FrozenTrial]:
    """Finished trials by number, the recipe's own before all others: after a kill it may have been queued again."""
    return sorted(finished(study), key=lambda trial: not is_recipe(trial, args))


def _in_workers(
    places: Sequence[int], table: SearchTable, store: FitStore, objective: StudyObjective, workers: int
) -> Iterator[None]:
    if not places:
        return
    with worker_pool(table, store, workers) as pool:
        futures = [pool.submit(_work, place, objective) for place in places]
        for future in as_completed(futures):
            try:
                future.result()
            except BrokenProcessPool as error:
                raise FitError("A worker process died during a trial, perhaps for lack of memory.") from error
            yield


def _work(place: int, objective: StudyObjective) -> None:
    with database_errors(objective.path):
        run_trial(open_study(objective), place, *at_hand(), objective)


def _report(table: SearchTable, objective: StudyObjective, trials: Sequence[FrozenTrial], runs: Mapping[str, Runs]) -> dict:
    args, space = objective.args, search_space(objective.args)
    best, recipe = (moments_of(runs[name]) for name in ("best", "recipe"))
    return {
        "settings": settings_of(args),
        "data": table.fingerprint,
        "note": args.note,
        "num_layers": len(table.layers),
        "seeds": [run["settings"]["seed"] for run in runs["recipe"]],
        "tasks": task_facts(table.composite),
        "ranges": {name: [at.low, at.high] for name, at in space.items()},
        "trials": [_trial_facts(number, trial) for number, trial in enumerate(trials)],
        "importances": importances(trials, args.seed),
        "recipe": {"params": trials[0].params, **recipe},
        "best": {"params": _best(trials).params, "number": trials.index(_best(trials)), **best},
        "gain": {split: paired_difference(best[split]["values"], recipe[split]["values"]) for split in ("validation", "test")},
        "versions": {**versions(), "optuna": optuna.__version__},
    }


def _trial_facts(number: int, trial: FrozenTrial) -> dict:
    """A pruned trial has no value; `reached` is the best epoch of any trial, `steps` how many epochs it had over its seeds.

    Of a trial that was pruned because it diverged `diverged` says why.
    """
    reached = max(trial.intermediate_values.values())
    value = trial.value if trial.state == TrialState.COMPLETE else None
    state = trial.state.name.lower()
    return {
        "number": number,
        "state": state,
        "value": value,
        "reached": reached,
        "steps": trial.last_step,
        "params": trial.params,
        **{name: trial.user_attrs[name] for name in ("diverged",) if name in trial.user_attrs},
    }


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: trial.value)  # ties go to the first


def _write(output_dir: Path, args: RunArguments, report: dict) -> None:
    write_result(output_dir, "hparams", report)
    best = report["best"]
    chosen = replace(args, **best["params"], output_dir=str(output_dir / "final"))
    head = [
        f"Trial {best['number']} of {len(report['trials'])} of wavcse.search.hparams, over {len(report['seeds'])} seed(s).",
        f"{expectation(best['validation'], best['test'])}.",
    ]
    recipe = recipe_text(chosen, head, ("selected_layers", "batch_size", "learning_rate", *best["params"]))
    write_atomically(output_dir / "recipe.yaml", recipe)
    draw_hparams(report, output_dir / "pictures")
    write_atomically(output_dir / "hparams.md", hparams_markdown(report))


main = search_program(HPARAMS, search_hparams)


if __name__ == "__main__":
    sys.exit(main())
