"""The options of the searches. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, operand, option
from wavcse.settings.studies import StudyFile, StudyPart
from wavcse.training.arguments import RunArguments

RIVALS = ("all", "top_weights", "top_single", "greedy", "random")  # ways to choose layers; `selection.py` has the plans
GRIDS = ("authors", "default")
PAPER_POOLINGS = (  # as in pooling_wavcse.py
    "weighted_average",
    "max",
    "mean",
    "mixed",
    "gated",
    "learned_norm",
    "log_sum_exp",
    "smooth_maximum",
    "auto",
    "self_attention",
)
POOLINGS = (*PAPER_POOLINGS, "concat")
LAYERS_ABOUT = """\
Recursive layer selection with its rivals, their stability and their costs (section 4 of the paper).

RECIPE.yaml is one of training, whose options (`wavcse train --help`) are options here too: `--num_epochs 20`. Left in the
folder: `layers.md`, `results/layers.json`, `pictures/`, `recipe.yaml` and `recipe_smallest.yaml` to train with, and `fits/`,
one file per finished fit: the same command goes on where a killed one was.
"""
POOLINGS_ABOUT = """\
The ten layer poolings compared on one set of layers, with their constants, fixed and learned (Table 2 of the paper).

RECIPE.yaml is one of training, whose options (`wavcse train --help`) are options here too: `--selected_layers 0 2 5`. Left in
the folder: `poolings.md`, `results/poolings.json`, `pictures/`, `recipe.yaml` to train with, and `fits/`, one file per
finished fit: the same command goes on where a killed one was.
"""
HPARAMS_ABOUT = """\
Sizes, penalties, dropouts, batch size and learning rate, searched as in section 3 of the paper.

First a grid over batch size and learning rate, then Bayesian optimisation of the rest at the best point of the grid
(`search/study.py`). RECIPE.yaml is one of training, whose options (`wavcse train --help`) are options here too. Left in the
folder: `hparams.md`, `results/hparams.json`, `pictures/`, `recipe.yaml` to train with, `hparams.sqlite`, the Optuna study,
and `fits/`, one file per finished fit: the same command goes on where a killed one was, and more `--trials` continue it.
"""
PHASE1_ABOUT = """\
Phase 1 of the paper in one command: manifests, cache, layers, poolings, hyper-parameters, final training, report.

The configuration is a training recipe with sections for the other programs, each with the options of that program:

    random_upstream   examples/random_upstream.py
    synthesize        wavcse synthesize
    corpora           wavcse corpora, a list of corpora
    cache             wavcse cache; manifests, upstream and folder are those of the recipe
    search            layers, poolings, hparams: the options of wavcse search <name>
    training          fields of the recipe that hold for the final training only

Every step is the program's own `main`, and its choice is the next one's recipe. The same command goes on where a killed one
was; a step whose settings and inputs are as before is not done again. Left in DIR: `report.md`, `report.html`, a folder per
search, `training/` with `hub/`, and `steps/`.
"""
TRANSFER_ABOUT = """\
What does a trained embedding keep for tasks that it was not trained on? Variants of a training recipe, a group of tasks left
out at a time, judged by linear probes beside the best layer, on one feature cache. The study's file:

    recipe: conf/quickstart.yaml              # of train_accelerate.py; its tasks and cache
    overrides: {num_epochs: 30}               # fields that all variants share
    variants:
      paper: {}
      pca: {untrained: true, layer_scaling: standard, pooling_type: concat, layer_projection_size: null, start: pca}
    evaluation: conf/eval_quickstart.yaml     # tasks of `wavcse eval`; their clips are in the cache too
    groups:
      words: {leave_out: [keyword], rows: [keyword]}
    seeds: 3

Left in the folder: `study.md`, `study.html`, `study.json`, `pictures/`, and `evaluation/` with a result per task and variant:
the same command goes on where a killed one was.
"""


@dataclass
class TransferRecipe(StudyFile):
    """A study's file; `search/transfer.py` checks what the fields hold."""

    needed = ("recipe", "variants", "evaluation", "groups")

    variants: dict = option(dict, "Name -> fields on top; `untrained: true`: as training finds it.")
    evaluation: str = option("", "Recipe of `wavcse eval`; its model and baselines mean nothing here.")
    groups: dict = option(dict, "Name -> leave_out: tasks of the recipe; rows: tasks of the evaluation.")
    seeds: int = option(3, "Trainings per variant and group.", at_least=1)
    plots: list[dict] = option(list, "Pictures: x, task, variants, reference.")
    output_dir: str = option("runs/transfer", "Folder of everything that is left.", flag="out")


