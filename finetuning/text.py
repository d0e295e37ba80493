"""Text of CTC tasks: what stays of a transcript, its characters as numbers and back, and where a network starts.

A vocabulary is a list of tokens: `<blank>`, `<s>`, `</s>`, `<unk>`, `|` (the space between words) and the characters of the
training texts, as wav2vec 2.0 has them (Baevski et al. 2020). `<blank>` is token 0.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:  # this module has settings, and `--help` needs no PyTorch
    from torch import Tensor

BLANK, START, END, UNKNOWN, SPACE = SPECIAL = ("<blank>", "<s>", "</s>", "<unk>", "|")
BLANK_BIAS = 10.0  # so that an untrained network says nothing; Vaessen and van Leeuwen's code
CASES = ("upper", "lower", "keep")
APOSTROPHES = str.maketrans("\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}", "''")
KEPT_KINDS = ("L", "M", "Nd")  # Unicode's letters, their marks, and digits


@dataclass
class TextSettings(CheckedFields):
    """What becomes of a transcript before it is learnt or compared: replacements, Unicode's NFKC, case, then what stays."""

    case: str = option("upper", "Of the letters.", choices=CASES)
    characters: str = option(
        "",
        "Characters that stay, as `case` makes them; all others become spaces.",
        "letters with their marks, digits and the apostrophe",
    )
    replace: dict = option(dict, "Text -> what is put in its place, one after the other.")

    def __post_init__(self):
        super().__post_init__()
        wrong = [pair for pair in self.replace.items() if not all(isinstance(text, str) for text in pair) or not pair[0]]
        if wrong:
            raise ValueError(f"replace has {wrong[0][0]!r}: {wrong[0][1]!r}; texts are needed (in YAML in quotes).")
        if SPACE in self.characters:
            raise ValueError(f"characters is {self.characters!r}; {SPACE!r} stands for the space between words.")


def normalised(text: str, how: TextSettings) -> str:
    """The text as a CTC task has it: words with one space between them; empty if nothing stays."""
    for old, new in how.replace.items():
        text = text.replace(old, new)
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES))
    text = {"upper": text.upper, "lower": text.lower, "keep": lambda: text}[how.case]()
    return " ".join("".join(one if _stays(one, how) else " " for one in text).split())


def _stays(character: str, how: TextSettings) -> bool:
    if how.characters:
        return character in how.characters
    return character == "'" or unicodedata.category(character).startswith(KEPT_KINDS)


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """The tokens of normalised training texts; ValueError if there is no character in them."""
    characters = set().union(*texts) - {" "}
    if not characters:
        raise ValueError("no training text has a character; there is nothing to learn.")
    return [*SPECIAL, *sorted(characters)]


def encode_text(text: str, vocabulary: Sequence[str]) -> list[int]:
    """The tokens of a normalised text by number; characters that are not in the vocabulary are `<unk>`."""
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return [numbers[SPACE] if one == " " else numbers.get(one, numbers[UNKNOWN]) for one in text]


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest frames that hold these tokens: one each, and a blank between two that are the same."""
    return len(tokens) + sum(one == other for one, other in itertools.pairwise(tokens))


def bias_start(vocabulary: Sequence[str], texts: Iterable[str]) -> Tensor:
    """Where the bias of a CTC head starts, float32 `[V]`: each token's relative frequency in the training texts; blank 10."""
    import torch  # see above

    tokens = [number for text in texts for number in encode_text(text, vocabulary)]
    counts = torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=len(vocabulary))
    bias = counts / counts.sum().clamp(min=1)
    bias[vocabulary.index(BLANK)] = BLANK_BIAS
    return bias


def greedy_texts(logits: Tensor, num_frames: Sequence[int] | Tensor, vocabulary: Sequence[str]) -> list[str]:
    """The likeliest token of each frame, repetitions and blanks taken out.

    Args:
        logits: `[B, T, V]`.
        num_frames: how many frames of each clip are no padding, `[B]`.
    """
    texts = []
    for best, count in zip(logits.argmax(dim=2).tolist(), num_frames, strict=True):
        tokens = [vocabulary[number] for number, _ in itertools.groupby(best[: int(count)])]
        letters = [" " if token == SPACE else token for token in tokens if token == SPACE or token not in SPECIAL]
        texts.append(" ".join("".join(letters).split()))
    return texts
