"""The model as a module of sentence-transformers: `SentenceTransformer(folder, trust_remote_code=True)`.

`modules.json` names the class. transformers' loader of remote code looks into this file too, though nothing but
sentence-transformers runs it; so it must not need that library to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

try:
    from sentence_transformers.base.modules.transformer import Transformer
except ImportError:
    Transformer = object

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .audio_wavcse import load_waveform  # noqa: F401
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
    from .labels_wavcse import predictions  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401


class WavCSETransformer(Transformer):
    """sentence-transformers' own module, which loads, runs and saves the model, with clips read as `encode` reads them.

    Its own way to audio takes one sampling rate per batch and leaves a prompt out without a word.
    """

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """Clips as the model takes them.

        Args:
            inputs: as of `WavCSEFeatureExtractor`; arrays are at the model's rate.
            prompt: must be empty.
            processing_kwargs: `{"audio": {"scale_quiet": True}}`, as of `WavCSEFeatureExtractor`.

        Raises:
            ValueError: a prompt is given, or a clip cannot be read or served.
        """
        if prompt:
            raise ValueError(
                f"The prompt {prompt!r} cannot be used: this model embeds speech and reads no text, so a prompt would change "
                "nothing. Leave out prompt, prompt_name and prompts."
            )
        options = {**self.processing_kwargs.get("audio", {}), **(processing_kwargs or {}).get("audio", {})}
        rate = self.processor.sampling_rate
        return {**self.processor(inputs, sampling_rate=rate, return_tensors="pt", **options), "modality": "audio"}
