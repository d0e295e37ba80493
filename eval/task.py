"""From manifests to a task's checked, leak-free splits: clips with classes, numbers or texts, or with a list of trials.

A trial asks whether the test clip is spoken by the enrolled speaker.

Shapes: `N` clips, `T` targets of a regression; of trials, `M` enrolled speakers and `T` trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.data import SPLITS
from wavcse.data.composite import TaskClips, TaskSource, class_counts, load_task_clips
from wavcse.data.files import sha256_of
from wavcse.data.inspection import Inspector
from wavcse.data.leaks import Stretches, file_keys
from wavcse.data.manifest import Manifest
from wavcse.data.tables import read_text_table, spelled
from wavcse.eval.tasks.definition import Task

__all__ = ["ManifestRecord", "Task", "TaskData", "load_task"]


@dataclass(frozen=True)
class ManifestRecord:
    """What a result file keeps of a manifest: which bytes were read, which column gave the split, by which protocol."""

    path: Path
    sha256: str
    split_column: str
    protocol: str  # empty where the manifest names none


@dataclass(frozen=True)
class TaskData:
    """A task with its checked clips and the manifests that they come from.

    Args:
        values: numbers of a regression task, float32 `[N, T]`; None for other kinds.
        trials: of a verification task, whose rows are those of `table`; None for other kinds.
        trials_sha256: hash of the list of trials; empty for other kinds.
        corpus: name of the corpus that is tested, several joined; empty where the manifests do not say it.
    """

    task: Task
    table: TaskClips
    manifests: list[ManifestRecord]
    values: np.ndarray | None = None
    trials: Trials | None = None
    trials_sha256: str = ""
    corpus: str = ""

    @property
    def has_known_speakers(self) -> bool:
        """Whether the classes are the speakers, so that a speaker is a label and not a sample of the population."""
        return self.task.kind == "classification" and bool((self.table.groups == self.table.labels).all())

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices; empty for other kinds."""
        return self.table.classes if self.task.kind == "classification" else []

    @property
    def labels(self) -> np.ndarray:
        """What is learnt: class indices `[N]`, numbers `[N, T]`, or texts `[N]`."""
        if self.task.kind == "transcription":
            return self.table.labels
        return self.table.targets if self.values is None else self.values

    def training_counts(self) -> str:
        """What the training clips are, in one line: classes or speakers with their counts, or just how many."""
        rows, name = self.table.rows("train"), self.task.name
        if self.task.kind == "regression":
            return f"{name}: numbers for {len(rows):,} training clips"
        if self.task.kind == "transcription":
            words = [word for text in self.table.labels[rows] for word in text.split()]
            return f"{name}: {len(words):,} words, {len(set(words)):,} different ones, in {len(rows):,} training clips"
        return class_counts(name, *np.unique(self.table.labels[rows].astype(str), return_inverse=True))

    @property
    def speakers(self) -> np.ndarray:
        """Speaker of every clip, `[N]`; empty where the manifest does not know it."""
        ids = np.array([clip.clip_id for clip in self.table.clips], dtype=object)
        return np.where(self.table.groups == ids, "", self.table.groups)

    @cached_property
    def audio_stamp(self) -> str:
        """Hash of size and time of change of every clip's file, so that audio changed under the same names is noticed."""
        stamps: list[tuple[int, int] | None] = []
        for clip in self.table.clips:
            try:
                stat = clip.path.stat()
                stamps.append((stat.st_size, stat.st_mtime_ns))
            except OSError:
                stamps.append(None)
        return hashlib.sha256(repr(stamps).encode()).hexdigest()

    def keep(self, mask: np.ndarray) -> TaskData:
        """The task without the clips where `mask` `[N]` is False, and without trials that have lost a side.

        Raises:
            ValueError: a split is empty afterwards, its labels no longer occur in the training split, or no trials of one kind
                are left.
        """
        kept = self.subset(np.flatnonzero(mask))
        table, lost = kept.table, int((~mask).sum())
        beginning = f"task {self.task.name!r}: {lost} of {len(mask)} clips could not be embedded, which leaves "
        for split in SPLITS:
            if not len(table.rows(split)):
                raise ValueError(f"{beginning}the {split} split empty.")
            unknown = set(table.labels[table.rows(split)]) - set(table.labels[table.rows("train")])
            if unknown and self.task.kind == "classification":
                raise ValueError(f"{beginning}the {split} split with labels unknown to training: {sorted(unknown)}.")
        if kept.trials is not None and len(set(kept.trials.labels)) < 2:
            raise ValueError(f"{beginning}too few trials: both kinds, same and different speakers, are needed.")
        return kept

    def subset(self, rows: np.ndarray) -> TaskData:
        """The task with some of its clips, in the order of `rows`."""
        return replace(
            self,
            table=self.table.subset(rows),
            values=None if self.values is None else self.values[rows],
            trials=None if self.trials is None else self.trials.subset(rows),
        )


