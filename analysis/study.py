"""What analyses share: the vectors of all encoders, cells that are computed once, and their records.

    records/<analysis>/<cell>.json    what was found in one cell, such as one encoder on one task, with its key

A record whose key is the same is kept, so a killed run goes on and another analysis costs only its own cells. Vectors are in
embeddings/, the store of `wavcse.eval`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.data.corpus_pass import done_by_workers, num_workers
from wavcse.data.files import digest_of, kept_json, write_json
from wavcse.eval.embeddings import EmbeddedClips
from wavcse.eval.evaluation import LIBRARIES, EvalSettings, result_key
from wavcse.eval.task import TaskData
from wavcse.settings.processes import end_with_parent, forked_workers, one_thread
from wavcse.words.targets import DESCRIPTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 2  # of records; another one computes all again


@dataclass
class Study:
    """Encoders and tasks with all vectors; analyses read it, and the records of those that ran before them.

    Attributes:
        tasks: name -> the task with the clips that all encoders could embed.
        rows: name -> their rows in the tables of `embedded`.
        languages: name -> language, or "".
        disk_gb: what kept frames may take.
        lost: name -> how many clips of a task could not be embedded.
        workers: processes that compute cells on a CPU, as of `num_workers`.
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
    workers: int | Literal["auto"] = 1
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
        is_timed: whether it measures time, so that nothing may run beside a cell; it has PyTorch's threads as they are.
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
    is_timed: bool = False


def run_analysis(study: Study, analysis: Analysis, settings: Any, overwrite: bool, show_progress: bool = True) -> list[dict]:
    """The records of all cells of an analysis, computed where no earlier run has left them.

    On a CPU cells are computed by worker processes, each with one thread, so that figures are the same for any number of them.

    Raises:
        WorkerDied: the system ended a worker. The records of the cells that were done before are kept.
    """
    cells = list(analysis.cells(study, settings))
    keys = {cell.name: _key(study, analysis, settings, cell) for cell in cells}
    found = {} if overwrite else {name: own for name, key in keys.items() if (own := _kept(study, analysis, name, key))}
    pending = [cell for cell in cells if cell.name not in found]
    with tqdm(total=len(cells), initial=len(found), desc=analysis.name, unit="cell", disable=not show_progress) as bar:
        for cell, (result, seconds) in _computed(study, analysis, pending, len(cells)):
            about = {"about": dict(cell.about), **_targets(study, cell)}
            record = {"analysis": analysis.name, **about, "settings": asdict(settings), "found": result}
            found[cell.name] = _write(study, analysis, cell.name, {**record, "key": keys[cell.name], "seconds": seconds})
            bar.update()
    study.records[analysis.name] = {cell.name: found[cell.name] for cell in cells}
    return list(study.records[analysis.name].values())


def _targets(study: Study, cell: Cell) -> dict[str, dict[str, str]]:
    """What the encoders of a cell that name words have learnt to name, by encoder, as its record has it."""
    names = {cell.about.get(role) for role in ("encoder", "other")}
    own = {encoder.name: encoder.targets for encoder in study.encoders if encoder.name in names}
    targets = {name: f"{target} ({DESCRIPTIONS[target]})" for name, target in own.items() if target}
    return {"targets": targets} if targets else {}


def _key(study: Study, analysis: Analysis, settings: Any, cell: Cell) -> str:
    return digest_of([FORMAT_VERSION, analysis.name, asdict(settings), cell.key, study.seed, version("wavcse")])


def _path(study: Study, analysis: Analysis, name: str) -> Path:
    return study.folder / "records" / analysis.name / f"{name}.json"


def _kept(study: Study, analysis: Analysis, name: str, key: str) -> dict | None:
    """The record that an earlier run has left, if it rests on the same."""
    path = _path(study, analysis, name)
    record = kept_json(path) if path.exists() else None
    return record if record is not None and record.get("key") == key else None


def _write(study: Study, analysis: Analysis, name: str, record: dict) -> dict:
    path, versions = _path(study, analysis, name), {own: version(own) for own in LIBRARIES}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**record, "versions": versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}, indent=1)
    return kept_json(path)


# ---- cells on all cores ----


def _computed(
    study: Study, analysis: Analysis, pending: Sequence[Cell], num_cells: int
) -> Iterator[tuple[Cell, tuple[dict, float]]]:
    """Cells with what was found and the seconds that it took, in the order in which they are done."""
    if analysis.is_timed or study.device != "cpu":
        yield from ((cell, _timed(cell)) for cell in pending)
        return
    workers = min(num_workers(study.workers, num_cells, torch.device("cpu")), len(pending))
    with one_thread(), threadpool_limits(1):
        if workers < 2:
            yield from ((cell, _timed(cell)) for cell in pending)
            return

        def name(numbers: Sequence[int]) -> str:
            return f"one of the cells of {analysis.name}: {', '.join(pending[one].name for one in numbers)}"

        with forked_workers(workers, _start_worker, pending) as pool:
            for number, found in done_by_workers(pool, _work, len(pending), workers, name):
                yield pending[number], found


def _timed(cell: Cell) -> tuple[dict, float]:
    start = time.perf_counter()
    return cell.compute(), round(time.perf_counter() - start, 2)


def _start_worker(cells: Sequence[Cell]) -> None:
    global _cells
    end_with_parent()
    torch.set_num_threads(1)
    _cells = cells


def _work(number: int) -> tuple[dict, float]:
    return _timed(_cells[number])
