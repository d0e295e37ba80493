"""Settings from YAML files: data, never code, and no misspelt field passes.

YAML 1.1 takes an unquoted `yes`, `no`, `on` or `off` for true or false. In a list and as a name (a key) they are read as the
words that they are, for there they are classes and names; as the value of a field they are true or false.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20  # of a file; YAML is read at well below a megabyte per second
MAX_NODES = 1_000_000  # of a document whose aliases are written out
BOOL_TAG, STR_TAG, MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("bool", "str", "merge"))


def read_recipe(path: str | Path, allowed: Iterable[str]) -> dict[str, Any]:
    """The fields of a YAML file; paths in it are relative to where the command runs.

    Raises:
        ValueError: the file cannot be read as YAML, names a field twice, is not a mapping, or names a field that is not
            `allowed`.
    """
    return checked_fields(str(path), _read_yaml(path), allowed)


def recipe_fields(path: str | Path) -> list[str]:
    """The names of the fields of a YAML file; none where it cannot be read as a recipe."""
    try:
        recipe = _read_yaml(path)
    except ValueError:
        return []
    return [str(name) for name in recipe] if isinstance(recipe, dict) else []


def _read_yaml(path: str | Path) -> Any:
    """What a YAML file holds; ValueError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES:,} bytes")
        return yaml.load(data.decode("utf-8-sig"), Loader=_Loader)
    except RecursionError:
        raise ValueError(f"{path}: cannot be read as YAML (nested too deeply).") from None
    # Beside its own errors PyYAML lets through what Python says of an impossible date or a wrong `!!tag`.
    except (OSError, yaml.YAMLError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        words = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise ValueError(f"{path}: cannot be read as YAML ({words}).") from error


def checked_fields(where: str, recipe: Any, allowed: Iterable[str]) -> dict[str, Any]:
    """The recipe, or a section of one, as it is; ValueError if it is not a mapping or names a field that is not `allowed`."""
    if not isinstance(recipe, dict):
        raise ValueError(f"{where}: must hold fields of the form `name: value`.")
    allowed = sorted(allowed)
    unknown = sorted(set(recipe) - set(allowed), key=str)
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}{nearest(unknown[0], allowed)}; allowed: {', '.join(allowed)}.")
    return recipe


def nearest(name: Any, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean --steps?)` where one of the known names looks like what was given, else nothing.

    Args:
        prefix: before the known name.
    """
    known, name = list(known), str(name)
    found = [one for one in known if len(name) > 2 and one.startswith(name)] or difflib.get_close_matches(name, known, 1)
    return f" (did you mean {prefix}{found[0]}?)" if found else ""


class _Loader(yaml.SafeLoader):
    """`SafeLoader` that reads words as words (see the module), and refuses keys given twice and aliases that explode."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _checked_size(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        is_item_or_key = isinstance(parent, yaml.SequenceNode) or (parent is not None and index is None)
        if is_item_or_key and not is_alias and node.tag == BOOL_TAG and node.value.lower() not in ("true", "false"):
            node.tag = STR_TAG
        return node


def _checked_size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Number of nodes with all aliases written out; `known` holds it for nodes that were seen, None while inside of one.

    Raises:
        yaml.MarkedYAMLError: there are too many, an alias is inside of what it stands for, or a mapping has a key twice.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.MarkedYAMLError(problem="an alias is part of what it stands for", problem_mark=node.start_mark)
        return size
    known[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG:
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        size += sum(_checked_size(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_checked_size(part, known) for part in node.value)
    if size > MAX_NODES:
        raise yaml.MarkedYAMLError(problem="its aliases stand for too much", problem_mark=node.start_mark)
    known[id(node)] = size
    return size