@dataclass
class SearchArguments(CheckedFields):
    """What every search has beside the recipe, whose options are its own too."""

    recipe: RunArguments = operand("Training recipe, as for train_accelerate.py.", value="RECIPE.yaml")
    output_dir: Path = option(NEEDED, "Folder for results, pictures, recipes and fits.", flag="out", value="DIR")
    seeds: int = option(3, "Seeds of every fit; the spread between them judges differences.", value="K", at_least=1)
    workers: int = option(lambda: os.cpu_count() or 1, "Processes.", "one per core", value="K", at_least=1)

    def own(self) -> dict[str, Any]:
        """All but the recipe, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "recipe"}


@dataclass
class LayersArguments(SearchArguments):
    """Of the selection of layers."""

    rivals: list[str] = option(
        lambda: list(RIVALS), "Other ways to choose layers; without a name none.", value="NAME", choices=RIVALS, empty=True
    )
    sizes: list[int] | None = option(None, "Numbers of layers to train rivals at.", "all", value="N")
    measure_speed: bool = option(False, "Time the upstream for every set.")

    def __post_init__(self):
        super().__post_init__()
        if self.measure_speed and not self.recipe.upstream:
            raise ValueError("upstream is not given, so its speed cannot be measured.")


@dataclass
class PoolingsArguments(SearchArguments):
    """Of the comparison of poolings."""

    poolings: list[str] = option(
        lambda: list(PAPER_POOLINGS), "Which to compare.", "the paper's ten", value="NAME", choices=POOLINGS
    )
    constants: str = option(GRIDS[0], "The authors' grid, or one constant per pooling.", choices=GRIDS)


@dataclass
class HparamsArguments(SearchArguments):
    """Of the search of sizes, penalties, dropouts and rates."""

    trials: int = option(40, "Of the Bayesian optimisation, in this folder altogether.", value="N", at_least=1)
    batch_sizes: list[int] | None = option(None, "Of the grid.", "half, once, twice the recipe's", value="N", at_least=1)
    learning_rates: list[float] | None = option(
        None, "Of the grid.", "0.4, 1 and 2.5 times the recipe's", value="RATE", above=0
    )


@dataclass
class Phase1Arguments(CheckedFields):
    """Of Phase 1 in one command."""

    config: str = operand("Recipe with sections, such as conf/synthetic_phase1.yaml.", value="RECIPE.yaml")
    output_dir: str | None = option(None, "Where everything is left.", "the recipe's own", flag="out", value="DIR")


LAYERS = Program(
    "wavcse search layers",
    LayersArguments,
    LAYERS_ABOUT,
    "wavcse search layers conf/quickstart.yaml --out runs/layers --seeds 3 --workers 2",
    continues=True,
)
POOLS = Program(
    "wavcse search poolings",
    PoolingsArguments,
    POOLINGS_ABOUT,
    "wavcse search poolings conf/quickstart.yaml --out runs/poolings --seeds 3 --workers 2",
    continues=True,
)
HPARAMS = Program(
    "wavcse search hparams",
    HparamsArguments,
    HPARAMS_ABOUT,
    "wavcse search hparams conf/quickstart.yaml --out runs/hparams --trials 40 --seeds 2 --workers 2",
    continues=True,
)
PHASE1 = Program(
    "wavcse search phase1",
    Phase1Arguments,
    PHASE1_ABOUT,
    "wavcse search phase1 conf/synthetic_phase1.yaml --out runs/phase1",
    continues=True,
)
TRANSFER = Program(
    "wavcse search transfer",
    StudyPart,
    TRANSFER_ABOUT,
    "wavcse search transfer conf/transfer_quickstart.yaml --out runs/transfer",
    continues=True,
)
