"""The model card that follows from the configuration and the code files alone; result files add sections elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from .configuration_wavcse import WavCSEConfig

PLACEHOLDER = "path/or/hub-id"  # in the card of a model that has not been published
# The line by which a generated card is known; without it a README.md is somebody's own and is never overwritten.
GENERATED = "<!-- Generated from configuration, code and result files. A card without this line is kept as it is. -->"
SECTIONS = (
    "Model details",
    "Usage",
    "Evaluation",
    "Bias, risks and limits",
    "Training details",
    "Python files that run",
    "Citation",
)
METADATA = {
    "library_name": "transformers",
    "pipeline_tag": "feature-extraction",
    "license": "apache-2.0",
    "tags": ["speech", "speech-embeddings", "wavcse"],
}

DETAILS = """\
One vector of {embedding_size} numbers per clip, whatever its length; small heads for words, speakers and emotions train on it.
A self-supervised speech encoder runs up to its highest selected layer; the selected layers are pooled over time, projected,
pooled across layers and projected again.

| | |
|---|---|
| upstream | {family}, {num_blocks} transformer blocks, width {upstream_size} |
| selected layers | {layers} |
| pooling over time | `{temporal_pooling}` |
| layer pooling | `{pooling_type}` {pooling_kwargs} |
| embedding size | {embedding_size} |
| trained tasks | {tasks} |
| input | mono speech at {sampling_rate} Hz, {min_ms:g} ms to {max_s:g} s |"""

USAGE = """\
`trust_remote_code=True` runs the Python files listed below. Read them, then pin `revision` to the commit that you have read.

```python
from transformers import pipeline

revision = "main"  # a branch moves: put the hash of a commit here
embed = pipeline("feature-extraction", model="{model_id}", revision=revision, trust_remote_code=True)
print(embed("clip.wav", return_tensors=True).shape)  # torch.Size([1, {embedding_size}])
```

```python
from transformers import AutoModel

revision = "main"  # a branch moves: put the hash of a commit here
model = AutoModel.from_pretrained("{model_id}", revision=revision, trust_remote_code=True)
print(model.encode(["clip.wav", "clip.wav"]).shape)  # (2, {embedding_size})
```

```python
import numpy as np
from transformers import AutoFeatureExtractor, AutoModel

revision = "main"  # a branch moves: put the hash of a commit here
feature_extractor = AutoFeatureExtractor.from_pretrained("{model_id}", revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained("{model_id}", revision=revision, trust_remote_code=True)
clips = [np.random.randn({sampling_rate}), np.random.randn({two_seconds})]  # waveforms at {sampling_rate} Hz
inputs = feature_extractor(clips, sampling_rate={sampling_rate}, return_tensors="pt")
outputs = model(**inputs)
print(outputs.embeddings.shape)  # torch.Size([2, {embedding_size}]); a clip's row does not depend on its batch
print(outputs.pooled_layers.shape)  # torch.Size([2, {num_layers}, {pooled_size}])
```"""

LIMITS = """\
- An embedding holds who speaks, how and what: treat it as personal data. Do not identify people without their consent, and do
  not judge people by predicted emotion, gender, age or origin.
- The encoder was trained on certain languages, microphones and voices; others may be served worse. Judge it on your own data,
  with test speakers that training has not heard.
