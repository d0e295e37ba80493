"""Stages that several trainings of a study have in common: each is trained once, and stands in the folder of every run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path

from wavcse.data.files import LOCK_FILE
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.multi_task import finetune_tasks, result_of
from wavcse.finetuning.stages import stage_keys, stages_of
from wavcse.studies.variants import train_all

Stages = dict[str, MultiTaskArguments]  # the same stage of several runs, by the run's name


def train_shared_stages(runs: Mapping[str, MultiTaskArguments], wanted: Set[str], workers: int = 1) -> dict[str, str]:
    """Train the stages before the last that two or more of `runs` share; returns what failed: run -> why.

    Args:
        runs: of a study, by name.
        wanted: those that are to be trained; stages are taken from the others where these have them.

    Raises:
        ValueError: a folder holds a stage with other settings.
    """
    failures: dict[str, str] = {}
    for number in range(max((len(stages_of(runs[name])) for name in wanted), default=1) - 1):
        missing = {}  # name of a training -> the stages that it is for
        for stages in _same_stages(runs, number):
            own = [name for name in stages if name in wanted and name not in failures]
            if own and len(stages) > 1 and not _give_to_all(stages, own):
                missing[f"{own[0]}/stage{number + 1}"] = stages, own
        jobs = {name: partial(finetune_tasks, stages[own[0]]) for name, (stages, own) in missing.items()}
        failed = train_all({}, jobs, workers)
        for name, (stages, own) in missing.items():
            if name in failed:
                failures |= dict.fromkeys(own, f"stage {number + 1}: {failed[name]}")
            else:
                _give_to_all(stages, own)
    return failures


def _same_stages(runs: Mapping[str, MultiTaskArguments], number: int) -> list[Stages]:
    """The stages of this number, from 0, before the last: those that are one training together."""
    found: dict[str, Stages] = {}
    for name, run in runs.items():
        stages = stages_of(run)
        if number < len(stages) - 1:
            found.setdefault(stage_keys(run)[number], {})[name] = stages[number]
    return list(found.values())


def _give_to_all(stages: Stages, wanted: Sequence[str]) -> bool:
    """The finished one's folder to those that are wanted, as hard links: run folders are whole, and take no more room.

    `False` where none is finished.
    """
    finished = {name: stage for name, stage in stages.items() if result_of(stage)}
    if not finished:
        return False
    source = Path(next(iter(finished.values())).output_dir)
    for name in wanted:
        if name in finished:
            continue
        folder = Path(stages[name].output_dir)
        made = folder.with_name(f"{folder.name}.partial")  # of a run that was killed meanwhile
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(source, made, ignore=shutil.ignore_patterns(LOCK_FILE), copy_function=os.link)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return True
