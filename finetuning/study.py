"""Variants of a recipe of several tasks, trained with seeds and learning rates, their test figures beside published ones.

A study leaves a run folder `VARIANT.RATE/SEED` per training (`foldN` below it where a recipe has folds), `study.json`,
`study.md`, `study.html` and `pictures/`. Every figure is read from the runs' `results/`, `predictions/` and `log.jsonl`.
"""

from __future__ import annotations

from wavcse.finetuning.arguments import TASK_STUDY

if __name__ == "__main__":
    TASK_STUDY.answer()  # before the imports below, which take seconds

import json
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wavcse.data.files import json_text, locked, shown_path, write_atomically
from wavcse.eval.arguments import LayerCurvesArguments
from wavcse.eval.layers import draw as draw_layers
from wavcse.eval.layers import layer_curves
from wavcse.eval.metrics import METRICS
from wavcse.eval.table import shown
from wavcse.finetuning.arguments import FIGURES, MultiTaskArguments, ProbeSettings, TaskStudyArguments, TaskStudyRecipe
from wavcse.finetuning.attention_pictures import draw_attention, draw_blocks
from wavcse.finetuning.fold_study import compared, figures_of_folds
from wavcse.finetuning.fold_tables import WORDS, against_table, fold_table, single_folds_table
from wavcse.finetuning.folds import fold_names
from wavcse.finetuning.labelled_clips import refuse_leaks
from wavcse.finetuning.multi_task import finetune_tasks, result_of
from wavcse.finetuning.plan import plan_text
from wavcse.finetuning.shared_stages import train_shared_stages
from wavcse.finetuning.stages import laid_over, stages_of
from wavcse.reports.figures import draw_all, new_axes
from wavcse.reports.page import inert, made_by, markdown_table, opening, write_page
from wavcse.settings.command import DONE
from wavcse.settings.fields import check_choice, section_from, settings_from
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.studies.report import FILES, NONE, PICTURES
from wavcse.studies.variants import Variant, chosen, read_variants, train_all
from wavcse.training.run import RunFolder, versions

SET_BY_STUDY = ("output_dir", "overwrite_output_dir", "seed")
RECIPE_FIELDS = tuple(field.name for field in fields(MultiTaskArguments))
VARIANT_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in SET_BY_STUDY)
TITLE = "Study of networks on several tasks"
LAYERS = "layers"
NUM_COLORS, LINE_STYLES = 10, ("-", "--", ":")  # of matplotlib's cycle; then the next style
ATTENTION_WORDS = (
    "What each block is multiplied with, as the mean over the trainings; and the weight of every frame of the first test clip "
    "of each class in the first training, as a multiple of the mean over its frames."
)
LAYER_WORDS = (
    "EER of trials by the cosine of every layer's mean over time, before and after the training (first seeds), with 95 % "
    "intervals over speakers: Figure 1 of Vaessen and van Leeuwen 2023."
)


@dataclass(frozen=True)
class TaskStudy:
    """A checked study."""

    path: Path
    settings: TaskStudyRecipe
    variants: list[Variant]
    folder: Path

    def runs(self, variant: Variant) -> dict[float, list[MultiTaskArguments]]:
        """Learning rate -> the settings of its trainings: one per seed, and fold where the recipe has folds.

        Raises:
            ValueError: as `fold_names`.
        """
        found = {}
        folds = list(fold_names(variant.args)) if variant.args.folds else [None]
        for rate in self.settings.learning_rates or [variant.args.learning_rate]:
            place = Path(self.settings.runs_dir or self.folder) / f"{variant.name}.{rate:g}"
            seeds = range(variant.args.seed, variant.args.seed + self.settings.seeds)
            found[rate] = [_run(variant.args, rate, seed, fold, place) for seed in seeds for fold in folds]
        return found


def _run(args: MultiTaskArguments, rate: float, seed: int, fold: int | None, place: Path) -> MultiTaskArguments:
    folder = place / str(seed) if fold is None else place / str(seed) / f"fold{fold}"
    return replace(args, learning_rate=rate, seed=seed, fold=fold, output_dir=str(folder))


