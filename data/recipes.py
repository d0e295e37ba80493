"""Settings from YAML files: data, never code, and no misspelt field passes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


def read_recipe(path: str | Path, allowed: Iterable[str]) -> dict[str, Any]:
    """The fields of a YAML file; paths in it are relative to where the command runs.

    Raises:
        ValueError: the file cannot be read as YAML, is not a mapping, or names a field that is not `allowed`.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error}).") from error
    return checked_fields(str(path), recipe, allowed)


def checked_fields(where: str, recipe: Any, allowed: Iterable[str]) -> dict[str, Any]:
    """The recipe, or a section of one, as it is; ValueError if it is not a mapping or names a field that is not `allowed`."""
    if not isinstance(recipe, dict):
        raise ValueError(f"{where}: must hold fields of the form `name: value`.")
    allowed = sorted(allowed)
    unknown = sorted(set(recipe) - set(allowed), key=str)
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}; allowed: {', '.join(allowed)}.")
    return recipe
