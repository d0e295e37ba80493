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
from wavcse.eval.metrics import METRICS, paired_interval
from wavcse.eval.outcome import Measured
from wavcse.eval.results import Result, TaskRecord, predictions_path
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
    marks = {(own.row, own.other): mark_of(own) for own in comparisons}
    has_paper = any(row.published for row in rows)
    lines = []
    for row in rows:
        cells = [row.task.title, metric_words(row.primary, row.figure(row.best[0])), size_words(row)]
        cells += [_cell(row, encoder, marks.get((row.name, encoder), "")) for encoder in encoders]
        lines.append([*cells, *([_papers_cell(row)] if has_paper else [])])
    columns = ["task", "metric", "test split", *encoders, *([PAPERS_COLUMN] if has_paper else [])]
    notes = [f"- {note}" for note in notes_of(rows, comparisons)]
    return "\n".join([page.markdown_table(columns, lines), "", *notes]) + "\n"


def mark_of(comparison: Comparison) -> str:
    """The mark behind the figure of an encoder that was compared with the best of its row."""
    if comparison.obstacle:
        return UNTESTED
    return "" if comparison.is_distinguishable else TIED


def _cell(row: Row, encoder: str, mark: str) -> str:
    if encoder not in row.records:
        return "–"
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


DECIMALS = {"percent": 1, "years": 2, "plain": 3}
ARROWS = {True: "↑", False: "↓"}


@dataclass(frozen=True)
class Row:
    """What was found on one target: a record per encoder, in the order of the table's columns."""

    name: str
    records: dict[str, Result]

    @property
    def task(self) -> TaskRecord:
        """The description of the task, from its first record."""
        return self.first.task

    @property
    def first(self) -> Result:
        """The record of the first encoder."""
        return next(iter(self.records.values()))

    @property
    def primary(self) -> str:
        """The metric that decides which encoder is best."""
        return self.first.primary

    def figure(self, encoder: str) -> Measured:
        """Value, interval, direction and unit of an encoder's primary metric."""
        return self.records[encoder].metrics[self.primary]

    @property
    def title(self) -> str:
        """Of the row."""
        return self.task.title

    @property
    def data(self) -> str:
        """Name of the tested corpus, or, where the manifests do not say it, the folders that they lie in."""
        folders = dict.fromkeys(PurePath(manifest["path"]).parent.name for manifest in self.first.manifests)
        return self.task.corpus or ", ".join(folders)

    @property
    def unit(self) -> str:
        """Of the primary metric: "percent", "years" or "plain"."""
        return self.first.metrics[self.primary].unit

    @property
    def is_greater_better(self) -> bool:
        """Direction of the primary metric."""
        return METRICS[self.primary].greater_is_better

    @property
    def best(self) -> list[str]:
        """The encoders with the best figure: one, or several that are equal."""
        values = {encoder: self.figure(encoder).value for encoder in self.records}
        best = (max if self.is_greater_better else min)(values.values())
        return [encoder for encoder, value in values.items() if value == best]

    @property
    def is_mixed(self) -> bool:
        """Whether the encoders were tested on different data, so that their figures cannot be compared."""
        tested = [
            (record.counts, sorted(m["sha256"] for m in record.manifests), record.trials_sha256)
            for record in self.records.values()
        ]
        return any(other != tested[0] for other in tested)

    @property
    def published(self) -> Mapping:
        """The paper's corpus and figures, if the data is all of that corpus and not a stand-in of its shape; else empty."""
        benchmark = self.task.benchmark or {}
        is_same = self.task.corpus == benchmark.get("corpus") and self.primary == benchmark.get("metric")
        is_whole = not any(protocol.endswith(PARTIAL) for protocol in self.task.protocols)
        return benchmark if is_same and is_whole else {}

    @property
    def is_split_as_published(self) -> bool:
        """Whether the protocol is the one that the task compares with the paper; a corpus has several."""
        named = (self.task.benchmark or {}).get("split", "").partition(":")[0]
        return self.task.protocols == [named]


