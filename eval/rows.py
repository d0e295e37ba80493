"""The rows of the comparison table: the records of one target together, in order, their figures in words.

Result records come from files that anyone may have touched, so what the table and the report read of them is checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from wavcse.data.corpora.corpus import PARTIAL
from wavcse.eval.baselines import BASELINES
from wavcse.eval.metrics import METRICS
from wavcse.eval.tasks import TASKS

NEEDED = {
    "task": (
        "name",
        "task",
        "title",
        "kind",
        "target",
        "classes",
        "metrics",
        "corpus",
        "protocols",
        "benchmark",
        "disjoint_by",
        "note",
    ),
    "encoder": ("name", "embedding_size"),
    "interval": ("unit", "units", "seed", "resamples", "confidence"),
    "counts": ("clips", "speakers"),
}
OTHERS = ("metrics", "probe", "manifests", "seconds", "skipped_clips", "note", "versions", "date", "figures")
DECIMALS = {"percent": 1, "years": 2, "plain": 3}
ARROWS = {True: "↑", False: "↓"}


@dataclass(frozen=True)
class Row:
    """What was found on one target: a record per encoder, in the order of the table's columns."""

    name: str
    records: dict[str, dict]

    @property
    def task(self) -> Mapping:
        """The description of the task, from its first record."""
        return self.first["task"]

    @property
    def first(self) -> dict:
        """The record of the first encoder."""
        return next(iter(self.records.values()))

    @property
    def primary(self) -> str:
        """The metric that decides which encoder is best."""
        return self.task["metrics"][0]

    def figure(self, encoder: str) -> Mapping:
        """Value, interval, direction and unit of an encoder's primary metric."""
        return self.records[encoder]["metrics"][self.primary]

    @property
    def title(self) -> str:
        """Of the row."""
        return self.task["title"]

    @property
    def data(self) -> str:
        """Name of the tested corpus, or, where the manifests do not say it, the folders that they lie in."""
        folders = dict.fromkeys(PurePath(manifest["path"]).parent.name for manifest in self.first["manifests"])
        return self.task["corpus"] or ", ".join(folders)

    @property
    def unit(self) -> str:
        """Of the primary metric: "percent", "years" or "plain"."""
        return self.first["metrics"][self.primary]["unit"]

    @property
    def is_greater_better(self) -> bool:
        """Direction of the primary metric."""
        return METRICS[self.primary].greater_is_better

    @property
    def best(self) -> list[str]:
        """The encoders with the best figure: one, or several that are equal."""
        values = {encoder: self.figure(encoder)["value"] for encoder in self.records}
        best = (max if self.is_greater_better else min)(values.values())
        return [encoder for encoder, value in values.items() if value == best]

    @property
    def is_mixed(self) -> bool:
        """Whether the encoders were tested on different data, so that their figures cannot be compared."""
        tested = [
            (record["counts"], sorted(m["sha256"] for m in record["manifests"]), record.get("trials_sha256"))
            for record in self.records.values()
        ]
        return any(other != tested[0] for other in tested)

    @property
    def published(self) -> Mapping:
        """The paper's corpus and figures, if the data is all of that corpus and not a stand-in of its shape; else empty."""
        benchmark = self.task["benchmark"] or {}
        is_same = self.task["corpus"] == benchmark.get("corpus") and self.primary == benchmark.get("metric")
        is_whole = not any(protocol.endswith(PARTIAL) for protocol in self.task["protocols"])
        return benchmark if is_same and is_whole else {}

    @property
    def is_split_as_published(self) -> bool:
        """Whether the protocol is the one that the task compares with the paper; a corpus has several."""
        named = (self.task["benchmark"] or {}).get("split", "").partition(":")[0]
        return self.task["protocols"] == [named]


def rows_of(records: Sequence[dict]) -> list[Row]:
    """Group records into rows: tasks in the order of `TASKS`, their targets in theirs, encoders before baselines.

    Raises:
        ValueError: a record lacks a field or a figure, or two of a row have different primary metrics.
    """
    for record in records:
        _check(record)
    encoders = encoders_of(records)
    cells = {(record["task"]["name"], record["encoder"]["name"]): record for record in records}
    tasks = {record["task"]["name"]: record["task"] for record in records}
    rows = [
        Row(name, {encoder: cells[name, encoder] for encoder in encoders if (name, encoder) in cells})
        for name in sorted(tasks, key=lambda name: _place(tasks[name]))
    ]
    for row in rows:
        if len({(r["task"]["kind"], r["task"]["metrics"][0]) for r in row.records.values()}) > 1:
            raise ValueError(f"results of {row.name}: the encoders differ in kind or primary metric; evaluate them anew.")
    return rows


