"""A saved folder as a complete Hub repository: code, `auto_map`, pipeline, preprocessor, model card; and its upload.

The card here follows from the configuration and the code files alone; result files add sections elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCardData
from transformers.configuration_utils import PretrainedConfig
from transformers.dynamic_module_utils import get_cached_module_file, get_class_from_dynamic_module, get_relative_import_files
from transformers.utils import HF_MODULES_CACHE, SAFE_WEIGHTS_NAME

from .configuration_wavcse import WavCSEConfig
from .feature_extraction_wavcse import WavCSEFeatureExtractor
from .pipeline_wavcse import WavCSEAudioClassificationPipeline, WavCSEFeatureExtractionPipeline

CODE_FILES = (
    "audio_streams_wavcse.py",
    "audio_wavcse.py",
    "coattention_wavcse.py",
    "configuration_wavcse.py",
    "ecapa_wavcse.py",
    "encoding_wavcse.py",
    "endpoint_wavcse.py",
    "feature_extraction_wavcse.py",
    "finetuned_wavcse.py",
    "gradients_wavcse.py",
    "hub_repository_wavcse.py",
    "kernels_wavcse.py",
    "labels_wavcse.py",
    "modeling_wavcse.py",
    "packed_encoder_wavcse.py",
    "packed_layers_wavcse.py",
    "pipeline_wavcse.py",
    "pooling_wavcse.py",
    "sentence_transformers_wavcse.py",
    "upstream_wavcse.py",
    "wav2vec2_bert_wavcse.py",
    "whisper_wavcse.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_wavcse.WavCSEConfig",
    "AutoFeatureExtractor": "feature_extraction_wavcse.WavCSEFeatureExtractor",
    "AutoModel": "modeling_wavcse.WavCSEModel",
    "AutoModelForAudioClassification": "modeling_wavcse.WavCSEForMultiTask",
}
AUTO_MAP_FINETUNED = {
    "AutoConfig": "finetuned_wavcse.FinetunedWavCSEConfig",
    "AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"],
    "AutoModel": "finetuned_wavcse.FinetunedWavCSE",
    "AutoModelForAudioClassification": "finetuned_wavcse.FinetunedWavCSE",
}
FINETUNED_TYPE = "wavcse_finetuned"  # `model_type` of its configuration
CUSTOM_PIPELINES = {
    "feature-extraction": {
        "impl": f"pipeline_wavcse.{WavCSEFeatureExtractionPipeline.__name__}",
        "pt": ["AutoModel"],
    }
}
SENTENCE_TRANSFORMERS = {  # what `SentenceTransformer(folder)` reads
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_wavcse.WavCSETransformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"audio": {"method": "forward", "method_output_name": "embeddings"}},
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
PIPELINES_OF_HEADS = {
    "audio-classification": {
        "impl": f"pipeline_wavcse.{WavCSEAudioClassificationPipeline.__name__}",
        "pt": ["AutoModelForAudioClassification"],
    }
}
HANDLER = "handler.py"  # what Inference Endpoints start, by this name and this class
HANDLER_CODE = '''\
"""What Hugging Face Inference Endpoints start; how requests are answered is in endpoint_wavcse.py."""

from transformers.dynamic_module_utils import get_class_from_dynamic_module


class EndpointHandler:
    def __init__(self, path: str = ""):
        self.handler = get_class_from_dynamic_module("endpoint_wavcse.EndpointHandler", path)(path)

    def __call__(self, data: dict) -> list:
        return self.handler(data)
'''
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")  # formats that can run code when they are read
NOT_PUBLISHED = (".git", ".cache", "__pycache__")  # what tools leave in a folder, not worth a word
HIDDEN_AND_PUBLISHED = (".gitattributes", ".eval_results/*.yaml")  # the Hub reads them
# Of an earlier push: removed where the new folder has no such file any more, else weights or figures of two models would mix.
REPLACED = ("/*_wavcse.py", "/*.safetensors", "/*.safetensors.index.json", "/.eval_results/*.yaml")

PLACEHOLDER = "path/or/hub-id"  # in the card of a model that has not been published
# The line by which a generated card is known; without it a README.md is somebody's own and is never overwritten.
GENERATED = "<!-- Generated from configuration, code and result files. A card without this line is kept as it is. -->"
SECTIONS = (
    "Model details",
    "Usage",
    "Evaluation",
    "Bias, risks and limits",
    "Training details",
    "Exported files",
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
A self-supervised speech encoder runs up to its highest selected layer; the selected layers are pooled over time, {steps}.

| | |
|---|---|
| upstream | {family}, {num_blocks} transformer blocks, width {upstream_size} |
| selected layers | {layers} |
{context}| pooling over time | `{temporal_pooling}` |
{scaling}| layer pooling | `{pooling_type}` {pooling_kwargs} |
| embedding size | {embedding_size} |
| trained tasks | {tasks} |
| input | mono speech at {sampling_rate} Hz, {min_ms:g} ms to {max_s:g} s |"""

