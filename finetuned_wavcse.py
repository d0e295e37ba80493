"""`FinetunedWavCSE`: an upstream trained as a whole on several tasks, each of which reads a layer of its own.

Vaessen and van Leeuwen 2023, "Towards multi-task learning of speech and speaker recognition": a text is read off the frames
of the last layer, a speaker off a vector that is pooled from the frames of some layer. What reads a layer for a task is a
readout:

    frames of its tap [B, T, D] -> a CTC head -> logits [B, T, V]
                                -> pooling over time -> vector [B, E] -> classes [B, C], or a number [B]

A readout may have a hidden layer of its own, and a readout with a `fusion` attends to frames as others' hidden layers ask it
to (`coattention_wavcse.py`: emotion recognised with the help of words, gender, speaker and style).

The vector of one readout, `embedding_of`, is the model's embedding: `encode`, the pipeline and the evaluation use it as they
do any other. The class that is trained is the one that runs from the Hub.

Shapes: `B` clips, `T` frames, `D` upstream width, `E` size of a vector, `C` classes, `V` symbols of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .coattention_wavcse import (
    ARI,
    FUSION,
    FUSIONS,
    MIXES,
    NEED_CONTEXT,
    OWN_OF_FUSION,
    Fusion,
    HiddenLayer,
    LayerMix,
)
from .configuration_wavcse import WavCSEConfig, checked_task_name, is_whisper, validated_loss
from .ecapa_wavcse import EcapaTdnn
from .modeling_wavcse import CosineHead, WavCSEModel
from .packed_encoder_wavcse import clip_windows
from .pooling_wavcse import pooled_frames
from .upstream_wavcse import unpadded, unread_part, visiting_layers
from .whisper_wavcse import log_mel_of_clip, visit_encoder_layers

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .audio_wavcse import load_waveform  # noqa: F401
    from .encoding_wavcse import read_clips  # noqa: F401
    from .endpoint_wavcse import EndpointHandler  # noqa: F401
    from .feature_extraction_wavcse import WavCSEFeatureExtractor  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .labels_wavcse import predictions  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401

FAMILIES = ("wavlm", "wav2vec2", "hubert", "whisper")  # of upstreams whose output is their last block's, normed or not
KINDS = {"ctc": ("ctc",), "classes": ("cross_entropy", "aam_softmax"), "numbers": ("l1", "ccc")}  # kind -> its losses
LAST, WEIGHTED_SUM, EMBEDDING = "last", "weighted_sum", "embedding"  # taps beside the numbers of layers
POOLINGS = ("mean", "first", "mean_std", "ecapa")
MIX = {"raw": False, "per_task": False}  # of the taps that mix layers
DROPOUT = 0.1  # of a hidden layer
ECAPA = {"channels": 512, "aggregated_channels": 1536, "embedding_size": 192}  # arguments of `EcapaTdnn`
FIELDS = {  # kind -> what a readout of it says beside kind, tap, pooling and loss
    "ctc": ("vocabulary",),
    "classes": ("labels", "scale", "margin"),
    "numbers": ("mean", "std"),
}


class FinetunedWavCSEConfig(WavCSEConfig):
    """Configuration of a `FinetunedWavCSE`.

    Args:
        readouts (`dict`): Task name -> `{"kind": "ctc" | "classes" | "numbers", "tap": ..., "pooling": ..., "loss": ...}`.
            `tap`: `"last"`, the encoder's output with its final norm; a number n, the output of block n; `"weighted_sum"` of
            all layers with learnt weights (SUPERB); `"embedding"`, what the layers selected by `selected_layers` give in a
            wavCSE model. `pooling` over time: `"mean"`, `"first"` frame, `"mean_std"`, `"ecapa"` (`"ecapa": {...}` holds its
            sizes). A text has `"vocabulary"`, whose first symbol is the blank; classes have `"labels"`, and with the loss
            aam_softmax `"scale"` and `"margin"`; a number has `"mean"` and `"std"` of the training clips, and the head gives
            `(number - mean) / std`. The taps `"ari"` and `"weighted_blocks"` mix the blocks (`LayerMix`). `"hidden"` is the
            size of a layer between the pooled frames (of a text, every frame) and the head, `"dropout"` its dropout.
            `"fusion"` of classes or numbers, `{"kind": ..., "tasks": [...], "hidden": ..., "dropout": ...}`, takes the place
            of pooling (`Fusion`); its tasks are readouts with a hidden layer.
        ari (`dict`): of these two taps: `"raw"`, the weights are used without a softmax; `"per_task"`, each task has weights
            of its own, where else all share them.
        embedding_of (`str`): the readout whose pooled vector is the embedding; its size is `embedding_size`.
        kwargs: as of `WavCSEConfig`. Its fields from `layer_scaling` to `layer_dropout` describe the tap `"embedding"` and
            mean nothing without it; `selected_layers` then has but to name the highest layer that is read.

    Raises:
        ValueError: as `WavCSEConfig`, or a readout does not fit.
    """

    model_type = "wavcse_finetuned"
    readouts, embedding_of, ari = None, None, None

    def __init__(
        self,
        readouts: Mapping[str, Mapping[str, Any]] | None = None,
        embedding_of: str | None = None,
        ari: Mapping[str, bool] | None = None,
        **kwargs,
    ):
        self.readouts, self.embedding_of, self.ari = readouts, embedding_of, ari
        super().__init__(**kwargs)

    def check(self) -> None:
        """As of `WavCSEConfig`; `embedding_size` follows from the readout that it is of."""
        super().check()
        family = self.upstream_config.model_type
        if family not in FAMILIES:
            raise ValueError(f"upstream_config is of a {family}; a finetuned model has one of {', '.join(FAMILIES)}.")
        given = self.readouts or {}
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"readouts is {self.readouts!r}; name at least one task.")
        self.readouts = {checked_task_name(name): self._checked_readout(name, one) for name, one in given.items()}
        for name in self.readouts:
            self._check_fusion(name)
        self.ari = self._checked_mix()
        if self.embedding_of is None:
            self.embedding_of = self._most_fitting()
        if self.embedding_of not in self.readouts:
            raise ValueError(f"embedding_of is {self.embedding_of!r}; it must be one of {', '.join(self.readouts)}.")
        is_embedding = self.readouts[self.embedding_of]["tap"] == EMBEDDING
        if self.reads_embedding and not is_embedding:
            raise ValueError(f"embedding_of is {self.embedding_of!r}, but tasks read the embedding itself: name one of those.")
        if not is_embedding:
            self.embedding_size = self.vector_size(self.embedding_of)

    @property
    def reads_embedding(self) -> bool:
        """Whether a readout has the tap `"embedding"`, so that the model has wavCSE's own layers too."""
        return any(one["tap"] == EMBEDDING for one in self.readouts.values())

    @property
    def label_tasks(self) -> dict[str, dict[str, Any]]:
        """The readouts that name classes or numbers, as `tasks` of a `WavCSEForMultiTask` has them."""
        kinds = {"classes": "classification", "numbers": "regression"}
        return {name: {**one, "kind": kinds[one["kind"]]} for name, one in self.readouts.items() if one["kind"] in kinds}

    @property
    def usual_task(self) -> str | None:
        """The task whose labels are given where none is asked for: that of the embedding; `None` = all."""
        return self.embedding_of if self.readouts[self.embedding_of]["kind"] == "classes" else None

    def frames_size(self, name: str) -> int:
        """D of the frames that a readout reads."""
        return (2 if self.readouts[name]["tap"] == ARI else 1) * self.upstream_config.hidden_size

    def vector_size(self, name: str) -> int:
        """E of a readout's vector: of its fusion, its hidden layer, or of its pooled frames."""
        one = self.readouts[name]
        return one["fusion"]["hidden"] if "fusion" in one else one.get("hidden", 0) or self.pooled_frames_size(name)

    def pooled_frames_size(self, name: str) -> int:
        """E of a readout's pooled frames."""
        one, width = self.readouts[name], self.frames_size(name)
        if one["tap"] == EMBEDDING:
            return self.embedding_size
        return {"mean_std": 2 * width, "ecapa": one.get("ecapa", ECAPA)["embedding_size"]}.get(one["pooling"], width)

    def layers_of(self, name: str) -> tuple[int | str, ...]:
        """Layers that a readout reads, `"last"` among them as it is."""
        tap = self.readouts[name]["tap"]
        if tap == EMBEDDING:
            return tuple(self.selected_layers)
        if tap in MIXES:
            return tuple(range(1, self.num_hidden_layers + 1))
        return tuple(range(self.num_hidden_layers + 1)) if tap == WEIGHTED_SUM else (tap,)

    def _most_fitting(self) -> str:
        """The first readout of the embedding itself, else one with a fusion, else of speakers or the like, else the first."""
        names = list(self.readouts)
        fused = [name for name in names if "fusion" in self.readouts[name]]
        own = [name for name in names if self.readouts[name]["tap"] == EMBEDDING]
        pooled = [name for name in names if self.readouts[name]["kind"] != "ctc"]
        return (own or fused or pooled or names)[0]

    def _checked_readout(self, name: str, one: Any) -> dict[str, Any]:
        where = f"readouts[{name!r}]"
        if not isinstance(one, Mapping):
            raise ValueError(f"{where} is {one!r}; it must be a mapping.")
        kind = _choice(f"{where}['kind']", one.get("kind"), tuple(KINDS))
        loss = _choice(f"{where}['loss']", one.get("loss", KINDS[kind][0]), KINDS[kind])
        pooling = _choice(f"{where}['pooling']", one.get("pooling", POOLINGS[0]), POOLINGS)
        allowed = ("kind", "tap", "pooling", "loss", "hidden", "dropout", *FIELDS[kind])
        allowed += (*(["ecapa"] if pooling == "ecapa" else []), *([] if kind == "ctc" else ["fusion"]))
        if unknown := sorted(map(str, set(one) - set(allowed))):
            raise ValueError(f"{where}[{unknown[0]!r}] is unknown; such a readout has {', '.join(allowed)}.")
        tap = self._checked_tap(where, one.get("tap", LAST))
        if tap == EMBEDDING and (kind == "ctc" or pooling != POOLINGS[0]):
            what = "a text needs frames" if kind == "ctc" else "it is one vector already, so that no pooling is left to choose"
            raise ValueError(f"{where}['tap'] is 'embedding'; {what}.")
        checked = {"kind": kind, "tap": tap, "pooling": pooling, "loss": loss, **_own_fields(where, kind, loss, one)}
        checked |= _checked_hidden(where, tap, pooling, one)
        return {**checked, **({"ecapa": _checked_ecapa(where, one.get("ecapa"))} if pooling == "ecapa" else {})}

    def _checked_tap(self, where: str, tap: Any) -> int | str:
        if tap in MIXES and self.num_hidden_layers < 2:
            raise ValueError(f"{where}['tap'] is {tap!r}; the upstream needs two blocks or more for it.")
        if tap in (LAST, WEIGHTED_SUM, EMBEDDING, *MIXES):
            return tap
        if isinstance(tap, bool) or not isinstance(tap, int) or not 0 <= tap <= self.num_hidden_layers:
            raise ValueError(
                f"{where}['tap'] is {tap!r}; allowed: {LAST!r}, {WEIGHTED_SUM!r}, {EMBEDDING!r}, "
                f"{', '.join(map(repr, MIXES))}, or a layer, 0 to {self.num_hidden_layers}."
            )
        return tap

    def _check_fusion(self, name: str) -> None:
        """ValueError unless the tasks that a fusion names have hidden layers that it can read."""
        fusion = self.readouts[name].get("fusion")
        if fusion is None:
            return
        where = f"readouts[{name!r}]['fusion']"
        for task in fusion["tasks"]:
            one = self.readouts.get(task, {})
            if not one.get("hidden") or one["pooling"] == "ecapa":
                raise ValueError(
                    f"{where} names {task!r}; it must be another readout with a hidden layer, whose pooling is not ecapa."
                )
            if fusion["kind"] == "cross" and one["hidden"] != fusion["hidden"]:
                raise ValueError(f"{where} is of kind cross: the hidden sizes of all its tasks must be {fusion['hidden']}.")

    def _checked_mix(self) -> dict[str, bool] | None:
        """`ari` with what it leaves out; `None` where no readout has such a tap."""
        if not any(one["tap"] in MIXES for one in self.readouts.values()):
            return None
        mix = {**MIX, **(self.ari or {})}
        if set(mix) != set(MIX) or not all(isinstance(value, bool) for value in mix.values()):
            raise ValueError(f"ari is {self.ari!r}; it holds {', '.join(MIX)}, each true or false.")
        return mix


