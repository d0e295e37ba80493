"""`WavCSEModel.encode`: clips of any kind, one or many, straight to an array of embeddings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .audio_wavcse import load_waveform
from .feature_extraction_wavcse import WavCSEFeatureExtractor
from .waveform_wavcse import QUIET_RMS, as_clips, rms

logger = logging.get_logger(__name__)


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    inputs: Any,
    batch_seconds: float,
    show_progress_bar: bool | None,
    convert_to_numpy: bool,
    normalize_embeddings: bool,
    truncate_dim: int | None,
    precision: str | None,
    scale_quiet: bool,
) -> np.ndarray | Tensor:
    """See `WavCSEModel.encode`."""
    size = checked_size(truncate_dim, model.config.embedding_size)
    clips, is_single = as_clips(inputs)
    if show_progress_bar is None:
        show_progress_bar = logger.getEffectiveLevel() <= logging.INFO
    model.eval()
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    options = {"sampling_rate": feature_extractor.sampling_rate, "scale_quiet": scale_quiet, "return_tensors": "pt"}
    embeddings, num_quiet = [torch.empty(0, size)], 0
    with logging.tqdm(total=len(clips), desc="encode", unit="clip", disable=not show_progress_bar) as bar:
        for waveforms in batches_in_order(clips, feature_extractor, batch_seconds):
            batch = feature_extractor(waveforms, device=model.device, **options)
            with torch.autocast(model.device.type, enabled=False):  # the precision is `precision`, whatever surrounds the call
                output = model(**batch, precision=precision, return_dict=True)
            embeddings.append(output.embeddings[:, :size].float().cpu())
            num_quiet += sum(0.0 < rms(waveform) < QUIET_RMS for waveform in waveforms)
            bar.update(len(waveforms))
    if num_quiet and not scale_quiet:
        logger.warning(
            f"{num_quiet} of {len(clips)} clips are quieter than {20 * math.log10(QUIET_RMS):.0f} dB of full scale: their "
            "embeddings drift to that of silence. `encode(..., scale_quiet=True)` brings them to the level of usual speech."
        )
    result = torch.cat(embeddings)
    if normalize_embeddings:
        result = torch.nn.functional.normalize(result, dim=1)
    result = result[0] if is_single else result
    return result.numpy() if convert_to_numpy else result


def batches_in_order(
    clips: Sequence[Any], feature_extractor: WavCSEFeatureExtractor, batch_seconds: float
) -> Iterator[list[np.ndarray]]:
    """Load clips one after another into batches of about `batch_seconds`; no more than one batch is held.

    The packed upstream computes no padding, so clips need no sorting by length and results come in input order.

    Raises:
        ValueError: a clip cannot be read or served; the message names it by its path or position.
    """
    if not (isinstance(batch_seconds, int | float) and batch_seconds > 0):
        raise ValueError(f"batch_seconds is {batch_seconds}; it must be a positive number of seconds.")
    budget = batch_seconds * feature_extractor.sampling_rate
    batch: list[np.ndarray] = []
    used = 0
    for position, clip in enumerate(clips):
        name = str(clip) if isinstance(clip, str | os.PathLike) else f"clip {position}"
        waveform = load_waveform(clip, feature_extractor.sampling_rate, name, feature_extractor.max_duration_s)
        feature_extractor.check(waveform, name)
        if batch and used + waveform.size > budget:
            yield batch
            batch, used = [], 0
        batch.append(waveform)
        used += waveform.size
    if batch:
        yield batch


def checked_size(truncate_dim: int | None, embedding_size: int) -> int:
    """How many numbers of the embedding to keep; ValueError if that is out of range."""
    size = embedding_size if truncate_dim is None else truncate_dim
    if not isinstance(size, int) or not 1 <= size <= embedding_size:
        raise ValueError(f"truncate_dim is {truncate_dim}; it must lie in 1..{embedding_size}, the size of the embedding.")
    return size
