"""The command line of `wavcse eval`: options, a YAML file with the same names, or both (an option wins)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from wavcse.data.recipes import read_recipe
from wavcse.eval.task import Task
from wavcse.eval.tasks import TASKS

DESCRIPTION = """\
How good are a model's embeddings? For every task, one linear layer is trained on the frozen embeddings of the training
clips, chosen on the validation clips and tested once. Writes results/*.json, results.md and skipped.csv to --output_dir.
"""
EPILOG = """\
example:
  python -m wavcse.eval --model runs/quickstart/hub --manifest corpus/metadata.csv \\
      --tasks keyword,speaker,emotion --baselines last_layer,mfcc,majority --output_dir runs/quickstart

the same as a file, with a manifest of its own for one task:
  python -m wavcse.eval eval.yaml --seeds 5

  # eval.yaml
  model: runs/quickstart/hub
  output_dir: runs/quickstart
  baselines: [last_layer, mfcc, majority]
  manifest: corpus/metadata.csv
  tasks:
    keyword:
    emotion: {manifest: [a.csv, b.csv], label_column: emotion, split_column: split_er}

exit code: 0 = done; 2 = wrong option or unsound data, see the message; 3 = done, but some clips could not be used
(skipped.csv lists them)
"""
TASK_FIELDS = ("manifest", "label_column", "split_column", "disjoint_by")


@dataclass
class EvalArguments:
    """Settings of one evaluation; `tasks` maps a task name to its own manifest, label_column, split_column, disjoint_by."""

    model: str | None = None
    name: str = "wavcse"
    manifest: list[str] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    output_dir: str | None = None
    baselines: list[str] = field(default_factory=list)
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    batch_seconds: float = 60.0
    note: str = ""

    def requests(self) -> list[tuple[Task, list[str]]]:
        """Every task with the changes asked for, and its manifests."""
        return [self._request(name, changes) for name, changes in self.tasks.items()]

    def _request(self, name: str, changes: dict[str, Any]) -> tuple[Task, list[str]]:
        unknown = sorted(set(changes) - set(TASK_FIELDS))
        if unknown:
            raise ValueError(f"tasks.{name}: unknown settings {unknown}; allowed: {', '.join(TASK_FIELDS)}.")
        manifests = _as_list(changes.get("manifest")) or self.manifest
        if not manifests:
            raise ValueError(f"Task {name!r} has no manifest; give --manifest.")
        columns = {key: changes[key] for key in ("label_column", "disjoint_by") if key in changes}
        if "split_column" in changes:
            columns["split_columns"] = (changes["split_column"],)
        return replace(TASKS[name], **columns), manifests


def parse_arguments(argv: Sequence[str] | None = None) -> EvalArguments:
    """Read the command line (and the YAML file that it names).

    Raises:
        ValueError: an unknown setting, task or value; something needed is missing. The message names it.
    """
    given = vars(_parser().parse_args(argv))
    config = given.pop("config", None)
    settings = read_recipe(config, allowed=[setting.name for setting in fields(EvalArguments)]) if config else {}
    from_file = _as_tasks(settings.pop("tasks", None))
    asked = _as_tasks(given.pop("tasks", None)) or from_file
    tasks = {name: from_file.get(name, changes) for name, changes in asked.items()}
    arguments = EvalArguments(**{**settings, **given}, tasks=tasks)
    arguments.manifest = _as_list(arguments.manifest)
    arguments.baselines = _as_list(arguments.baselines)
    _validate(arguments)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wavcse eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG.yaml", help="YAML file with any of the settings below")
    add("--model", metavar="DIR_OR_HUB_ID", help="wavCSE model; its Python files are run, so name only what you trust")
    add("--name", help="what tables call the model (default wavcse)")
    add("--manifest", nargs="+", metavar="M", help="CSV or Parquet tables with one row per clip; used by every task whose "
        "label column they have")  # fmt: skip
    add("--tasks", metavar="A,B", help=f"tasks to evaluate: {', '.join(TASKS)}")
    add("--output_dir", metavar="DIR", help="where results go; results of other models and tasks there stay in the table")
    add("--baselines", metavar="A,B", help="what to compare with: last_layer, mfcc, majority (default none)")
    add("--seed", type=int, help="first seed of the probes (default 0)")
    add("--seeds", type=int, metavar="K", help="number of probes per task; figures are their mean (default 1)")
    add("--device", help="auto (default: the GPU if there is one), cpu, cuda, cuda:1, ...")
    add("--batch_seconds", type=float, help="seconds of audio per batch; less needs less memory (default 60)")
    add("--note", metavar="TEXT", help='shown under every table, e.g. "upstream with random weights"')
    return parser


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    values = value.split(",") if isinstance(value, str) else list(value or ())
    return [entry.strip() for entry in values if entry.strip()]


def _as_tasks(value: str | Sequence[str] | dict | None) -> dict[str, dict[str, Any]]:
    tasks = {name: changes or {} for name, changes in value.items()} if isinstance(value, dict) else {}
    tasks = tasks or {name: {} for name in _as_list(value)}
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"tasks: unknown {unknown}; allowed: {', '.join(TASKS)}.")
    return tasks


def _validate(arguments: EvalArguments) -> None:
    if not arguments.tasks:
        raise ValueError(f"No task is given; use --tasks with some of: {', '.join(TASKS)}.")
    if not arguments.output_dir:
        raise ValueError("--output_dir is missing: the folder for the results.")
    if not arguments.model and not arguments.baselines:
        raise ValueError("Nothing to evaluate: give --model, --baselines or both.")
    if not re.fullmatch(r"[\w.-]+", arguments.name):
        raise ValueError(f"name is {arguments.name!r}; it names files, so only letters, digits and . _ - are allowed.")
    for name, kind, minimum in (("seed", int, 0), ("seeds", int, 1), ("batch_seconds", (int, float), 0.1)):
        value = getattr(arguments, name)
        if not isinstance(value, kind) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name} is {value!r}; it must be a number of at least {minimum}.")
