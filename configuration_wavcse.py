"""`WavCSEConfig`: everything that defines a wavCSE model, validated in one place."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig

if int(transformers.__version__.partition(".")[0]) < 5:
    sys.modules.pop(__name__, None)  # where transformers has put it before it runs: the next try is told the same
    raise ImportError(
        f"wavCSE needs transformers 5.0 or newer, and {transformers.__version__} is installed: "
        "`pip install --upgrade 'transformers>=5'`."
    )

# These lines never run: they are for transformers' loader of remote code (`dynamic_module_utils`), which finds the files of a
# folder by searching the text of its entry files for imports. transformers 5.0 to 5.7 copy only what the entry file of a
# class names itself. From 5.8 on it follows the named files too, and names a folder's modules by a hash of all of them. So
# every entry file (this one, feature extraction, modeling, pipeline, sentence-transformers, endpoint) names all others: none
# is missing; all get the same hash, so that the configuration, extractor and model of a folder fit together; and two folders
# with other code share no class.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .audio_wavcse import load_waveform  # noqa: F401
    from .coattention_wavcse import Fusion  # noqa: F401
    from .ecapa_wavcse import EcapaTdnn  # noqa: F401
    from .encoding_wavcse import read_clips  # noqa: F401
    from .endpoint_wavcse import EndpointHandler  # noqa: F401
    from .feature_extraction_wavcse import WavCSEFeatureExtractor  # noqa: F401
    from .finetuned_wavcse import FinetunedWavCSE  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .labels_wavcse import predictions  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401

# transformers 5.0 to 5.7 names a folder's modules by the folder's name alone: for another folder of that name it runs this
# file again in its old module, and what was imported of the other one is still there. It is forgotten, so that this folder's
# files are read.
if "__transformers_module_hash__" in globals():
    for name in [name for name in sys.modules if name.startswith(f"{__package__}.") and name != __name__]:
        del sys.modules[name]

MODULE_FAMILIES = ("sew", "sew-d", "wav2vec2-bert", "moonshine")  # never packed: their transformers modules run, in windows
UPSTREAM_FAMILIES = ("wavlm", "wav2vec2", "hubert", "whisper", "unispeech-sat", "data2vec-audio", *MODULE_FAMILIES)
TWO_SHAPES = ("wavlm", "wav2vec2", "hubert", "unispeech-sat")  # `do_stable_layer_norm` says which: the base's or the large's
SQUEEZING_FAMILIES = ("sew", "sew-d")  # which average neighbouring frames of their stem
OTHER_STEMS = ("whisper", "wav2vec2-bert", "moonshine")  # no list of convolutions in their configuration
TEMPORAL_POOLINGS = {"mean": 1, "mean_std": 2}  # -> how many vectors of the upstream's width they make of a layer's frames
LAYER_SCALINGS = ("none", "standard")
CONTEXTS = ("clip", "window")  # of Whisper: the clip's own length, or 30 s whatever it fills of them
WHISPER_MIN_SAMPLES = 400  # one analysis window of its spectrogram, 25 ms
WHISPER_SAMPLES_PER_FRAME = 320  # mel frames every 160 samples, halved by the second convolution
# (kernel, stride) of what makes frames, where the configuration does not say it.
MOONSHINE_STEM = ((127, 64), (7, 3), (3, 2))  # its three convolutions
FILTERBANK_STEM = ((400, 160), (2, 2))  # of Wav2Vec2-BERT: mel frames of 25 ms every 10 ms, two of which are one frame
PRECISIONS = ("float32", "bfloat16", "int8")
TASK_KINDS = ("classification", "regression")
NUMBER_LOSSES = ("ccc", "mae")  # of regression: 1 - CCC, and the mean absolute error in standard deviations
MAX_TASK_NAME = 100  # characters; file systems allow 255 bytes for a name that holds it
TASK_FIELDS = {  # kind -> what a task of it has
    "classification": ("kind", "labels", "loss_weight", "loss", "scale", "margin"),
    "regression": ("kind", "loss", "mean", "std", "loss_weight"),
}
CLASS_LOSSES = ("cross_entropy", "aam_softmax")  # of classification
AAM_SOFTMAX = {"scale": 30.0, "margin": 0.2}  # the defaults of that loss; those of speaker verification
LABEL_FIELDS = ("id2label", "label2id", "num_labels")  # transformers' names; here they follow from the one task
NEW_TASK = "label"  # the name of the task that they ask for where the model has no such head
# Beyond these a file is damaged: nothing larger is built, so that a wrong digit does not fill the memory.
MAX_SIZE = 2**20  # of a width, a kernel, a rate in Hz
MAX_BLOCKS = 1000
MAX_CONVOLUTIONS = 64
MAX_PARAMETERS = 3 * 10**9  # the largest encoder of these families, XLS-R, has 2.2e9

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
    "concat": {},
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

# Fields that trained weights depend on, with the reason why they cannot be changed when weights are loaded.
TRAINED_FIELDS = {
    "upstream_config": "the encoder's weights belong to that architecture",
    "selected_layers": "everything after the encoder was trained on exactly these layers",
    "temporal_pooling": "everything after the encoder was trained on layers pooled in this way",
    "context": "everything after the encoder was trained on layers made in this context",
    "layer_scaling": "everything after the encoder was trained on layers scaled in this way",
    "layer_projection_size": "the weights have that size",
    "pooling_type": "the embedding projection was trained on what this pooling gives",
    "pooling_kwargs": "the embedding projection was trained on what this pooling gives",
    "embedding_size": "the weights have that size",
    "sampling_rate": "the encoder was trained on speech at that rate",
    "do_normalize": "the encoder was trained on waveforms treated in that way",
}


class WavCSEConfig(PretrainedConfig):
    """Configuration of a wavCSE model (Phase 1 of the paper; the defaults are the paper's).

    Args:
        upstream_config (`PretrainedConfig` or `dict`, *optional*, defaults to WavLM-Large):
            Configuration of the encoder: WavLM, wav2vec2, HuBERT, UniSpeech-SAT, data2vec, SEW, SEW-D, Wav2Vec2-BERT,
            Whisper or Moonshine (their encoders). Only `max(selected_layers)` blocks of it are built, and
            `num_hidden_layers` is set to that number.
        selected_layers (`Sequence[int]`, *optional*, defaults to 0-14 and 17):
            Layers that are pooled. 0 is the input of the first block, i the output of block i; the encoder's final
            LayerNorm is never applied.
        temporal_pooling (`str`, *optional*, defaults to `"mean"`):
            Over the real (unpadded) frames: `"mean"`, as in the paper, or `"mean_std"`, mean and standard deviation one after
            the other (statistics pooling, Snyder et al. 2018), which doubles the size of a pooled layer.
        context (`str`, *optional*): Of a Whisper upstream, what its encoder sees of a clip: `"clip"`, the clip at its own
            length, or `"window"`, windows of 30 s filled up with silence, as transformers runs it. `"clip"` for a new model;
            `"window"` for a saved one that does not say it. Other upstreams see the clip and have no such field.
        layer_scaling (`str`, *optional*, defaults to `"none"`):
            Of the pooled layers before anything else: `"none"`, as in the paper, or `"standard"`, every dimension of every
            layer minus its mean over the training clips, divided by its standard deviation over them.
        layer_projection_size (`int` or `None`, *optional*, defaults to 512): Width of FC1; `None` leaves it out.
        pooling_type (`str`, *optional*, defaults to `"learned_norm"`):
            Pooling across the selected layers: one of the paper's ten, or `"concat"`, which puts them side by side before FC1.
        pooling_kwargs (`dict`, *optional*): Arguments of that pooling, for example `{"p": 16.0, "learnable": False}`.
        embedding_size (`int`, *optional*, defaults to 2000): Width of FC2, the size E of the embedding.
        layer_dropout (`float`, *optional*, defaults to 0.4): Dropout between layer pooling and FC2.
        embedding_dropout (`float`, *optional*, defaults to 0.6): Dropout between the embedding and the heads.
        tasks (`dict`, *optional*): Task name -> `{"kind": "classification", "labels": [...], "loss_weight": 1.0}`, or for a
            number `{"kind": "regression", "loss": "ccc" or "mae", "mean": ..., "std": ..., "loss_weight": 1.0}`, with mean and
            standard deviation of the training clips: the head gives (number - mean) / std. With `"loss": "aam_softmax"` the
            head of classes compares directions, and training asks for an additive angular margin (Deng et al. 2019):
            `"scale"` 30, `"margin"` 0.2 in radians.
        id2label, label2id, num_labels (*optional*): transformers' names for the labels of one task, called "label"; only
            without `tasks`. Read, they are those of the model's task; of several tasks, all labels as "task/label".
        freeze_upstream (`bool`, *optional*, defaults to `True`): Keep the upstream fixed and in eval mode.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate in Hz that the upstream expects.
        do_normalize (`bool`, *optional*, defaults to `True`): Zero mean and unit variance per clip before the upstream.
        window_s (`float`, *optional*, defaults to 60): Longest stretch in seconds that goes through the upstream in one piece
            at inference; a longer clip goes in overlapping windows, and its layers are pooled over all its frames. Whisper
            has positions for 30 s, so that its windows are never longer.
        max_duration_s (`float`, *optional*, defaults to 7200): Longest clip that is accepted, in seconds.
        precision (`str`, *optional*, defaults to `"float32"`): Of the upstream's matrix products at inference: `"float32"`
            (exact), `"bfloat16"` or `"int8"`.

    Raises:
        ValueError: a field is out of range; the message names the field, its value and what is allowed.
    """

    model_type = "wavcse"
    sub_configs = {"upstream_config": AutoConfig}  # noqa: RUF012 (transformers reads this class attribute)
    # For transformers' Trainer, whose metrics see logits only.
    keys_to_ignore_at_inference = ["embeddings", "pooled_layers", "hidden_states", "attentions"]  # noqa: RUF012
    # Of a subclass without an __init__, whose fields transformers sets from a saved file that may lack them.
    tasks, context, layer_scaling = None, None, "none"

    def __init__(
        self,
        upstream_config: PretrainedConfig | Mapping[str, Any] | None = None,
        selected_layers: Sequence[int] = PAPER_LAYERS,
        temporal_pooling: str = "mean",
        context: str | None = None,
        layer_scaling: str = "none",
        layer_projection_size: int | None = 512,
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
        self.upstream_config = _as_config(upstream_config)
        self.selected_layers = selected_layers
        self.temporal_pooling = temporal_pooling
        self.context = context
        self.layer_scaling = layer_scaling
        self.layer_projection_size = layer_projection_size
        self.pooling_type = pooling_type
        self.pooling_kwargs = pooling_kwargs
        self.embedding_size = embedding_size
        self.layer_dropout = layer_dropout
        self.embedding_dropout = embedding_dropout
        self.tasks = tasks
        self.freeze_upstream = freeze_upstream
        self.sampling_rate = sampling_rate
        self.do_normalize = do_normalize
        self.window_s = window_s
        self.max_duration_s = max_duration_s
        self.precision = precision
        kwargs.pop("hidden_size", None)  # derived, see the property
        labels = wanted_labels({name: kwargs.pop(name) for name in LABEL_FIELDS if name in kwargs})
        self.tasks = {}  # while transformers assigns its defaults of `id2label`
        build_valid("a field that every model of transformers has", super().__init__, **kwargs)
        self.tasks = tasks_with_labels({}, labels) if labels and not tasks else tasks
        self.check()

    def check(self) -> None:
        """Validate every field as it is now, and fill in what is left open: defaults of poolings and tasks, number of blocks.

        Called for a new configuration, for one with overrides and for one that a model is built or saved with, so that a
        field which was assigned later is held to the same rules.

        Raises:
            ValueError: as the class says.
        """
        self.selected_layers = _validated_layers(self.selected_layers)
        self.upstream_config = _truncated(_validated_upstream(self.upstream_config), max(self.selected_layers))
        self.temporal_pooling = _one_of("temporal_pooling", self.temporal_pooling, tuple(TEMPORAL_POOLINGS))
        self.context = _validated_context(self.context, self.upstream_config)
        self.layer_scaling = _one_of("layer_scaling", self.layer_scaling, LAYER_SCALINGS)
        self.layer_projection_size = _optional_size("layer_projection_size", self.layer_projection_size)
        self.pooling_type = _one_of("pooling_type", self.pooling_type, tuple(LAYER_POOLINGS))
        self.pooling_kwargs = _validated_pooling_kwargs(self.pooling_type, self.pooling_kwargs)
        self.embedding_size = _size("embedding_size", self.embedding_size)
        self.layer_dropout = _dropout("layer_dropout", self.layer_dropout)
        self.embedding_dropout = _dropout("embedding_dropout", self.embedding_dropout)
        self.tasks = _validated_tasks(self.tasks)
        self.freeze_upstream = _bool("freeze_upstream", self.freeze_upstream)
        self.sampling_rate = _size("sampling_rate", self.sampling_rate)
        self.do_normalize = _bool("do_normalize", self.do_normalize)
        self.window_s = _positive_seconds("window_s", self.window_s)
        self.max_duration_s = _positive_seconds("max_duration_s", self.max_duration_s)
        self.precision = _one_of("precision", self.precision, PRECISIONS)
        for name, check in INHERITED.items():
            check(name, getattr(self, name, None))
        parameters = _count_parameters(self)
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"A model of these sizes would have {parameters:.2g} parameters, more than {MAX_PARAMETERS:.0e}: "
                "upstream_config, layer_projection_size, embedding_size or tasks hold a wrong number."
            )

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs):
        """As in every transformers configuration; overrides are put in before the fields are validated, not after.

        Args:
            config_dict: fields by name, as in `config.json`.
            kwargs: overrides. Of a mapping for `upstream_config` the fields that it names are replaced, `tasks` as a whole.
                `id2label`, `label2id` and `num_labels` keep a single task that has these labels, and else ask for one task
                in the place of all others (`tasks_with_labels`).
        """
        fields = dict(_mapping("the configuration", config_dict))
        labels = wanted_labels({name: kwargs.pop(name) for name in LABEL_FIELDS if name in kwargs})
        if labels:
            if kwargs.get("tasks"):
                raise ValueError("Give `tasks`, or `num_labels`, `id2label` and `label2id`, not both.")
            kwargs["tasks"] = tasks_with_labels(fields.get("tasks"), labels)
        if kwargs.get("pooling_type", fields.get("pooling_type")) != fields.get("pooling_type"):
            fields["pooling_kwargs"] = None  # those of the other pooling
        for name in OWN_FIELDS & kwargs.keys():
            value = kwargs.pop(name)
            if name == "upstream_config" and isinstance(value, Mapping) and isinstance(fields.get(name), Mapping):
                value = {**fields[name], **value}
            fields[name] = value
        upstream = fields.get("upstream_config")
        model_type = upstream.get("model_type") if isinstance(upstream, Mapping) else getattr(upstream, "model_type", None)
        if model_type == "whisper" and fields.get("context") is None:
            fields["context"] = "window"  # saved before there was a choice
        derived = [
            name for name in kwargs if isinstance(getattr(cls, name, None), property) and not hasattr(PretrainedConfig, name)
        ]
        if derived:
            raise ValueError(f"{derived[0]} follows from other fields of the configuration and cannot be set.")
        return super().from_dict(fields, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in every transformers configuration; a `context` that the upstream does not have is left out.

        Of a single task, `id2label` and `label2id` are there too, for programs that look for them.
        """
        fields = super().to_dict()
        if len(self.tasks or {}) == 1:
            fields |= {"id2label": self.id2label, "label2id": self.label2id}
        if fields.get("context") is None:
            fields.pop("context", None)
        return fields

    def save_pretrained(self, *args, **kwargs) -> None:
        """As in every transformers configuration; an invalid one is refused."""
        self.check()
        super().save_pretrained(*args, **kwargs)

    @property
    def id2label(self) -> dict[int, str]:
        """Labels of the task by index; of several tasks, of all their heads one after the other, as "task/label"."""
        tasks = self.tasks or {}
        own = [(name, label) for name, task in tasks.items() for label in task.get("labels", [None])]
        names = [name if label is None else label if len(tasks) == 1 else f"{name}/{label}" for name, label in own]
        return dict(enumerate(names))

    @id2label.setter
    def id2label(self, value: Mapping[int | str, str] | None) -> None:
        self._set_labels(wanted_labels({"id2label": value}))

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse of `id2label`."""
        return {label: index for index, label in self.id2label.items()}

    @label2id.setter
    def label2id(self, value: Mapping[str, int | str] | None) -> None:
        self._set_labels(wanted_labels({"label2id": value}))

    @property
    def num_labels(self) -> int:
        """Number of labels of the task, or of all tasks together."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int | None) -> None:
        self._set_labels(wanted_labels({"num_labels": value}))

    def _set_labels(self, labels: list[str] | int | None) -> None:
        """What transformers' users assign: other names for as many labels of the one task, or one new task."""
        if not labels or labels == len(self.id2label) or labels == list(self.id2label.values()):
            return
        tasks = self.tasks or {}
        if len(tasks) == 1 and isinstance(labels, list) and len(labels) == self.num_labels > 1:
            [(name, task)] = tasks.items()
            self.tasks = _validated_tasks({name: {**task, "labels": labels}})
        else:
            self.tasks = tasks_with_labels(tasks, labels)

    @property
    def hidden_size(self) -> int:
        """Size E of the embedding, under the name that other libraries look for."""
        return self.embedding_size

    @property
    def pooled_size(self) -> int:
        """Size of a layer that is pooled over time: the upstream's width, twice that for `"mean_std"`."""
        return TEMPORAL_POOLINGS[self.temporal_pooling] * self.upstream_config.hidden_size

    @property
    def projected_size(self) -> int:
        """What FC2 takes: the width of FC1, and without it of what is pooled across layers."""
        return self.layer_projection_size or self.stacked_size

    @property
    def stacked_size(self) -> int:
        """Of a pooled layer; for `"concat"` of all selected layers side by side."""
        return self.pooled_size * (len(self.selected_layers) if self.pooling_type == "concat" else 1)

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
        """`window_s` in frames of the upstream."""
        if is_whisper(self.upstream_config):
            most = self.upstream_config.max_source_positions
            return most if self.context == "window" else min(most, self._frames_in(WHISPER_SAMPLES_PER_FRAME))
        return self._frames_in(frame_geometry(self.upstream_config)[1])

    def _frames_in(self, hop_samples: int) -> int:
        return max(1, int(self.window_s * self.sampling_rate / hop_samples))

    @property
    def label_tasks(self) -> dict[str, dict[str, Any]]:
        """Tasks whose outputs are labels or numbers, for the audio-classification pipeline."""
        return self.tasks

    @property
    def usual_task(self) -> str | None:
        """The one of them whose labels are given where none is asked for; `None` = all."""
        return None

    @property
    def upstream_options(self) -> dict[str, Any]:
        """How layers are made and pooled over time, as arguments of `UpstreamRunner`."""
        names = ("window_frames", "temporal_pooling", "context")
        return {name: getattr(self, name) for name in names}

    def frame_times_ms(self, num_frames: int) -> np.ndarray:
        """Centres of a clip's frames in ms, `[T]`: 12.5, 32.5, ... for the usual stem at 16 kHz; 0, 20, ... for Whisper."""
        is_whisper_upstream = is_whisper(self.upstream_config)
        field, hop = (0, WHISPER_SAMPLES_PER_FRAME) if is_whisper_upstream else frame_geometry(self.upstream_config)
        return (field / 2 + hop * np.arange(num_frames)) * 1000 / self.sampling_rate

    @property
    def min_samples(self) -> int:
        """Receptive field of the convolutional stem: the shortest clip that yields one frame, in samples."""
        return WHISPER_MIN_SAMPLES if is_whisper(self.upstream_config) else frame_geometry(self.upstream_config)[0]


def is_whisper(upstream_config: PretrainedConfig) -> bool:
    """Whether the upstream is a Whisper encoder."""
    return upstream_config.model_type == "whisper"


def stem_of(upstream_config: PretrainedConfig) -> list[tuple[int, int]]:
    """(kernel, stride) of every step from samples to the frames that the blocks see; not for Whisper."""
    if upstream_config.model_type == "moonshine":
        return list(MOONSHINE_STEM)
    if upstream_config.model_type == "wav2vec2-bert":
        return list(FILTERBANK_STEM)
    convolutions = [*zip(upstream_config.conv_kernel, upstream_config.conv_stride)]
    if upstream_config.model_type not in SQUEEZING_FAMILIES:  # a stray field of that name changes nothing in their modules
        return convolutions
    return [*convolutions, (upstream_config.squeeze_factor, upstream_config.squeeze_factor)]


def frame_geometry(upstream_config: PretrainedConfig) -> tuple[int, int]:
    """Receptive field of a frame of the convolutional stem, and distance to the next frame, both in samples."""
    field = hop = 1
    for kernel, stride in reversed(stem_of(upstream_config)):
        field, hop = (field - 1) * stride + kernel, hop * stride
    return field, hop


def as_encoder(upstream_config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with its encoder's sizes under the general names, which Moonshine has for its decoder's."""
    if upstream_config.model_type == "moonshine":
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            setattr(upstream_config, name, getattr(upstream_config, f"encoder_{name}"))
    return upstream_config


def count_frames(num_samples: int | Tensor, upstream_config: PretrainedConfig) -> int | Tensor:
    """Frames that the convolutional stem makes of `num_samples`: 400 samples give 1, every further 320 one more.

    For Whisper, the frames that hold audio: one for every started 20 ms. For SEW and Wav2Vec2-BERT, the frames that the
    blocks see: of two steps each, the last one only if it is whole.
    """
    if is_whisper(upstream_config):
        return (num_samples + WHISPER_SAMPLES_PER_FRAME - 1) // WHISPER_SAMPLES_PER_FRAME
    field, hop = frame_geometry(upstream_config)
    return (num_samples - field) // hop + 1


def checked_task_name(name: Any) -> str:
    """The name as it is. It becomes a key of `nn.ModuleDict`, part of file names and a column, so not every name will do.

    Raises:
        ValueError: it is not text, is empty or too long, holds a dot, a slash, a control character or a blank at an edge, or
            is an attribute of `nn.ModuleDict`.
    """
    if not isinstance(name, str):
        raise ValueError(f"tasks: the name {name!r} is not text; put it in quotes, or give the task another name.")
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


def wanted_labels(given: Mapping[str, Any]) -> list[str] | int | None:
    """The labels in their order, or how many there are, or `None`, from values of `LABEL_FIELDS` (indices may be texts).

    Raises:
        ValueError: the values are no such mappings, leave out an index, or contradict each other.
    """
    named = []
    for field in ("id2label", "label2id"):
        value = _mapping(field, given.get(field))
        pairs = value.items() if field == "id2label" else [(index, label) for label, index in value.items()]
        try:
            by_index = {int(index): str(label) for index, label in pairs}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{field} is {value!r}; it must pair labels with whole numbers from 0 on.") from error
        if sorted(by_index) != list(range(len(value))):
            raise ValueError(
                f"{field} has the indices {sorted(by_index)}; every one from 0 to {len(value) - 1} is needed once."
            )
        if by_index:
            named.append([by_index[index] for index in range(len(by_index))])
    count = given.get("num_labels")
    if count is not None:
        _integer("num_labels", count, 1, MAX_SIZE)
    if any(names != named[0] or count not in (None, len(names)) for names in named):
        raise ValueError(f"num_labels, id2label and label2id contradict each other: {dict(given)}.")
    return named[0] if named else count


def tasks_with_labels(tasks: Any, labels: list[str] | int) -> dict[str, dict[str, Any]]:
    """The tasks themselves if there is one and it has these labels (or so many); else one new task of that name, `NEW_TASK`.

    Args:
        tasks: as of `WavCSEConfig`.
        labels: the names in their order, or their number; then they are called LABEL_0, LABEL_1, ... as by transformers. One
            label alone asks for a number.
    """
    tasks = _validated_tasks(tasks)
    own = [task.get("labels", [name]) for name, task in tasks.items()]
    if len(own) == 1 and (own[0] == labels or len(own[0]) == labels):
        return tasks
    if labels == 1 or (isinstance(labels, list) and len(labels) == 1):
        return _validated_tasks({NEW_TASK: {"kind": "regression", "loss": "mae"}})  # as transformers takes one label
    names = [f"LABEL_{index}" for index in range(labels)] if isinstance(labels, int) else labels
    return _validated_tasks({NEW_TASK: {"labels": names}})


OWN_FIELDS = set(inspect.signature(WavCSEConfig.__init__).parameters) - {"self", "kwargs"}


def check_trained_fields(wanted: WavCSEConfig, trained: WavCSEConfig, where: str) -> None:
    """Refuse a configuration that would give trained weights another meaning.

    Args:
        wanted: what the weights are to be loaded with.
        trained: what they were saved with.
        where: their folder or Hub id, for the message.

    Raises:
        ValueError: a field of `TRAINED_FIELDS` differs; dropouts, tasks, precision and the like may.
    """
    fields = [(field, wanted, trained, field) for field in TRAINED_FIELDS if field != "upstream_config"]
    for name in ("model_type", *ARCHITECTURE):
        fields.append((name, wanted.upstream_config, trained.upstream_config, "upstream_config"))
    for name, new, old, field in fields:
        value, expected = (_plain(getattr(config, name, None)) for config in (new, old))
        if value != expected:
            shown = name if field == name else f"{field}.{name}"
            raise ValueError(
                f"{shown} is {value!r}, but the weights of {where} were trained with {expected!r}: {TRAINED_FIELDS[field]}. "
                "Leave it as it is, or make a new model with `from_upstream` and train that."
            )


def num_outputs(task: Mapping[str, Any]) -> int:
    """Outputs of a task's head: one per class, or one number."""
    return len(task["labels"]) if task["kind"] == "classification" else 1


def changed_heads(wanted: WavCSEConfig, trained: WavCSEConfig) -> list[str]:
    """Tasks of both configurations whose labels, their order or scale differ: the trained head would say something else."""
    names = ("kind", "labels", "mean", "std", "scale")  # a scale has `aam_softmax` alone; its margin serves training
    return [
        name
        for name, task in wanted.tasks.items()
        if name in trained.tasks and any(task.get(one) != trained.tasks[name].get(one) for one in names)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_config(upstream_config: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig:
    if upstream_config is None:
        upstream_config = WAVLM_LARGE
    if isinstance(upstream_config, PretrainedConfig):
        return copy.deepcopy(upstream_config)
    fields = dict(_mapping("upstream_config", upstream_config))
    model_type = _one_of("upstream_config.model_type", fields.pop("model_type", None), UPSTREAM_FAMILIES)
    return build_valid("upstream_config", AutoConfig.for_model, model_type, **fields)


def build_valid(what: str, make: Callable, *args, **fields) -> Any:
    """What transformers makes of fields; whatever it raises on a wrong one becomes a ValueError that names the field."""
    try:
        return make(*args, **fields)
    except Exception as error:
        raise ValueError(f"{what} is not valid: {' '.join(str(error).split())}") from error


def _truncated(upstream_config: PretrainedConfig, num_blocks: int) -> PretrainedConfig:
    available = upstream_config.num_hidden_layers
    if num_blocks > available:
        raise ValueError(
            f"selected_layers asks for layer {num_blocks}, but the upstream ({upstream_config.model_type}) has layers 0 to "
            f"{available}. Choose layers in that range, or start again from the full upstream with `from_upstream`."
        )
    upstream_config.num_hidden_layers = num_blocks
    own_name = {"whisper": "encoder_layers", "moonshine": "encoder_num_hidden_layers"}.get(upstream_config.model_type)
    if own_name:
        setattr(upstream_config, own_name, num_blocks)  # the same number under the encoder's own name
    return upstream_config


def _validated_upstream(upstream_config: Any) -> PretrainedConfig:
    if not isinstance(upstream_config, PretrainedConfig):
        upstream_config = _as_config(upstream_config)
    family = _one_of("upstream_config.model_type", getattr(upstream_config, "model_type", None), UPSTREAM_FAMILIES)
    if getattr(upstream_config, "add_adapter", False):
        raise ValueError("upstream_config.add_adapter is True; wavCSE reads the encoder's blocks, so it must be False.")
    upstream_config = as_encoder(upstream_config)
    for name, check in {**ARCHITECTURE, **TRAINING_ONLY}.items():
        if hasattr(upstream_config, name):
            check(f"upstream_config.{name}", getattr(upstream_config, name))
    for name, check in INHERITED.items():
        check(f"upstream_config.{name}", getattr(upstream_config, name, None))
    _multiple_of(upstream_config, "hidden_size", "num_attention_heads")
    if family == "moonshine" and upstream_config.encoder_num_key_value_heads != upstream_config.encoder_num_attention_heads:
        raise ValueError(
            f"upstream_config.encoder_num_key_value_heads is {upstream_config.encoder_num_key_value_heads}; as in every "
            f"published Moonshine it must be encoder_num_attention_heads ({upstream_config.encoder_num_attention_heads})."
        )
    if family == "wav2vec2-bert":
        for name, rest in (("feature_projection_input_dim", 0), ("conv_depthwise_kernel_size", 1)):
            if getattr(upstream_config, name) % 2 != rest:
                kind = "odd" if rest else "even: two mel frames make one frame"
                raise ValueError(f"upstream_config.{name} is {getattr(upstream_config, name)}; it must be {kind}.")
    if family not in OTHER_STEMS:
        _multiple_of(upstream_config, "hidden_size", "num_conv_pos_embedding_groups")
        if len({len(getattr(upstream_config, name)) for name in STEM}) > 1:
            lengths = ", ".join(f"{name} {len(getattr(upstream_config, name))}" for name in STEM)
            raise ValueError(f"upstream_config has lists of unequal length ({lengths}): one entry per convolution is needed.")
    if family == "wavlm" and upstream_config.max_bucket_distance <= upstream_config.num_buckets // 4:
        raise ValueError(
            f"upstream_config.max_bucket_distance is {upstream_config.max_bucket_distance!r}; it must be above a quarter of "
            f"num_buckets ({upstream_config.num_buckets})."
        )
    return upstream_config


def _multiple_of(upstream_config: PretrainedConfig, field: str, divisor: str) -> None:
    value, parts = getattr(upstream_config, field), getattr(upstream_config, divisor)
    if value % parts:
        raise ValueError(f"upstream_config.{field} is {value}; it must be a multiple of {divisor} ({parts}).")


def _count_parameters(config: WavCSEConfig) -> int:
    """Of the large matrices of a model; close enough to tell a real size from a damaged one."""
    upstream = config.upstream_config
    width = upstream.hidden_size
    inner = upstream.encoder_ffn_dim if is_whisper(upstream) else upstream.intermediate_size
    of_block = 4 * width * width + 2 * width * inner
    if upstream.model_type == "wav2vec2-bert":  # a second feed-forward part and a convolution
        of_block += 2 * width * inner + width * (3 * width + upstream.conv_depthwise_kernel_size)
    size = config.projected_size
    first = 0 if config.layer_projection_size is None else size * config.stacked_size
    pooling = config.pooled_size**2 if config.layer_projection_size is None else size**2  # of self-attention
    classes = sum(map(num_outputs, config.tasks.values()))
    downstream = first + pooling + size * config.embedding_size + config.embedding_size * classes
    return _count_stem(upstream) + upstream.num_hidden_layers * of_block + downstream


def _count_stem(upstream: PretrainedConfig) -> int:
    width = upstream.hidden_size
    if is_whisper(upstream):
        return 3 * width * (upstream.num_mel_bins + width) + upstream.max_source_positions * width
    if upstream.model_type == "wav2vec2-bert":
        return width * upstream.feature_projection_input_dim
    is_moonshine = upstream.model_type == "moonshine"
    channels = [1, width, 2 * width, width] if is_moonshine else [1, *upstream.conv_dim, width]
    kernels = [*(kernel for kernel, _ in MOONSHINE_STEM)] if is_moonshine else [*upstream.conv_kernel, 1]
    stem = sum(before * after * kernel for before, after, kernel in zip(channels, channels[1:], kernels))
    if is_moonshine:
        return stem
    reach = upstream.num_conv_pos_embeddings * getattr(upstream, "conv_pos_kernel_size", 1)  # of data2vec, so many layers
    stem += width * width // upstream.num_conv_pos_embedding_groups * reach
    return stem + width * 2 * max(getattr(upstream, "max_position_embeddings", 0), getattr(upstream, "position_buckets", 0))


def _validated_context(context: Any, upstream_config: PretrainedConfig) -> str | None:
    if is_whisper(upstream_config):
        return CONTEXTS[0] if context is None else _one_of("context", context, CONTEXTS)
    if context is not None:
        raise ValueError(
            f"context is {context!r}; it is a choice of Whisper upstreams alone. A {upstream_config.model_type} upstream sees "
            "every clip at its own length: leave it out."
        )
    return None


def _validated_layers(selected_layers: Any) -> list[int]:
    layers = list(selected_layers) if isinstance(selected_layers, Sequence) and not isinstance(selected_layers, str) else None
    if not layers or not all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers):
        raise ValueError(f"selected_layers is {selected_layers!r}; it must be a non-empty list of integers from 0 upwards.")
    if len(set(layers)) != len(layers):
        raise ValueError(f"selected_layers is {layers!r}; every layer may be named once only.")
    return layers


def _validated_pooling_kwargs(pooling_type: str, kwargs: Any) -> dict[str, Any]:
    defaults = LAYER_POOLINGS[pooling_type]
    kwargs = _mapping("pooling_kwargs", kwargs)
    unknown = sorted(map(str, kwargs.keys() - defaults.keys()))
    if unknown:
        allowed = ", ".join(defaults) or "none"
        raise ValueError(f"pooling_kwargs {unknown} unknown for pooling_type={pooling_type!r}; allowed: {allowed}.")
    merged = {**defaults, **kwargs}
    for name, value in merged.items():
        field = f"pooling_kwargs[{name!r}]"
        _bool(field, value) if name == "learnable" else _number(field, value, -1e6, 1e6)
    if "p" in merged and not 1.0 <= merged["p"] <= 64.0:
        raise ValueError(f"pooling_kwargs['p'] is {merged['p']!r}; the norm's exponent must lie in [1, 64].")
    if "max_weight" in merged and not 0.0 <= merged["max_weight"] <= 1.0:
        raise ValueError(f"pooling_kwargs['max_weight'] is {merged['max_weight']!r}; it must lie in [0, 1].")
    if merged.get("learnable") and merged.get("r", 1.0) <= 0:
        raise ValueError(f"pooling_kwargs['r'] is {merged['r']!r}; a learnable r must start above 0.")
    return merged


def _validated_tasks(tasks: Any) -> dict[str, dict[str, Any]]:
    return {checked_task_name(name): _validated_task(name, task) for name, task in _mapping("tasks", tasks).items()}


def _validated_task(name: Any, task: Any) -> dict[str, Any]:
    field = f"tasks[{name!r}]"
    task = _mapping(field, task)
    kind = _one_of(f"{field}['kind']", task.get("kind", "classification"), TASK_KINDS)
    unknown = sorted(map(str, task.keys() - set(TASK_FIELDS[kind])))
    if unknown:
        raise ValueError(f"{field}[{unknown[0]!r}] is unknown; a task has {', '.join(TASK_FIELDS[kind])}.")
    loss_weight = float(_number(f"{field}['loss_weight']", task.get("loss_weight", 1.0), 0.0, 1e6))
    if kind == "regression":
        return {**_validated_numbers(field, task), "loss_weight": loss_weight}
    labels = task.get("labels", ())
    is_list = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not is_list or not all(isinstance(label, str | int | float) and not isinstance(label, bool) for label in labels):
        raise ValueError(f"{field}['labels'] is {labels!r}; it must be a list of names.")
    labels = [str(label) for label in labels]
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"{field}['labels'] is {labels!r}; at least two different labels are needed.")
    return {"kind": kind, "labels": labels, "loss_weight": loss_weight, **validated_loss(field, task)}


def validated_loss(field: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """What the loss of a task with classes is, with its defaults; nothing for the plain cross-entropy, as in saved models.

    Raises:
        ValueError: it is unknown, out of range, or has fields of the other one; the message begins with `field`.
    """
    loss = _one_of(f"{field}['loss']", task.get("loss", CLASS_LOSSES[0]), CLASS_LOSSES)
    given = {name: task[name] for name in AAM_SOFTMAX if name in task}
    if loss == CLASS_LOSSES[0]:
        if given:
            raise ValueError(
                f"{field}[{next(iter(given))!r}] is given, but it belongs to loss aam_softmax, and loss is {loss}."
            )
        return {}
    values = {**AAM_SOFTMAX, **given}
    scale = float(_number(f"{field}['scale']", values["scale"], 1.0, 1e3))
    return {"loss": loss, "scale": scale, "margin": float(_number(f"{field}['margin']", values["margin"], 0.0, 1.5))}


def _validated_numbers(field: str, task: Mapping[str, Any]) -> dict[str, Any]:
    loss = _one_of(f"{field}['loss']", task.get("loss", NUMBER_LOSSES[0]), NUMBER_LOSSES)
    mean = float(_number(f"{field}['mean']", task.get("mean", 0.0), -1e30, 1e30))
    std = float(_number(f"{field}['std']", task.get("std", 1.0), 1e-30, 1e30))
    return {"kind": "regression", "loss": loss, "mean": mean, "std": std}


def _mapping(field: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{field} is {value!r}; it must be a mapping.")
    return value or {}


def _one_of(field: str, value: Any, allowed: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
    return value


def _bool(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field} is {value!r}; it must be true or false.")
    return value


def _integer(field: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} is {value!r}; it must be an integer from {least} to {most}.")
    return value


def _number(field: str, value: Any, least: float, most: float) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field} is {value!r}; it must be a number from {least:g} to {most:g}.")
    return value


def _positive_seconds(field: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{field} is {value!r}; it must be a positive number of seconds.")
    return float(value)


def _dropout(field: str, value: Any) -> float:
    if _fraction(field, value) == 1.0:
        raise ValueError(f"{field} is {value!r}; a dropout probability must lie in [0, 1).")
    return float(value)


def _optional_size(field: str, value: Any) -> int | None:
    return None if value is None else _size(field, value)


def _sizes(field: str, value: Any) -> Sequence[int]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_CONVOLUTIONS:
        raise ValueError(f"{field} is {value!r}; it must be a list of 1 to {MAX_CONVOLUTIONS} integers.")
    for entry in value:
        _size(field, entry)
    return value


_size = partial(_integer, least=1, most=MAX_SIZE)
_count = partial(_integer, least=0, most=MAX_SIZE)
_fraction = partial(_number, least=0.0, most=1.0)
_activation = partial(_one_of, allowed=tuple(ACT2FN))


def _position_type(field: str, value: Any) -> str | None:
    return value if value is None else _one_of(field, value, ("rotary", "relative", "relative_key"))


def _names(field: str, value: Any) -> Any:
    if not isinstance(value or [], list | tuple) or not all(isinstance(name, str) for name in value or []):
        raise ValueError(f"{field} is {value!r}; it must be a list of names.")
    return value


def _switch(field: str, value: Any) -> bool | None:
    return value if value is None else _bool(field, value)


def _dtype(field: str, value: Any) -> Any:
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if value not in (None, "auto") and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{field} is {value!r}; it must be the name of a floating-point type, such as 'float32'.")
    return value


STEM = ("conv_dim", "conv_kernel", "conv_stride")
# Fields that transformers reads from every model's configuration and does not check.
INHERITED: dict[str, Callable[[str, Any], Any]] = {
    "architectures": _names,
    "dtype": _dtype,
    **dict.fromkeys(("auto_map", "custom_pipelines"), _mapping),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict"), _switch),
}
# Fields of an upstream, of whichever family, that its blocks and stem are made of.
ARCHITECTURE: dict[str, Callable[[str, Any], Any]] = {
    "num_hidden_layers": partial(_integer, least=0, most=MAX_BLOCKS),
    "hidden_size": _size,
    "num_attention_heads": _size,
    "intermediate_size": _size,
    "hidden_act": _activation,
    "layer_norm_eps": _fraction,
    "do_stable_layer_norm": _bool,
    "feat_extract_norm": partial(_one_of, allowed=("group", "layer")),
    "feat_extract_activation": _activation,
    "feat_proj_layer_norm": _bool,
    **dict.fromkeys(STEM, _sizes),
    "conv_bias": _bool,
    "conv_pos_batch_norm": _bool,
    "num_conv_pos_embeddings": _size,
    "num_conv_pos_embedding_groups": _size,
    "conv_pos_kernel_size": _size,
    "num_buckets": partial(_integer, least=4, most=MAX_SIZE),  # half for each way, half of those for exact distances
    "max_bucket_distance": _size,
    "adapter_attn_dim": _optional_size,
    # Whisper's
    "encoder_ffn_dim": _size,
    "num_mel_bins": _size,
    "max_source_positions": _size,
    "activation_function": _activation,
    "scale_embedding": _bool,
    # SEW's and SEW-D's
    "squeeze_factor": partial(_integer, least=1, most=MAX_CONVOLUTIONS),
    "feature_layer_norm_eps": _fraction,
    "max_position_embeddings": _size,
    "position_buckets": partial(_integer, least=2, most=MAX_SIZE),
    "share_att_key": _bool,
    "relative_attention": _bool,
    "pos_att_type": _names,
    "norm_rel_ebd": partial(_one_of, allowed=("none", "layer_norm")),
    # Wav2Vec2-BERT's
    "feature_projection_input_dim": partial(_integer, least=2, most=MAX_SIZE),
    "position_embeddings_type": _position_type,
    "rotary_embedding_base": _size,
    "left_max_position_embeddings": _size,
    "right_max_position_embeddings": _count,
    "conv_depthwise_kernel_size": _size,
    # Moonshine's
    "encoder_hidden_act": _activation,
    "encoder_num_attention_heads": _size,
    "encoder_num_key_value_heads": _size,
    "attention_bias": _bool,
    "pad_head_dim_to_multiple_of": _optional_size,
    "rope_parameters": _mapping,
}
# Fields that act in training alone, so that they may differ from what weights were trained with.
TRAINING_ONLY: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "dropout"), _fraction),
    **dict.fromkeys(("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob"), _fraction),
    **dict.fromkeys(("mask_time_length", "mask_feature_length"), _size),
    **dict.fromkeys(("mask_time_min_masks", "mask_feature_min_masks"), _count),
    "apply_spec_augment": _bool,
    **dict.fromkeys(("initializer_range", "init_std"), _fraction),
}
