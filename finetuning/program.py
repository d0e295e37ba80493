"""`finetune`: upstreams x seeds on one task -> result files of the task and of its groups of classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from wavcse.data.corpus_pass import write_skipped
from wavcse.data.files import digest_of, locked, make_folder
from wavcse.data.inspection import Inspector
from wavcse.eval.encoder import SavedModel
from wavcse.eval.evaluation import EvalSettings, EvaluationSummary, result_key, write_outcome
from wavcse.eval.metrics import METRICS
from wavcse.eval.probe import clip_ids, resampling_unit
from wavcse.eval.report import write_report
from wavcse.eval.results import Fit, Outcome, Result, confusion, finished_results
from wavcse.eval.table import FINETUNED
from wavcse.eval.task import TaskData, load_task
from wavcse.finetuning.arguments import FinetuneArguments
from wavcse.finetuning.audio import TaskAudio, load_audio
from wavcse.finetuning.groups import class_groups, group_data
from wavcse.finetuning.training import Finetuned, Upstream, finetune_upstream
from wavcse.steps.encoder import encoder_config, new_encoder, receptive_field
from wavcse.studies.variants import Variant
from wavcse.upstream_wavcse import build_on_meta

RUNS_FOLDER = "runs"
DETECTION = "ovr_eer"  # the metric of the scores of all classes; the others are of the most likely class


def finetune(args: FinetuneArguments, show_progress: bool = True) -> EvaluationSummary:
    """Fine-tune every upstream with every seed and test it (LASR, Table 1).

    Writes results/*.json, predictions/*.parquet, skipped.csv and the report as `wavcse eval` does, and below runs/ a folder
    per upstream and seed with settings, log and checkpoint. What is finished is kept.

    Raises:
        ValueError: settings, task, groups or upstreams do not fit, an unsound split, or another run is at work in
            `output_dir`; nothing has been trained then.
        FloatingPointError: a training diverged, or too many steps in a row were not finite; what is finished is kept.
    """
    sources = args.named_upstreams()
    inspector = Inspector(args.audio_dir)
    data = load_task(*args.task_request(), inspector=inspector)
    print(data.training_counts())
    data = replace(data, task=replace(data.task, metrics=(*data.task.metrics, DETECTION)))
    class_groups(args.groups, sources, data)  # before hours are spent on audio
    upstreams = [_upstream(name, source, args) for name, source in sources.items()]
    with locked(make_folder(args.output_dir)):
        return _finetune(args, data, upstreams, inspector, show_progress)


def _finetune(
    args: FinetuneArguments, data: TaskData, upstreams: Sequence[Upstream], inspector: Inspector, show_progress: bool
) -> EvaluationSummary:
    output_dir = Path(args.output_dir)
    audio = load_audio(data, [upstream.config for upstream in upstreams], args.audio_dir, inspector, show_progress)
    write_skipped(output_dir / "skipped.csv", audio.skipped)
    groups = class_groups(args.groups, args.upstreams, audio.data)
    rows = [audio.data, *(group_data(audio.data, name, classes) for name, classes in groups.items())]
    results = [record for upstream in upstreams for record in _records(args, upstream, audio, rows, show_progress)]
    return EvaluationSummary(results, audio.skipped, write_report(output_dir))


def variants_of(args: FinetuneArguments) -> dict[str, Variant]:
    """A variant per upstream, by name; what only the tables need is left out of its settings."""
    task = {key: value for key, value in args.task.items() if key not in ("title", "note")}
    folder = Path(args.output_dir) / RUNS_FOLDER
    shared = replace(args, seeds=1, task=task, groups={}, note="")
    own = {name: {"upstreams": {name: source}} for name, source in args.upstreams.items()}
    return {
        name: Variant(name, replace(shared, **fields, output_dir=str(folder / name)), fields) for name, fields in own.items()
    }


def _upstream(name: str, source: str, args: FinetuneArguments) -> Upstream:
    """An upstream that can be trained: all of them are read before the first one is trained for hours."""
    checkpoint = SavedModel(source)
    try:
        identity = checkpoint.identity()  # first: it refuses weights that are not safetensors
        config = encoder_config(args.encoder, source)
        receptive_field(config)  # refuses a stem whose frames are not 20 ms apart
        _refuse_new_weights(args.encoder, config, encoder_config({}, source))
        with checkpoint.loading():
            new_encoder(config, source)
    except (ValueError, StrictDataclassError) as error:  # the latter: the checkpoint has an invalid configuration
        raise ValueError(f"upstreams.{name}: {str(error).removeprefix('init_from: ')}") from error
    return Upstream(name, source, config, identity)


def _refuse_new_weights(fields: Collection[str], config: PretrainedConfig, own: PretrainedConfig) -> None:
    """ValueError if `fields`, with which a checkpoint's `own` configuration became `config`, ask for weights it has not."""
    shapes = {name: weight.shape for name, weight in build_on_meta(own).state_dict().items()}
    for name, weight in build_on_meta(config).state_dict().items():
        if shapes.get(name) != weight.shape:
            raise ValueError(f"encoder: with {sorted(fields)} changed, the checkpoint has no weights for {name}.")


def _records(
    args: FinetuneArguments, upstream: Upstream, audio: TaskAudio, rows: Sequence[TaskData], show_progress: bool
) -> list[Result]:
    """The records of an upstream, of all rows; found, or trained for."""
    settings = EvalSettings(tuple(range(args.seed, args.seed + args.seeds)), args.note)
    runs = variants_of(args)[upstream.name].runs(args.seeds)
    keys = [result_key(upstream, row, settings, with_map=False) for row in rows]
    key = digest_of([keys, [run.identity() for run in runs]])
    names = [row.task.name for row in rows]
    found = [] if args.overwrite_output_dir else finished_results(args.output_dir, names, upstream.name, key)
    if found:
        return found
    trained = [finetune_upstream(run, upstream, audio, show_progress) for run in runs]
    seconds = {
        "training": round(sum(run.progress.train_seconds for run in trained), 3),
        "prediction": round(sum(run.predict_s for run in trained), 3),
    }
    known = {"skipped_clips": len(audio.skipped), "seconds": seconds, "key": key}
    outcomes = [_outcome(row, audio.data, runs, trained) for row in rows]
    output_dir = Path(args.output_dir)
    return [write_outcome(own, upstream, row, settings, known, output_dir) for own, row in zip(outcomes, rows)]


def _outcome(row: TaskData, whole: TaskData, runs: Sequence[FinetuneArguments], trained: Sequence[Finetuned]) -> Outcome:
    """What the runs achieve in one row: the whole task, or a group of its classes."""
    places, tested = row.table.rows("test"), whole.table.rows("test")
    is_in_row = np.isin(whole.table.labels[tested], row.table.labels[places])
    scores = [run.scores[is_in_row] for run in trained]
    predictions = [own.argmax(axis=1) for own in scores]
    unit, groups = resampling_unit(row, places)
    labels = row.labels[places]
    return Outcome(
        target=row.task.targets[0],
        labels=labels,
        runs=predictions,
        names={"clip_id": clip_ids(row, places)},
        groups={"group": groups},
        unit=unit,
        probe=_training_record(row, labels, runs, trained, scores),
        figures=confusion(labels, predictions[0], row.classes),
        others={DETECTION: (DETECTION, scores)},
    )


def _training_record(
    row: TaskData,
    labels: np.ndarray,
    runs: Sequence[FinetuneArguments],
    trained: Sequence[Finetuned],
    scores: Sequence[np.ndarray],
) -> Fit:
    """How each run was trained, what validation chose, and its own figures."""
    apart = ("upstreams", "task", "groups", "seed", "seeds")  # said elsewhere in the record
    chosen = [
        {
            "seed": run.seed,
            "step": found.progress.best_step,
            "validation_accuracy": found.progress.best_accuracy,
            "skipped_steps": found.progress.skipped,
            **{
                name: METRICS[name].compute(labels, own if name == DETECTION else own.argmax(axis=1))
                for name in row.task.metrics
            },
        }
        for run, found, own in zip(runs, trained, scores)
    ]
    settings = {name: value for name, value in runs[0].identity().items() if name not in apart}
    return Fit(kind=FINETUNED, settings=settings, short_train_clips=trained[0].num_too_short, runs=chosen)
