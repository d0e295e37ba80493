"""Bayesian optimisation of a recipe on one feature table: an Optuna study in a file that survives kills and takes workers.

A trial trains the recipe with other sizes, penalties and dropouts, with every seed; its value is the mean over seeds of the
mean validation accuracy. Trials that were running when their process died are marked as failed and queued again. What a trial
samples depends only on the recipe's seed and on the finished trials: with one worker a continued search does what an
undisturbed one would have done.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import optuna
import psutil
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from wavcse.data.files import set_aside
from wavcse.search.fit import AfterEpoch, fit_together
from wavcse.search.runner import FitError, first_divergence
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable
from wavcse.training.arguments import RunArguments

STARTUP_TRIALS = 8  # the recipe's own settings, then random ones, before the model of good settings is trusted
WAIT_FOR_FILE_S = 120  # while other workers write
LARGEST_DROPOUT = 0.8
LEAST_FOR_IMPORTANCE = 4  # complete trials

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search_space(args: RunArguments) -> dict[str, BaseDistribution]:
    """Ranges around the recipe: FC1 and FC2 from a quarter to twice their size, penalties by 1000 either way, dropouts.

    The embedding stays larger than the recipe's Matryoshka sizes.
    """
    least = {"embedding_size": max(args.matryoshka_sizes, default=0) + 1}
    space: dict[str, BaseDistribution] = {}
    for name in ("layer_projection_size", "embedding_size"):
        size = getattr(args, name)
        if size is None:
            continue  # there is no FC1
        space[name] = IntDistribution(max(least.get(name, 1), size // 4), 2 * size, log=True)
    for name, usual in (("l1", 1e-7), ("l2", 1e-5)):
        middle = getattr(args, name) or usual  # a logarithm has no place for 0
        space[name] = FloatDistribution(middle / 1e3, middle * 1e3, log=True)
    for name in ("layer_dropout", "embedding_dropout"):
        space[name] = FloatDistribution(0.0, max(LARGEST_DROPOUT, getattr(args, name)))
    return space


@dataclass(frozen=True)
class StudyObjective:
    """What a study optimises: this recipe over so many seeds; the study is the one of this name in a SQLite file."""

    args: RunArguments
    seeds: int
    path: Path
    name: str


def set_damaged_database_aside(path: Path) -> None:
    """Set aside a database that SQLite cannot read: trials are sampled again, and their finished fits are in the store."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as database:
            (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    if answer != "ok":
        set_aside(path, f"{path}: is damaged ({answer}).")


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn Optuna's errors about the database file into an OSError with its path: they name neither cause nor file."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        number = errno.ENOSPC if "full" in str(cause) else errno.EIO
        raise OSError(number, os.strerror(number) if number == errno.ENOSPC else str(cause), str(path)) from error


def open_study(objective: StudyObjective) -> optuna.Study:
    """The objective's study, made if it is not there, with the recipe's own settings queued unless they are in it."""
    args, options = objective.args, {"connect_args": {"timeout": WAIT_FOR_FILE_S}}
    storage = optuna.storages.RDBStorage(f"sqlite:///{objective.path}", engine_kwargs=options)
    # No trial is pruned before there are some to compare with, nor in the first quarter of its epochs.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS // 2, n_warmup_steps=args.num_epochs // 4)
    study = optuna.create_study(
        storage=storage, study_name=objective.name, pruner=pruner, direction="maximize", load_if_exists=True
    )
    if not any(is_recipe(trial, args) for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL):
        study.enqueue_trial(recipe_settings(args))
    return study


def recipe_settings(args: RunArguments) -> dict[str, int | float]:
    """The recipe as a trial; a penalty of 0, for which a logarithmic range has no place, is at the low end of its range."""
    return {field: getattr(args, field) or at.low for field, at in search_space(args).items()}


def is_recipe(trial: FrozenTrial, args: RunArguments) -> bool:
    """Is this the recipe's own trial, queued or run? Its number says nothing: after a kill it is queued again."""
    return _settings_of(trial) == recipe_settings(args)


def _settings_of(trial: FrozenTrial) -> dict:
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are done, pruned ones too, from the first."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def requeue_lost(study: optuna.Study, args: RunArguments) -> int:
    """Mark trials whose process is gone as failed and queue their settings again; returns how many there were."""
    lost = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if not _is_alive(trial)]
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL)
        settings = _settings_of(trial)
        if settings.keys() == search_space(args).keys():  # else it died while sampling; the next one samples the same
            study.enqueue_trial(settings)
    return len(lost)


