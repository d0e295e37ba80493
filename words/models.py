"""The four small models of words (Porjazovski et al. 2024, section III), one class each: an encoder and what trains it.

A class says which *examples* an epoch has and what a batch of them loses. Examples are rows of tokens: `[N, 1]` a word,
`[N, 3]` a word and its neighbours (-1: none), or anchor, positive and negative.

Shapes: `N` examples, `B` of them in a batch, `T` frames, `F` coefficients, `H` hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wavcse.words.arguments import WordsArguments
from wavcse.words.decoders import AttentiveDecoder, FrameDecoder, frame_error, real_frames
from wavcse.words.encoder import Encoded, WordEncoder, padded
from wavcse.words.tokens import Tokens

TARGET_DROPOUT, TARGET_SIZES = 0.3, (256, 512)  # of LEE's linguistic decoder


class WordModel(ABC, nn.Module):
    """What the four share.

    Args:
        args: settings of the run.
        tokens: all words.
        targets: word -> vector, for LEE.
    """

    what_it_needs = "words"  # where there are no examples

    def __init__(self, args: WordsArguments, tokens: Tokens, targets: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.args, self.tokens = args, tokens
        self.encoder = WordEncoder(args.num_mfcc, args.hidden_size)

    def examples(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Examples `[N, ...]` made of the tokens in `rows`."""
        return rows[:, None]

    @abstractmethod
    def loss(self, examples: np.ndarray) -> Tensor:
        """Of a batch of examples."""

    def frames_of(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scaled frames `[B, T, F]` of tokens, and their lengths `[B]`."""
        frames, lengths = padded([self.tokens.frames[row] for row in rows])
        device = self.encoder.mean.device
        return self.encoder.scaled(frames.to(device)), lengths.to(device)

    def encoded(self, rows: np.ndarray) -> Encoded:
        """What the encoder makes of tokens."""
        return self.encoder(*self.frames_of(rows))


class AudioWord2Vec(WordModel):
    """An autoencoder of words, denoising in training (Chung et al. 2016)."""

    def __init__(self, args: WordsArguments, tokens: Tokens, targets: Mapping[str, np.ndarray] | None = None):
        super().__init__(args, tokens)
        self.decoder = FrameDecoder(args.num_mfcc, args.hidden_size, peephole=True)

    def loss(self, examples: np.ndarray) -> Tensor:
        """Mean squared error of the frames that the decoder says."""
        frames, lengths = self.frames_of(examples[:, 0])
        own = self.encoder(self.corrupted(frames), lengths)
        said = self.decoder(frames, (own.embedding, own.cell))
        return frame_error(said, frames, real_frames(lengths, frames.shape[1]), power=2)

    def corrupted(self, frames: Tensor) -> Tensor:
        """Frames `[B, T, F]` of which some, or some of whose numbers, are zero; in training only."""
        if not self.training or self.args.corruption == "none":
            return frames
        shape = (*frames.shape[:2], 1) if self.args.corruption == "frames" else frames.shape
        return frames * (torch.rand(shape, device=frames.device) >= self.args.corruption_rate)


class Speech2Vec(WordModel):
    """Says the words before and after, skip-gram with a window of one (Chung and Glass 2018); one decoder for both."""

    what_it_needs = "two words that follow each other in an utterance, by utterance_column and order_column"

    def __init__(self, args: WordsArguments, tokens: Tokens, targets: Mapping[str, np.ndarray] | None = None):
        super().__init__(args, tokens)
        self.decoder = FrameDecoder(args.num_mfcc, args.hidden_size, condition_size=args.hidden_size)

    def examples(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Words that have a neighbour: `[N, 3]` of word, the one before, the one after."""
        found = np.column_stack([rows, self.tokens.before[rows], self.tokens.after[rows]])
        return found[(found[:, 1:] >= 0).any(axis=1)]

    def loss(self, examples: np.ndarray) -> Tensor:
        """Sum of the mean squared errors of the word before and the word after; a word that is not there costs nothing."""
        own = self.encoded(examples[:, 0])
        losses = [self._neighbour_loss(own, examples[:, place]) for place in (1, 2)]
        return torch.stack(losses).sum()

    def _neighbour_loss(self, own: Encoded, neighbours: np.ndarray) -> Tensor:
        has_one = np.flatnonzero(neighbours >= 0)
        if not len(has_one):
            return own.embedding.new_zeros(())
        frames, lengths = self.frames_of(neighbours[has_one])
        embedding, cell = own.embedding[has_one], own.cell[has_one]
        said = self.decoder(frames, (embedding, cell), condition=embedding)
        return frame_error(said, frames, real_frames(lengths, frames.shape[1]), power=2)


class Siamese(WordModel):
    """Words alike nearer than others, by cosine (Kamper et al. 2016; Settle and Livescu 2016)."""

    what_it_needs = "word that is said twice, beside another word"

    def examples(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """All pairs of up to `tokens_per_word` tokens of each word, each with a token of another word: `[N, 3]`."""
        words = self.tokens.words[rows]
        of_word = {word: rows[words == word] for word in dict.fromkeys(words)}
        names, triplets = list(of_word), []
        for place, own in enumerate(of_word.values()):
            chosen = np.sort(rng.permutation(own)[: self.args.tokens_per_word])
            others = [of_word[name] for name in names[:place] + names[place + 1 :]]
            for pair in combinations(chosen, 2) if others else ():
                other = others[rng.integers(len(others))]  # every other word is as likely, however often it is said
                triplets.append((*pair, other[rng.integers(len(other))]))
        return np.array(triplets, dtype=np.int64).reshape(-1, 3)

    def loss(self, examples: np.ndarray) -> Tensor:
        """Hinge on the distances of (anchor, positive, negative), and on those of (positive, anchor, negative)."""
        unique, places = np.unique(examples, return_inverse=True)
        taken = torch.from_numpy(places.ravel())  # by index_select, as the gradient of indexing adds up in no fixed order
        vectors = self.encoded(unique).embedding.index_select(0, taken).unflatten(0, examples.shape)
        anchor, positive, negative = vectors.unbind(dim=1)
        return self._hinge(anchor, positive, negative) + self._hinge(positive, anchor, negative)

    def _hinge(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        near, far = (1 - F.cosine_similarity(anchor, other) for other in (positive, negative))
        return (near - far + self.args.margin).clamp(min=0).mean()


class LEE(WordModel):
    """Linguistically enhanced: says the word again, and names its word vector (Porjazovski et al. 2023)."""

    def __init__(self, args: WordsArguments, tokens: Tokens, targets: Mapping[str, np.ndarray] | None = None):
        super().__init__(args, tokens)
        size = len(next(iter(targets.values())))
        missing = np.zeros(size)
        vectors = np.stack([targets.get(word, missing) for word in tokens.words]).astype(np.float32)
        self.register_buffer("targets", torch.from_numpy(vectors), persistent=False)
        self.has_target = np.array([word in targets for word in tokens.words])
        self.acoustic = AttentiveDecoder(args.num_mfcc, args.hidden_size)
        first, second = TARGET_SIZES
        self.linguistic = nn.Sequential(
            *(nn.Linear(args.hidden_size, first), nn.ReLU(), nn.Dropout(TARGET_DROPOUT)),
            *(nn.Linear(first, second), nn.ReLU(), nn.Dropout(TARGET_DROPOUT)),
            nn.Linear(second, size),
        )

    def loss(self, examples: np.ndarray) -> Tensor:
        """Error of the frames plus error of the word vectors; a word without a vector has the first alone."""
        rows, power = examples[:, 0], 1 if self.args.lee_loss == "l1" else 2
        frames, lengths = self.frames_of(rows)
        own, is_real = self.encoder(frames, lengths), real_frames(lengths, frames.shape[1])
        said = self.acoustic(frames, (own.embedding, own.cell), own.outputs, is_real)
        loss = frame_error(said, frames, is_real, power)
        has_target = np.flatnonzero(self.has_target[rows])
        if not len(has_target):
            return loss
        named = self.linguistic(own.embedding[has_target])
        return loss + (named - self.targets[rows[has_target]]).abs().pow(power).mean()


MODELS: dict[str, type[WordModel]] = {
    "audio_word2vec": AudioWord2Vec,
    "speech2vec": Speech2Vec,
    "siamese": Siamese,
    "lee": LEE,
}
