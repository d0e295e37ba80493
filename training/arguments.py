"""Settings of training runs: what all programs share, and those of training on cached features.

A YAML recipe plus command-line overrides, checked before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from wavcse.data.tables import spelled, text_of
from wavcse.settings.command import Program
from wavcse.settings.fields import CheckedFields, option
from wavcse.settings.recipes import checked_fields

if TYPE_CHECKING:
    from wavcse.data.composite import TaskSource

TASK_FIELDS = (
    *("manifest", "label_column", "split_column", "disjoint_by", "classes", "loss_weight"),
    *("kind", "loss", "scale", "margin"),
)
MIXED_PRECISIONS = ("no", "bf16")
TABLE_PLACES = ("auto", "memory", "disk")
SCALINGS = ("none", "standard")  # as in configuration_wavcse.py
STARTS = ("random", "pca")
# Options that came later, with the values that leave everything as it was: earlier runs, results and stored fits do not name
# them, and are those of these values.
AS_BEFORE = {
    "layer_scaling": "none",
    "reconstruction_weight": 0.0,
    "start": "random",
    "pca_whiten": 0.0,
    "pca_rotate": False,
    "freeze_embedding": False,
    "matryoshka_sizes": [],
}
# Fields that may differ between a run and its continuation: they do not change any epoch that is already done.
FREE_ON_RESUME = (
    "num_epochs",
    "output_dir",
    "report_to",
    "features_in",
    "checkpoint_every_s",
    "save_hub",
    "overwrite_output_dir",
    "note",
    "probe",
)


@dataclass
class RunSettings(CheckedFields):
    """What every training program has: where its run lies, and how it computes.

    Attributes:
        free_on_resume: fields that may differ between a run and its continuation.
    """

    free_on_resume = ()

    output_dir: str = option(
        "runs/train", "Folder of the run: config, log, checkpoints, results.", flag="out", group="the run"
    )
    overwrite_output_dir: bool = option(False, "Start again, deleting the run that is there.", flag="overwrite")
    seed: int = option(0, "Same seed, same figures to the bit on one machine.")
    mixed_precision: str = option("no", "Of the products of matrices.", choices=MIXED_PRECISIONS)
    fast_parts: bool = option(True, "Compute the same by faster parts (docs/training.md); false: PyTorch's own.")
    checkpoint_every_s: float = option(120.0, "Least seconds between checkpoints: what a kill can cost.", at_least=0)
    note: str = option("", "A remark that is kept with the figures.")

    def identity(self) -> dict[str, Any]:
        """What a continued run must share with the run it continues.

        `fast_parts` only where it is false: earlier runs and results do not name it, and were made by them.
        """
        free = {*self.free_on_resume, *(["fast_parts"] if self.fast_parts else [])}
        return {name: value for name, value in asdict(self).items() if name not in free}


def paper_layers() -> list[int]:
    """The layers that the paper ends with."""
    from wavcse.configuration_wavcse import PAPER_LAYERS  # which loads PyTorch; `--help` needs none

    return list(PAPER_LAYERS)


@dataclass
class RunArguments(RunSettings):
    """Phase 1 of the paper; the defaults are the paper's (section 3 and its footnote)."""

    free_on_resume = FREE_ON_RESUME

    tasks: dict = option(
        dict,
        "Task -> manifest, label_column, split_column, disjoint_by, classes, loss_weight, kind, loss, scale, margin "
        "(YAML or JSON).",
        group="what it is trained on",
    )
    cache_dir: str = option("caches", "Folder of the feature cache (python -m wavcse.data.cache).")
    upstream: str | None = option(None, "Hub id or folder of the upstream that made the cache; needed for the Hub folder.")
    revision: str | None = option(None, "Commit of the upstream on the Hub.")
    output_dir: str = option("runs/train", "Run folder: config, log, checkpoints, results, hub.", flag="out", group="the run")

    selected_layers: list[int] = option(
        paper_layers, "Layers to pool: 0 = input of the first block.", "the paper's sixteen", group="the embedding"
    )
    layer_scaling: str = option(
        "none",
        "Of the pooled layers; standard: minus the mean of the training clips, by their standard deviation.",
        choices=SCALINGS,
    )
    layer_projection_size: int | None = option(512, "Width of FC1; null: no FC1.")
    pooling_type: str = option("learned_norm", "One of the paper's ten layer poolings, or concat, layers side by side.")
    pooling_kwargs: dict = option(dict, "Its constants (in the YAML, or as JSON).")
    embedding_size: int = option(2000, "Width of FC2 = size of the embedding.")
    layer_dropout: float = option(0.4, "Dropout before FC2.")
    embedding_dropout: float = option(0.6, "Dropout before the heads.")

    num_epochs: int = option(100, "Passes over the composite training set.", at_least=1, group="training")
    batch_size: int = option(2048, "Clips per step, over all processes together.", at_least=1)
    drop_last: bool = option(True, "Leave out an incomplete last batch (kept if it is the only one).")
    learning_rate: float = option(2.5e-3, "AdamW's learning rate.", above=0)
    weight_decay: float = option(5e-8, "AdamW's decoupled weight decay.", at_least=0)
    l1: float = option(1e-7, "Penalty on sum |w| over all parameters.", at_least=0)
    l2: float = option(1e-5, "Penalty on sum w^2 over all parameters.", at_least=0)
    scheduler_patience: int = option(1, "Epochs without a better validation loss before a decay.", at_least=0)
    scheduler_factor: float = option(0.5, "Factor of that decay.")

    reconstruction_weight: float = option(
        0.0,
        "Of the squared error of a linear decoder from the embedding to the scaled layers; 0: none.",
        at_least=0,
        group="beyond the paper",
    )
    start: str = option(
        "random", "Of the embedding projection; pca: the principal components of the training clips.", choices=STARTS
    )
    pca_whiten: float = option(
        0.0, "Exponent of that start's whitening: 0 none, 1 unit variance in every direction.", at_least=0, at_most=1
    )
    pca_rotate: bool = option(False, "Turn that start by a fixed rotation, so that all numbers vary alike (docs/training.md).")
    freeze_embedding: bool = option(False, "Train the heads only: the embedding stays what start pca makes it.")

    matryoshka_sizes: list[int] = option(
        list,
        "Train the first so many numbers of the embedding too, so that it can be cut.",
        "none",
        value="M",
        empty=True,
        at_least=1,
    )

    features_in: str = option(
        "auto", "Where the table of features lies; auto: in memory when it fits.", choices=TABLE_PLACES, group="the run"
    )
    report_to: str | None = option(None, "Tracker through Accelerate: trackio, tensorboard, ...", value="NAME")
    checkpoint_every_s: float = option(
        20.0, "Least seconds between checkpoints: what a kill can cost. 0 = after every epoch.", at_least=0
    )
    probe: bool = option(
        True, "Show what a linear classifier reads from the same layers beside each task; false saves its seconds."
    )
    save_hub: bool = option(True, "Leave a Hub folder (needs `upstream`); a search turns it off.")

    def __post_init__(self):
        super().__post_init__()
        self.task_sources()
        if self.tasks:
            self.task_losses()
        self._check_start()
        self._check_matryoshka_sizes()
        if self.save_hub and not self.upstream:
            raise ValueError("upstream is not given; name it, or pass --save_hub false to train without leaving a Hub folder.")

    def _check_start(self) -> None:
        if self.start == "pca" and (self.pooling_type != "concat" or self.layer_projection_size is not None):
            raise ValueError(
                "start is 'pca', which makes the embedding of the layers side by side: it needs pooling_type concat and "
                f"layer_projection_size null, and these are {self.pooling_type} and {self.layer_projection_size}."
            )
        for name in ("pca_whiten", "pca_rotate", "freeze_embedding"):
            if self.start != "pca" and (value := getattr(self, name)):
                raise ValueError(f"{name} is {value}; it belongs to start pca, and start is {self.start!r}.")
        if self.freeze_embedding and self.reconstruction_weight:
            raise ValueError(
                "freeze_embedding is true: a reconstruction_weight has nothing to change; leave one of the two out."
            )

    def _check_matryoshka_sizes(self) -> None:
        sizes = self.matryoshka_sizes
        if sizes != sorted(set(sizes)) or (sizes and sizes[-1] >= self.embedding_size):
            raise ValueError(
                f"matryoshka_sizes is {sizes}; different sizes below embedding_size ({self.embedding_size}) are needed, the "
                "smallest first. The whole embedding is always trained."
            )

    def with_pooling(self, pooling_type: str, pooling_kwargs: Mapping[str, Any], **changes) -> RunArguments:
        """The recipe with another layer pooling and other `changes`; its start stays where that pooling can have it."""
        if pooling_type != "concat":
            changes = {"start": "random", "pca_whiten": 0.0, "pca_rotate": False, "freeze_embedding": False, **changes}
        return replace(self, pooling_type=pooling_type, pooling_kwargs=dict(pooling_kwargs), **changes)

    def identity(self) -> dict[str, Any]:
        """As of all runs; an option that came later only where it changes something."""
        return {name: value for name, value in super().identity().items() if (name, value) not in AS_BEFORE.items()}

    def task_sources(self) -> dict[str, TaskSource]:
        """The tasks as typed sources; ValueError names a missing or unknown field, or one that is not what it must be."""
        return {name: _task_source(name, fields) for name, fields in self.tasks.items()}

    def loss_weights(self) -> dict[str, float]:
        """Task -> weight of its loss; 1 unless the recipe says otherwise (equal weighting)."""
        return {name: float(fields.get("loss_weight", 1.0)) for name, fields in self.tasks.items()}

    def number_losses(self) -> dict[str, str]:
        """Regression task -> its loss."""
        return {name: fields.get("loss", "ccc") for name, fields in self.tasks.items() if fields.get("kind") == "regression"}

    def task_losses(self) -> dict[str, dict[str, Any]]:
        """Task with classes -> `loss`, `scale` and `margin` of `aam_softmax`, nothing for the plain cross-entropy."""
        from wavcse.configuration_wavcse import validated_loss

        numbers = self.number_losses()
        return {name: validated_loss(f"tasks.{name}", own) for name, own in self.tasks.items() if name not in numbers}

    def model_fields(self) -> dict[str, Any]:
        """The recipe's part of a `WavCSEConfig`: all but the upstream and the tasks' labels."""
        names = ("selected_layers", "layer_scaling", "layer_projection_size", "pooling_type", "pooling_kwargs")
        return {name: getattr(self, name) for name in (*names, "embedding_size", "layer_dropout", "embedding_dropout")}


