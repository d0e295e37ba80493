"""What analyses share: the vectors of all encoders, cells that are computed once, and their records.

    records/<analysis>/<cell>.json    what was found in one cell, such as one encoder on one task, with its key

A record whose key is the same is kept, so a killed run goes on and another analysis costs only its own cells. Vectors are in
embeddings/, the store of `wavcse.eval`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.data.files import digest_of, kept_json, write_json
from wavcse.eval.embeddings import EmbeddedClips
from wavcse.eval.encoder import encoder_record
from wavcse.eval.evaluation import LIBRARIES, EvalSettings, result_key
from wavcse.eval.task import TaskData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 1  # of records; another one computes all again


@dataclass
class Study:
    """Encoders and tasks with all vectors; analyses read it, and the records of those that ran before them.

    Attributes:
        tasks: name -> the task with the clips that all encoders could embed.
        rows: name -> their rows in the tables of `embedded`.
        languages: name -> language, or "".
        disk_gb: what kept frames may take.
        lost: name -> how many clips of a task could not be embedded.
        records: analysis -> cell -> record.
    """

    folder: Path
    encoders: Sequence[AnalyzedEncoder]
    tasks: Mapping[str, TaskData]
    rows: Mapping[str, np.ndarray]
    languages: Mapping[str, str]
    embedded: EmbeddedClips
    seed: int
    device: str
    first_s: float | None = None
    note: str = ""
    disk_gb: float = 4.0
    lost: Mapping[str, int] = field(default_factory=dict)
    records: dict[str, dict[str, dict]] = field(default_factory=dict)

    def vectors(self, encoder: AnalyzedEncoder, view: View | str, task: str) -> np.ndarray:
        """Float32 `[N, E]` of the clips of a task."""
        view = encoder.view(view) if isinstance(view, str) else view
        return encoder.vectors(self.embedded.tables, view, self.rows[task])

    @cached_property
    def settings(self) -> EvalSettings:
        """As an evaluation has them."""
        return EvalSettings((self.seed,), self.note, self.first_s)

    def key_of_task(self, encoder: AnalyzedEncoder, task: str) -> list[str]:
        """Hashes of all that figures of an encoder on a task rest on: weights, audio, labels, splits, clips left out."""
        keys = [result_key(reader, self.tasks[task], self.settings, False) for reader in encoder.readers]
        return [*keys, digest_of([clip.clip_id for clip in self.tasks[task].table.clips])]

    def found(self, analysis: str, encoder: AnalyzedEncoder, task: str) -> dict | None:
        """What an analysis that ran before found for an encoder on a task."""
        record = self.records.get(analysis, {}).get(cell_name(task, encoder.name))
        return record and record["found"]

    def pairs(self) -> Iterable[tuple[AnalyzedEncoder, str]]:
        """Every encoder on every task, task by task."""
        return [(encoder, task) for task in self.tasks for encoder in self.encoders]


def cell_name(*names: str) -> str:
    """The name of a cell, and of its file."""
    return "__".join(names)


@dataclass(frozen=True)
class Cell:
    """One thing to compute.

    Args:
        name: of its file; `cell_name` of what it is about.
        about: task, encoder and the like, as records and tables call them.
        key: all that the result rests on, beside the settings of the analysis.
        compute: what was found, in JSON.
    """

    name: str
    about: Mapping[str, str]
    key: Any
    compute: Callable[[], dict[str, Any]]


def encoder_cell(study: Study, encoder: AnalyzedEncoder, task: str, compute: Callable[[], dict], *more: Any) -> Cell:
    """The cell of an encoder on a task.

    Args:
        more: what the result rests on beside both.
    """
    about = {"task": task, "encoder": encoder.name}
    return Cell(cell_name(task, encoder.name), about, [*study.key_of_task(encoder, task), *more], compute)


@dataclass(frozen=True)
class Analysis:
    """One analysis: a file in `analysis/analyses/`.

    Attributes:
        name: in recipes and files; title: in the report.
        settings: dataclass of its section of a recipe.
        cells: what there is to compute, in order; cells may read the records of analyses in `needs`.
        answers: one line or a few for the top of the report, from the records.
        section: blocks of Markdown, from the records; pictures are named pictures/NAME.png.
        drawings: name -> what draws a picture of the records.
        needs: analyses that run before it, asked for or not.
        library: (module, extra) that it cannot do without, where it is not always installed.
    """

    name: str
    title: str
    settings: type
    cells: Callable[[Study, Any], Iterable[Cell]]
    answers: Callable[[Sequence[dict]], list[str]]
    section: Callable[[Sequence[dict]], list[str]]
    drawings: Callable[[Sequence[dict]], dict[str, Callable[[Sequence[dict]], Figure]]]
    needs: tuple[str, ...] = ()
    library: tuple[str, str] | None = None


def run_analysis(study: Study, analysis: Analysis, settings: Any, overwrite: bool, show_progress: bool = True) -> list[dict]:
    """The records of all cells of an analysis, computed where no earlier run has left them."""
    records = study.records.setdefault(analysis.name, {})
    cells = list(analysis.cells(study, settings))
    for cell in tqdm(cells, analysis.name, unit="cell", disable=not show_progress):
        records[cell.name] = _record(study, analysis, settings, cell, overwrite)
    return list(records.values())


def _record(study: Study, analysis: Analysis, settings: Any, cell: Cell, overwrite: bool) -> dict:
    path = study.folder / "records" / analysis.name / f"{cell.name}.json"
    rests_on = [FORMAT_VERSION, analysis.name, asdict(settings), cell.key, study.seed, version("wavcse")]
    key = digest_of(rests_on)
    kept = None if overwrite or not path.exists() else kept_json(path)
    if kept is not None and kept.get("key") == key:
        return kept
    start = time.perf_counter()
    found = cell.compute()
    record = {
        "analysis": analysis.name,
        "about": dict(cell.about),
        "settings": asdict(settings),
        "found": found,
        "key": key,
        "seconds": round(time.perf_counter() - start, 2),
        "versions": {name: version(name) for name in LIBRARIES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, indent=1)
    return kept_json(path)


def records_of(encoders: Sequence[AnalyzedEncoder]) -> dict[str, dict]:
    """Encoder -> what it says of itself, and of its readers."""
    return {own.name: {**own.record(), "readers": list(map(encoder_record, own.readers))} for own in encoders}
