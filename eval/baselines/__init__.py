"""Baselines behind the same encoder contract, and which encoders an evaluation of a model consists of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from wavcse.eval.baselines.layers import (
    BestLayerEncoder,
    LastLayerEncoder,
    LayerEncoder,
    LayerSource,
    MeanLayersEncoder,
    UpstreamLayers,
)
from wavcse.eval.baselines.mfcc import MFCCEncoder
from wavcse.eval.encoder import WAVCSE_TYPE, Encoder, SavedModel, WavCSEEncoder

DEFAULT_NAME = "wavcse"
LAYER_BASELINES: dict[str, type[LayerEncoder]] = {
    baseline.baseline: baseline for baseline in (LastLayerEncoder, MeanLayersEncoder, BestLayerEncoder)
}
# Name -> constructor, given the evaluated model; in the order in which tables show them.
BASELINES: dict[str, Callable[[LayerSource | None], Encoder]] = {
    **LAYER_BASELINES,
    "mfcc": lambda model: MFCCEncoder(),
    "majority": lambda model: MajorityEncoder(),
}


def build_encoders(
    model: str | None,
    name: str | None,
    baselines: Sequence[str],
    device: str | torch.device = "cpu",
    precision: str | None = None,
    temporal_pooling: str | None = None,
    context: str | None = None,
) -> list[Encoder]:
    """What an evaluation runs: the model, if one is given, then the baselines asked for.

    A wavCSE model is an encoder itself, and the layer baselines read its upstream. Any other audio checkpoint has no
    embedding of its own: it is shown by its layer baselines, all of them unless some are asked for, under names such as
    `hubert-large-ll60k_last_layer`, so that several checkpoints can share a folder of results.

    Args:
        model: folder or Hub id (`id@revision`). The Python files of a wavCSE model are run, those of others never.
        name: of the model in tables; `None` or "wavcse" = "wavcse" for a wavCSE model, the last part of its path or id for
            another one.
        baselines: names from `BASELINES`.
        precision: of the upstream's matrix products; `None` = the model's own.
        temporal_pooling: of the layers of a checkpoint that is not a wavCSE model, "mean" or "mean_std"; `None` = "mean", or
            the wavCSE model's own.
        context: of a Whisper checkpoint, "clip" or "window"; `None` = "clip", or the wavCSE model's own.

    Raises:
        ValueError: a wavCSE model that pools otherwise or has another context; an unknown baseline; one that needs a model and
            there is none; the model cannot be loaded or is not an audio model.
    """
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise ValueError(f"baselines: unknown {unknown}; allowed: {', '.join(BASELINES)}.")
    asked = list(dict.fromkeys(baselines))
    if not model:
        return [BASELINES[baseline](None) for baseline in asked]
    if SavedModel.parse(model).model_type == WAVCSE_TYPE:
        own = WavCSEEncoder(model, name or DEFAULT_NAME, device, precision)
        if temporal_pooling not in (None, own.temporal_pooling):
            raise ValueError(
                f"temporal_pooling is {temporal_pooling!r}, but the model {model!r} pools by {own.temporal_pooling!r}: leave "
                "it out, or evaluate its upstream."
            )
        if context not in (None, own.context):
            raise ValueError(
                f"context is {context!r}, but the model {model!r} has {own.context!r}: leave it out, or evaluate its upstream."
            )
        return [own, *(BASELINES[baseline](own) for baseline in asked)]
    prefix = name if name not in (None, DEFAULT_NAME) else short_name(model)
    layers = UpstreamLayers(model, device, precision, temporal_pooling or "mean", context)
    readouts = [baseline for baseline in asked if baseline in LAYER_BASELINES] or list(LAYER_BASELINES)
    others = [baseline for baseline in asked if baseline not in LAYER_BASELINES]
    return [
        *(LAYER_BASELINES[readout](layers, f"{prefix}_{readout}") for readout in readouts),
        *(BASELINES[baseline](None) for baseline in others),
    ]


def short_name(model: str) -> str:
    """`facebook/hubert-large-ll60k@main` -> `hubert-large-ll60k`; letters, digits and . _ - only, as it names files."""
    path = Path(SavedModel.parse(model).path)
    return re.sub(r"[^\w.-]+", "-", path.resolve().name if path.exists() else path.name)


# ---- chance ----


class MajorityEncoder:
    """Chance: embeddings of size 0.

    What is fitted on them can only answer what suits the training clips best without looking: the most frequent label, the
    mean or median of the target, or one score for all trials.
    """

    name = "majority"
    sampling_rate = 16_000
    embedding_size = 0

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """An empty row per clip, `[N, 0]`."""
        return np.empty((len(waveforms), 0), dtype=np.float32)