def read_study(path: str | Path, output_dir: str | None = None) -> TaskStudy:
    """Read and check a study.

    Raises:
        ValueError: a field or name is unknown, missing or out of range; the message says which.
    """
    raw = read_recipe(path, [field.name for field in fields(TaskStudyRecipe)])
    try:
        settings = settings_from(TaskStudyRecipe, raw)
        folder = Path(output_dir or settings.output_dir)
        recipe = read_recipe(settings.recipe, RECIPE_FIELDS)
        recipe = {name: value for name, value in recipe.items() if name not in SET_BY_STUDY}
        shared = {**recipe, **checked_fields("overrides", settings.overrides, VARIANT_FIELDS)}
        settings.variants = _of_upstreams(settings)
        own = {name: laid_over(shared, fields_of or {}) for name, fields_of in settings.variants.items()}
        variants = read_variants(own, [shared], MultiTaskArguments, folder, VARIANT_FIELDS, (*FILES, PICTURES))
        for variant in variants:
            try:
                stages_of(variant.args)
            except ValueError as error:
                raise ValueError(f"variants.{variant.name}: {error}") from error
        checked_fields("published", settings.published, [variant.name for variant in variants])
        known = dict.fromkeys(column for variant in variants for column in _columns_of(variant.args))
        for column in settings.columns:
            check_choice("columns: one", column, known)
        _check_tables(settings, known)
        _check_against(settings)
        if settings.layers:
            _layers_asked(settings.layers, {variant.name: "" for variant in variants}, folder)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    variants = [replace(variant, own=settings.variants[variant.name] or {}) for variant in variants]
    return TaskStudy(Path(path), settings, variants, folder)


def _of_upstreams(settings: TaskStudyRecipe) -> dict[str, Any]:
    """The variants, each from every upstream that the study names."""
    if not settings.upstreams:
        return settings.variants
    return {
        f"{upstream}.{name}": {**(own or {}), "init_from": start}
        for upstream, start in settings.upstreams.items()
        for name, own in settings.variants.items()
    }


def _check_tables(settings: TaskStudyRecipe, known: Collection[str]) -> None:
    for title, table in settings.tables.items():
        table = checked_fields(f"tables: {title}", table, ("variants", "columns"))
        for name in table.get("variants") or ():
            check_choice(f"tables: {title}: a variant", name, settings.variants)
        for column in table.get("columns") or ():
            check_choice(f"tables: {title}: a column", column, known)
    for name in settings.pictures_of:
        check_choice("pictures_of: one", name, settings.variants)


def _columns_of(args: MultiTaskArguments) -> list[str]:
    """TASK.FIGURE of all tests of a run."""
    tasks = args.task_settings()
    kinds = {name: task.kind for name, task in tasks.items()}
    kinds |= {name: tasks[one.of].kind for name, one in args.test_settings().items()}
    return [f"{name}.{figure}" for name, kind in kinds.items() for figure in FIGURES[kind] if figure != "loss"]


def run_study(study: TaskStudy, only: Sequence[str] = (), workers: int = 1) -> Path:
    """Train what is not trained yet and write the report of what is; returns the path of study.md.

    Raises:
        ValueError: the runs in the folder are others, a training failed (the others are done and reported), or none is
            finished.
    """
    with locked(study.folder):
        runs = {variant.name: _named_runs(study, variant) for variant in study.variants}
        asked = [runs[variant.name] for variant in chosen(study.variants, only)]
        wanted = {name for own in asked for name, run in own.items() if not result_of(run)}
        runs = {name: run for own in runs.values() for name, run in own.items()}
        refuse_leaks(stage for name, run in runs.items() if name in wanted for stage in stages_of(run))
        print(f"{study.path}: {len(wanted)} trainings to do.", flush=True)
        failures = train_shared_stages(runs, wanted, workers)
        jobs = {name: partial(finetune_tasks, run) for name, run in runs.items() if name in wanted and name not in failures}
        failures |= train_all({}, jobs, workers)
        facts = facts_of(study)
        if facts["variants"] and (folds := _folds(study, facts)):
            facts["folds"] = folds
        if facts["variants"] and study.settings.layers:
            facts["layers"] = _layer_curves(study, facts)
        words = " ".join(f"{name}: {failure}" for name, failure in failures.items())
        if not facts["variants"]:
            raise ValueError(words or "no training is finished.")
        page = write_report(facts, study.folder)
    if words:
        raise ValueError(words)
    return page


def _named_runs(study: TaskStudy, variant: Variant) -> dict[str, MultiTaskArguments]:
    """The runs of a variant by their folders below the study's."""
    return {
        f"{variant.name}.{rate:g}/{run.seed}" + (f"/fold{run.fold}" if run.fold else ""): run
        for rate, runs in study.runs(variant).items()
        for run in runs
    }


