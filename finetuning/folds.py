"""The folds of a recipe: in each another group of speakers or sessions is tested, the same one in all tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from wavcse.data.composite import TaskSource, as_paths
from wavcse.data.manifest import Manifest
from wavcse.data.splits import Fold, folds
from wavcse.finetuning.arguments import MultiTaskArguments, TaskSettings
from wavcse.training.run import RunFolder

UNSEEN_IN_TEST = (
    "the classes are the {column} that training knows, and a fold tests others: no answer on the test split could be right"
)


def recipe_folds(args: MultiTaskArguments) -> list[Fold]:
    """The folds of a recipe, in order; of their manifests alone, no audio is read.

    Raises:
        ValueError: the recipe has none, or a manifest lacks the column, or it has fewer values than folds are wanted.
    """
    settings = args.fold_settings()
    if settings is None:
        raise ValueError("folds is {}; name the column of the groups that are left out: `folds: {column: speaker_id}`.")
    paths = dict.fromkeys(path for task in args.task_settings().values() for path in as_paths(task.manifest))
    try:
        manifests = [Manifest(path) for path in paths]
        return folds(manifests, settings.column, settings.groups, settings.validation_share, settings.labelled)
    except ValueError as error:
        raise ValueError(f"folds: {error}") from error


def fold_names(args: MultiTaskArguments) -> dict[int, str]:
    """Number of a fold, from 1 -> what it tests."""
    return {number: ", ".join(sorted(fold.tested)) for number, fold in enumerate(recipe_folds(args), start=1)}


def fold_of(args: MultiTaskArguments) -> Fold | None:
    """The fold that a run trains; `None` for a recipe without folds.

    Raises:
        ValueError: the run does not say which, or there are not so many; or it starts from a stage that tested others, and so
            may have trained on those that this one tests.
    """
    if args.fold_settings() is None:
        return None
    found = recipe_folds(args)
    if args.fold is None or args.fold > len(found):
        raise ValueError(f"fold is {args.fold}; say which of the {len(found)} folds is tested, such as --fold 1.")
    fold, before = found[args.fold - 1], _tested_before(args)
    if before is not None and before != fold.tested:
        raise ValueError(
            f"fold {args.fold} tests {_some(fold.tested)}, but {args.stage_before}, which it starts from, tested "
            f"{_some(before)} and may know them: all stages need the same folds."
        )
    return fold


def _tested_before(args: MultiTaskArguments) -> frozenset[str] | None:
    """What the stage that a run starts from has tested; `None` where it starts from none, or that one is not finished."""
    path = None if args.stage_before is None else RunFolder(args.stage_before).results / "finetuning.json"
    if path is None or not path.exists():
        return None
    return frozenset(json.loads(path.read_text(encoding="utf-8")).get("fold", {}).get("tests", []))


def _some(values: frozenset[str]) -> str:
    return ", ".join(sorted(values)) or "no fold"


def with_fold(source: TaskSource, task: TaskSettings, args: MultiTaskArguments, fold: Fold | None) -> TaskSource:
    """Where a task's clips come from if a fold divides them; its speakers in test may then train no task."""
    if fold is None:
        return source
    speakers = task.disjoint_by or args.fold_settings().disjoint_by
    is_closed = source.closed_set and unseen_column(task, args) is None
    return replace(source, fold=fold, disjoint_by=speakers, closed_set=is_closed)


def unseen_column(task: TaskSettings, args: MultiTaskArguments) -> str | None:
    """The label column of a task whose classes are what folds leave out, such as speakers; `None` for other tasks."""
    settings = args.fold_settings()
    if settings is None or task.kind != "classes":
        return None
    return task.label_column if task.label_column in (settings.column, settings.disjoint_by) else None


def fold_record(args: MultiTaskArguments) -> dict[str, Any]:
    """What a result says of its fold: `fold`, which of how many, its column and tested values; and `not_reported`.

    Empty for a recipe without folds.
    """
    fold = fold_of(args)
    if fold is None:
        return {}
    known = {"number": args.fold, "of": len(recipe_folds(args)), "column": fold.column, "tests": sorted(fold.tested)}
    return {"fold": known, "not_reported": not_reported(args)}


def not_reported(args: MultiTaskArguments) -> dict[str, str]:
    """TASK.FIGURE -> why the test split has no such figure."""
    reasons = {}
    for name, task in args.learnt_tasks().items():
        if column := unseen_column(task, args):
            why = UNSEEN_IN_TEST.format(column=f"values of {column}")
            reasons |= {f"{name}.{figure}": why for figure in ("accuracy", "uar")}
    return reasons