def encoders_of(records: Sequence[dict]) -> list[str]:
    """Names of the encoders: models, layers of other checkpoints (`hubert_last_layer`), then the baselines in their order."""
    return sorted({record["encoder"]["name"] for record in records}, key=_column)


def _column(name: str) -> tuple:
    if name in BASELINES:
        return 2, "", list(BASELINES).index(name)
    for place, baseline in enumerate(BASELINES):
        if name.endswith(f"_{baseline}"):
            return 1, name.removesuffix(f"_{baseline}"), place
    return 0, name, 0


def _place(task: Mapping) -> tuple:
    order = list(TASKS)
    known = task["task"] in TASKS
    targets = TASKS[task["task"]].targets if known else ()
    target = targets.index(task["target"]) if task["target"] in targets else len(targets)
    return order.index(task["task"]) if known else len(order), target, task["name"]


def _check(record: Mapping) -> None:
    name = f"results/{record['task']['name']}__{record['encoder']['name']}.json"
    missing = [f"{part}.{field}" for part, fields in NEEDED.items() for field in fields if field not in record.get(part, {})]
    missing += [field for field in OTHERS if field not in record]
    for what in ("task", "encoder"):  # they name pictures too
        if not re.fullmatch(r"[\w.-]+", str(record[what].get("name"))):
            raise ValueError(f"{name}: the {what}'s name must be of letters, digits and . _ -; evaluate anew or remove it.")
    if missing or not record["task"]["metrics"]:
        raise ValueError(f"{name}: lacks {', '.join(missing) or 'names of metrics'}; evaluate anew or remove it.")
    for metric in record["task"]["metrics"]:
        figure = record["metrics"].get(metric) or {}
        is_number = isinstance(figure.get("value", ""), int | float | None)  # null: undefined, as a correlation of constants
        if metric not in METRICS or not is_number:
            raise ValueError(f"{name}: has no figure for the metric {metric!r}; evaluate anew or remove it.")
        if not {"interval", "greater_is_better"} <= set(figure) or figure.get("unit") not in DECIMALS:
            raise ValueError(f"{name}: {metric!r} lacks its interval, direction or unit; evaluate anew or remove it.")
    primary = record["task"]["metrics"][0]
    value = record["metrics"][primary]["value"]
    if value is None or not math.isfinite(value):
        raise ValueError(f"{name}: {primary!r} is no finite number; evaluate anew or remove it.")


def shown(value: float | None, unit: str) -> str:
    """A figure in its unit: shares as percent with one decimal, years with two, others with three; – where it is undefined."""
    if value is None or math.isnan(value):  # files of earlier versions have NaN
        return "–"
    scaled = round(100 * value if unit == "percent" else value, DECIMALS[unit])
    return f"{scaled + 0.0:.{DECIMALS[unit]}f}"  # + 0.0: no minus before a zero


def shown_interval(figure: Mapping) -> str:
    """` [low, high]`, or nothing where there is no interval."""
    if not figure["interval"]:
        return ""
    return " [{}, {}]".format(*(shown(end, figure["unit"]) for end in figure["interval"]))


def metric_words(name: str, figure: Mapping) -> str:
    """`accuracy, % ↑`: the metric of a figure, its unit and its direction."""
    words = {"percent": ", %", "years": ", years", "plain": ""}[figure["unit"]]
    return f"{metric_title(name)}{words} {ARROWS[figure['greater_is_better']]}"


def metric_title(name: str) -> str:
    """Title of a metric; of a further figure such as `eer_cosine` that of its metric and what it is of: `EER (cosine)`."""
    if name in METRICS:
        return METRICS[name].title
    metric, _, variant = name.partition("_")
    return f"{METRICS[metric].title} ({variant})" if metric in METRICS else name


def size_words(row: Row) -> str:
    """What the figures of a row are of: "400 clips, 8 speakers", "1,000 trials, 20 speakers"."""
    counts = row.first["counts"]
    kind = "trials" if row.task["kind"] == "verification" else "clips"
    speakers = counts["speakers"]["test"]
    return f"{counts[kind]['test']:,} {kind}" + (f", {speakers:,} speakers" if speakers else "")
