"""The encoder that all small word models share, and a saved one behind the encoder contract of `wavcse.eval`.

    model/config.json         kind of model, sizes, what it was trained on
    model/model.safetensors   weights of the encoder, and the scale of its frames

Shapes: `B` words, `T` frames of the longest, `F` coefficients, `H` hidden size = size of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from wavcse.data.files import make_folder, read_json, replacing, sha256_of, write_json
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.baselines.mfcc import SAMPLING_RATE_HZ, mfcc

MODEL_TYPE = "wavcse_words"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Encoded(NamedTuple):
    """Sums over both directions of the LSTM.

    Attributes:
        outputs: of every frame, `[B, T, H]`; zeros where a word has no frame.
        embedding: the last hidden states, `[B, H]`.
        cell: the last cell states, `[B, H]`.
    """

    outputs: Tensor
    embedding: Tensor
    cell: Tensor


class WordEncoder(nn.Module):
    """One layer of a bidirectional LSTM over scaled MFCCs; padding does not enter it."""

    def __init__(self, num_mfcc: int, hidden_size: int):
        super().__init__()
        self.lstm = nn.LSTM(num_mfcc, hidden_size, batch_first=True, bidirectional=True)
        self.register_buffer("mean", torch.zeros(num_mfcc))
        self.register_buffer("scale", torch.ones(num_mfcc))

    def scaled(self, frames: Tensor) -> Tensor:
        """MFCCs `[B, T, F]` as the LSTM takes them."""
        return (frames - self.mean) / self.scale

    def forward(self, scaled: Tensor, lengths: Tensor) -> Encoded:
        """Scaled frames `[B, T, F]`, of which each word has `lengths` `[B]`."""
        packed = pack_padded_sequence(scaled, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, (hidden, cell) = self.lstm(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=scaled.shape[1])
        return Encoded(sum(padded.chunk(2, dim=-1)), hidden.sum(dim=0), cell.sum(dim=0))


def word_frames(waveform: np.ndarray, num_mfcc: int, max_frames: int) -> Tensor:
    """MFCCs of a word, float32 `[T, F]` with T at most `max_frames`."""
    return torch.from_numpy(mfcc(waveform, num_mfcc)[:max_frames].astype(np.float32))


def padded(words: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Frames of words `[T, F]` as one batch `[B, T, F]`, and their lengths `[B]`."""
    return pad_sequence(list(words), batch_first=True), torch.tensor([len(own) for own in words])


def save_encoder(encoder: WordEncoder, folder: Path, config: dict[str, Any]) -> None:
    """Write a folder that `SavedWordEncoder` reads; weights first, so that a folder with a configuration is complete."""
    make_folder(folder)
    with replacing(folder / WEIGHTS_FILE) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}, partial)
    write_json(folder / CONFIG_FILE, {"model_type": MODEL_TYPE, **config}, indent=1)


def is_word_model(model: str | Path) -> bool:
    """Whether it is a folder that `wavcse words` has written."""
    config = Path(model) / CONFIG_FILE
    return config.is_file() and MODEL_TYPE in config.read_text(encoding="utf-8", errors="replace")


