"""What a result file says beside its figures: which task, data, encoder, settings and versions they are of."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from wavcse.data.manifest import SPLITS
from wavcse.eval.embedding_store import digest_of, encoder_record
from wavcse.eval.encoder import Encoder
from wavcse.eval.metrics import NUM_RESAMPLES
from wavcse.eval.outcomes import Outcome
from wavcse.eval.paths import shown_path
from wavcse.eval.probes import ProbeSettings
from wavcse.eval.task import TaskData
from wavcse.eval.verification import LDA_SIZES

LIBRARIES = ("wavcse", "torch", "transformers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class EvalSettings:
    """What changes the figures, apart from encoders and tasks.

    Args:
        seeds: one probe each; the figures are their mean, the intervals are about speakers (or clips), not seeds.
        note: shown under every table, for example that an upstream has random weights.
    """

    seeds: tuple[int, ...] = (0,)
    note: str = ""


def result_key(encoder: Encoder, data: TaskData, settings: EvalSettings, with_map: bool) -> str:
    """Hash of everything that a record depends on: task, bytes of manifests and trials, audio files, encoder, settings."""
    task = {name: value for name, value in asdict(data.task).items() if name != "benchmark"}
    described = {
        "task": task,
        "manifests": [(manifest.sha256, manifest.split_column) for manifest in data.manifests],
        "trials": data.trials_sha256,
        "audio": data.audio_stamp,
        "encoder": encoder_record(encoder),
        "settings": asdict(settings),
        "probe": asdict(ProbeSettings()),
        "lda_sizes": LDA_SIZES,
        "resamples": NUM_RESAMPLES,
        "with_map": with_map,
        "wavcse": version("wavcse"),
    }
    return digest_of(described)


def describe(outcome: Outcome, encoder: Encoder, data: TaskData, settings: EvalSettings) -> dict:
    """The record of one row of the table and encoder, without what is known of the run only."""
    return {
        "task": _task(data, outcome.target),
        "encoder": encoder_record(encoder),
        "metrics": outcome.measured(data.task.metrics, settings.seeds[0]),
        "interval": outcome.interval_record(settings.seeds[0]),
        "counts": _counts(data),
        "probe": outcome.probe,
        "figures": outcome.figures,
        "manifests": [{**asdict(manifest), "path": shown_path(manifest.path)} for manifest in data.manifests],
        **({"trials_sha256": data.trials_sha256} if data.trials is not None else {}),
        "note": settings.note,
        **_circumstances(),
    }


def _task(data: TaskData, target: str) -> dict:
    task = data.task
    return {
        "name": task.row_name(target),
        "task": task.family,
        "title": task.row_title(target),
        "kind": task.kind,
        "target": target,
        "classes": data.classes,
        "metrics": list(task.metrics),
        "split_columns": list(task.split_columns),
        "disjoint_by": task.disjoint_by,
        "note": task.note,
        "corpus": data.corpus,
        "protocols": sorted({manifest.protocol for manifest in data.manifests} - {""}),
        "benchmark": task.benchmark.record(target),
    }


def _counts(data: TaskData) -> dict:
    table = data.table
    rows = {split: table.rows(split) for split in SPLITS}
    counts = {
        "clips": {split: len(of_split) for split, of_split in rows.items()},
        "speakers": {split: len(set(data.speakers[of_split]) - {""}) for split, of_split in rows.items()},
    }
    if data.task.kind == "classification":
        counts["classes"] = {split: dict(sorted(Counter(table.labels[r]).items())) for split, r in rows.items()}
    if data.trials is not None:
        num_targets = int(np.sum(data.trials.labels))
        num_trials = len(data.trials.labels)
        counts["trials"] = {"test": num_trials, "same": num_targets, "different": num_trials - num_targets}
        counts["enrolments"] = {"test": len(data.trials.enrolments)}
    return counts


def _circumstances() -> dict:
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {"versions": versions, "date": datetime.now(UTC).isoformat(timespec="seconds")}
