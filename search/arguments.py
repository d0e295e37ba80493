"""The command lines of the searches. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavcse.settings.fields import check_range
from wavcse.training.arguments import RunArguments, parse_arguments

RIVALS = ("all", "top_weights", "top_single", "greedy", "random")  # ways to choose layers; `selection.py` has the plans
GRIDS = ("authors", "default")
POOLINGS = (  # as in pooling_wavcse.py
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
LAYERS = """\
Recursive layer selection with its rivals, their stability and their costs (section 4 of the paper).

    wavcse search layers conf/quickstart.yaml --out runs/layers --seeds 3 --workers 2

CONFIG is a training recipe; its fields can be overridden as in training (`--num_epochs 20`). Left in the folder: `layers.md`,
`results/layers.json`, `pictures/`, `recipe.yaml` and `recipe_smallest.yaml` to train with, and `fits/`, one file per finished
fit: the same command goes on where a killed one was.
"""
POOLS = """\
The ten layer poolings compared on one set of layers, with their constants, fixed and learned (Table 2 of the paper).

    wavcse search poolings conf/quickstart.yaml --out runs/poolings --seeds 3 --workers 2

CONFIG is a training recipe; its fields can be overridden as in training (`--selected_layers 0 2 5`). Left in the folder:
`poolings.md`, `results/poolings.json`, `pictures/`, `recipe.yaml` to train with, and `fits/`, one file per finished fit: the
same command goes on where a killed one was.
"""
HPARAMS = """\
Sizes, penalties, dropouts, batch size and learning rate, searched as in section 3 of the paper.

    wavcse search hparams conf/quickstart.yaml --out runs/hparams --trials 40 --seeds 2 --workers 2

First a grid over batch size and learning rate, then Bayesian optimisation of the rest at the best point of the grid
(`search/study.py`). CONFIG is a training recipe; its fields can be overridden as in training. Left in the folder:
`hparams.md`, `results/hparams.json`, `pictures/`, `recipe.yaml` to train with, `hparams.sqlite`, the Optuna study, and
`fits/`, one file per finished fit: the same command goes on where a killed one was, and more `--trials` continue it.
"""
PHASE1 = """\
Phase 1 of the paper in one command: manifests, cache, layers, poolings, hyper-parameters, final training, report.

    wavcse search phase1 conf/synthetic_phase1.yaml [--out DIR]

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


def parse_layers(argv: Sequence[str] | None = None) -> tuple[RunArguments, dict[str, Any]]:
    """Recipe and options of `wavcse search layers`."""
    parser = _parser("layers", LAYERS, "seeds per set; the spread between them judges differences")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS), help="other ways to choose layers")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of layers to train rivals at (default: all)")
    parser.add_argument("--measure_speed", action="store_true", help="time the upstream for every set")
    return _parsed(parser, argv)


def parse_poolings(argv: Sequence[str] | None = None) -> tuple[RunArguments, dict[str, Any]]:
    """Recipe and options of `wavcse search poolings`."""
    parser = _parser("poolings", POOLS, "seeds per pooling and constant")
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS), help="of the ten")
    parser.add_argument(
        "--constants", choices=GRIDS, default=GRIDS[0], help="the authors' grid, or one constant per pooling (default: grid)"
    )
    return _parsed(parser, argv)


def parse_hparams(argv: Sequence[str] | None = None) -> tuple[RunArguments, dict[str, Any]]:
    """Recipe and options of `wavcse search hparams`."""
    parser = _parser("hparams", HPARAMS, "seeds per trial; its value is their mean")
    parser.add_argument("--trials", type=int, default=40, help="of the Bayesian optimisation, in this folder altogether")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="of the grid (default: half, once, twice the recipe's)")
    parser.add_argument(
        "--learning_rates", type=float, nargs="+", help="of the grid (default: 0.4, 1 and 2.5 times the recipe's)"
    )
    return _parsed(parser, argv)


def parse_phase1(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `wavcse search phase1`."""
    parser = argparse.ArgumentParser(
        prog="wavcse search phase1", description=PHASE1, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="recipe with sections (YAML), such as conf/synthetic_phase1.yaml")
    parser.add_argument("--out", "--output_dir", dest="output_dir", metavar="DIR", help="instead of the configuration's own")
    return parser.parse_args(argv)


PARSERS = {"layers": parse_layers, "poolings": parse_poolings, "hparams": parse_hparams, "phase1": parse_phase1}


def _parser(name: str, description: str, seeds: str) -> argparse.ArgumentParser:
    """A parser with the options that every search has; `seeds` is the help of `--seeds`."""
    parser = argparse.ArgumentParser(
        prog=f"wavcse search {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="training recipe (YAML), as for train_accelerate.py")
    parser.add_argument(
        "--out",
        "--output_dir",
        dest="output_dir",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder for results, pictures, recipes and fits",
    )
    parser.add_argument("--seeds", type=int, default=3, help=seeds)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    return parser


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[RunArguments, dict[str, Any]]:
    """What the parser does not know is a field of the recipe."""
    own, overrides = parser.parse_known_args(argv)
    args = parse_arguments([own.config, *overrides])
    for option in ("seeds", "workers"):
        check_range(option, getattr(own, option), at_least=1)
    return args, {name: value for name, value in vars(own).items() if name != "config"}
