"""Options of a program as a dataclass: its fields come from a YAML recipe and the command line, and are checked.

@dataclass
class Settings:
    steps: int = option(100, "Updates.", at_least=1)
    decay: str = option("linear", "Of the learning rate.", choices=("linear", "none"))

    def __post_init__(self):
        check_fields(self)

parse_settings(Settings, argv, "wavcse train", "What it does. Example: ...")
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

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
TRUE, FALSE = ("yes", "true", "t", "y", "1", "on"), ("no", "false", "f", "n", "0", "off")
LIMITS: dict[str, Callable[[Any, Any], bool]] = {  # NaN is within none of them
    "at_least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at_most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}


def option(
    default: Any, text: str, shown: str | None = None, flag: str = "", choices: Sequence[str] = (), **limits: float
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: of the field, or a function that makes it.
        text: of the help.
        shown: how the help shows the default, where that is not the value itself.
        flag: its name on the command line, where that is not the field's; the field's own name is read there too.
        choices: what is allowed, of texts.
        limits: of numbers: `at_least`, `above`, `at_most`, `below`.
    """
    if unknown := set(limits) - set(LIMITS):
        raise TypeError(f"there are no limits {sorted(unknown)}")
    metadata = {"help": text, "shown": shown, "flag": flag, "choices": tuple(choices), "limits": limits}
    return (
        field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)
    )


def parse_settings(
    settings: type[Settings], argv: Sequence[str] | None, prog: str, description: str, usage: str = ""
) -> Settings:
    """The settings (a dataclass) of a program, from `[RECIPE.yaml] [--field value ...]`.

    Args:
        usage: how the program is called, if not by `prog` alone.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, an option is unknown, or a value is not what its field is.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe = {}
    if argv and not argv[0].startswith("-"):
        recipe = read_recipe(argv.pop(0), allowed=[field.name for field in fields(settings)])
    usage = f"{usage or prog} [RECIPE.yaml] [--field value ...]"
    return settings_from(settings, recipe, argv, prog=prog, usage=usage, description=description)


def settings_from(settings: type[Settings], recipe: Mapping[str, Any], argv: Sequence[str] = (), **parser: str) -> Settings:
    """The settings of a recipe's fields and of options, which win.

    A text in the recipe is read as on the command line: `1e-3`, which YAML takes for a text, is a number. A mapping is a JSON
    object there.

    Args:
        parser: what the help says (`prog`, `usage`, `description`).
    """
    reader = _Parser(argument_default=argparse.SUPPRESS, **parser)
    hints = get_type_hints(settings)
    for one in fields(settings):
        _add_option(reader, one, hints[one.name])
    reader.set_defaults(**recipe)
    return settings(**vars(reader.parse_args(list(argv))))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # which the programs print in one line


def _add_option(reader: argparse.ArgumentParser, one: Field, hint: Any) -> None:
    """`--name` and `--some-name`; a field that is true or false is a flag, and `--no_name` turns one off that is on."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    own = one.metadata["flag"] or one.name
    names = list(dict.fromkeys((f"--{own}", f"--{one.name}", f"--{one.name.replace('_', '-')}")))
    words: dict[str, Any] = {"dest": one.name, "help": _help(one)}
    if kind is bool:
        reader.add_argument(*names, type=_to_bool, nargs="?", const=True, metavar="BOOL", **words)
        if one.default is True:
            off = list(dict.fromkeys((f"--no_{one.name}", f"--no-{one.name.replace('_', '-')}")))
            reader.add_argument(*off, action="store_false", dest=one.name, help=argparse.SUPPRESS)
    elif get_origin(kind) is list:
        reader.add_argument(*names, type=get_args(kind)[0], nargs="+", metavar=own.upper(), **words)
    else:
        reader.add_argument(*names, type=str if kind is dict else kind, metavar=own.upper(), **words)


def _help(one: Field) -> str:
    default = one.metadata["shown"]
    if default is None:
        default = one.default if one.default is not MISSING else one.default_factory()
    choices = f" One of {', '.join(one.metadata['choices'])}." if one.metadata["choices"] else ""
    return f"{one.metadata['help']}{choices} (default: {default})".replace("%", "%%")


def _to_bool(text: str) -> bool:
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE


def check_fields(settings: Any) -> None:
    """ValueError names the first field that is not of its type, then the first that is out of its range or not allowed.

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
    for one in fields(settings):
        if (value := getattr(settings, one.name)) is not None:
            check_range(one.name, value, **one.metadata["limits"])
            check_choice(one.name, value, one.metadata["choices"] or (value,))


def check_range(name: str, value: float, **limits: float) -> None:
    """ValueError unless the number is within its limits (`LIMITS`)."""
    if not all(LIMITS[limit](value, bound) for limit, bound in limits.items()):
        words = "not be negative" if limits == {"at_least": 0} else "be " + " and ".join(map(_in_words, limits.items()))
        raise ValueError(f"{name} is {value}; it must {words}.")


def _in_words(limit: tuple[str, float]) -> str:
    return f"{limit[0].replace('_', ' ')} {limit[1]}"


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


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


def usable_device(asked: str, auto: str | None = None) -> str:
    """The torch device that is meant. ValueError if it cannot be used here.

    Args:
        asked: the name of a device, or "auto".
        auto: what "auto" means; the GPU if there is one, if not given.
    """
    import torch  # only here, because commands check their other settings before they load it

    if asked == "auto":
        return auto or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without the device
        raise ValueError(f"device is {asked!r}, which is not available here: {str(error).splitlines()[0]}") from error
    return asked


def _is_of(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`; a whole number is a number, true and false are none."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, *get_args(kind)) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
