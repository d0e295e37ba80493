"""What a study found, as JSON values: of every variant its size, speed, training, validation and test figures.

All of it is read from files that others wrote: the run folders, the upstreams, and the records of the evaluation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from wavcse.data.files import shown_path
from wavcse.eval.encoder import SavedModel
from wavcse.eval.results import Result, read_results
from wavcse.eval.table import Row, rows_of
from wavcse.pretraining.study_config import MEASURED, Study, Variant
from wavcse.training.run import RunFolder, versions

READOUT = "best_layer"  # how an upstream is judged: for each task the layer that is best on its validation clips
SHAPE = ("conv_dim", "conv_kernel", "conv_stride", "num_hidden_layers", "hidden_size", "num_attention_heads")
LAST = (
    "masked_loss",
    "code_entropy",
    "masked_accuracy",
    "label_loss",
    "positive_distance",
    "negative_distance",
    "active_share",
)


def encoder_name(variant: str) -> str:
    """What the evaluation calls a variant's upstream."""
    return f"{variant}_{READOUT}"


def study_facts(
    study: Study, variants: Sequence[Variant], baselines: Sequence[str], speed: Mapping[str, Mapping] | None
) -> dict:
    """All that tables and pictures of a study show.

    Args:
        variants: those that are finished and evaluated.
        baselines: encoders of the evaluation beside them.
        speed: of `kept_speed`.

    Returns:
        `variants` and `baselines`: name -> facts; `rows`: row of the evaluation -> what it is; `best`: the variant with the
        highest mean validation accuracy; the settings; versions.
    """
    encoders = {**{variant.name: encoder_name(variant.name) for variant in variants}, **{name: name for name in baselines}}
    records = [own for own in read_results(study.evaluation.output_dir) if own.task.name in study.rows]
    rows = rows_of([own for own in records if own.encoder["name"] in encoders.values()])
    judged = {name: _judged(rows, encoder) for name, encoder in encoders.items()}
    drawn = {plot.x for plot in study.plots} - set(MEASURED)
    facts = {variant.name: _facts(variant, drawn) | judged[variant.name] for variant in variants}
    for name, own in (speed or {}).items():
        facts[name]["speed"] = own
    best = max(facts, key=lambda name: facts[name]["mean_validation"] or 0.0)
    return {
        "study": shown_path(study.path),
        "recipe": shown_path(study.recipe),
        "overrides": study.overrides,
        "evaluation": shown_path(study.evaluation.output_dir),
        "temporal_pooling": study.evaluation.temporal_pooling or "mean",
        "plots": [asdict(plot) for plot in study.plots],
        "rows": {row.name: _row_facts(row) for row in rows},
        "best": best if facts[best]["mean_validation"] is not None else None,
        "variants": facts,
        "baselines": {name: judged[name] for name in baselines},
        "versions": versions(),
    }


def _row_facts(row: Row) -> dict[str, str]:
    return {"title": row.title, "kind": row.task.kind, "metric": row.primary, "unit": row.unit}


def _facts(variant: Variant, drawn: Iterable[str]) -> dict:
    config = json.loads((variant.upstream / CONFIG_NAME).read_text(encoding="utf-8"))
    return {
        "own": variant.own,
        "untrained": variant.untrained,
        "settings": {name: getattr(variant.args, name) for name in sorted(drawn)},
        "shape": {name: config[name] for name in SHAPE},
        "parameters": SavedModel(str(variant.upstream)).num_parameters(),
        "megabytes": round((variant.upstream / SAFE_WEIGHTS_NAME).stat().st_size / 1e6, 3),
        "training": None if variant.untrained else _training(variant.folder),
    }


def _training(folder: Path) -> dict[str, Any]:
    """Of a finished run: the last line of its log, its speed as the median of all lines."""
    run = RunFolder(folder)
    result = json.loads((run.results / "pretraining.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    return {
        "steps": result["steps"],
        "seconds": result["train_seconds"],
        "device": result["device"],
        "audio_s_per_s": statistics.median(entry["audio_s_per_s"] for entry in log),
        **{name: result["last"].get(name) for name in LAST},
    }


def _judged(rows: Sequence[Row], encoder: str) -> dict:
    """Test figures of every row; validation figures of the classifications, where something was chosen, and their mean.

    There is no mean where a classification is missing: it would not be of the same tasks as the others' means.
    """
    here = [row for row in rows if encoder in row.records]
    validation = {row.name: found for row in here if (found := _validation(row.records[encoder])) is not None}
    classifications = [row.name for row in rows if row.task.kind == "classification"]
    accuracies = [validation[name]["accuracy"] for name in classifications if name in validation]
    is_whole = bool(accuracies) and len(accuracies) == len(classifications)
    return {
        "validation": validation,
        "mean_validation": statistics.fmean(accuracies) if is_whole else None,
        "test": {row.name: {"metric": row.primary, **asdict(row.figure(encoder))} for row in here},
    }


def _validation(result: Result) -> dict | None:
    """Validation accuracy, the mean over the probes' seeds, and the layer that it chose."""
    accuracies = [run["validation_accuracy"] for run in result.probe.runs or () if "validation_accuracy" in run]
    if not accuracies:
        return None
    return {"accuracy": statistics.fmean(accuracies), "layer": result.probe.candidate}
