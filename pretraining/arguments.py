"""Settings of a pre-training run: a YAML recipe plus command-line overrides, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wavcse.data.recipes import checked_fields
from wavcse.pretraining.clips import ClipSource
from wavcse.pretraining.label_losses import LABEL_LOSSES
from wavcse.pretraining.schedule import DECAYS
from wavcse.training.arguments import MIXED_PRECISIONS, parse_script_arguments

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
POSITIVE = (
    "batch_seconds",
    "codebook_dim",
    "codebook_size",
    "crop_s",
    "gradient_accumulation_steps",
    "learning_rate",
    "length_step_s",
    "log_every",
    "mask_frames",
    "max_grad_norm",
    "max_skipped_steps",
    "max_steps",
    "num_mels",
)
NOT_NEGATIVE = (
    "checkpoint_every_s",
    "label_exponent",
    "label_loss_start",
    "label_weight",
    "labels_per_batch",
    "margin",
    "num_cepstra",
)
SHARES = ("missing_label_rate", "noisy_label_rate")


@dataclass
class PretrainArguments:
    """BEST-RQ (Chiu et al. 2022) with the label-aware losses of LASR (Vashishth et al. 2023).

    Defaults are the papers' where they give one and do not hang on their size (429 k hours, 1.5 M steps); the rest is scaled
    to a small encoder (docs/pretraining.md).
    """

    data: dict = field(
        default_factory=dict,
        metadata={"help": "Name -> manifest, where {column: allowed values}. Only in the YAML."},
    )
    label_column: str = field(default="language", metadata={"help": "Manifest column of the labels."})
    exclude_speakers_of: list[str] = field(
        default_factory=list, metadata={"help": "Manifests whose validation and test speakers and clips are left out."}
    )
    exclude_split_columns: list[str] = field(
        default_factory=lambda: ["split"], metadata={"help": "Columns of those manifests that hold such a split."}
    )
    missing_label_rate: float = field(default=0.0, metadata={"help": "Share of the clips whose label is hidden."})
    noisy_label_rate: float = field(default=0.0, metadata={"help": "Share of the labels replaced by a random other one."})
    audio_dir: str = field(default="caches/audio", metadata={"help": "Folder for the decoded audio (16-bit, 115 MB an hour)."})
    output_dir: str = field(default="runs/pretrain", metadata={"help": "Run folder: config, log, checkpoints, upstream."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start again, deleting the run that is there."})

    encoder: dict = field(default_factory=dict, metadata={"help": "Fields of transformers' WavLMConfig. Only in the YAML."})
    init_from: str | None = field(
        default=None, metadata={"help": "Start from this WavLM (folder or Hub id), or from the run in this folder."}
    )
    freeze_stem: bool = field(default=False, metadata={"help": "Leave the convolutions as they are (with init_from)."})
    num_mels: int = field(default=80, metadata={"help": "Mel bands of the spectrogram that the targets are made of."})
    num_cepstra: int = field(
        default=0, metadata={"help": "Make targets of this many cepstral coefficients of it; 0 = of the bands, as the paper."}
    )
    codebook_size: int = field(default=8192, metadata={"help": "Codes."})
    codebook_dim: int = field(default=16, metadata={"help": "Size of a code vector."})
    codebook_seed: int = field(default=0, metadata={"help": "Seed of projection and codebook, apart from the run's seed."})
    mask_probability: float = field(default=0.02, metadata={"help": "Probability that a span starts at a frame."})
    mask_frames: int = field(default=20, metadata={"help": "Frames (20 ms) of a span."})

    label_loss: str = field(default="hard_triplet", metadata={"help": f"One of {', '.join(LABEL_LOSSES)}."})
    label_weight: float = field(default=16.0, metadata={"help": "Lambda: weight of the label loss; 0 = BEST-RQ alone."})
    label_loss_start: int = field(default=0, metadata={"help": "Step from which the label loss counts."})
    margin: float = field(default=0.2, metadata={"help": "Margin of the triplet losses, in units of the distance (0 to 1)."})

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
    log_every: int = field(default=20, metadata={"help": "Steps per line of the log."})
    checkpoint_every_s: float = field(default=120.0, metadata={"help": "Least seconds between checkpoints."})
    stop_after_s: float | None = field(
        default=None, metadata={"help": "Stop with a checkpoint after this time; the same command goes on."}
    )
    report_to: str | None = field(default=None, metadata={"help": "Tracker through Accelerate: trackio, tensorboard, ..."})
    note: str = field(default="", metadata={"help": "A remark that is kept with the run."})

    def __post_init__(self):
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, 0 to 1.")
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability is {self.mask_probability}; it must be between 0 and 1.")
        _one_of("label_loss", self.label_loss, LABEL_LOSSES)
        _one_of("decay", self.decay, DECAYS)
        _one_of("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        if len(self.adam_betas) != 2:
            raise ValueError(f"adam_betas is {self.adam_betas}; it must be two numbers.")
        if self.length_step_s > self.crop_s:
            raise ValueError(f"length_step_s is {self.length_step_s}, longer than a crop (crop_s {self.crop_s}).")
        if self.num_cepstra > self.num_mels:
            raise ValueError(f"num_cepstra is {self.num_cepstra}; there are only as many as bands (num_mels {self.num_mels}).")
        self._check_batch()

    def _check_batch(self) -> None:
        needed_s = self.crop_s * max(1, 2 * self.labels_per_batch)
        if self.batch_seconds < needed_s:
            raise ValueError(
                f"batch_seconds is {self.batch_seconds}; two crops of {self.crop_s} s of each of {self.labels_per_batch} "
                f"labels need {math.ceil(needed_s)}."
            )

    def clip_sources(self) -> dict[str, ClipSource]:
        """The data as typed sources; ValueError names a missing or unknown field."""
        if not self.data:
            raise ValueError("data is empty; name at least one manifest: `data: {name: {manifest: PATH}}`.")
        return {name: _clip_source(name, source) for name, source in self.data.items()}

    def identity(self) -> dict[str, Any]:
        """What a continued run must share with the run it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_ON_RESUME}


def parse_arguments(argv: Sequence[str] | None = None) -> PretrainArguments:
    """`[RECIPE.yaml] [--field value ...]`; a field on the command line wins over the recipe.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, or a value is out of range.
    """
    return parse_script_arguments(
        PretrainArguments,
        argv,
        "pretrain_accelerate.py",
        "Pre-train an encoder on unlabelled and labelled speech (BEST-RQ + LASR). "
        "Example: accelerate launch pretrain_accelerate.py conf/pretrain_quick.yaml --output_dir runs/mine",
    )


def _clip_source(name: str, source: Any) -> ClipSource:
    source = checked_fields(f"data.{name}", source, ("manifest", "where"))
    if "manifest" not in source:
        raise ValueError(f"data.{name}: 'manifest' is missing.")
    where = source.get("where", {})
    if not isinstance(where, dict):
        raise ValueError(f"data.{name}: 'where' must map columns to allowed values, not {where!r}.")
    allowed = {column: tuple(map(str, values if isinstance(values, list) else [values])) for column, values in where.items()}
    return ClipSource(source["manifest"], allowed)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")
