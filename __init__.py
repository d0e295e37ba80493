"""wavCSE: fixed-size, unified speech embeddings (one vector per clip for words, speakers and emotions).

The names below are loaded when one of them is first used (PEP 562): PyTorch and what transformers needs for a model take
seconds, and commands that only read tables need neither. Then the model is registered with `AutoConfig`, `AutoModel` and
`AutoFeatureExtractor`. Where transformers is imported before, `import wavcse` is enough for that: classes that load the names
when they are used stand in its registries.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_wavcse import WavCSEConfig
    from .encoding_wavcse import WavCSEFrames, WavCSEWindows
    from .feature_extraction_wavcse import WavCSEFeatureExtractor
    from .finetuned_wavcse import FinetunedWavCSE, FinetunedWavCSEConfig, FinetunedWavCSEOutput
    from .modeling_wavcse import (
        WavCSEForMultiTask,
        WavCSEModel,
        WavCSEModelOutput,
        WavCSEMultiTaskOutput,
        WavCSEPreTrainedModel,
        quantize_embeddings,
    )
    from .pipeline_wavcse import WavCSEAudioClassificationPipeline, WavCSEFeatureExtractionPipeline

__version__ = "0.1.0"
__all__ = [
    "FinetunedWavCSE",
    "FinetunedWavCSEConfig",
    "FinetunedWavCSEOutput",
    "WavCSEAudioClassificationPipeline",
    "WavCSEConfig",
    "WavCSEFeatureExtractionPipeline",
    "WavCSEFeatureExtractor",
    "WavCSEForMultiTask",
    "WavCSEFrames",
    "WavCSEModel",
    "WavCSEModelOutput",
    "WavCSEMultiTaskOutput",
    "WavCSEPreTrainedModel",
    "WavCSEWindows",
    "quantize_embeddings",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load() -> None:
    """Import the public names and register the model."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

    from . import configuration_wavcse, feature_extraction_wavcse, finetuned_wavcse, modeling_wavcse, pipeline_wavcse

    for module in (configuration_wavcse, feature_extraction_wavcse, finetuned_wavcse, modeling_wavcse, pipeline_wavcse):
        globals().update({name: getattr(module, name) for name in __all__ if hasattr(module, name)})
    config = configuration_wavcse.WavCSEConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, modeling_wavcse.WavCSEModel, exist_ok=True)
    AutoModelForAudioClassification.register(config, modeling_wavcse.WavCSEForMultiTask, exist_ok=True)
    finetuned = finetuned_wavcse.FinetunedWavCSEConfig
    AutoConfig.register(finetuned.model_type, finetuned, exist_ok=True)
    AutoModel.register(finetuned, finetuned_wavcse.FinetunedWavCSE, exist_ok=True)
    AutoModelForAudioClassification.register(finetuned, finetuned_wavcse.FinetunedWavCSE, exist_ok=True)
    for one in (config, finetuned):
        AutoFeatureExtractor.register(one, feature_extraction_wavcse.WavCSEFeatureExtractor, exist_ok=True)


class _LoadsWhenUsed(type):
    """Of a class that stands for the public one of its name."""

    def __call__(cls, *args: object, **kwargs: object) -> object:
        return _named(cls)(*args, **kwargs)

    def __getattr__(cls, name: str) -> object:
        return getattr(_named(cls), name)


def _named(stand_in: type) -> type:
    _load()
    return globals()[stand_in.__name__]


def register() -> None:
    """Make `from_pretrained` of the auto classes read folders of weights that have no code of their own.

    Registered are stand-ins, which load nothing yet; to use them is to load the names, which takes their places.
    """
    if "WavCSEModel" in globals():
        return
    from transformers import AutoConfig, AutoFeatureExtractor

    extractor = _LoadsWhenUsed("WavCSEFeatureExtractor", (), {})
    for model_type, name in (("wavcse", "WavCSEConfig"), ("wavcse_finetuned", "FinetunedWavCSEConfig")):
        config = _LoadsWhenUsed(name, (), {})
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoFeatureExtractor.register(config, extractor, exist_ok=True)


if "transformers" in sys.modules:
    register()
