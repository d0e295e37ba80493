"""`WavCSEModel` (speech -> one embedding per clip) and `WavCSEForMultiTask` (embedding -> logits per task).

Shapes: `B` clips, `K` selected layers, `D` upstream width, `E` embedding size, `C` classes of a task.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configuration_wavcse import WavCSEConfig  # isort: skip  (first, because it says which transformers is needed)
import numpy as np
import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import AutoFeatureExtractor
from transformers import initialization as init
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import FEATURE_EXTRACTOR_NAME, ModelOutput, cached_file, logging

from .audio_wavcse import as_clips
from .configuration_wavcse import LABEL_FIELDS, OWN_FIELDS, changed_heads, check_trained_fields, num_outputs
from .encoding_wavcse import WavCSEFrames, WavCSEWindows, WindowCutter, batches_in_order, read_clips
from .feature_extraction_wavcse import WavCSEFeatureExtractor
from .gradients_wavcse import GradientWatch
from .hub_repository_wavcse import class_of_repository, complete_repository, upload_repository, write_card
from .labels_wavcse import chosen_tasks, predictions
from .packed_encoder_wavcse import modules_in
from .pooling_wavcse import LayerPooling, build_layer_pooling
from .upstream_wavcse import (
    UpstreamOutput,
    UpstreamRunner,
    align_weights,
    build_upstream,
    check_precision,
    load_upstream,
    read_config,
    reduced_weight_norm,
    unread_part,
)

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .coattention_wavcse import Fusion  # noqa: F401
    from .ecapa_wavcse import EcapaTdnn  # noqa: F401
    from .endpoint_wavcse import EndpointHandler  # noqa: F401
    from .finetuned_wavcse import FinetunedWavCSE  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401

logger = logging.get_logger(__name__)

HUB_KWARGS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
UPLOAD_KWARGS = (  # of `save_pretrained(push_to_hub=True)`, for `push_to_hub`
    *("repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description"),
    *("max_shard_size", "tags"),
)
AUDIO_SETTINGS = ("sampling_rate", "do_normalize", "context", "window_s", "max_duration_s")
MAY_BE_MISSING = r"^heads\.|(^|\.)masked_spec_embed$"  # in weights that are loaded: new heads; a vector for training alone
NOT_NORMALISED = ("wav2vec2-bert", "moonshine")  # families that take waveforms as they are, where no preprocessor says it
QUANTIZATIONS = ("int8", "uint8", "binary", "ubinary")  # of embeddings that are returned
IGNORED_LABEL = -100  # of a clip that has no label for a task, as in torch.nn.functional.cross_entropy


@dataclass
class WavCSEModelOutput(ModelOutput):
    """Output of `WavCSEModel`.

    Args:
        embeddings: `[B, E]`, what users store and search.
        pooled_layers: `[B, K, D]`, time mean of every selected layer (what the feature cache holds), or with
            `temporal_pooling="mean_std"` `[B, K, 2 D]`, its mean and its standard deviation.
        last_hidden_state: `[B, T, D]`, frames of the last block; with `output_hidden_states=True` only.
        hidden_states: layers 0..N, each `[B, T, D]`, zeros in the padding; with `output_hidden_states=True` only.
        attentions: one `[B, heads, T, T]` per block; with `output_attentions=True` only.
    """

    embeddings: Tensor | None = None
    pooled_layers: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class WavCSEMultiTaskOutput(ModelOutput):
    """Output of `WavCSEForMultiTask`: `logits` `[B, C]` of a single task, of several a mapping task -> `[B, C]`.

    `loss` is there where labels were given; the other fields are those of `WavCSEModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | dict[str, Tensor] | None = None
    embeddings: Tensor | None = None
    pooled_layers: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class WavCSEDownstream(nn.Module):
    """Pooled layers `[B, K, D]` -> embeddings `[B, E]`: FC1, layer pooling, dropout, FC2; no activation (Figure 1).

    A linear pooling comes before FC1 instead, which is the same up to rounding and K times less work; `concat` comes before it
    because FC1 takes the layers side by side. Without a `layer_projection_size` there is no FC1.

    With `layer_scaling="standard"` layers are scaled first: `(x - layer_mean) / layer_scale`, buffers `[K, D]` that a new
    model has at 0 and 1, and training sets.
    """

    def __init__(self, config: WavCSEConfig):
        super().__init__()
        size, width, num_layers = config.layer_projection_size, config.pooled_size, len(config.selected_layers)
        self.layer_projection = nn.Identity() if size is None else nn.Linear(config.stacked_size, size)
        self.layer_pooling = build_layer_pooling(config.pooling_type, num_layers, size or width, **config.pooling_kwargs)
        self.dropout = nn.Dropout(config.layer_dropout)
        self.embedding_projection = nn.Linear(config.projected_size, config.embedding_size)
        self.is_scaled = config.layer_scaling == "standard"
        if self.is_scaled:
            self.register_buffer("layer_mean", torch.zeros(num_layers, width))
            self.register_buffer("layer_scale", torch.ones(num_layers, width))

    def forward(self, pooled_layers: Tensor) -> Tensor:
        return self.project(self.scaled(pooled_layers))

    def project(self, layers: Tensor) -> Tensor:
        """What comes after the scaling: `[B, K, D]`, or `[B, D]` as `pool` takes it, -> `[B, E]`."""
        return self.embedding_projection(self.dropout(self.pool(layers)))

    def scaled(self, pooled_layers: Tensor) -> Tensor:
        """`[B, K, D]` -> the same, as `layer_scaling` says, in the type of the weights.

        In float32 at least: beside their means, differences between clips are lost in half precision.
        """
        if self.is_scaled:
            pooled_layers = (pooled_layers.float() - self.layer_mean) / self.layer_scale
        return pooled_layers.to(self.embedding_projection.weight.dtype)

    def pool(self, layers: Tensor) -> Tensor:
        """FC1 and layer pooling: scaled layers `[B, K, D]`, or `[B, D]` that a linear pooling has made, -> `[B, 512]`."""
        if layers.dim() == 2:
            return self.layer_projection(layers)
        if self.layer_pooling.comes_first:
            return self.layer_projection(self.layer_pooling(layers))
        return self.layer_pooling(self.layer_projection(layers))

    @torch.no_grad()
    def affine_map(self) -> tuple[Tensor, Tensor]:
        """The whole of it without dropout as one map of the layers side by side: weight `[E, K * D]`, bias `[E]`.

        Scaling, FC1 and FC2 in one, exact up to rounding.

        Raises:
            ValueError: the layer pooling is not linear.
        """
        pooling, projection = self.layer_pooling, self.layer_projection
        if not pooling.comes_first:
            raise ValueError(f"{type(pooling).__name__} is no linear map of the layers, so the embedding is none.")
        weight, bias = self.embedding_projection.weight, self.embedding_projection.bias
        if isinstance(projection, nn.Linear):
            weight, bias = weight @ projection.weight, bias + weight @ projection.bias
        if pooling.is_linear:
            weight = torch.cat([share * weight for share in pooling.layer_weights.to(weight)], dim=1)
        if self.is_scaled:
            weight = weight / self.layer_scale.flatten()
            bias = bias - weight @ self.layer_mean.flatten()
        return weight, bias


class CosineHead(nn.Linear):
    """Embeddings `[n, E]` -> `scale * cos(embedding, w_c)` of every class c, `[n, C]`; no bias. The head of `aam_softmax`."""

    def __init__(self, size: int, num_classes: int, scale: float, margin: float):
        super().__init__(size, num_classes, bias=False)
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor) -> Tensor:
        directions = (nn.functional.normalize(x.float(), dim=-1) for x in (embeddings, self.weight))
        return self.scale * nn.functional.linear(*directions)

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `[n, C]` for training: `scale * cos(angle + margin)` for each clip's own class, `labels` `[n]`.

        The additive angular margin of Deng et al. 2019 (ArcFace). Where the angle would exceed pi, it is instead
        `scale * (cos(angle) - margin * sin(margin))`, as in the authors' code, so that a smaller angle is always better.
        """
        cosine = (logits.float() / self.scale).clamp(-1.0, 1.0)
        sine = (1.0 - cosine.square()).clamp_min(1e-7).sqrt()  # the root has an infinite slope at 0
        harder = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        harder = torch.where(cosine > -math.cos(self.margin), harder, cosine - self.margin * math.sin(self.margin))
        is_own = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
        return self.scale * torch.where(is_own, harder, cosine)


class WavCSEHeads(nn.Module):
    """Embeddings `[B, E]` -> logits `{task: [B, C]}`: dropout, then one linear layer per task, or a `CosineHead`."""

    def __init__(self, config: WavCSEConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.tasks = nn.ModuleDict({name: _head(config.embedding_size, task) for name, task in config.tasks.items()})

    def forward(self, embeddings: Tensor, rows: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of all clips, or of task t for the clips `rows[t]` `[n_t]` only, such as those that have a label for it."""
        embeddings = self.dropout(embeddings)
        if rows is None:
            return {name: head(embeddings) for name, head in self.tasks.items()}
        own = [rows[name] for name in self.tasks]
        taken = embeddings.index_select(0, torch.cat(own)).split([len(part) for part in own])  # one gradient, not one per task
        return {name: head(part) for (name, head), part in zip(self.tasks.items(), taken)}

    @property
    def margins(self) -> dict[str, CosineHead]:
        """Task -> head, of those that train with a margin; none in eval mode."""
        return {name: head for name, head in self.tasks.items() if self.training and isinstance(head, CosineHead)}


def _head(size: int, task: Mapping[str, Any]) -> nn.Linear:
    if task.get("loss") == "aam_softmax":
        return CosineHead(size, num_outputs(task), task["scale"], task["margin"])
    return nn.Linear(size, num_outputs(task))


CCC_EPSILON = 1e-8  # keeps the ratio finite for a batch whose labels and outputs are the same constant


def concordance(x: Tensor, y: Tensor) -> Tensor:
    """Concordance correlation coefficient of every column, `[B, T]`, `[B, T]` -> `[T]`.

    `2 cov / (var_x + var_y + (mean_x - mean_y)^2)` with population moments (Lin 1989), differentiable; 0 for a constant.
    """
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    covariance = ((x - mean_x) * (y - mean_y)).mean(dim=0)
    variances = x.var(dim=0, correction=0) + y.var(dim=0, correction=0)
    return 2 * covariance / (variances + (mean_x - mean_y).square() + CCC_EPSILON)


def number_loss(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Mean loss of standardised numbers `[B]`: `1 - CCC` over them (`"ccc"`) or the mean absolute error (`"mae"`)."""
    if loss == "ccc":
        return 1 - concordance(outputs[:, None], targets[:, None])[0]
    return (outputs - targets).abs().mean()


def losses_per_task(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    num_labelled: Mapping[str, int | Tensor] | None = None,
    number_losses: Mapping[str, str] | None = None,
    margins: Mapping[str, CosineHead] | None = None,
) -> dict[str, Tensor]:
    """Loss of every task: `cross_entropy_per_task` of classes, `number_loss` of the numbers that are there.

    Args:
        logits, labels, num_labelled: as of `cross_entropy_per_task`; of a regression task `[B, 1]` and standardised numbers
            `[B]`, -100 = none. A process that has a part of a batch counts its own loss by its share of the labelled clips,
            so that `1 - CCC` is that of the process's clips.
        number_losses: regression task -> its loss.
        margins: as of `cross_entropy_per_task`.
    """
    number_losses = number_losses or {}
    classes = {task: values for task, values in logits.items() if task not in number_losses}
    losses = cross_entropy_per_task(classes, labels, num_labelled, margins)
    for task, loss in number_losses.items():
        outputs, targets = logits[task][:, 0].float(), labels.get(task)
        is_there = torch.zeros_like(outputs, dtype=torch.bool) if targets is None else targets != IGNORED_LABEL
        if not is_there.any():
            losses[task] = outputs.sum() * 0.0
            continue
        count = is_there.sum()
        share = 1.0 if num_labelled is None else count / torch.as_tensor(num_labelled[task])
        losses[task] = share * number_loss(outputs[is_there], targets[is_there].float(), loss)
    return {task: losses[task] for task in logits}


def cross_entropy_per_task(
    logits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    num_labelled: Mapping[str, int | Tensor] | None = None,
    margins: Mapping[str, CosineHead] | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy of every task, averaged over the clips that have a label for it; 0 for a task that has none here.

    Args:
        logits: task -> `[B, C]`.
        labels: task -> class indices `[B]`, -100 = no label; a task that is not named has none.
        num_labelled: what to divide each task's sum by instead of the number of labelled clips in this batch; a process that
            sees a part of a batch gives the number of the whole batch.
        margins: task -> head whose margin counts (`WavCSEHeads.margins`).
    """
    losses = {}
    for task, task_logits in logits.items():
        if task not in labels:
            losses[task] = task_logits.sum() * 0.0
            continue
        if task in (margins or {}):
            task_logits = margins[task].with_margin(task_logits, labels[task])
        total = nn.functional.cross_entropy(task_logits.float(), labels[task], ignore_index=IGNORED_LABEL, reduction="sum")
        count = (labels[task] != IGNORED_LABEL).sum() if num_labelled is None else torch.as_tensor(num_labelled[task])
        losses[task] = total / count.clamp(min=1)
    return losses


def combine_losses(losses: Mapping[str, Tensor], loss_weights: Mapping[str, float]) -> Tensor:
    """`sum_t w_t / T * loss_t`, equal weighting for `w_t = 1` (section 2.3 of the paper).

    The divisor T counts all tasks: a batch without any clip of a task is not rescaled, as in the authors' code.
    """
    return sum(loss_weights[task] * loss for task, loss in losses.items()) / len(losses)


class WavCSEPreTrainedModel(PreTrainedModel):
    """Loading, saving and weight initialisation shared by the wavCSE models."""

    config_class = WavCSEConfig
    base_model_prefix = "wavcse"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: WavCSEConfig):
        config.check()  # a field may have been assigned since it was made
        if config.layer_scaling != "none":  # statistics of training clips are no weights to be rounded
            self._keep_in_fp32_modules_strict = ["layer_mean", "layer_scale"]
        super().__init__(config)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """A model can be pickled, for the workers and fingerprints of `datasets`; what is arranged for speed stays behind."""
        for module in self.modules():
            if is_parametrized(module):
                type(module).__reduce_ex__ = reduced_weight_norm
        return super().__reduce_ex__(protocol)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # PyTorch's default initialisation, as the authors used. The upstream initialises its own modules.
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, LayerPooling):
            module.reset_parameters()
        elif isinstance(module, WavCSEDownstream) and module.is_scaled:
            init.zeros_(module.layer_mean)
            init.ones_(module.layer_scale)

    @classmethod
    def from_upstream(cls, name_or_path: str, selected_layers: Sequence[int] | None = None, **kwargs):
        """A new model on a pre-trained upstream; only blocks up to `max(selected_layers)` are loaded.

        Args:
            name_or_path: Hub id (`"microsoft/wavlm-large"`) or local folder of a model of a family in docs/upstreams.md, or of
                a wavCSE model, whose upstream is taken as far as it was saved: up to its highest selected layer.
            selected_layers: layers to pool; the paper's 0-14 and 17 if not given.
            kwargs: further fields of `WavCSEConfig`; `revision`, `token`, `cache_dir`, `local_files_only` go to the Hub.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_KWARGS if name in kwargs}
        if selected_layers is not None:
            kwargs["selected_layers"] = selected_layers
        config = config_from_upstream(name_or_path, hub_kwargs, **kwargs)
        return cls(config, upstream=load_upstream(name_or_path, config.upstream_config, **hub_kwargs)).eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *model_args, **kwargs):
        """As in every transformers model, from safetensors weights, with fields of the configuration as overrides.

        `config.freeze_upstream` holds for the loaded weights too. With `trust_remote_code=True` the repository's own files
        run, also where this package is imported and `AutoModel` would take its class.

        Overrides, and a `config` that is given, may change what trained weights do not depend on: `tasks`, dropouts,
        `freeze_upstream`, `precision`, `window_s`, `max_duration_s`. A task with a new name gets a new head. For a task whose
        labels are not those that its head was trained with, `ignore_mismatched_sizes=True` asks for a new head.
        `num_labels`, `id2label` and `label2id` ask for one head with these labels, a new one unless the model has it.

        Raises:
            ValueError: a field is out of range, trained weights depend on it, labels of a trained head have changed, or
                the weights are not those of this configuration.
            OSError: there is no such repository, or it has no safetensors weights.
        """
        where = pretrained_model_name_or_path
        if where is None:  # weights from elsewhere, `state_dict`
            return super().from_pretrained(where, *model_args, **kwargs)
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        if kwargs.get("trust_remote_code"):
            own_class = class_of_repository(cls, where, **hub_kwargs)
            if own_class is not cls:
                return own_class.from_pretrained(where, *model_args, **_with_config_of(own_class, kwargs))
        new_heads = cls._heads_to_replace(where, hub_kwargs, kwargs)
        options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        try:
            model, report = super().from_pretrained(where, *model_args, **options)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"{where}: config.json asks for other sizes than the weights have; see the table above."
            ) from error
        missing = sorted(name for name in report["missing_keys"] if not re.search(MAY_BE_MISSING, name))
        if missing:
            raise ValueError(
                f"{where}: the weights lack {missing[0]} ({len(missing)} in all), so embeddings would be random. They were "
                "saved with another configuration, or are not those of a wavCSE model."
            )
        for name in new_heads:
            model.heads.tasks[name].reset_parameters()
            logger.warning(f"heads.tasks.{name} starts from scratch: its labels are not those that it was trained with.")
        align_weights(model).base_model.freeze()  # loading puts new parameters in place, all trainable
        return (model, report) if kwargs.get("output_loading_info") else model

    @classmethod
    def _heads_to_replace(cls, where: str | Path, hub_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any]) -> list[str]:
        """Check the configuration to load weights with against the saved one; the tasks whose heads start from scratch."""
        try:
            fields, _ = PretrainedConfig.get_config_dict(where, **hub_kwargs)
        except OSError:
            return []  # no configuration beside the weights; whether one is given is for transformers to say
        if fields.get("model_type") != cls.config_class.model_type:
            raise ValueError(
                f"{where} is a model of type {fields.get('model_type')!r}, not a saved wavCSE model. A new wavCSE model on "
                "its encoder is made by `from_upstream`."
            )
        trained, wanted = cls.config_class.from_dict(fields), kwargs.get("config")
        if not isinstance(wanted, PretrainedConfig):
            own = {name: kwargs[name] for name in (*OWN_FIELDS, *LABEL_FIELDS) if name in kwargs}
            given = fields if wanted is None else PretrainedConfig.get_config_dict(wanted, **hub_kwargs)[0]
            wanted = cls.config_class.from_dict(given, **own)
        wanted.check()
        check_trained_fields(wanted, trained, str(where))
        if not issubclass(cls, WavCSEForMultiTask) or fields.get("architectures") == [WavCSEModel.__name__]:
            return []  # no heads here, or none there
        changed = changed_heads(wanted, trained)
        if changed and not kwargs.get("ignore_mismatched_sizes"):
            old, new = trained.tasks[changed[0]], wanted.tasks[changed[0]]
            labels = ", ".join(old.get("labels", ["a number"]))
            what = f"['labels'] differ from those that the head in {where} was trained with ({labels})"
            if new["kind"] == old["kind"] == "classification" and new["labels"] == old["labels"]:
                what = f"['loss'] or its scale is not what the head in {where} was trained with"
            raise ValueError(
                f"tasks[{changed[0]!r}]{what}. Give the new task another name, or start its head from scratch with "
                "`ignore_mismatched_sizes=True`."
            )
        return changed

    def save_pretrained(self, save_directory: str | Path, *, push_to_hub: bool = False, **kwargs) -> None:
        """Write a complete Hub repository: float32 weights, configuration, preprocessor, code files and model card.

        Weights are saved in float32 whatever the model runs in, so that a reload never loses precision twice.

        Args:
            push_to_hub: also call the method `push_to_hub`, with `repo_id` (the folder's name if not given) and its other
                arguments; nothing but the model is uploaded, whatever else is in `save_directory`.
        """
        if "state_dict" not in kwargs and self.dtype != torch.float32:
            kwargs["state_dict"] = {
                name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()
            }
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            complete_repository(Path(save_directory), self.config, type(self))
            if push_to_hub:
                upload = {name: kwargs[name] for name in UPLOAD_KWARGS if name in kwargs}
                self.push_to_hub(**{"repo_id": Path(save_directory).resolve().name, **upload})

    def push_to_hub(
        self, repo_id: str, *, tags: Sequence[str] | None = None, max_shard_size: int | str = "50GB", **upload
    ) -> CommitInfo:
        """Publish what `save_pretrained` writes, with a card that names `repo_id`, in one commit.

        transformers' own method would put its general card in the place of ours. Figures are not known here: a run with its
        results is published by `wavcse push`.

        Args:
            tags: further tags of the card.
            upload: `private`, `token`, `revision`, `create_pr`, `commit_message`, `commit_description`, as of
                `upload_repository`, which also says what is raised.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            write_card(Path(folder), self.config, repo_id, {"tags": list(tags or ())})
            return upload_repository(Path(folder), repo_id, **upload)


class WavCSEModel(WavCSEPreTrainedModel):
    """Upstream, temporal pooling, layer scaling, FC1, layer pooling, FC2: one embedding `[E]` per clip, the same in any batch.

    A checkpoint of `WavCSEForMultiTask` loads too; its heads are left out.
    """

    _keys_to_ignore_on_load_unexpected = [r"^heads\."]  # noqa: RUF012 (transformers reads this class attribute)

    def __init__(self, config: WavCSEConfig, upstream: PreTrainedModel | None = None):
        super().__init__(config)
        self.upstream = build_upstream(config.upstream_config) if upstream is None else upstream
        self.downstream = WavCSEDownstream(config)
        self.check_precision(config.precision)
        self.run_upstream = UpstreamRunner()
        self.gradient_watch = GradientWatch()
        self.post_init()
        self.freeze()

    def check_precision(self, precision: str) -> None:
        """ValueError that names the cause if the upstream cannot run at this precision."""
        check_precision(self.upstream, precision)

    def freeze(self) -> None:
        """Take what is not trained out of the gradient: the whole upstream, or else what is in no layer (`unread_part`)."""
        if self.config.freeze_upstream:
            self.upstream.requires_grad_(False)
        elif (unread := unread_part(self.upstream)) is not None:
            unread.requires_grad_(False)

    def train(self, mode: bool = True) -> WavCSEModel:
        """Set training mode; a frozen upstream stays in eval mode (no dropout, LayerDrop or SpecAugment)."""
        super().train(mode)
        if self.config.freeze_upstream:
            self.upstream.eval()
        return self

    def forward(
        self,
        input_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        precision: str | None = None,
        pooled_layers: Tensor | None = None,
    ) -> WavCSEModelOutput | tuple:
        """Embed clips.

        Args:
            input_values: waveforms `[B, samples]` from `WavCSEFeatureExtractor`, or a list of waveforms `[samples]` from its
                `prepare`, which need no padding.
            attention_mask: `[B, samples]`, 1 = audio, 0 = padding; needed as soon as lengths differ.
            precision: "float32", "bfloat16" or "int8" for the upstream's matrix products at inference, or "auto", the fastest
                of them on this processor; the configuration's if not given.
            output_attentions: with wav2vec2 and HuBERT the model must be loaded with `attn_implementation="eager"`.
            pooled_layers: `[B, K, D]`, what `pool_layers` gave for the selected layers, in place of the waveforms.
        """
        if (input_values is None) == (pooled_layers is None):
            raise ValueError("the model needs input_values or pooled_layers, one of the two.")
        if pooled_layers is not None:
            upstream = UpstreamOutput(pooled_layers)
        else:
            layers = self.config.selected_layers
            wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            wants_maps = self.config.output_attentions if output_attentions is None else output_attentions
            upstream = self._run_upstream(input_values, attention_mask, layers, precision, wants_states, wants_maps)
        output = WavCSEModelOutput(
            embeddings=self.downstream(upstream.pooled_layers),
            pooled_layers=upstream.pooled_layers,
            last_hidden_state=upstream.hidden_states[-1] if upstream.hidden_states else None,
            hidden_states=upstream.hidden_states,
            attentions=upstream.attentions,
        )
        if self.training and not self.gradient_watch.done and torch.is_grad_enabled():
            self.gradient_watch(self, output.embeddings)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def pool_layers(
        self,
        input_values: Tensor | Sequence[Tensor],
        attention_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
        precision: str | None = None,
    ) -> Tensor:
        """Layers of the upstream, pooled over time as the model pools them, in one pass: `[B, K, D]`.

        Args:
            input_values, attention_mask, precision: as in `forward`.
            layers: the K layers, 0 = input of the first block, up to `config.num_hidden_layers`; the selected ones if not
                given. A layer more costs next to nothing beside its block.
        """
        layers = self.config.selected_layers if layers is None else layers
        return self._run_upstream(input_values, attention_mask, layers, precision).pooled_layers

    def _run_upstream(
        self,
        input_values: Tensor | Sequence[Tensor],
        attention_mask: Tensor | None,
        layers: Sequence[int],
        precision: str | None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> UpstreamOutput:
        return self.run_upstream(
            self.upstream,
            input_values,
            attention_mask,
            layers,
            output_hidden_states,
            output_attentions,
            precision=precision or self.config.precision,
            **self.config.upstream_options,
        )

    @torch.no_grad()
    def encode(
        self,
        inputs: Any,
        batch_seconds: float = 60.0,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: str | None = None,
        scale_quiet: bool = False,
        batch_size: int | None = None,
        convert_to_tensor: bool = False,
        window_s: float | None = None,
        hop_s: float | None = None,
        quantize: str | None = None,
        ranges: np.ndarray | None = None,
    ) -> np.ndarray | Tensor | WavCSEWindows | list[WavCSEWindows]:
        """Embed speech, the sentence-transformers way.

        Args:
            inputs: one clip or several (a list, iterator, object array, pandas or `datasets` column): paths, URLs, bytes of
                audio files, files opened with "rb", 1-D arrays, tensors or lists of floats at the model's rate, mappings with
                `"array"` and `"sampling_rate"`, or `AudioDecoder`s; other rates are resampled.
            batch_seconds: audio per batch in seconds; it changes speed and memory, not the result.
            show_progress_bar: `None` = at log level INFO or DEBUG.
            convert_to_numpy: return an array (else a tensor on the CPU).
            normalize_embeddings: scale every embedding to length 1, so that a dot product is the cosine similarity.
            truncate_dim: keep the first numbers of each embedding only.
            precision: "float32", "bfloat16", "int8", or "auto", the fastest of them on this processor; the configuration's if
                not given. Autocast changes nothing.
            scale_quiet: bring clips below -60 dB of full scale to the level of usual speech, -20 dB, before normalisation.
            batch_size: clips (or windows) per batch at most, besides `batch_seconds`; it does not change the result either.
            convert_to_tensor: the same as `convert_to_numpy=False`.
            window_s: embed windows of so many seconds, as `wavcse embed --window_s` does, instead of whole clips.
            hop_s: distance of the windows' starts in seconds; that of `window_s` if not given.
            quantize: of the returned numbers, "int8", "uint8", "binary" or "ubinary", as of `quantize_embeddings`. This is
                what sentence-transformers calls `precision`; here that is the precision of the computation.
            ranges: `[2, E]`, which "int8" and "uint8" need.

        Returns:
            float32 `[E]` for one clip, `[N, E]` for a list, in input order; quantised, int8 or uint8 `[E]` or `[E / 8]`. With
            `window_s` a `WavCSEWindows` per clip: `embeddings` `[n, E]`, `start_s` and `end_s` `[n]`.

        Raises:
            ValueError: a clip cannot be read or served; the message names it by its path or position. Or an argument is out
                of range.

        Example:
            >>> model.encode(["a.wav", {"array": samples, "sampling_rate": 8000}]).shape
            (2, 2000)
        """
        size = self.config.embedding_size if truncate_dim is None else truncate_dim
        if not isinstance(size, int) or not 1 <= size <= self.config.embedding_size:
            raise ValueError(
                f"truncate_dim is {truncate_dim}; it must lie in 1..{self.config.embedding_size}, the size of the embedding."
            )
        if window_s is None and hop_s is not None:
            raise ValueError("hop_s is the distance of windows; give window_s too.")
        if precision in QUANTIZATIONS and precision != "int8":
            raise ValueError(f"precision={precision!r} is of returned numbers here: give quantize={precision!r}.")
        if quantize is not None:
            check_quantization(quantize, ranges, size)
        to_numpy = convert_to_numpy and not convert_to_tensor
        feature_extractor = WavCSEFeatureExtractor.from_config(self.config)
        cutter = None if window_s is None else WindowCutter(window_s, hop_s, feature_extractor)
        if cutter is not None:
            feature_extractor.max_duration_s = math.inf  # only windows go through the model
        clips, is_single = as_clips(inputs)
        waveforms = read_clips(clips, feature_extractor, scale_quiet, show_progress_bar)
        embeddings = [torch.empty(0, size)]
        for batch in self._prepared(waveforms if cutter is None else cutter(waveforms), batch_seconds, batch_size):
            output = self(batch, precision=precision, return_dict=True)
            embeddings.append(output.embeddings[:, :size].float().cpu())
        result = torch.cat(embeddings)
        if normalize_embeddings:
            result = nn.functional.normalize(result, dim=1)
        if quantize is not None:
            result = torch.from_numpy(quantize_embeddings(result, quantize, ranges))
        if cutter is not None:
            windows = cutter.of_clips(result, to_numpy)
            return windows[0] if is_single else windows
        result = result[0] if is_single else result
        return result.numpy() if to_numpy else result

    @staticmethod
    def similarity(a: np.ndarray | Tensor | Sequence, b: np.ndarray | Tensor | Sequence) -> Tensor:
        """Cosine similarities of embeddings, as `SentenceTransformer.similarity`.

        Args:
            a: `[N, E]`, or one embedding `[E]`; an array, a tensor or a list of them.
            b: `[M, E]`, or `[E]`.

        Returns:
            Float32 `[N, M]` on the CPU.

        Raises:
            ValueError: the embeddings are not vectors of one size.
        """
        one, other = (_unit_rows(embeddings) for embeddings in (a, b))
        if one.shape[1] != other.shape[1]:
            raise ValueError(f"similarity of embeddings of {one.shape[1]} and of {other.shape[1]} numbers is not defined.")
        return one @ other.T

    @torch.no_grad()
    def encode_frames(
        self,
        inputs: Any,
        layers: int | Sequence[int] | None = None,
        batch_seconds: float = 60.0,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        precision: str | None = None,
        scale_quiet: bool = False,
    ) -> WavCSEFrames | list[WavCSEFrames]:
        """The upstream's layers frame by frame, as pooling over time sees them: a clip's result does not depend on its batch.

        Only the layers that are asked for are kept: `4 T K D` bytes per clip, at 50 frames per second. The mean over `T` is
        the layer in `pooled_layers` (of "mean_std" its first half).

        Args:
            inputs, batch_seconds, batch_size, show_progress_bar, convert_to_numpy, precision, scale_quiet: as of `encode`.
            layers: one layer or K of them, 0 = input of the first block, up to `config.num_hidden_layers`; the selected ones
                if not given.

        Returns:
            `WavCSEFrames` for one clip, a list of them for several: `frames` float32 `[T, K, D]` without padding, and
            `times_ms` `[T]`, the centres of the frames.

        Raises:
            ValueError: as `encode`, or there is no such layer.
        """
        layers = self._checked_layers(layers)
        clips, is_single = as_clips(inputs)
        waveforms = read_clips(clips, WavCSEFeatureExtractor.from_config(self.config), scale_quiet, show_progress_bar)
        how = {"precision": precision or self.config.precision, **self.config.upstream_options}
        del how["temporal_pooling"]
        results = []
        for batch in self._prepared(waveforms, batch_seconds, batch_size):
            for frames in self.run_upstream.frames(self.upstream, batch, layers, **how):
                frames = frames.cpu().numpy() if convert_to_numpy else frames.cpu()
                results.append(WavCSEFrames(frames, self.config.frame_times_ms(len(frames))))
        return results[0] if is_single else results

    def _prepared(
        self, waveforms: Iterable[np.ndarray], batch_seconds: float, batch_size: int | None
    ) -> Iterator[list[Tensor]]:
        """Batches as the model takes them; the model is in eval mode and autocast off while one is out."""
        if any(module.training for module in modules_in(self)):  # setting the mode of all takes longer than asking for it
            self.eval()
        feature_extractor = WavCSEFeatureExtractor.from_config(self.config)
        for batch in batches_in_order(waveforms, self.config.sampling_rate, batch_seconds, batch_size):
            with torch.autocast(self.device.type, enabled=False):  # `precision` counts, whatever surrounds the call
                yield feature_extractor.prepare(batch, self.device)

    def _checked_layers(self, layers: int | Sequence[int] | None) -> list[int]:
        if layers is None:
            return self.config.selected_layers
        wanted = [layers] if isinstance(layers, int) else list(layers)
        most = self.config.num_hidden_layers
        bad = [layer for layer in wanted if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= most]
        if bad or not wanted:
            what = f"{bad[0]!r} is none of them" if bad else "none is named"
            raise ValueError(f"layers: {what}; this model has 0 to {most}, up to its highest selected layer.")
        return wanted


class WavCSEForMultiTask(WavCSEPreTrainedModel):
    """`WavCSEModel` with one linear head per task of `config.tasks`, trained together."""

    def __init__(self, config: WavCSEConfig, upstream: PreTrainedModel | None = None):
        super().__init__(config)
        self.wavcse = WavCSEModel(config, upstream)
        self.heads = WavCSEHeads(config)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | Mapping[str, Tensor] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        precision: str | None = None,
    ) -> WavCSEMultiTaskOutput | tuple:
        """Embed and classify clips.

        Args:
            labels: task -> class indices `[B]`, -100 where a clip has no label for the task, or of a regression task numbers
                in their own unit, NaN where there is none; of a single task, the tensor alone will do.
            input_values, attention_mask, output_attentions, precision: as in `WavCSEModel.forward`.

        Raises:
            ValueError: `labels` is a tensor, and there are several tasks; or it names a task that the model does not have.
        """
        output = self.wavcse(
            input_values, attention_mask, output_attentions, output_hidden_states, return_dict=True, precision=precision
        )
        logits = self.heads(output.embeddings)
        loss = None if labels is None else self.loss(logits, self.labels_by_task(labels))
        result = WavCSEMultiTaskOutput(
            loss=loss,
            logits=logits if len(logits) != 1 else next(iter(logits.values())),
            embeddings=output.embeddings,
            pooled_layers=output.pooled_layers,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()

    def loss(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """The multi-task loss, a scalar: the tasks' losses, weighted as the configuration says."""
        tasks = self.config.tasks
        number_losses = {name: task["loss"] for name, task in tasks.items() if task["kind"] == "regression"}
        scaled = {
            name: torch.nan_to_num((values - tasks[name]["mean"]) / tasks[name]["std"], nan=float(IGNORED_LABEL))
            for name, values in labels.items()
            if name in number_losses
        }
        losses = losses_per_task(logits, {**labels, **scaled}, None, number_losses, self.heads.margins)
        return combine_losses(losses, {name: task["loss_weight"] for name, task in tasks.items()})

    def labels_by_task(self, labels: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`labels` of `forward` as task -> `[B]`; ValueError as there."""
        tasks = list(self.heads.tasks)
        if not isinstance(labels, Mapping):
            if len(tasks) != 1:
                raise ValueError(
                    f"labels is one tensor, but the model has {len(tasks)} tasks ({', '.join(tasks) or 'none'}): give a "
                    "mapping from their names to indices [B], with -100 where a clip has no label."
                )
            return {tasks[0]: labels}
        unknown = sorted(set(labels) - set(tasks))
        if unknown:
            raise ValueError(f"labels names the task {unknown[0]!r}; the model has {', '.join(tasks) or 'none'}.")
        return labels

    @torch.no_grad()
    def predict(
        self,
        inputs: Any,
        task: str | None = None,
        top_k: int | None = None,
        batch_seconds: float = 60.0,
        show_progress_bar: bool | None = None,
        precision: str | None = None,
        scale_quiet: bool = False,
    ) -> Any:
        """Labels with their probabilities, the most likely first; of a regression task the number, in its unit.

        Args:
            inputs: one clip or several, as `WavCSEModel.encode` takes them; `batch_seconds`, `show_progress_bar`, `precision`
                and `scale_quiet` are as there.
            task: the head to ask; all of them if not given.
            top_k: how many labels; all if not given.

        Returns:
            For one clip `[{"label": ..., "score": ...}, ...]`, or a float; of a model with several heads, if no `task` is
            named, one of these per task by its name. For several clips a list of these.

        Raises:
            ValueError: a clip cannot be read or served, there is no such task, or `top_k` is no positive number.

        Example:
            >>> model.predict("yes.wav", task="keyword", top_k=1)
            [{'label': 'yes', 'score': 0.93}]
        """
        chosen = chosen_tasks(self.config.tasks, task, top_k)
        self.eval()
        embeddings = self.wavcse.encode(
            inputs, batch_seconds, show_progress_bar, convert_to_numpy=False, precision=precision, scale_quiet=scale_quiet
        )
        weight = self.wavcse.downstream.embedding_projection.weight
        logits = self.heads(torch.atleast_2d(embeddings).to(weight.device, weight.dtype))
        found = predictions({name: logits[name] for name in chosen}, chosen, task, top_k)
        return found[0] if embeddings.dim() == 1 else found

    def freeze_feature_encoder(self) -> None:
        """Keep the upstream's stem fixed, under the name that transformers' training scripts call."""
        upstream = self.wavcse.upstream
        stems = [getattr(upstream, name, None) for name in ("feature_extractor", "conv1", "conv2")]
        for stem in filter(None, stems):
            stem.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Keep everything but the heads fixed; the embedding stays as it is."""
        self.wavcse.requires_grad_(False)


def check_quantization(precision: str, ranges: np.ndarray | None, size: int) -> None:
    """ValueError unless embeddings of `size` numbers can be quantised so; `ranges` as of `quantize_embeddings`."""
    if precision not in QUANTIZATIONS:
        raise ValueError(f"embeddings cannot be quantised to {precision!r}; allowed: {', '.join(QUANTIZATIONS)}.")
    if precision in ("int8", "uint8") and np.shape(ranges) != (2, size):
        given = "are not given" if ranges is None else f"have shape {list(np.shape(ranges))}"
        raise ValueError(
            f"{precision!r} needs the smallest and the largest of each of the {size} numbers, and ranges {given}; [2, {size}] "
            "is needed, from many embeddings, such as `StoredEmbeddings(table).ranges()`."
        )


def quantize_embeddings(embeddings: np.ndarray | Tensor, precision: str, ranges: np.ndarray | None = None) -> np.ndarray:
    """Embeddings in 8 bits or in one bit per number, as sentence-transformers' function of this name.

    Args:
        embeddings: float `[N, E]`.
        precision: "int8" or "uint8", 256 steps between the ends of each number's range, numbers beyond them cut off;
            "ubinary" or "binary", whether a number is above 0, eight to a byte (the latter with 128 taken off, as int8).
        ranges: `[2, E]`, the smallest and the largest value of each number over many embeddings; for "int8" and "uint8".

    Returns:
        `[N, E]` int8 or uint8, or `[N, E / 8]` (rounded up) int8 or uint8.

    Raises:
        ValueError: there is no such precision, or ranges of another shape.
    """
    numbers = embeddings.detach().cpu().numpy() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    check_quantization(precision, ranges, numbers.shape[-1])
    if precision in ("binary", "ubinary"):
        bits = np.packbits(numbers > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - 128).astype(np.int8)
    low, high = np.asarray(ranges, np.float32)
    steps = (high - low) / 255
    levels = np.clip(np.floor((numbers - low) / np.where(steps == 0, 1, steps)), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


def _unit_rows(embeddings: np.ndarray | Tensor | Sequence) -> Tensor:
    """Embeddings `[N, E]` or `[E]` as float32 `[N, E]` of length 1."""
    parts = embeddings if isinstance(embeddings, list | tuple) else [embeddings]
    tensors = [part.detach().float().cpu() if isinstance(part, Tensor) else torch.tensor(part).float() for part in parts]
    rows = torch.atleast_2d(torch.stack(tensors) if parts is embeddings else tensors[0])
    if rows.dim() > 2:
        raise ValueError(f"embeddings have shape {list(rows.shape)}; [N, E] or [E] is needed.")
    return nn.functional.normalize(rows, dim=1)


def config_from_upstream(name_or_path: str, hub_kwargs: Mapping | None = None, **fields) -> WavCSEConfig:
    """A `WavCSEConfig` for the upstream at `name_or_path`, with the audio settings of its own preprocessor.

    A wavCSE model gives the upstream in it, up to its highest selected layer, and its audio settings.
    """
    hub_kwargs = dict(hub_kwargs or {})
    if fields.get("context") is None:
        fields.pop("context", None)  # that of the wavCSE model, or the default
    config = read_config(name_or_path, **hub_kwargs)
    if isinstance(config, WavCSEConfig):
        audio = {name: getattr(config, name) for name in AUDIO_SETTINGS}
        return WavCSEConfig(upstream_config=config.upstream_config, **{**audio, **fields})
    try:
        preprocessor = AutoFeatureExtractor.from_pretrained(name_or_path, trust_remote_code=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        preprocessor = None  # a bare encoder folder; the defaults are those of the large checkpoints
        has_own = cached_file(name_or_path, FEATURE_EXTRACTOR_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if has_own and not {"sampling_rate", "do_normalize"} <= fields.keys():
            raise ValueError(
                f"{name_or_path}: its {FEATURE_EXTRACTOR_NAME} is none of transformers' own, and code of a repository is not "
                "run here; give `sampling_rate` and `do_normalize`."
            ) from error
    if preprocessor is not None:
        fields.setdefault("sampling_rate", preprocessor.sampling_rate)
        fields.setdefault("do_normalize", getattr(preprocessor, "do_normalize", False))  # Whisper's has no such step
        _check_filterbank(config, preprocessor)
    elif config.model_type in NOT_NORMALISED:
        fields.setdefault("do_normalize", False)
    return WavCSEConfig(upstream_config=config, **fields)


def _check_filterbank(config: PretrainedConfig, preprocessor: Any) -> None:
    """ValueError if a Wav2Vec2-BERT was trained on another filterbank than `wav2vec2_bert_wavcse` makes."""
    if config.model_type == "wav2vec2-bert" and hasattr(preprocessor, "num_mel_bins"):
        found = (preprocessor.sampling_rate, preprocessor.num_mel_bins, preprocessor.stride)
        if found != (16_000, config.feature_projection_input_dim // 2, 2):
            raise ValueError(
                f"Its preprocessor has sampling_rate, num_mel_bins and stride {found}; a Wav2Vec2-BERT upstream must have "
                f"16000 Hz, {config.feature_projection_input_dim // 2} bins (half of feature_projection_input_dim), stride 2."
            )


def _with_config_of(model_class: type[PreTrainedModel], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` with their configuration, if one is given, as an object of that model's own class."""
    config = kwargs.get("config")
    if not isinstance(config, PretrainedConfig):
        return dict(kwargs)
    own = model_class.config_class.from_dict(config.to_dict(), name_or_path=config.name_or_path)
    own._attn_implementation = config._attn_implementation
    return {**kwargs, "config": own}