def load_task(
    task: Task,
    manifests: Sequence[str | Path],
    trials: str | Path | None = None,
    inspector: Inspector | None = None,
) -> TaskData:
    """Read the rows of a task that have a label and a split, and refuse them if the evaluation would not be sound.

    A manifest without the label column takes no part. A clip that several manifests list alike counts once. Of a verification
    task, test clips without a trial are left out.

    Args:
        trials: list of trials of a verification task, see `wavcse.eval.task`.
        inspector: reads the files, which are compared by content; files that it has seen already are not read again.

    Raises:
        ValueError: no manifest has the label column; as `load_task_clips` (a column is missing or empty, a split is empty, a
            label is unknown to training, audio or a speaker is in two splits, a clip has two labels); a label is not a number
            where a number is wanted; as `read_trials`, or a trial has a clip outside of the test split, contradicts the
            speakers of its clips or compares audio with itself.
    """
    if (task.kind == "verification") != (trials is not None):
        lacks = "needs a list of trials; give `trials: FILE.csv` beside its manifest."
        raise ValueError(
            f"task {task.name!r}: {lacks if trials is None else 'is not a verification task and takes no trials.'}"
        )
    used = _with_label_column(task, [Manifest(path) for path in manifests])
    inspector = inspector or Inspector()
    paths, numbers = tuple(str(manifest.path) for manifest in used), task.targets if task.kind == "regression" else ()
    is_closed = task.kind == "classification"
    source = TaskSource(paths, task.targets[0], task.split_columns, task.disjoint_by, closed_set=is_closed, numbers=numbers)
    table = load_task_clips(task.name, source, inspector, used)
    first: dict[tuple[str, float, float], int] = {}  # labels and splits of a clip are the same wherever it is listed
    for row, clip in enumerate(table.clips):
        first.setdefault(clip.place, row)
    table = table.subset(np.array(list(first.values())))
    records = []
    for manifest in used:
        split_column = next(column for column in task.split_columns if column in manifest.table.columns)
        records.append(ManifestRecord(manifest.path, sha256_of(manifest.path), split_column, manifest.protocol))
    data = TaskData(task, table, records, _numbers(task, table, used) if numbers else None)
    if trials is not None:
        data = _with_trials(data, used, Path(trials), inspector)
    tested = _per_clip(data.table, used, "corpus")[data.table.rows("test")]
    return replace(data, corpus=", ".join(sorted(set(tested) - {""})))


def _with_label_column(task: Task, manifests: Sequence[Manifest]) -> list[Manifest]:
    used = [manifest for manifest in manifests if task.targets[0] in manifest.table.columns]
    if not used:
        names = ", ".join(str(manifest.path) for manifest in manifests)
        columns = sorted({column for manifest in manifests for column in manifest.table.columns})
        raise ValueError(f"task {task.name!r}: no column {task.targets[0]!r} in {names}; the columns are {columns}.")
    return used


