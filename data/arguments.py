"""The options of `wavcse cache`, `embed`, `transcribe` and `trials`. Nothing here loads PyTorch; help comes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, operand, option

# As in configuration_wavcse.py, which loads PyTorch; a test holds them equal.
TEMPORAL_POOLINGS = ("mean", "mean_std")
CONTEXTS = ("clip", "window")
PRECISIONS = ("float32", "bfloat16", "int8")
WORKERS = "Processes of one thread each on a CPU; auto: one per core that may be used. The result does not depend on it."
CACHE_ABOUT = """\
Build the feature cache: every layer of a frozen upstream, pooled over time, once per clip.

Afterwards training, layer selection, pooling comparison and probes read the cache and never run the upstream again. Clips
that cannot be used are listed in the cache's skipped.csv. A killed run goes on where it was: give the same command again.
Exit codes: 0 done, 2 refused, 3 done but some clips were skipped.
"""
EMBED_ABOUT = """\
Embed a corpus: every clip of a manifest, or every audio file below a folder, into one Parquet file.

Of a folder every file is taken whose suffix names a format that can be read (wav, flac, ogg, opus, mp3, aiff, au, caf and the
like), below linked folders too; what is hidden is not. One row per clip, in the order of the manifest (or of the sorted
paths): id, path, seconds, embedding. Read it with

    pandas.read_parquet("recordings.parquet")
    datasets.load_dataset("parquet", data_files="recordings.parquet")

