"""The options of `wavcse analyze`: encoders, tasks, analyses. Nothing here loads PyTorch; help comes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from wavcse.analysis.analyses import ANALYSES
from wavcse.data.arguments import CONTEXTS, TEMPORAL_POOLINGS, WORKERS, check_inputs
from wavcse.eval.arguments import TaskRequest, as_tasks, chosen_tasks, task_request
from wavcse.eval.tasks import TASKS
from wavcse.settings.command import Program
from wavcse.settings.fields import CheckedFields, check_choice, check_file_name, option, section_from

ABOUT = """\
What do embeddings hold, in which layer, in which dimensions, and what do they cost? Every analysis runs for every encoder on
every task; all choices are made on the validation clips, and the test clips are predicted once. Writes report.md, report.html,
pictures/, records/*/*.json and skipped.csv to --out. A killed run goes on where it was.

The settings may stand in a recipe; options win:

  output_dir: runs/analysis
  every: 2
  encoders:
    tiny: {model: .}
    untrained: {model: ., untrained: true}
    whisper: {model: openai/whisper-tiny.en, optional: true}
    mfcc:
  tasks:
    word_en: {task: keyword, language: en, manifest: words/metadata.csv}
    emotion: {language: en, manifest: emotions.csv}
  analyses:
    layers: {weighted_sum: false}
    sequence: {tasks: [emotion]}

Exit codes: 0 done, 2 refused, 3 done, but some clips could not be used (skipped.csv lists them).
"""
EXAMPLE = (
    "wavcse analyze --encoders facebook/hubert-base-ls960,mfcc --manifest corpus/metadata.csv --label emotion --out runs/a"
)
KINDS = ("classification", "regression")
REPORTED = "what was analysed"  # the section of the report that every study has


@dataclass
class TableSettings(CheckedFields):
    """What a table or figure of a paper is made of, for --dry_run."""

    section: str = option(REPORTED, "Of the report.", choices=(*ANALYSES, REPORTED))
    tasks: list[str] = option(list, "Which of the tasks it shows.")
    encoders: dict = option(dict, "Task -> the encoders that it shows.", "all of them")
    layers: dict = option(dict, "Task -> encoder -> the layer that the paper took; here validation chooses.")
    paper_layers: str = option("", "The table whose `layers` hold here, too.")
    missing: str = option("", "Data and models that it needs and cannot be had.")


@dataclass
class EncoderSettings(CheckedFields):
    """What a recipe may say of an encoder."""

    model: str | None = option(
        None,
        "wavCSE model, transformers audio checkpoint (folder or Hub id), model of `wavcse words`, mfcc, or mfcc_paper (23 "
        "with deltas, five frames to either side).",
        "the name",
    )
    layers: list[int] = option(list, "Which layers are kept.", "all, or every so many", at_least=0)
    words: str | None = option(
        None, "Of a model of `wavcse words`: manifest with the times of words; an utterance is then its words in order."
    )
    language: str = option("", "That it has learnt from; `discrimination` sets it beside the languages of the tasks.")
    untrained: bool = option(False, "Give it random weights: what its shape knows without training.")
    optional: bool = option(False, "Leave it out with a word where it is not on this machine.")
    made_by: str = option("", "The command that makes it; --dry_run says so where it is missing.")
    temporal_pooling: str | None = option(None, "As of `wavcse eval`.", choices=TEMPORAL_POOLINGS)
    context: str | None = option(None, "As of `wavcse eval`.", choices=CONTEXTS)


def as_named(value: Any) -> Any:
    """Name -> settings, where the names alone are given, with commas between them or as a list."""
    named = as_tasks(value)
    return {name: {} if own is None else own for name, own in named.items()} if isinstance(named, dict) else named


def chosen_encoders(recipe: Any, line: Any) -> Any:
    """The encoders that the command line names, with what the recipe says of them and what the command line changes."""
    known, asked = as_named(recipe), as_named(line)
    if not (isinstance(known, dict) and isinstance(asked, dict)):
        return asked
    return {name: {**(known.get(name) or {}), **own} if isinstance(own, Mapping) else own for name, own in asked.items()}


@dataclass
class AnalyzeArguments(CheckedFields):
    """Settings of one study."""

    encoders: dict = option(
        dict,
        "wavCSE models (their Python files are run: name only what you trust), transformers audio checkpoints, mfcc; or names "
        "of the recipe's `encoders:`.",
        value="A,B",
        group="what is analysed, on what",
        chosen=chosen_encoders,
    )
    tasks: dict = option(
        dict,
        "Tasks of `wavcse eval`, or names of the recipe's `tasks:`.",
        "those of --label",
        value="A,B",
        chosen=chosen_tasks,
    )
    manifest: list[str] = option(list, "Tables with one row per clip, of every task that names none.", value="FILE")
    label: list[str] = option(list, "Label columns; each is a task.", value="COLUMN", commas=True)
    language: str = option("", "Of the tasks that name none.")
    analyses: dict = option(
        dict,
        f"Which: {', '.join(ANALYSES)}.",
        "all whose libraries are installed",
        value="A,B",
        chosen=chosen_encoders,
    )
    tables: dict = option(
        dict, "Tables and figures of a paper, and what they are made of: shown by --dry_run (JSON).", value="MAPPING"
    )
    every: int = option(1, "Keep every so many layers, and the last.", value="K", at_least=1)
    first_s: float | None = option(
        None, "Only so many seconds from the start of every clip.", "all of it", value="S", above=0, below=math.inf
    )
    output_dir: str = option("runs/analysis", "Folder of the report.", flag="out", value="DIR", group="what is left")
    overwrite: bool = option(False, "Compute again what an earlier run has left there.")
    dry_run: bool = option(False, "Say what would be done with what, and what is missing; compute nothing.")
    disk_gb: float = option(
        4.0, "What the kept layers may take; more is refused before anything is computed.", value="GB", above=0
    )
    note: str = option("", "Shown in the report.", value="TEXT")
    seed: int = option(0, "Of probes, draws and untrained weights.", at_least=0, group="how it is done")
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto: the GPU if there is one.")
    batch_seconds: float = option(60.0, "Seconds of audio per batch.", value="S", at_least=0.1, below=math.inf)
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)

    def __post_init__(self):
        self.encoders, self.tasks, self.analyses = map(as_named, (self.encoders, self.tasks, self.analyses))
        super().__post_init__()
        if not self.encoders:
            raise ValueError("encoders is not given; name some, such as --encoders facebook/hubert-base-ls960,mfcc.")
        if not (self.tasks or self.label):
            raise ValueError("No task is given; use --label with a column of labels, or --tasks.")
        if not self.output_dir:
            raise ValueError("--out is empty: it must be the folder for the report.")
        for name in self.analyses:
            check_choice("an analysis", name, ANALYSES)
        if self.first_s is not None and any(own.words for own in self.encoder_settings().values()):
            raise ValueError(
                "first_s cuts utterances, and an encoder with `words` knows whole ones only; leave one of both out."
            )
        self.requests()
        self.languages()
        self.table_settings()

    def look(self) -> None:
        """ValueError for paths that are not there."""
        if self.dry_run:
            return
        check_inputs([table for request in self.requests().values() for table in request.manifests], None)
        for own in self.encoder_settings().values():
            if not own.optional:
                check_inputs([own.words] if own.words else [], own.model)

    def encoder_settings(self) -> dict[str, EncoderSettings]:
        """Name of every encoder -> its settings, `model` always named."""
        found = {}
        for name, changes in self.encoders.items():
            own = section_from(EncoderSettings, f"encoders.{name}", changes)
            if changes:
                check_file_name("encoders: the name", name)
            found[name] = replace(own, model=own.model or name)
        return found

    def table_settings(self) -> dict[str, TableSettings]:
        """Table or figure -> what it is made of, its layers with it.

        Raises:
            ValueError: it names a task, an encoder or a table that is none of these, or a layer that is not kept.
        """
        found = {name: section_from(TableSettings, f"tables.{name}", own) for name, own in self.tables.items()}
        for name, own in found.items():
            if own.paper_layers:
                check_choice(f"tables.{name}: paper_layers", own.paper_layers, found)
                own.layers = own.layers or found[own.paper_layers].layers
            self._check_table(name, own)
        return found

    def _check_table(self, name: str, own: TableSettings) -> None:
        encoders = self.encoder_settings()
        for task in (*own.tasks, *own.encoders, *own.layers):
            check_choice(f"tables.{name}: a task", task, self.tasks)
        for encoder in (one for named in (*own.encoders.values(), *own.layers.values()) for one in named):
            check_choice(f"tables.{name}: an encoder", encoder, encoders)
        for task, layers in own.layers.items():
            for encoder, layer in layers.items():
                if encoders[encoder].layers and layer not in encoders[encoder].layers:
                    raise ValueError(f"tables.{name}: layers.{task}: {encoder} does not keep layer {layer}.")

    def requests(self) -> dict[str, TaskRequest]:
        """Name of every task -> the task with the changes asked for, and its files.

        Raises:
            ValueError: as `task_request`, two tasks share a name, or a task has neither classes nor numbers.
        """
        twice = set(self.tasks) & set(self.label)
        if twice:
            raise ValueError(f"label names {min(twice)!r}, and so does tasks.")
        asked = {**self.tasks, **{column: _task_of_column(column) for column in self.label}}
        found = {}
        for name, changes in asked.items():
            if not isinstance(changes, Mapping):
                raise ValueError(f"tasks.{name}: is {changes!r}; it must hold fields of the form `name: value`.")
            changes = {key: value for key, value in changes.items() if key != "language"}
            found[name] = task_request(name, changes, self.manifest)
            if (kind := found[name].task.kind) not in KINDS:
                raise ValueError(f"tasks.{name}: is a {kind} task; these analyses read {' or '.join(KINDS)}.")
        return found

    def languages(self) -> dict[str, str]:
        """Task -> language; empty where none is named."""
        of_tasks = {name: str(changes.get("language", self.language)) for name, changes in self.tasks.items()}
        return {**of_tasks, **dict.fromkeys(self.label, self.language)}


def _task_of_column(column: str) -> dict[str, Any]:
    """Settings of the task that a label column is of: the known one, or else one of classes, split by `split`."""
    known = next((name for name, task in TASKS.items() if task.targets == (column,) and task.kind in KINDS), None)
    if known:
        return {"task": known}
    return {"task": "keyword", "title": column, "label_column": column, "split_column": "split"}


ANALYZE = Program(
    "wavcse analyze", AnalyzeArguments, ABOUT, EXAMPLE, has_recipe=True, continues=True, look=AnalyzeArguments.look
)
