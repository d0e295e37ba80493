"""The options of `wavcse words`. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, option

KINDS = ("audio_word2vec", "speech2vec", "siamese", "lee")
TARGETS = ("spelling", "cooccurrence", "file", "transformers")
CORRUPTIONS = ("frames", "elements", "none")
SCALINGS = ("standard", "none")
ABOUT = """\
Train a small model that turns a spoken word into a vector of 128 numbers (Porjazovski et al. 2024, section III).

    audio_word2vec  an autoencoder: says the word again, from frames some of which are zeroed
    speech2vec      says the word before and the word after
    siamese         words alike are near, other words far (triplets by cosine)
    lee             says the word again and names its word vector: linguistically enhanced

All read 13 MFCCs through one bidirectional LSTM. Manifests have a row per word, with `start` and `end` where it is a part of a
file (`wavcse synthesize --sentences` writes one). The word vectors of lee are `spelling` (hashed character n-grams: form, not
meaning), `cooccurrence` (which words the training utterances have side by side), `file` (a .vec file) or `transformers` (a
BERT model, as the authors). Left in DIR: `model/`, the encoder; log, checkpoints, results/words.json.
"""
# Fields that may differ between a run and its continuation: they do not change any epoch that is already done.
FREE_ON_RESUME = ("num_epochs", "output_dir", "overwrite_output_dir", "checkpoint_every_s", "note")


@dataclass
class WordsArguments(CheckedFields):
    """The paper's settings, which are those of its authors' code where the two differ only in what the paper leaves out."""

    mixed_precision = "no"  # networks this small gain nothing

    manifest: list[str] = option(NEEDED, "CSV or Parquet manifests, one row per word.", group="what it is trained on")
    word_column: str = option("word", "Column of the word.")
    utterance_column: str = option("utterance_id", "Column of the utterance (speech2vec, cooccurrence).")
    order_column: str = option("order", "Column of the word's place in its utterance, counted by ones.")
    split_column: str = option("split", "Rows of train are learnt from, those of validation choose the epoch.")
    output_dir: str = option("runs/words", "Folder of the run.", flag="out", group="the run")
    overwrite_output_dir: bool = option(False, "Start again, deleting the run that is there.", flag="overwrite")
    seed: int = option(0, "Same seed, same figures to the bit on one machine.", at_least=0)
    checkpoint_every_s: float = option(30.0, "Least seconds between checkpoints: what a kill can cost.", at_least=0)
    note: str = option("", "A remark that is kept with the figures.")

    kind: str = option("siamese", "Of model.", choices=KINDS, group="the model")
    hidden_size: int = option(128, "Of the LSTM = size of the embedding.", at_least=1)
    num_mfcc: int = option(13, "Coefficients of a frame.", at_least=1, at_most=40)
    max_frames: int = option(80, "Frames (10 ms) of a word; what comes after is left out.", at_least=1)
    scaling: str = option("standard", "Of the frames, by mean and deviation of the training words.", choices=SCALINGS)

    corruption: str = option(
        "frames",
        "audio_word2vec: what is zeroed in training; elements: as the paper says.",
        choices=CORRUPTIONS,
        group="what teaches it",
    )
    corruption_rate: float = option(0.3, "Share of it.", at_least=0, below=1)
    margin: float = option(0.4, "siamese: in units of 1 - cosine.", at_least=0)
    tokens_per_word: int = option(10, "siamese: of each word, all pairs of up to so many are an epoch.", at_least=2)
    targets: str = option("spelling", "lee: word vectors.", choices=TARGETS)
    targets_from: str | None = option(None, "lee: the .vec file, or the BERT model.", value="FILE_OR_MODEL")
    target_size: int = option(256, "lee: numbers of spelling and cooccurrence vectors.", at_least=2)
    lee_loss: str = option("l1", "lee: of both decoders; l2: as the authors' code.", choices=("l1", "l2"))

    num_epochs: int = option(100, "At most.", at_least=1, group="training")
    batch_size: int = option(256, "Words or pairs per step.", at_least=1)
    learning_rate: float = option(1e-3, "Adam's.", above=0)
    step_epochs: int = option(10, "Epochs until the learning rate is halved.", at_least=1)
    patience: int = option(10, "Epochs without a better validation loss until it ends.", at_least=1)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm.", above=0)

    def __post_init__(self):
        super().__post_init__()
        needs_source = self.kind == "lee" and self.targets in ("file", "transformers")
        if needs_source and not self.targets_from:
            what = "the .vec file" if self.targets == "file" else "the BERT model"
            raise ValueError(f"targets is {self.targets!r}; name {what} in targets_from.")

    def identity(self) -> dict[str, Any]:
        """What a continued run must share with the run it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_ON_RESUME}


WORDS = Program(
    "wavcse words",
    WordsArguments,
    ABOUT,
    "wavcse words --manifest corpora/sentences/words.csv --kind siamese --out runs/siamese",
    has_recipe=True,
    continues=True,
)
