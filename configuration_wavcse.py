"""`WavCSEConfig`: everything that defines a wavCSE model, validated in one place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

UPSTREAM_FAMILIES = ("wavlm", "wav2vec2", "hubert", "whisper")
TEMPORAL_POOLINGS = {"mean": 1, "mean_std": 2}  # -> how many vectors of the upstream's width they make of a layer's frames
WHISPER_MIN_SAMPLES = 400  # one analysis window of its spectrogram, 25 ms
PRECISIONS = ("float32", "bfloat16", "int8")
TASK_KINDS = ("classification",)
MAX_TASK_NAME = 100  # characters; file systems allow 255 bytes for a name that holds it

# Layer pooling -> the keyword arguments it takes, with defaults. The values are the authors' (fixed pooling); those they
# leave open follow docs/architecture.md. `learnable=True` turns the fixed number into a parameter, as the cited originals do.
LAYER_POOLINGS: dict[str, dict[str, Any]] = {
    "weighted_average": {},
    "max": {},
    "mean": {},
    "mixed": {"max_weight": 0.5, "learnable": False},
    "gated": {},
    "learned_norm": {"p": 16.0, "learnable": False},
    "log_sum_exp": {"r": 1.0, "learnable": False},
    "smooth_maximum": {"sharpness": 1.0, "learnable": False},
    "auto": {"alpha": 0.01},
    "self_attention": {},
}

# microsoft/wavlm-large, the paper's upstream: what differs from WavLMConfig's defaults (the base model).
WAVLM_LARGE = {
    "model_type": "wavlm",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.075,
}
PAPER_LAYERS = (*range(15), 17)  # round 10 of the recursive layer selection, section 4 of the paper


class WavCSEConfig(PretrainedConfig):
    """Configuration of a wavCSE model (Phase 1 of the paper; the defaults are the paper's).

    Args:
        upstream_config (`PretrainedConfig` or `dict`, *optional*, defaults to WavLM-Large):
            Configuration of the encoder: WavLM, wav2vec2 or HuBERT, base or large shape, or Whisper (its encoder). Only
            `max(selected_layers)` blocks of it are built, and `num_hidden_layers` is set to that number.
        selected_layers (`Sequence[int]`, *optional*, defaults to 0-14 and 17):
            Layers that are pooled. 0 is the input of the first block, i the output of block i; the encoder's final
            LayerNorm is never applied.
        temporal_pooling (`str`, *optional*, defaults to `"mean"`):
            Over the real (unpadded) frames: `"mean"`, as in the paper, or `"mean_std"`, mean and standard deviation one after
            the other (statistics pooling, Snyder et al. 2018), which doubles the size of a pooled layer.
        layer_projection_size (`int`, *optional*, defaults to 512): Width of FC1.
        pooling_type (`str`, *optional*, defaults to `"learned_norm"`): Pooling across the selected layers.
        pooling_kwargs (`dict`, *optional*): Arguments of that pooling, for example `{"p": 16.0, "learnable": False}`.
        embedding_size (`int`, *optional*, defaults to 2000): Width of FC2, the size E of the embedding.
        layer_dropout (`float`, *optional*, defaults to 0.4): Dropout between layer pooling and FC2.
        embedding_dropout (`float`, *optional*, defaults to 0.6): Dropout between the embedding and the heads.
        tasks (`dict`, *optional*): Task name -> `{"kind": "classification", "labels": [...], "loss_weight": 1.0}`.
        freeze_upstream (`bool`, *optional*, defaults to `True`): Keep the upstream fixed and in eval mode.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate in Hz that the upstream expects.
        do_normalize (`bool`, *optional*, defaults to `True`): Zero mean and unit variance per clip before the upstream.
        window_s (`float`, *optional*, defaults to 60): Longest stretch in seconds that goes through the upstream in one piece
            at inference; a longer clip goes in overlapping windows, and its layers are pooled over all its frames.
        max_duration_s (`float`, *optional*, defaults to 7200): Longest clip that is accepted, in seconds.
        precision (`str`, *optional*, defaults to `"float32"`): Of the upstream's matrix products at inference: `"float32"`
            (exact), `"bfloat16"` or `"int8"`.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    model_type = "wavcse"
    sub_configs = {"upstream_config": AutoConfig}  # noqa: RUF012 (transformers reads this class attribute)

    def __init__(
        self,
        upstream_config: PretrainedConfig | Mapping[str, Any] | None = None,
        selected_layers: Sequence[int] = PAPER_LAYERS,
        temporal_pooling: str = "mean",
        layer_projection_size: int = 512,
        pooling_type: str = "learned_norm",
        pooling_kwargs: Mapping[str, Any] | None = None,
        embedding_size: int = 2000,
        layer_dropout: float = 0.4,
        embedding_dropout: float = 0.6,
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        freeze_upstream: bool = True,
        sampling_rate: int = 16_000,
        do_normalize: bool = True,
        window_s: float = 60.0,
        max_duration_s: float = 7200.0,
        precision: str = "float32",
        **kwargs,
    ):
        self.selected_layers = _validated_layers(selected_layers)
        self.upstream_config = _truncated(_as_config(upstream_config), max(self.selected_layers))
        self.temporal_pooling = _one_of("temporal_pooling", temporal_pooling, tuple(TEMPORAL_POOLINGS))
        self.layer_projection_size = _positive_int("layer_projection_size", layer_projection_size)
        self.pooling_type = _one_of("pooling_type", pooling_type, tuple(LAYER_POOLINGS))
        self.pooling_kwargs = _validated_pooling_kwargs(pooling_type, pooling_kwargs or {})
        self.embedding_size = _positive_int("embedding_size", embedding_size)
        self.layer_dropout = _probability("layer_dropout", layer_dropout)
        self.embedding_dropout = _probability("embedding_dropout", embedding_dropout)
        self.tasks = {checked_task_name(name): _validated_task(name, task) for name, task in (tasks or {}).items()}
        self.freeze_upstream = bool(freeze_upstream)
        self.sampling_rate = _positive_int("sampling_rate", sampling_rate)
        self.do_normalize = bool(do_normalize)
        self.window_s = _positive_seconds("window_s", window_s)
        self.max_duration_s = _positive_seconds("max_duration_s", max_duration_s)
        self.precision = _one_of("precision", precision, PRECISIONS)
        kwargs.pop("hidden_size", None)  # derived, see the property
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Size E of the embedding, under the name that other libraries look for."""
        return self.embedding_size

    @property
    def pooled_size(self) -> int:
        """Size of a layer that is pooled over time: the upstream's width, twice that for `"mean_std"`."""
        return TEMPORAL_POOLINGS[self.temporal_pooling] * self.upstream_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Number of transformer blocks that exist in the model: `max(selected_layers)`."""
        return self.upstream_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads of the upstream."""
        return self.upstream_config.num_attention_heads

    @property
    def window_frames(self) -> int:
        """`window_s` in frames of the upstream; Whisper's windows are its own."""
        if self.upstream_config.model_type == "whisper":
            return self.upstream_config.max_source_positions
        return max(1, int(self.window_s * self.sampling_rate / math.prod(self.upstream_config.conv_stride)))

    @property
    def min_samples(self) -> int:
        """Receptive field of the convolutional stem: the shortest clip that yields one frame, in samples."""
        if self.upstream_config.model_type == "whisper":
            return WHISPER_MIN_SAMPLES
        samples = 1
        for kernel, stride in reversed(list(zip(self.upstream_config.conv_kernel, self.upstream_config.conv_stride))):
            samples = (samples - 1) * stride + kernel
        return samples


def checked_task_name(name: Any) -> str:
    """The name as it is. It becomes a key of `nn.ModuleDict`, part of file names and a column, so not every name will do.

    Raises:
        ValueError: it is no text, is empty or too long, holds a dot, a slash, a control character or a blank at an edge, or
            is an attribute of `nn.ModuleDict`.
    """
    if not isinstance(name, str):
        raise ValueError(f"tasks: the name {name!r} is no text; put it in quotes, or give the task another name.")
    if not 1 <= len(name) <= MAX_TASK_NAME or name != name.strip() or not name.isprintable() or set(name) & set("./\\"):
        raise ValueError(
            f"tasks: the name {name[:MAX_TASK_NAME]!r} must serve in weights, files and columns: 1 to {MAX_TASK_NAME} "
            "printable characters without dots and slashes, and no blank at either end."
        )
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"tasks: the name {name!r} is taken by torch's ModuleDict, which holds the heads; choose another one."
        )
    return name


