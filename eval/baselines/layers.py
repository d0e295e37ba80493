"""What an upstream gives without any training: its last layer, the mean of its layers, its best layer, pooled over time.

All of them read one `LayerSource`, so that together they cost one pass over the audio.

Shapes: `N` clips, `L` layers, `T` frames of a clip, `D` size of a pooled layer: the width of the upstream, or twice that
for mean and standard deviation. Layer 0 is the input of the first block, layer i the output of block i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.modeling_utils import PreTrainedModel

from wavcse.configuration_wavcse import WavCSEConfig, as_encoder
from wavcse.eval.encoder import SavedModel
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import config_from_upstream
from wavcse.pooling_wavcse import num_moments, pooled_frames
from wavcse.upstream_wavcse import UpstreamRunner, check_precision, load_upstream, visiting_layers


class LayerEncoder:
    """What the three have in common.

    Args:
        source: where the layers come from: a wavCSE model (its upstream ends at the highest selected layer) or a checkpoint.
        name: in tables; the baseline's own if not given.

    Raises:
        ValueError: no source is given.
    """

    baseline: str
    num_candidates = 1
    reads_last = False  # whether it reads the last layer only

    def __init__(self, source: LayerSource | None, name: str | None = None):
        if source is None:
            raise ValueError(f"The baseline {self.baseline!r} reads layers of a model: give --model.")
        self.source, self.name = source, name or self.baseline
        self.sampling_rate, self.embedding_size = source.sampling_rate, source.layer_size

    @property
    def identity(self) -> dict[str, str]:
        """The source's, how it pools layers over time unless by the mean, and which layers are read."""
        pooling, last = self.source.temporal_pooling, self.source.num_layers - 1
        read = {"layer": str(last)} if self.reads_last else {"layers": f"0-{last}"}
        return {**self.source.identity, **({} if pooling == "mean" else {"temporal_pooling": pooling}), **read}


class LastLayerEncoder(LayerEncoder):
    """The usual way: the last block, `[N, D]`."""

    baseline = "last_layer"
    reads_last = True

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, D]`."""
        return self.source.all_layers(waveforms)[:, -1]


class MeanLayersEncoder(LayerEncoder):
    """All layers, averaged with equal weights, `[N, D]`."""

    baseline = "mean_layers"

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, D]`."""
        return self.source.all_layers(waveforms).mean(axis=1)


class BestLayerEncoder(LayerEncoder):
    """Layers side by side, for each task to take the one that is best on its validation clips.

    Args:
        layers: which, candidate after candidate; `None` = all, so that candidate i is layer i.

    Raises:
        ValueError: the source has no such layer.
    """

    baseline = "best_layer"

    def __init__(self, source: LayerSource | None, name: str | None = None, layers: Sequence[int] | None = None):
        super().__init__(source, name)
        self.layers = list(range(self.source.num_layers) if layers is None else layers)
        bad = sorted(set(self.layers) - set(range(self.source.num_layers)))
        if bad:
            raise ValueError(f"{self.name}: there is no layer {bad[0]}; this model has 0 to {self.source.num_layers - 1}.")
        self.num_candidates = len(self.layers)

    @property
    def identity(self) -> dict[str, str]:
        """As of all, with the layers that are read, where not all are."""
        is_whole = self.layers == list(range(self.source.num_layers))
        return {**super().identity, **({} if is_whole else {"layers": ",".join(map(str, self.layers))})}

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, K * D]`, layer after layer."""
        layers = self.source.all_layers(waveforms)
        if len(self.layers) < layers.shape[1]:
            layers = layers[:, self.layers]
        return layers.reshape(len(waveforms), -1)


# ---- where layers come from: a wavCSE model, or any transformers audio checkpoint ----


