"""Settings of a program: a dataclass, filled from a YAML recipe and the command line, its fields checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from wavcse.settings.recipes import read_recipe

Settings = TypeVar("Settings")  # a dataclass
WORDS = {  # what a value of a field must be
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text (YAML needs 'no' in quotes)",
    dict: "a mapping",
    list[float]: "a list of numbers",
    list[int]: "a list of whole numbers",
    list[str]: "a list of texts",
    NoneType: "null",
}


def parse_script_arguments(
    settings: type[Settings], argv: Sequence[str] | None, script: str, description: str, launcher: str = "accelerate launch "
) -> Settings:
    """The settings (a dataclass) of a program, from `[RECIPE.yaml] [--field value ...]`; `launcher` stands before its name.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, an option is unknown, or a value is not what its field is.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    usage = f"{launcher}{script} [RECIPE.yaml] [--field value ...]"
    recipe = {}
    if argv and not argv[0].startswith("-"):
        recipe = read_recipe(argv.pop(0), allowed=[field.name for field in fields(settings)])
    return settings_from(settings, recipe, argv, prog=script, usage=usage, description=description)


def settings_from(settings: type[Settings], recipe: Mapping[str, Any], argv: Sequence[str] = (), **parser: str) -> Settings:
    """The settings of a recipe's fields and of options, which win.

    A text in the recipe is read as on the command line: `1e-3`, which YAML takes for a text, is a number. A mapping is a JSON
    object there.

    Args:
        parser: what the help says (`prog`, `usage`, `description`).
    """
    reader = _Parser(settings, **parser)
    reader.register("type", dict, str)  # `check_types` reads it
    reader.set_defaults(**recipe)
    return reader.parse_args_into_dataclasses(list(argv), look_for_args_file=False)[0]


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # which the programs print in one line


def _from_json(name: str, text: str) -> dict[str, Any]:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {text[:60]!r}; on the command line it must be a JSON object ({error}).") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def check_types(settings: Any) -> None:
    """ValueError names the first field that is not of its type.

    A recipe gives what YAML makes of it, which need not be what a field is. An empty section of one is an empty mapping, and
    a text in braces is a mapping in JSON.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if kind is dict and value is None:
            setattr(settings, name, {})
        elif kind is dict and isinstance(value, str) and value.startswith("{"):
            setattr(settings, name, _from_json(name, value))
        elif not _is_of(value, kind):
            allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
            raise ValueError(f"{name} is {value!r}; {' or '.join(WORDS[one] for one in allowed)} is needed.")


def check_ranges(settings: Any, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """ValueError names the first field that is out of its range."""
    for name in positive:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be above 0.")
    for name in not_negative:
        if not getattr(settings, name) >= 0:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must not be negative.")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`; a whole number is a number, true and false are none."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, *get_args(kind)) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
