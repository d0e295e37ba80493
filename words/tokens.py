"""Spoken words from manifests: their MFCCs, who stands beside whom, and which are learnt from.

Shapes: `N` words, `T` frames of a word, `F` coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from wavcse.data.files import digest_of
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.baselines.mfcc import SAMPLING_RATE_HZ
from wavcse.words.arguments import WordsArguments
from wavcse.words.encoder import word_frames


@dataclass
class Tokens:
    """All words of a run.

    Attributes:
        frames: MFCCs of each, `[T, F]`.
        words: what each is, `[N]` of texts.
        splits: train, validation, test or empty, `[N]`.
        before: place of the word before it in its utterance, -1 = none, `[N]`.
        after: the same of the word after it.
        utterances: of which manifest and utterance each is, `[N]`; empty where that is not said.
        names: clips, for the fingerprint.
    """

    frames: list[Tensor]
    words: np.ndarray
    splits: np.ndarray
    before: np.ndarray
    after: np.ndarray
    utterances: np.ndarray
    names: list[str]

    def rows(self, split: str) -> np.ndarray:
        """Words of a split, `[n]`."""
        return np.flatnonzero(self.splits == split)

    def sentences(self, split: str) -> list[list[str]]:
        """The words of each utterance of a split, in order."""
        found: dict[str, list[int]] = {}
        for row in self.rows(split):
            if self.utterances[row]:
                found.setdefault(self.utterances[row], []).append(row)
        return [[self.words[row] for row in self._in_order(own)] for own in found.values()]

    def _in_order(self, rows: list[int]) -> list[int]:
        """Rows of one utterance, chain by chain of neighbours."""
        ordered = []
        for row in (row for row in rows if self.before[row] < 0):
            while row >= 0:
                ordered.append(row)
                row = self.after[row]
        return ordered

    def fingerprint(self) -> str:
        """Changes when a word, its place or its sound does."""
        sums = [float(own.double().sum()) for own in self.frames]
        places = [self.before.tolist(), self.after.tolist()]
        return digest_of([self.names, self.words.tolist(), self.splits.tolist(), places, sums])


def read_tokens(args: WordsArguments, show_progress: bool = True) -> Tokens:
    """All words of the manifests that are in a split of training or validation.

    Raises:
        ValueError: a column is missing, a clip cannot be read, or there is nothing to learn from or to choose the epoch by.
    """
    clips: list[Clip] = []
    words, splits, utterances, orders = [], [], [], []
    for number, manifest in enumerate(map(Manifest, args.manifest)):
        split, word = manifest.split(args.split_column), manifest.column(args.word_column)
        kept = np.flatnonzero(np.isin(split, ("train", "validation")) & (word != ""))
        clips += [manifest.clips[row] for row in kept]
        words += word[kept].tolist()
        splits += split[kept].tolist()
        named, order = _places(args, manifest)
        utterances += [f"{number}/{named[row]}" if named[row] else "" for row in kept]
        orders += order[kept].tolist()
    for split in ("train", "validation"):
        if split not in splits:
            raise ValueError(f"no word of {', '.join(args.manifest)} has {split} in its column {args.split_column!r}.")
    before, after = neighbours(utterances, splits, orders)
    bar = tqdm(clips, "MFCCs", unit="word", disable=not show_progress, mininterval=1)
    frames = [word_frames(clip.load(SAMPLING_RATE_HZ), args.num_mfcc, args.max_frames) for clip in bar]
    names = [clip.clip_id for clip in clips]
    texts = (np.array(own, dtype=object) for own in (words, splits, utterances))
    word_texts, split_texts, utterance_texts = texts
    return Tokens(frames, word_texts, split_texts, before, after, utterance_texts, names)


def _places(args: WordsArguments, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Utterance and order of each row; empty and -1 where the manifest does not say them and the model does not need them."""
    is_needed = args.kind == "speech2vec" or (args.kind == "lee" and args.targets == "cooccurrence")
    if not is_needed and not {args.utterance_column, args.order_column} <= set(manifest.table.columns):
        return np.full(len(manifest), "", dtype=object), np.full(len(manifest), -1)
    named, order = manifest.column(args.utterance_column), manifest.column(args.order_column)
    faulty = [text for text in order if text and not text.isdecimal()]
    if faulty:
        raise ValueError(f"{manifest.path}: column {args.order_column!r} holds {faulty[0]!r}; whole numbers are needed.")
    return named, np.array([int(text) if text else -1 for text in order])


def neighbours(utterances: Sequence[str], splits: Sequence[str], orders: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The word before and the word after each, `[N]` and `[N]`; -1 where there is none in its utterance and split."""
    keys = list(zip(utterances, splits, orders))
    place = {key: row for row, key in enumerate(keys) if key[0] and key[2] >= 0}

    def beside(step: int) -> np.ndarray:
        return np.array([place.get((own, split, order + step), -1) if own else -1 for own, split, order in keys])

    return beside(-1), beside(1)


def frame_scale(tokens: Tokens, args: WordsArguments) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[F]` of the frames of the training words; 0 and 1 where they are left as they are."""
    if args.scaling == "none":
        return torch.zeros(args.num_mfcc), torch.ones(args.num_mfcc)
    frames = torch.cat([tokens.frames[row] for row in tokens.rows("train")]).double()
    return frames.mean(dim=0).float(), frames.std(dim=0, correction=0).clamp(min=1e-6).float()
