"""The command lines of the tools. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import wavcse

ROOT = Path(wavcse.__file__).parent
CORPORA = "conf/tiny_data.yaml"
INSTALL = """\
Make a trained run the model of this repository: its three files into the root, its results into results/tiny, the card.

    python -m wavcse.tools.install runs/tiny/model --pretraining runs/tiny/pretrain runs/tiny/lasr \\
        --evaluation runs/tiny/eval --data runs/tiny/data.json

The new root is put together beside the old one: its README is rendered, and its files are loaded in a fresh process and their
embeddings compared. Only then are files exchanged, so that what fails leaves the root as it was; an exchange that was killed
is finished by the next start.
"""
README = """\
What the repository says of the weights in its root, made from `config.json`, `model.safetensors` and results/tiny.

    python -m wavcse.tools.readme             # write all three
    python -m wavcse.tools.readme --check     # write nothing; exit code 2 if one of them is not what the files give

- README.md: its header, and the short table between the marks; everything else in it is written by hand and kept.
- results/tiny/card.md: the whole model card.
- .eval_results/<task>.yaml: the primary metric of each task, in the form that the Hub reads.
"""
TRAINING_DATA = """\
What speech a model was trained on, counted from its recipes: hours, languages, voices and licences of every corpus.

    python -m wavcse.tools.training_data conf/pretrain_tiny.yaml conf/train_tiny.yaml --out data.json

Recipes are those of pre-training and of training; counted are the clips that they take, after their filters, held-out speakers
and splits. A corpus that `--corpora` does not describe, or whose licence is not permissive, is refused.
"""


def parse_install(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m wavcse.tools.install`."""
    parser = _parser("python -m wavcse.tools.install", INSTALL)
    parser.add_argument("run", type=Path, help="run folder of the training; its hub/ is the model")
    parser.add_argument("--pretraining", type=Path, nargs="+", required=True, help="run folders of the stages, in order")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder that `wavcse eval` wrote")
    parser.add_argument("--data", type=Path, required=True, help="JSON file of `python -m wavcse.tools.training_data`")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one that this package lies in)")
    return parser.parse_args(argv)


def parse_readme(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m wavcse.tools.readme`."""
    parser = _parser("python -m wavcse.tools.readme", README)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if a file is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one that this package lies in)")
    return parser.parse_args(argv)


def parse_training_data(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `python -m wavcse.tools.training_data`."""
    parser = _parser("python -m wavcse.tools.training_data", TRAINING_DATA)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="YAML recipes of pre-training and training")
    parser.add_argument("--corpora", default=CORPORA, help=f"YAML: corpus -> title, licence, attribution, note ({CORPORA})")
    parser.add_argument("--out", required=True, help="JSON file to write")
    return parser.parse_args(argv)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawTextHelpFormatter)
