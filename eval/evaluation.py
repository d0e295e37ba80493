"""`evaluate`: encoders x tasks -> one result file each. A baseline and our model pass through the same lines."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from wavcse.data.corpus_pass import SkippedClip, write_skipped
from wavcse.data.manifest import SPLITS
from wavcse.eval.embed import EmbeddedClips, embed_clips
from wavcse.eval.encoder import Encoder, check_encoder, identity_of
from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, bootstrap_interval
from wavcse.eval.paths import make_folder, shown_path
from wavcse.eval.probes import LabelledEmbeddings, ProbeRun, ProbeSettings, fit_probe
from wavcse.eval.results import write_result, write_table
from wavcse.eval.task import TaskData, clip_identity

LIBRARIES = ("wavcse", "torch", "transformers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: a result record per (task, encoder), the clips that were left out, and the Markdown table.

    The table shows every result file in the folder, also those of earlier runs.
    """

    results: list[dict]
    skipped: list[SkippedClip]
    table: str


def evaluate(
    encoders: Sequence[Encoder],
    tasks: Sequence[TaskData],
    output_dir: str | Path,
    seeds: Sequence[int] = (0,),
    batch_seconds: float = 60.0,
    device: str | torch.device = "cpu",
    note: str = "",
    show_progress: bool = True,
) -> Evaluation:
    """Probe every encoder on every task (Phase 2 of the paper, section 3); write results/*.json, results.md and skipped.csv.

    A clip that occurs in several tasks is embedded once. Epoch and learning rate are chosen on the validation split; the test
    split is only predicted.

    Args:
        seeds: one probe each; the figures are their mean, the intervals are about speakers (or clips), not seeds.
        device: where the probes run.
        note: shown under every table, for example that an upstream has random weights.

    Raises:
        ValueError: `output_dir` cannot be made; two encoders share a name; an encoder breaks its contract; or a task lost a
            split because so many clips were skipped (the other tasks are evaluated and written before this is raised).
    """
    _check_names(encoders, tasks)
    output_dir = make_folder(output_dir)
    for encoder in encoders:
        check_encoder(encoder)
    clips = {clip_identity(clip): clip for task in tasks for clip in task.table.clips}
    row_of = {identity: row for row, identity in enumerate(clips)}
    embedded = embed_clips(encoders, list(clips.values()), batch_seconds, show_progress)
    write_skipped(output_dir / "skipped.csv", embedded.skipped)
    results, failures = [], []
    for task in tasks:
        rows = np.array([row_of[clip_identity(clip)] for clip in task.table.clips])
        try:
            usable = task.keep(embedded.embedded[rows])
        except ValueError as error:
            failures.append(f"{error} The first: {embedded.skipped[0].reason}")
            continue
        for encoder in encoders:
            record = _evaluate_one(encoder, embedded, rows[embedded.embedded[rows]], usable, seeds, device)
            record |= {"skipped_clips": int((~embedded.embedded[rows]).sum()), "note": note, **_circumstances()}
            write_result(output_dir, record)
            results.append(record)
    table = write_table(output_dir) if results else ""
    if failures:
        raise ValueError(" ".join(failures))
    return Evaluation(results, embedded.skipped, table)


def _check_names(encoders: Sequence[Encoder], tasks: Sequence[TaskData]) -> None:
    for kind, names in (("encoders", [e.name for e in encoders]), ("tasks", [t.task.name for t in tasks])):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"The {kind} are {names}; at least one is needed, each with its own name.")


def _evaluate_one(
    encoder: Encoder,
    embedded: EmbeddedClips,
    rows: np.ndarray,
    data: TaskData,
    seeds: Sequence[int],
    device: str | torch.device,
) -> dict:
    start = time.perf_counter()
    runs = _fit_probes(embedded.tables[encoder.name][rows], data, seeds, device)
    test = data.table.rows("test")
    unit, groups = _resampling_unit(data, test)
    return {
        "task": {**asdict(data.task), "classes": data.table.classes},
        "encoder": {
            "name": encoder.name,
            "embedding_size": encoder.embedding_size,
            "sampling_rate": encoder.sampling_rate,
            **identity_of(encoder),
        },
        "metrics": _figures(data, [run.predictions for run in runs], test, groups, seeds[0]),
        "interval": {
            "method": "percentile bootstrap",
            "confidence": CONFIDENCE,
            "resamples": NUM_RESAMPLES,
            "seed": seeds[0],
            "unit": unit,
            "units": len(np.unique(groups)) if groups is not None else len(test),
        },
        "counts": _counts(data),
        "probe": _probe_record(runs, seeds, data, test) if encoder.embedding_size else {"kind": "most frequent label"},
        "manifests": [{**asdict(m), "path": shown_path(m.path)} for m in data.manifests],
        "seconds": {
            "embedding": round(embedded.seconds[encoder.name], 3),  # of all tasks' clips, which are embedded together
            "probe": round(time.perf_counter() - start, 3),
        },
    }


def _fit_probes(embeddings: np.ndarray, data: TaskData, seeds: Sequence[int], device: str | torch.device) -> list[ProbeRun]:
    table = data.table
    train, validation = (
        LabelledEmbeddings(embeddings[table.rows(split)], table.targets[table.rows(split)])
        for split in ("train", "validation")
    )
    test_embeddings = embeddings[table.rows("test")]
    return [fit_probe(train, validation, test_embeddings, len(table.classes), seed, device=device) for seed in seeds]


def _resampling_unit(data: TaskData, test: np.ndarray) -> tuple[str, np.ndarray | None]:
    """What a bootstrap draws: speakers, or clips where the classes are the speakers or where no speaker is known.

    With speaker identification, drawing speakers would change the task itself (the set of classes) from resample to resample.
    """
    speakers = data.speakers[test]
    if data.has_known_speakers or not (speakers != "").any():
        return "clip", None
    return "speaker", data.table.groups[test]


def _figures(
    data: TaskData, runs: Sequence[np.ndarray], test: np.ndarray, groups: np.ndarray | None, seed: int
) -> dict[str, dict]:
    labels = data.table.targets[test]
    figures = {}
    for name in data.task.metrics:
        metric = METRICS[name]
        figures[name] = {
            "value": float(np.mean([metric.compute(labels, predictions) for predictions in runs])),
            "interval": bootstrap_interval(metric, labels, runs, groups, seed),
            "greater_is_better": metric.greater_is_better,
        }
    return figures


def _probe_record(runs: Sequence[ProbeRun], seeds: Sequence[int], data: TaskData, test: np.ndarray) -> dict:
    labels = data.table.targets[test]
    chosen = [
        {
            "seed": seed,
            "learning_rate": run.learning_rate,
            "epoch": run.epoch,
            "validation_accuracy": run.validation_accuracy,
            **{name: METRICS[name].compute(labels, run.predictions) for name in data.task.metrics},
        }
        for seed, run in zip(seeds, runs)
    ]
    return {"kind": "linear", "settings": asdict(ProbeSettings()), "runs": chosen}


def _counts(data: TaskData) -> dict:
    table = data.table
    rows = {split: table.rows(split) for split in SPLITS}
    return {
        "clips": {split: len(of_split) for split, of_split in rows.items()},
        "speakers": {split: len(set(data.speakers[of_split]) - {""}) for split, of_split in rows.items()},
        "classes": {split: dict(sorted(Counter(table.labels[of_split]).items())) for split, of_split in rows.items()},
    }


def _circumstances() -> dict:
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {"versions": versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}
