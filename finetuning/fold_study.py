"""What a study reads from runs that are folds: figures of every task over the folds, of whichever stage has learnt it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wavcse.finetuning.arguments import MultiTaskArguments, ProbeSettings
from wavcse.finetuning.fold_tables import against_facts, fold_facts
from wavcse.finetuning.folds import fold_names
from wavcse.finetuning.predictions import OF_CLIPS, Folds, fold_figures, read_folds, read_probe, refuse_other_clips
from wavcse.finetuning.stages import stages_of

Runs = Sequence[MultiTaskArguments]  # of a training: all its seeds and folds


def by_seed(runs: Runs) -> list[list[MultiTaskArguments]]:
    """The runs of each seed, in the order of their folds."""
    return [[run for run in runs if run.seed == seed] for seed in dict.fromkeys(run.seed for run in runs)]


def folds_of(runs: Runs, task: str) -> Folds | None:
    """What a training has answered to the test clips of a task, by the last stage that learns it; `None` of no answers."""
    for number in reversed(range(len(stages_of(runs[0])))):
        stages = [[stages_of(run)[number] for run in own] for own in by_seed(runs)]
        if task in stages[0][0].learnt_tasks():
            try:
                return read_folds([[stage.output_dir for stage in own] for own in stages], task)
            except ValueError:
                return None  # of speakers who did not train there are none
    return None


def figures_of_folds(runs: Runs) -> dict[str, dict[str, Any]]:
    """TASK.FIGURE -> `value`, the mean over the folds, `values` of each, and the `interval` of all test clips together."""
    found = {}
    for task, settings in runs[0].task_settings().items():
        folds = folds_of(runs, task)
        for figure, record in (fold_figures(folds, settings.kind) if folds else {}).items():
            known = {"value": record["mean"], "values": record["folds"], "pooled": record["pooled"]}
            found[f"{task}.{figure}"] = {**known, "interval": record["interval"], "unit": record["unit"]}
    return found


def probed(task: str, trained: Folds, probes: Mapping[str, ProbeSettings]) -> dict[str, Folds]:
    """The probes of a task that were tested on the clips of a training."""
    found = {}
    for name, own in probes.items():
        if own.task != task:
            continue
        try:
            folds = read_probe(own.folder, own.rows, own.encoder)
            refuse_other_clips([*trained, *folds])
            found[name] = folds
        except ValueError as error:
            print(f"probes.{name} is left out: {error}", flush=True)
    return found


def compared(
    trainings: Mapping[str, Runs],
    probes: Mapping[str, ProbeSettings] | None = None,
    against: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Task -> `fold_facts` of all trainings that learn it in their last stage, then of its probes, and what the folds test.

    Of tasks that are classes or the like, of the first training's last stage. A probe that is not there, or was tested on
    other clips, is left out with a line that says so.

    Args:
        against: a training -> those and the probes that `against_facts` compares it with.
    """
    first = next(iter(trainings.values()))
    found: dict[str, Any] = {}
    for task, settings in stages_of(first[0])[-1].learnt_tasks().items():
        folds = {name: folds_of(runs, task) for name, runs in trainings.items() if task in runs[0].task_settings()}
        folds = {name: own for name, own in folds.items() if own is not None}
        if folds:
            folds |= probed(task, next(iter(folds.values())), probes or {})
        if folds and settings.kind in OF_CLIPS:
            found[task] = {"variants": fold_facts(folds, settings.kind), "tested": list(fold_names(first[0]).values())}
            if pairs := against_facts(folds, settings.kind, against or {}):
                found[task]["against"] = pairs
    return found
