"""Settings of a training run: a YAML recipe plus command-line overrides, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wavcse.configuration_wavcse import PAPER_LAYERS, checked_task_name
from wavcse.data.labels import TaskSource, as_paths
from wavcse.data.tables import spelled, text_of
from wavcse.settings.fields import check_choice, check_ranges, check_types, parse_script_arguments
from wavcse.settings.recipes import checked_fields

TASK_FIELDS = ("manifest", "label_column", "split_column", "disjoint_by", "classes", "loss_weight")
MIXED_PRECISIONS = ("no", "bf16")
TABLE_PLACES = ("auto", "memory", "disk")
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
)


@dataclass
class RunArguments:
    """Phase 1 of the paper; the defaults are the paper's (section 3 and its footnote)."""

    tasks: dict = field(
        default_factory=dict,
        metadata={"help": "Task -> manifest, label_column, split_column, disjoint_by, classes, loss_weight (YAML or JSON)."},
    )
    cache_dir: str = field(default="caches", metadata={"help": "Folder of the feature cache (python -m wavcse.data.cache)."})
    upstream: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the upstream that made the cache; needed for the Hub folder."}
    )
    revision: str | None = field(default=None, metadata={"help": "Commit of the upstream on the Hub."})
    output_dir: str = field(default="runs/train", metadata={"help": "Run folder: config, log, checkpoints, results, hub."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start again, deleting the run that is there."})

    selected_layers: list[int] = field(
        default_factory=lambda: list(PAPER_LAYERS), metadata={"help": "Layers to pool: 0 = input of the first block."}
    )
    layer_projection_size: int = field(default=512, metadata={"help": "Width of FC1."})
    pooling_type: str = field(default="learned_norm", metadata={"help": "One of the ten layer poolings."})
    pooling_kwargs: dict = field(default_factory=dict, metadata={"help": "Its constants (in the YAML, or as JSON)."})
    embedding_size: int = field(default=2000, metadata={"help": "Width of FC2 = size of the embedding."})
    layer_dropout: float = field(default=0.4, metadata={"help": "Dropout before FC2."})
    embedding_dropout: float = field(default=0.6, metadata={"help": "Dropout before the heads."})

    num_epochs: int = field(default=100, metadata={"help": "Passes over the composite training set."})
    batch_size: int = field(default=2048, metadata={"help": "Clips per step, over all processes together."})
    drop_last: bool = field(
        default=True, metadata={"help": "Leave out an incomplete last batch (kept if it is the only one)."}
    )
    learning_rate: float = field(default=2.5e-3, metadata={"help": "AdamW's learning rate."})
    weight_decay: float = field(default=5e-8, metadata={"help": "AdamW's decoupled weight decay."})
    l1: float = field(default=1e-7, metadata={"help": "Penalty on sum |w| over all parameters."})
    l2: float = field(default=1e-5, metadata={"help": "Penalty on sum w^2 over all parameters."})
    scheduler_patience: int = field(default=1, metadata={"help": "Epochs without a better validation loss before a decay."})
    scheduler_factor: float = field(default=0.5, metadata={"help": "Factor of that decay."})

    seed: int = field(default=0, metadata={"help": "Same seed, same figures to the bit on one machine."})
    mixed_precision: str = field(default="no", metadata={"help": "no or bf16."})
    features_in: str = field(default="auto", metadata={"help": "memory, disk, or auto: memory when the table fits."})
    report_to: str | None = field(default=None, metadata={"help": "Tracker through Accelerate: trackio, tensorboard, ..."})
    checkpoint_every_s: float = field(
        default=20.0, metadata={"help": "Least seconds between checkpoints: what a kill can cost. 0 = after every epoch."}
    )
    save_hub: bool = field(default=True, metadata={"help": "Leave a Hub folder (needs `upstream`); a search turns it off."})
    note: str = field(default="", metadata={"help": "A remark that is shown with the figures."})

    def __post_init__(self):
        check_types(self)
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_ranges(self, ("learning_rate",), ("weight_decay", "l1", "l2", "scheduler_patience", "checkpoint_every_s"))
        check_choice("mixed_precision", self.mixed_precision, MIXED_PRECISIONS)
        check_choice("features_in", self.features_in, TABLE_PLACES)
        self.task_sources()
        if self.save_hub and not self.upstream:
            raise ValueError("upstream is not given; name it, or pass --save_hub false to train without leaving a Hub folder.")

    def task_sources(self) -> dict[str, TaskSource]:
        """The tasks as typed sources; ValueError names a missing or unknown field, or one that is not what it must be."""
        return {name: _task_source(name, fields) for name, fields in self.tasks.items()}

    def loss_weights(self) -> dict[str, float]:
        """Task -> weight of its loss; 1 unless the recipe says otherwise (equal weighting)."""
        return {name: float(fields.get("loss_weight", 1.0)) for name, fields in self.tasks.items()}

    def model_fields(self) -> dict[str, Any]:
        """The recipe's part of a `WavCSEConfig`: all but the upstream and the tasks' labels."""
        names = ("selected_layers", "layer_projection_size", "pooling_type", "pooling_kwargs", "embedding_size")
        return {name: getattr(self, name) for name in (*names, "layer_dropout", "embedding_dropout")}

    def identity(self) -> dict[str, Any]:
        """What a continued run must share with the run it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_ON_RESUME}


def parse_arguments(argv: Sequence[str] | None = None) -> RunArguments:
    """`[RECIPE.yaml] [--field value ...]`; a field on the command line wins over the recipe.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, or a value is out of range.
    """
    return parse_script_arguments(
        RunArguments,
        argv,
        "train_accelerate.py",
        "Train a wavCSE embedding on a feature cache (Phase 1 of the paper). "
        "Example: accelerate launch train_accelerate.py conf/quickstart.yaml --output_dir runs/mine --num_epochs 20",
    )


def _task_source(name: str, given: Any) -> TaskSource:
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
    weight = given.get("loss_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: loss_weight is {weight!r}; a number from 0 on is needed.")
    return TaskSource(
        manifests=as_paths(manifests),
        label_column=given["label_column"],
        split_columns=as_paths(splits),
        disjoint_by=given.get("disjoint_by") or None,
        classes=_classes(where, given.get("classes")),
    )


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
