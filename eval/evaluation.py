"""`evaluate`: encoders x tasks -> result files. A baseline and our model pass through the same lines."""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wavcse.data import SPLITS
from wavcse.data.corpus_pass import SkippedClip, quiet_in_words, read_skipped, write_skipped
from wavcse.data.files import digest_of, locked, make_folder, remove_partials, shown_path
from wavcse.data.inspection import Inspector
from wavcse.eval.embeddings import EmbeddedClips, embed_clips
from wavcse.eval.encoder import Encoder, candidates_of, check_encoder, encoder_record
from wavcse.eval.metrics import NUM_RESAMPLES
from wavcse.eval.probe import ProbeSettings, probe_outcomes
from wavcse.eval.report import write_report
from wavcse.eval.results import (
    Counts,
    Outcome,
    Result,
    TaskRecord,
    finished_results,
    predictions_path,
    write_predictions,
    write_result,
)
from wavcse.eval.task import TaskData
from wavcse.eval.tasks.definition import refuse_frames
from wavcse.eval.verification import COSINES, LDA_SIZES, verification_outcomes
from wavcse.settings.command import DONE, SOME_SKIPPED

# Kind of task -> what is fitted on the embeddings of its clips and answers the test split:
# (embeddings [N, candidates * E], task, seeds, candidates, device, whether to add a map) -> an outcome per target.
FITS: dict[str, Callable[..., list[Outcome]]] = {
    "classification": probe_outcomes,
    "regression": probe_outcomes,
    "verification": verification_outcomes,
}
LIBRARIES = ("wavcse", "torch", "transformers", "numpy", "scikit-learn")
STORE_FOLDER = "embeddings"


