"""The comparison table, made from the result files: rows, what can be told apart, notes; no figure in it is typed by hand.

Which encoders cannot be told from the best of a row, a paired bootstrap says, on the predictions that the evaluation kept.
Both encoders meet the same resamples of speakers (or clips), so what is hard about a speaker is hard for both and leaves
the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from wavcse.data.corpus_facts import PARTIAL
from wavcse.eval.baselines import BASELINES
from wavcse.eval.metrics import METRICS, UNITS, paired_interval
from wavcse.eval.results import Measured, Result, TaskRecord, predictions_path
from wavcse.eval.tasks import TASKS
from wavcse.reports import page

PAPERS_COLUMN = "paper: wavCSE; its best baseline"


def markdown_table(records: Sequence[Result], comparisons: Sequence[Comparison] = ()) -> str:
    """Tasks x encoders: primary metric, 95 % interval and n; the best of a row in bold, what is not told from it marked.

    Args:
        comparisons: of `compare`; an encoder that is in none of them is shown without a mark.
    """
    records = [record.with_texts(page.inert) for record in records]
    rows, encoders = rows_of(records), encoders_of(records)
    marks = {(own.row, own.other): own.mark for own in comparisons}
    has_paper = any(row.published for row in rows)
    lines = []
    for row in rows:
        line = [row.title, metric_words(row.primary, row.figure(row.best[0])), size_words(row)]
        for encoder in encoders:
            line.append(_cell(row, encoder, marks.get((row.name, encoder), "")) if encoder in row.records else "–")
        lines.append([*line, *([_papers_cell(row)] if has_paper else [])])
    columns = ["task", "metric", "test split", *encoders, *([PAPERS_COLUMN] if has_paper else [])]
    notes = [f"- {note}" for note in notes_of(rows, comparisons)]
    return "\n".join([page.markdown_table(columns, lines), "", *notes]) + "\n"


def _cell(row: Row, encoder: str, mark: str) -> str:
    figure = row.figure(encoder)
    value = shown(figure.value, row.unit)
    return (f"**{value}**" if encoder in row.best else f"{value}{mark}") + shown_interval(figure.interval, figure.unit)


def _papers_cell(row: Row) -> str:
    """The paper's figure, and that of the best of the models that it compares with."""
    if not row.published:
        return ""
    baselines, value = row.published["baselines"], shown(row.published["paper"], row.unit)
    if not baselines:
        return value
    name = (max if row.is_greater_better else min)(baselines, key=baselines.get)
    return f"{value}; {name} {shown(baselines[name], row.unit)}"


# ---- rows, and their figures in words ----


ARROWS = {True: "↑", False: "↓"}


class Row:
    """What was found on one target: a result per encoder, in the order of the table's columns.

    Attributes:
        records: encoder -> result.
        first: the result of the first encoder; `task` is its description of the task, `name` and `title` are the row's.
        primary: the metric that decides which encoder is best, with its `unit` and its direction (`is_greater_better`).
        best: the encoders with the best figure: one, or several that are equal.
        data: name of the tested corpus, or, where the manifests do not say it, the folders that they lie in.
        is_mixed: whether the encoders were tested on different data, so that their figures cannot be compared.
        published: the paper's corpus and figures where the data is all of that corpus, and no stand-in; else empty.
        is_split_as_published: whether the protocol is the one that the task compares with the paper; a corpus has several.

    Raises:
        ValueError: the results are of different kinds or have different primary metrics.
    """

    def __init__(self, records: Mapping[str, Result]):
        self.records, self.first = dict(records), next(iter(records.values()))
        self.task, self.primary = self.first.task, self.first.primary
        self.name, self.title = self.task.name, self.task.title
        if len({(own.task.kind, own.primary) for own in records.values()}) > 1:
            raise ValueError(f"results of {self.name}: the encoders differ in kind or primary metric; evaluate them again.")
        self.unit, self.is_greater_better = self.figure(next(iter(records))).unit, METRICS[self.primary].greater_is_better
        values = {encoder: self.figure(encoder).value for encoder in records}
        best = (max if self.is_greater_better else min)(values.values())
        self.best = [encoder for encoder, value in values.items() if value == best]
        folders = dict.fromkeys(PurePath(manifest["path"]).parent.name for manifest in self.first.manifests)
        self.data = self.task.corpus or ", ".join(folders)
        tested = [
            (own.counts, sorted(m["sha256"] for m in own.manifests), own.trials_sha256, own.first_s)
            for own in records.values()
        ]
        self.is_mixed = any(other != tested[0] for other in tested)
        benchmark, protocols = self.task.benchmark or {}, self.task.protocols
        is_same = self.task.corpus == benchmark.get("corpus") and self.primary == benchmark.get("metric")
        is_whole = not any(protocol.endswith(PARTIAL) for protocol in protocols)
        self.published = benchmark if is_same and is_whole else {}
        self.is_split_as_published = protocols == [benchmark.get("split", "").partition(":")[0]]

    def figure(self, encoder: str) -> Measured:
        """Value, interval, direction and unit of an encoder's primary metric."""
        return self.records[encoder].metrics[self.primary]