def _as_config(upstream_config: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig:
    if upstream_config is None:
        upstream_config = WAVLM_LARGE
    if isinstance(upstream_config, Mapping):
        fields = dict(upstream_config)
        model_type = fields.pop("model_type", None)
        _one_of("upstream_config.model_type", model_type, UPSTREAM_FAMILIES)
        return AutoConfig.for_model(model_type, **fields)
    _one_of("upstream_config.model_type", getattr(upstream_config, "model_type", None), UPSTREAM_FAMILIES)
    return copy.deepcopy(upstream_config)


def _truncated(upstream_config: PretrainedConfig, num_blocks: int) -> PretrainedConfig:
    available = upstream_config.num_hidden_layers
    if num_blocks > available:
        raise ValueError(
            f"selected_layers asks for layer {num_blocks}, but the upstream ({upstream_config.model_type}) has layers 0 to "
            f"{available}. Choose layers in that range, or start again from the full upstream with `from_upstream`."
        )
    if getattr(upstream_config, "add_adapter", False):
        raise ValueError("upstream_config.add_adapter is True; wavCSE reads the encoder's blocks, so it must be False.")
    upstream_config.num_hidden_layers = num_blocks
    if upstream_config.model_type == "whisper":
        upstream_config.encoder_layers = num_blocks  # the same number under the encoder's own name
    return upstream_config


def _validated_layers(selected_layers: Sequence[int]) -> list[int]:
    layers = list(selected_layers)
    if not layers or not all(isinstance(layer, int) and layer >= 0 for layer in layers):
        raise ValueError(f"selected_layers is {layers!r}; it must be a non-empty list of integers from 0 upwards.")
    if len(set(layers)) != len(layers):
        raise ValueError(f"selected_layers is {layers!r}; every layer may be named once only.")
    return layers


def _validated_pooling_kwargs(pooling_type: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    defaults = LAYER_POOLINGS[pooling_type]
    unknown = set(kwargs) - set(defaults)
    if unknown:
        allowed = ", ".join(defaults) or "none"
        raise ValueError(f"pooling_kwargs {sorted(unknown)} unknown for pooling_type={pooling_type!r}; allowed: {allowed}.")
    merged = {**defaults, **kwargs}
    if "p" in merged and not 1.0 <= merged["p"] <= 64.0:
        raise ValueError(f"pooling_kwargs['p'] is {merged['p']!r}; the norm's exponent must lie in [1, 64].")
    if "max_weight" in merged and not 0.0 <= merged["max_weight"] <= 1.0:
        raise ValueError(f"pooling_kwargs['max_weight'] is {merged['max_weight']!r}; it must lie in [0, 1].")
    if merged.get("learnable") and merged.get("r", 1.0) <= 0:
        raise ValueError(f"pooling_kwargs['r'] is {merged['r']!r}; a learnable r must start above 0.")
    return merged


def _validated_task(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    kind = _one_of(f"tasks[{name!r}]['kind']", task.get("kind", "classification"), TASK_KINDS)
    labels = [str(label) for label in task.get("labels", ())]
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"tasks[{name!r}]['labels'] is {labels!r}; at least two different labels are needed.")
    loss_weight = float(task.get("loss_weight", 1.0))
    if loss_weight < 0:
        raise ValueError(f"tasks[{name!r}]['loss_weight'] is {loss_weight}; it must not be negative.")
    return {"kind": kind, "labels": labels, "loss_weight": loss_weight}


def _one_of(field: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
    return value


def _positive_int(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} is {value!r}; it must be a positive integer.")
    return value


def _positive_seconds(field: str, value: Any) -> float:
    if not value > 0:
        raise ValueError(f"{field} is {value!r}; it must be a positive number of seconds.")
    return float(value)


def _probability(field: str, value: Any) -> float:
    if not 0.0 <= float(value) < 1.0:
        raise ValueError(f"{field} is {value!r}; a dropout probability must lie in [0, 1).")
    return float(value)