def planned_text(study: TaskStudy, only: Sequence[str] = ()) -> str:
    """What `run_study` would train."""
    runs = {
        f"{variant.name}.{rate:g}": own
        for variant in chosen(study.variants, only)
        for rate, own in study.runs(variant).items()
    }
    return plan_text(runs)


# ---- facts ----


def _layers_asked(section: Mapping[str, Any], models: Mapping[str, str], folder: Path) -> LayerCurvesArguments:
    allowed = [field.name for field in fields(LayerCurvesArguments) if field.name not in ("models", "output_dir")]
    asked = checked_fields("layers", section, allowed)
    return settings_from(LayerCurvesArguments, {**asked, "models": dict(models), "output_dir": str(folder / LAYERS)})


def _layer_curves(study: TaskStudy, facts: Mapping[str, Any]) -> dict[str, Any]:
    """EER of every layer before and after: of what the trainings start from, and of each variant's first seed."""
    done = [variant for variant in study.variants if variant.name in facts["variants"]]
    starts = dict.fromkeys(variant.args.init_from for variant in done if variant.args.init_from is not None)
    models = {f"before_{number}" if number else "before": start for number, start in enumerate(starts)}
    for variant in done:
        rate = facts["variants"][variant.name]["learning_rate"]
        models[variant.name] = str(Path(study.runs(variant)[rate][0].output_dir) / "upstream")
    return layer_curves(_layers_asked(study.settings.layers, models, study.folder))