def _numbers(task: Task, table: TaskClips, manifests: Sequence[Manifest]) -> np.ndarray:
    columns = [_per_clip(table, manifests, target) for target in task.targets]
    values = np.empty((len(table.clips), len(columns)), dtype=np.float32)
    for target, (name, column) in enumerate(zip(task.targets, columns)):
        for row, text in enumerate(column):
            try:
                values[row, target] = float(text)
            except ValueError:
                values[row, target] = np.nan
            if not np.isfinite(values[row, target]):
                raise ValueError(f"task {task.name!r}: {table.clips[row].clip_id} has {name} = {text!r}; a number is needed.")
    return values


def _per_clip(table: TaskClips, manifests: Sequence[Manifest], column: str) -> np.ndarray:
    """A column's value for every clip of the table, text `[N]`; of several manifests the first that has one, else empty."""
    row_of = {clip.place: row for row, clip in enumerate(table.clips)}
    values = np.full(len(table.clips), "", dtype=object)
    for manifest in manifests:
        for clip, value in zip(manifest.clips, manifest.table.get(column, ())):
            row = row_of.get(clip.place)
            if row is not None and not values[row]:
                values[row] = value
    return values


def _with_trials(data: TaskData, manifests: Sequence[Manifest], path: Path, inspector: Inspector) -> TaskData:
    """The task with its trials, and without test clips that are in none of them."""
    beside = [manifest for manifest in manifests if manifest.path.resolve().parent == path.resolve().parent]
    if not beside:
        raise ValueError(f"task {data.task.name!r}: {path} lies beside none of the manifests, whose clips it should name.")
    table = data.table
    row_of = {clip.place: row for row, clip in enumerate(table.clips)}
    rows_of: dict[str, list[int]] = {}
    for manifest in beside:
        names = manifest.table.get("enrolment_id", [""] * len(manifest))
        for clip, enrolment in zip(manifest.clips, names):
            row = row_of.get(clip.place)
            if row is not None:
                rows_of[clip.clip_id] = [row]
                rows_of.setdefault(enrolment, []).append(row)
    trials = read_trials(path, rows_of)
    in_trials = trials.rows
    _refuse_trials_outside_test(table, in_trials)
    _refuse_contradictions(data.task.name, table, trials)
    _refuse_trials_of_shared_audio(data.task.name, table, trials, inspector)
    is_used = table.splits != "test"
    is_used[in_trials] = True
    data = replace(data, trials=trials, trials_sha256=sha256_of(path))
    return data.subset(np.flatnonzero(is_used))


def _refuse_trials_outside_test(table: TaskClips, rows: Sequence[int]) -> None:
    for row in rows:
        if table.splits[row] != "test":
            raise ValueError(
                f"task {table.name!r}: {table.clips[row].clip_id} of speaker {table.groups[row]!r} is in a trial and in the "
                f"{table.splits[row]} split; trials are made of test clips only."
            )


def _refuse_trials_of_shared_audio(name: str, table: TaskClips, trials: Trials, inspector: Inspector) -> None:
    """ValueError if a test shares audio with its enrolment; that their names differ, `read_trials` has seen."""
    files = file_keys(table.clips, inspector.inspect(table.clips, save=False))
    numbers = pd.factorize(np.array(files, dtype=object))[0]
    enrolled = [index * len(files) + numbers[rows] for index, rows in enumerate(trials.enrolments)]
    tested = trials.pairs[:, 0] * len(files) + numbers[trials.tests[trials.pairs[:, 1]]]
    for trial in np.flatnonzero(np.isin(tested, np.concatenate(enrolled))):  # of one file; few trials are
        index, test = trials.pairs[trial, 0], trials.tests[trials.pairs[trial, 1]]
        own = Stretches(table.clips, files, trials.enrolments[index]).overlapping(files[test], table.clips[test])
        if own is not None:
            raise ValueError(
                f"task {name!r}: the trial of {trials.enrolment_names[index]!r} and {table.clips[test].clip_id!r} compares "
                f"audio with itself: {table.clips[own].clip_id!r}, which is enrolled, shares audio with it. Leave it out."
            )


