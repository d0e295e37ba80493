"""The encoder contract: all that the evaluation knows of a model, so that a baseline passes through the same lines.

Beside it the saved wavCSE model behind that contract, and what a model says of itself before it is loaded: until then none
of its code is run, and nothing is ever unpickled; a model whose weights are not safetensors is refused.

Shapes: `N` clips, `E` embedding size, `L` layers of an upstream, `D` size of one that is pooled over time: the upstream's
width, or twice that for mean and standard deviation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    ModelOutput,
    cached_file,
)

import wavcse
from wavcse.data.files import sha256_of, shown_path
from wavcse.upstream_wavcse import NO_SAFETENSORS

CHECK_DURATIONS_S = (0.3, 1.7, 0.9, 1.7, 0.5)  # unsorted, with a tie: padding and reordering both show
CHECK_TOLERANCE = 1e-4  # of the largest embedding value; the model's own promise is 1e-5
FINETUNED_TYPE = "wavcse_finetuned"
WAVCSE_TYPES = ("wavcse", FINETUNED_TYPE)  # `model_type` of the configurations of wavCSE models


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
        context: what its Whisper upstream sees of a clip, "clip" or "window"; `None` for other upstreams.

    Raises:
        ValueError: the model cannot be loaded, or it has no `embeddings` output.
    """

    def __init__(self, model: str, name: str = "wavcse", device: str | torch.device = "cpu", precision: str | None = None):
        self.name, self.precision = name, precision
        checkpoint = SavedModel.parse(model)
        if checkpoint.model_type not in WAVCSE_TYPES:  # asked before any of its code is run
            raise ValueError(
                f"The model {model!r} is of type {checkpoint.model_type!r}, which has no embedding; "
                "give a wavCSE model (see `WavCSEModel.from_upstream`)."
            )
        self.reads_frames = checkpoint.model_type == FINETUNED_TYPE  # then pooled layers do not make its embedding
        self.identity = checkpoint.identity(precision)
        self.feature_extractor, self.model = _load(checkpoint, device)
        if precision is not None and hasattr(self.model, "check_precision"):  # code of older models has none
            self.model.check_precision(precision)
        config = self.model.config
        if getattr(config, "_commit_hash", None):
            self.identity["revision"] = config._commit_hash
        self.sampling_rate: int = self.feature_extractor.sampling_rate
        self.embedding_size: int = config.embedding_size
        self.temporal_pooling: str = config.temporal_pooling
        self.context: str | None = getattr(config, "context", None)  # not in code of older models
        self.num_layers, self.layer_size = config.num_hidden_layers + 1, config.pooled_size
        self._last: tuple[Sequence[np.ndarray], Tensor | None, ModelOutput] | None = None

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 embeddings `[N, E]`."""
        return self._run(waveforms)[1].embeddings.float().cpu().numpy()

    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """All layers, pooled over time as the model does, float32 `[N, L, D]`, from the pass that also gave the embeddings."""
        layers, _ = self._run(waveforms)
        if layers is None and self.reads_frames:
            return self._layers(self._inputs(waveforms)).float().cpu().numpy()
        if layers is None:
            raise ValueError(f"The model {self.name!r} was saved by an older wavCSE; save it again to read its layers.")
        return layers.float().cpu().numpy()

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> list[np.ndarray]:
        """Layers of the upstream frame by frame, float32 `[T, K, D]` of every clip, by `encode_frames` of the model.

        Raises:
            ValueError: the code that was saved with the model is older than that method.
        """
        if not hasattr(self.model, "encode_frames"):
            raise ValueError(f"The model {self.name!r} was saved by an older wavCSE; save it again to read its frames.")
        how = {"precision": self.precision, "show_progress_bar": False}
        return [own.frames for own in self.model.encode_frames(list(waveforms), layers=list(layers), **how)]

    @torch.inference_mode()
    def _run(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor | None, ModelOutput]:
        """All pooled layers `[N, L, D]` of a batch (`None` where the embedding is not made of them), and the model's output.

        The last ones are kept with their batch: a baseline that reads layers of the same model then costs nothing more.
        """
        if self._last is None or self._last[0] is not waveforms:
            model, inputs, layers = self.model, self._inputs(waveforms), None
            if hasattr(model, "pool_layers") and not self.reads_frames:
                layers = self._layers(inputs)
                inputs = {"pooled_layers": layers[:, list(model.config.selected_layers)]}
            output = model(**inputs, precision=self.precision, return_dict=True)
            self._last = (waveforms, layers, output)
        return self._last[1:]

    def _inputs(self, waveforms: Sequence[np.ndarray]) -> Mapping[str, Tensor]:
        rate = self.sampling_rate
        return self.feature_extractor(waveforms, sampling_rate=rate, return_tensors="pt", device=self.model.device)

    @torch.inference_mode()
    def _layers(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.model.pool_layers(**inputs, layers=range(self.num_layers), precision=self.precision)


def untrain(model: PreTrainedModel, seed: int) -> None:
    """Give a model new weights, as its class makes them for this seed: what its shape knows without training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.load_state_dict(type(model)(model.config).state_dict())


