"""Settings that every training of an encoder on crops shares: batches, optimiser, schedule, run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.settings.fields import check_choice, check_ranges, check_types
from wavcse.training.arguments import MIXED_PRECISIONS

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
DECAYS = ("inverse_sqrt", "cosine", "linear", "constant")
POSITIVE = (
    "batch_seconds",
    "crop_s",
    "gradient_accumulation_steps",
    "learning_rate",
    "length_step_s",
    "max_grad_norm",
    "max_skipped_steps",
    "max_steps",
)
NOT_NEGATIVE = ("checkpoint_every_s", "label_exponent", "labels_per_batch", "mask_frames", "seed")


@dataclass
class StepArguments:
    """A training in steps; each step has batches of crops and changes the encoder."""

    output_dir: str = field(default="runs/steps", metadata={"help": "Folder of the run: config, log, checkpoints, results."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start again, deleting the run that is there."})
    audio_dir: str = field(default="caches/audio", metadata={"help": "Folder for the decoded audio (16-bit, 115 MB an hour)."})
    encoder: dict = field(default_factory=dict, metadata={"help": "Fields of transformers' WavLMConfig (YAML or JSON)."})

    mask_probability: float = field(default=0.02, metadata={"help": "Probability that a span starts at a frame."})
    mask_frames: int = field(default=20, metadata={"help": "Frames (20 ms) of a span."})
    batch_seconds: float = field(default=160.0, metadata={"help": "Audio of a forward pass, all processes together."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Such passes per update."})
    labels_per_batch: int = field(
        default=8, metadata={"help": "Labels whose clips share the batch evenly; 0 = clips by their length alone."}
    )
    label_exponent: float = field(default=0.5, metadata={"help": "A label is drawn with probability hours ** this."})
    crop_s: float = field(default=3.0, metadata={"help": "Longest crop of a clip in seconds."})
    length_step_s: float = field(default=0.5, metadata={"help": "Crops are multiples of this, so that equal lengths meet."})

    max_steps: int = field(default=10_000, metadata={"help": "Updates."})
    learning_rate: float = field(default=6e-4, metadata={"help": "Peak of AdamW's learning rate."})
    warmup_steps: int = field(default=500, metadata={"help": "Steps of linear warm-up."})
    decay: str = field(default="inverse_sqrt", metadata={"help": f"One of {', '.join(DECAYS)}."})
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.98], metadata={"help": "AdamW's beta1 and beta2."})
    weight_decay: float = field(default=0.01, metadata={"help": "On matrices only."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to this norm."})
    max_skipped_steps: int = field(default=10, metadata={"help": "Stop after this many steps in a row that were not finite."})

    seed: int = field(default=0, metadata={"help": "Same seed, same run to the bit on one machine."})
    mixed_precision: str = field(default="no", metadata={"help": "no or bf16."})
    checkpoint_every_s: float = field(default=120.0, metadata={"help": "Least seconds between checkpoints."})
    note: str = field(default="", metadata={"help": "A remark that is kept with the run."})

    def __post_init__(self):
        check_types(self)
        check_ranges(self, POSITIVE, NOT_NEGATIVE)
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability is {self.mask_probability}; it must be between 0 and 1.")
        check_choice("decay", self.decay, DECAYS)
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas is {self.adam_betas}; it must be two numbers from 0 to below 1.")
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

    def identity(self) -> dict[str, Any]:
        """What a continued run must share with the run it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_ON_RESUME}


def learning_rate_factor(warmup_steps: int, max_steps: int, decay: str) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak.

    Linear warm-up, then `inverse_sqrt` (Vaswani et al. 2017, the papers' choice; goes on falling, whatever `max_steps`),
    `cosine` or `linear` (both reach zero after `max_steps`), or `constant`.
    """
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