def rows_of(records: Sequence[Result]) -> list[Row]:
    """Group records into rows: tasks in the order of `TASKS`, their targets in theirs, encoders before baselines.

    Raises:
        ValueError: as `Row`.
    """
    order, encoders = list(TASKS), encoders_of(records)

    def place(task: TaskRecord) -> tuple:
        targets = TASKS[task.task].targets if task.task in TASKS else ()
        target = targets.index(task.target) if task.target in targets else len(targets)
        return order.index(task.task) if task.task in TASKS else len(order), target, task.name

    cells = {(record.task.name, record.encoder["name"]): record for record in records}
    tasks = {record.task.name: record.task for record in records}
    names = sorted(tasks, key=lambda name: place(tasks[name]))
    return [Row({encoder: cells[name, encoder] for encoder in encoders if (name, encoder) in cells}) for name in names]


def encoders_of(records: Sequence[Result]) -> list[str]:
    """Names of the encoders: models, layers of other checkpoints (`hubert_last_layer`), then the baselines in their order."""
    return sorted({record.encoder["name"] for record in records}, key=_column)


def is_model(name: str) -> bool:
    """Whether an encoder is a model's embedding, and neither a baseline nor layers of another checkpoint."""
    return _column(name)[0] == 0


def _column(name: str) -> tuple:
    if name in BASELINES:
        return 2, "", list(BASELINES).index(name)
    for place, baseline in enumerate(BASELINES):
        if name.endswith(f"_{baseline}"):
            return 1, name.removesuffix(f"_{baseline}"), place
    return 0, name, 0


def shown(value: float | None, unit: str) -> str:
    """A figure in its unit: shares as percent with one decimal, years with two, others with three; – where it is undefined."""
    if value is None or math.isnan(value):  # files of earlier versions have NaN
        return "–"
    scale, decimals, _ = UNITS[unit]
    return f"{round(scale * value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no minus before a zero


def shown_interval(interval: Sequence[float] | None, unit: str) -> str:
    """` [low, high]`, or nothing where there is no interval."""
    return " [{}, {}]".format(*(shown(end, unit) for end in interval)) if interval else ""


def metric_words(name: str, figure: Measured) -> str:
    """`accuracy, % ↑`: the metric of a figure, its unit and its direction."""
    title, words = metric_title(name), UNITS[figure.unit].words
    return f"{title}, {words} {ARROWS[figure.greater_is_better]}" if words else f"{title} {ARROWS[figure.greater_is_better]}"


def metric_title(name: str) -> str:
    """Title of a metric; of a further figure such as `eer_cosine` that of its metric and what it is of: `EER (cosine)`."""
    if name in METRICS:
        return METRICS[name].title
    metric, _, variant = name.partition("_")
    return f"{METRICS[metric].title} ({variant.replace('_', ' ')})" if metric in METRICS else name


def size_words(row: Row) -> str:
    """What the figures of a row are of: "400 clips, 8 speakers", "1,000 trials, 20 speakers"."""
    counts = row.first.counts
    kind, sizes = ("trials", counts.trials) if row.task.kind == "verification" else ("clips", counts.clips)
    speakers = counts.speakers["test"]
    return f"{sizes['test']:,} {kind}" + (f", {speakers:,} speakers" if speakers else "")


# ---- which encoders can be told apart ----


TIED = "†"
UNTESTED = "?"


@dataclass(frozen=True)
class Comparison:
    """The best encoder of a row beside another.

    Args:
        interval: 95 % of metric(best) - metric(other); None with fewer than two units, or where nothing could be compared.
        obstacle: why nothing could be compared; empty otherwise.
    """

    row: str
    best: str
    other: str
    interval: tuple[float, float] | None
    obstacle: str = ""

    @property
    def mark(self) -> str:
        """What stands behind the figure of the other one: `UNTESTED`, `TIED` where it cannot be told from the best, or ""."""
        if self.obstacle:
            return UNTESTED
        return TIED if self.interval is None or self.interval[0] <= 0 <= self.interval[1] else ""


def compare(rows: Sequence[Row], output_dir: str | Path) -> list[Comparison]:
    """The (first) best encoder of every row against each other one.

    Args:
        output_dir: folder of the evaluation; its predictions/ are read.

    Raises:
        ValueError: a file of predictions is not one.
    """
    return [compare_pair(row, row.best[0], other, output_dir) for row in rows for other in row.records if other != row.best[0]]


