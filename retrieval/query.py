"""Recordings as vectors of the space that a table is in: by its model, with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavcse.data.arguments import check_inputs
from wavcse.data.manifest import Clip
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.embed import Embedder, EmbedSettings
from wavcse.settings.fields import usable_device

WINDOWS = ("window_s", "hop_s")  # how clips were cut; a query is embedded as a whole


def embedder_for(model: str, device: str = "auto", settings: EmbedSettings | None = None) -> Embedder:
    """A model that embeds single recordings."""
    return Embedder(model, settings or EmbedSettings(), torch.device(usable_device(device)), batch_seconds=60.0)


def embedder_of(table: StoredEmbeddings, model: str | None = None, device: str = "auto") -> Embedder:
    """The model that made a table, with the table's precision, size and normalisation.

    Args:
        model: where it is now, if not where the table says.

    Raises:
        ValueError: it is not there, or it is another model.
    """
    about = table.metadata
    model = model or about.get("model")
    if model is None:
        raise ValueError(f"{table.path}: does not say where its model is; give --model.")
    check_inputs([], model)
    settings = EmbedSettings(
        precision=about["precision"],
        truncate_dim=about["embedding_size"],
        normalize=about["normalize"],
        scale_quiet=bool(about.get("scale_quiet")),
    )
    embedder = embedder_for(model, device, settings)
    check_same_space(table.path, about, embedder, model, but=WINDOWS)
    return embedder


def check_same_space(place: Path, about: Mapping[str, Any], embedder: Embedder, model: str, but: Sequence[str] = ()) -> None:
    """ValueError if what the file `place` says of its vectors differs from what `embedder` gives, fields `but` left aside."""
    differing = [
        f"{name} {about.get(name)!r} there, {value!r} here"
        for name, value in embedder.key.items()
        if name not in but and about.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{place}: was made by another model than {model} ({'; '.join(differing)}). Give that model with --model."
        )


def embed_recordings(embedder: Embedder, recordings: Sequence[str | Path]) -> np.ndarray:
    """Float32 `[N, E]` of audio files, each as a whole; ValueError names one that cannot be used."""
    loaded = [embedder.load(Clip(str(recording), Path(recording))) for recording in recordings]
    return np.concatenate([rows for *_, rows in embedder.compute(loaded)])
