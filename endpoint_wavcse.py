"""The model behind Hugging Face Inference Endpoints: what `handler.py` in a model folder starts.

A request is `{"inputs": ..., "parameters": {...}}`, as the service makes it of JSON; of an audio file as the body it makes
`{"inputs": bytes}`. It answers an error with its text. Names of files are never read: what comes in is somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification

from .audio_wavcse import AudioFile, download, is_url, load_waveform
from .feature_extraction_wavcse import WavCSEFeatureExtractor

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .coattention_wavcse import Fusion  # noqa: F401
    from .configuration_wavcse import WavCSEConfig  # noqa: F401
    from .ecapa_wavcse import EcapaTdnn  # noqa: F401
    from .encoding_wavcse import read_clips  # noqa: F401
    from .finetuned_wavcse import FinetunedWavCSE  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .labels_wavcse import predictions  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401

WITH_HEADS = "WavCSEForMultiTask"
OPTIONS = {  # "output" of a request -> its other parameters, which go to `encode` and `predict` as they are
    "embeddings": ("normalize_embeddings", "truncate_dim", "scale_quiet"),
    "labels": ("task", "top_k", "scale_quiet"),
}


@dataclass(frozen=True)
class Limits:
    """Of one request; each is set by an environment variable of the endpoint.

    Args:
        clips: number of clips (`WAVCSE_MAX_CLIPS`).
        megabytes: encoded audio in all, before base64 and after a download (`WAVCSE_MAX_MEGABYTES`).
        seconds: audio in all (`WAVCSE_MAX_SECONDS`).
        urls: whether clips are downloaded, 1 or 0 (`WAVCSE_URLS`); the endpoint then asks any server that a request names.
    """

    clips: int = 64
    megabytes: float = 64.0
    seconds: float = 1800.0
    urls: int = 1

    @classmethod
    def from_environment(cls) -> Limits:
        """ValueError if a variable holds no positive, finite number."""
        given = {}
        for field, variable in VARIABLES.items():
            if variable in os.environ:
                kind = type(getattr(cls, field))
                try:
                    given[field] = kind(os.environ[variable])
                except ValueError:
                    raise ValueError(f"{variable} is {os.environ[variable]!r}; a number is needed.") from None
                if field == "urls":
                    if given[field] not in (0, 1):
                        raise ValueError(f"{variable} is {os.environ[variable]!r}; allowed: 0, 1.")
                elif not 0 < given[field] < math.inf:  # not a number neither: no comparison with it would end anything
                    raise ValueError(f"{variable} is {os.environ[variable]!r}; it must be positive and finite.")
        return cls(**given)


VARIABLES = {
    "clips": "WAVCSE_MAX_CLIPS",
    "megabytes": "WAVCSE_MAX_MEGABYTES",
    "seconds": "WAVCSE_MAX_SECONDS",
    "urls": "WAVCSE_URLS",
}


class EndpointHandler:
    """Embeds or labels the clips of requests.

    Args:
        path: folder of the model.
    """

    def __init__(self, path: str = ""):
        self.limits = Limits.from_environment()
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        self.has_heads = bool(config.tasks) and WITH_HEADS in (config.architectures or ())
        loader = AutoModelForAudioClassification if self.has_heads else AutoModel
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = loader.from_pretrained(path, trust_remote_code=True).eval().to(device)
        self.feature_extractor = WavCSEFeatureExtractor.from_config(config)

    def __call__(self, data: Mapping[str, Any]) -> list:
        """Answer a request.

        Args:
            data: `inputs`: a clip or a list of clips, each the bytes of an audio file, these in base64 (a `data:` URL too), an
                `http(s)://` URL, or `{"array": [...], "sampling_rate": ...}`. `parameters`: `output` "embeddings" (the
                default) or "labels"; with the first `normalize_embeddings`, `truncate_dim`, `scale_quiet`, with the second
                `task`, `top_k`, `scale_quiet`.

        Returns:
            Lists and numbers, for JSON. Embeddings: `[E]` for one clip, `[N][E]` for a list. Labels: as of `predict`.

        Raises:
            ValueError: the request is not of this form, beyond a limit, or holds a clip that cannot be served.
        """
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise ValueError('A request is {"inputs": ..., "parameters": {...}}; "inputs" is missing.')
        output, options = _checked_parameters(data.get("parameters") or {})
        if output == "labels" and not self.has_heads:
            raise ValueError("This model has no heads, so it names no labels; ask for output 'embeddings'.")
        inputs = data["inputs"]
        is_list = isinstance(inputs, list)
        waveforms = self._waveforms(inputs if is_list else [inputs])
        clips = waveforms if is_list else waveforms[0]
        if output == "labels":
            return self.model.predict(clips, show_progress_bar=False, **options)
        return self.model.base_model.encode(clips, show_progress_bar=False, **options).tolist()

    def _waveforms(self, inputs: list) -> list[np.ndarray]:
        """The clips of a request, float32 `[samples]` each, all limits kept."""
        if not 1 <= len(inputs) <= self.limits.clips:
            raise ValueError(f"inputs: holds {len(inputs)} clips; 1 to {self.limits.clips} are served at once.")
        bytes_left, seconds_left = int(self.limits.megabytes * 1e6), self.limits.seconds
        rate = self.feature_extractor.sampling_rate
        waveforms = []
        for position, given in enumerate(inputs):
            name = f"clip {position}"
            clip = self._audio(given, bytes_left, name)
            bytes_left -= len(clip) if isinstance(clip, bytes) else 0
            if isinstance(clip, bytes):
                with AudioFile(clip, name) as file:  # by its header, before anything is decoded
                    self._check_seconds(file.duration_s, seconds_left)
            waveform = load_waveform(clip, rate, name, self.limits.seconds)
            self.feature_extractor.check(waveform, name)
            self._check_seconds(len(waveform) / rate, seconds_left)
            seconds_left -= len(waveform) / rate
            waveforms.append(waveform)
        return waveforms

    def _check_seconds(self, seconds: float, seconds_left: float) -> None:
        if seconds > seconds_left:
            used = self.limits.seconds - seconds_left + seconds
            raise ValueError(
                f"inputs: have {used:.1f} s of audio up to here; a request may have {self.limits.seconds:g} s "
                f"({VARIABLES['seconds']}). Send fewer clips, or cut them."
            )

    def _audio(self, given: Any, bytes_left: int, name: str) -> bytes | dict:
        """What a request gives for a clip, as bytes of a file or a mapping with an array."""
        if isinstance(given, Mapping) and set(given) == {"array", "sampling_rate"}:
            return dict(given)
        if isinstance(given, str) and is_url(given):
            if not self.limits.urls:
                raise ValueError(f"{name}: is a URL, and this endpoint does not download ({VARIABLES['urls']}=0).")
            try:
                return download(given, max(1, bytes_left))
            except ValueError as error:
                raise ValueError(f"{name}: cannot be downloaded ({str(error).rstrip('.')}).") from error
        if isinstance(given, str):
            self._check_bytes(len(given) * 3 // 4, bytes_left)
            given = _from_base64(given, name)
        if not isinstance(given, bytes | bytearray):
            raise ValueError(
                f"{name}: is of type {type(given).__name__}. Give the bytes of an audio file, these in base64, a URL, or "
                '{"array": [...], "sampling_rate": ...}.'
            )
        self._check_bytes(len(given), bytes_left)
        return bytes(given)

    def _check_bytes(self, size: int, bytes_left: int) -> None:
        if size > bytes_left:
            raise ValueError(
                f"inputs: hold more than {self.limits.megabytes:g} MB of audio files ({VARIABLES['megabytes']}). Send fewer "
                "clips, or compress them (flac, ogg, mp3)."
            )


def _checked_parameters(parameters: Any) -> tuple[str, dict[str, Any]]:
    """`output` of a request, and the arguments of `encode` or `predict`."""
    if not isinstance(parameters, Mapping):
        raise ValueError(f"parameters: is of type {type(parameters).__name__}; a mapping is needed.")
    options = dict(parameters)
    output = options.pop("output", "embeddings")
    if output not in OPTIONS:
        raise ValueError(f"parameters: output is {output!r}; allowed: {', '.join(OPTIONS)}.")
    unknown = sorted(set(options) - set(OPTIONS[output]))
    if unknown:
        raise ValueError(f"parameters: there is no {unknown[0]!r} for {output}; allowed: {', '.join(OPTIONS[output])}.")
    for name in ("normalize_embeddings", "scale_quiet"):
        if not isinstance(options.get(name, False), bool):
            raise ValueError(f"parameters: {name} is {options[name]!r}; true or false is needed.")
    return output, options


def _from_base64(text: str, name: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"{name}: is text, but neither an http(s):// URL nor an audio file in base64. Names of files are not read."
        ) from None