def _choice(field: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed: {', '.join(allowed)}.")
    return value


def _own_fields(where: str, kind: str, loss: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """What a readout of this kind has beside its tap, pooling and loss, checked."""
    if kind == "numbers":
        mean, std = one.get("mean", 0.0), one.get("std", 1.0)
        if not (isinstance(mean, int | float) and isinstance(std, int | float) and std > 0):
            raise ValueError(f"{where} has mean {mean!r} and std {std!r}; two numbers are needed, the second above 0.")
        return {"mean": float(mean), "std": float(std)}
    field = "vocabulary" if kind == "ctc" else "labels"
    names = one.get(field)
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) for name in names) or not len(names) == len(set(names)) > 1:
        raise ValueError(f"{where}[{field!r}] is {names!r}; at least two different names are needed.")
    if kind == "ctc":
        return {field: list(names)}
    given = {name: one[name] for name in ("loss", "scale", "margin") if name in one}
    scale = validated_loss(where, {**given, "loss": loss})
    scale.pop("loss", None)
    return {field: list(names), **scale}


def _checked_hidden(where: str, tap: Any, pooling: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """`hidden` and `dropout`, or `fusion`, where a readout has them."""
    hidden, fusion = one.get("hidden") or 0, one.get("fusion")
    dropout = one.get("dropout", DROPOUT)
    if not _is_size(hidden, least=0) or not _is_share(dropout):
        raise ValueError(
            f"{where} has hidden {hidden!r} and dropout {dropout!r}; a whole number and a share below 1 are needed."
        )
    if (hidden or fusion) and tap == EMBEDDING:
        raise ValueError(f"{where}['tap'] is 'embedding'; it is one vector already, for which there is no hidden layer.")
    if not fusion:
        return {"hidden": hidden, "dropout": float(dropout)} if hidden else {}
    if hidden or pooling != POOLINGS[0]:
        raise ValueError(f"{where} has a fusion, which takes the place of pooling and hidden: leave them out.")
    return {"fusion": _checked_fusion(f"{where}['fusion']", fusion)}


def _checked_fusion(where: str, fusion: Any) -> dict[str, Any]:
    if not isinstance(fusion, Mapping):
        raise ValueError(f"{where} is {fusion!r}; it must be a mapping.")
    kind = _choice(f"{where}['kind']", fusion.get("kind", FUSIONS[0]), FUSIONS)
    known = {"kind": kind, "tasks": [], **FUSION, **OWN_OF_FUSION.get(kind, {})}
    if unknown := sorted(map(str, set(fusion) - set(known))):
        raise ValueError(f"{where}[{unknown[0]!r}] is unknown; a fusion of kind {kind} has {', '.join(known)}.")
    checked = {**known, **fusion}
    tasks = checked["tasks"]
    is_list = isinstance(tasks, Sequence) and not isinstance(tasks, str)
    if not is_list or len(set(map(str, tasks))) < len(tasks):
        raise ValueError(f"{where}['tasks'] is {tasks!r}; a list of different readouts is needed.")
    if kind in NEED_CONTEXT and not tasks:
        raise ValueError(f"{where} is of kind {kind}, and names no tasks; other tasks give its attention.")
    sizes = {name: checked[name] for name in known if name in ("hidden", "frames", "heads")}
    if not all(_is_size(size) for size in sizes.values()) or not _is_share(checked["dropout"]):
        raise ValueError(
            f"{where} has {sizes} and dropout {checked['dropout']!r}; sizes above 0 and a share below 1 are needed."
        )
    if checked["hidden"] % checked.get("heads", 1):
        raise ValueError(f"{where}: hidden ({checked['hidden']}) must be a multiple of heads ({checked['heads']}).")
    return {**checked, "tasks": list(tasks), "dropout": float(checked["dropout"])}


def _is_size(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _checked_ecapa(where: str, sizes: Any) -> dict[str, int]:
    sizes = {**ECAPA, **(sizes or {})}
    if set(sizes) != set(ECAPA) or not all(type(size) is int and size > 0 for size in sizes.values()):
        raise ValueError(f"{where}['ecapa'] is {sizes!r}; it holds {', '.join(ECAPA)}, each a whole number above 0.")
    if sizes["channels"] % 8:
        raise ValueError(f"{where}['ecapa'] has {sizes['channels']} channels; they must be a multiple of 8.")
    return sizes


class ReadoutOutput(NamedTuple):
    """`vectors` `[B, E]`, `None` of a text whose vector is not asked for; `logits` `[B, C]`, `[B]` or `[B, T, V]`.

    `attention` `[B, T]` is of readouts with a fusion.
    """

    vectors: Tensor | None
    logits: Tensor
    attention: Tensor | None = None


class Readout(nn.Module):
    """What reads one task off the layers of clips of one length.

    Attributes:
        head: `nn.Linear`, or `CosineHead` for aam_softmax.
        layer_weights: of the tap "weighted_sum" `[N + 1]`, before their softmax; else `None`.
        mix: of the taps "ari" and "weighted_blocks" with weights per task; else `None`.
        hidden: its hidden layer, or `None`.
        fusion: what makes its vector of frames and of the vectors of others, or `None`.
    """

    def __init__(self, config: FinetunedWavCSEConfig, name: str):
        super().__init__()
        one, self.layers = config.readouts[name], config.layers_of(name)
        self.kind, self.tap, self.pooling_type = one["kind"], one["tap"], one["pooling"]
        fusions = [other["fusion"] for other in config.readouts.values() if "fusion" in other]
        self.has_vector = self.kind != "ctc" or config.embedding_of == name or any(name in own["tasks"] for own in fusions)
        width = config.frames_size(name)
        self.layer_weights = nn.Parameter(torch.zeros(len(self.layers))) if self.tap == WEIGHTED_SUM else None
        self.mix = _new_mix(config, self.tap) if self.tap in MIXES and config.ari["per_task"] else None
        self.pooling = EcapaTdnn(width, **one["ecapa"]) if self.pooling_type == "ecapa" and self.has_vector else None
        self.hidden, self.fusion, self.context = None, None, ()
        if "fusion" in one:
            own = dict(one["fusion"])
            self.context = tuple(own.pop("tasks"))
            self.fusion = Fusion(width, [config.readouts[task]["hidden"] for task in self.context], **own)
        elif "hidden" in one:
            read = width if self.kind == "ctc" else config.pooled_frames_size(name)
            self.hidden = HiddenLayer(read, one["hidden"], one["dropout"])
        of_embedding = config.embedding_dropout if self.tap == EMBEDDING else 0.0
        self.dropout = nn.Dropout(one["fusion"]["dropout"] if "fusion" in one else of_embedding)
        size = one.get("hidden", width) if self.kind == "ctc" else config.vector_size(name)
        if one["loss"] == "aam_softmax":
            self.head = CosineHead(size, len(one["labels"]), one["scale"], one["margin"])
        else:
            self.head = nn.Linear(size, len(one.get("vocabulary") or one.get("labels") or [name]))

    def forward(
        self, layers: Mapping[int | str, Tensor], embedding: Tensor | None = None, context: Sequence[Tensor] = ()
    ) -> ReadoutOutput:
        """Read `layers`, each `[B, T, D]`, or the `embedding` `[B, E]` of the tap "embedding".

        Args:
            context: of a readout with a fusion, the vectors of the readouts that it names.
        """
        if self.tap == EMBEDDING:
            return ReadoutOutput(embedding, self._of_vector(self.dropout(embedding)))
        frames = self._frames(layers)
        if self.fusion is not None:
            vectors, attention = self.fusion(frames, context)
            return ReadoutOutput(vectors.float(), self._of_vector(self.dropout(vectors)), attention)
        if self.kind == "ctc":
            frames = frames if self.hidden is None else self.hidden(frames)
            return ReadoutOutput(self._pooled(frames) if self.has_vector else None, self.head(frames).float())
        pooled = self._pooled(frames)
        vectors = pooled if self.hidden is None else self.hidden(pooled)
        return ReadoutOutput(vectors, self._of_vector(vectors))

    @property
    def can_join(self) -> bool:
        """Whether `over_groups` can read it: it pools frames."""
        return self.kind != "ctc" and self.tap != EMBEDDING and self.fusion is None

    def over_groups(self, groups: Sequence[Mapping[int | str, Tensor]]) -> ReadoutOutput:
        """Read pooled frames off groups of clips, each group of one length, in one pass.

        ECAPA-TDNN's batch norms then see in training the clips of all groups; those of a group alone may be one.
        """
        frames = [self._frames(layers) for layers in groups]
        pooled = torch.cat([self._pooled(own) for own in frames]) if self.pooling is None else self._pooled_together(frames)
        vectors = pooled if self.hidden is None else self.hidden(pooled)
        return ReadoutOutput(vectors, self._of_vector(vectors))

    def _pooled_together(self, groups: Sequence[Tensor]) -> Tensor:
        frames = [of_clip for group in groups for of_clip in group]
        lengths = torch.tensor([len(of_clip) for of_clip in frames], device=frames[0].device)
        padded = pad_sequence(frames, batch_first=True)
        mask = torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]
        return self.pooling(padded, mask).float()

    def _of_vector(self, vectors: Tensor) -> Tensor:
        logits = self.head(vectors).float()
        return logits[:, 0] if self.kind == "numbers" else logits

    def _frames(self, layers: Mapping[int | str, Tensor]) -> Tensor:
        if self.mix is not None:
            return self.mix(layers)
        if self.layer_weights is None:
            return layers[self.tap]
        shares = self.layer_weights.softmax(dim=0)
        return sum(share * layers[layer] for share, layer in zip(shares, self.layers))

    def _pooled(self, frames: Tensor) -> Tensor:
        if self.pooling is not None:
            return self.pooling(frames).float()
        return frames[:, 0].float() if self.pooling_type == "first" else pooled_frames(frames, self.pooling_type)


def _new_mix(config: FinetunedWavCSEConfig, tap: str) -> LayerMix:
    return LayerMix(tap, config.num_hidden_layers, config.ari["raw"])


@dataclass
class FinetunedWavCSEOutput(ModelOutput):
    """Output of `FinetunedWavCSE`.

    Args:
        embeddings: `[B, E]`, the vectors of the readout `embedding_of`.
        logits: task -> `[B, C]` of classes, `[B]` of numbers (standardised), `[B, T, V]` of texts, with zeros behind a clip's
            frames, whose arg-max is the blank.
        num_frames: `[B]`.
        attention: readout with a fusion -> weight of every frame `[B, T]`, with zeros behind a clip's frames.
    """

    embeddings: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    num_frames: Tensor | None = None
    attention: dict[str, Tensor] | None = None


class FinetunedWavCSE(WavCSEModel):
    """An upstream with a readout per task; `encode` and all else of `WavCSEModel` that makes embeddings works as there.

    `pool_layers` gives the time means of all layers, as `WavCSEModel` does. A clip's output does not depend on its batch.
    """

    config_class = FinetunedWavCSEConfig
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: FinetunedWavCSEConfig, upstream: PreTrainedModel | None = None):
        super().__init__(config, upstream)
        if not config.reads_embedding:
            self.downstream = None
        taps = [] if config.ari is None or config.ari["per_task"] else [one["tap"] for one in config.readouts.values()]
        self.mixes = nn.ModuleDict({tap: _new_mix(config, tap) for tap in MIXES if tap in taps})  # that tasks share
        self.readouts = nn.ModuleDict({name: Readout(config, name) for name in config.readouts})
        self.post_init()
        self.freeze()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Readout) and module.layer_weights is not None:
            init.zeros_(module.layer_weights)
        elif isinstance(module, LayerMix):
            init.constant_(module.weights, module.start)

    def freeze(self) -> None:
        """Take what no readout reads out of the gradient: the final norm without a tap "last"; or else the whole upstream."""
        if any(one["tap"] == LAST for one in self.config.readouts.values()) and not self.config.freeze_upstream:
            return
        super().freeze()

    def forward(
        self,
        input_values: Tensor | Sequence[Tensor],
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        precision: str | None = None,
    ) -> FinetunedWavCSEOutput | tuple:
        """Embed clips and read all tasks.

        Args:
            input_values, attention_mask, precision: as of `WavCSEModel.forward`.
        """
        waveforms = unpadded(self.upstream.config, input_values, attention_mask)
        wanted = self._wanted(list(self.readouts))
        last = self.config.num_hidden_layers
        layers = sorted({last if layer == LAST else layer for layer in wanted})
        options = {"precision": precision or self.config.precision, **self.config.upstream_options}
        del options["temporal_pooling"]
        read, counts = [], []
        for frames in self.run_upstream.frames(self.upstream, waveforms, layers, **options):
            of_clip = dict(zip(layers, frames[None].unbind(dim=2)))
            if LAST in wanted:
                norm = unread_part(self.upstream)
                of_clip[LAST] = of_clip[last] if norm is None else norm(of_clip[last])
            read.append(self.read(self.with_mixes(of_clip, list(self.readouts)), list(self.readouts)))
            counts.append(len(frames))
        output = self._together(read, counts)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def read(self, layers: Mapping[int | str, Tensor], tasks: Sequence[str]) -> dict[str, ReadoutOutput]:
        """What readouts make of layers `[B, T, D]`, which `read_group` and `forward` run the upstream for."""
        embedding = None
        if any(self.readouts[name].tap == EMBEDDING for name in tasks):
            pooled = [pooled_frames(layers[layer], self.config.temporal_pooling) for layer in self.config.selected_layers]
            embedding = self.downstream(torch.stack(pooled, dim=1))
        names = sorted(self.with_context(tasks), key=lambda name: self.readouts[name].fusion is not None)  # these come last
        read: dict[str, ReadoutOutput] = {}
        for name in names:
            readout = self.readouts[name]
            read[name] = readout(layers, embedding, [read[task].vectors for task in readout.context])
        return {name: read[name] for name in tasks}

    def with_context(self, tasks: Sequence[str]) -> list[str]:
        """Tasks, and those that their fusions read, each once."""
        return list(dict.fromkeys([*tasks, *(one for name in tasks for one in self.readouts[name].context)]))

    def with_mixes(self, layers: Mapping[int | str, Tensor], tasks: Sequence[str]) -> dict[int | str, Tensor]:
        """Layers, and the mixes of them that these tasks share, by the names of their taps."""
        taps = {self.readouts[name].tap for name in self.with_context(tasks)}
        return {**layers, **{tap: mix(layers) for tap, mix in self.mixes.items() if tap in taps}}

    def read_group(self, waveforms: Tensor, mask: Tensor | None, tasks: Sequence[str]) -> dict[str, ReadoutOutput]:
        """Read tasks off clips of one length; arguments as of `layers_of_group`."""
        return self.read(self.layers_of_group(waveforms, mask, tasks), tasks)

    def layers_of_group(
        self, waveforms: Tensor | Sequence[Tensor], mask: Tensor | None, tasks: Sequence[str]
    ) -> dict[int | str, Tensor]:
        """The layers that tasks read, as in training: by the transformers modules, with masked frames; each `[B, T, D]`.

        Blocks above the highest layer that these tasks read are not run, so that they get no gradient.

        Args:
            waveforms: `[B, samples]`, normalised, without padding; a list of such groups, for an upstream in training that
                takes one, gives `[1, N, D]`, their frames one after another.
            mask: bool `[B, T]`, or `[1, N]` of a list: frames that the encoder sees its mask vector for (Whisper: silence in
                the spectrogram).
        """
        wanted, found = self._wanted(tasks), {}
        if is_whisper(self.config.upstream_config):
            found = self._layers_of_whisper(waveforms, mask, wanted)
        else:
            with suppress(_EnoughRead), visiting_layers(self.upstream, _keeping(found, wanted)):
                found[LAST] = self.upstream(waveforms, mask_time_indices=mask).last_hidden_state
        return self.with_mixes(found, tasks)

    def _layers_of_whisper(
        self, waveforms: Tensor, mask: Tensor | None, wanted: Collection[int | str]
    ) -> dict[int | str, Tensor]:
        """`layers_of_group` of Whisper's encoder; clips of more frames than it has positions in windows, as in inference."""
        config, context = self.config.upstream_config, self.config.context
        features = torch.stack([log_mel_of_clip(waveform, config, context) for waveform in waveforms])
        if mask is not None:  # two mel frames of 10 ms make one frame
            silent = mask.repeat_interleave(2, dim=1)
            silent = F.pad(silent, (0, features.shape[1] - silent.shape[1]))  # windows of 30 s go on behind the clip
            features = features.masked_fill(silent[:, :, None], 0.0)
        top, parts = self.config.num_hidden_layers, []
        layers = {top if layer == LAST else layer for layer in wanted}
        for window in clip_windows(waveforms[:1], config, None, context):
            found: dict[int, Tensor] = {}
            with suppress(_EnoughRead):
                spectrogram = features[:, 2 * window.start : 2 * window.end].transpose(1, 2)
                visit_encoder_layers(self.upstream, spectrogram, _keeping(found, layers))
            kept = slice(window.keep_start - window.start, window.keep_end - window.start)
            parts.append({layer: hidden[:, kept] for layer, hidden in found.items()})
        joined = {layer: torch.cat([part[layer] for part in parts], dim=1) for layer in layers}
        return {layer: self.upstream.layer_norm(joined[top]) if layer == LAST else joined[layer] for layer in wanted}

    def _wanted(self, tasks: Sequence[str]) -> set[int | str]:
        return {layer for name in self.with_context(tasks) for layer in self.config.layers_of(name)}

    def _together(self, read: Sequence[Mapping[str, ReadoutOutput]], counts: Sequence[int]) -> FinetunedWavCSEOutput:
        """One output of clips that were read one by one."""
        logits = {}
        for name, readout in self.readouts.items():
            own = [of_clip[name].logits for of_clip in read]
            is_text = readout.kind == "ctc"
            logits[name] = pad_sequence([one[0] for one in own], batch_first=True) if is_text else torch.cat(own)
        embeddings = torch.cat([of_clip[self.config.embedding_of].vectors for of_clip in read])
        fused = [name for name, readout in self.readouts.items() if readout.fusion is not None]
        attention = {name: pad_sequence([one[name].attention[0] for one in read], batch_first=True) for name in fused}
        num_frames = torch.tensor(counts, device=embeddings.device)
        return FinetunedWavCSEOutput(embeddings, logits, num_frames, attention or None)


class _EnoughRead(Exception):
    """Ends a pass through the upstream behind the highest layer that is read."""


def _keeping(found: dict, wanted: Collection[int | str]) -> Callable[[int, Tensor], None]:
    """A `visit` that puts wanted layers into `found`, and ends the pass behind the highest of them but for `LAST`."""
    highest = None if LAST in wanted else max(wanted)

    def visit(layer: int, hidden: Tensor) -> None:
        if layer in wanted:
            found[layer] = hidden
        if layer == highest:
            raise _EnoughRead

    return visit
