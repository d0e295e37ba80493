"""The encoder contract: all that the evaluation knows of a model, so that a baseline passes through the same lines.

Shapes: `N` clips, `E` embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, ModelOutput, cached_file

from wavcse.eval.paths import shown_path

CHECK_DURATIONS_S = (0.3, 1.7, 0.9, 1.7, 0.5)  # unsorted, with a tie: padding and reordering both show
CHECK_TOLERANCE = 1e-4  # of the largest embedding value; the model's own promise is 1e-5


@runtime_checkable
class Encoder(Protocol):
    """Speech clips -> one vector per clip.

    Attributes:
        name: how tables and result files call it.
        sampling_rate: rate in Hz of the waveforms that `embed` takes.
        embedding_size: E; 0 for an encoder that says nothing about a clip.

    An encoder that comes from files also has `identity`, a mapping of strings that goes into the result file (model, hash of
    its weights).
    """

    name: str
    sampling_rate: int
    embedding_size: int

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 embeddings `[N, E]` of N waveforms `[samples]`, in order; ValueError for a clip that it cannot serve."""
        ...


class WavCSEEncoder:
    """A saved wavCSE model behind the encoder contract.

    Args:
        model: folder or Hub id; its Python files are run (`trust_remote_code`), so name only models that you trust.
        name: of the encoder in tables.
        device: torch device.
        precision: of the upstream's matrix products, "float32", "bfloat16" or "int8"; `None` = the model's own.

    Raises:
        ValueError: the model cannot be loaded, or it has no `embeddings` output.
    """

    def __init__(self, model: str, name: str = "wavcse", device: str | torch.device = "cpu", precision: str | None = None):
        self.name, self.precision = name, precision
        try:
            self.feature_extractor = AutoFeatureExtractor.from_pretrained(model, trust_remote_code=True)
            self.model = AutoModel.from_pretrained(model, trust_remote_code=True).to(device).eval()
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"The model {model!r} cannot be loaded; give the folder of a saved wavCSE model, or a Hub id. {error}"
            ) from error
        if not hasattr(self.model.config, "embedding_size"):
            raise ValueError(
                f"The model {model!r} is of type {self.model.config.model_type!r}, which has no embedding; "
                "give a wavCSE model (see `WavCSEModel.from_upstream`)."
            )
        self.sampling_rate: int = self.feature_extractor.sampling_rate
        self.embedding_size: int = self.model.config.embedding_size
        self.identity = {"model": shown_path(model), "weights_sha256": weights_sha256(model)}
        if getattr(self.model.config, "_commit_hash", None):
            self.identity["revision"] = self.model.config._commit_hash
        self._last: tuple[Sequence[np.ndarray], ModelOutput] | None = None

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 embeddings `[N, E]`."""
        return self.forward(waveforms).embeddings.float().cpu().numpy()

    @torch.inference_mode()
    def forward(self, waveforms: Sequence[np.ndarray]) -> ModelOutput:
        """The model's output for a batch.

        The last output is kept with its batch: a baseline that reads another layer of the same model then costs nothing more.
        """
        if self._last is None or self._last[0] is not waveforms:
            device = self.model.device
            inputs = self.feature_extractor(waveforms, sampling_rate=self.sampling_rate, return_tensors="pt", device=device)
            self._last = (waveforms, self.model(**inputs, precision=self.precision))
        return self._last[1]


def identity_of(encoder: Encoder) -> Mapping[str, str]:
    """What an encoder says of its origin; empty if it is made of code alone."""
    return getattr(encoder, "identity", {})


def weights_sha256(model: str) -> str:
    """SHA-256 of the safetensors file of a model folder or Hub id, as the Hub shows it; over all of several shards."""
    path = cached_file(model, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if path is not None:
        return _file_sha256(Path(path))
    index = Path(cached_file(model, SAFE_WEIGHTS_INDEX_NAME))
    shards = sorted(index.parent.glob("*.safetensors"))
    return hashlib.sha256("".join(_file_sha256(shard) for shard in shards).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_encoder(encoder: Encoder) -> None:
    """Try the contract on seeded noise before hours are spent.

    Raises:
        ValueError: a member is missing; the output has a wrong shape or dtype or is not finite; a vector depends on the batch
            that the clip is in; or the order of the clips is not kept.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{encoder!r} is no encoder: it needs name, sampling_rate, embedding_size and embed().")
    rng = np.random.default_rng(0)
    waveforms = [
        (0.1 * rng.standard_normal(round(duration_s * encoder.sampling_rate))).astype(np.float32)
        for duration_s in CHECK_DURATIONS_S
    ]
    together = checked_embeddings(encoder, waveforms)
    alone = np.concatenate([checked_embeddings(encoder, [waveform]) for waveform in waveforms])
    _refuse_difference(encoder, together, alone, "alone and in a batch")
    backwards = checked_embeddings(encoder, waveforms[::-1])[::-1]
    _refuse_difference(encoder, together, backwards, "in another order of the batch")


def checked_embeddings(encoder: Encoder, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """`encoder.embed(waveforms)`; ValueError if the result is not a finite float32 array `[N, E]`."""
    embeddings = encoder.embed(waveforms)
    wanted = (len(waveforms), encoder.embedding_size)
    if not isinstance(embeddings, np.ndarray) or embeddings.shape != wanted or embeddings.dtype != np.float32:
        found = f"{getattr(embeddings, 'dtype', type(embeddings).__name__)} of shape {np.shape(embeddings)}"
        raise ValueError(f"Encoder {encoder.name!r}: embed() gave {found}; float32 of shape {wanted} is wanted.")
    if not np.isfinite(embeddings).all():
        raise ValueError(f"Encoder {encoder.name!r}: an embedding holds NaN or infinity.")
    return embeddings


def _refuse_difference(encoder: Encoder, expected: np.ndarray, found: np.ndarray, when: str) -> None:
    if expected.size == 0:
        return
    difference, scale = np.abs(expected - found).max(), np.abs(expected).max()
    if difference > CHECK_TOLERANCE * scale:
        raise ValueError(
            f"Encoder {encoder.name!r}: the same clip gets different vectors {when} (largest difference {difference:.2g}, "
            f"largest value {scale:.2g}). Padding or a batch statistic leaks into the embedding, or the order is lost."
        )
