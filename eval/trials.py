"""Lists of trials for speaker verification: is the test clip spoken by the enrolled speaker?

Shapes: `M` enrolled speakers, `T` trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.data.tables import read_text_table, spelled


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
