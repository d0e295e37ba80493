"""Stages that several trainings of a study have in common: each is trained once, and stands in the folder of every run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from wavcse.data.files import LOCK_FILE
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.multi_task import finetune_tasks, result_of
from wavcse.finetuning.stages import stage_keys, stages_of
from wavcse.studies.variants import train_all

Stages = dict[str, MultiTaskArguments]  # the same stage of several runs, by the run's name


def train_shared_stages(runs: Mapping[str, MultiTaskArguments], workers: int = 1) -> None:
    """Train the stages before the last that two or more of `runs` share; what fails is left to the runs, which say why.

    Raises:
        ValueError: a folder holds a stage with other settings.
    """
    for number in range(max((len(stages_of(run)) for run in runs.values()), default=1) - 1):
        shared = [stages for stages in _same_stages(runs, number) if len(stages) > 1]
        unfinished = [stages for stages in shared if not any(map(result_of, stages.values()))]
        first = [next(iter(stages.items())) for stages in unfinished]
        train_all({}, {f"{name}/stage{number + 1}": partial(finetune_tasks, stage) for name, stage in first}, workers)
        for stages in shared:
            _give_to_all(stages)


def _same_stages(runs: Mapping[str, MultiTaskArguments], number: int) -> list[Stages]:
    """The stages of this number, from 0, before the last: those that are one training together."""
    found: dict[str, Stages] = {}
    for name, run in runs.items():
        stages = stages_of(run)
        if number < len(stages) - 1:
            found.setdefault(stage_keys(run)[number], {})[name] = stages[number]
    return list(found.values())


def _give_to_all(stages: Stages) -> None:
    """The finished one's folder to all of `stages`, as hard links: every run folder is whole, and takes no more room."""
    finished = {name: stage for name, stage in stages.items() if result_of(stage)}
    for name, stage in stages.items():
        if not finished or name in finished:
            continue
        folder, source = Path(stage.output_dir), Path(next(iter(finished.values())).output_dir)
        made = folder.with_name(f"{folder.name}.partial")  # of a run that was killed meanwhile
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(source, made, ignore=shutil.ignore_patterns(LOCK_FILE), copy_function=os.link)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