def rows_of(records: Sequence[Result]) -> list[Row]:
    """Group records into rows: tasks in the order of `TASKS`, their targets in theirs, encoders before baselines.

    Raises:
        ValueError: two records of a row have different primary metrics.
    """
    encoders = encoders_of(records)
    cells = {(record.task.name, record.encoder["name"]): record for record in records}
    tasks = {record.task.name: record.task for record in records}
    rows = [
        Row(name, {encoder: cells[name, encoder] for encoder in encoders if (name, encoder) in cells})
        for name in sorted(tasks, key=lambda name: _place(tasks[name]))
    ]
    for row in rows:
        if len({(r.task.kind, r.primary) for r in row.records.values()}) > 1:
            raise ValueError(f"results of {row.name}: the encoders differ in kind or primary metric; evaluate them anew.")
    return rows


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


def _place(task: TaskRecord) -> tuple:
    order = list(TASKS)
    known = task.task in TASKS
    targets = TASKS[task.task].targets if known else ()
    target = targets.index(task.target) if task.target in targets else len(targets)
    return order.index(task.task) if known else len(order), target, task.name


def shown(value: float | None, unit: str) -> str:
    """A figure in its unit: shares as percent with one decimal, years with two, others with three; – where it is undefined."""
    if value is None or math.isnan(value):  # files of earlier versions have NaN
        return "–"
    scaled = round(100 * value if unit == "percent" else value, DECIMALS[unit])
    return f"{scaled + 0.0:.{DECIMALS[unit]}f}"  # + 0.0: no minus before a zero


def shown_interval(interval: Sequence[float] | None, unit: str) -> str:
    """` [low, high]`, or nothing where there is no interval."""
    return " [{}, {}]".format(*(shown(end, unit) for end in interval)) if interval else ""


def metric_words(name: str, figure: Measured) -> str:
    """`accuracy, % ↑`: the metric of a figure, its unit and its direction."""
    words = {"percent": ", %", "years": ", years", "plain": ""}[figure.unit]
    return f"{metric_title(name)}{words} {ARROWS[figure.greater_is_better]}"


def metric_title(name: str) -> str:
    """Title of a metric; of a further figure such as `eer_cosine` that of its metric and what it is of: `EER (cosine)`."""
    if name in METRICS:
        return METRICS[name].title
    metric, _, variant = name.partition("_")
    return f"{METRICS[metric].title} ({variant})" if metric in METRICS else name


def size_words(row: Row) -> str:
    """What the figures of a row are of: "400 clips, 8 speakers", "1,000 trials, 20 speakers"."""
    counts = row.first.counts
    kind, sizes = ("trials", counts.trials) if row.task.kind == "verification" else ("clips", counts.clips)
    speakers = counts.speakers["test"]
    return f"{sizes['test']:,} {kind}" + (f", {speakers:,} speakers" if speakers else "")


