"""What an embedding keeps for tasks that it was not trained on: variants of a recipe, a group of tasks left out at a time.

Every variant is trained once per group of tasks, without that group's tasks, and once on all of them; each time with every
seed. Linear probes on the embeddings then learn the rows of the evaluation: those of the group from the trainings that left it
out, and all rows from the trainings on everything. Beside the variants stand the layers themselves, the best one of every row
(chosen on validation) and their mean. A variant is compared with the best of as many blocks as it runs itself. All of it reads
one feature cache, so no audio is encoded.
"""

from __future__ import annotations

from wavcse.search.arguments import TRANSFER, TransferRecipe

if __name__ == "__main__":
    TRANSFER.answer()  # before the imports below, which take seconds

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from wavcse.data.features import FeatureCache, open_cache
from wavcse.data.files import digest_of, locked, shown_path
from wavcse.data.inspection import Inspector
from wavcse.eval.arguments import EVAL, EvalArguments
from wavcse.eval.encoder import CachedEncoder
from wavcse.eval.evaluation import FITS, EvalSettings, result_key, write_outcome
from wavcse.eval.results import Outcome, Result, finished_results, read_results
from wavcse.eval.table import Comparison, compare_pair, rows_of
from wavcse.eval.task import TaskData, load_task
from wavcse.modeling_wavcse import WavCSEDownstream
from wavcse.reports.page import markdown_table
from wavcse.search.fit import settings_of, started_learner, train_learners
from wavcse.search.table import SearchTable, read_table
from wavcse.settings.command import DONE
from wavcse.settings.fields import settings_from
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.settings.studies import StudyPart
from wavcse.studies.report import NONE, Layout, Plot, marked, percent, read_plots, study_facts, write_study
from wavcse.studies.variants import Variant, chosen, read_variants
from wavcse.training.arguments import RunArguments
from wavcse.training.run import versions

UNTRAINED = "untrained"  # the mark of a variant that is judged as training finds it
ON_ALL = ".on_all"  # behind the name of a variant that was trained on all tasks
BEST, MEAN = "best_layer", "mean_layers"
OF_CACHE = ("upstream", "revision", "cache_dir")  # one for all variants
SET_BY_STUDY = (
    "tasks",
    "output_dir",
    "overwrite_output_dir",
    "save_hub",
    "report_to",
    "seed",
)
RECIPE_FIELDS = tuple(RunArguments.__dataclass_fields__)
VARIANT_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in (*SET_BY_STUDY, *OF_CACHE))
EMBEDDED_AT_ONCE = 4096  # clips


@dataclass(frozen=True)
class Group:
    """Tasks that are left out of training together, such as all that name words.

    Attributes:
        left_out: tasks of the recipe; none where the training on all tasks is judged.
        rows: tasks of the evaluation that are judged by it.
    """

    name: str
    left_out: tuple[str, ...]
    rows: tuple[str, ...]


@dataclass(frozen=True)
class TransferStudy:
    """A checked study.

    Attributes:
        recipe: path of the recipe; shared: its fields, which all variants have.
        evaluation: which tasks the probes learn; its model and baselines mean nothing here.
    """

    path: Path
    recipe: str
    overrides: dict[str, Any]
    shared: RunArguments
    variants: list[Variant]
    groups: list[Group]
    evaluation: EvalArguments
    seeds: tuple[int, ...]
    plots: list[Plot]
    folder: Path

    def settings(self, variant: Variant, group: Group) -> list[RunArguments]:
        """Of a variant's trainings without the tasks of a group, one per seed."""
        tasks = {name: source for name, source in self.shared.tasks.items() if name not in group.left_out}
        seeds = self.seeds[:1] if variant.marks[UNTRAINED] else self.seeds
        return [replace(variant.args, tasks=tasks, seed=seed) for seed in seeds]

    def best_layers(self) -> dict[str, int]:
        """Name of a best layer -> the deepest layer that it is chosen from: the recipe's, and that of every variant."""
        own = max(self.shared.selected_layers)
        others = {max(variant.args.selected_layers) for variant in self.variants} - {own}
        return {BEST: own, **{f"{BEST}_to_{deepest}": deepest for deepest in sorted(others)}}

    def best_layer_for(self, variant: Variant) -> str:
        """Name of the best layer of as many blocks as the variant runs."""
        return next(name for name, deepest in self.best_layers().items() if deepest == max(variant.args.selected_layers))


