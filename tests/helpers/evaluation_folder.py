"""A folder as `wavcse eval` leaves it, with planted predictions of all kinds of tasks: what reports are tested on.

Encoders differ by how much noise lies on the truth, so their order is known. The figures come from the evaluation's own
metrics; tests that look at values compute them by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from wavcse.eval.results import (
    Counts,
    Fit,
    Outcome,
    Result,
    TaskRecord,
    confusion,
    embedding_map,
    predictions_path,
    scatter,
    write_predictions,
    write_result,
)
from wavcse.eval.tasks import TASKS
from wavcse.eval.verification import det_curve

NOISE = {"wavcse": 0.15, "best_layer": 0.18, "mfcc": 0.5, "majority": None}  # None: one answer to everything
NUM_SPEAKERS, CLIPS_PER_SPEAKER = 12, 10
CLASSES = {"keyword": ["down", "left", "right", "up"], "gender": ["female", "male"]}
SHOWN = ("keyword", "verification", "gender", "age", "affect")


def make_folder(folder: Path, corpora: Mapping[str, str] | None = None, noise: Mapping[str, float | None] = NOISE) -> Path:
    """Write results/*.json and predictions/*.parquet of five tasks, seven rows; returns the folder.

    Args:
        corpora: task -> name of its corpus; others are synthetic.
    """
    for place, name in enumerate(SHOWN):
        for target in TASKS[name].targets:
            for encoder, size in noise.items():
                rng = np.random.default_rng([place, len(target)])  # every encoder meets the same truth and the same draws
                corpus = (corpora or {}).get(name, f"synthetic-{name}")
                add_result(folder, name, target, encoder, planted(rng, name, size), corpus)
    return folder


def planted(rng: np.random.Generator, name: str, noise: float | None, seeds: int = 1) -> pd.DataFrame:
    """Labels (classes by index) and predictions of one encoder on one task, in the columns of a file of predictions."""
    speakers = np.repeat([f"s{i:02d}" for i in range(NUM_SPEAKERS)], CLIPS_PER_SPEAKER)
    clips = np.array([f"{speaker}/{i:03d}.wav" for i, speaker in enumerate(speakers)])
    if TASKS[name].kind == "verification":
        return _planted_trials(rng, clips, speakers, noise)
    if TASKS[name].kind == "regression":
        low, high = TASKS[name].label_range or (20.0, 60.0)
        truth = rng.uniform(low, high, len(clips))
        errors = (high - low) * rng.standard_normal((seeds, len(clips)))
        runs = [np.full(len(clips), np.median(truth)) if noise is None else truth + noise * own for own in errors]
    else:
        truth = np.arange(len(clips)) % len(CLASSES[name])
        draws, others = rng.random((seeds, len(clips))), (truth + 1) % len(CLASSES[name])
        runs = [np.zeros_like(truth) if noise is None else np.where(own < noise, others, truth) for own in draws]
    columns = {"clip_id": clips, "group": speakers, "label": truth}
    return pd.DataFrame(columns | {f"prediction_{seed}": run for seed, run in enumerate(runs)})


def _planted_trials(rng: np.random.Generator, clips: np.ndarray, speakers: np.ndarray, noise: float | None) -> pd.DataFrame:
    """Trials of random pairs, a third of them of one speaker; scores are the label with noise."""
    first, other = rng.integers(len(clips), size=(2, 600))
    same = CLIPS_PER_SPEAKER * (first // CLIPS_PER_SPEAKER) + rng.integers(CLIPS_PER_SPEAKER, size=600)
    second = np.where(rng.random(600) < 1 / 3, same, other)
    labels = (speakers[first] == speakers[second]).astype(int)
    scores = (0.0 if noise is None else 2 * noise) * rng.standard_normal(600) + (0 if noise is None else labels)
    columns = {"enrolment": clips[first], "test": clips[second], "group_a": speakers[first], "group_b": speakers[second]}
    return pd.DataFrame({**columns, "label": labels, "prediction_0": scores})


def add_result(
    folder: Path, name: str, target: str, encoder: str, table: pd.DataFrame, corpus: str, skipped_clips: int = 0
) -> None:
    """Write the record and the predictions of one encoder on one target, from a table as `planted` makes it."""
    outcome, task = _outcome(name, target, encoder, table), TASKS[name]
    classes = CLASSES.get(name, [])
    described = TaskRecord(
        name=task.row_name(target),
        task=name,
        title=task.row_title(target),
        kind=task.kind,
        target=target,
        classes=classes,
        metrics=list(task.metrics),
        corpus=corpus,
        protocols=[task.benchmark.protocol if corpus == task.benchmark.corpus else "planted"],
        disjoint_by=task.disjoint_by,
        note=task.note,
        benchmark=task.benchmark.record(target),
    )
    metrics, interval = outcome.measured(task.metrics, seed=0)
    result = Result(
        task=described,
        encoder=_encoder(encoder),
        metrics=metrics,
        interval=interval,
        counts=_counts(table, classes),
        probe=outcome.probe,
        figures=outcome.figures,
        manifests=[{"path": "x/metadata.csv", "sha256": "ab" * 32, "split_column": "split", "protocol": "planted"}],
        seconds={"embedding": 1.25, "probe": 0.5},
        skipped_clips=skipped_clips,
        note="planted.",
        versions={"python": "3.11.7", "torch": "2.13.0", "wavcse": "0.1.0"},
        date="2026-11-21T12:00:00+00:00",
    )
    write_result(folder, result)
    write_predictions(predictions_path(folder, described.name, encoder), outcome.predictions(classes))


def _outcome(name: str, target: str, encoder: str, table: pd.DataFrame) -> Outcome:
    columns = {column: table[column].to_numpy() for column in table}
    is_trials = TASKS[name].kind == "verification"
    labels, runs = columns["label"], [values for column, values in columns.items() if column.startswith("prediction_")]
    return Outcome(
        target=target,
        labels=labels,
        runs=runs,
        names={column: columns[column] for column in (("enrolment", "test") if is_trials else ("clip_id",))},
        groups={column: columns[column] for column in (("group_a", "group_b") if is_trials else ("group",))},
        unit="speaker",
        probe=_probe(TASKS[name].kind, encoder, len(runs)),
        figures=_figures(name, encoder, labels, runs[0]),
        others={"eer_cosine": ("eer", runs)} if is_trials else {},
    )


def _figures(name: str, encoder: str, labels: np.ndarray, predictions: np.ndarray) -> dict:
    if TASKS[name].kind == "verification":
        return {"det": det_curve(labels, predictions)}
    if TASKS[name].kind == "regression":
        return scatter(labels, predictions, seed=0)
    own = confusion(labels, predictions, CLASSES[name])
    if encoder == "wavcse":
        points = np.random.default_rng(0).standard_normal((len(labels), 3)) + 4 * labels[:, None]
        own |= embedding_map(points, [CLASSES[name][label] for label in labels], seed=0)
    return own


def _encoder(name: str) -> dict:
    own = {"name": name, "embedding_size": 0 if name == "majority" else 20, "sampling_rate": 16_000}
    if name in ("wavcse", "best_layer"):
        own |= {"model": "runs/x/hub", "weights_sha256": "0123456789abcdef" * 4}
    return own | ({"layers": "0-6"} if name == "best_layer" else {})


def _probe(kind: str, encoder: str, num_runs: int) -> Fit:
    if encoder == "majority":
        return Fit(kind="constant score" if kind == "verification" else "most frequent label")
    candidate = 5 if encoder == "best_layer" else None
    if kind == "verification":
        eers = {"25": 0.2, "50": 0.125}
        return Fit(kind="PLDA", lda_size=50, validation_eer=0.125, validation_eers=eers, candidate=candidate)
    runs = [{"seed": seed, "learning_rate": 0.0025, "epoch": 12, "validation_accuracy": 0.75} for seed in range(num_runs)]
    return Fit(kind="linear", settings={"batch_size": 64, "l1": 1e-7, "l2": 1e-5}, candidate=candidate, runs=runs)


def _counts(table: pd.DataFrame, classes: list[str]) -> Counts:
    """Of the test split as it is; training has twice, validation as much."""
    groups = [column for column in table if column.startswith("group")]
    clips = len(set(table["enrolment"]) | set(table["test"])) if "enrolment" in table else len(table)
    numbers = {"clips": clips, "speakers": len(set(table[groups].to_numpy().ravel()))}
    counts = {kind: {"train": 2 * own, "validation": own, "test": own} for kind, own in numbers.items()}
    if "enrolment" in table:
        counts["trials"] = {"test": len(table)}
    own = {name: int((table["label"] == place).sum()) for place, name in enumerate(classes)}
    return Counts(**counts, classes=dict.fromkeys(counts["clips"], own) if classes else None)
