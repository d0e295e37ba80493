"""The options of the tools. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import wavcse
from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, check_file_name, operand, option

ROOT = Path(wavcse.__file__).parent
NAMED = "wavcse-"  # names of models in the root begin so, and are found by it among the tags of README.md
INSTALL_ABOUT = """\
Make a trained run the model of this repository: its three files into the root, its results into results/NAME, the card.

The new root is put together beside the old one: its README is rendered, and its files are loaded in a fresh process and their
embeddings compared. Only then are files exchanged, so that what fails leaves the root as it was; an exchange that was killed
is finished by the next start. A root that does not exist is made, with the code and a README of its own.
"""
README_ABOUT = """\
What the repository says of the weights in its root, made from `config.json`, `model.safetensors` and results/NAME:

- README.md: its header, which names the model, and what it is and gives between the marks; everything else in it is written by
  hand and kept.
- results/NAME/card.md: the whole model card.
- .eval_results/<task>.yaml: the primary metric of each task, in the form that the Hub reads.
"""
TRAINING_DATA_ABOUT = """\
What speech a model was trained on, counted from its recipes: hours, languages, voices and licences of every corpus.

Recipes are those of pre-training and of training; counted are the clips that they take, after their filters, held-out speakers
and splits. A corpus that `--corpora` does not describe, or whose licence is not permissive, is refused.
"""
SPLIT_ABOUT = """\
Splits for a corpus that has none: of every speaker (or other label) one part of the clips trains, one validates, one tests.

For tasks whose classes are those labels, such as speaker identification. The division follows from the clips' names alone.
"""
CHOICE_ABOUT = """\
Candidates for the model in the root: upstream, blocks and size, by validation figures of transfer studies and measured speed.

Give every upstream a name, its study, which `wavcse search transfer` has run, and its folder.
"""


@dataclass
class InstallArguments(CheckedFields):
    """What is installed."""

    run: Path = operand("Run folder of the training; its hub/ is the model.")
    name: str = option(NEEDED, "What the model is called: wavcse-...", value="NAME")
    pretraining: list[Path] = option(
        list, "Run folders of the stages of the pre-training, in order.", "none: the upstream is another's", value="DIR"
    )
    evaluation: Path = option(NEEDED, "Folder that `wavcse eval` wrote.", value="DIR")
    data: Path = option(NEEDED, "What `python -m wavcse.tools.training_data` wrote.", value="FILE.json")
    root: Path = option(ROOT, "The repository, or a new folder.", "the one that this package lies in", value="DIR")

    def __post_init__(self):
        super().__post_init__()
        check_file_name("name", self.name)
        if not self.name.removeprefix(NAMED) or not self.name.startswith(NAMED):
            raise ValueError(f"name is {self.name!r}; it must begin with {NAMED!r} and go on.")


@dataclass
class ReadmeArguments(CheckedFields):
    """What is written, or only compared."""

    check: bool = option(False, "Write nothing; exit code 2 if a file is not what the results give.")
    show: bool = option(False, "Write nothing; print the short table of the model in the root.")
    root: Path = option(ROOT, "The repository.", "the one that this package lies in", value="DIR")


@dataclass
class TrainingDataArguments(CheckedFields):
    """What is counted."""

    recipes: list[str] = operand("YAML recipes of pre-training and training.", value="RECIPE.yaml")
    corpora: str = option(
        "conf/tiny_data.yaml", "YAML: corpus -> title, licence, attribution, note; and whose upstream.", value="FILE.yaml"
    )
    out: str = option(NEEDED, "JSON file to write.", value="FILE.json")


@dataclass
class SplitArguments(CheckedFields):
    """What is split, and how."""

    manifest: Path = operand("Manifest without a split column.", value="MANIFEST.csv")
    out: Path = option(
        NEEDED, "Manifest to write, with the column `split_sid`, or `split`, or `split_fold1`, ...", value="FILE.csv"
    )
    label_column: str = option("speaker_id", "Of the labels whose clips are divided.")
    where: dict = option(dict, "Column -> values of the rows to take, as JSON.")
    share: float = option(0.15, "Of each label's clips that validate, and that test.", above=0, below=0.34)
    disjoint: bool = option(False, "Divide the labels instead, each with all of its clips (column `split`): unseen speakers.")
    most: int = option(
        0, "With --disjoint: labels of more clips train, as one of them would be most of a split; 0 = not.", at_least=0
    )
    folds: int = option(
        0, "Divide the labels so many times, each time testing others (columns `split_fold1`, ...); 0 = not.", at_least=0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.folds and self.disjoint:
            raise ValueError("disjoint and folds are two ways to divide the labels; leave one of them out.")
        if self.most and not self.disjoint:
            raise ValueError("most is given without disjoint, which it is of.")


@dataclass
class ChoiceArguments(CheckedFields):
    """What is compared."""

    studies: dict = option(NEEDED, "Upstream's name -> study, as JSON.")
    upstreams: dict = option(NEEDED, "Upstream's name -> folder or Hub id, as JSON.")
    output_dir: Path = option(Path("runs/root/choice"), "Folder of choice.json and choice.md.", flag="out", value="DIR")

    def __post_init__(self):
        super().__post_init__()
        if not self.studies or set(self.studies) != set(self.upstreams):
            raise ValueError(f"studies names {sorted(self.studies)}, upstreams {sorted(self.upstreams)}: each needs both.")


INSTALL = Program(
    "wavcse install",
    InstallArguments,
    INSTALL_ABOUT,
    "python -m wavcse.tools.install runs/tiny/model --name wavcse-tiny --pretraining runs/tiny/pretrain runs/tiny/lasr "
    "--evaluation runs/tiny/eval --data runs/tiny/data.json",
    usage="python -m wavcse.tools.install",
)
UPDATE = Program(
    "wavcse readme",
    ReadmeArguments,
    README_ABOUT,
    "python -m wavcse.tools.readme --check",
    usage="python -m wavcse.tools.readme",
)
TRAINING_DATA = Program(
    "wavcse training_data",
    TrainingDataArguments,
    TRAINING_DATA_ABOUT,
    "python -m wavcse.tools.training_data conf/pretrain_tiny.yaml conf/train_tiny.yaml --out data.json",
    usage="python -m wavcse.tools.training_data",
)
SPLIT = Program(
    "wavcse split",
    SplitArguments,
    SPLIT_ABOUT,
    "python -m wavcse.tools.split ../shared/pretrain/manifest.csv --out runs/root/speakers.csv",
    usage="python -m wavcse.tools.split",
)
CHOICE = Program(
    "wavcse choice",
    ChoiceArguments,
    CHOICE_ABOUT,
    """python -m wavcse.tools.choice --studies '{"tiny.en": "conf/transfer_root.yaml"}' --upstreams '{"tiny.en": "DIR"}'""",
    usage="python -m wavcse.tools.choice",
)
