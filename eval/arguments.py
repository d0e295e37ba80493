"""The command line of `wavcse eval`: options, a YAML file with the same names, or both (an option wins)."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from wavcse.data.arguments import TEMPORAL_POOLINGS, WORKERS, worker_count
from wavcse.eval.tasks import TASKS
from wavcse.eval.tasks.definition import Task
from wavcse.settings.recipes import read_recipe

DESCRIPTION = """\
How good are a model's embeddings? Of the frozen embeddings of the training clips, one linear layer learns classes or
numbers, or PLDA learns speakers; it is chosen on the validation clips and tested once. Writes results/*.json,
predictions/*.parquet, results.md and skipped.csv to --out. A killed run goes on where it was.
"""
EPILOG = """\
example:
  python -m wavcse.eval --model runs/quickstart/hub --manifest corpus/metadata.csv \\
      --tasks keyword,speaker,emotion --baselines last_layer,mfcc,majority --out runs/quickstart

the same as a file, with manifests of their own for some tasks, and two instances of one task:
  python -m wavcse.eval eval.yaml --seeds 5

  # eval.yaml
  model: runs/quickstart/hub
  output_dir: runs/quickstart
  baselines: [last_layer, mfcc, majority]
  manifest: corpus/metadata.csv
  tasks:
    keyword:
    keyword_ar: {task: keyword, title: "Keyword spotting (ar)", manifest: arabic/metadata.csv}
    emotion: {manifest: [a.csv, b.csv], label_column: emotion, split_column: split_er}
    verification: {manifest: sv/metadata.csv, trials: sv/trials.csv}
    dialect: {manifest: timit.csv, disjoint_by: null, note: speakers are on both sides}

exit code: 0 = done; 2 = wrong option or unsound data, see the message; 3 = done, but some clips could not be used
(skipped.csv lists them)
"""
TASK_FIELDS = ("task", "title", "manifest", "trials", "label_column", "split_column", "disjoint_by", "note")
NAME = re.compile(r"[\w.-]+")


class TaskRequest(NamedTuple):
    """A task with the changes asked for, and the files that it reads."""

    task: Task
    manifests: list[str]
    trials: str | None = None


@dataclass
class EvalArguments:
    """Settings of one evaluation; `tasks` maps the name of an instance of a task to settings of its own (`TASK_FIELDS`)."""

    model: str | None = None
    name: str = "wavcse"
    manifest: list[str] = field(default_factory=list)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    output_dir: str | None = None
    baselines: list[str] = field(default_factory=list)
    temporal_pooling: str | None = None
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    batch_seconds: float = 60.0
    workers: int | Literal["auto"] = "auto"
    note: str = ""
    overwrite: bool = False

    def requests(self) -> list[TaskRequest]:
        """Every task with the changes asked for, and its files."""
        return [self._request(name, changes) for name, changes in self.tasks.items()]

    def _request(self, name: str, changes: dict[str, Any]) -> TaskRequest:
        task = _family(name, changes)
        manifests = _as_list(changes.get("manifest"), f"tasks.{name}: manifest") or self.manifest
        if not manifests:
            raise ValueError(f"Task {name!r} has no manifest; give --manifest.")
        fields = {key: changes[key] for key in ("title", "note", "disjoint_by") if key in changes}
        if "split_column" in changes:
            fields["split_columns"] = (changes["split_column"],)
        if "label_column" in changes:
            if len(task.targets) > 1:
                raise ValueError(f"tasks.{name}: label_column is for tasks with one label; {task.family} has {task.targets}.")
            fields["targets"] = (changes["label_column"],)
        return TaskRequest(replace(task, name=name, **fields), manifests, changes.get("trials"))


def _family(name: str, changes: dict[str, Any]) -> Task:
    unknown = sorted(set(changes) - set(TASK_FIELDS))
    if unknown:
        raise ValueError(f"tasks.{name}: unknown settings {unknown}; allowed: {', '.join(TASK_FIELDS)}.")
    for key, value in changes.items():
        if key not in ("manifest", "disjoint_by") and not isinstance(value, str):
            raise ValueError(f"tasks.{name}: {key} is {value!r}; a text is needed.")
        if key == "disjoint_by" and not (value is None or (isinstance(value, str) and value)):
            raise ValueError(f"tasks.{name}: disjoint_by is {value!r}; it must name a column, or be null.")
    return TASKS[changes.get("task", name)]


def parse_arguments(argv: Sequence[str] | None = None) -> EvalArguments:
    """Read the command line (and the YAML file that it names).

    Raises:
        ValueError: an unknown setting, task or value; something needed is missing. The message names it.
    """
    given = vars(_parser().parse_args(argv))
    config = given.pop("config", None)
    settings = read_recipe(config, allowed=[setting.name for setting in fields(EvalArguments)]) if config else {}
    from_file = _as_tasks(settings.pop("tasks", None))
    asked = _as_list(given.pop("tasks", None), "tasks") or list(from_file)
    tasks = {name: from_file.get(name, {}) for name in asked}
    check_tasks(tasks)
    arguments = EvalArguments(**{**settings, **given}, tasks=tasks)
    arguments.manifest = _as_list(arguments.manifest, "manifest")
    arguments.baselines = _as_list(arguments.baselines, "baselines")
    _validate(arguments)
    return arguments


def parse_report(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m wavcse.eval.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.eval.report",
        description="Make results.md, report.md, report.html and pictures/ anew from the result files, and print the table.",
        epilog="Example: python -m wavcse.eval.report runs/quickstart",
    )
    parser.add_argument("output_dir", help="folder that `wavcse eval` wrote")
    parser.add_argument("--table_only", action="store_true", help="make results.md only")
    return parser.parse_args(argv)


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
    add("--model", metavar="DIR_OR_HUB_ID", help="wavCSE model (its Python files are run: name only what you trust), or any "
        "transformers audio checkpoint, which is shown by its layer baselines; id@revision names a revision")  # fmt: skip
    add("--name", help="what tables call the model (default wavcse, or the name of the checkpoint)")
    add("--manifest", nargs="+", metavar="M", help="CSV or Parquet tables with one row per clip; used by every task whose "
        "label column they have")  # fmt: skip
    add("--tasks", metavar="A,B", help=f"tasks to evaluate: {', '.join(TASKS)}")
    add(
        "--out",
        "--output_dir",
        dest="output_dir",
        metavar="DIR",
        help="where results go; results of other models and tasks there stay in the table",
    )
    add(
        "--baselines",
        metavar="A,B",
        help="what to compare with: last_layer, mean_layers, best_layer, mfcc, majority (default none)",
    )
    add("--temporal_pooling", choices=TEMPORAL_POOLINGS, help="of the layers of a checkpoint that is no wavCSE model: "
        "mean over the frames (default), or mean and standard deviation; a wavCSE model has its own")  # fmt: skip
    add("--seed", type=int, help="first seed of the probes (default 0)")
    add("--seeds", type=int, metavar="K", help="number of probes per task; figures are their mean (default 1)")
    add("--device", help="auto (default: the GPU if there is one), cpu, cuda, cuda:1, ...")
    add("--batch_seconds", type=float, help="seconds of audio per batch; less needs less memory (default 60)")
    add("--workers", type=worker_count, metavar="N", help=WORKERS)
    add("--overwrite", action="store_true", help="compute anew what an earlier run with the same settings has left there")
    add("--note", metavar="TEXT", help='shown under every table, e.g. "upstream with random weights"')
    return parser


def _as_list(value: str | Sequence[str] | None, name: str) -> list[str]:
    values = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(entry, str) for entry in values):
        raise ValueError(f"{name} is {value!r}; a text or a list of texts is needed.")
    return [entry.strip() for entry in values if entry.strip()]


def _as_tasks(value: str | Sequence[str] | dict | None) -> dict[str, dict[str, Any]]:
    if isinstance(value, dict):
        tasks = {str(name): changes or {} for name, changes in value.items()}
        if len(tasks) < len(value):
            raise ValueError(f"tasks: two of the names {list(map(str, value))} are the same.")
        return tasks
    return {name: {} for name in _as_list(value, "tasks")}


def check_tasks(tasks: dict[str, dict[str, Any]]) -> None:
    """ValueError unless names can name files, settings are mappings, and the tasks are known."""
    for name, changes in tasks.items():
        if not isinstance(changes, dict):
            raise ValueError(f"tasks.{name}: must hold settings of the form `name: value`.")
        if not NAME.fullmatch(name):
            raise ValueError(f"tasks.{name}: the name names files, so only letters, digits and . _ - are allowed.")
    unknown = sorted({str(changes.get("task", name)) for name, changes in tasks.items()} - set(TASKS))
    if unknown:
        raise ValueError(f"tasks: unknown {unknown}; allowed: {', '.join(TASKS)}.")


def _validate(arguments: EvalArguments) -> None:
    for name in ("model", "name", "output_dir", "device", "note"):
        value = getattr(arguments, name)
        if not isinstance(value, str) and not (value is None and name in ("model", "output_dir")):
            raise ValueError(f"{name} is {value!r}; a text is needed.")
    if not arguments.tasks:
        raise ValueError(f"No task is given; use --tasks with some of: {', '.join(TASKS)}.")
    if not arguments.output_dir:
        raise ValueError("--out is missing: the folder for the results.")
    if not arguments.model and not arguments.baselines:
        raise ValueError("Nothing to evaluate: give --model, --baselines or both.")
    if not NAME.fullmatch(arguments.name):
        raise ValueError(f"name is {arguments.name!r}; it names files, so only letters, digits and . _ - are allowed.")
    if arguments.temporal_pooling not in (None, *TEMPORAL_POOLINGS):
        raise ValueError(f"temporal_pooling is {arguments.temporal_pooling!r}; allowed: {', '.join(TEMPORAL_POOLINGS)}.")
    if not isinstance(arguments.overwrite, bool):
        raise ValueError(f"overwrite is {arguments.overwrite!r}; it must be true or false.")
    if arguments.workers != "auto" and not (type(arguments.workers) is int and arguments.workers >= 1):
        raise ValueError(f'workers is {arguments.workers!r}; it must be a whole number from 1 on, or "auto".')
    for name, kind, minimum in (("seed", int, 0), ("seeds", int, 1), ("batch_seconds", (int, float), 0.1)):
        value = getattr(arguments, name)
        if not isinstance(value, kind) or isinstance(value, bool) or not minimum <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a number of at least {minimum}.")
