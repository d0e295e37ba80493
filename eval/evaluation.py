"""`evaluate`: encoders x tasks -> result files. A baseline and our model pass through the same lines."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wavcse.data.corpus_pass import SkippedClip, quiet_in_words, read_skipped, write_skipped
from wavcse.data.files import locked, make_folder, remove_partials
from wavcse.data.inspection import Inspector
from wavcse.eval.embeddings import EmbeddedClips, embed_clips
from wavcse.eval.encoder import Encoder, candidates_of, check_encoder
from wavcse.eval.outcome import Outcome
from wavcse.eval.probe import probe_outcomes
from wavcse.eval.report import write_report
from wavcse.eval.results import (
    EvalSettings,
    Result,
    describe,
    finished_results,
    predictions_path,
    result_key,
    write_predictions,
    write_result,
)
from wavcse.eval.task import TaskData
from wavcse.eval.verification import verification_outcome
from wavcse.settings.command import DONE, SOME_SKIPPED

STORE_FOLDER = "embeddings"


@dataclass(frozen=True)
class EvaluationSummary:
    """What `evaluate` found: a result per (row of the table, encoder), the clips that were left out, and the Markdown table.

    `quiet` names the clips that were embedded now and are so quiet that their embeddings drift to that of silence.

    The table shows every result file in the folder, also those of earlier runs.
    """

    results: list[Result]
    skipped: list[SkippedClip]
    table: str
    quiet: list[str] = field(default_factory=list)

    def announce(self, output_dir: str | Path) -> int:
        """Print the table and what was left out; returns the exit code of a program that ends with this."""
        print(self.table, end="")
        if self.quiet:
            print(quiet_in_words(len(self.quiet), self.quiet[0]))
        if not self.skipped:
            return DONE
        where = f"{output_dir}/skipped.csv"
        print(f"{len(self.skipped)} clips were skipped, see {where}; the first: {self.skipped[0].reason}")
        return SOME_SKIPPED


def corpus_inspector(output_dir: str | Path) -> Inspector:
    """Knows the files that an earlier evaluation in this folder has read, beside the embeddings that it has left."""
    return Inspector(Path(output_dir) / STORE_FOLDER)


def evaluate(
    encoders: Sequence[Encoder],
    tasks: Sequence[TaskData],
    output_dir: str | Path,
    settings: EvalSettings | None = None,
    batch_seconds: float = 60.0,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    show_progress: bool = True,
    inspector: Inspector | None = None,
    workers: int | Literal["auto"] | None = None,
) -> EvaluationSummary:
    """Evaluate every encoder on every task (Phase 2 of the paper, section 3).

    Writes results/*.json, predictions/*.parquet, embeddings/ and skipped.csv, and from them results.md, report.md, report.html
    and pictures/. A clip that occurs in several tasks is embedded once. All choices are made on the validation split; the test
    split is only predicted. Killed at any moment, the next run continues: results of the same data, weights and settings are
    kept, and so are embeddings.

    Args:
        device: where the encoders and the probes compute.
        overwrite: compute everything anew.
        inspector: the one that the tasks were loaded with spares reading their files again, see `corpus_inspector`.
        workers: as of `embed_clips`.

    Raises:
        ValueError: `output_dir` cannot be made, or another run is at work in it; two encoders or two rows of the table share a
            name; an encoder breaks its contract; or a task lost a split because so many clips were skipped, or has too few
            clips for PLDA (the other tasks are evaluated and written before this is raised).
    """
    _check_names(encoders, tasks)
    output_dir = make_folder(output_dir)
    with locked(output_dir):
        cells = _cells(encoders, tasks, settings or EvalSettings(), output_dir, overwrite)
        how = {"batch_seconds": batch_seconds, "show_progress": show_progress, "workers": workers}
        return _evaluate(cells, encoders, tasks, output_dir, device, overwrite, inspector, how)


def _evaluate(
    cells: list[_Cell],
    encoders: Sequence[Encoder],
    tasks: Sequence[TaskData],
    output_dir: Path,
    device: str | torch.device,
    overwrite: bool,
    inspector: Inspector | None,
    how: dict[str, Any],
) -> EvaluationSummary:
    pending = [encoder for encoder in encoders if any(cell.encoder is encoder and not cell.results for cell in cells)]
    for folder in ("results", "predictions"):
        remove_partials(output_dir / folder)
    if not pending:
        skipped = read_skipped(output_dir / "skipped.csv")
        return EvaluationSummary([result for cell in cells for result in cell.results], skipped, write_report(output_dir))
    if overwrite:
        shutil.rmtree(output_dir / STORE_FOLDER, ignore_errors=True)
    for encoder in pending:
        check_encoder(encoder)
    clips = {clip.place: clip for task in tasks for clip in task.table.clips}
    files = {"store_dir": output_dir / STORE_FOLDER, "inspector": inspector or corpus_inspector(output_dir)}
    embedded = embed_clips(pending, list(clips.values()), device=torch.device(device), **files, **how)
    write_skipped(output_dir / "skipped.csv", embedded.skipped)
    failures = _fill(cells, embedded, {identity: row for row, identity in enumerate(clips)}, output_dir, device)
    results = [result for cell in cells for result in cell.results]
    table = write_report(output_dir) if results else ""
    if failures:
        raise ValueError(" ".join(failures))
    return EvaluationSummary(results, embedded.skipped, table, embedded.quiet)


@dataclass
class _Cell:
    """One encoder on one task: what it is filled with, and its results once they are there."""

    encoder: Encoder
    data: TaskData
    settings: EvalSettings
    with_map: bool
    key: str
    results: list[Result]


def _cells(
    encoders: Sequence[Encoder], tasks: Sequence[TaskData], settings: EvalSettings, output_dir: Path, overwrite: bool
) -> list[_Cell]:
    cells = []
    for data in tasks:
        for encoder in encoders:
            with_map = encoder is encoders[0]
            key = result_key(encoder, data, settings, with_map)
            rows = [data.task.row_name(target) for target in data.task.targets]
            found = [] if overwrite else finished_results(output_dir, rows, encoder.name, key)
            cells.append(_Cell(encoder, data, settings, with_map, key, found))
    return cells


def _check_names(encoders: Sequence[Encoder], tasks: Sequence[TaskData]) -> None:
    rows = [data.task.row_name(target) for data in tasks for target in data.task.targets]
    for kind, names in (("encoders", [encoder.name for encoder in encoders]), ("tasks", rows)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"The {kind} are {names}; at least one is needed, each with its own name.")


def _fill(
    cells: Sequence[_Cell],
    embedded: EmbeddedClips,
    row_of: dict[tuple, int],
    output_dir: Path,
    device: str | torch.device,
) -> list[str]:
    """Evaluate the cells that have no results yet and write them; returns what went wrong, one sentence per task."""
    failures: dict[str, str] = {}
    for cell in cells:
        name = cell.data.task.name
        if cell.results or name in failures:
            continue
        rows = np.array([row_of[clip.place] for clip in cell.data.table.clips])
        is_embedded = embedded.embedded[rows]
        try:
            usable = cell.data.keep(is_embedded)
            vectors = embedded.tables[cell.encoder.name][rows[is_embedded]]
            start = time.perf_counter()
            outcomes = _outcomes(cell, vectors, usable, device)
        except ValueError as error:
            first = "" if is_embedded.all() else f" The first: {embedded.skipped[0].reason}"
            failures[name] = f"{error}{first}"
            continue
        seconds = {
            "embedding": round(embedded.seconds[cell.encoder.name], 3),  # of all tasks' clips, which are embedded together
            "probe": round(time.perf_counter() - start, 3),
        }
        known = {"skipped_clips": int((~is_embedded).sum()), "seconds": seconds, "key": cell.key}
        cell.results = [write_outcome(outcome, cell.encoder, usable, cell.settings, known, output_dir) for outcome in outcomes]
    return list(failures.values())


def _outcomes(cell: _Cell, vectors: np.ndarray, usable: TaskData, device: str | torch.device) -> list[Outcome]:
    seeds, num_candidates = cell.settings.seeds, candidates_of(cell.encoder)
    if usable.task.kind == "verification":
        return [verification_outcome(vectors, usable, num_candidates, seeds[0])]
    return probe_outcomes(vectors, usable, seeds, num_candidates, device, cell.with_map)


def write_outcome(
    outcome: Outcome, encoder: Encoder, data: TaskData, settings: EvalSettings, known: dict, output_dir: Path
) -> Result:
    """Write predictions and result of one row of the table and encoder; returns the latter.

    Predictions come first: a result that is there has its predictions.

    Args:
        known: what is known of the run only (`skipped_clips`, `seconds`, `key`).
    """
    result = describe(outcome, encoder, data, settings, **known)
    path = predictions_path(output_dir, result.task.name, encoder.name)
    write_predictions(path, outcome.predictions(data.classes))
    write_result(output_dir, result)
    return result