# ---- which encoders can be told apart ----


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
    def is_distinguishable(self) -> bool:
        """Whether the interval is there and does not hold zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def compare(rows: Sequence[Row], output_dir: str | Path) -> list[Comparison]:
    """The (first) best encoder of every row against each other one.

    Args:
        output_dir: folder of the evaluation; its predictions/ are read.

    Raises:
        ValueError: a file of predictions is not one.
    """
    return [comparison for row in rows for comparison in _compare_row(row, output_dir)]


def _compare_row(row: Row, output_dir: str | Path) -> list[Comparison]:
    best = row.best[0]
    ours = _read(row, predictions_path(output_dir, row.name, best))
    found = []
    for other in row.records:
        if other == best:
            continue
        theirs = _read(row, predictions_path(output_dir, row.name, other))
        obstacle = _obstacle(ours, theirs)
        interval = None if obstacle else _interval(row, ours, theirs)
        found.append(Comparison(row.name, best, other, interval, obstacle))
    return found


def _read(row: Row, path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ValueError(f"{path}: is no file of predictions ({' '.join(str(error).split())}); evaluate anew.") from error
    missing = [column for column in (*_keys(row), "label", "prediction_0") if column not in table]
    if missing:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; evaluate anew.")
    return table.sort_values(_clips(row), kind="stable", ignore_index=True)


def _clips(row: Row) -> list[str]:
    return ["enrolment", "test"] if row.task.kind == "verification" else ["clip_id"]


def _groups(row: Row) -> list[str]:
    return ["group_a", "group_b"] if row.task.kind == "verification" else ["group"]


def _keys(row: Row) -> list[str]:
    return [*_clips(row), *_groups(row)]


def _obstacle(ours: pd.DataFrame | None, theirs: pd.DataFrame | None) -> str:
    if ours is None or theirs is None:
        return "no predictions"
    shared = [column for column in ours.columns if not column.startswith("prediction_")]
    return "" if ours[shared].equals(theirs.reindex(columns=shared)) else "other clips"


def _interval(row: Row, ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float] | None:
    groups = ours[_groups(row)].to_numpy()
    return paired_interval(
        METRICS[row.primary],
        _numbers(row, ours["label"]),
        _runs(row, ours),
        _runs(row, theirs),
        groups if groups.shape[1] == 2 else groups[:, 0],
        row.first.interval.seed,
    )


def _runs(row: Row, table: pd.DataFrame) -> list[np.ndarray]:
    columns = sorted(
        (c for c in table.columns if c.startswith("prediction_")), key=lambda c: int(c.removeprefix("prediction_"))
    )
    return [_numbers(row, table[column]) for column in columns]


def _numbers(row: Row, values: pd.Series) -> np.ndarray:
    """Class names as their place among the classes; everything else as it is."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy()
    places = {name: place for place, name in enumerate(row.task.classes)}
    numbers = values.map(places)
    if numbers.isna().any():
        raise ValueError(f"predictions of {row.name}: {values[numbers.isna()].iloc[0]!r} is none of the task's classes.")
    return numbers.to_numpy(dtype=np.int64)


# ---- notes below the table ----


FEW_SPEAKERS = 10  # below this a bootstrap over speakers is known to be too narrow
TIED = "†"
UNTESTED = "?"
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
    notes = [_reading(rows), *_mark_notes(comparisons), *_papers_notes(rows), *_interval_notes(rows), *_seed_notes(rows)]
    notes += [f"{', '.join(titles)}: {words.rstrip('.')}." for words, titles in _titles_by(rows, _rule_words).items()]
    notes += _layer_notes(rows) + _lda_notes(rows)
    notes += [f"`{name}`: {origin}." for name, origin in origins(rows).items()]
    for row in rows:
        skipped = max(record.skipped_clips for record in row.records.values())
        notes += [f"{row.title}: {skipped} clips were left out, see skipped.csv."] if skipped else []
        notes += [f"{row.title}: the encoders were tested on different clips; do not compare them."] if row.is_mixed else []
    said = dict.fromkeys(record.note for row in rows for record in row.records.values() if record.note)
    return [*notes, *(f"Note: {note}" for note in said)]


def _reading(rows: Sequence[Row]) -> str:
    """How to read the table, and whether encoders stayed as they were or were trained on the task."""
    kinds = [(name, record.probe.kind) for row in rows for name, record in row.records.items()]
    tuned = ", ".join(dict.fromkeys(f"`{name}`" for name, kind in kinds if kind == FINETUNED))
    words = (
        f"{tuned}: the whole encoder was fine-tuned on the training split, under the mean over its frames and one linear "
        "layer; the validation split chose the step."
    )
    is_frozen = any(kind != FINETUNED for _, kind in kinds)
    return " ".join([READING, *([FROZEN] if is_frozen else []), *([words] if tuned else [])])


def origins(rows: Sequence[Row]) -> dict[str, str]:
    """Encoder -> where it comes from: model, revision, hash of its weights, size."""
    return {name: _origin(record.encoder) for row in rows for name, record in row.records.items()}