@dataclass(frozen=True)
class EvalSettings:
    """What changes the figures, apart from encoders and tasks.

    Args:
        seeds: one probe each; the figures are their mean, the intervals are about speakers (or clips), not seeds.
        note: shown under every table, for example that an upstream has random weights.
        first_s: only so many seconds from the start of every clip are embedded; `None` = all of it.
    """

    seeds: tuple[int, ...] = (0,)
    note: str = ""
    first_s: float | None = None


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
        overwrite: compute everything again.
        inspector: the one that the tasks were loaded with spares reading their files again, see `corpus_inspector`.
        workers: as of `embed_clips`.

    Raises:
        ValueError: `output_dir` cannot be made, or another run is at work in it; two encoders or two rows of the table share a
            name; an encoder breaks its contract; or a task lost a split because so many clips were skipped, or has too few
            clips for PLDA (the other tasks are evaluated and written before this is raised).
    """
    _check_names(encoders, tasks)
    settings, output_dir = settings or EvalSettings(), make_folder(output_dir)
    with locked(output_dir):
        cells = _cells(encoders, tasks, settings, output_dir, overwrite)
        for folder in ("results", "predictions"):
            remove_partials(output_dir / folder)
        pending = [own for own in encoders if any(cell.encoder is own and not cell.results for cell in cells)]
        skipped, quiet, failures = read_skipped(output_dir / "skipped.csv"), [], []
        if pending:
            if overwrite:
                shutil.rmtree(output_dir / STORE_FOLDER, ignore_errors=True)
            for encoder in pending:
                check_encoder(encoder)
            clips = {clip.place: clip for data in tasks for clip in data.table.clips}
            where = {"store_dir": output_dir / STORE_FOLDER, "inspector": inspector or corpus_inspector(output_dir)}
            how = {"workers": workers, "device": torch.device(device), "show_progress": show_progress}
            how["first_s"] = settings.first_s
            embedded = embed_clips(pending, list(clips.values()), batch_seconds, **where, **how)
            skipped, quiet = embedded.skipped, embedded.quiet
            write_skipped(output_dir / "skipped.csv", skipped)
            rows = {place: row for row, place in enumerate(clips)}
            failures = _fill(cells, embedded, rows, settings, output_dir, device)
        results = [result for cell in cells for result in cell.results]
        table = write_report(output_dir) if results else ""
    if failures:
        raise ValueError(" ".join(failures))
    return EvaluationSummary(results, skipped, table, quiet)


@dataclass
class _Cell:
    """One encoder on one task: its results, and the key that they are kept under."""

    encoder: Encoder
    data: TaskData
    with_map: bool
    key: str
    results: list[Result]


def _cells(
    encoders: Sequence[Encoder], tasks: Sequence[TaskData], settings: EvalSettings, output_dir: Path, overwrite: bool
) -> list[_Cell]:
    """Every encoder on every task, with the results that an earlier run has left."""
    cells = []
    for data in tasks:
        for encoder in encoders:
            with_map = encoder is encoders[0]
            key = result_key(encoder, data, settings, with_map)
            rows = [data.task.row_name(target) for target in data.task.targets]
            found = [] if overwrite else finished_results(output_dir, rows, encoder.name, key)
            cells.append(_Cell(encoder, data, with_map, key, found))
    return cells


def _check_names(encoders: Sequence[Encoder], tasks: Sequence[TaskData]) -> None:
    for data in tasks:
        refuse_frames(data.task, f"task {data.task.name!r}")
    rows = [data.task.row_name(target) for data in tasks for target in data.task.targets]
    for kind, names in (("encoders", [encoder.name for encoder in encoders]), ("tasks", rows)):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"The {kind} are {names}; at least one is needed, each with its own name.")


def _fill(
    cells: Sequence[_Cell],
    embedded: EmbeddedClips,
    row_of: Mapping[tuple, int],
    settings: EvalSettings,
    output_dir: Path,
    device: str | torch.device,
) -> list[str]:
    """Evaluate the cells that have no results yet and write them; returns what went wrong, one sentence per task."""
    failures: dict[str, str] = {}
    for cell in cells:
        task, encoder = cell.data.task, cell.encoder
        if cell.results or task.name in failures:
            continue
        rows = np.array([row_of[clip.place] for clip in cell.data.table.clips])
        is_embedded = embedded.embedded[rows]
        try:
            usable = cell.data.keep(is_embedded)
            vectors = embedded.tables[encoder.name][rows[is_embedded]]
            start = time.perf_counter()
            outcomes = FITS[task.kind](vectors, usable, settings.seeds, candidates_of(encoder), device, cell.with_map)
        except ValueError as error:
            first = "" if is_embedded.all() else f" The first: {embedded.skipped[0].reason}"
            failures[task.name] = f"{error}{first}"
            continue
        seconds = {
            "embedding": round(embedded.seconds[encoder.name], 3),  # of all tasks' clips, which are embedded together
            "probe": round(time.perf_counter() - start, 3),
        }
        known = {"skipped_clips": int((~is_embedded).sum()), "seconds": seconds, "key": cell.key}
        cell.results = [write_outcome(outcome, encoder, usable, settings, known, output_dir) for outcome in outcomes]
    return list(failures.values())


def result_key(encoder: Encoder, data: TaskData, settings: EvalSettings, with_map: bool) -> str:
    """Hash of everything that a result depends on: task, bytes of manifests and trials, audio files, encoder, settings."""
    task = {name: value for name, value in asdict(data.task).items() if name != "benchmark"}
    described = {
        "task": task,
        "manifests": [(manifest.sha256, manifest.split_column) for manifest in data.manifests],
        "trials": data.trials_sha256,
        "audio": data.audio_stamp,
        "encoder": encoder_record(encoder),
        "settings": {name: value for name, value in asdict(settings).items() if value is not None},
        "probe": asdict(ProbeSettings()),
        "lda_sizes": LDA_SIZES,
        "resamples": NUM_RESAMPLES,
        "with_map": with_map,
        "wavcse": version("wavcse"),
    }
    if data.task.kind == "verification":
        described["cosines"] = COSINES
    return digest_of(described)


def write_outcome(
    outcome: Outcome, encoder: Encoder, data: TaskData, settings: EvalSettings, known: Mapping, output_dir: Path
) -> Result:
    """Write predictions and result of one row of the table and encoder; returns the latter.

    Predictions come first: a result that is there has its predictions.

    Args:
        known: what is known of the run only (`skipped_clips`, `seconds`, `key`).
    """
    metrics, interval = outcome.measured(data.task.metrics, settings.seeds[0])
    result = Result(
        task=_task_record(data, outcome.target),
        encoder=encoder_record(encoder),
        metrics=metrics,
        interval=interval,
        counts=_counts(data),
        probe=outcome.probe,
        figures=outcome.figures,
        manifests=[{**asdict(manifest), "path": shown_path(manifest.path)} for manifest in data.manifests],
        trials_sha256=data.trials_sha256 or None,
        note=settings.note,
        first_s=settings.first_s,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        **known,
    )
    path = predictions_path(output_dir, result.task.name, encoder.name)
    write_predictions(path, outcome.predictions(data.classes))
    write_result(output_dir, result)
    return result


def _task_record(data: TaskData, target: str) -> TaskRecord:
    task = data.task
    return TaskRecord(
        name=task.row_name(target),
        task=task.family,
        title=task.row_title(target),
        kind=task.kind,
        target=target,
        classes=data.classes,
        metrics=list(task.metrics),
        split_columns=list(task.split_columns),
        disjoint_by=task.disjoint_by,
        note=task.note,
        corpus=data.corpus,
        protocols=sorted({manifest.protocol for manifest in data.manifests} - {""}),
        benchmark=task.benchmark.record(target),
    )


def _counts(data: TaskData) -> Counts:
    table, speakers = data.table, data.speakers
    rows = {split: table.rows(split) for split in SPLITS}
    counts = Counts(
        clips={split: len(of_split) for split, of_split in rows.items()},
        speakers={split: len(set(speakers[of_split]) - {""}) for split, of_split in rows.items()},
    )
    if data.task.kind == "classification":
        counts = replace(counts, classes={split: dict(sorted(Counter(table.labels[r]).items())) for split, r in rows.items()})
    if data.trials is not None:
        num_targets, num_trials = int(np.sum(data.trials.labels)), len(data.trials.labels)
        counts = replace(
            counts,
            trials={"test": num_trials, "same": num_targets, "different": num_trials - num_targets},
            enrolments={"test": len(data.trials.enrolments)},
        )
    return counts
