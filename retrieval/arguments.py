"""The options of the commands on tables of embeddings. Nothing here loads PyTorch, so `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from wavcse.data.arguments import check_inputs, check_is_no_folder
from wavcse.eval.arguments import TaskRequest, task_request
from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, operand, option, settings_from
from wavcse.settings.recipes import read_recipe

INDEX_LIBRARIES = ("faiss", "usearch")  # of retrieval/index.py, which a test holds equal
METHODS = ("pca", "tsne", "umap")  # of retrieval/projection.py, likewise
DEVICE = "Torch device; auto: an accelerator if there is one."
TABLE = "Parquet file that `wavcse embed` has made, or the folder of its parts."
SIMILAR_ABOUT = """\
Find the clips of a table of embeddings that are most similar to a recording, by cosine similarity.

The recording is embedded by the model that made the table, with the table's settings; another model is refused. The search is
exact and reads the table block by block, so the table may be larger than memory. --index builds a graph in a file beside the
table, which later calls use, and prints how many of the true neighbours it finds. Exit codes: 0 done, 2 refused.
"""
COMPARE_ABOUT = """\
Print the cosine similarity of two recordings, from -1 to 1.

What is high depends on the model and on the recordings: with --table, the share of pairs of clips in a table that are less
similar is printed too. Exit codes: 0 done, 2 refused.
"""
REDUCE_ABOUT = """\
Make a model with a smaller embedding: the principal components of a table of its embeddings.

The projection is put into the model's last layer, so the new folder is an ordinary model, whose smaller vectors every command
and library gives. Heads are kept, and read what the components keep. The table must hold whole embeddings of the same model
(`wavcse embed` without --normalize and --truncate_dim), of at least some thousand clips. Exit codes: 0 done, 2 refused.
"""
SIZES_ABOUT = """\
Judge smaller vectors: a model's embeddings cut, reduced to principal components, and quantised, on tasks of `wavcse eval`.

Writes sizes.json, README.md and a picture into --out: probe accuracy, EER of verification and precision of retrieval against
the bytes of a vector. Embeddings are kept in --work, and computed once.
"""
CALIBRATE_ABOUT = """\
Measure what a similarity says: how likely two recordings agree in a label, such as the speaker, given their similarity.

Pairs are made of the clips of a table, which agree where their labels do. On the clips of one half of the label's values a
logistic curve is fitted; the clips of the other half say how good it is (EER, Cllr). `wavcse app --calibration` reads the
file. Needs scikit-learn: pip install "wavcse[eval]". Exit codes: 0 done, 2 refused.
"""
MAP_ABOUT = """\
Draw a table of embeddings as points of a plane, in one web page that needs no network and no other file.

