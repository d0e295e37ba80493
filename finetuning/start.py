"""The network that a training on several tasks starts from: from nothing, a checkpoint, or a wavCSE model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from wavcse.coattention_wavcse import MIXES
from wavcse.configuration_wavcse import OWN_FIELDS, WavCSEConfig, is_whisper
from wavcse.finetuned_wavcse import EMBEDDING, LAST, WEIGHTED_SUM, FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.labelled_clips import LabelledClips
from wavcse.finetuning.text import bias_start
from wavcse.modeling_wavcse import AUDIO_SETTINGS, CosineHead, WavCSEForMultiTask, WavCSEModel, config_from_upstream
from wavcse.steps.encoder import encoder_config, new_encoder, receptive_field
from wavcse.training.fast_parts import use_linear
from wavcse.upstream_wavcse import load_upstream, read_config

# Of a `FinetunedWavCSE` that reads no wavCSE embedding: fields of `WavCSEConfig` that then mean nothing.
NO_EMBEDDING = {"layer_projection_size": None, "pooling_type": "mean"}


def start_config(args: MultiTaskArguments) -> WavCSEConfig | None:
    """The configuration of the wavCSE model in `init_from`, or of an earlier stage; `None` where it is another, or nothing."""
    if args.stage_before is not None:
        return FinetunedWavCSEConfig.from_pretrained(args.stage_before / "hub")
    config = None if args.start is None else read_config(args.start)
    return config if isinstance(config, WavCSEConfig) else None


def upstream_config(args: MultiTaskArguments) -> PretrainedConfig:
    """That of the upstream in training.

    Raises:
        ValueError: it is of a family that cannot be trained here, or `encoder` does not fit.
    """
    if args.start is not None:
        config = read_config(args.start)
        config = getattr(config, "upstream_config", config)
        if is_whisper(config):
            if args.encoder:
                raise ValueError("encoder: fields of a Whisper encoder cannot be changed; leave them out.")
            return config
    config = encoder_config(args.encoder, args.start)
    receptive_field(config)  # refuses a stem whose frames are not 20 ms apart
    return config


def network_config(args: MultiTaskArguments, readouts: Mapping[str, Mapping[str, Any]]) -> FinetunedWavCSEConfig:
    """The configuration of the network that is trained.

    Raises:
        ValueError: a tap is none of its layers, or the tap "embedding" is asked of an upstream without one.
    """
    upstream, base = upstream_config(args), start_config(args)
    fields: dict[str, Any] = dict(NO_EMBEDDING)
    if any(one["tap"] == EMBEDDING for one in readouts.values()):
        if base is None:
            raise ValueError("a tap is 'embedding'; that is wavCSE's own, so init_from must be a wavCSE model.")
        fields = {name: getattr(base, name) for name in OWN_FIELDS - {"tasks", "freeze_upstream", "precision"}}
    elif args.start is not None:
        audio = base or config_from_upstream(args.start, selected_layers=[0])
        fields |= {name: getattr(audio, name) for name in AUDIO_SETTINGS}
    if "selected_layers" not in fields:
        fields["selected_layers"] = [_highest(readouts, upstream.num_hidden_layers)]
    return FinetunedWavCSEConfig(
        **{**fields, "upstream_config": upstream},
        freeze_upstream=False,
        readouts={name: args.readout_of(name, one) for name, one in readouts.items()},
        embedding_of=args.embedding_of,
        ari=asdict(args.mix_settings()),
    )


def _highest(readouts: Mapping[str, Mapping[str, Any]], num_blocks: int) -> int:
    """The highest layer that is read: blocks above it are neither trained nor kept."""
    taps = [num_blocks if one["tap"] in (LAST, WEIGHTED_SUM, *MIXES) else one["tap"] for one in readouts.values()]
    return max(taps)


def new_network(args: MultiTaskArguments, config: FinetunedWavCSEConfig, labelled: LabelledClips) -> FinetunedWavCSE:
    """The network, its heads started from the seed and the training data."""
    torch.manual_seed(args.seed)
    upstream = _new_upstream(args, config.upstream_config)
    torch.manual_seed(args.seed)  # so that all upstreams start under the same heads
    model = FinetunedWavCSE(config, upstream)
    _start_heads(model, labelled)
    if args.stage_before is not None:
        _take_over_stage(model, args.stage_before / "hub")
    elif config.reads_embedding:
        _take_over(model, args.start)
    if args.fast_parts:
        use_linear(model.readouts)
    return model


def _new_upstream(args: MultiTaskArguments, config: PretrainedConfig) -> PreTrainedModel:
    if not is_whisper(config):
        return new_encoder(config, args.start, args.fast_parts)
    encoder = load_upstream(args.start, config)
    encoder.embed_positions.requires_grad_(False)  # Whisper's sinusoids are no weights, which transformers' loading forgets
    if args.fast_parts:
        use_linear(encoder)
    return encoder


@torch.no_grad()
def _start_heads(model: FinetunedWavCSE, labelled: LabelledClips) -> None:
    """Cosine heads by Xavier's normal distribution; the bias of a text's head by the symbols' frequencies."""
    for name, readout in model.readouts.items():
        if isinstance(readout.head, CosineHead):
            nn.init.xavier_normal_(readout.head.weight)
        task = labelled.tasks[name]
        if readout.kind == "ctc":
            texts = task.labels[task.rows("train")]
            readout.head.bias.copy_(bias_start(task.readout["vocabulary"], texts))


def _take_over(model: FinetunedWavCSE, init_from: str) -> None:
    """The embedding's own layers of a wavCSE model, and its heads of tasks with the same name and the same classes."""
    source = WavCSEModel.from_pretrained(init_from)
    model.downstream.load_state_dict(source.downstream.state_dict())
    if not source.config.tasks:
        return
    heads = WavCSEForMultiTask.from_pretrained(init_from).heads.tasks
    for name, task in source.config.tasks.items():
        own = model.config.readouts.get(name)
        is_same = own is not None and own["tap"] == EMBEDDING and own.get("labels") == task.get("labels")
        if is_same and own["kind"] == "classes" and own["loss"] == task.get("loss", "cross_entropy"):
            model.readouts[name].head.load_state_dict(heads[name].state_dict())


def _take_over_stage(model: FinetunedWavCSE, folder: Path) -> None:
    """All that an earlier stage has trained beside the upstream: readouts of the same names, and layers that they share.

    Raises:
        ValueError: a task reads something else than it did there, or has other classes or symbols.
    """
    source = FinetunedWavCSE.from_pretrained(folder)
    for tap, mix in source.mixes.items():
        if tap in model.mixes:
            model.mixes[tap].load_state_dict(mix.state_dict())
    if model.downstream is not None:
        model.downstream.load_state_dict(source.downstream.state_dict())
    for name, readout in source.readouts.items():
        if name not in model.readouts:
            continue
        before, now = source.config.readouts[name], model.config.readouts[name]
        if different := sorted(field for field in {*before, *now} if before.get(field) != now.get(field)):
            raise ValueError(f"tasks.{name}: differs from what {folder} was trained on ({', '.join(different)}).")
        model.readouts[name].load_state_dict(readout.state_dict())