def _origin(encoder: Mapping) -> str:
    parts = [encoder["model"]] if "model" in encoder else []
    parts += [f"layer {encoder['layer']}"] if "layer" in encoder else []
    parts += [f"layers {encoder['layers']}"] if "layers" in encoder else []
    parts += [f"pooled over time by {encoder['temporal_pooling']}"] if "temporal_pooling" in encoder else []
    parts += [f"revision {encoder['revision']}"] if "revision" in encoder else []
    parts += [f"weights sha256 {encoder['weights_sha256'][:12]}"] if "weights_sha256" in encoder else []
    parts.append(f"{encoder['embedding_size']} dimensions" if encoder["embedding_size"] else "the same answer to every clip")
    return ", ".join(parts)


def _titles_by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[str]]:
    """Key -> titles of the rows that have it, in order; rows with an empty one are left out."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if key(row):
            groups.setdefault(key(row), []).append(row.title)
    return groups


def _mark_notes(comparisons: Sequence[Comparison]) -> list[str]:
    tested = [own for own in comparisons if not own.obstacle]
    notes = []
    if tested:
        notes.append(
            f"{TIED} not distinguishable from the best: the 95 % interval of the difference, by paired bootstrap, holds zero, "
            f"or there are too few speakers for one. {len(tested)} differences were looked at, without a correction for their "
            "number or for the best having been found on the same clips: of encoders that are as good, one in twenty or more "
            "goes unmarked."
        )
    if len(tested) < len(comparisons):
        obstacles = ", ".join(sorted({own.obstacle for own in comparisons if own.obstacle}))
        notes.append(f"{UNTESTED} not tested against the best ({obstacles}).")
    return notes


def _papers_notes(rows: Sequence[Row]) -> list[str]:
    published = [row for row in rows if row.published]
    if not published:
        return []
    notes = ["The paper's figures stand only where the test data is the paper's corpus."]
    for row in published:
        protocols = ", ".join(row.task.protocols) or "unnamed"
        split = f"; split: {row.published['split_source']}" if row.is_split_as_published else ""
        data = f"{row.published['title']}, protocol {protocols}{split}"
        notes.append(f"{row.title}: {data}; figures: {row.published['origin']}.")
    return notes


def _interval_notes(rows: Sequence[Row]) -> list[str]:
    units = _titles_by(rows, lambda row: row.first.interval.unit)
    notes = [f"Intervals resample {unit}s: {', '.join(titles)}." for unit, titles in units.items()]
    for row in rows:
        interval = row.first.interval
        if interval.units < 2:
            notes.append(f"{row.title}: one test {interval.unit} only, so there is no interval.")
        elif interval.unit != "clip" and interval.units < FEW_SPEAKERS:
            notes.append(f"{row.title}: only {interval.units} test speakers, so the interval is too narrow.")
    return notes


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    numbers = [len(r.probe.runs) for row in rows for r in row.records.values() if r.probe.runs is not None]
    is_probed = any(r.probe.kind != FINETUNED for row in rows for r in row.records.values())
    words = "probe seeds" if is_probed else "seeds"
    return [f"Figures are means over {max(numbers)} {words}."] if numbers and max(numbers) > 1 else []


def _rule_words(row: Row) -> str:
    """Whether speakers of the test split may be in the training split, and why; empty where they may not."""
    words = "" if row.task.disjoint_by else "test speakers are not held out of training"
    return ": ".join(part for part in (words, row.task.note) if part)


def _layer_notes(rows: Sequence[Row]) -> list[str]:
    """Which layers an encoder of several candidates was read from."""
    chosen: dict[str, list[str]] = {}
    for row in rows:
        for name, record in row.records.items():
            if record.probe.candidate is not None:
                chosen.setdefault(name, []).append(f"{row.title} {record.probe.candidate}")
    return [f"`{name}`, layers that validation chose: {', '.join(words)}." for name, words in chosen.items()]


def _lda_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        sizes = {name: record.probe.lda_size for name, record in row.records.items() if record.probe.lda_size}
        words = ", ".join(f"`{name}` {size}" for name, size in sizes.items())
        notes += [f"{row.title}: PLDA, after an LDA to the size that validation chose: {words}."] if sizes else []
    return notes
