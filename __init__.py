"""wavCSE: fixed-size, unified speech embeddings (one vector per clip for words, speakers and emotions).

`from wavcse import WavCSEModel`, or another of the names below, registers the model with `AutoConfig`, `AutoModel` and
`AutoFeatureExtractor`; so does `import wavcse` where transformers is imported already. Where it is not, the names are loaded
when they are first used (PEP 562): PyTorch and transformers take seconds, and commands that only read tables need neither.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_wavcse import WavCSEConfig
    from .feature_extraction_wavcse import WavCSEFeatureExtractor
    from .modeling_wavcse import (
        WavCSEForMultiTask,
        WavCSEModel,
        WavCSEModelOutput,
        WavCSEMultiTaskOutput,
        WavCSEPreTrainedModel,
    )
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline

__version__ = "0.1.0"
__all__ = [
    "WavCSEConfig",
    "WavCSEFeatureExtractionPipeline",
    "WavCSEFeatureExtractor",
    "WavCSEForMultiTask",
    "WavCSEModel",
    "WavCSEModelOutput",
    "WavCSEMultiTaskOutput",
    "WavCSEPreTrainedModel",
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
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    from . import configuration_wavcse, feature_extraction_wavcse, modeling_wavcse, pipeline_wavcse

    for module in (configuration_wavcse, feature_extraction_wavcse, modeling_wavcse, pipeline_wavcse):
        globals().update({name: getattr(module, name) for name in __all__ if hasattr(module, name)})
    config = configuration_wavcse.WavCSEConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, modeling_wavcse.WavCSEModel, exist_ok=True)
    AutoFeatureExtractor.register(config, feature_extraction_wavcse.WavCSEFeatureExtractor, exist_ok=True)


if "transformers" in sys.modules:
    _load()
