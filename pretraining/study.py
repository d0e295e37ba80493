"""Several variants of a pre-training recipe, trained, judged as frozen upstreams, and set side by side (docs/pretraining.md).

What a study is made of, its trainings, tables and pictures are of `wavcse.studies`; here is what is pre-training's own: how a
variant is trained and judged, and what its run folder and its upstream say.
"""

from __future__ import annotations

from wavcse.pretraining.arguments import STUDY

if __name__ == "__main__":
    STUDY.answer()  # before the imports below, which take seconds

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from wavcse.data.files import locked, shown_path
from wavcse.data.inspection import Inspector
from wavcse.eval.arguments import EVAL, EvalArguments
from wavcse.eval.baselines import BASELINES, DEFAULT_NAME, LAYER_BASELINES, build_encoders
from wavcse.eval.encoder import SavedModel
from wavcse.eval.evaluation import EvalSettings, EvaluationSummary, corpus_inspector, evaluate
from wavcse.eval.results import read_results
from wavcse.eval.task import load_task
from wavcse.pretrain_accelerate import data_fingerprint, initial_network, pretrain, start_folder
from wavcse.pretraining.arguments import PretrainArguments, StudyRecipe
from wavcse.pretraining.clips import PretrainingClips, load_clips, with_label_faults
from wavcse.reports.page import markdown_table
from wavcse.settings.command import DONE, SOME_SKIPPED
from wavcse.settings.fields import settings_from, usable_device
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.settings.studies import StudyArguments
from wavcse.steps.encoder import save_upstream
from wavcse.studies.report import (
    FILES,
    MEASURED,
    NONE,
    PICTURES,
    Layout,
    Plot,
    marked,
    percent,
    read_plots,
    study_facts,
    write_study,
)
from wavcse.studies.speed import kept_speed
from wavcse.studies.variants import Variant, chosen, read_variants, train_all
from wavcse.training.run import RunFolder, versions

EVALUATION = "evaluation"  # folder of the evaluation beside those of the variants
TAKEN = (EVALUATION, PICTURES, *FILES, DEFAULT_NAME, *BASELINES)  # the last ones are names in tables
SET_BY_STUDY = ("output_dir", "overwrite_output_dir", "stop_after_s")
RECIPE_FIELDS = tuple(field.name for field in fields(PretrainArguments))
VARIANT_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in SET_BY_STUDY)
PLOTTED_FIELDS = tuple(
    name for name in VARIANT_FIELDS if not isinstance(getattr(PretrainArguments(), name), dict | list | tuple)
)
UNTRAINED = "untrained"  # the mark of a variant whose encoder is saved as training finds it; in place of a fingerprint of data
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
TRAINING_WORDS = (
    "Of the last line of each log; audio-s/s is the median of all lines. Cross-entropy and code entropy in nats: a loss below "
    "the entropy knows more than how frequent a code is. Distances in units of π, means over the anchors of a batch: to the "
    "farthest clip of the same label and to the closest of another; without a label loss they are only watched."
)


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        path: its file; recipe: path of the recipe that its variants change; overrides: what they share.
        evaluation: how upstreams are judged; `model` and `name` in it mean nothing.
        rows: names of its rows; results of others in its folder, of an earlier evaluation, do not count.
        folder: where everything is left.
    """

    path: Path
    recipe: str
    overrides: dict[str, Any]
    variants: list[Variant]
    evaluation: EvalArguments
    rows: tuple[str, ...]
    measure_speed: bool
    plots: list[Plot]
    folder: Path


# -- what is asked for


def read_study(path: str | Path, output_dir: str | None = None) -> Study:
    """Read and check a study.

    Args:
        output_dir: instead of the study's own.

    Raises:
        ValueError: a field or name is unknown, missing or out of range; the message says which.
    """
    raw = read_recipe(path, [field.name for field in fields(StudyRecipe)])
    try:
        settings = settings_from(StudyRecipe, raw)
        folder = Path(output_dir or settings.output_dir)
        recipe = read_recipe(settings.recipe, RECIPE_FIELDS)
        recipe = {name: value for name, value in recipe.items() if name not in SET_BY_STUDY}
        overrides = checked_fields("overrides", settings.overrides, VARIANT_FIELDS)
        shared = [recipe, overrides]
        variants = read_variants(
            settings.variants, shared, PretrainArguments, folder, VARIANT_FIELDS, TAKEN, marks=(UNTRAINED,)
        )
        evaluation = EVAL.parse([settings.evaluation, "--output_dir", str(folder / EVALUATION)])
        rows = tuple(request.task.row_name(target) for request in evaluation.requests() for target in request.task.targets)
        names = [variant.name for variant in variants]
        plots = read_plots(settings.plots, names, PLOTTED_FIELDS, rows, settings.measure_speed)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Study(Path(path), settings.recipe, overrides, variants, evaluation, rows, settings.measure_speed, plots, folder)


def upstream_of(variant: Variant) -> Path:
    """The transformers folder of a variant's encoder."""
    return variant.folder / "upstream"


# -- training and judging


