"""What is known of the weights in the root of this repository: results/NAME, checked to be about exactly these weights.

results/*__*.json, results.md    what `wavcse eval` wrote
pretraining_1.json, _2, ...      results of `pretrain_accelerate.py`, stage by stage; none where the upstream is another's
phase1.json                      result of `train_accelerate.py`
data.json                        what they were trained on, and whose upstream it is (`tools/training_data.py`)

NAME is the model's without "wavcse-", as the header of README.md has it among its tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavcse.data.files import read_result
from wavcse.hub.source import NAMED, TRAINING_RESULT, PushSource, name_of_root, read_source, results_of
from wavcse.tools.training_data import PERMISSIVE, UPSTREAM

TABLE, DATA = "results.md", "data.json"
PRETRAINING = "pretraining_{}.json"
PRETRAINING_FIELDS = (
    "last",
    "steps",
    "hours",
    "labels",
    "train_seconds",
    "num_parameters",
    "num_processes",
    "device",
    "config",
)
ROW_FIELDS = ("corpus", "title", "language", "licence", "attribution", "note", "hours", "speakers", "has_unnamed_speakers")
MARKS = re.compile(r"(?<=[\d.])[†?]")  # behind figures, made of predictions that are not kept


@dataclass(frozen=True)
class RootSource:
    """The root model with its results.

    Attributes:
        name: what it is called.
        push: model, evaluation and training, as for every push.
        table: the comparison table of the evaluation, as Markdown, and the notes below it.
        notes: see `table`.
        stages: results of pre-training, in order; none where the upstream is another's.
        data: what was trained on.
    """

    name: str
    push: PushSource
    table: str
    notes: str
    stages: list[dict[str, Any]]
    data: dict[str, Any]


def read_root(root: Path, name: str | None = None) -> RootSource:
    """Read the root model and its results.

    Args:
        name: of the model; if not given, what README.md says.

    Raises:
        ValueError: the model has no name, weights or results are missing or broken, or results are of other weights.
    """
    name = name or name_of_root(root)
    if name is None:
        raise ValueError(f"{root / 'README.md'}: no tag of its header is a name such as {NAMED}tiny; install a model.")
    results = root / results_of(name)
    push = read_source(root, results)
    if push.training is None:
        raise ValueError(f"{results / TRAINING_RESULT}: there is no such file; install the model with `wavcse.tools.install`.")
    refuse_stale(push)
    table, notes = read_table(results / TABLE, push)
    return RootSource(name, push, table, notes, _read_stages(results), read_data(results / DATA))


def refuse_stale(push: PushSource) -> None:
    """ValueError if a record is of the model, by its name or place, and yet of other weights, or if a task lacks it."""
    names, places = ({record.encoder.get(field) for record in push.own} for field in ("name", "model"))
    for record in push.records:
        encoder, task = record.encoder, record.task.name
        is_own = encoder["name"] in names or encoder.get("model") in places - {None}
        if is_own and encoder.get("weights_sha256") != push.sha256:
            raise ValueError(
                f"{push.results}: {task} by {encoder['name']} was measured with other weights than those of {push.model} "
                f"(sha256 {push.sha256[:12]}); evaluate this model again."
            )
    lacking = sorted({r.task.name for r in push.records} - {r.task.name for r in push.own})
    if lacking:
        raise ValueError(f"{push.results}: {', '.join(lacking)} was not measured with the model itself; evaluate it there.")


def read_table(path: Path, push: PushSource) -> tuple[str, str]:
    """The evaluation's table as it was written, with its marks, and its notes; its figures are proven to be the records'."""
    from wavcse.eval.table import markdown_table

    try:
        table, _, notes = path.read_text(encoding="utf-8").strip().partition("\n\n")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); install the model with `wavcse.tools.install`."
        ) from error
    is_of_these = MARKS.sub("", table) == markdown_table(push.records).partition("\n\n")[0]
    if not is_of_these or push.sha256[:12] not in notes:
        raise ValueError(
            f"{path}: is not the table of the results beside it; run `python -m wavcse.eval.report` in the folder of the "
            "evaluation, and install the model from there."
        )
    return table, notes


def _read_stages(results: Path) -> list[dict[str, Any]]:
    stages = []
    while (path := results / PRETRAINING.format(len(stages) + 1)).is_file():
        stages.append(read_stage(path))
    return stages


def read_stage(path: Path) -> dict[str, Any]:
    """The result of a pre-training run; ValueError if it is not that."""
    return read_result(path, PRETRAINING_FIELDS, "the result of a pre-training", "Pre-train again with this version.")


def read_data(path: Path) -> dict[str, Any]:
    """What `tools/training_data.py` wrote; ValueError if it is not that, or names a licence that is not permissive."""
    remedy = "Count the training data again with `wavcse.tools.training_data`."
    data = read_result(path, ("recipes", "rows"), "a count of training data", remedy)
    for row in data["rows"]:
        missing = [field for field in ROW_FIELDS if field not in row]
        if missing:
            raise ValueError(f"{path}: a row lacks {', '.join(missing)}. {remedy}")
        if row["licence"] not in PERMISSIVE:
            raise ValueError(f"{path}: {row['corpus']} is under {row['licence']!r}, which is not permissive.")
    missing = [field for field in UPSTREAM if field not in data.get("upstream", UPSTREAM)]
    if missing:
        raise ValueError(f"{path}: upstream lacks {', '.join(missing)}. {remedy}")
    return data
