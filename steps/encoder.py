"""The encoder in training: transformers' WavLM, wav2vec2 or HuBERT, built or loaded, with the parts of `fast_encoder.py`.

No encoder is ever given padding: clips of one length go through together (`steps/batches.py`). The group norm in the stem of
the base shape takes its statistics over the frames of one clip. So in neither shape do the other clips of a batch change a
clip's output; the length of a crop does, in the base shape as early as in the stem. (A HuBERT with `conv_pos_batch_norm` is
the exception: in training, a batch norm sees all clips of one length.)

Shapes: `B` clips of one length, `T` frames, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    HubertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.configuration_wavcse import frame_geometry, is_whisper
from wavcse.steps.fast_encoder import use_fast_parts
from wavcse.upstream_wavcse import build_upstream, load_upstream, read_config

FAMILIES: dict[str, type[PretrainedConfig]] = {"wavlm": WavLMConfig, "wav2vec2": Wav2Vec2Config, "hubert": HubertConfig}
# What differs from the families' defaults, which are the base shape: the large shape (its norms look at no other frame) with
# biases in the stem (else its norms would hide how loud a frame is), and no random loss of layers or features beside the mask.
SHAPE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WINDOW = 400  # samples, 25 ms: of a filter that starts as a mel band, and of a mel frame
FRAME_HOP = 320  # samples between two frames of the encoder
PHASES = 4  # of each frequency in a first convolution that starts as a filterbank
MASKING = {"apply_spec_augment": True, "mask_time_prob": 0.05, "mask_feature_prob": 0.0, "layerdrop": 0.0}


def encoder_config(fields: Mapping[str, Any], init_from: str | None) -> PretrainedConfig:
    """The configuration of a new encoder, or that of a checkpoint with `fields` changed.

    Args:
        fields: of the family's configuration class; a new encoder is a WavLM unless `model_type` among them says otherwise.

    Raises:
        ValueError: the checkpoint is of no family in `FAMILIES`, a field is not one of its configuration class or of another
            type there, or sizes do not fit together.
    """
    fields = dict(fields)
    config = _new_config(fields.pop("model_type", None)) if init_from is None else _read_config(fields, init_from)
    family = type(config)
    unknown = sorted(set(fields) - set(config.to_dict()), key=str)
    if unknown:
        raise ValueError(f"encoder: {unknown} are not fields of {family.__name__}.")
    _check_types(fields, family)
    merged = {**config.to_dict(), **MASKING, **fields}
    _check_sizes(merged)
    if merged.get("add_adapter"):
        raise ValueError("encoder: add_adapter is true; its frames would not be those of the encoder's blocks.")
    merged["num_feat_extract_layers"] = len(merged["conv_dim"])
    return family(**merged)


def _new_config(model_type: Any) -> PretrainedConfig:
    model_type = "wavlm" if model_type is None else model_type
    if model_type not in FAMILIES:
        raise ValueError(f"encoder: model_type is {model_type!r}; allowed: {', '.join(FAMILIES)}.")
    return FAMILIES[model_type](**SHAPE)


def _read_config(fields: dict[str, Any], init_from: str) -> PretrainedConfig:
    """That of the encoder in a checkpoint; `model_type` is taken out of `fields`."""
    config = read_config(init_from)
    config = getattr(config, "upstream_config", config)  # of a wavCSE model
    if type(config) not in FAMILIES.values():
        raise ValueError(
            f"init_from: {init_from} is a {config.model_type}; only {', '.join(FAMILIES)} encoders can be trained here."
        )
    asked = fields.pop("model_type", config.model_type)
    if asked != config.model_type:
        raise ValueError(f"encoder: model_type is {asked!r}, and {init_from} is a {config.model_type}.")
    return config


def _check_types(fields: Mapping[str, Any], family: type[PretrainedConfig]) -> None:
    """ValueError names the first field of another type than the configuration's, which looks at each value as it is set."""
    config = family()
    for name, value in fields.items():
        try:
            setattr(config, name, value)
        except StrictDataclassError as error:
            raise ValueError(f"Validation error for field {name!r} of encoder: {error.__cause__}") from error