def _is_alive(trial: FrozenTrial) -> bool:
    process = trial.user_attrs.get("process")
    try:
        return process is not None and psutil.Process(process[0]).create_time() == process[1]
    except psutil.NoSuchProcess:
        return False


def run_trial(study: optuna.Study, place: int, table: SearchTable, store: FitStore, objective: StudyObjective) -> None:
    """Sample settings, fit them with every seed, tell the study.

    Finished fits are in the store, and what is there is not fitted again. The pruner looks at every epoch, but never ends
    the recipe's own trial, which the others are measured against.

    Args:
        place: how many trials are finished or started before this one; with the recipe's seed it seeds the sampler.
    """
    args = objective.args
    seed = int(np.random.SeedSequence([args.seed, place]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
    trial = study.ask(search_space(args))
    trial.set_user_attr("process", [os.getpid(), psutil.Process().create_time()])
    try:
        study.tell(trial, _value(trial, table, store, objective))
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except FloatingPointError as error:  # the fit diverged, which is no reason to end the study
        trial.report(0.0, 0)
        trial.set_user_attr("diverged", str(error))
        study.tell(trial, state=TrialState.PRUNED)
        if trial.params == recipe_settings(args):
            raise FitError(f"the recipe's own trial, which the others are measured against: {error}") from error
    except OSError:
        raise  # a full disk cannot record the trial either; the next start queues it again
    except Exception as error:
        study.tell(trial, state=TrialState.FAIL)
        raise FitError(f"trial {place}, {trial.params}: {type(error).__name__}: {error}") from error


def _value(trial: optuna.Trial, table: SearchTable, store: FitStore, objective: StudyObjective) -> float:
    """Mean over seeds of the validation accuracy. Seeds train together on a GPU, one after another on a CPU."""
    args = replace(objective.args, **trial.params)
    may_prune = trial.params != recipe_settings(objective.args)
    of_seeds = [replace(args, seed=args.seed + i) for i in range(objective.seeds)]
    groups = [of_seeds] if table.features.device.type == "cuda" else [[own] for own in of_seeds]
    values = []
    for i, group in enumerate(groups):
        results = _results(table, store, group, partial(_judge, trial, may_prune, i * args.num_epochs))
        values += [result["validation"]["mean_accuracy"] for result in results]
    return float(np.mean(values))


def _results(table: SearchTable, store: FitStore, group: Sequence[RunArguments], after_epoch: AfterEpoch) -> list[dict]:
    keys = [store.key(own, table.fingerprint) for own in group]
    results = [store.get(key) for key in keys]
    if None in results:
        results = fit_together(table, group, after_epoch)
        for key, result in zip(keys, results):
            store.put(key, result)
    else:  # the pruner meets the same epochs as when they were fitted
        curves = (result["curve"] for result in results)
        for epoch, accuracies in enumerate(zip_longest(*curves, fillvalue=0.0), start=1):
            after_epoch(epoch, accuracies)
    reason = first_divergence(results)
    if reason:
        raise FloatingPointError(reason)
    return results


def _judge(trial: optuna.Trial, may_prune: bool, steps_before: int, epoch: int, accuracies: Sequence[float]) -> None:
    trial.report(float(np.mean(accuracies)), steps_before + epoch)
    if may_prune and trial.should_prune():
        raise optuna.TrialPruned


def importances(trials: Sequence[FrozenTrial], seed: int) -> dict[str, float] | None:
    """Setting -> its share of the variance between these trials (fANOVA, Hutter et al. 2014), the largest first.

    `None` with fewer than four complete trials, or where all of them are equal.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    values = [trial.value for trial in complete]
    if len(values) < LEAST_FOR_IMPORTANCE or np.ptp(values) == 0:
        return None
    study = optuna.create_study(direction="maximize")
    study.add_trials(complete)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
