"""Word vectors that LEE learns to name, by the name of where they are from.

Shapes: `V` words, `E` size of a vector.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from wavcse.words.arguments import WordsArguments
from wavcse.words.tokens import Tokens

NGRAMS = (1, 2, 3)
WINDOW = 2  # words to either side that count as beside each other
LAST_LAYERS = 4
DESCRIPTIONS = {
    "spelling": "hashed character n-grams: the form of a word, how it is written, not what it means",
    "cooccurrence": "PPMI and SVD of which words stand beside each other in the training utterances",
    "file": "word vectors of a file",
    "transformers": "a language model: the word alone with its special tokens, sum of the last four layers, mean over tokens",
}


def word_vectors(args: WordsArguments, tokens: Tokens) -> dict[str, np.ndarray]:
    """Word -> vector `[E]`, for all words that have one.

    Raises:
        ValueError: the file or model cannot be read, or no training word has a vector.
    """
    words = sorted(set(tokens.words))
    if args.targets == "spelling":
        found = {word: spelling(word, args.target_size) for word in words}
    elif args.targets == "cooccurrence":
        found = cooccurrence(tokens.sentences("train"), args.target_size)
    elif args.targets == "file":
        found = from_file(Path(args.targets_from), words)
    else:
        found = from_transformers(args.targets_from, words)
    if not any(word in found for word in tokens.words[tokens.rows("train")]):
        raise ValueError(f"targets {args.targets!r}: no training word has a vector.")
    return found


def spelling(word: str, size: int) -> np.ndarray:
    """Signed hashed counts of n-grams of one to three characters, edges marked; `[size]`, of mean square 1."""
    vector, marked = np.zeros(size), f"<{word}>"
    for length in NGRAMS:
        for start in range(len(marked) - length + 1):
            digest = hashlib.blake2b(marked[start : start + length].encode(), digest_size=8).digest()
            number = int.from_bytes(digest, "little")
            vector[(number >> 1) % size] += 1 if number & 1 else -1
    norm = np.sqrt(np.mean(vector**2))
    return vector / norm if norm else vector  # n-grams that cancel each other


def cooccurrence(sentences: Iterable[Sequence[str]], size: int) -> dict[str, np.ndarray]:
    """Positive pointwise mutual information of words within a window, its largest singular directions (Levy et al. 2015).

    Returns:
        Word -> `[min(size, V)]`, of mean square 1 over all words.

    Raises:
        ValueError: no two words stand beside each other.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        for place, word in enumerate(sentence):
            for other in sentence[place + 1 : place + 1 + WINDOW]:
                counts[word, other] += 1
                counts[other, word] += 1
    if not counts:
        raise ValueError("targets 'cooccurrence': no training utterance has two words; their columns say which words it has.")
    words = sorted({word for pair in counts for word in pair})
    place = {word: row for row, word in enumerate(words)}
    table = np.zeros((len(words), len(words)))
    for (word, other), count in counts.items():
        table[place[word], place[other]] = count
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    ppmi = np.log(np.maximum(table, 1e-12) / expected).clip(min=0)
    left, values, _ = np.linalg.svd(ppmi)
    vectors = (left * np.sqrt(values))[:, :size]
    return dict(zip(words, vectors / np.sqrt(np.mean(vectors**2))))


def from_file(path: Path, words: Iterable[str]) -> dict[str, np.ndarray]:
    """Vectors of a text file, a line per word: the word, then its numbers; a first line of two numbers is passed over.

    Raises:
        ValueError: there is no such file, or a line has another size than the others.
    """
    if not path.is_file():
        raise ValueError(f"targets_from: {path}: no such file.")
    wanted, found, size = set(words), {}, None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            if not cells or (number == 1 and len(cells) == 2) or cells[0] not in wanted:
                continue
            try:
                vector = np.array([float(cell) for cell in cells[1:]])
            except ValueError:
                vector = np.empty(0)
            size = len(vector) if size is None else size
            if not len(vector) or len(vector) != size or not np.isfinite(vector).all():
                raise ValueError(f"{path}: line {number} is not a word and {size or 'its'} numbers.")
            found[cells[0]] = vector
    return found


def from_transformers(name: str, words: Iterable[str]) -> dict[str, np.ndarray]:
    """Each word alone with its special tokens: the sum of the last four layers, its mean over the tokens.

    Raises:
        ValueError: the model cannot be loaded, or has fewer layers.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"targets_from: {name!r} cannot be loaded ({str(error).splitlines()[0]})") from error
    found = {}
    with torch.inference_mode():
        for word in words:
            layers = model.eval()(**tokenizer(word, return_tensors="pt"), output_hidden_states=True).hidden_states
            if len(layers) <= LAST_LAYERS:
                raise ValueError(f"targets_from: {name!r} has {len(layers) - 1} layers; {LAST_LAYERS} are needed.")
            found[word] = torch.stack(layers[-LAST_LAYERS:]).sum(dim=0)[0].mean(dim=0).numpy().astype(np.float64)
    return found
