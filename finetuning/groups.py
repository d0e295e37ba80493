"""Parts of the classes whose test clips get a row of their own, such as the languages that pre-training has heard.

A row of a group has the group's test clips only. Nothing else changes: every class of the task is a possible answer to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wavcse.eval.task import TaskData
from wavcse.settings.fields import check_file_name

OVERLAPPING, OTHERS = "O", "NO"  # LASR, Table 1
MOST_NAMED = 8  # classes up to which a title names them


def class_groups(asked: Mapping[str, Sequence[str]], upstreams: Mapping[str, str], data: TaskData) -> dict[str, list[str]]:
    """Name -> classes: those asked for, or else what the upstreams' own runs say, or else none.

    Upstreams whose runs say nothing take no part in that; those that do must agree on the classes of this task.

    Raises:
        ValueError: a group is misspelt, names something that is not a class, or has no test clip; or the upstreams were
            pre-trained on different labels.
    """
    if not asked:
        return _pretrained_groups(upstreams, data)
    for name, classes in asked.items():
        _check(name, classes, data)
    return {name: list(classes) for name, classes in asked.items()}


def group_data(data: TaskData, name: str, classes: Sequence[str]) -> TaskData:
    """The task as a row of its own, with the test clips of some classes."""
    is_kept = (data.table.splits != "test") | np.isin(data.table.labels, list(classes))
    words = ", ".join(classes) if len(classes) <= MOST_NAMED else f"{len(classes)} classes"
    task = replace(
        data.task,
        name=f"{data.task.name}_{name}",
        title=f"{data.task.title}: {name} ({words})",
        benchmark=replace(data.task.benchmark, published={}),
        metrics=tuple("macro_f1_true" if metric == "macro_f1" else metric for metric in data.task.metrics),
    )
    return replace(data.subset(np.flatnonzero(is_kept)), task=task)


def _check(name: object, classes: object, data: TaskData) -> None:
    check_file_name("groups: the name", name)
    if not isinstance(classes, list) or not all(isinstance(label, str) for label in classes):
        raise ValueError(
            f"groups.{name}: is {classes!r}; a list of classes is needed, each a text (YAML needs 'no' in quotes)."
        )
    unknown = sorted(set(classes) - set(data.classes))
    if unknown:
        raise ValueError(f"groups.{name}: {unknown} are not classes of the task; they are {data.classes}.")
    if not set(classes) & _tested(data):
        raise ValueError(f"groups.{name}: none of its classes has a test clip.")


def _tested(data: TaskData) -> set[str]:
    return set(data.table.labels[data.table.rows("test")])


def _pretrained_groups(upstreams: Mapping[str, str], data: TaskData) -> dict[str, list[str]]:
    found = {name: _pretrained_labels(Path(folder), data.task.targets[0]) for name, folder in upstreams.items()}
    known = {name: labels & set(data.classes) for name, labels in found.items() if labels}
    if not known:
        return {}
    first, labels = next(iter(known.items()))
    different = next((name for name, others in known.items() if others != labels), None)
    if different:
        raise ValueError(f"groups: {first} and {different} were pre-trained on different labels; name the groups yourself.")
    tested = _tested(data)
    groups = {OVERLAPPING: labels, OTHERS: set(data.classes) - labels}
    return {name: [label for label in data.classes if label in own] for name, own in groups.items() if own & tested}


def _pretrained_labels(folder: Path, column: str) -> set[str]:
    """Labels of the data of the pre-training run that the folder is part of; empty if it is of none, or of other labels."""
    path = folder.resolve().parent / "results" / "pretraining.json"
    if not path.exists():
        return set()
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return set(result["labels"]) if result["config"]["label_column"] == column else set()
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not the result of a pre-training ({type(error).__name__}: {error}).") from error