def run_study(study: Study, only: Sequence[str] = (), workers: int = 1) -> EvaluationSummary:
    """Train what is not trained yet, judge every variant that is, and write study.json, study.md and study.html.

    Args:
        only: names of the variants to train; empty = all. The others are judged if they are finished.
        workers: how many variants are trained at a time.

    Raises:
        ValueError: settings or data of a variant have changed; another run is at work in the study's folder; a variant could
            not be trained (the others are, and the study is written before this is raised); no variant is finished; or as
            `evaluate`.
    """
    asked = chosen(study.variants, only)
    with locked(study.folder):
        finished = [variant for variant in study.variants if is_finished(variant)]
        wanted = [variant for variant in asked if variant not in finished]
        print(f"{study.path}: {len(study.variants)} variants, {len(finished)} finished, {len(wanted)} to do.", flush=True)
        here = {v.name: partial(_save_untrained, v) for v in wanted if v.marks[UNTRAINED]}
        apart = {v.name: partial(pretrain, v.args) for v in wanted if not v.marks[UNTRAINED]}
        failures = train_all(here, apart, workers)
        there = [v for v in study.variants if v in finished or (v in wanted and v.name not in failures)]
        words = " ".join(f"variants.{name}: {failure}" for name, failure in failures.items())
        if not there:
            raise ValueError(words or "no variant is finished.")
        evaluation = judge(study, there)
    if words:
        raise ValueError(words)
    return evaluation


def is_finished(variant: Variant) -> bool:
    """Whether the variant's encoder is there; ValueError if its folder holds another run than the study describes."""
    folder = RunFolder(variant.folder)
    if not (folder.path / "config.yaml").exists():
        return False
    try:
        folder.prepare(variant.args, _fingerprint(variant), data="clips, labels or training")
    except ValueError as error:
        hint = "In a study: give the variant another name, or remove that folder."
        raise ValueError(f"variants.{variant.name}: {error} {hint}") from error
    saved = upstream_of(variant) / "preprocessor_config.json"
    return (saved if variant.marks[UNTRAINED] else folder.results / "pretraining.json").exists()


def _fingerprint(variant: Variant) -> str:
    """Of what a variant learns from: clips, labels, and the run that it goes on from."""
    if variant.marks[UNTRAINED]:
        return UNTRAINED
    args = variant.args
    sources = (args.data, args.label_column, args.exclude_speakers_of, args.exclude_split_columns, args.audio_dir)
    clips = _clips(*map(json.dumps, sources))  # in the recipe's order, which is that of the clips
    targets = with_label_faults(clips, args.missing_label_rate, args.noisy_label_rate, args.seed)
    return data_fingerprint(clips.names, targets.tolist(), start_folder(args.init_from))


@lru_cache(maxsize=1)
def _clips(*sources: str) -> PretrainingClips:
    """Most variants of a study share their data."""
    data, label_column, *held_out, audio_dir = map(json.loads, sources)
    return load_clips(PretrainArguments(data=data).clip_sources(), label_column, *held_out, Inspector(audio_dir))


def _save_untrained(variant: Variant) -> None:
    encoder = initial_network(variant.args).encoder
    RunFolder(variant.folder).prepare(variant.args, _fingerprint(variant))
    save_upstream(encoder, upstream_of(variant))


def judge(study: Study, variants: Sequence[Variant]) -> EvaluationSummary:
    """Evaluate the upstreams of finished variants and baselines together, measure their speed, write the study's files."""
    settings = study.evaluation
    device = usable_device(settings.device)
    baselines = [name for name in settings.baselines if name not in LAYER_BASELINES]
    encoders = build_encoders(None, None, baselines, device)  # first: the first encoder's records hold more than the others'
    how = {"device": device, "temporal_pooling": settings.temporal_pooling}
    for variant in variants:
        encoders += build_encoders(str(upstream_of(variant)), variant.name, [READOUT], **how)
    inspector = corpus_inspector(settings.output_dir)
    evaluation = evaluate(
        encoders,
        [load_task(*request, inspector=inspector) for request in settings.requests()],
        settings.output_dir,
        EvalSettings(tuple(range(settings.seed, settings.seed + settings.seeds)), settings.note),
        batch_seconds=settings.batch_seconds,
        device=device,
        overwrite=settings.overwrite,
        inspector=inspector,
    )
    write_study(facts_of(study, variants, baselines), LAYOUT, study.folder)
    return evaluation


# -- facts


def facts_of(study: Study, variants: Sequence[Variant], baselines: Sequence[str]) -> dict:
    """What `study.json` says of finished variants and of the baselines beside them, read from files that others wrote."""
    known = {
        "study": shown_path(study.path),
        "recipe": shown_path(study.recipe),
        "overrides": study.overrides,
        "evaluation": shown_path(study.evaluation.output_dir),
        "temporal_pooling": study.evaluation.temporal_pooling or "mean",
        "plots": [asdict(plot) for plot in study.plots],
    }
    drawn = {plot.x for plot in study.plots} - set(MEASURED)
    own = {variant.name: _facts(variant, drawn) for variant in variants}
    if study.measure_speed:
        upstreams = {variant.name: upstream_of(variant) for variant in variants}
        for name, speed in kept_speed(upstreams, study.folder / "speed.json").items():
            own[name]["speed"] = speed
    encoders = {**{name: f"{name}_{READOUT}" for name in own}, **{name: name for name in baselines}}
    results = [result for result in read_results(study.evaluation.output_dir) if result.task.name in study.rows]
    return study_facts(known, own, baselines, encoders, results, versions())