TRAIN = Program(
    "wavcse train",
    RunArguments,
    """\
Train a wavCSE embedding on a feature cache: Phase 1 of the paper, whose settings are the defaults. A killed run goes on where
it was: give the same command again.
""",
    "accelerate launch train_accelerate.py conf/quickstart.yaml --out runs/mine --num_epochs 20",
    has_recipe=True,
    continues=True,
    usage="accelerate launch train_accelerate.py",
)


def _task_source(name: str, given: Any) -> TaskSource:
    # Here and not above: `--help` need not wait for PyTorch and pandas.
    from wavcse.configuration_wavcse import checked_task_name
    from wavcse.data.composite import TaskSource, as_paths

    where = f"tasks.{checked_task_name(name)}"
    given = checked_fields(where, given, TASK_FIELDS)
    for required in ("manifest", "label_column"):
        if required not in given:
            raise ValueError(f"{where}: {required!r} is missing.")
    manifests, splits = given["manifest"], given.get("split_column", "split")
    for column, value in (("manifest", manifests), ("split_column", splits)):
        if not all(isinstance(one, str) and one for one in (value if isinstance(value, list) and value else [value])):
            raise ValueError(f"{where}: {column} is {value!r}; a text or a list of texts is needed.")
    for column, value in (("label_column", given["label_column"]), ("disjoint_by", given.get("disjoint_by") or "none")):
        if not (isinstance(value, str) and value):
            raise ValueError(
                f"{where}: {column} is {value!r}; a column's name is needed, in quotes if it is yes, no, on or off."
            )
    kind = _kind(where, given)
    weight = given.get("loss_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: loss_weight is {weight!r}; a number from 0 on is needed.")
    return TaskSource(
        manifests=as_paths(manifests),
        label_column=given["label_column"],
        split_columns=as_paths(splits),
        disjoint_by=given.get("disjoint_by") or None,
        classes=_classes(where, given.get("classes")),
        closed_set=kind == "classification",
        numbers=(given["label_column"],) if kind == "regression" else (),
        kind=kind,
    )