A killed run goes on where it was: give the same command again. Clips that cannot be used are listed in recordings.skipped.csv,
and very quiet ones, whose embeddings drift to that of silence, in recordings.quiet.csv; --scale_quiet helps those.
On a CPU a worker of one thread runs on every core. On several GPUs or machines: accelerate launch -m wavcse.embed ...; all
processes must see the same disk. On a Ray cluster: --engine ray; the corpus may then also be Parquet files that hold audio, or
tar shards, and corpus and OUT, here a folder of Parquet parts, may be URLs such as s3://bucket/folder.
Exit codes: 0 done, 2 refused, 3 done but some clips were skipped.
"""


@dataclass
class CacheArguments(CheckedFields):
    """What is cached, and how."""

    manifest: list[str] = option(
        NEEDED,
        "CSV or Parquet manifests, one row per clip, or data sets, such as hf://datasets/ORG/NAME.",
        group="input and output",
    )
    upstream: str = option(
        NEEDED, "Hub id or folder: WavLM, wav2vec2, HuBERT, Whisper, or a wavCSE model, whose upstream is taken."
    )
    out: str = option(NEEDED, "Root folder; each upstream and pooling gets its own folder in it.", value="DIR")
    revision: str | None = option(None, "Commit of the upstream on the Hub.")
    temporal_pooling: str = option(
        "mean",
        "Mean over the frames, or mean and standard deviation; a model trained on the cache pools the same way.",
        choices=TEMPORAL_POOLINGS,
        group="what is stored",
    )
    context: str | None = option(
        None,
        "What a Whisper upstream sees of a clip: the clip at its own length, or windows of 30 s filled up with silence.",
        "clip; a wavCSE model's upstream has its own",
        choices=CONTEXTS,
    )
    dtype: str = option("float32", "Of the stored numbers.", choices=("float32", "float16"))
    batch_seconds: float = option(
        60.0, "Seconds of audio per batch; less needs less memory.", above=0, below=math.inf, group="how it is done"
    )
    shard_mb: float = option(64.0, "Megabytes per file; one is also ended after five minutes of work.", above=0)
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)

    def look(self) -> None:
        """ValueError for paths that are not there."""
        check_inputs(self.manifest, self.upstream)


@dataclass(frozen=True)
class EmbedSettings(CheckedFields):
    """What is made of a clip, besides the model; see the text of each field.

    Raises:
        ValueError: a setting is out of range.
    """

    precision: str | None = option(
        None,
        "Of the upstream's matrix products.",
        "the model's own",
        choices=PRECISIONS,
        group="what is made of a clip",
    )
    truncate_dim: int | None = option(None, "Keep the first numbers of every embedding.", value="D", at_least=1)
    normalize: bool = option(False, "Scale every embedding to length 1, after --truncate_dim.")
    window_s: float | None = option(
        None, "A row for every window of this many seconds, with start_s and end_s.", value="S", above=0, below=math.inf
    )
    hop_s: float | None = option(None, "Distance of the windows' starts.", "that of --window_s", value="S", above=0)
    scale_quiet: bool = option(False, "First bring clips below -60 dB of full scale to the level of usual speech.")

    def __post_init__(self):
        super().__post_init__()
        if self.window_s is None and self.hop_s is not None:
            raise ValueError("hop_s is the distance of windows; give window_s too.")
        if self.window_s is not None:
            object.__setattr__(self, "hop_s", self.window_s if self.hop_s is None else self.hop_s)
            if self.hop_s > self.window_s:
                raise ValueError(f"hop_s is {self.hop_s} and window_s {self.window_s}; 0 < hop_s <= window_s must hold.")


@dataclass(frozen=True)
class EmbedArguments(EmbedSettings):
    """What is embedded, and how."""

    corpus: str = operand(
        "CSV or Parquet manifest, data set (hf://datasets/ORG/NAME), or a folder: every audio file below it, hidden ones not.",
        group="input and output",
    )
    model: str = option(NEEDED, "Folder or Hub id of a wavCSE model; its Python files are run.", value="DIR_OR_HUB_ID")
    out: str = option(
        NEEDED,
        "The Parquet file to make; while it is made, OUT.parts holds what is done. With --engine ray a folder.",
        value="FILE.parquet",
    )
    batch_seconds: float = option(
        60.0, "Seconds of audio per batch; less needs less memory.", value="S", above=0, below=math.inf, group="how it is done"
    )
    device: str = option("auto", "Torch device; auto: an accelerator if there is one.")
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)
    engine: str = option("local", "This machine, or a Ray cluster.", choices=("local", "ray"))
    address: str | None = option(None, "Of the Ray cluster.", "RAY_ADDRESS, else one on this machine", value="HOST:PORT")

    def __post_init__(self):
        super().__post_init__()
        if self.address is not None and self.engine != "ray":
            raise ValueError("address is that of a Ray cluster; give --engine ray too.")

    def look(self) -> None:
        """ValueError for paths that are not there, or not what they should be."""
        if self.engine == "ray":
            return check_inputs([], self.model)
        check_inputs([] if Path(self.corpus).is_dir() else [self.corpus], self.model)
        check_is_no_folder(self.out)


@dataclass
class TrialsArguments(CheckedFields):
    """Which pairs of clips."""

    manifest: str = operand("CSV or Parquet table with one row per clip.")
    split: str = option("test", "Whose clips.", choices=("train", "validation", "test"), group="which pairs")
    split_column: str = option("", "Of the splits.", "split_sv, or split")
    speaker_column: str = option("speaker_id", "Of the speakers.")
    same: list[str] = option(list, "Columns in which the clips of two speakers must agree.", "none", value="COLUMN")
    across: list[str] = option(list, "Columns in which the clips of one speaker must differ.", "none", value="COLUMN")
    positives: int | None = option(None, "Draw so many pairs of one speaker.", "all", value="N", at_least=1)
    negatives: int | None = option(None, "Draw so many pairs of two speakers.", "all", value="N", at_least=1)
    seed: int = option(0, "Of the draws.", at_least=0)
    out: str | None = option(
        None, "The list; it must lie beside the manifest.", "MANIFEST_trials.csv", value="FILE.csv", group="what is left"
    )

    def look(self) -> None:
        """ValueError for a manifest that is not there."""
        check_inputs([self.manifest], None)


@dataclass
class TranscribeArguments(CheckedFields):
    """What is transcribed, and by which model."""

    manifest: str = operand("CSV or Parquet table with one row per clip, or a data set.", group="input and output")
    model: str = option(
        NEEDED,
        "Folder or Hub id of a speech recogniser of transformers (CTC, or with a decoder, such as Whisper).",
        value="DIR_OR_HUB_ID",
    )
    out: str = option(NEEDED, "The manifest with the transcripts; paths in it are relative to it.", value="FILE.csv")
    language: str | None = option(
        None, "Code of the language that is spoken, such as en.", "Whisper finds out", value="CODE", group="how it is done"
    )
    only_language: str | None = option(None, "Texts in other languages than this are left empty.", "all stay", value="CODE")
    column: str = option("transcript", "Column of the texts, and with _language behind it of the languages.", value="COLUMN")
    batch_seconds: float = option(
        120.0, "Seconds of audio per batch (30 for each clip of Whisper); less needs less memory.", above=0, below=math.inf
    )
    device: str = option("auto", "Torch device; auto: an accelerator if there is one.")
    workers: int | str = option("auto", WORKERS, value="N", choices=("auto",), at_least=1)

    def look(self) -> None:
        """ValueError for paths that are not there, or an output that is not to be written."""
        check_inputs([self.manifest], self.model)
        check_is_no_folder(self.out)
        if Path(self.out).suffix.lower() != ".csv":
            raise ValueError(f"{self.out}: the manifest is written as CSV; give a name that ends in .csv.")
        if Path(self.out).resolve() == Path(self.manifest).resolve():
            raise ValueError(f"{self.out}: is the manifest itself; give another name.")


def check_inputs(tables: Sequence[str], model: str | None) -> None:
    """ValueError for what is not there, before anybody waits for PyTorch; what the files hold is found when they are read.

    Args:
        model: a Hub id is left to the Hub.
    """
    from wavcse.data.tables import check_is_file

    for table in tables:
        place = Path(table.partition("?")[0])  # of a data set, behind which its columns may be named
        if table.startswith("hf://") or Path(table).is_file():
            continue
        if place.is_dir():
            from wavcse.data.hub_datasets import names_data_set  # which loads PyTorch

            if names_data_set(table):
                continue
        check_is_file(place)
    is_path = model is not None and (model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).is_dir())
    if is_path and not Path(model, "config.json").is_file():
        what = "It holds no config.json." if Path(model).is_dir() else "There is no such folder."
        raise ValueError(f"The model {model!r} cannot be loaded; give the folder of a saved model, or a Hub id. {what}")


def check_is_no_folder(out: str | Path) -> None:
    """ValueError where the table that is to be made would have the name of a folder."""
    if Path(out).is_dir():
        raise ValueError(f"{out}: is a folder; give the name of the Parquet file that is to be made.")


CACHE = Program(
    "wavcse cache",
    CacheArguments,
    CACHE_ABOUT,
    "wavcse cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches",
    continues=True,
    look=CacheArguments.look,
)
EMBED = Program(
    "wavcse embed",
    EmbedArguments,
    EMBED_ABOUT,
    "wavcse embed recordings/ --model runs/quickstart/hub --out recordings.parquet",
    continues=True,
    look=EmbedArguments.look,
)
TRIALS = Program(
    "wavcse trials",
    TrialsArguments,
    """\
Make a list of verification trials from a manifest: all pairs of clips of a split, or as many as are asked for. A trial is of
one speaker (label 1) or of two (label 0). `wavcse eval` and `wavcse finetune` read the list beside its manifest.
""",
    "wavcse trials corpus/metadata.csv --split test --same gender --across session",
    look=TrialsArguments.look,
)
TRANSCRIBE = Program(
    "wavcse transcribe",
    TranscribeArguments,
    """\
Write down what is said in the clips of a manifest, as its columns transcript and transcript_language: labels made by a model,
for training. A killed run goes on where it was: give the same command again. Clips that cannot be used are listed in
OUT.skipped.csv. Exit codes: 0 done, 2 refused, 3 done but some clips were skipped.
""",
    "wavcse transcribe corpus/metadata.csv --model openai/whisper-base --out corpus/transcribed.csv",
    continues=True,
    look=TranscribeArguments.look,
)