def _load(checkpoint: SavedModel, device: str | torch.device) -> tuple[Any, Any]:
    options = {"revision": checkpoint.revision, "trust_remote_code": True}
    wavcse.register()
    with checkpoint.loading():
        feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **options)
        model = AutoModel.from_pretrained(checkpoint.path, use_safetensors=True, **options).to(device).eval()
    if not hasattr(model.config, "pooled_size"):
        raise ValueError(f"The model {str(checkpoint)!r} was saved by an older wavCSE; train or save it again.")
    return feature_extractor, model


@dataclass(frozen=True)
class CachedEncoder:
    """What the records of an evaluation say of vectors that are made of kept layers."""

    name: str
    sampling_rate: int
    embedding_size: int
    identity: dict[str, str] = field(default_factory=dict)
    num_candidates: int = 1


def candidates_of(encoder: Encoder) -> int:
    """How many vectors per clip an encoder offers for validation to choose from; 1 for most."""
    return getattr(encoder, "num_candidates", 1)


def encoder_record(encoder: Encoder) -> dict:
    """What a result file keeps of an encoder; `identity` is what it says of its origin, if it is not made of code alone."""
    shape = {"embedding_size": encoder.embedding_size, "sampling_rate": encoder.sampling_rate}
    candidates = {"num_candidates": candidates_of(encoder)} if candidates_of(encoder) > 1 else {}
    return {"name": encoder.name, **shape, **candidates, **getattr(encoder, "identity", {})}


def check_encoder(encoder: Encoder) -> None:
    """Try the contract on seeded noise before hours are spent.

    Raises:
        ValueError: a member is missing; the output has a wrong shape or dtype or is not finite; a vector depends on the batch
            that the clip is in; or the order of the clips is not kept.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{encoder!r} is not an encoder: it needs name, sampling_rate, embedding_size and embed().")
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


# ---- a model before it is loaded ----


@dataclass(frozen=True)
class SavedModel:
    """Where a model is.

    Args:
        path: its folder, or its Hub id.
        revision: branch, tag or commit on the Hub; `None` = main.
    """

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, model: str) -> SavedModel:
        """Read what a user writes: a folder, a Hub id, or `id@revision`."""
        path, at, revision = model.rpartition("@")
        return cls(path, revision) if at and not Path(model).exists() else cls(model)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @cached_property
    def model_type(self) -> str:
        """`model_type` of its configuration, "" if it names none; ValueError if there is no configuration."""
        with self.loading():
            fields, _ = PretrainedConfig.get_config_dict(self.path, revision=self.revision)
            if not fields:
                raise OSError(f"There is no {CONFIG_NAME}.")
            return str(fields.get("model_type", ""))

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Turns what transformers raises on a missing or damaged model into a ValueError that says what to give."""
        try:
            yield
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            needs_code = "trust_remote_code" in str(error)  # transformers advises to allow it, which nobody can here
            raise ValueError(
                f"The model {str(self)!r} cannot be loaded; give the folder of a saved wavCSE model or of a transformers "
                f"audio model, or a Hub id. {'It needs code of its own, which is not run here.' if needs_code else error}"
            ) from error

    def identity(self, precision: str | None = None) -> dict[str, str]:
        """What a result file keeps: all that changes a vector, and where it came from.

        Args:
            precision: as asked for; the model's own is in its configuration.

        Raises:
            ValueError: as `weights_sha256`.
        """
        asked = {"revision": self.revision, "precision": precision}
        return {
            "model": shown_path(self.path),
            "weights_sha256": self.weights_sha256(),
            "config_sha256": self.config_sha256(),
            **{name: value for name, value in asked.items() if value},
        }

    def config_sha256(self) -> str:
        """SHA-256 over the files that configure the model and its feature extractor."""
        files = [self._file(CONFIG_NAME), self._file(FEATURE_EXTRACTOR_NAME, needed=False)]
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files if file)).hexdigest()

    def weights_sha256(self) -> str:
        """SHA-256 of the safetensors file, as the Hub shows it; over the hashes of all shards if there are several.

        Raises:
            ValueError: there is no safetensors file.
        """
        single = self._file(SAFE_WEIGHTS_NAME, needed=False)
        if single:
            return sha256_of(single)
        index = self._file(SAFE_WEIGHTS_INDEX_NAME, needed=False)
        if index is None:
            raise ValueError(NO_SAFETENSORS.format(name=str(self)))
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return hashlib.sha256("".join(sha256_of(self._file(shard)) for shard in shards).encode()).hexdigest()

    def num_parameters(self) -> int:
        """Numbers in its one safetensors file, of which only the shapes are read."""
        with safe_open(self._file(SAFE_WEIGHTS_NAME), framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())

    def card_fields(self) -> dict[str, Any]:
        """What the header of its card says; empty without one."""
        card = self._file("README.md", needed=False)
        return (metadata_load(card) or {}) if card else {}

    def _file(self, name: str, needed: bool = True) -> Path | None:
        with self.loading():
            found = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=needed)
        return Path(found) if found else None
