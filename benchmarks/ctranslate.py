"""CTranslate2's Whisper encoder as a rival, in float32 and int8, filled up to 30 s and at the clip's own length.

`ctranslate2` is no dependency of this project. Where it is not installed (`pip install --target FOLDER --no-deps ctranslate2`,
and `PYTHONPATH=FOLDER`), or where the weights are random, these rivals are left out with a word: its converter reads a saved
checkpoint with its tokenizer. Its encoder gives the last layer only, after the final norm. Programs that use it, such as
faster-whisper, fill every clip up to 30 s; its encoder also takes fewer frames.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

ENGINE, PACKAGE = "CTranslate2", "ctranslate2"
PRECISIONS = ("float32", "int8")
PADDINGS = {"30 s": {"padding": "max_length"}, "clip": {"padding": "longest", "pad_to_multiple_of": 320}}
RATE_HZ = 16_000


def engine_ways(model: str | None, extractor: WhisperFeatureExtractor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Title -> `[samples]` -> the mean over the frames that hold audio of the last layer, `[1, D]`; none if it is missing."""
    if model is None or find_spec(PACKAGE) is None:
        reason = f"{PACKAGE} is not installed" if model is not None else "it needs a saved checkpoint"
        print(f"{ENGINE} is left out: {reason}.")
        return {}
    ways = {}
    for precision in PRECISIONS:
        encoder = loaded(model, precision)
        for name, padding in PADDINGS.items():
            ways[f"{ENGINE} {precision}, {name}"] = lambda clip, encoder=encoder, padding=padding: _last_layer(
                encoder, extractor(clip.numpy(), sampling_rate=RATE_HZ, return_tensors="np", **padding), len(clip)
            )
    return ways


def engine_version() -> str:
    """As a report shows it."""
    return f"{ENGINE} {version(PACKAGE)}"


def loaded(model: str, precision: str) -> Any:
    """The converted checkpoint, with as many threads as PyTorch has."""
    ctranslate2 = importlib.import_module(PACKAGE)
    converters = importlib.import_module(f"{PACKAGE}.converters")
    with tempfile.TemporaryDirectory() as folder:
        converted = converters.TransformersConverter(model).convert(str(Path(folder) / "model"))
        threads = {"intra_threads": torch.get_num_threads(), "inter_threads": 1}
        return ctranslate2.models.Whisper(converted, device="cpu", compute_type=precision, **threads)


def _last_layer(encoder: Any, features: dict[str, np.ndarray], num_samples: int) -> Tensor:
    view = importlib.import_module(PACKAGE).StorageView.from_array(np.ascontiguousarray(features["input_features"]))
    frames = torch.from_numpy(np.array(encoder.encode(view)))[0, : -(-num_samples // 320)]
    return frames.mean(dim=0, keepdim=True)