def _refuse_contradictions(name: str, table: TaskClips, trials: Trials) -> None:
    enrolled, tested = trials.speakers(table.labels)
    wrong = np.flatnonzero((enrolled == tested) != (trials.labels == 1))
    if len(wrong):
        pair = trials.pairs[wrong[0]]
        raise ValueError(
            f"task {name!r}: {len(wrong)} trials contradict the speakers of their clips; the first has label "
            f"{trials.labels[wrong[0]]} for {trials.enrolment_names[pair[0]]} of {enrolled[wrong[0]]!r} and "
            f"{table.clips[trials.tests[pair[1]]].clip_id} of {tested[wrong[0]]!r}."
        )


# ---- trials ----


@dataclass(frozen=True)
class Trials:
    """Pairs of an enrolled speaker and a test clip, in terms of rows of a table of clips.

    Attributes:
        enrolment_names: as the list names them, `M`.
        enrolments: rows of the enrolment clips of each, one or more.
        tests: rows of the test clips.
        pairs: `[T, 2]`, index into `enrolments` and index into `tests`.
        labels: `[T]`, 1 for the same speaker, 0 for different ones.
    """

    enrolment_names: list[str]
    enrolments: list[list[int]]
    tests: np.ndarray
    pairs: np.ndarray
    labels: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All rows that occur, ascending."""
        return np.unique(np.concatenate([*self.enrolments, self.tests]).astype(np.int64))

    def speakers(self, of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Enrolled and tested speaker of every trial, each `[T]`, given the speaker of every row.

        Raises:
            ValueError: an enrolment has clips of two speakers.
        """
        enrolled = []
        for name, rows in zip(self.enrolment_names, self.enrolments):
            found = sorted(set(of_row[rows].tolist()))
            if len(found) > 1:
                raise ValueError(f"enrolment {name!r} has clips of {len(found)} speakers: {found[0]!r} and {found[1]!r}.")
            enrolled.append(found[0])
        return np.array(enrolled, dtype=of_row.dtype)[self.pairs[:, 0]], of_row[self.tests][self.pairs[:, 1]]

    def subset(self, rows: np.ndarray) -> Trials:
        """The trials that are left when only `rows` of the table stay, in terms of the new table.

        An enrolment goes on with the clips that it has left; a trial goes with its test clip or its last enrolment clip.
        """
        place = {int(row): place for place, row in enumerate(rows)}
        enrolments = [[place[row] for row in own if row in place] for own in self.enrolments]
        is_enrolled = np.array([len(own) > 0 for own in enrolments], dtype=bool)
        is_tested = np.array([int(row) in place for row in self.tests], dtype=bool)
        kept = is_enrolled[self.pairs[:, 0]] & is_tested[self.pairs[:, 1]]
        first, enrolment_of = np.unique(self.pairs[kept, 0], return_inverse=True)
        second, test_of = np.unique(self.pairs[kept, 1], return_inverse=True)
        return Trials(
            [self.enrolment_names[index] for index in first],
            [enrolments[index] for index in first],
            np.array([place[int(row)] for row in self.tests[second]], dtype=np.int64),
            np.stack([enrolment_of, test_of], axis=1),
            self.labels[kept],
        )


def rows_by_name(manifest: Manifest) -> dict[str, list[int]]:
    """What `read_trials` has to know of one manifest: rows of the clips of every enrolment, and the row of every clip."""
    rows: dict[str, list[int]] = {}
    for row, enrolment in enumerate(manifest.table.get("enrolment_id", ())):
        rows.setdefault(enrolment, []).append(row)
    rows.pop("", None)
    return rows | {clip.clip_id: [row] for row, clip in enumerate(manifest.clips)}