Points are coloured by any column of the table or of a manifest; the pointer shows what is known of a clip, and a click plays
it where the page can find the audio. t-SNE needs scikit-learn and UMAP umap-learn: pip install "wavcse[map]".
"""


@dataclass(frozen=True)
class SimilarArguments(CheckedFields):
    """What is looked for, and where."""

    table: str = operand(TABLE, group="input and output")
    query: str = operand("Audio file.")
    top: int = option(10, "How many clips are shown.", at_least=1)
    out: str | None = option(None, "Write them to this CSV file too.", value="FILE.csv")
    model: str | None = option(
        None, "Folder or Hub id of the model that made the table.", "as the table says", value="DIR_OR_HUB_ID"
    )
    index: str | None = option(
        None, "Search by an index of this library in a file beside the table.", "exact search", choices=INDEX_LIBRARIES
    )
    device: str = option("auto", DEVICE)

    def look(self) -> None:
        """ValueError for paths that are not there, or not what they should be."""
        check_table(self.table)
        check_files([self.query], self.model)
        if self.out is not None:
            check_is_no_folder(self.out)


@dataclass(frozen=True)
class CompareArguments(CheckedFields):
    """Which recordings are compared, and by which model."""

    first: str = operand("Audio file.", group="input")
    second: str = operand("Audio file.")
    model: str = option(".", "Folder or Hub id of a wavCSE model; its Python files are run.", value="DIR_OR_HUB_ID")
    table: str | None = option(None, "Table of embeddings by the same model, whose pairs give the number a scale.")
    device: str = option("auto", DEVICE)

    def look(self) -> None:
        """ValueError for paths that are not there."""
        check_files([self.first, self.second], self.model)
        if self.table is not None:
            check_table(self.table)


@dataclass(frozen=True)
class MapArguments(CheckedFields):
    """What is drawn, and how."""

    table: str = operand(TABLE, group="input and output")
    out: str = option("map.html", "The page to make.", value="FILE.html")
    manifest: str | None = option(None, "CSV or Parquet manifest of the same clips, whose columns are shown too.")
    audio: str | None = option(
        None, "Folder that the table's paths start from, for playing.", "that of --manifest", value="DIR"
    )
    method: str = option("pca", "How points are placed.", choices=METHODS, group="what is drawn")
    color: str | None = option(None, "Column that colours the points at first.", "the first", value="COLUMN")
    points: int = option(5000, "At most so many rows, drawn at random.", at_least=4)
    seed: int = option(0, "Of drawing rows and placing points.", at_least=0)

    def look(self) -> None:
        """ValueError for paths that are not there, or not what they should be."""
        check_table(self.table)
        check_inputs([self.manifest] if self.manifest is not None else [], None)
        check_is_no_folder(self.out)
        if self.audio is not None and not Path(self.audio).is_dir():
            raise ValueError(f"{self.audio}: there is no such folder; --audio is where the table's paths start from.")


@dataclass(frozen=True)
class ReduceArguments(CheckedFields):
    """What is reduced, and to what."""

    table: str = operand(TABLE, group="input and output")
    size: int = option(NEEDED, "Numbers per embedding of the new model.", at_least=1)
    out: str = option(NEEDED, "Folder of the new model.", value="DIR")
    model: str | None = option(
        None, "Folder or Hub id of the model that made the table.", "as the table says", value="DIR_OR_HUB_ID"
    )
    whiten: bool = option(False, "Scale every component to the variance 1.")

    def look(self) -> None:
        """ValueError for paths that are not there, or that would be written over."""
        check_table(self.table)
        check_inputs([], self.model)
        if Path(self.out, "config.json").exists():
            raise ValueError(f"{self.out}: holds a model already; give the name of a new folder.")


@dataclass(frozen=True)
class SizesArguments(CheckedFields):
    """What is judged."""

    recipe: str = operand("YAML file with fields of `SizesSettings`, such as conf/small_vectors.yaml.", value="RECIPE.yaml")

    def look(self) -> None:
        """ValueError for a recipe that cannot be used."""
        read_sizes(self.recipe)


@dataclass(frozen=True)
class SizesSettings(CheckedFields):
    """What is judged, on what."""

    model: str = option(NEEDED, "Folder or Hub id of a wavCSE model.", value="DIR_OR_HUB_ID", group="input and output")
    tasks: dict = option(NEEDED, "As in the recipe of `wavcse eval`.")
    out: str = option(NEEDED, "Folder of the table and the picture.", value="DIR")
    work: str = option(NEEDED, "Folder of what is computed on the way.", value="DIR")
    name: str = option("the model", "What the table calls the model.", value="TEXT")
    sizes: list[int] = option(lambda: [512, 256, 128, 64, 32], "Numbers per vector.", at_least=1)
    seed: int = option(0, "Of the probes.", at_least=0)

    def requests(self) -> list[TaskRequest]:
        """Every task with the changes asked for, and its files."""
        return [task_request(name, changes) for name, changes in self.tasks.items()]


def read_sizes(path: str) -> SizesSettings:
    """The settings in a recipe; ValueError names a field that is unknown, missing or wrong."""
    names = [one.name for one in fields(SizesSettings)]
    settings = settings_from(SizesSettings, read_recipe(path, allowed=names))
    settings.requests()
    return settings


@dataclass(frozen=True)
class CalibrateArguments(CheckedFields):
    """Whose pairs are measured, and by which label."""

    table: str = operand(TABLE, group="input and output")
    manifest: str | None = option(None, "CSV or Parquet manifest of the same clips, if the table has no labels.")
    label: str = option(NEEDED, "Column by which clips agree or differ.", value="COLUMN")
    out: str = option("calibration.json", "The file to make.", value="FILE.json")
    clips: int = option(2000, "At most so many clips, drawn at random.", at_least=8)
    seed: int = option(0, "Of drawing clips and halves.", at_least=0)

    def look(self) -> None:
        """ValueError for paths that are not there, or not what they should be."""
        check_table(self.table)
        check_inputs([self.manifest] if self.manifest is not None else [], None)
        check_is_no_folder(self.out)


def check_table(table: str) -> None:
    """ValueError where there is no such table; what it holds is found when it is read."""
    if not Path(table).exists():
        raise ValueError(f"{table}: there is no such file; give a table that `wavcse embed` has made.")


def check_files(recordings: list[str], model: str | None) -> None:
    """ValueError for recordings that are no files, or a model that is not there."""
    check_inputs([], model)
    for recording in recordings:
        if not Path(recording).is_file():
            raise ValueError(f"{recording}: there is no such audio file.")


SIMILAR = Program(
    "wavcse similar",
    SimilarArguments,
    SIMILAR_ABOUT,
    "wavcse similar recordings.parquet clip.wav --top 10 --out ranked.csv",
    look=SimilarArguments.look,
)
COMPARE = Program(
    "wavcse compare",
    CompareArguments,
    COMPARE_ABOUT,
    "wavcse compare one.wav other.wav --model .",
    look=CompareArguments.look,
)
CALIBRATE = Program(
    "wavcse calibrate",
    CalibrateArguments,
    CALIBRATE_ABOUT,
    "wavcse calibrate recordings.parquet --manifest recordings/metadata.csv --label speaker_id",
    look=CalibrateArguments.look,
)
REDUCE = Program(
    "wavcse reduce",
    ReduceArguments,
    REDUCE_ABOUT,
    "wavcse reduce recordings.parquet --size 128 --whiten --out small",
    look=ReduceArguments.look,
)
SIZES = Program(
    "wavcse sizes",
    SizesArguments,
    SIZES_ABOUT,
    "python -m wavcse.retrieval.sizes conf/small_vectors.yaml",
    usage="python -m wavcse.retrieval.sizes",
    look=SizesArguments.look,
)
MAP = Program(
    "wavcse map",
    MapArguments,
    MAP_ABOUT,
    "wavcse map recordings.parquet --audio recordings --method tsne --out map.html",
    look=MapArguments.look,
)