def compare_pair(row: Row, one: str, other: str, output_dir: str | Path) -> Comparison:
    """Two encoders of a row, the first in the place of the best one. ValueError as `compare`."""
    ours, theirs = (_read_predictions(row, predictions_path(output_dir, row.name, name)) for name in (one, other))
    if ours is None or theirs is None:
        return Comparison(row.name, one, other, None, "no predictions")
    asked = [column for column in ours if not column.startswith("prediction_")]
    if not ours[asked].equals(theirs.reindex(columns=asked)):
        return Comparison(row.name, one, other, None, "other clips")
    return Comparison(row.name, one, other, _difference(row, ours, theirs))


def _read_predictions(row: Row, path: Path) -> pd.DataFrame | None:
    """What one encoder answered, ordered by clips or trials; None where nothing is kept."""
    if not path.exists():
        return None
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"{path}: is not a file of predictions ({' '.join(str(error).split())}); evaluate again.") from error
    is_trials = row.task.kind == "verification"
    names, groups = (["enrolment", "test"], ["group_a", "group_b"]) if is_trials else (["clip_id"], ["group"])
    missing = [column for column in (*names, *groups, "label", "prediction_0") if column not in table]
    if missing:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; evaluate again.")
    return table.sort_values(names, kind="stable", ignore_index=True)


def _difference(row: Row, ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float] | None:
    """Interval of our figure minus theirs, on the same clips or trials."""
    places = {name: place for place, name in enumerate(row.task.classes)}

    def numbers(values: pd.Series) -> np.ndarray:  # classes by their place; everything else as it is
        if row.task.kind != "classification" or pd.api.types.is_numeric_dtype(values):
            return values.to_numpy()
        found = values.map(places)
        if found.isna().any():
            raise ValueError(f"predictions of {row.name}: {values[found.isna()].iloc[0]!r} is none of the task's classes.")
        return found.to_numpy(dtype=np.int64)

    def runs(table: pd.DataFrame) -> list[np.ndarray]:
        columns = [column for column in table if column.startswith("prediction_")]
        return [numbers(table[column]) for column in sorted(columns, key=lambda c: int(c.removeprefix("prediction_")))]

    groups = ours[[column for column in ours if column.startswith("group")]].to_numpy()
    groups = groups if groups.shape[1] == 2 else groups[:, 0]
    seed = row.first.interval.seed
    return paired_interval(METRICS[row.primary], numbers(ours["label"]), runs(ours), runs(theirs), groups, seed)


# ---- notes below the table ----


FEW_SPEAKERS = 10  # below this a bootstrap over speakers is known to be too narrow
READING = (
    "Primary metric of each task [95 % bootstrap interval]; ↑ higher is better, ↓ lower is better; the best of a row in bold."
)
FROZEN = (
    "Embeddings are frozen; what is trained on them (a linear layer, PLDA) and every choice (learning rate, epoch, layer, LDA "
    "size) sees the training and validation splits only."
)
FINETUNED = "fine-tuned"  # `probe.kind` of a record whose encoder was trained on the task, and did not stay as it was


