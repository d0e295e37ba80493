"""`pipeline("feature-extraction", model=..., trust_remote_code=True)` on speech: one clip in, one embedding out."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Pipeline

from .audio_wavcse import load_waveform


class WavCSEFeatureExtractionPipeline(Pipeline):
    """Embed speech clips.

    A clip is a path, an `http(s)://` URL, the bytes of an audio file, a 1-D array at the model's rate, or a mapping with
    `"array"` (or `"raw"`) and `"sampling_rate"`; other rates are resampled. A list of clips gives a list of results.

    `precision` ("float32", "bfloat16" or "int8"), at construction or call, sets that of the upstream's matrix products.

    Returns per clip `[[e_1, ..., e_E]]`, or with `return_tensors=True` a float tensor of shape `[1, E]`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def _sanitize_parameters(
        self, precision: str | None = None, return_tensors: bool | None = None
    ) -> tuple[dict, dict, dict]:
        forward = {} if precision is None else {"precision": precision}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, inputs: Any) -> dict[str, Tensor]:
        rate = self.feature_extractor.sampling_rate
        return self.feature_extractor(load_waveform(inputs, rate), sampling_rate=rate, return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Tensor], precision: str | None = None) -> dict[str, Tensor]:
        return {"embeddings": self.model(**model_inputs, precision=precision)[0]}

    def postprocess(self, model_outputs: dict[str, Tensor], return_tensors: bool = False) -> Tensor | list[list[float]]:
        embeddings = model_outputs["embeddings"]
        return embeddings if return_tensors else embeddings.tolist()