# -- what is asked for


def read_study(path: str | Path, output_dir: str | None = None) -> TransferStudy:
    """Read and check a study.

    Args:
        output_dir: instead of the study's own.

    Raises:
        ValueError: a field or name is unknown, missing or out of range; the message says which.
    """
    raw = read_recipe(path, list(TransferRecipe.__dataclass_fields__))
    try:
        asked = settings_from(TransferRecipe, raw)
        folder = Path(output_dir or asked.output_dir)
        recipe = {**read_recipe(asked.recipe, RECIPE_FIELDS), "save_hub": False}
        overrides = checked_fields("overrides", asked.overrides, (*VARIANT_FIELDS, *OF_CACHE))
        shared = settings_from(RunArguments, {**recipe, **overrides})
        variants = read_variants(
            asked.variants,
            [recipe, overrides],
            RunArguments,
            folder,
            VARIANT_FIELDS,
            taken=(BEST, MEAN),
            marks=(UNTRAINED,),
        )
        evaluation = EVAL.parse([asked.evaluation, "--output_dir", str(folder / "evaluation")])
        groups = _groups(asked.groups, shared, evaluation)
        rows = [name for group in groups for name in group.rows]
        fields = [name for name in VARIANT_FIELDS if not isinstance(getattr(shared, name), dict | list)]
        plots = read_plots(asked.plots, [variant.name for variant in variants], fields, rows, has_speed=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    seeds = tuple(range(shared.seed, shared.seed + asked.seeds))
    study = TransferStudy(Path(path), asked.recipe, overrides, shared, variants, groups, evaluation, seeds, plots, folder)
    beside = {*study.best_layers(), *(f"{variant.name}{ON_ALL}" for variant in variants)}
    if taken := sorted(beside & {variant.name for variant in variants}):
        raise ValueError(f"{path}: variants.{taken[0]}: what stands beside the variants has this name; take another.")
    return study


def _groups(asked: Mapping[str, Any], shared: RunArguments, evaluation: EvalArguments) -> list[Group]:
    """The groups of a study; every task of the evaluation is in one of them, or has nothing that could be left out."""
    known = {"leave_out": list(shared.tasks), "rows": list(evaluation.tasks)}
    groups = []
    for name, own in asked.items():
        own = checked_fields(f"groups.{name}", own, tuple(known))
        for key, allowed in known.items():
            names = own.get(key)
            if not isinstance(names, list) or not names:
                raise ValueError(f"groups.{name}: {key} must list tasks, some of: {', '.join(allowed)}.")
            if unknown := [one for one in names if one not in allowed]:
                raise ValueError(f"groups.{name}: {key} names {unknown}; there are: {', '.join(allowed)}.")
        if set(own["leave_out"]) == set(shared.tasks):
            raise ValueError(f"groups.{name}: leaves out every task of the recipe; nothing is left to train on.")
        groups.append(Group(str(name), tuple(own["leave_out"]), tuple(own["rows"])))
    rows = [row for group in groups for row in group.rows]
    if twice := sorted({row for row in rows if rows.count(row) > 1}):
        raise ValueError(f"groups: {twice} are rows of several groups; a row is judged without the tasks of one.")
    rest = tuple(row for row in evaluation.tasks if row not in rows)
    return [*groups, *([Group("others", (), rest)] if rest else [])]


# -- training and judging


def run_transfer(study: TransferStudy, only: Sequence[str] = (), show_progress: bool = True) -> dict:
    """Train and judge what is not judged yet, and write study.json, study.md and study.html.

    Args:
        only: names of the variants to do now; empty = all.

    Returns:
        The facts of study.json.

    Raises:
        ValueError: data or settings do not fit, clips of the evaluation are not in the cache, or another run is at work in the
            study's folder.
        FloatingPointError: a training diverged; what was judged before is kept.
    """
    variants = chosen(study.variants, only)
    with locked(study.folder):
        judge = Judge(study)
        everything = Group("", (), tuple(study.evaluation.tasks))
        with tqdm(total=len(variants) * (len(study.groups) + 1), desc="transfer", disable=not show_progress) as bar:
            for group in (*study.groups, everything):
                table = read_table(study.settings(study.variants[0], group)[0])
                for variant in variants:
                    bar.set_postfix_str(f"{variant.name} without {', '.join(group.left_out) or 'nothing'}")
                    judge.variant(variant, group, table, study.settings(variant, group))
                    bar.update()
        judge.layers()
        facts = facts_of(study)
        write_study(facts, LAYOUT, study.folder)
    return facts


class Judge:
    """Probes on what trainings make of the cached layers of the evaluation's clips.

    Raises:
        ValueError: as `load_task`; or clips of a task are not in the cache.
    """

    def __init__(self, study: TransferStudy):
        self.study, self.folder = study, study.evaluation.output_dir
        self.cache = open_cache(study.shared.cache_dir)
        self.inspector = Inspector(self.cache.folder.parent)
        tasks = [load_task(*request, inspector=self.inspector) for request in study.evaluation.requests()]
        self.tasks = {data.task.name: data for data in tasks}
        self.digests = {name: _digests(self.cache, self.inspector, data) for name, data in self.tasks.items()}
        self.kept: dict[str, list[WavCSEDownstream]] = {}  # variant -> trained parts, without the tasks of `kept_left_out`
        self.kept_left_out: tuple[str, ...] = ()

    def variant(self, variant: Variant, group: Group, table: SearchTable, many: Sequence[RunArguments]) -> None:
        """Judge the rows of a group by trainings with these settings, unless that was done."""
        name = variant.name + ("" if group.name else ON_ALL)
        how = {"settings": [settings_of(args) for args in many], "untrained": variant.marks[UNTRAINED]}
        identity = {**self._origin(), "training": digest_of([how, table.fingerprint])}
        encoder = CachedEncoder(name, self.cache.key.sampling_rate, variant.args.embedding_size, identity)
        for row in group.rows:
            data = self.tasks[row]
            key, found = self._finished(encoder, data, [args.seed for args in many])
            if found:
                continue
            fitted = self._trained(variant, group, table, many)
            layers = self.cache.read(self.digests[row], variant.args.selected_layers)
            started = time.perf_counter()
            outcomes = [FITS[data.task.kind](_embeddings(own, layers), data, [args.seed]) for own, args in zip(fitted, many)]
            self._write([_together(runs) for runs in zip(*outcomes)], encoder, data, key, started)

    def _trained(
        self, variant: Variant, group: Group, table: SearchTable, many: Sequence[RunArguments]
    ) -> list[WavCSEDownstream]:
        """Trained once for all rows that want it; kept while the same tasks are left out, of groups that follow each other."""
        if self.kept_left_out != group.left_out:
            self.kept, self.kept_left_out = {}, group.left_out
        if variant.name not in self.kept:
            self.kept[variant.name] = [_fitted(table, args, variant.marks[UNTRAINED]) for args in many]
        return self.kept[variant.name]

    def layers(self) -> None:
        """Judge every row by its best layer, up to the deepest of the recipe and of each variant, and by the recipe's mean."""
        shape = (self.cache.key.sampling_rate, self.cache.shards[0].shape[2])
        read_by = {name: list(range(deepest + 1)) for name, deepest in self.study.best_layers().items()}
        for name, read in {**read_by, MEAN: self.study.shared.selected_layers}.items():
            identity = {**self._origin(), "layers": " ".join(map(str, read))}
            encoder = CachedEncoder(name, *shape, identity, 1 if name == MEAN else len(read))
            for row, data in self.tasks.items():
                key, found = self._finished(encoder, data, self.study.seeds[:1])
                if not found:
                    layers = self.cache.read(self.digests[row], read)
                    vectors = layers.mean(axis=1) if name == MEAN else layers.reshape(len(layers), -1)
                    started = time.perf_counter()
                    outcomes = FITS[data.task.kind](vectors, data, self.study.seeds[:1], encoder.num_candidates)
                    self._write(outcomes, encoder, data, key, started)

    def _origin(self) -> dict[str, str]:
        return {"model": self.cache.key.upstream, "weights_sha256": self.cache.key.weights_sha256}

    def _finished(self, encoder: CachedEncoder, data: TaskData, seeds: Sequence[int]) -> tuple[str, list[Result]]:
        key = result_key(encoder, data, EvalSettings(tuple(seeds), self.study.evaluation.note), with_map=False)
        rows = [data.task.row_name(target) for target in data.task.targets]
        return key, finished_results(self.folder, rows, encoder.name, key)

    def _write(self, outcomes: Sequence[Outcome], encoder: CachedEncoder, data: TaskData, key: str, started: float) -> None:
        seconds = {"probe": round(time.perf_counter() - started, 3)}
        settings = EvalSettings(self.study.seeds, self.study.evaluation.note)
        known = {"skipped_clips": 0, "seconds": seconds, "key": key}
        for outcome in outcomes:
            write_outcome(outcome, encoder, data, settings, known, Path(self.folder))


def _digests(cache: FeatureCache, inspector: Inspector, data: TaskData) -> list[str]:
    """Where the clips of a task are in the cache."""
    clips = data.table.clips
    digests = [facts.digest for facts in inspector.inspect(clips)]
    missing = [clip.clip_id for clip, digest in zip(clips, digests) if digest not in cache]
    if missing:
        raise ValueError(
            f"task {data.task.name!r}: {len(missing)} of {len(clips)} clips are not in the feature cache {cache.folder}, such "
            f"as {missing[0]}. Run `wavcse cache` with the manifests of the evaluation too."
        )
    return digests


def _fitted(table: SearchTable, args: RunArguments, untrained: bool) -> WavCSEDownstream:
    """The trained part of a model, as it is in the epoch that validation chose; FloatingPointError if it diverged."""
    learner = started_learner(table, args)
    if not untrained:
        accelerator = Accelerator(cpu=table.features.device.type == "cpu", mixed_precision=args.mixed_precision)
        train_learners(accelerator, [learner], [table.splits(args)])
        if learner.divergence:
            raise FloatingPointError(f"{learner.divergence} Seed {args.seed}, tasks {', '.join(args.tasks)}.")
        learner.network.load_state_dict(learner.best_weights)
    return learner.network.downstream.eval()


@torch.no_grad()
def _embeddings(downstream: WavCSEDownstream, layers: np.ndarray) -> np.ndarray:
    """`[N, K, D]` -> `[N, E]`."""
    device = downstream.embedding_projection.weight.device
    parts = torch.from_numpy(layers).split(EMBEDDED_AT_ONCE)
    return torch.cat([downstream(part.to(device)).float().cpu() for part in parts]).numpy()


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of several trainings, one probe each, as one with so many runs."""
    first = outcomes[0]
    probe = replace(first.probe, runs=[run for own in outcomes for run in own.probe.runs or ()])
    others = {
        name: (metric, [run for own in outcomes for run in own.others[name][1]]) for name, (metric, _) in first.others.items()
    }
    return replace(first, runs=[run for own in outcomes for run in own.runs], probe=probe, others=others)


# -- facts and tables


def facts_of(study: TransferStudy) -> dict:
    """What `study.json` says: figures of the variants, of the layers, and of the variants trained on all tasks."""
    results = read_results(study.folder / "evaluation")
    names = {result.encoder["name"] for result in results}
    there = [variant for variant in study.variants if variant.name in names]
    own = {
        variant.name: {
            "own": variant.own,
            "untrained": variant.marks[UNTRAINED],
            "embedding_size": variant.args.embedding_size,
            "settings": {plot.x: getattr(variant.args, plot.x) for plot in study.plots},
        }
        for variant in there
    }
    beside = [*study.best_layers(), MEAN, *(f"{name}{ON_ALL}" for name in own)]
    best_for = {variant.name: study.best_layer_for(variant) for variant in there}
    best_for |= {MEAN: BEST, **{f"{name}{ON_ALL}": best for name, best in best_for.items()}}
    known = {
        "study": shown_path(study.path),
        "recipe": shown_path(study.recipe),
        "overrides": study.overrides,
        "evaluation": shown_path(study.evaluation.output_dir),
        "groups": {group.name: {"leave_out": group.left_out, "rows": group.rows} for group in study.groups},
        "seeds": len(study.seeds),
        "plots": [asdict(plot) for plot in study.plots],
    }
    encoders = {name: name for name in (*own, *beside)}
    facts = study_facts(known, own, beside, encoders, results, versions())
    return {**facts, "beside_best": _beside_best(study, results, best_for)}


def _beside_best(study: TransferStudy, results: Sequence[Result], best_for: Mapping[str, str]) -> dict[str, dict]:
    """Encoder -> mean test figure over the rows, and the rows in which it and its best layer differ by the interval."""
    rows = rows_of(results)
    found = {}
    for name, best in best_for.items():
        here = [row for row in rows if {name, best} <= set(row.records)]
        pairs = {row.name: compare_pair(row, name, best, study.evaluation.output_dir) for row in here}
        shares = [row for row in here if row.unit == "percent" and row.is_greater_better]
        means = {one: statistics.fmean(row.figure(one).value for row in shares) for one in (name, best)} if shares else {}
        found[name] = {
            "best": best,
            "mean": means.get(name),
            "mean_of_best": means.get(best),
            "num_rows": len(shares),
            "behind": [row.name for row in here if _sign(row.is_greater_better, pairs[row.name]) < 0],
            "ahead": [row.name for row in here if _sign(row.is_greater_better, pairs[row.name]) > 0],
        }
    return found


def _sign(is_greater_better: bool, pair: Comparison) -> int:
    """1 where the whole interval of the difference is on the better side of 0, -1 on the worse, 0 where neither holds."""
    if pair.interval is None:
        return 0
    low, high = pair.interval if is_greater_better else (-pair.interval[1], -pair.interval[0])
    return int(low > 0) - int(high < 0)


def _how(facts: Mapping) -> str:
    words = "; ".join(
        f"{', '.join(own['leave_out'])} for {', '.join(own['rows'])}" for own in facts["groups"].values() if own["leave_out"]
    )
    return (
        f"a linear probe learns each task from embeddings of trainings that left its group out ({words}), {facts['seeds']} "
        f"seeds each. `{ON_ALL}`: trained on all tasks of the recipe. `{BEST}`: the layer that validation chose for the task, "
        f"up to the recipe's deepest; `{BEST}_to_N`: up to block N."
    )


def _variants_table(facts: Mapping) -> str:
    lines = []
    for name, own in facts["variants"].items():
        fields = ", ".join(f"{key} {value}" for key, value in own["own"].items())
        kind = "as training finds it" if own["untrained"] else "trained"
        lines.append([marked(facts, name), kind, fields, own["embedding_size"], percent(own["mean_validation"])])
    return markdown_table(["variant", "", "differs in", "size", "mean validation accuracy, %"], lines)


def _goal_section(facts: Mapping) -> list[str]:
    """The figure that counts: the mean over tasks that a variant was not trained on, beside the best layer of each."""
    titles = {name: row["title"] for name, row in facts["rows"].items()}
    lines = []
    for name, own in facts["beside_best"].items():
        difference = NONE if own["mean"] is None else f"{100 * (own['mean'] - own['mean_of_best']):+.1f}"
        words = [", ".join(titles[row] for row in own[side]) or NONE for side in ("behind", "ahead")]
        lines.append([marked(facts, name), percent(own["mean"]), own["best"], difference, own["num_rows"], *words])
    columns = [
        "encoder",
        "mean test accuracy, %",
        "beside",
        "difference",
        "tasks",
        "behind by more than the interval",
        "ahead by more",
    ]
    text = (
        "Paired 95 % bootstrap intervals of the difference to the best layer of as many blocks as the encoder runs, on the "
        "same test clips, per task. The mean is over the tasks whose figure is an accuracy."
    )
    return ["## Beside the best layer", text, markdown_table(columns, lines)]


LAYOUT = Layout(
    title="What embeddings keep for other tasks",
    command="wavcse search transfer",
    how=_how,
    validation="What choices are made by, so the highest of several is too high. In brackets the layer that was chosen.",
    variants=_variants_table,
    sections=_goal_section,
)


@TRANSFER.main
def main(options: StudyPart) -> int:
    """The command line."""
    study = read_study(options.config, options.output_dir)
    run_transfer(study, options.only)
    print((study.folder / "study.md").read_text(encoding="utf-8"))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
