"""What a study would train: runs, steps and sizes, from manifests, headers of audio files and configurations alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PretrainedConfig

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.configuration_wavcse import count_frames
from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.finetuned_wavcse import FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.labelled_clips import labelled_clips, leave_out_unusable
from wavcse.finetuning.multi_task import frozen_parts
from wavcse.finetuning.stages import stage_keys, stages_of
from wavcse.finetuning.start import network_config
from wavcse.finetuning.streams import StreamLoader
from wavcse.reports.page import markdown_table
from wavcse.steps.freezing import Freezing
from wavcse.upstream_wavcse import build_on_meta

COLUMNS = (
    *("training", "runs", "stage", "learns", "training clips", "validation", "test", "updates of a run"),
    *("parameters, M", "trained, M"),
)
WORDS = (
    "Clips, updates and sizes are of the first run of each training; other folds differ by a few clips. Stages that are the "
    "same in several trainings are trained once."
)


@dataclass(frozen=True)
class Planned:
    """A stage of a run: the clips of each split that any task learns or is judged by, updates, and sizes."""

    stage: int
    learns: list[str]
    clips: dict[str, int]
    steps: int
    parameters: int
    trained: int


@dataclass(frozen=True)
class HeaderLengths:
    """What a `CropReader` knows of lengths, by the headers of files: nothing is decoded."""

    num_samples: np.ndarray
    config: PretrainedConfig
    unusable: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Sequence[ClipFacts], config: PretrainedConfig) -> HeaderLengths:
        """From what an inspection has found."""
        lengths = np.array([round(fact.duration_s * SAMPLING_RATE_HZ) for fact in facts], dtype=np.int64)
        return cls(lengths, config, {row: fact.error for row, fact in enumerate(facts) if fact.error})

    def num_frames(self, num_samples: int) -> int:
        """Frames of the encoder."""
        return count_frames(num_samples, self.config)


def planned(args: MultiTaskArguments, inspector: Inspector) -> list[Planned]:
    """The stages of a run.

    Raises:
        ValueError: as `finetune_tasks`, before anything is trained.
    """
    stages = stages_of(args)
    return [_planned(number, _from_the_beginning(stage, stages), inspector) for number, stage in enumerate(stages, start=1)]


def _from_the_beginning(stage: MultiTaskArguments, stages: Sequence[MultiTaskArguments]) -> MultiTaskArguments:
    """A stage as if it started where the stages before it did, which have not been trained."""
    while isinstance(stage.init_from, dict):
        stage = replace(stage, init_from=stages[stage.init_from["stage"] - 1].init_from)
    return stage


def _planned(number: int, args: MultiTaskArguments, inspector: Inspector) -> Planned:
    labelled = labelled_clips(args, inspector)
    config = network_config(args, {name: task.readout for name, task in labelled.tasks.items()})
    reader = HeaderLengths.of(inspector.inspect(labelled.clips), config.upstream_config)
    leave_out_unusable(labelled, args, reader, config.min_samples)
    labelled = labelled.only(args.learnt_tasks())
    clips = {
        split: len(np.unique(np.concatenate([task.rows(split) for task in labelled.tasks.values()])))
        for split in ("train", "validation", "test")
    }
    loader = StreamLoader(args, labelled, reader, config.min_samples)
    return Planned(number, list(labelled.tasks), clips, loader.max_steps, *_sizes(args, config))


def _sizes(args: MultiTaskArguments, config: FinetunedWavCSEConfig) -> tuple[int, int]:
    """Parameters, and those that are trained at the end of a run."""
    with torch.device("meta"):
        model = FinetunedWavCSE(config, build_on_meta(config.upstream_config))
    freezing = Freezing(model.upstream, args.freeze_settings(), frozen_parts(args, model))
    freezing.at(args.freeze_settings().encoder_until)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return model.num_parameters(), trained


def plan_text(trainings: Mapping[str, Sequence[MultiTaskArguments]]) -> str:
    """A table with a line per stage of each training, and their sums.

    Args:
        trainings: name -> its runs, of all seeds and folds.
    """
    lines, updates, counted = [], 0, set()
    for name, runs in trainings.items():
        inspector = Inspector(runs[0].audio_dir)
        keys = [stage_keys(run) for run in runs]
        for one in planned(runs[0], inspector):
            sizes = [f"{count / 1e6:.2f}" for count in (one.parameters, one.trained)]
            clips = [f"{count:,}" for count in one.clips.values()]
            lines.append([name, str(len(runs)), str(one.stage), ", ".join(one.learns), *clips, f"{one.steps:,}", *sizes])
            new = {own[one.stage - 1] for own in keys} - counted
            updates += one.steps * len(new)
            counted |= new
    count = sum(map(len, trainings.values()))
    return "\n\n".join([markdown_table(COLUMNS, lines), WORDS, f"{count:,} runs, about {updates:,} updates."])