- Licences of the encoder and of the corpora hold for these weights too, whatever licence is named above.
- Shorter clips than {min_ms:g} ms and longer ones than {max_s:g} s are refused."""

CITATION = """\
```bibtex
@inproceedings{wavcse2025,
  title = {wavCSE: Learning Fixed-size Unified Speech Embeddings via Feature-based Multi-Task Learning},
  booktitle = {IJCNLP-AACL 2025},
  year = {2025}
}
```"""


def model_card(
    config: WavCSEConfig,
    code_files: Mapping[str, str],
    model_id: str = PLACEHOLDER,
    metadata: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The text of README.md: YAML header, then the sections in the order of `SECTIONS`.

    Args:
        code_files: name -> SHA-256 of every Python file that `trust_remote_code=True` runs (`hash_code_files`).
        model_id: Hub id or folder, for the examples.
        metadata: further fields of `huggingface_hub.ModelCardData`; `tags` come after the card's own.
        sections: Markdown per title, put behind what the configuration already says under that title.
    """
    facts = {name: inert(value) for name, value in facts_of(config, model_id).items()}
    facts["tasks"] = facts["tasks"].replace("|", "\\|")  # a cell of a table
    own = {
        "Model details": DETAILS.format(**facts),
        "Usage": USAGE.format(**facts),
        "Bias, risks and limits": LIMITS.format(**facts),
        "Python files that run": _code_table(code_files),
        "Citation": CITATION,
    }
    parts = [f"---\n{card_header(config, metadata or {})}\n---", GENERATED, "# wavCSE speech embeddings"]
    for title in SECTIONS:
        texts = [text for text in (own.get(title), (sections or {}).get(title)) if text]
        if texts:
            parts += [f"## {title}", *texts]
    return "\n\n".join(parts) + "\n"


def card_header(config: WavCSEConfig, metadata: Mapping[str, Any]) -> str:
    """The YAML of a card's header, without its fences; `metadata` as of `model_card`."""
    tags = [*METADATA["tags"], config.upstream_config.model_type, *(metadata.get("tags") or ())]
    return ModelCardData(**{**METADATA, **metadata, "tags": tags}).to_yaml()


def facts_of(config: WavCSEConfig, model_id: str) -> dict[str, Any]:
    """What the texts of the card are filled with."""
    upstream = config.upstream_config
    return {
        "model_id": model_id,
        "embedding_size": config.embedding_size,
        "family": upstream.model_type,
        "num_blocks": upstream.num_hidden_layers,
        "upstream_size": upstream.hidden_size,
        "temporal_pooling": config.temporal_pooling,
        "pooled_size": config.pooled_size,
        "num_layers": len(config.selected_layers),
        "layers": ", ".join(map(str, config.selected_layers)),
        "pooling_type": config.pooling_type,
        # Sorted, as config.json is: a reloaded model gets the same card.
        "pooling_kwargs": ", ".join(f"{name} = {value}" for name, value in sorted(config.pooling_kwargs.items())),
        "tasks": ", ".join(f"{name} ({len(task['labels'])} classes)" for name, task in sorted(config.tasks.items())) or "none",
        "sampling_rate": config.sampling_rate,
        "two_seconds": 2 * config.sampling_rate,
        "min_ms": 1000 * config.min_samples / config.sampling_rate,
        "max_s": config.max_duration_s,
    }


def inert(value: Any) -> Any:
    """Text that somebody else wrote (names, titles, labels, notes), such that Markdown shows it and does nothing else with it.

    It stays on its line, is no HTML and makes no link or picture; text without `<`, new lines and links is returned as it is.
    Of mappings and sequences all texts are made so (`with_texts`).
    """
    return with_texts(value, _inert_text)


def _inert_text(text: str) -> str:
    text = re.sub(r"\s*[\x00-\x08\n-\r\x0e-\x1f\x7f\x85\u2028\u2029]+\s*", " ", text)
    return re.sub(r"\]([(:])", lambda match: f"]&#{ord(match[1])};", text.replace("<", "&lt;"))


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value with all its texts changed: a text itself, or those in mappings, keys too, and in lists and tuples."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {with_texts(key, change): with_texts(own, change) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_texts(own, change) for own in value)
    return value


def hash_code_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 (hexadecimal) of the Python files in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.py"))}


def is_generated(card: Path) -> bool:
    """Whether a README.md may be written anew: it does not exist yet, or it was made by `model_card`."""
    return not card.exists() or GENERATED in card.read_text(encoding="utf-8")


def _code_table(code_files: Mapping[str, str]) -> str:
    intro = "With `trust_remote_code=True` these files run on your machine, and no others of this repository:"
    rows = ["| `{}` | `{}` |".format(inert(name).replace("|", "\\|"), digest) for name, digest in code_files.items()]
    return "\n".join([intro, "", "| file | SHA-256 |", "|---|---|", *rows])
