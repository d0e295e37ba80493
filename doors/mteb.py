"""mteb: an encoder for its audio tasks (MAEB), `mteb.evaluate(WavCSEMtebEncoder(FOLDER_OR_HUB_ID), tasks=[...])`.

Source: https://github.com/embeddings-benchmark/mteb, `mteb/models/models_protocols.py` and `model_meta.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import CONFIG_NAME

from wavcse.eval.encoder import SavedModel, WavCSEEncoder
from wavcse.settings.libraries import optional_library

AbsEncoder = optional_library("mteb.models.abs_encoder", "mteb").AbsEncoder
ModelMeta = optional_library("mteb.models.model_meta", "mteb").ModelMeta
languages_of = optional_library("mteb.languages.iso_mappings", "mteb")._hf_langs_to_iso_lang_scripts  # it has no public one

COLUMN = "audio"  # as mteb calls what a task embeds
REVISION_DIGITS = 40  # of a commit, which mteb wants
BYTES_PER_NUMBER = 4
MIB = 2**20


class WavCSEMtebEncoder(AbsEncoder):
    """A saved wavCSE model as mteb takes it; audio is read and resampled as `encode` does, without torchcodec and torchaudio.

    Args:
        model_name: folder or Hub id (`id@revision`); its Python files are run, so name only models that you trust.
        revision: commit on the Hub.
        device: torch device.
        fields: of `mteb.ModelMeta`, such as `name`, `release_date` or `training_datasets`, mteb's names of what the model and
            its upstream have seen; given ones win over those of `model_meta`.

    Attributes:
        mteb_model_meta: the `ModelMeta`.

    Raises:
        ImportError: mteb is not installed; on import of this module.
        ValueError: the model cannot be loaded, or a field is unknown or wrong.
    """

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None, **fields: Any):
        name = f"{model_name}@{revision}" if revision else model_name
        encoder = WavCSEEncoder(name, device=device or "cpu")
        self.model = encoder.model
        self.mteb_model_meta = model_meta(SavedModel.parse(name), encoder, **fields)

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings `[N, E]` of the column `audio` of what a task loads.

        Args:
            inputs: mteb's loader. Its rows are read again by one whose collator leaves clips as they are: paths, bytes, arrays
                with their rate, decoders.
            task_metadata, hf_split, hf_subset, prompt_type: nothing depends on them.
            batch_size: that of the loader counts.
            precision: as of sentence-transformers: "float32", "binary" or "ubinary".

        Raises:
            ValueError: there is no audio, or a clip cannot be served.
        """
        quantize = None if precision in (None, "float32") else precision
        batches = DataLoader(undecoded(inputs.dataset), batch_size=inputs.batch_size, collate_fn=clips_of)
        return np.concatenate(
            [
                self.model.encode(clips, show_progress_bar=False, quantize=quantize)
                for clips in tqdm(batches, disable=not show_progress_bar)
            ]
        )


def undecoded(dataset: Any) -> Any:
    """A `datasets.Dataset` whose clips stay what they are stored as; ValueError where it has none."""
    features = dataset.features
    if COLUMN not in features:
        raise ValueError(f"The task has no audio: its columns are {', '.join(features)}.")
    if not hasattr(features[COLUMN], "decode"):  # paths, or arrays with their rate
        return dataset
    audio = type(features[COLUMN])
    return dataset.cast_column(COLUMN, audio(decode=False))


def clips_of(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The clips of some rows; the collator."""
    return [row[COLUMN] for row in rows]


def model_meta(model: SavedModel, encoder: WavCSEEncoder, **fields: Any) -> ModelMeta:
    """What mteb keeps of a model: from its files, its card and its configuration, and from `fields`, which win.

    A folder is called `wavcse/` and its name; its revision is the beginning of the hash of its weights, so that results of
    other weights are not taken for its own, and it was released when its configuration was written.
    """
    card, config, folder = model.card_fields(), encoder.model.config, Path(model.path)
    is_local = folder.exists()
    num_parameters = encoder.model.num_parameters()
    found = {
        "loader": WavCSEMtebEncoder,
        "name": f"wavcse/{folder.resolve().name}" if is_local else model.path,
        "revision": encoder.identity.get("revision") or encoder.identity["weights_sha256"][:REVISION_DIGITS],
        "release_date": _written_on(folder / CONFIG_NAME) if is_local else None,
        "languages": languages_of(card.get("language")),
        "n_parameters": num_parameters,
        "n_embedding_parameters": 0,  # of tokens
        "memory_usage_mb": num_parameters * BYTES_PER_NUMBER / MIB,
        "max_tokens": float("inf"),  # long clips are taken in windows
        "embed_dim": config.embedding_size,
        "license": card.get("license"),
        "open_weights": True,
        "public_training_code": None,
        "public_training_data": None,
        "training_datasets": None,
        "framework": ["PyTorch", "Transformers", "safetensors"],
        "reference": None if is_local else f"https://huggingface.co/{model.path}",
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "modalities": ["audio"],
    }
    return ModelMeta(**{**found, **fields})


def _written_on(file: Path) -> str:
    return date.fromtimestamp(file.stat().st_mtime).isoformat()