def _facts(variant: Variant, drawn: Iterable[str]) -> dict:
    """Of a variant: its settings, size and training."""
    upstream = upstream_of(variant)
    config = json.loads((upstream / CONFIG_NAME).read_text(encoding="utf-8"))
    return {
        "own": variant.own,
        "untrained": variant.marks[UNTRAINED],
        "settings": {name: getattr(variant.args, name) for name in sorted(drawn)},
        "shape": {name: config[name] for name in SHAPE},
        "parameters": SavedModel(str(upstream)).num_parameters(),
        "megabytes": round((upstream / SAFE_WEIGHTS_NAME).stat().st_size / 1e6, 3),
        "training": None if variant.marks[UNTRAINED] else _training(variant.folder),
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


# -- tables


def _how(facts: Mapping) -> str:
    return (
        "its frozen upstream is judged by linear probes on its layers, "
        f"pooled over time by `{facts['temporal_pooling']}`, each task's layer chosen on validation clips."
    )


def _variants_table(facts: Mapping) -> str:
    has_speed = any("speed" in own for own in facts["variants"].values())
    columns = ["variant", "differs in", "stem: channels (kernels / strides)", "blocks", "width", "parameters, M", "size, MB"]
    columns += ["times real time", "beside the first [spread]"] if has_speed else []
    lines = []
    for name, own in facts["variants"].items():
        shape = own["shape"]
        line = [marked(facts, name), _own_words(own), _stem_words(shape), shape["num_hidden_layers"], shape["hidden_size"]]
        line += [f"{own['parameters'] / 1e6:.2f}", f"{own['megabytes']:.1f}"]
        line += _speed_cells(own.get("speed")) if has_speed else []
        lines.append([*line, percent(own["mean_validation"])])
    table = markdown_table([*columns, "mean validation accuracy, %"], lines)
    words = (
        "\n\nTimes real time: seconds of audio per second through the packed path on one thread, median of interleaved rounds "
        "on the same clips; the ratios are taken within a round, their spread is (largest - smallest) / median."
    )
    return table + (words if has_speed else "")


def _own_words(own: Mapping) -> str:
    fields = [f"{name} {value}" for name, value in own["own"].items() if name != "encoder"]
    return ", ".join(
        [*(["before training"] if own["untrained"] else []), *(["encoder"] if own["own"].get("encoder") else []), *fields]
    )


def _stem_words(shape: Mapping) -> str:
    channels = dict.fromkeys(shape["conv_dim"])
    kernels, strides = (", ".join(map(str, shape[name])) for name in ("conv_kernel", "conv_stride"))
    return f"{len(shape['conv_dim'])} × {', '.join(map(str, channels))} ({kernels} / {strides})"


def _speed_cells(speed: Mapping | None) -> list[str]:
    if speed is None:
        return [NONE, NONE]
    return [f"{speed['times_real_time']:.0f}", f"{speed['ratio']:.2f} [{100 * speed['spread']:.0f} %]"]


def _training_section(facts: Mapping) -> list[str]:
    """Empty where no variant was trained."""
    columns = ["variant", "steps", "audio-s/s", "masked loss", "code entropy", "masked accuracy, %", "label loss"]
    columns += ["positive distance", "negative distance", "active, %"]
    lines = []
    for name, own in facts["variants"].items():
        if (run := own["training"]) is None:
            continue
        nats = [_number(run[field]) for field in ("masked_loss", "code_entropy")]
        distances = [_number(run[field]) for field in ("label_loss", "positive_distance", "negative_distance")]
        cells = [run["steps"], f"{run['audio_s_per_s']:.0f}", *nats, percent(run["masked_accuracy"]), *distances]
        lines.append([marked(facts, name), *cells, percent(run["active_share"])])
    return ["## Training", markdown_table(columns, lines), TRAINING_WORDS] if lines else []


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


LAYOUT = Layout(
    title="Study of pre-training variants",
    command="python -m wavcse.pretraining.study",
    how=_how,
    validation=(
        "What choices are made by, so the highest of several is too high. In brackets the layer (0 = input of the first "
        "block). Variants differ by chance, too."
    ),
    variants=_variants_table,
    sections=_training_section,
)


@STUDY.main
def main(options: StudyArguments) -> int:
    """The command line; returns 0, or 3 if clips of the evaluation had to be skipped."""
    study = read_study(options.config, options.output_dir)
    evaluation = run_study(study, options.only, options.workers)
    print((study.folder / "study.md").read_text(encoding="utf-8"))
    return SOME_SKIPPED if evaluation.skipped else DONE


if __name__ == "__main__":
    sys.exit(main())