class SavedWordEncoder:
    """A saved word model behind the encoder contract; a clip is a word.

    Args:
        folder: `model/` of a run of `wavcse words`.
        name: in tables; by default the kind of model.

    Raises:
        ValueError: there is no such model in it.
    """

    sampling_rate = SAMPLING_RATE_HZ

    def __init__(self, folder: str | Path, name: str | None = None, device: str | torch.device = "cpu"):
        folder = Path(folder)
        if not is_word_model(folder):
            raise ValueError(f"{folder}: holds no model of `wavcse words`; give the folder model/ of a run.")
        self.config = read_json(folder / CONFIG_FILE)
        self.name = name or self.config["kind"]
        self.embedding_size: int = self.config["hidden_size"]
        self.device = torch.device(device)
        self.module = WordEncoder(self.config["num_mfcc"], self.embedding_size)
        try:
            self.module.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder / WEIGHTS_FILE}: cannot be loaded ({' '.join(str(error).split())}).") from error
        self.module.to(self.device).eval()
        self.identity = {
            "model": str(folder),
            "kind": self.config["kind"],
            "targets": self.config["targets"] or "none",
            "weights_sha256": sha256_of(folder / WEIGHTS_FILE),
        }

    def untrain(self, seed: int) -> None:
        """Give it new weights, as training begins with for some seed; the scale of the frames stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = WordEncoder(self.config["num_mfcc"], self.embedding_size)
        self.module.lstm.load_state_dict(new.lstm.state_dict())
        self.identity = {**self.identity, "weights_sha256": f"random, seed {seed}"}

    @torch.inference_mode()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, H]` of N spoken words."""
        if not len(waveforms):
            return np.empty((0, self.embedding_size), dtype=np.float32)
        size, longest = self.config["num_mfcc"], self.config["max_frames"]
        frames, lengths = padded([word_frames(waveform, size, longest) for waveform in waveforms])
        return self.module(self.module.scaled(frames.to(self.device)), lengths).embedding.cpu().numpy()

    def sequence(self, waveform: np.ndarray, times: Sequence[tuple[float, float]]) -> np.ndarray:
        """An utterance as its words in order, `[W, H]`; arguments and errors as of `words_of`."""
        return self.embed(words_of(waveform, times))


def words_of(waveform: np.ndarray, times: Sequence[tuple[float, float]]) -> list[np.ndarray]:
    """The words of an utterance.

    Args:
        waveform: the utterance, `[samples]` at `SAMPLING_RATE_HZ`.
        times: start and end of each word in seconds.

    Raises:
        ValueError: a word does not lie in the utterance.
    """
    cuts = [(round(start * SAMPLING_RATE_HZ), round(end * SAMPLING_RATE_HZ)) for start, end in times]
    for (start, end), (start_s, end_s) in zip(cuts, times, strict=True):
        if not 0 <= start < end <= len(waveform) + 1:
            whole_s = len(waveform) / SAMPLING_RATE_HZ
            raise ValueError(f"a word from {start_s} to {end_s} s does not lie in an utterance of {whole_s:.3f} s.")
    return [waveform[start:end] for start, end in cuts]


class SavedUtteranceEncoder(SavedWordEncoder):
    """A saved word model that reads an utterance as its words in order: the mean of their vectors. Any other clip is a word.

    An encoder is given waveforms, so utterances are known by their samples: one that is cut or changed is none.

    Args:
        words: manifest with a row per word of the utterances, with `start` and `end`.

    Raises:
        ValueError: as `SavedWordEncoder`; a row has no times, or an utterance cannot be read.
    """

    def __init__(self, folder: str | Path, words: str | Path, name: str | None = None, device: str | torch.device = "cpu"):
        super().__init__(folder, name, device)
        self.files: dict[str, list[tuple[float, float]]] = {}
        for clip in Manifest(words).clips:
            if clip.end_s is None:
                raise ValueError(f"{words}: {clip.clip_id} has no start and end; a row per word is needed.")
            self.files.setdefault(clip.real_path, []).append((clip.start_s, clip.end_s))
        self.times = {_sum_of(Clip(path, Path(path)).load(SAMPLING_RATE_HZ)): sorted(own) for path, own in self.files.items()}
        self.identity = {**self.identity, "words_sha256": sha256_of(words)}

    def is_utterance(self, clip: Clip) -> bool:
        """Whether it is the whole of a file whose words are known."""
        return clip.end_s is None and clip.start_s == 0 and clip.real_path in self.files

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, H]`: means over words."""
        if not len(waveforms):
            return super().embed(waveforms)
        return np.stack([own[:, 0].mean(axis=0) for own in self.frames(waveforms)])

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int] = (0,)) -> list[np.ndarray]:
        """Words in order, float32 `[W, 1, H]` of every utterance; there is this one layer."""
        known = [self.times.get(_sum_of(waveform)) for waveform in waveforms]
        words = [words_of(waveform, times) if times else [waveform] for waveform, times in zip(waveforms, known)]
        vectors = super().embed([word for own in words for word in own])
        return np.split(vectors[:, None], np.cumsum([len(own) for own in words])[:-1])


def _sum_of(waveform: np.ndarray) -> bytes:
    return blake2b(np.ascontiguousarray(waveform, np.float32).tobytes(), digest_size=16).digest()
