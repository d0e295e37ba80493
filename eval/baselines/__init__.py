"""Baselines behind the same encoder contract, and which encoders an evaluation of a model consists of.

Nothing is loaded before it is asked for: options and tables need the names alone, and a baseline may need a library that is
not installed everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from wavcse.eval.encoder import Encoder

DEFAULT_NAME = "wavcse"


def _loaded(module: str, encoder: str, *arguments: object) -> Encoder:
    """An encoder of a module of this package."""
    return getattr(import_module(f"{__name__}.{module}"), encoder)(*arguments)


LAYER_BASELINES: dict[str, Callable[..., Encoder]] = {
    "last_layer": partial(_loaded, "layers", "LastLayerEncoder"),
    "mean_layers": partial(_loaded, "layers", "MeanLayersEncoder"),
    "best_layer": partial(_loaded, "layers", "BestLayerEncoder"),
}
# Name -> constructor, given the evaluated model (a `LayerSource` or None); in the order in which tables show them.
BASELINES: dict[str, Callable[..., Encoder]] = {
    **LAYER_BASELINES,
    "mfcc": lambda model: _loaded("mfcc", "MFCCEncoder"),
    "egemaps": lambda model: _loaded("egemaps", "EGeMAPSEncoder"),
    "resemblyzer": lambda model: _loaded("resemblyzer", "ResemblyzerEncoder"),
    "majority": lambda model: _loaded("majority", "MajorityEncoder"),
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
        ImportError: a baseline needs a library that is not installed; the message says what to type.
    """
    from wavcse.eval.encoder import WAVCSE_TYPES, SavedModel, WavCSEEncoder

    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise ValueError(f"baselines: unknown {unknown}; allowed: {', '.join(BASELINES)}.")
    asked = list(dict.fromkeys(baselines))
    if not model:
        return [BASELINES[baseline](None) for baseline in asked]
    if SavedModel.parse(model).model_type in WAVCSE_TYPES:
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
    from wavcse.eval.baselines.layers import UpstreamLayers

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
    from wavcse.eval.encoder import SavedModel

    path = Path(SavedModel.parse(model).path)
    return re.sub(r"[^\w.-]+", "-", path.resolve().name if path.exists() else path.name)
