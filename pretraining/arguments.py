"""Settings of a pre-training run: a YAML recipe plus command-line overrides, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wavcse.data.tables import spelled, text_of
from wavcse.settings.command import Program
from wavcse.settings.fields import option
from wavcse.settings.recipes import checked_fields
from wavcse.settings.studies import StudyArguments, StudyFile
from wavcse.steps.arguments import StepArguments

LABEL_LOSS_NAMES = ("hard_triplet", "semi_hard_triplet", "random_triplet", "ge2e")  # `label_losses.py` has them

STUDY_ABOUT = """\
Several variants of a pre-training recipe, trained, judged as frozen upstreams, and set side by side.

    recipe: conf/pretrain_tiny.yaml           # of pretrain_accelerate.py
    overrides: {max_steps: 250}               # fields that all variants share
    variants:                                 # fields on top; `encoder` is merged key by key
      two256: {}
      two128: {encoder: {conv_dim: [128, 128]}}
      untrained: {untrained: true}            # the encoder that training starts from
    evaluation: conf/eval_tiny_upstream.yaml  # of `wavcse eval`; its model and name mean nothing here
    measure_speed: true
    plots: [{x: speed, task: mean}]           # further: variants, reference
    output_dir: runs/tiny_architectures

Every variant is a run of `pretrain_accelerate.py` in a process and a folder of its own. The same command goes on where a
killed one was; what is finished is not done again, and a variant whose settings or data have changed is refused. Left in DIR:
a run folder per variant, `evaluation/`, and `study.json` with `study.md` and `study.html` made from it.
"""


@dataclass(frozen=True)
class ClipSource:
    """A manifest, and the rows of it that may be used.

    Args:
        manifest: path of a CSV or Parquet file.
        where: column -> allowed values; a row must have one of them in every named column (licence, split, ...).
    """

    manifest: str
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class PretrainArguments(StepArguments):
    """BEST-RQ (Chiu et al. 2022) with the label-aware losses of LASR (Vashishth et al. 2023).

    Defaults are the papers' where they give one and do not hang on their size (429 k hours, 1.5 M steps); the rest is scaled
    to a small encoder (docs/pretraining.md).
    """

    data: dict = option(
        dict, "Name -> manifest, where {column: allowed values} (YAML or JSON).", group="what it is trained on"
    )
    label_column: str = option("language", "Manifest column of the labels.")
    exclude_speakers_of: list[str] = option(
        list, "Manifests whose validation and test speakers and clips are left out.", value="FILE"
    )
    exclude_split_columns: list[str] = option(lambda: ["split"], "Columns of those manifests that hold such a split.")
    missing_label_rate: float = option(0.0, "Share of the clips whose label is hidden.", at_least=0, at_most=1)
    noisy_label_rate: float = option(0.0, "Share of the labels replaced by a random other one.", at_least=0, at_most=1)
    output_dir: str = option("runs/pretrain", "Run folder: config, log, checkpoints, upstream.", flag="out", group="the run")

    init_from: str | None = option(
        None,
        "Start from this WavLM, wav2vec2, HuBERT or wavCSE model (folder or Hub id), or a run's folder.",
        value="DIR_OR_HUB_ID",
        group="the encoder",
    )
    freeze_stem: bool = option(False, "Leave the convolutions as they are (with init_from).")
    mask_frames: int = option(20, "Frames (20 ms) of a span.", above=0)
    num_mels: int = option(80, "Mel bands of the spectrogram that the targets are made of.", above=0, group="targets")
    num_cepstra: int = option(
        0, "Make targets of this many cepstral coefficients of it; 0 = of the bands, as the paper.", at_least=0
    )
    codebook_size: int = option(8192, "Codes.", above=0)
    codebook_dim: int = option(16, "Size of a code vector.", above=0)
    codebook_seed: int = option(0, "Seed of projection and codebook, apart from the run's seed.")

    label_loss: str = option(
        "hard_triplet", "Loss on the labels beside BEST-RQ's.", choices=LABEL_LOSS_NAMES, group="the label loss"
    )
    label_weight: float = option(16.0, "Lambda: weight of the label loss; 0 = BEST-RQ alone.", at_least=0)
    label_loss_start: int = option(0, "Step from which the label loss counts.", at_least=0)
    margin: float = option(0.2, "Margin of the triplet losses, in units of the distance (0 to 1).", at_least=0)

    log_every: int = option(20, "Steps per line of the log.", above=0, group="the run")
    stop_after_s: float | None = option(None, "Stop with a checkpoint after this time; the same command goes on.")
    report_to: str | None = option(None, "Tracker through Accelerate: trackio, tensorboard, ...", value="NAME")

    def __post_init__(self):
        super().__post_init__()
        if self.num_cepstra > self.num_mels:
            raise ValueError(f"num_cepstra is {self.num_cepstra}; there are only as many as bands (num_mels {self.num_mels}).")

    def clip_sources(self) -> dict[str, ClipSource]:
        """The data as typed sources; ValueError names a missing or unknown field."""
        if not self.data:
            raise ValueError("data is empty; name at least one manifest: `data: {name: {manifest: PATH}}`.")
        return {name: _clip_source(name, source) for name, source in self.data.items()}


PRETRAIN = Program(
    "wavcse pretrain",
    PretrainArguments,
    """\
Pre-train an encoder on unlabelled and labelled speech (BEST-RQ + LASR). A killed run goes on where it was: give the same
command again.
""",
    "accelerate launch pretrain_accelerate.py conf/pretrain_quick.yaml --out runs/mine",
    has_recipe=True,
    continues=True,
    usage="accelerate launch pretrain_accelerate.py",
)


@dataclass
class StudyRecipe(StudyFile):
    """A study's file; `pretraining/study.py` checks what the fields hold."""

    needed = ("recipe", "variants", "evaluation")

    variants: dict = option(dict, "Name -> fields on top, `encoder` key by key; `untrained: true`: as training finds it.")
    evaluation: str = option("", "Recipe of `wavcse eval`; its model and name mean nothing here.")
    measure_speed: bool = option(False, "Time the upstreams on one CPU thread.")
    plots: list[dict] = option(list, "Pictures: x, task, variants, reference.")


STUDY = Program(
    "wavcse study",
    StudyArguments,
    STUDY_ABOUT,
    "python -m wavcse.pretraining.study conf/tiny_architectures.yaml",
    continues=True,
    usage="python -m wavcse.pretraining.study",
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
