"""Settings that every training of an encoder in steps shares: optimiser, schedule, run; and, on crops, masks and batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from wavcse.settings.fields import option
from wavcse.training.arguments import RunSettings

# Fields that may differ between a run and its continuation: they do not change any step that is already done.
FREE_ON_RESUME = (
    "audio_dir",
    "checkpoint_every_s",
    "note",
    "output_dir",
    "overwrite_output_dir",
    "report_to",
    "stop_after_s",
)
DECAYS = ("inverse_sqrt", "cosine", "linear", "constant", "tri_stage")


@dataclass
class UpdateArguments(RunSettings):
    """A training in steps that change an encoder."""

    free_on_resume = FREE_ON_RESUME

    output_dir: str = option(
        "runs/steps", "Folder of the run: config, log, checkpoints, results.", flag="out", group="the run"
    )
    audio_dir: str = option("caches/audio", "Folder for the decoded audio (16-bit, 115 MB an hour).")
    encoder: dict = option(
        dict,
        "`model_type` (wavlm, wav2vec2, hubert) and fields of its transformers configuration (YAML or JSON).",
        group="the encoder",
    )

    max_steps: int = option(10_000, "Updates.", above=0, group="steps")
    learning_rate: float = option(6e-4, "Peak of AdamW's learning rate.", above=0)
    warmup_steps: int = option(500, "Steps of linear warm-up.", at_least=0)
    decay: str = option("inverse_sqrt", "Of the learning rate after the warm-up.", choices=DECAYS)
    adam_betas: list[float] = option(lambda: [0.9, 0.98], "AdamW's beta1 and beta2.")
    weight_decay: float = option(0.01, "On matrices only.", at_least=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.", above=0)
    max_skipped_steps: int = option(10, "Stop after this many steps in a row that were not finite.", above=0)

    seed: int = option(0, "Same seed, same run to the bit on one machine.", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas is {self.adam_betas}; it must be two numbers from 0 to below 1.")


@dataclass
class StepArguments(UpdateArguments):
    """A training in steps, each of which has batches of crops."""

    mask_least = 1  # spans in a crop

    mask_probability: float = option(
        0.02, "Probability that a span starts at a frame.", above=0, below=1, group="masks, crops and batches"
    )
    mask_frames: int = option(20, "Frames (20 ms) of a span.", at_least=0)
    batch_seconds: float = option(160.0, "Audio of a forward pass, all processes together.", above=0)
    gradient_accumulation_steps: int = option(1, "Such passes per update.", above=0)
    labels_per_batch: int = option(
        8, "Labels whose clips share the batch evenly; 0 = clips by their length alone.", at_least=0
    )
    label_exponent: float = option(0.5, "A label is drawn with probability hours ** this.", at_least=0)
    crop_s: float = option(3.0, "Longest crop of a clip in seconds.", above=0)
    length_step_s: float = option(0.5, "Crops are multiples of this, so that equal lengths meet.", above=0)

    def __post_init__(self):
        from wavcse.audio_wavcse import SAMPLING_RATE_HZ  # which loads PyTorch; `--help` needs none

        super().__post_init__()
        if self.length_step_s * SAMPLING_RATE_HZ < 1:
            raise ValueError(
                f"length_step_s is {self.length_step_s}; it must be at least one sample, {1 / SAMPLING_RATE_HZ} s."
            )
        if self.length_step_s > self.crop_s:
            raise ValueError(f"length_step_s is {self.length_step_s}, longer than a crop (crop_s {self.crop_s}).")
        needed_s = self.crop_s * max(1, 2 * self.labels_per_batch)
        if self.batch_seconds < needed_s:
            raise ValueError(
                f"batch_seconds is {self.batch_seconds}; two crops of {self.crop_s} s of each of {self.labels_per_batch} "
                f"labels need {needed_s:g}."
            )


def learning_rate_factor(warmup_steps: int, max_steps: int, decay: str) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak.

    Linear warm-up, then `inverse_sqrt` (Vaswani et al. 2017, the papers' choice; goes on falling, whatever `max_steps`),
    `cosine` or `linear` (both reach zero after `max_steps`), or `constant`. `tri_stage` has a warm-up of its own.
    """
    if decay == "tri_stage":
        return lambda step: tri_stage_factor(step / max_steps)
    warmup = max(1, warmup_steps)
    shapes = {
        "inverse_sqrt": lambda step, _: math.sqrt(warmup / (step + 1)),
        "cosine": lambda _, done: 0.5 * (1 + math.cos(math.pi * done)),
        "linear": lambda _, done: 1 - done,
        "constant": lambda _, __: 1.0,
    }

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return shapes[decay](step, done)

    return factor


def tri_stage_factor(done: float) -> float:
    """Share of the steps that are done -> share of the peak, in three stages (Baevski et al. 2020).

    Linear from 1/100 to 1 in the first tenth, constant until the half, then exponential down to 1/20.
    """
    if done < 0.1:
        return 0.01 + 0.99 * done / 0.1
    return 1.0 if done < 0.5 else 0.05 ** ((done - 0.5) / 0.5)
