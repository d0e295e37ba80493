"""`pipeline("feature-extraction", model=..., trust_remote_code=True)` on speech: one clip in, one embedding out."""

from __future__ import annotations

from types import GeneratorType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Pipeline

from .audio_wavcse import as_clips, load_waveform

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .configuration_wavcse import WavCSEConfig  # noqa: F401
    from .feature_extraction_wavcse import WavCSEFeatureExtractor  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401


class WavCSEFeatureExtractionPipeline(Pipeline):
    """Embed speech clips.

    A clip is what `WavCSEModel.encode` takes: a path, an `http(s)://` URL, the bytes of an audio file, a file opened with
    "rb", a 1-D array, tensor or list of floats at the model's rate, a mapping with `"array"` (or `"raw"`) and
    `"sampling_rate"`, or an `AudioDecoder`; other rates are resampled. A list, column or array of clips gives a list of
    results; a generator or a torch `Dataset` gives an iterator over them.

    Args, at construction or call:
        precision: "float32", "bfloat16" or "int8", of the upstream's matrix products.
        scale_quiet: bring clips below -60 dB of full scale to the level of usual speech first.

    Returns per clip `[[e_1, ..., e_E]]`, or with `return_tensors=True` a float tensor of shape `[1, E]`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        if isinstance(inputs, GeneratorType | Dataset):
            return super().__call__(inputs, *args, **kwargs)
        clips, is_single = as_clips(inputs)
        if is_single:
            return super().__call__(clips[0], *args, **kwargs)
        return list(super().__call__((clip for clip in clips), *args, **kwargs))  # a column is decoded clip by clip

    def _sanitize_parameters(
        self, precision: str | None = None, return_tensors: bool | None = None, scale_quiet: bool | None = None
    ) -> tuple[dict, dict, dict]:
        preprocess = {} if scale_quiet is None else {"scale_quiet": scale_quiet}
        forward = {} if precision is None else {"precision": precision}
        return preprocess, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, inputs: Any, scale_quiet: bool = False) -> dict[str, Tensor]:
        rate = self.feature_extractor.sampling_rate
        waveform = load_waveform(inputs, rate, max_duration_s=self.feature_extractor.max_duration_s)
        return self.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt", scale_quiet=scale_quiet)

    def _forward(self, model_inputs: dict[str, Tensor], precision: str | None = None) -> dict[str, Tensor]:
        with torch.autocast(self.model.device.type, enabled=False):  # `precision` decides, whatever surrounds the call
            output = self.model(**model_inputs, precision=precision, return_dict=True)
        return {"embeddings": output.embeddings}

    def postprocess(self, model_outputs: dict[str, Tensor], return_tensors: bool = False) -> Tensor | list[list[float]]:
        embeddings = model_outputs["embeddings"]
        return embeddings if return_tensors else embeddings.tolist()
