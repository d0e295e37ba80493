"""A saved folder as a complete Hub repository (code, `auto_map`, pipeline, preprocessor, model card), and its upload."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.configuration_utils import PretrainedConfig
from transformers.dynamic_module_utils import (
    get_cached_module_file,
    get_class_from_dynamic_module,
    get_relative_import_files,
)
from transformers.utils import HF_MODULES_CACHE

from .card_wavcse import PLACEHOLDER, hash_code_files, is_generated, model_card
from .configuration_wavcse import WavCSEConfig
from .feature_extraction_wavcse import WavCSEFeatureExtractor
from .pipeline_wavcse import WavCSEFeatureExtractionPipeline

CODE_FILES = (
    "attention_wavcse.py",
    "audio_file_wavcse.py",
    "audio_wavcse.py",
    "card_wavcse.py",
    "configuration_wavcse.py",
    "download_wavcse.py",
    "encoding_wavcse.py",
    "feature_extraction_wavcse.py",
    "flex_wavcse.py",
    "gradients_wavcse.py",
    "modeling_wavcse.py",
    "packed_wavcse.py",
    "packing_wavcse.py",
    "pipeline_wavcse.py",
    "pooling_wavcse.py",
    "products_wavcse.py",
    "repository_wavcse.py",
    "stem_wavcse.py",
    "streams_wavcse.py",
    "temporal_wavcse.py",
    "transfer_wavcse.py",
    "upstream_wavcse.py",
    "waveform_wavcse.py",
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
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")  # formats that can run code when they are read
NOT_PUBLISHED = (".git", ".cache", "__pycache__")  # what tools leave in a folder, not worth a word
HIDDEN_AND_PUBLISHED = (".gitattributes", ".eval_results/*.yaml")  # the Hub reads them
# Of an earlier push: removed where the new folder has no such file any more, else weights or figures of two models would mix.
REPLACED = ("/*_wavcse.py", "/*.safetensors", "/*.safetensors.index.json", "/.eval_results/*.yaml")


def complete_repository(folder: Path, config: WavCSEConfig, model_class: type | None = None) -> None:
    """Add to a folder with weights everything else that `AutoModel` and `pipeline` need.

    Args:
        model_class: of the saved model. What transformers has written of a subclass that was registered with
            `register_for_auto_class`, its file and its entry in `auto_map`, is kept.
    """
    here = Path(__file__).parent
    for name in CODE_FILES:
        if (here / name).resolve() != (folder / name).resolve():
            shutil.copyfile(here / name, folder / name)
    config.auto_map, config.custom_pipelines = _auto_map(folder, config, model_class), dict(CUSTOM_PIPELINES)
    config.dtype = config.upstream_config.dtype = "float32"
    config.save_pretrained(folder)
    feature_extractor = WavCSEFeatureExtractor.from_config(config)
    feature_extractor.auto_map = {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    feature_extractor.save_pretrained(folder)
    write_card(folder, config)


def _auto_map(folder: Path, config: WavCSEConfig, model_class: type | None) -> dict[str, str]:
    """`AUTO_MAP`, with the classes of other files that are in the folder; the class of the saved model itself comes first."""
    auto_map = dict(AUTO_MAP)
    for auto_class, reference in (getattr(config, "auto_map", None) or {}).items():
        file = f"{reference.partition('.')[0]}.py"
        if file not in CODE_FILES and (folder / file).exists() and AUTO_MAP.get(auto_class) != _reference(model_class):
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
    by_reference = {reference: auto_class for auto_class, reference in AUTO_MAP.items()}
    auto_class = by_reference.get(_reference(model_class), getattr(model_class, "_auto_class", None))
    reference = (fields.get("auto_map") or {}).get(auto_class)
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
    card.write_text(model_card(config, hash_code_files(folder), model_id, metadata, sections), encoding="utf-8")
    return True


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