def read_trials(path: str | Path, clips_by_name: Mapping[str, int | Sequence[int]]) -> Trials:
    """Read a CSV or Parquet file with the columns `label, enrolment, test` (or `label, file_a, file_b`).

    Args:
        clips_by_name: row of a clip by its name, and rows of the clips of an enrolment by its name.

    Raises:
        ValueError: the file is missing or no such table; a label is not 0 or 1, or one of them never occurs; a name is
            unknown; a test names several clips, or is among its own enrolment clips; a trial is there twice.
    """
    path = Path(path)
    table = _read_table(path)
    bad_label = np.flatnonzero(~table["label"].isin(["0", "1"]))
    if len(bad_label):
        raise ValueError(f"{_row(path, bad_label[0])}: label {table['label'][bad_label[0]]!r} is neither 0 nor 1.")
    if table["label"].nunique() < 2:
        raise ValueError(f"{path}: needs trials with label 1 and trials with label 0; all are {''.join(set(table['label']))}.")
    enrolment_of, enrolment_names = pd.factorize(table["enrolment"])
    test_of, test_names = pd.factorize(table["test"])
    enrolments = [_rows(path, name, enrolment_of, index, clips_by_name) for index, name in enumerate(enrolment_names)]
    tests = [_rows(path, name, test_of, index, clips_by_name) for index, name in enumerate(test_names)]
    for index, rows in enumerate(tests):
        if len(rows) > 1:
            raise ValueError(f"{_row(path, np.argmax(test_of == index))}: test {test_names[index]!r} names several clips.")
    pairs = np.stack([enrolment_of, test_of], axis=1).astype(np.int64)
    trials = Trials(
        list(enrolment_names),
        enrolments,
        np.array([rows[0] for rows in tests]),
        pairs,
        table["label"].to_numpy(dtype=np.int64),
    )
    _check_pairs(path, trials, list(test_names))
    return trials


def _read_table(path: Path) -> pd.DataFrame:
    names = ("enrolment", "test", "file_a", "file_b")
    table = read_text_table(path, as_written=names)
    if table.faults:
        raise ValueError(f"{path}: {next(iter(table.faults.values()))}.")
    columns = pd.DataFrame(table.columns).rename(columns={"file_a": "enrolment", "file_b": "test"})
    missing = [column for column in ("label", "enrolment", "test") if column not in columns]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}; a list of trials has the columns label, enrolment, test.")
    return columns


def _row(path: Path, trial: int) -> str:
    return f"{path}, row {trial + 1}"


def _rows(path: Path, name: str, index_of: np.ndarray, index: int, clips_by_name: Mapping) -> list[int]:
    if name not in clips_by_name:
        name = spelled(name)  # an enrolment_id is, in the manifest
    if not name or name not in clips_by_name:
        trial = int(np.argmax(index_of == index))
        raise ValueError(f"{_row(path, trial)}: {name!r} is neither a clip nor an enrolment_id of the manifest's test split.")
    rows = np.atleast_1d(clips_by_name[name])
    return [int(row) for row in dict.fromkeys(rows)]  # a clip that two manifests list counts once: PLDA weighs by number


def _check_pairs(path: Path, trials: Trials, test_names: list[str]) -> None:
    keys = trials.pairs[:, 0] * len(trials.tests) + trials.pairs[:, 1]
    test_of_row = {int(row): index for index, row in enumerate(trials.tests)}
    own = [
        index * len(trials.tests) + test_of_row[row]
        for index, rows in enumerate(trials.enrolments)
        for row in rows
        if row in test_of_row
    ]
    for wrong, complaint in (
        (np.isin(keys, own), "is among its own enrolment clips"),
        (pd.Series(keys).duplicated().to_numpy(), "was tried with the same enrolment before"),
    ):
        if wrong.any():
            trial = int(np.argmax(wrong))
            raise ValueError(f"{_row(path, trial)}: test {test_names[trials.pairs[trial, 1]]!r} {complaint}.")