class LayerSource(Protocol):
    """Speech clips -> all layers of one upstream, pooled over time.

    Attributes:
        sampling_rate: rate in Hz of the waveforms.
        num_layers: L, blocks + 1.
        layer_size: D.
        temporal_pooling: "mean" or "mean_std".
        identity: model, hash of its weights, revision.
    """

    sampling_rate: int
    num_layers: int
    layer_size: int
    temporal_pooling: str
    identity: dict[str, str]

    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, L, D]`; asked again for the same list, it computes nothing. ValueError for a clip it cannot serve."""
        ...

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> list[np.ndarray]:
        """K layers frame by frame, float32 `[T, K, D]` per clip without padding; pooled over `T` they are `all_layers`."""
        ...


class UpstreamLayers:
    """`LayerSource` of any transformers audio checkpoint; none of its own code is run.

    A family that wavCSE has as an upstream goes through the same code as in a wavCSE model. Any other checkpoint goes
    through as transformers runs it, if that gives frames (`HiddenStateLayers`).

    Args:
        model: folder or Hub id (`id@revision`).
        device: torch device.
        precision: "float32" (also `None`), "bfloat16" or "int8"; the latter two for the families of the packed path.
        temporal_pooling: "mean", or "mean_std": mean and standard deviation of the frames.
        context: of Whisper, "clip" (also `None`) or "window".

    Raises:
        ValueError: it cannot be loaded, its weights are not safetensors, it is not an audio model, it gives no frames, or the
            precision is not available.
    """

    def __init__(
        self,
        model: str,
        device: str | torch.device = "cpu",
        precision: str | None = None,
        temporal_pooling: str = "mean",
        context: str | None = None,
    ):
        checkpoint = SavedModel.parse(model)
        self.identity, self.temporal_pooling = checkpoint.identity(precision), temporal_pooling
        with checkpoint.loading():
            config = AutoConfig.from_pretrained(checkpoint.path, revision=checkpoint.revision, trust_remote_code=False)
        if getattr(config, "_commit_hash", None):
            self.identity["revision"] = config._commit_hash
        if context is not None and config.model_type != "whisper":
            raise ValueError(f"context is {context!r}, a choice of Whisper alone; {model!r} is of type {config.model_type!r}.")
        fields = {"temporal_pooling": temporal_pooling, "context": context}
        own = _config_of_all_layers(checkpoint, config, fields)
        if own is not None:
            self.passes = UpstreamPasses(checkpoint, own, device, precision)
            self.identity |= {} if own.context is None else {"context": own.context}
        elif precision in (None, "float32"):
            self.passes = HiddenStateLayers(checkpoint, device, temporal_pooling)
        else:
            raise ValueError(f"precision={precision!r} is not available for {model!r} of type {config.model_type!r}.")
        self.sampling_rate = self.passes.sampling_rate
        self.num_layers, self.layer_size = self.passes.num_layers, self.passes.layer_size
        self._last: tuple[Sequence[np.ndarray], np.ndarray] | None = None

    @torch.inference_mode()
    def all_layers(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """All layers, pooled over time, float32 `[N, L, D]`; those of the last batch are kept with it."""
        if self._last is None or self._last[0] is not waveforms:
            self._last = (waveforms, self.passes.pooled(waveforms).float().cpu().numpy())
        return self._last[1]

    @torch.inference_mode()
    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> list[np.ndarray]:
        """Layers frame by frame, float32 `[T, K, D]` of every clip."""
        return [own.float().cpu().numpy() for own in self.passes.frames(waveforms, layers)]

    @property
    def model(self) -> PreTrainedModel:
        """The module that runs."""
        return self.passes.model


class UpstreamPasses:
    """Layers of a checkpoint of a family of upstreams, by the code that runs them in a wavCSE model.

    Args:
        config: selects all layers.
    """

    def __init__(self, checkpoint: SavedModel, config: WavCSEConfig, device: str | torch.device, precision: str | None):
        self.config, self.precision = config, precision or config.precision
        with checkpoint.loading():
            upstream = load_upstream(checkpoint.path, config.upstream_config, revision=checkpoint.revision)
        check_precision(upstream, self.precision)
        self.model, self.run_upstream = upstream.to(device).eval(), UpstreamRunner()
        self.feature_extractor = WavCSEFeatureExtractor.from_config(config)
        self.sampling_rate: int = config.sampling_rate
        self.num_layers, self.layer_size = len(config.selected_layers), config.pooled_size

    def pooled(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """`[N, L, D]`."""
        device, config = self.model.device, self.config
        inputs = self.feature_extractor(waveforms, sampling_rate=self.sampling_rate, return_tensors="pt", device=device)
        options = {"precision": self.precision, **config.upstream_options}
        output = self.run_upstream(self.model, **inputs, layers=config.selected_layers, **options)
        return output.pooled_layers

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> list[Tensor]:
        """`[T, K, D]` of every clip."""
        options = {"precision": self.precision, **self.config.upstream_options}
        del options["temporal_pooling"]
        checked = [self.feature_extractor.load(waveform, place) for place, waveform in enumerate(waveforms)]
        inputs = self.feature_extractor.prepare(checked, self.model.device)
        return self.run_upstream.frames(self.model, inputs, layers, **options)


def _config_of_all_layers(checkpoint: SavedModel, config: PretrainedConfig, fields: Mapping) -> WavCSEConfig | None:
    """The wavCSE configuration of the whole upstream, or `None` if wavCSE cannot have it as an upstream."""
    options = {"revision": checkpoint.revision}
    layers = range(getattr(as_encoder(config), "num_hidden_layers", 0) + 1)
    try:
        return config_from_upstream(checkpoint.path, options, selected_layers=layers, **fields)
    except ValueError:  # of another family, or with parts that no layer shows
        return None


# ---- checkpoints that wavCSE does not run itself ----


WINDOW_S = 60.0  # a longer clip goes through in equal parts, each as a clip of its own
TRIAL_S = (1.0, 0.5)  # noise that the model is tried out with; clips below the shorter one may be too short for it


class HiddenStateLayers:
    """Layers of any audio checkpoint that `AutoFeatureExtractor` and `AutoModel` load.

    What decides is what the model does, not what it is called: it has to take what its feature extractor makes of a clip, and
    to give frames `[1, T, D]` for every layer, more of them for a longer clip. Layers are read from the blocks where they can
    be found, so without a final LayerNorm; else they are the model's `hidden_states`. One clip at a time, so that there is no
    padding that a batch could show through.

    Args:
        checkpoint: with safetensors weights; none of its own code is run.
        device: torch device.
        temporal_pooling: "mean" or "mean_std".

    Raises:
        ValueError: it cannot be loaded, takes no audio, or gives no such frames; or the pooling is unknown.
    """

    def __init__(self, checkpoint: SavedModel, device: str | torch.device = "cpu", temporal_pooling: str = "mean"):
        self.temporal_pooling, moments = temporal_pooling, num_moments(temporal_pooling)
        options = {"revision": checkpoint.revision, "trust_remote_code": False}
        with checkpoint.loading():
            self.feature_extractor = AutoFeatureExtractor.from_pretrained(checkpoint.path, **options)
            if not isinstance(self.feature_extractor, SequenceFeatureExtractor):
                raise ValueError(f"Its preprocessor, {type(self.feature_extractor).__name__}, does not take audio.")
            model = AutoModel.from_pretrained(checkpoint.path, dtype=torch.float32, use_safetensors=True, **options)
        self.model = model.to(device).eval()
        self.sampling_rate: int = self.feature_extractor.sampling_rate
        try:
            self.encoder = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
            self.num_layers, width = self._try_out()
            self.layer_size = moments * width
        except Exception as error:  # whatever a foreign model raises, the answer is the same
            raise ValueError(
                f"The model {str(checkpoint)!r} of type {self.model.config.model_type!r} gives no frames to pool over time "
                f"({type(error).__name__}: {error})."
            ) from error

    def pooled(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """`[N, L, D]`; ValueError for a clip that is too short."""
        every = range(self.num_layers)
        moments = [[pooled_frames(own, self.temporal_pooling) for own in clip] for clip in self._of_clips(waveforms, every)]
        return torch.stack([torch.stack(clip) for clip in moments])

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> list[Tensor]:
        """`[T, K, D]` of every clip; ValueError for one that is too short."""
        return [torch.stack(clip, dim=1) for clip in self._of_clips(waveforms, layers)]

    @torch.inference_mode()
    def _try_out(self) -> tuple[int, int]:
        noise = np.random.default_rng(0).standard_normal(int(TRIAL_S[0] * self.sampling_rate)).astype(np.float32)
        longer, shorter = (self._frames(0.1 * noise[: int(seconds * self.sampling_rate)]) for seconds in TRIAL_S)
        if len({layer.shape[1:] for layer in longer}) != 1 or longer[0].ndim != 2:
            raise ValueError(f"its layers have the shapes {[tuple(layer.shape) for layer in longer]}")
        if not all(len(one) > len(other) for one, other in zip(longer, shorter)):
            raise ValueError("clips are cut or padded to one length, so what is pooled over time would not be theirs")
        return len(longer), longer[0].shape[1]

    def _of_clips(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> Iterator[list[Tensor]]:
        for place, waveform in enumerate(waveforms):
            clip = self._of_clip(f"clip {place}", waveform)
            yield [clip[layer] for layer in layers]

    def _of_clip(self, name: str, waveform: np.ndarray) -> list[Tensor]:
        """Layers of one clip, `[T, D]` each, the frames of all its parts one after another."""
        num_parts = max(1, math.ceil(len(waveform) / (WINDOW_S * self.sampling_rate)))
        try:
            parts = [self._frames(part) for part in np.array_split(waveform, num_parts)]
        except Exception as error:
            if len(waveform) >= TRIAL_S[-1] * self.sampling_rate:
                raise
            raise ValueError(f"{name}: has {len(waveform)} samples, too few for this model ({error}).") from error
        return [torch.cat(layer) for layer in zip(*parts)]

    def _frames(self, waveform: np.ndarray) -> list[Tensor]:
        """Layers of one clip, float32 `[T, D]` each, without frames that its feature extractor added."""
        inputs = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").to(self.model.device)
        layers = [layer[0].float() for layer in self._layers(inputs)]
        mask = inputs.get("attention_mask")
        if mask is None or any(len(layer) != mask.shape[1] for layer in layers):
            return layers  # without a mask, or with one over samples: a single clip has no padding there
        return [layer[mask[0].bool()] for layer in layers]

    def _layers(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        if not _has_blocks(self.encoder):
            return self.encoder(**inputs, output_hidden_states=True).hidden_states
        layers: list[Tensor] = []
        with visiting_layers(self.encoder, lambda _, hidden: layers.append(hidden)):
            self.encoder(**inputs)
        return layers


def _has_blocks(model: nn.Module) -> bool:
    """Whether the blocks and their input are where `visiting_layers` reads them, as in all relatives of wav2vec2."""
    encoder = getattr(model, "encoder", None)
    blocks, entry = getattr(encoder, "layers", None), getattr(encoder, "dropout", None)
    return isinstance(blocks, nn.ModuleList) and isinstance(entry, nn.Module)