def _check_sizes(merged: Mapping[str, Any]) -> None:
    """ValueError if the stem's lists differ in length, or the width cannot be shared among the heads."""
    lists = [len(merged[name]) for name in ("conv_dim", "conv_kernel", "conv_stride")]
    if len(set(lists)) > 1:
        raise ValueError(f"encoder: conv_dim, conv_kernel and conv_stride have {lists} entries; they must be as many.")
    if merged["num_attention_heads"] < 1:
        raise ValueError(f"encoder: num_attention_heads is {merged['num_attention_heads']}; it must be above 0.")
    if merged["hidden_size"] % merged["num_attention_heads"]:
        raise ValueError(
            f"encoder: hidden_size {merged['hidden_size']} must be a multiple of its {merged['num_attention_heads']} heads."
        )


def new_encoder(config: PretrainedConfig, init_from: str | None = None, fast_parts: bool = True) -> PreTrainedModel:
    """The encoder, random or a checkpoint's, with its fast parts in place if they are wanted.

    A random encoder whose first convolution spans the window of a spectrogram starts with that spectrogram's filters.
    """
    if init_from is None:
        encoder = build_upstream(config)
        first = encoder.feature_extractor.conv_layers[0].conv
        if first.kernel_size[0] >= WINDOW:
            start_as_filterbank(first)
    else:
        encoder = load_upstream(init_from, config)
    return use_fast_parts(encoder) if fast_parts else encoder


def receptive_field(config: PretrainedConfig) -> int:
    """Samples that a frame of the encoder's convolutions sees.

    Raises:
        ValueError: its frames are not 320 samples apart.
    """
    field, hop = frame_geometry(config)
    if hop != FRAME_HOP:
        raise ValueError(
            f"conv_stride {list(config.conv_stride)} gives a frame every {hop} samples; their product must be {FRAME_HOP}."
        )
    return field


@torch.no_grad()
def start_as_filterbank(conv: nn.Conv1d) -> None:
    """Set a convolution on waveforms to windowed waves: frequencies evenly spaced in mel, each in four phases.

    The rectified four phases together carry a band's magnitude, which random filters of this length are slow to find
    (Zeghidour et al. 2018, "Learning filterbanks from raw speech", start theirs alike). Each filter has the length that
    the usual random start gives it. They are trained like every weight.
    """
    channels, _, kernel = conv.weight.shape
    top_mel = hertz_to_mel(SAMPLING_RATE_HZ / 2, mel_scale="slaney")
    bands = -(-channels // PHASES)
    frequencies = mel_to_hertz(np.linspace(0, top_mel, bands + 2)[1:-1], mel_scale="slaney")
    angle = 2 * np.pi * np.outer(frequencies, np.arange(kernel) - kernel / 2) / SAMPLING_RATE_HZ
    waves = np.stack([np.cos(angle + phase) for phase in np.arange(PHASES) * 2 * np.pi / PHASES], axis=1)
    filters = waves.reshape(-1, kernel)[:channels] * np.hanning(kernel)
    filters *= math.sqrt(2) / np.linalg.norm(filters, axis=1, keepdims=True)
    conv.weight.copy_(torch.from_numpy(filters)[:, None])


def freeze_stem(encoder: PreTrainedModel) -> None:
    """Leave the convolutions as they are; HuBERT's model has no method of its own for it."""
    encoder.feature_extractor._freeze_parameters()


def save_upstream(encoder: PreTrainedModel, folder: Path, do_normalize: bool = True) -> None:
    """Write the transformers folder, with the preprocessor, that `WavCSEModel.from_upstream` takes."""
    encoder.save_pretrained(folder)
    if is_whisper(encoder.config):
        preprocessor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    else:
        preprocessor = Wav2Vec2FeatureExtractor(
            sampling_rate=SAMPLING_RATE_HZ, do_normalize=do_normalize, return_attention_mask=True
        )
    preprocessor.save_pretrained(folder)
