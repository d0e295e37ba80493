"""transformers' pipelines on speech: "feature-extraction" embeds clips, "audio-classification" names them.

Both read audio themselves, without ffmpeg.
"""

from __future__ import annotations

from types import GeneratorType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Pipeline

from .audio_wavcse import as_clips, load_waveform
from .labels_wavcse import chosen_tasks, predictions

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .coattention_wavcse import Fusion  # noqa: F401
    from .configuration_wavcse import WavCSEConfig  # noqa: F401
    from .ecapa_wavcse import EcapaTdnn  # noqa: F401
    from .encoding_wavcse import read_clips  # noqa: F401
    from .endpoint_wavcse import EndpointHandler  # noqa: F401
    from .feature_extraction_wavcse import WavCSEFeatureExtractor  # noqa: F401
    from .finetuned_wavcse import FinetunedWavCSE  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401


class SpeechPipeline(Pipeline):
    """A pipeline whose inputs are speech clips, and which keeps its own count of what a clip and what a list of clips is."""

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

    def preprocess(self, inputs: Any, scale_quiet: bool = False) -> dict[str, Tensor]:
        rate = self.feature_extractor.sampling_rate
        waveform = load_waveform(inputs, rate, max_duration_s=self.feature_extractor.max_duration_s)
        return self.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt", scale_quiet=scale_quiet)

    def _run(self, model_inputs: dict[str, Tensor], precision: str | None) -> Any:
        with torch.autocast(self.model.device.type, enabled=False):  # `precision` decides, whatever surrounds the call
            return self.model(**model_inputs, precision=precision, return_dict=True)


class WavCSEFeatureExtractionPipeline(SpeechPipeline):
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

    def _sanitize_parameters(
        self, precision: str | None = None, return_tensors: bool | None = None, scale_quiet: bool | None = None
    ) -> tuple[dict, dict, dict]:
        preprocess = {} if scale_quiet is None else {"scale_quiet": scale_quiet}
        forward = {} if precision is None else {"precision": precision}
        return preprocess, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _forward(self, model_inputs: dict[str, Tensor], precision: str | None = None) -> dict[str, Tensor]:
        return {"embeddings": self._run(model_inputs, precision).embeddings}

    def postprocess(self, model_outputs: dict[str, Tensor], return_tensors: bool = False) -> Tensor | list[list[float]]:
        embeddings = model_outputs["embeddings"]
        return embeddings if return_tensors else embeddings.tolist()


class WavCSEAudioClassificationPipeline(SpeechPipeline):
    """Name speech clips: labels with their probabilities, by the heads of a `WavCSEForMultiTask` or `FinetunedWavCSE`.

    A clip is what `WavCSEFeatureExtractionPipeline` takes.

    Args, at construction or call:
        top_k: how many labels, the most likely first; 5 if not given, as in transformers, and `None` = all.
        precision, scale_quiet: as of `WavCSEFeatureExtractionPipeline`.
    At a call only:
        task: the head to ask, where there are several; if not given, that of the embedding of a `FinetunedWavCSE` that was
            trained on classes, else all of them.

    Returns per clip what `WavCSEForMultiTask.predict` returns: `[{"label": ..., "score": ...}, ...]`, of several heads, if no
    `task` is named, such a list per task by its name.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"top_k": 5, **kwargs})

    def _sanitize_parameters(self, precision: str | None = None, scale_quiet: bool | None = None, **labels) -> tuple:
        unknown = sorted(labels.keys() - {"task", "top_k"})
        if unknown:
            raise ValueError(
                f"{unknown[0]} is unknown; an audio-classification call takes task, top_k, precision, scale_quiet."
            )
        preprocess = {} if scale_quiet is None else {"scale_quiet": scale_quiet}
        chosen_tasks(self.model.config.label_tasks, labels.get("task"), labels.get("top_k"))
        return preprocess, {} if precision is None else {"precision": precision}, labels

    def _forward(self, model_inputs: dict[str, Tensor], precision: str | None = None) -> dict[str, Tensor]:
        logits = self._run(model_inputs, precision).logits
        found = {name: logits if isinstance(logits, Tensor) else logits[name] for name in self.model.config.label_tasks}
        return {name: own if own.dim() == 2 else own[:, None] for name, own in found.items()}

    def postprocess(self, model_outputs: dict[str, Tensor], task: str | None = None, top_k: int | None = None) -> Any:
        config = self.model.config
        task = config.usual_task if task is None else task
        chosen = chosen_tasks(config.label_tasks, task, top_k)
        return predictions({name: model_outputs[name] for name in chosen}, chosen, task, top_k)[0]
