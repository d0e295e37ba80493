"""The options of `wavcse eval` and of its reports, and what a recipe says of each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wavcse.data.arguments import CONTEXTS, TEMPORAL_POOLINGS, WORKERS, check_inputs
from wavcse.eval.baselines import BASELINES
from wavcse.eval.tasks import TASKS
from wavcse.eval.tasks.definition import NEEDS_FRAMES, Task, refuse_frames
from wavcse.settings.command import Program
from wavcse.settings.fields import (
    NEEDED,
    CheckedFields,
    check_choice,
    check_fields,
    check_file_name,
    operand,
    option,
    section_from,
)

ABOUT = """\
How good are a model's embeddings? Of the frozen embeddings of the training clips, one linear layer learns classes or
numbers, or PLDA learns speakers; it is chosen on the validation clips and tested once. Writes results/*.json,
predictions/*.parquet, results.md and skipped.csv to --out. A killed run goes on where it was.

The settings may stand in a recipe, with manifests of their own for some tasks, and two instances of one task; options win:

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

Exit codes: 0 done, 2 refused, 3 done, but some clips could not be used (skipped.csv lists them).
"""
EXAMPLE = (
    "wavcse eval --model runs/quickstart/hub --manifest corpus/metadata.csv --tasks keyword,speaker,emotion "
    "--baselines last_layer,mfcc,majority --out runs/quickstart"
)


JUDGED = [name for name, task in TASKS.items() if task.kind not in NEEDS_FRAMES]


class TaskRequest(NamedTuple):
    """A task with the changes asked for, and the files that it reads."""

    task: Task
    manifests: list[str]
    trials: str | None = None


@dataclass
class TaskSettings(CheckedFields):
    """What a recipe may say of an instance of a task; what it does not say is as the task has it (eval/tasks/)."""

    task: str | None = option(None, "The task, where the instance has another name.", choices=tuple(TASKS))
    title: str = option("", "In tables.")
    manifest: list[str] = option(list, "Tables of clips.")
    trials: str | None = option(None, "Table of trials.")
    label_column: str = option("", "Of the labels.")
    split_column: str = option("", "Of the splits.")
    disjoint_by: str | None = option("", "Column whose values must not be on two sides, such as speaker_id; null = any may.")
    note: str = option("", "Shown under the table.")


def task_request(
    name: str, changes: dict[str, Any] | None, manifests: Sequence[str] | None = None, where: str = ""
) -> TaskRequest:
    """An instance of a task, and its files.

    Args:
        changes: fields of `TaskSettings`.
        manifests: those of --manifest, where there is such an option; used where the changes name none.
        where: begins messages; the place of the instance in the recipe of an evaluation, if not given.

    Raises:
        ValueError: the name cannot name files, or a setting is unknown or not what it must be.
    """
    where = where or f"tasks.{name}"
    check_file_name(f"{where}: the name", name)
    own = section_from(TaskSettings, where, changes)
    check_choice(f"{where}: the task", own.task or name, TASKS)
    task = TASKS[own.task or name]
    if own.disjoint_by == "" and "disjoint_by" in (changes or {}):
        raise ValueError(f"{where}: disjoint_by is ''; it must name a column, or be null.")
    if not (own.manifest or manifests):
        others = "" if manifests is None else ", or --manifest for all tasks"
        raise ValueError(f"{where}: names no manifest; give `manifest: TABLE.csv`{others}.")
    fields: dict[str, Any] = {key: getattr(own, key) for key in ("title", "note", "disjoint_by") if key in (changes or {})}
    if own.split_column:
        fields["split_columns"] = (own.split_column,)
    if own.label_column:
        if len(task.targets) > 1:
            raise ValueError(f"{where}: label_column is for tasks with one label; {task.family} has {task.targets}.")
        fields["targets"] = (own.label_column,)
    return TaskRequest(replace(task, name=name, **fields), own.manifest or list(manifests or ()), own.trials)


def as_tasks(value: Any) -> Any:
    """Name of an instance -> its settings, where the names alone are given."""
    if isinstance(value, str) and not value.startswith("{"):
        value = value.split(",")
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name.strip(): {} for name in value if name.strip()}
    return value


def chosen_tasks(recipe: Any, names: Any) -> Any:
    """The tasks that the command line names, as the recipe has them."""
    known, asked = as_tasks(recipe), as_tasks(names)
    if not isinstance(known, dict) or not isinstance(asked, dict):
        return asked
    return {name: own or known.get(name) for name, own in asked.items()}


@dataclass
class EvalArguments:
    """Settings of one evaluation; `tasks` maps the name of an instance of a task to settings of its own (`TaskSettings`)."""

    model: str | None = option(
        None,
        "wavCSE model (its Python files are run: name only what you trust), or any transformers audio checkpoint, which is "
        "shown by its layer baselines; id@revision names a revision.",
        value="DIR_OR_HUB_ID",
        group="what is judged, on what",
    )
    name: str = option("wavcse", "What tables call the model.", "wavcse, or the name of the checkpoint")
    baselines: list[str] = option(list, f"What to compare with: {', '.join(BASELINES)}.", "none", value="A,B", commas=True)
    temporal_pooling: str | None = option(
        None,
        "Of the layers of a checkpoint that is not a wavCSE model, which has its own.",
        "mean",
        choices=TEMPORAL_POOLINGS,
    )
    context: str | None = option(
        None,
        "What a Whisper checkpoint sees of a clip: the clip at its own length, or windows of 30 s filled up with silence.",
        "clip; a wavCSE model has its own",
        choices=CONTEXTS,
    )
    first_s: float | None = option(
        None, "Embed only so many seconds from the start of every clip.", "all of it", value="S", above=0, below=math.inf
    )
    manifest: list[str] = option(
        list, "CSV or Parquet tables with one row per clip; used by every task whose label column they have.", value="FILE"
    )
    tasks: dict = option(
        dict, f"What to evaluate: {', '.join(JUDGED)}, or names of the recipe's `tasks:`.", value="A,B", chosen=chosen_tasks
    )
    output_dir: str | None = option(
        None,
        "Folder of the results; those of other models and tasks there stay in the table.",
        flag="out",
        value="DIR",
        group="what is left",
    )
    overwrite: bool = option(False, "Compute again what an earlier run with the same settings has left there.")
    note: str = option("", 'Shown under every table, e.g. "upstream with random weights".', value="TEXT")
    seed: int = option(0, "First seed of the probes.", at_least=0, group="how it is done")
    seeds: int = option(1, "Number of probes per task; figures are their mean.", value="K", at_least=1)
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: the GPU if there is one.")
    batch_seconds: float = option(
        60.0, "Seconds of audio per batch; less needs less memory.", value="S", at_least=0.1, below=math.inf
    )
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)

    def __post_init__(self):
        self.tasks = as_tasks(self.tasks)
        check_fields(self)
        twice = len({str(name) for name in self.tasks}) < len(self.tasks)
        if twice:
            raise ValueError(f"tasks: two of the names {list(map(str, self.tasks))} are the same.")
        self.tasks = {str(name): changes or {} for name, changes in self.tasks.items()}
        if not self.tasks:
            raise ValueError(f"No task is given; use --tasks with some of: {', '.join(JUDGED)}.")
        if not self.output_dir:
            raise ValueError("--out is missing: the folder for the results.")
        if not self.model and not self.baselines:
            raise ValueError("Nothing to evaluate: give --model, --baselines or both.")
        check_file_name("name", self.name)
        self.requests()

    def look(self) -> None:
        """ValueError for paths that are not there."""
        check_inputs([table for request in self.requests() for table in request.manifests], self.model)

    def requests(self) -> list[TaskRequest]:
        """Every task with the changes asked for, and its files; ValueError for one that embeddings cannot answer."""
        requests = [task_request(name, changes, self.manifest) for name, changes in self.tasks.items()]
        for task, *_ in requests:
            refuse_frames(task, f"tasks.{task.name}")
        return requests


EVAL = Program("wavcse eval", EvalArguments, ABOUT, EXAMPLE, has_recipe=True, continues=True, look=EvalArguments.look)


@dataclass
class ReportArguments(CheckedFields):
    """Whose report."""

    output_dir: str = operand("Folder that `wavcse eval` wrote.")
    table_only: bool = option(False, "Make results.md only.")


REPORT = Program(
    "wavcse report",
    ReportArguments,
    "Make results.md, report.md, report.html and pictures/ again from the result files, and print the table.",
    "python -m wavcse.eval.report runs/quickstart",
    usage="python -m wavcse.eval.report",
)


@dataclass
class LayerCurvesArguments(CheckedFields):
    """Which models, on which trials."""

    models: dict = option(
        NEEDED,
        "Name -> folder or Hub id: a checkpoint, such as upstream/ of a run, or a wavCSE model (JSON).",
        group="what is shown",
    )
    manifest: str = option(NEEDED, "Table of the clips.", value="FILE")
    trials: str = option(NEEDED, "List of trials beside it, such as `wavcse trials` makes.", value="FILE.csv")
    output_dir: str = option(NEEDED, "Folder of layers.json and pictures/.", flag="out", value="DIR")
    speaker_column: str = option("speaker_id", "Of the speakers, whom the intervals draw.")
    first_s: float | None = option(
        None, "Embed only so many seconds from the start of every clip.", "all of it", value="S", above=0, below=math.inf
    )
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: the GPU if there is one.", group="how it is done")
    batch_seconds: float = option(60.0, "Seconds of audio per batch.", value="S", at_least=0.1, below=math.inf)
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if not self.models:
            raise ValueError("""models is {}; name at least one: '{"before": "ID", "after": "FOLDER"}'.""")
        for name, model in self.models.items():
            check_file_name("a name in models", name)
            if not isinstance(model, str):
                raise ValueError(f"models: {name} is {model!r}; a folder or Hub id is needed.")

    def look(self) -> None:
        """ValueError for paths that are not there."""
        for model in self.models.values():
            check_inputs([self.manifest, self.trials], model)


LAYER_CURVES = Program(
    "wavcse layers",
    LayerCurvesArguments,
    "EER of every layer's mean over time, of one model or of several, such as an upstream before and after a training.",
    """python -m wavcse.eval.layers --models '{"before": "facebook/wav2vec2-base", "after": "runs/mtl/upstream"}' """
    "--manifest corpus/metadata.csv --trials corpus/metadata_trials.csv --out runs/mtl/layers",
    continues=True,
    usage="python -m wavcse.eval.layers",
    look=LayerCurvesArguments.look,
)
