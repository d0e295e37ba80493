"""Builds the folder that is pushed, apart from the run, which is only read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wavcse.hub.card import metadata_of, sections_of
from wavcse.hub.source import PushSource
from wavcse.hub_repository_wavcse import CODE_FILES, complete_repository, repository_files, write_card

# What an evaluation that wrote beside the weights knows of people's voices; it is not published with them.
PRIVATE_RESULTS = ("embeddings", "predictions")
OF_A_CHECKOUT = ("LICENSE", "config.json", "model.safetensors", "preprocessor_config.json")
REMADE = (*CODE_FILES, "config.json", "preprocessor_config.json")


def build_repository(source: PushSource, folder: Path, repo_id: str, **given: Any) -> bool:
    """Fill an empty folder: weights and what else lies beside them as they are, today's code, card and figures from results.

    Args:
        given: fields of the card's header that the caller states, as of `metadata_of`.

    Returns:
        Whether the card was generated; a README.md written by hand is taken as it is.

    Raises:
        ValueError: the model folder holds a file that must not be published.
    """
    for name, path in published_files(source).items():
        if not (name in REMADE or name.startswith(".eval_results/") or _is_former(source, name) or _is_private(source, path)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    complete_repository(folder, source.config)
    if source.own:
        from wavcse.hub.figures import figures_of, write_eval_results

        write_eval_results(folder, figures_of(source.own))
    return write_card(folder, source.config, repo_id, metadata_of(source, repo_id, **given), sections_of(source))


def published_files(source: PushSource) -> dict[str, Path]:
    """Path in the repository -> file, of what the model folder gives; of a checkout of this repository only the model."""
    if source.is_checkout:
        return {name: source.model / name for name in OF_A_CHECKOUT if (source.model / name).is_file()}
    return repository_files(source.model)


def _is_former(source: PushSource, name: str) -> bool:
    """Whether it is a code file of an older version, which nothing loads any more; one that `auto_map` names is a subclass."""
    named = {reference.partition(".")[0] for reference in (getattr(source.config, "auto_map", None) or {}).values()}
    return "/" not in name and name.endswith("_wavcse.py") and name.removesuffix(".py") not in named


def _is_private(source: PushSource, path: Path) -> bool:
    path, results = path.resolve(), source.results.resolve()
    return bool(source.records) and path.is_relative_to(results) and path.relative_to(results).parts[0] in PRIVATE_RESULTS
