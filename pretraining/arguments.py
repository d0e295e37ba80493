"""Settings of a pre-training run: a YAML recipe plus command-line overrides, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wavcse.data.tables import spelled, text_of
from wavcse.pretraining.clips import ClipSource
from wavcse.pretraining.label_losses import LABEL_LOSSES
from wavcse.settings.fields import check_choice, check_ranges, parse_script_arguments
from wavcse.settings.recipes import checked_fields
from wavcse.steps.arguments import StepArguments

POSITIVE = ("codebook_dim", "codebook_size", "log_every", "mask_frames", "num_mels")
NOT_NEGATIVE = ("label_loss_start", "label_weight", "margin", "num_cepstra")
SHARES = ("missing_label_rate", "noisy_label_rate")


@dataclass
class PretrainArguments(StepArguments):
    """BEST-RQ (Chiu et al. 2022) with the label-aware losses of LASR (Vashishth et al. 2023).

    Defaults are the papers' where they give one and do not hang on their size (429 k hours, 1.5 M steps); the rest is scaled
    to a small encoder (docs/pretraining.md).
    """

    data: dict = field(
        default_factory=dict,
        metadata={"help": "Name -> manifest, where {column: allowed values} (YAML or JSON)."},
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
    output_dir: str = field(default="runs/pretrain", metadata={"help": "Run folder: config, log, checkpoints, upstream."})

    init_from: str | None = field(
        default=None, metadata={"help": "Start from this WavLM or wavCSE model (folder or Hub id), or from a run's folder."}
    )
    freeze_stem: bool = field(default=False, metadata={"help": "Leave the convolutions as they are (with init_from)."})
    num_mels: int = field(default=80, metadata={"help": "Mel bands of the spectrogram that the targets are made of."})
    num_cepstra: int = field(
        default=0, metadata={"help": "Make targets of this many cepstral coefficients of it; 0 = of the bands, as the paper."}
    )
    codebook_size: int = field(default=8192, metadata={"help": "Codes."})
    codebook_dim: int = field(default=16, metadata={"help": "Size of a code vector."})
    codebook_seed: int = field(default=0, metadata={"help": "Seed of projection and codebook, apart from the run's seed."})

    label_loss: str = field(default="hard_triplet", metadata={"help": f"One of {', '.join(LABEL_LOSSES)}."})
    label_weight: float = field(default=16.0, metadata={"help": "Lambda: weight of the label loss; 0 = BEST-RQ alone."})
    label_loss_start: int = field(default=0, metadata={"help": "Step from which the label loss counts."})
    margin: float = field(default=0.2, metadata={"help": "Margin of the triplet losses, in units of the distance (0 to 1)."})

    log_every: int = field(default=20, metadata={"help": "Steps per line of the log."})
    stop_after_s: float | None = field(
        default=None, metadata={"help": "Stop with a checkpoint after this time; the same command goes on."}
    )
    report_to: str | None = field(default=None, metadata={"help": "Tracker through Accelerate: trackio, tensorboard, ..."})

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, POSITIVE, NOT_NEGATIVE)
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, 0 to 1.")
        check_choice("label_loss", self.label_loss, LABEL_LOSSES)
        if self.num_cepstra > self.num_mels:
            raise ValueError(f"num_cepstra is {self.num_cepstra}; there are only as many as bands (num_mels {self.num_mels}).")

    def clip_sources(self) -> dict[str, ClipSource]:
        """The data as typed sources; ValueError names a missing or unknown field."""
        if not self.data:
            raise ValueError("data is empty; name at least one manifest: `data: {name: {manifest: PATH}}`.")
        return {name: _clip_source(name, source) for name, source in self.data.items()}


def parse_arguments(argv: Sequence[str] | None = None) -> PretrainArguments:
    """`[RECIPE.yaml] [--field value ...]`; a field on the command line wins over the recipe.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, or a value is of a wrong type or out of range.
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
    manifest, where = source.get("manifest"), source.get("where", {})
    if not (isinstance(manifest, str) and manifest):
        raise ValueError(f"data.{name}: 'manifest' is missing, or no text.")
    if not isinstance(where, dict):
        raise ValueError(f"data.{name}: 'where' must map columns to allowed values, not {where!r}.")
    allowed = {column: values if isinstance(values, list) else [values] for column, values in where.items()}
    for column, values in allowed.items():
        if any(value is None or isinstance(value, list | dict) for value in values):
            raise ValueError(f"data.{name}: 'where' allows {values!r} in {column!r}; give a value or a list of values.")
    return ClipSource(manifest, {column: tuple(spelled(text_of(value)) for value in own) for column, own in allowed.items()})