def _folds(study: TaskStudy, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`compared` of the variants that are tested in folds; empty where none is."""
    trainings = {
        variant.name: study.runs(variant)[facts["variants"][variant.name]["learning_rate"]]
        for variant in study.variants
        if variant.args.folds and variant.name in facts["variants"]
    }
    return compared(trainings, _probes(study.settings), study.settings.against) if trainings else {}


def _probes(settings: TaskStudyRecipe) -> dict[str, ProbeSettings]:
    """The section `probes`; ValueError names what is wrong in it."""
    for name in settings.probes:
        if name in settings.variants:
            raise ValueError(f"probes.{name}: that is the name of a variant.")
    return {str(name): section_from(ProbeSettings, f"probes.{name}", own) for name, own in settings.probes.items()}


def _check_against(settings: TaskStudyRecipe) -> None:
    known = (*settings.variants, *_probes(settings))
    for name, others in settings.against.items():
        check_choice("against: a variant", name, settings.variants)
        if not isinstance(others, list):
            raise ValueError(f"against.{name} is {others!r}; a list of variants or probes is needed.")
        for other in others:
            check_choice(f"against.{name}: one", other, known)


def facts_of(study: TaskStudy) -> dict[str, Any]:
    """What `study.json` says, read from the files of the runs."""
    variants = {}
    for variant in study.variants:
        by_rate = {rate: [result_of(run) for run in runs] for rate, runs in study.runs(variant).items()}
        finished = {rate: results for rate, results in by_rate.items() if all(results)}
        if not finished:
            continue
        scores = {rate: statistics.mean(_score(result) for result in results) for rate, results in finished.items()}
        rate = min(scores, key=scores.get)
        published = study.settings.published.get(variant.name) or {}
        variants[variant.name] = {
            **_facts(variant, rate, finished[rate], study.runs(variant)[rate]),
            "scores": {f"{one:g}": score for one, score in scores.items()},
            "published": published,
        }
    return {
        "study": shown_path(study.path),
        "recipe": shown_path(study.settings.recipe),
        "seeds": study.settings.seeds,
        "source": study.settings.source,
        "columns": study.settings.columns,
        "tables": study.settings.tables,
        "differences": study.settings.differences,
        "pictures_of": study.settings.pictures_of,
        "variants": variants,
        "versions": versions(),
    }


def _score(result: Mapping[str, Any]) -> float:
    return result["validation"]["validation.score"]


def _facts(
    variant: Variant, rate: float, results: Sequence[Mapping[str, Any]], runs: Sequence[MultiTaskArguments]
) -> dict[str, Any]:
    first = results[0]
    stages = [stages_of(run) for run in runs]
    figures = figures_of_folds(runs) if runs[0].folds else _figures([[result_of(one) for one in own] for own in stages])
    log = RunFolder(stages[0][-1].output_dir).log.read_text(encoding="utf-8").splitlines()
    return {
        "own": variant.own,
        "learning_rate": rate,
        "figures": figures,
        "best_steps": [result["best_step"] for result in results],
        "steps": [result["steps"] for result in results],
        "minutes": round(statistics.mean(_minutes(own) for own in stages), 2),
        "parameters": first["num_parameters"],
        "block_shares": [result.get("block_shares", {}) for result in results],
        "attention": first.get("attention", {}),
        "log": [json.loads(line) for line in log],
    }


def _minutes(stages: Sequence[MultiTaskArguments]) -> float:
    """Of a run with all its stages."""
    return sum(result_of(stage)["train_seconds"] for stage in stages) / 60


def _figures(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """TASK.FIGURE of each run's stages, the last that has judged it, as the mean over runs; the interval is the first's."""
    found = {}
    for stage in zip(*runs):
        for task, records in stage[0]["tasks"].items():
            for figure, record in records.items():
                values = [result["tasks"][task][figure]["value"] for result in stage]
                known = {"value": statistics.mean(values), "values": values, "interval": record["interval"]}
                found[f"{task}.{figure}"] = {**known, "unit": record["unit"]}
    return found


# ---- the report ----


def write_report(facts: Mapping[str, Any], folder: Path) -> Path:
    """Write study.json, the pictures, study.md and study.html; returns the path of study.md."""
    text = json_text(facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "study.json", text)
    facts = json.loads(text)
    pictures = {"losses": _draw_losses, "figures": _draw_figures}
    if drawn := drawn_variants(facts):
        pictures |= {"blocks": partial(draw_blocks, names=drawn), "attention": partial(draw_attention, names=drawn)}
    draw_all(pictures, facts, folder / PICTURES)
    if "layers" in facts:
        draw_all({LAYERS: draw_layers}, facts["layers"], folder / PICTURES)
    return write_page(folder / "study.md", TITLE, study_text(inert(facts)))


def study_text(facts: Mapping[str, Any]) -> str:
    """study.md from the values of study.json."""
    answer = [
        f"{len(facts['variants'])} variants of `{facts['recipe']}`, {facts['seeds']} trainings each: figures of the test "
        "split by the step that validation chose, of several trainings their mean.",
        "Another seed moves every figure, so small differences say nothing.",
    ]
    parts = opening(TITLE, ("Validation over the steps", f"{PICTURES}/figures.svg"), answer)
    words = "Means over the seeds; in brackets the first seed's 95 % interval over speakers."
    if "folds" in facts:
        words = "Means over seeds and folds; in brackets the 95 % interval of all folds' test clips together, over speakers."
    if any(own["published"] for own in facts["variants"].values()):
        words += f" Behind a slash what {facts['source'] or 'a paper'} says, in percent, of its own data."
    parts += ["## Test figures", *_tables(facts), words, *(f"- {one}" for one in facts["differences"])]
    for task, own in facts.get("folds", {}).items():
        parts += [f"## Folds: {task}", *_fold_tables(own)]
    parts += ["## Training", _training_table(facts), f"![Losses]({PICTURES}/losses.svg)"]
    if drawn_variants(facts):
        parts += ["## What is attended to", ATTENTION_WORDS, f"![Weights of blocks]({PICTURES}/blocks.svg)"]
        parts += [f"![Attention over time]({PICTURES}/attention.svg)"]
    if "layers" in facts:
        parts += ["## Speakers by layer", LAYER_WORDS, f"![EER of every layer]({PICTURES}/{LAYERS}.svg)"]
    return "\n\n".join([*parts, made_by(f"python -m wavcse.finetuning.study {facts['study']}")]) + "\n"


def _fold_tables(own: Mapping[str, Any]) -> list[str]:
    """Of a task: all variants over the folds, and each figure fold by fold."""
    figures = dict.fromkeys(figure for one in own["variants"].values() for figure in one["figures"])
    tables = [single_folds_table(own["variants"], figure, own["tested"]) for figure in figures]
    return [fold_table(own["variants"]), WORDS, *([against_table(own["against"])] if "against" in own else []), *tables]


def _columns(facts: Mapping[str, Any]) -> list[str]:
    """The figures that the study names, or all of all variants, in the order in which they come."""
    return facts["columns"] or list(dict.fromkeys(name for own in facts["variants"].values() for name in own["figures"]))


def _tables(facts: Mapping[str, Any]) -> list[str]:
    """The tables that the study asks for, of what is finished; or one of all."""
    if not facts["tables"]:
        return [_figures_table(facts["variants"], _columns(facts))]
    parts = []
    for title, asked in facts["tables"].items():
        names = [name for name in asked.get("variants") or facts["variants"] if name in facts["variants"]]
        if names:
            own = {name: facts["variants"][name] for name in names}
            parts += [f"### {title}", _figures_table(own, asked.get("columns") or _columns(facts))]
    return parts


def _figures_table(variants: Mapping[str, Any], columns: Sequence[str]) -> str:
    heads = [_head(*name.rsplit(".", 1)) for name in columns]
    lines = [[name, *(_figure_cell(own, column) for column in columns)] for name, own in variants.items()]
    return markdown_table(["variant", *heads], lines)


def drawn_variants(facts: Mapping[str, Any]) -> list[str]:
    """Variants whose weights of blocks and frames are drawn: those that are asked for, or the first that has both."""
    able = [name for name, own in facts["variants"].items() if own["block_shares"][0] and _is_uneven(own["attention"])]
    return [name for name in able if name in facts["pictures_of"]] if facts["pictures_of"] else able[:1]


def _is_uneven(attention: Mapping[str, Any]) -> bool:
    """Whether frames of a clip have different weights: with a fusion of kind none all are the same."""
    return any(len(set(clip["weights"])) > 1 for classes in attention.values() for clip in classes.values())


def _head(task: str, figure: str) -> str:
    metric = METRICS[figure]
    return f"{task}: {metric.title}{', %' if metric.unit == 'percent' else ''}"


def _figure_cell(own: Mapping[str, Any], column: str) -> str:
    figure, published = own["figures"].get(column), own["published"].get(column)
    behind = "" if published is None else f" / {published}"
    if figure is None:
        return f"{NONE}{behind}"
    interval = ""
    if figure["interval"]:
        interval = " [{} – {}]".format(*(shown(end, figure["unit"]) for end in figure["interval"]))
    return f"{shown(figure['value'], figure['unit'])}{interval}{behind}"


def _training_table(facts: Mapping[str, Any]) -> str:
    columns = ["variant", "learning rate", "steps", "best step", "minutes", "parameters, M", "gradient cosine, last"]
    lines = []
    for name, own in facts["variants"].items():
        cosines = [value for key, value in own["log"][-1].items() if key.endswith("gradient_cosine")]
        lines.append(
            [
                name,
                f"{own['learning_rate']:g}",
                _numbers(own["steps"]),
                _numbers(own["best_steps"]),
                f"{own['minutes']:.1f}",
                f"{own['parameters'] / 1e6:.2f}",
                ", ".join(f"{value:.2f}" for value in cosines) or NONE,
            ]
        )
    return markdown_table(columns, lines)


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _draw_losses(facts: Mapping[str, Any]) -> Figure:
    names = sorted({key for own in facts["variants"].values() for key in own["log"][-1] if key.endswith("train_loss")})
    return _lines(facts, names)


def _draw_figures(facts: Mapping[str, Any]) -> Figure:
    logged = dict.fromkeys(name for own in facts["variants"].values() for name in own["log"][-1])
    shown = {column.rpartition(".")[2] for column in _columns(facts)}  # of any test set: validation has the task itself
    names = [name for name in logged if name.startswith("validation.") and name.rpartition(".")[2] in shown]
    return _lines(facts, names)


def _lines(facts: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """A panel per name, a line per variant, over the steps; of the first seed."""
    variants = facts["variants"]
    figure, panels = new_axes(4.0 * len(names) + 2.5, max(3.2, 0.5 + 0.2 * len(variants)), columns=len(names))
    lines: dict[str, Line2D] = {}
    for place, (variant, own) in enumerate(variants.items()):
        style = {"color": f"C{place % NUM_COLORS}", "linestyle": LINE_STYLES[place // NUM_COLORS % len(LINE_STYLES)]}
        for axes, name in zip(panels, names):
            points = [(entry["step"], entry[name]) for entry in own["log"] if name in entry]
            if points:
                (lines[variant],) = axes.plot(*zip(*points), **style)
    for axes, name in zip(panels, names):
        axes.set_title(name.removeprefix("validation."))
        axes.set_xlabel("step")
    figure.legend(lines.values(), lines, fontsize="small", loc="outside right upper")
    return figure


@TASK_STUDY.main
def main(options: TaskStudyArguments) -> int:
    """The command line."""
    if options.dry_run:
        print(planned_text(read_study(options.config, options.output_dir), options.only))
        return DONE
    page = run_study(read_study(options.config, options.output_dir), options.only, options.workers)
    print(page.read_text(encoding="utf-8"))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