def notes_of(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """The notes, one sentence or two each, without bullets."""
    notes = [*_reading_notes(rows, comparisons), *_papers_notes(rows), *_interval_notes(rows), *_fit_notes(rows)]
    notes += [f"`{name}`: {origin}." for name, origin in origins(rows).items()]
    beginnings = _titles_by(rows, lambda row: shown_seconds({record.first_s for record in row.records.values()}))
    notes += [f"Only the first {seconds} of every clip: {', '.join(titles)}." for seconds, titles in beginnings.items()]
    for row in rows:
        skipped = max(record.skipped_clips for record in row.records.values())
        notes += [f"{row.title}: {skipped} clips were left out, see skipped.csv."] if skipped else []
        notes += [f"{row.title}: the encoders were tested on different clips; do not compare them."] if row.is_mixed else []
    said = dict.fromkeys(record.note for row in rows for record in row.records.values() if record.note)
    return [*notes, *(f"Note: {note}" for note in said)]


def _reading_notes(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """How to read the table and its marks, and whether encoders stayed as they were or were trained on the task."""
    kinds = [(name, record.probe.kind) for row in rows for name, record in row.records.items()]
    reading = [READING, *([FROZEN] if any(kind != FINETUNED for _, kind in kinds) else [])]
    if tuned := ", ".join(dict.fromkeys(f"`{name}`" for name, kind in kinds if kind == FINETUNED)):
        reading.append(
            f"{tuned}: the whole encoder was fine-tuned on the training split, under the mean over its frames and one linear "
            "layer; the validation split chose the step."
        )
    notes = [" ".join(reading)]
    obstacles = [own.obstacle for own in comparisons if own.obstacle]
    if num_tested := len(comparisons) - len(obstacles):
        notes.append(
            f"{TIED} not distinguishable from the best: the 95 % interval of the difference, by paired bootstrap, holds zero, "
            f"or there are too few speakers for one. {num_tested} differences were looked at, without a correction for their "
            "number or for the best having been found on the same clips: of encoders that are as good, one in twenty or more "
            "goes unmarked."
        )
    if obstacles:
        notes.append(f"{UNTESTED} not tested against the best ({', '.join(sorted(set(obstacles)))}).")
    return notes


def _papers_notes(rows: Sequence[Row]) -> list[str]:
    published = [row for row in rows if row.published]
    notes = ["The paper's figures stand only where the test data is the paper's corpus."] if published else []
    for row in published:
        protocols = ", ".join(row.task.protocols) or "unnamed"
        split = f"; split: {row.published['split_source']}" if row.is_split_as_published else ""
        data = f"{row.published['title']}, protocol {protocols}{split}"
        notes.append(f"{row.title}: {data}; figures: {row.published['origin']}.")
    return notes


def _interval_notes(rows: Sequence[Row]) -> list[str]:
    """What intervals resample, where there is too little of it, and of how many seeds figures are the mean."""
    units = _titles_by(rows, lambda row: row.first.interval.unit)
    notes = [f"Intervals resample {unit}s: {', '.join(titles)}." for unit, titles in units.items()]
    for row in rows:
        interval = row.first.interval
        if interval.units < 2:
            notes.append(f"{row.title}: one test {interval.unit} only, so there is no interval.")
        elif interval.unit != "clip" and interval.units < FEW_SPEAKERS:
            notes.append(f"{row.title}: only {interval.units} test speakers, so the interval is too narrow.")
    probes = [record.probe for row in rows for record in row.records.values()]
    num_seeds = max((len(probe.runs) for probe in probes if probe.runs is not None), default=1)
    if num_seeds > 1:
        words = "probe seeds" if any(probe.kind != FINETUNED for probe in probes) else "seeds"
        notes.append(f"Figures are means over {num_seeds} {words}.")
    return notes


def _fit_notes(rows: Sequence[Row]) -> list[str]:
    """Whose speakers may be known from training and why, and what validation chose: layers, sizes of an LDA."""

    def rule(row: Row) -> str:
        words = "" if row.task.disjoint_by else "test speakers are not held out of training"
        return ": ".join(part for part in (words, row.task.note) if part)

    notes = [f"{', '.join(titles)}: {words.rstrip('.')}." for words, titles in _titles_by(rows, rule).items()]
    layers: dict[str, list[str]] = {}
    sizes: list[str] = []
    for row in rows:
        for name, record in row.records.items():
            if record.probe.candidate is not None:
                layers.setdefault(name, []).append(f"{row.title} {record.probe.candidate}")
        chosen = [f"`{name}` {own.probe.lda_size}" for name, own in row.records.items() if own.probe.lda_size]
        if chosen:
            sizes.append(f"{row.title}: PLDA, after an LDA to the size that validation chose: {', '.join(chosen)}.")
    notes += [f"`{name}`, layers that validation chose: {', '.join(words)}." for name, words in layers.items()]
    return notes + sizes


def origins(rows: Sequence[Row]) -> dict[str, str]:
    """Encoder -> where it comes from: model, layers, revision, hash of its weights, size."""
    found = {}
    for encoder in {name: own.encoder for row in rows for name, own in row.records.items()}.values():
        parts = {
            "model": "{}",
            "package": "{}",
            "licence": "licence: {}",
            "layer": "layer {}",
            "layers": "layers {}",
            "temporal_pooling": "pooled over time by {}",
            "context": "context {}",
            "revision": "revision {}",
            "weights_sha256": "weights sha256 {:.12}",
        }
        words = [text.format(encoder[part]) for part, text in parts.items() if part in encoder]
        size = encoder["embedding_size"]
        words.append(f"{size} dimensions" if size else "the same answer to every clip")
        found[encoder["name"]] = ", ".join(words)
    return found


def shown_seconds(lengths: set[float | None]) -> str:
    """`2 s`, several joined; empty where there are none."""
    return ", ".join(f"{length:g} s" for length in sorted(lengths - {None}))


def _titles_by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[str]]:
    """Key -> titles of the rows that have it, in order; rows with an empty one are left out."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if key(row):
            groups.setdefault(key(row), []).append(row.title)
    return groups
