"""What makes a saved folder a complete Hub repository: code, `auto_map`, the pipeline, the preprocessor and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from .configuration_wavcse import WavCSEConfig
from .feature_extraction_wavcse import WavCSEFeatureExtractor
from .pipeline_wavcse import WavCSEFeatureExtractionPipeline

CODE_FILES = (
    "attention_wavcse.py",
    "audio_wavcse.py",
    "configuration_wavcse.py",
    "encoding_wavcse.py",
    "feature_extraction_wavcse.py",
    "flex_wavcse.py",
    "modeling_wavcse.py",
    "packed_wavcse.py",
    "packing_wavcse.py",
    "pipeline_wavcse.py",
    "pooling_wavcse.py",
    "products_wavcse.py",
    "repository_wavcse.py",
    "stem_wavcse.py",
    "transfer_wavcse.py",
    "upstream_wavcse.py",
    "whisper_wavcse.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_wavcse.WavCSEConfig",
    "AutoFeatureExtractor": "feature_extraction_wavcse.WavCSEFeatureExtractor",
    "AutoModel": "modeling_wavcse.WavCSEModel",
    "AutoModelForAudioClassification": "modeling_wavcse.WavCSEForMultiTask",
}
CUSTOM_PIPELINES = {
    "feature-extraction": {
        "impl": f"pipeline_wavcse.{WavCSEFeatureExtractionPipeline.__name__}",
        "pt": ["AutoModel"],
    }
}

CARD = """---
library_name: transformers
pipeline_tag: feature-extraction
tags:
- speech
- speech-embeddings
- wavcse
---

# wavCSE speech embeddings

One vector of {embedding_size} numbers per clip, whatever its length; small heads for words, speakers and emotions train on it.

| | |
|---|---|
| upstream | {family}, {num_blocks} transformer blocks, width {upstream_size} |
| selected layers | {layers} |
| layer pooling | `{pooling_type}` {pooling_kwargs} |
| embedding size | {embedding_size} |
| trained tasks | {tasks} |
| input | mono speech at {sampling_rate} Hz, {min_ms:g} ms to {max_s:g} s |

```python
from transformers import pipeline

embed = pipeline("feature-extraction", model="path/or/hub-id", trust_remote_code=True)
embedding = embed("clip.wav", return_tensors=True)  # [1, {embedding_size}]
```

```python
from transformers import AutoFeatureExtractor, AutoModel

feature_extractor = AutoFeatureExtractor.from_pretrained("path/or/hub-id", trust_remote_code=True)
model = AutoModel.from_pretrained("path/or/hub-id", trust_remote_code=True)
inputs = feature_extractor([clip_a, clip_b], sampling_rate={sampling_rate}, return_tensors="pt")
embeddings = model(**inputs).embeddings  # [2, {embedding_size}]; a clip's row does not depend on its batch
```

`trust_remote_code=True` runs the Python files of this repository: read them, and pin `revision` to a commit.
"""


def complete_repository(folder: Path, config: WavCSEConfig) -> None:
    """Add to a folder with weights everything else that `AutoModel` and `pipeline` need; an existing README.md is kept."""
    here = Path(__file__).parent
    for name in CODE_FILES:
        if (here / name).resolve() != (folder / name).resolve():
            shutil.copyfile(here / name, folder / name)
    config.auto_map, config.custom_pipelines, config.dtype = dict(AUTO_MAP), dict(CUSTOM_PIPELINES), "float32"
    config.save_pretrained(folder)
    feature_extractor = WavCSEFeatureExtractor.from_config(config)
    feature_extractor.auto_map = {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    feature_extractor.save_pretrained(folder)
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(model_card(config), encoding="utf-8")


def model_card(config: WavCSEConfig) -> str:
    """The model card that follows from the configuration alone; figures are added from result files elsewhere."""
    upstream = config.upstream_config
    return CARD.format(
        embedding_size=config.embedding_size,
        family=upstream.model_type,
        num_blocks=upstream.num_hidden_layers,
        upstream_size=upstream.hidden_size,
        layers=", ".join(map(str, config.selected_layers)),
        pooling_type=config.pooling_type,
        pooling_kwargs=config.pooling_kwargs or "",
        tasks=", ".join(f"{name} ({len(task['labels'])} classes)" for name, task in config.tasks.items()) or "none",
        sampling_rate=config.sampling_rate,
        min_ms=1000 * config.min_samples / config.sampling_rate,
        max_s=config.max_duration_s,
    )