def _kind(where: str, given: Mapping[str, Any]) -> str:
    """The task's kind; ValueError where its fields do not go with it."""
    from wavcse.configuration_wavcse import NUMBER_LOSSES, TASK_KINDS

    kind, loss = given.get("kind", TASK_KINDS[0]), given.get("loss")
    if kind not in TASK_KINDS:
        raise ValueError(f"{where}: kind is {kind!r}; allowed: {', '.join(TASK_KINDS)}.")
    if kind == "regression" and (given.keys() & {"scale", "margin"}):
        raise ValueError(f"{where}: scale and margin belong to loss aam_softmax, and a regression task has no classes.")
    if kind == "regression" and loss not in (None, *NUMBER_LOSSES):
        raise ValueError(f"{where}: loss is {loss!r}; allowed: {', '.join(NUMBER_LOSSES)}.")
    if kind == "regression" and given.get("classes"):
        raise ValueError(f"{where}: classes is given, but a regression task has none.")
    return kind


def _classes(where: str, given: Any) -> tuple[str, ...] | None:
    """The classes in the spelling that manifests have; `None` where none are given."""
    if given is None or given == []:
        return None
    if not isinstance(given, list) or any(label is None or isinstance(label, list | dict) for label in given):
        raise ValueError(f'{where}: classes is {given!r}; a list of labels is needed, such as ["yes", "no"].')
    classes = tuple(spelled(text_of(label)) for label in given)
    twice = sorted({label for label in classes if classes.count(label) > 1})
    if twice or "" in classes:
        raise ValueError(f"{where}: classes names {twice[0] if twice else ''!r} {'twice' if twice else 'as a label'}.")
    return classes