DETAILS_FINETUNED = """\
A speech encoder that was trained as a whole on the tasks below, each of which reads a layer of its own, and one vector of
{embedding_size} numbers per clip, whatever its length: that of the task `{embedding_of}`.

| | |
|---|---|
| upstream | {family}, {num_blocks} transformer blocks, width {upstream_size} |
{context}| tasks, with the layer and the pooling of each | {readouts} |
| embedding | of `{embedding_of}`, {embedding_size} numbers |
| input | mono speech at {sampling_rate} Hz, {min_ms:g} ms to {max_s:g} s |"""

CONTEXT_ROWS = {  # of Whisper alone
    None: "",
    "clip": "| context | `clip`: the encoder sees every clip at its own length |\n",
    "window": "| context | `window`: windows of 30 s, filled up with silence |\n",
}
SCALING_ROWS = {
    "none": "",
    "standard": "| layer scaling | `standard`: by mean and deviation over the training clips |\n",
}
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
{outputs}
```"""
USAGE_OF_HEADS = """\
```python
from transformers import pipeline

revision = "main"  # a branch moves: put the hash of a commit here
classify = pipeline("audio-classification", model="{model_id}", revision=revision, trust_remote_code=True)
{prints}
```"""
POOLED_OUTPUT = "print(outputs.pooled_layers.shape)  # torch.Size([2, {num_layers}, {pooled_size}])"
LOGITS_OUTPUT = "print({{task: tuple(logits.shape) for task, logits in outputs.logits.items()}})  # of {num_readouts} tasks"

LIMITS = """\
- An embedding holds who speaks, how and what: treat it as personal data. Do not identify people without their consent, and do
  not judge people by predicted emotion, gender, age or origin.
- The encoder was trained on certain languages, microphones and voices; others may be served worse. Judge it on your own data,
  with test speakers that training has not heard.
- Licences of the encoder and of the corpora hold for these weights too, whatever licence is named above.
- Shorter clips than {min_ms:g} ms and longer ones than {max_s:g} s are refused."""

EXPORTS = "exports.json"  # in the folder of a model: what `wavcse export` has found of each file, by its path in the folder
EXPORT_COLUMNS = ("file", "MB", "error", "alone / in a batch", "cosine", "audio-s/s: file / model (threads)")
EXPORT_CELLS = (
    "{megabytes:.1f}",
    "{error:.1e}",
    "{batch_error:.1e}",
    "{cosine:.6f}",
    "{speed:.0f} / {model_speed:.0f} ({threads:.0f})",
)
EXPORTED = """\
A padded batch goes in, `input_values` float32 and `attention_mask` int32 `[B, samples]` of the feature extractor, and
`embeddings` come out. Errors are shares of the embedding's largest number, beside the model in PyTorch. Clips go through in
one piece: beyond `window_s` the model itself uses windows, and the two differ a little."""

CITATION = """\
```bibtex
@inproceedings{wavcse2025,
  title = {wavCSE: Learning Fixed-size Unified Speech Embeddings via Feature-based Multi-Task Learning},
  booktitle = {IJCNLP-AACL 2025},
  year = {2025}
}
```"""


def complete_repository(folder: Path, config: WavCSEConfig, model_class: type | None = None) -> None:
    """Add to a folder with weights all else that `AutoModel`, `pipeline`, `SentenceTransformer` and Inference Endpoints need.

    Files of sentence-transformers that are there are kept: it writes its own settings, and modules that follow ours. So is a
    `handler.py`.

    Args:
        model_class: of the saved model. What transformers has written of a subclass that was registered with
            `register_for_auto_class`, its file and its entry in `auto_map`, is kept.
    """
    here = Path(__file__).parent
    for name in CODE_FILES:
        if (here / name).resolve() != (folder / name).resolve():
            shutil.copyfile(here / name, folder / name)
    config.auto_map = _auto_map(folder, config, model_class)
    config.custom_pipelines = {**CUSTOM_PIPELINES, **(PIPELINES_OF_HEADS if has_heads(config) else {})}
    config.dtype = config.upstream_config.dtype = "float32"
    config.save_pretrained(folder)
    feature_extractor = WavCSEFeatureExtractor.from_config(config)
    feature_extractor.auto_map = {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    feature_extractor.save_pretrained(folder)
    for name, content in SENTENCE_TRANSFORMERS.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not (folder / HANDLER).exists():  # else it is the same, or somebody's own
        (folder / HANDLER).write_text(HANDLER_CODE, encoding="utf-8")
    write_card(folder, config)


def _auto_map(folder: Path, config: WavCSEConfig, model_class: type | None) -> dict[str, str]:
    """That of the kind of model, with the classes of other files in the folder; the class of the saved model comes first."""
    own = AUTO_MAP_FINETUNED if config.model_type == FINETUNED_TYPE else AUTO_MAP
    auto_map = dict(own)
    for auto_class, reference in (getattr(config, "auto_map", None) or {}).items():
        file = f"{reference.partition('.')[0]}.py"
        if file not in CODE_FILES and (folder / file).exists() and own.get(auto_class) != _reference(model_class):
            auto_map[auto_class] = reference
    return auto_map


def _reference(model_class: type | None) -> str:
    """How `auto_map` names a class: the last part of its module's name, and its own."""
    return "" if model_class is None else f"{model_class.__module__.rpartition('.')[2]}.{model_class.__name__}"


def class_of_repository(model_class: type, name_or_path: str | Path, **hub_kwargs) -> type:
    """The class that a repository's own files define in the place of `model_class`; that one where the files are the same.

    transformers takes a class that is registered for a configuration, such as this package's once it is imported, before the
    repository's code, even where `trust_remote_code=True` asks for that code. Only call this where it was asked for.

    Args:
        hub_kwargs: `revision`, `token`, `cache_dir`, ... as in `from_pretrained`.
    """
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if name != "subfolder"}
    fields, _ = PretrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
    auto_map, pairs = fields.get("auto_map") or {}, (*AUTO_MAP.items(), *AUTO_MAP_FINETUNED.items())
    own = [auto_class for auto_class, reference in pairs if reference == _reference(model_class)]
    auto_class = next((name for name in own if name in auto_map), getattr(model_class, "_auto_class", None))
    reference = auto_map.get(auto_class)
    if not reference or "--" in reference:
        return model_class
    module = reference.partition(".")[0]
    theirs = Path(HF_MODULES_CACHE, get_cached_module_file(name_or_path, f"{module}.py", **hub_kwargs))
    ours = Path(sys.modules[model_class.__module__].__file__)
    if _reference(model_class) == reference and _same_code(ours, theirs):
        return model_class
    own_class = get_class_from_dynamic_module(reference, name_or_path, **hub_kwargs)
    own_class.register_for_auto_class(auto_class)  # as transformers does, so that its file is saved with it
    return own_class


def _same_code(ours: Path, theirs: Path) -> bool:
    """Whether two Python files, and all that they import beside them, are equal."""
    names = {theirs.name, *(Path(file).name for file in get_relative_import_files(theirs))}
    pairs = [(ours.parent / name, theirs.parent / name) for name in names]
    return all(one.exists() and one.read_bytes() == other.read_bytes() for one, other in pairs)


def write_card(
    folder: Path,
    config: WavCSEConfig,
    model_id: str = PLACEHOLDER,
    metadata: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
) -> bool:
    """Write README.md for the code files in the folder; a card that was not generated is kept, and False returned."""
    card = folder / "README.md"
    if not is_generated(card):
        return False
    sections = {"Exported files": exported_files(folder), **(sections or {})}
    card.write_text(model_card(config, hash_code_files(folder), model_id, metadata, sections), encoding="utf-8")
    return True


def exported_files(folder: Path) -> str:
    """What the card says of files that `wavcse export` wrote, from the folder's `EXPORTS`; nothing where there are none.

    Of a file that was made of other weights than lie in the folder now, it says that instead of figures.
    """
    records = {name: found for name, found in sorted(_read_exports(folder).items()) if (folder / name).is_file()}
    digest, rows = weights_sha256(folder) if records else None, []
    for name, found in records.items():
        cells = [cell.format(**found) for cell in EXPORT_CELLS]
        if found["weights_sha256"] != digest:
            cells = ["of other weights: export it again", *[""] * (len(cells) - 1)]
        rows.append([f"`{inert(name)}`", *cells])
    lines = [f"| {' | '.join(row)} |" for row in [EXPORT_COLUMNS, ["---"] * len(EXPORT_COLUMNS), *rows]]
    return "\n".join([EXPORTED, "", *lines]) if rows else ""


def _read_exports(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of `EXPORTS` that are whole; what else somebody put there is left alone."""
    try:
        content = json.loads((folder / EXPORTS).read_text(encoding="utf-8"))
        records = {name: found for name, found in content.items() if isinstance(found, Mapping)}  # beside them, a checksum
        for found in records.values():
            _ = [cell.format(**found) for cell in ("{weights_sha256}", *EXPORT_CELLS)]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return records


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 of the safetensors file of a folder, or over the hashes of all its shards; `None` where it has no weights."""
    shards = [path for path in (folder / SAFE_WEIGHTS_NAME,) if path.is_file()] or sorted(folder.glob("model-*.safetensors"))
    digests = []
    for path in shards:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def repository_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file, of all that an upload of the folder holds, by name; `left_out_files` has the others.

    Raises:
        ValueError: a file is of a format that can run code when it is read (weights are safetensors here), or weights are a
            link out of the folder.
    """
    left_out = left_out_files(folder)
    lost = [name for name in left_out if name.endswith(".safetensors") and not _is_hidden(name)]
    if lost:
        raise ValueError(
            f"{lost[0]}: {left_out[lost[0]]}; what is published must lie in the folder itself. Copy the file there."
        )
    files = {name: path for name, path in _paths(folder).items() if path.is_file() and name not in left_out}
    pickles = [name for name in files if name.lower().endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"{pickles[0]}: is of a format that can run code when it is read, so it is not published. "
            "Take it out of the folder; weights belong in *.safetensors."
        )
    return files


def left_out_files(folder: Path) -> dict[str, str]:
    """Path in the folder -> why it is not published: links that lead out of the folder, and hidden files."""
    reasons = {}
    for name, path in _paths(folder).items():
        if _is_hidden(name) and not path.is_dir():
            reasons[name] = "is hidden"
        elif not path.resolve().is_relative_to(folder.resolve()):
            reasons[name] = "is a link out of the folder"
    return reasons


def _paths(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: path for name, path in paths.items() if not set(PurePosixPath(name).parts) & set(NOT_PUBLISHED)}


def _is_hidden(name: str) -> bool:
    is_dotted = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return is_dotted and not any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in HIDDEN_AND_PUBLISHED)


def upload_repository(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Make the Hub repository hold this folder, in one commit; files that only the Hub has are kept, see `REPLACED`.

    Args:
        repo_id: `organisation/name` or `name`; made if it does not exist.
        private: of a new repository; an existing one stays as it is.
        token: as everywhere in `huggingface_hub`; `None` = the one of `hf auth login` or `HF_TOKEN`.
        revision: branch, made from the main one if it does not exist.

    Returns:
        The commit, or the latest one if nothing has changed.

    Raises:
        ValueError: the folder holds a file that must not be published; nothing was sent then.
        OSError: the Hub refuses, or somebody else has committed meanwhile.
    """
    files = repository_files(folder)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    parent = api.model_info(repo_id, revision=revision).sha
    there = set(api.list_repo_files(repo_id, revision=parent))
    replaced = [name for name in there if any(PurePosixPath("/", name).match(pattern) for pattern in REPLACED)]
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in sorted(replaced) if name not in files),
        ],
        commit_message=commit_message or "Upload wavCSE model",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
        parent_commit=parent,
    )


def has_heads(config: WavCSEConfig) -> bool:
    """Whether a model is saved with heads that name labels, which `pipeline("audio-classification")` reads."""
    return bool(config.label_tasks) and config.architectures != ["WavCSEModel"]  # which is saved without them


# ---- the model card ----


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
    facts |= _own_lines(config)
    for name in ("tasks", "readouts"):
        facts[name] = facts[name].replace("|", "\\|")  # a cell of a table
    is_finetuned = config.model_type == FINETUNED_TYPE
    facts["outputs"] = (LOGITS_OUTPUT if is_finetuned else POOLED_OUTPUT).format(**facts)
    own = {
        "Model details": (DETAILS_FINETUNED if is_finetuned else DETAILS).format(**facts),
        "Usage": "\n\n".join([USAGE.format(**facts), *_usage_of_heads(config, facts["model_id"])]),
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


def _usage_of_heads(config: WavCSEConfig, model_id: str) -> list[str]:
    """How the heads answer, if there are some: by the usual task, or all at once; what is printed is the same for any clip."""
    if not has_heads(config):
        return []
    usual = config.usual_task
    if usual is None:
        names = sorted(inert(list(config.label_tasks)))
        prints = f'print(sorted(classify("clip.wav")))  # {names}; labels with scores of each, `task=` names one'
    else:
        count = len(config.label_tasks[usual]["labels"])
        prints = f'print(len(classify("clip.wav")))  # {count}; labels with scores, likeliest first'
    return [USAGE_OF_HEADS.format(model_id=model_id, prints=prints)]


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
        "tasks": ", ".join(f"{name} ({_outputs_in_words(task)})" for name, task in sorted(config.tasks.items())) or "none",
        "readouts": ", ".join(_readout_in_words(*one) for one in (getattr(config, "readouts", None) or {}).items()),
        "num_readouts": len(getattr(config, "readouts", None) or {}),
        "embedding_of": getattr(config, "embedding_of", None) or "",
        "sampling_rate": config.sampling_rate,
        "two_seconds": 2 * config.sampling_rate,
        "min_ms": 1000 * config.min_samples / config.sampling_rate,
        "max_s": config.max_duration_s,
    }


def _own_lines(config: WavCSEConfig) -> dict[str, str]:
    """What fills places of the texts with lines of ours, which need not be made inert."""
    rows = {"context": CONTEXT_ROWS[config.context], "scaling": SCALING_ROWS[config.layer_scaling]}
    return {**rows, "steps": _steps(config)}


def _steps(config: WavCSEConfig) -> str:
    """How pooled layers become an embedding, in words."""
    steps = ["scaled"] if config.layer_scaling == "standard" else []
    if config.pooling_type == "concat":
        steps += ["put side by side"]
        last = "and projected" if config.layer_projection_size is None else "projected twice"
    elif config.layer_projection_size is None:
        steps += ["pooled across layers"]
        last = "and projected"
    else:
        steps += ["projected"]
        last = "pooled across layers and projected again"
    return f"{', '.join(steps)}{'' if last.startswith('and') else ','}\n{last}"


def _outputs_in_words(task: Mapping[str, Any]) -> str:
    return f"{len(task['labels'])} classes" if task["kind"] == "classification" else "a number"


def _readout_in_words(name: str, one: Mapping[str, Any]) -> str:
    what = {"ctc": "text", "classes": f"{len(one.get('labels', ()))} classes", "numbers": "a number"}[one["kind"]]
    if "fusion" in one:
        others = " and ".join(f"`{task}`" for task in one["fusion"]["tasks"]) or "nothing else"
        return f"{name} ({what}: {one['tap']}, {one['fusion']['kind']} attention by {others})"
    pooling = "" if one["kind"] == "ctc" else f", {one['pooling']}"
    hidden = f", hidden layer of {one['hidden']}" if "hidden" in one else ""
    return f"{name} ({what}: {one['tap']}{pooling}{hidden})"


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
    """Whether a README.md may be overwritten: it does not exist yet, or it was made by `model_card`."""
    return not card.exists() or GENERATED in card.read_text(encoding="utf-8")


def _code_table(code_files: Mapping[str, str]) -> str:
    intro = "With `trust_remote_code=True` these files run on your machine, and no others of this repository"
    intro += f"; `{HANDLER}` runs on Inference Endpoints alone:" if HANDLER in code_files else ":"
    rows = ["| `{}` | `{}` |".format(inert(name).replace("|", "\\|"), digest) for name, digest in code_files.items()]
    return "\n".join([intro, "", "| file | SHA-256 |", "|---|---|", *rows])
