"""wavCSE: fixed-size, unified speech embeddings (one vector per clip for words, speakers and emotions).

Importing this package registers the model with `AutoConfig`, `AutoModel` and `AutoFeatureExtractor`.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

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

AutoConfig.register(WavCSEConfig.model_type, WavCSEConfig, exist_ok=True)
AutoModel.register(WavCSEConfig, WavCSEModel, exist_ok=True)
AutoFeatureExtractor.register(WavCSEConfig, WavCSEFeatureExtractor, exist_ok=True)
