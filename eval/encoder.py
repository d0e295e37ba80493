"""The encoder contract: all that the evaluation knows of a model, so that a baseline passes through the same lines.

Shapes: `N` clips, `E` embedding size, `L` layers of an upstream, `D` size of one that is pooled over time: the upstream's
width, or twice that for mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import ModelOutput

from wavcse.eval.checkpoint import Checkpoint

CHECK_DURATIONS_S = (0.3, 1.7, 0.9, 1.7, 0.5)  # unsorted, with a tie: padding and reordering both show
CHECK_TOLERANCE = 1e-4  # of the largest embedding value; the model's own promise is 1e-5
WAVCSE_TYPE = "wavcse"  # `model_type` of a wavCSE configuration


@runtime_checkable
class Encoder(Protocol):
    """Speech clips -> one vector per clip.

    Attributes:
        name: how tables and result files call it.
        sampling_rate: rate in Hz of the waveforms that `embed` takes.
        embedding_size: E; 0 for an encoder that says nothing about a clip.

    An encoder that comes from files also has `identity`, a mapping of strings that goes into the result file (model, hash of
    its weights). One that offers several vectors per clip, of which each task takes the best on its validation clips, has
    `num_candidates`; its `embed` gives `[N, num_candidates * E]`, candidate after candidate.
    """

    name: str
    sampling_rate: int
    embedding_size: int

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 embeddings `[N, E]` of N waveforms `[samples]`, in order; ValueError for a clip that it cannot serve."""
        ...


class WavCSEEncoder:
    """A saved wavCSE model behind the encoder contract, and all layers of its upstream for the baselines that read them.

    Args:
        model: folder or Hub id (`id@revision`); its Python files are run (`trust_remote_code`), so name only models that you
            trust.
        name: of the encoder in tables.
        device: torch device.
        precision: of the upstream's matrix products, "float32", "bfloat16" or "int8"; `None` = the model's own.

    Attributes:
        num_layers: L; a wavCSE model holds its upstream up to its highest selected layer only.
        layer_size: D.
        temporal_pooling: how the model pools layers over time.

    Raises:
        ValueError: the model cannot be loaded, or it has no `embeddings` output.
    """

    def __init__(self, model: str, name: str = "wavcse", device: str | torch.device = "cpu", precision: str | None = None):
        self.name, self.precision = name, precision
        checkpoint = Checkpoint.parse(model)
        if checkpoint.model_type != WAVCSE_TYPE:  # asked before any of its code is run
            raise ValueError(
                f"The model {model!r} is of type {checkpoint.model_type!r}, which has no embedding; "
                "give a wavCSE model (see `WavCSEModel.from_upstream`)."
            )
        self.identity = checkpoint.identity(precision)
        self.feature_extractor, self.model = _load(checkpoint, device)
        config = self.model.config
        if getattr(config, "_commit_hash", None):
            self.identity["revision"] = config._commit_hash
        self.sampling_rate: int = self.feature_extractor.sampling_rate
        self.embedding_size: int = config.embedding_size
        self.temporal_pooling: str = config.temporal_pooling
        self.num_layers, self.layer_size = config.num_hidden_layers + 1, config.pooled_size
        self._last: tuple[Sequence[np.ndarray], Tensor | None, ModelOutput] | None = None

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 embeddings `[N, E]`."""
        return self.forward(waveforms).embeddings.float().cpu().numpy()

    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """All layers, pooled over time as the model does, float32 `[N, L, D]`, from the pass that also gave the embeddings."""
        layers, _ = self._run(waveforms)
        if layers is None:
            raise ValueError(f"The model {self.name!r} was saved by an older wavCSE; save it anew to read its layers.")
        return layers.float().cpu().numpy()

    def forward(self, waveforms: Sequence[np.ndarray]) -> ModelOutput:
        """The model's output for a batch."""
        return self._run(waveforms)[1]

    @torch.inference_mode()
    def _run(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor | None, ModelOutput]:
        """All pooled layers `[N, L, D]` of a batch (`None` of a model with older code), and the model's output.

        The last ones are kept with their batch: a baseline that reads layers of the same model then costs nothing more.
        """
        if self._last is None or self._last[0] is not waveforms:
            model, rate = self.model, self.sampling_rate
            inputs = self.feature_extractor(waveforms, sampling_rate=rate, return_tensors="pt", device=model.device)
            layers = None
            if hasattr(model, "pool_layers"):
                layers = model.pool_layers(**inputs, layers=range(self.num_layers), precision=self.precision)
                inputs = {"pooled_layers": layers[:, list(model.config.selected_layers)]}
            output = model(**inputs, precision=self.precision, return_dict=True)
            self._last = (waveforms, layers, output)
        return self._last[1:]


def _load(checkpoint: Checkpoint, device: str | torch.device) -> tuple[Any, Any]:
    options = {"revision": checkpoint.revision, "trust_remote_code": True}
    with checkpoint.loading():
        feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **options)
        model = AutoModel.from_pretrained(checkpoint.path, use_safetensors=True, **options).to(device).eval()
    if not hasattr(model.config, "pooled_size"):
        raise ValueError(f"The model {str(checkpoint)!r} was saved by an older wavCSE; train or save it anew.")
    return feature_extractor, model


def candidates_of(encoder: Encoder) -> int:
    """How many vectors per clip an encoder offers for validation to choose from; 1 for most."""
    return getattr(encoder, "num_candidates", 1)


def identity_of(encoder: Encoder) -> Mapping[str, str]:
    """What an encoder says of its origin; empty if it is made of code alone."""
    return getattr(encoder, "identity", {})


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
    """`encoder.embed(waveforms)`; ValueError if the result is not a finite float32 array `[N, candidates * E]`."""
    embeddings = encoder.embed(waveforms)
    wanted = (len(waveforms), candidates_of(encoder) * encoder.embedding_size)
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
