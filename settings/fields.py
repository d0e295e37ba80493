"""Options of a program as a dataclass: its fields come from a YAML recipe and the command line, and are checked.

@dataclass
class Settings(CheckedFields):
    corpus: str = operand("Folder of the recordings.")
    steps: int = option(100, "Updates.", at_least=1)
    decay: str = option("linear", "Of the learning rate.", choices=("linear", "none"))

`Program` (settings/command.py) makes a command of it.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from wavcse.settings.recipes import checked_fields, nearest, read_recipe

Settings = TypeVar("Settings")  # a dataclass
NEEDED = MISSING  # the default of what must be given
WORDS = {  # what a value of a field must be
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    dict: "a mapping",
    list[dict]: "a list of mappings",
    list[float]: "a list of numbers",
    list[int]: "a list of whole numbers",
    list[str]: "a list of texts",
    list[Path]: "a list of paths",
    NoneType: "null",
}
TRUE, FALSE = ("yes", "true", "t", "y", "1", "on"), ("no", "false", "f", "n", "0", "off")
LIMITS: dict[str, Callable[[Any, Any], bool]] = {  # NaN is within none of them
    "at_least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at_most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
OPTION = re.compile(r"--(?P<name>[A-Za-z][\w-]*)(=(?P<value>.*))?", re.DOTALL)
FILE_NAME = re.compile(r"[\w.-]+")
MAX_WIDTH, HELP_COLUMN = 110, 28  # of the help, in characters


# ---- what a field says of itself ----


@dataclass(frozen=True)
class Option:
    """What a field of settings says of itself beside its type and default; `option` describes the attributes."""

    text: str
    shown: str | None = None
    flag: str = ""
    value: str = ""
    choices: Sequence[str] = ()
    group: str = ""
    commas: bool = False
    empty: bool = False
    chosen: Callable[[Any, Any], Any] | None = None
    is_operand: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


def option(
    default: Any,
    text: str,
    shown: str | None = None,
    flag: str = "",
    value: str = "",
    choices: Sequence[str] = (),
    group: str = "",
    commas: bool = False,
    empty: bool = False,
    chosen: Callable[[Any, Any], Any] | None = None,
    **limits: float,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: of the field, or a function that makes it, or `NEEDED`.
        text: of the help.
        shown: how the help shows the default, where that is not the value itself.
        flag: its name on the command line, where that is not the field's; both are read there and in a recipe.
        value: what the help calls its value (`DIR`).
        choices: what is allowed, of texts and of the texts of a list; of a field that may be a number, the words beside it.
        group: a headline of the help that stands above this field and those that follow it.
        commas: a text is a list of texts with commas between them.
        empty: on the command line a list may be empty (`--rivals` alone).
        chosen: what comes of the value of the recipe and the words of the command line, where both are given and the latter
            do not simply win.
        limits: of a number, or of each in a list: `at_least`, `above`, `at_most`, `below`.
    """
    return _field(default, Option(text, shown, flag, value, choices, group, commas, empty, chosen, limits=limits))


def operand(text: str, default: Any = NEEDED, value: str = "", choices: Sequence[str] = (), group: str = "") -> Any:
    """A field whose value stands on the command line without a name; as `option`.

    Where the field is itself a dataclass of settings, the value is its recipe, and its options are options of this program,
    except for those that the program has already.
    """
    return _field(default, Option(text, None, "", value, choices, group, is_operand=True))


def _field(default: Any, about: Option) -> Any:
    if unknown := set(about.limits) - set(LIMITS):
        raise TypeError(f"there are no limits {sorted(unknown)}")
    metadata = {"option": about}
    if default is NEEDED:
        return field(kw_only=True, metadata=metadata)  # so that it may follow fields with a default
    return (
        field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)
    )


def _about(one: Field) -> Option:
    return one.metadata["option"]


def _flag(one: Field) -> str:
    return _about(one).flag or one.name


def _named(one: Field) -> str:
    """As the help calls it: `--out`, or `CORPUS`."""
    return _value_name(one) if _about(one).is_operand else f"--{_flag(one)}"


def _is_needed(one: Field) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


# ---- from recipe and command line to settings ----


class _Known(NamedTuple):
    """An option that a command line may name: a field of the program's settings, or of those that one of its operands is."""

    owner: type
    one: Field
    hint: Any


def read_settings(settings: type[Settings], argv: Sequence[str], has_recipe: bool = False) -> Settings:
    """The settings of a command line, whose options win over those of the recipe that it names.

    Args:
        has_recipe: the first word without a name is a YAML file with fields of the settings.

    Raises:
        ValueError: the recipe is unreadable or has unknown fields, an option is unknown or missing, or a value is not what its
            field is.
    """
    hints = get_type_hints(settings)
    inner = {one.name: hints[one.name] for one in fields(settings) if is_dataclass(hints[one.name])}
    options = {name: spot for kind in (*inner.values(), settings) for name, spot in _options(kind).items()}
    line, alone = _read_line(options, argv)
    recipe = _read_fields(settings, alone.pop(0)) if has_recipe and alone else {}
    given = line.get(settings, {})
    for one in (one for one in fields(settings) if _about(one).is_operand and alone):
        kind = hints[one.name]
        if get_origin(kind) is list:
            given[one.name], alone = alone, []
        elif one.name in inner:
            given[one.name] = settings_from(kind, _read_fields(kind, alone.pop(0)), line.get(kind, {}))
        else:
            given[one.name] = alone.pop(0)
    if alone:
        raise ValueError(f"{alone[0]!r} is one word too many; names of options begin with --.")
    return settings_from(settings, recipe, given)


def _options(settings: type) -> dict[str, _Known]:
    """What a field is called on the command line or in a recipe -> the field."""
    hints = get_type_hints(settings)
    named = [one for one in fields(settings) if not _about(one).is_operand]
    return {name: _Known(settings, one, hints[one.name]) for one in named for name in (one.name, _flag(one))}


def _read_fields(settings: type, path: str) -> dict[str, Any]:
    """Field -> value, of a recipe."""
    known = _options(settings)
    found: dict[str, Any] = {}
    for name, value in read_recipe(path, allowed=known).items():
        one = known[name].one
        if one.name in found:
            raise ValueError(f"{path}: {one.name} and {_flag(one)} are two names of one field; give one of them.")
        found[one.name] = value
    return found


def _read_line(known: Mapping[str, _Known], argv: Sequence[str]) -> tuple[dict[type, dict[str, Any]], list[str]]:
    """Settings -> field -> its words, and the words that stand alone."""
    found: dict[type, dict[str, Any]] = {}
    alone, words = [], deque(argv)
    while words:
        match = OPTION.fullmatch(words[0])
        word = words.popleft()
        if match is None:
            alone.append(word)
            continue
        name = match["name"].replace("-", "_")
        is_off = name not in known and name.startswith("no_") and _is_switch(known.get(name[3:]))
        spot = known.get(name.removeprefix("no_") if is_off else name)
        if spot is None:
            raise ValueError(f"there is no option --{name}{nearest(name, known, '--')}; --help shows all.")
        if is_off and match["value"] is not None:
            raise ValueError(f"--{name} takes no value.")
        value = False if is_off else _words(spot, words) if match["value"] is None else _one_word(spot, match["value"])
        found.setdefault(spot.owner, {})[spot.one.name] = value
    return found, alone


def _is_switch(spot: _Known | None) -> bool:
    return spot is not None and _kind(spot.hint) is bool


def _one_word(spot: _Known, word: str) -> str | list[str]:
    return [word] if get_origin(_kind(spot.hint)) is list else word


def _words(spot: _Known, words: deque[str]) -> Any:
    """Take what belongs to an option: a word, or all words up to the next option for a list, or none for a switch."""
    kind = _kind(spot.hint)
    if kind is bool:
        return words.popleft() if words and words[0].lower() in (*TRUE, *FALSE) else True
    is_list = get_origin(kind) is list
    taken: list[str] = []
    while words and not OPTION.fullmatch(words[0]) and (is_list or not taken):
        taken.append(words.popleft())
    if not taken and not _about(spot.one).empty:
        raise ValueError(f"{_named(spot.one)} is without a value; {WORDS[kind]} is needed.")
    return taken if is_list else taken[0]


def settings_from(settings: type[Settings], recipe: Mapping[str, Any], line: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a recipe's fields, and of those of a command line, which win.

    A text is read as on the command line: `1e-3`, which YAML takes for a text, is a number. A mapping is a JSON object there.

    Raises:
        ValueError: a value is not what its field is, or one that is needed is missing.
    """
    hints, given = get_type_hints(settings), {}
    for one in fields(settings):
        found = [_read_value(one, hints[one.name], place[one.name]) for place in (recipe, line or {}) if one.name in place]
        if len(found) == 2 and _about(one).chosen is not None:
            found = [_about(one).chosen(*found)]
        if found:
            given[one.name] = found[-1]
        elif _is_needed(one):
            raise ValueError(f"{_named(one)} is missing: {_about(one).text}")
    return settings(**given)


def section_from(settings: type[Settings], where: str, section: Any, **known: Any) -> Settings:
    """The settings of a section of a recipe, which calls them as the help does; errors begin with `where` it is.

    Args:
        known: fields that the section cannot set.
    """
    names = {_flag(one): one.name for one in fields(settings) if one.name not in known}
    section = checked_fields(where, {} if section is None else section, names)
    try:
        return settings_from(settings, {**{names[name]: value for name, value in section.items()}, **known})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _kind(hint: Any) -> Any:
    """The type of a field, of those that may also be null the other one."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next(kind for kind in kinds if kind is not NoneType)


def _read_value(one: Field, hint: Any, value: Any) -> Any:
    """What a text means for a field. A text that does not fit stays one, and is refused where the fields are checked."""
    kind = _kind(hint)
    if value == "null" and kind in (int, float) and hint is not kind:
        return None  # as YAML reads it; of a field of texts the word is one
    if get_origin(kind) is not list:
        return _read_json(one, value) if kind is dict else _read_text(kind, value)
    (item,) = get_args(kind)
    if item is dict:
        found = _read_json(one, value)
        return [found] if isinstance(found, dict) and found is not value else found  # of one object on the command line
    if isinstance(value, str) and item is str:
        value = [value]
    if not isinstance(value, list):
        return value
    if _about(one).commas and all(isinstance(text, str) for text in value):
        value = [word.strip() for text in value for word in text.split(",") if word.strip()]
    return [_read_text(item, text) for text in value]


def _read_text(kind: type, text: Any) -> Any:
    if not isinstance(text, str) or kind is str:
        return text
    if kind is bool:
        return text.lower() in TRUE if text.lower() in (*TRUE, *FALSE) else text
    try:
        return kind(text)
    except ValueError:
        return text


def _read_json(one: Field, value: Any) -> Any:
    """A mapping (or a list of them) stands on the command line as JSON."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(text, str) or not text.startswith(("{", "[{")):
        return value
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{one.name} is {text[:60]!r}; on the command line it must be a JSON object ({error}).") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


# ---- checks ----


def check_fields(settings: Any) -> None:
    """ValueError names the first field that is not of its type, then the first that is out of its range or not allowed.

    A recipe gives what YAML makes of it, which need not be what a field is. An empty section of one is an empty mapping.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if kind is dict and value is None:
            object.__setattr__(settings, name, {})  # the settings may be frozen
        elif not _is_of(value, kind):
            allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
            quotes = _quotes(value) if str in allowed else ""
            raise ValueError(f"{name} is {value!r}; {' or '.join(WORDS[one] for one in allowed)} is needed{quotes}.")
    for one in fields(settings):
        value, about = getattr(settings, one.name), _about(one)
        for item in value if isinstance(value, list) else () if value is None else (value,):
            if not isinstance(item, str):
                check_range(one.name, item, **about.limits)
            elif about.choices:
                check_choice(one.name, item, about.choices, "a number, " if about.limits else "")


class CheckedFields:
    """Base of a dataclass of settings, whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        check_fields(self)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`; a whole number is a number, true and false are none."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, *get_args(kind)) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_range(name: str, value: float, **limits: float) -> None:
    """ValueError unless the number is within its limits (`LIMITS`)."""
    if not all(LIMITS[limit](value, bound) for limit, bound in limits.items()):
        words = "not be negative" if limits == {"at_least": 0} else "be " + " and ".join(map(_in_words, limits.items()))
        raise ValueError(f"{name} is {value}; it must {words}.")


def _in_words(limit: tuple[str, float]) -> str:
    return f"{limit[0].replace('_', ' ')} {limit[1]}"


def check_choice(name: str, value: str, allowed: Collection[str], others: str = "") -> None:
    """ValueError unless `value` is one of `allowed`; the message names `others` before them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}{nearest(value, allowed)}; allowed: {others}{', '.join(allowed)}.")


def check_file_name(where: str, name: Any) -> None:
    """ValueError unless `name` can name files."""
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise ValueError(f"{where} is {name!r}; it names files, so only letters, digits and . _ - are allowed{_quotes(name)}.")


def _quotes(value: Any) -> str:
    return " (YAML needs yes, no, on and off in quotes)" if isinstance(value, bool) else ""


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


# ---- help ----


def help_text(settings: type, usage: str, about: str, example: str, has_recipe: bool = False) -> str:
    """The help of a program: how it is called, what it does, its options in groups, and an example.

    Args:
        usage: how it is called, without its words.
    """
    hints = get_type_hints(settings)
    operands = [one for one in fields(settings) if _about(one).is_operand]
    words = ["[RECIPE.yaml]"] if has_recipe else []
    words += [_shown_name(one, hints[one.name]) for one in operands]
    words += [_shown_name(one, hints[one.name]) for one in fields(settings) if _is_needed(one) and one not in operands]
    lines = [f"usage: {' '.join([usage, *words])} [--option value ...]", "", about.strip()]
    if has_recipe:
        recipe = "YAML file with options by their names; those on the command line win."
        lines += ["", "recipe:", *_entry("RECIPE.yaml", recipe)]
    groups: dict[str, list[Field]] = {}
    title = "options"
    for one in fields(settings):
        title = _about(one).group or title
        groups.setdefault(title, []).append(one)
    for title in sorted(groups, key=lambda title: not any(map(_is_needed, groups[title]))):  # what must be given comes first
        lines += ["", f"{title}:"]
        for one in groups[title]:
            lines += _entry(_shown_name(one, hints[one.name]), f"{_about(one).text}{_shown_default(one)}")
    return "\n".join([*lines, *_entry("-h, --help", "Show this help."), "", "example:", f"  {example}"])


def _shown_name(one: Field, hint: Any) -> str:
    kind = _kind(hint)
    if kind is bool:
        return f"--{'[no_]' * (one.default is True)}{_flag(one)}"
    more = " ..." * (get_origin(kind) is list)
    return f"{_value_name(one)}{more}" if _about(one).is_operand else f"--{_flag(one)} {_value_name(one, kind)}{more}"


def _value_name(one: Field, kind: Any = None) -> str:
    item = get_args(kind)[0] if get_origin(kind) is list else kind
    if _about(one).value or _about(one).is_operand:
        return _about(one).value or one.name.upper()
    if _about(one).choices:
        return "NAME"
    return {int: "N", float: "X", dict: "JSON"}.get(item, one.name.split("_")[-1].upper())


def _shown_default(one: Field) -> str:
    about = _about(one)
    choices = f" One of {', '.join(about.choices)}." if about.choices and not about.limits else ""
    default = about.shown
    if default is None and not _is_needed(one):
        default = one.default if one.default is not MISSING else one.default_factory()
    if isinstance(default, list):
        default = " ".join(map(str, default))
    is_said = default is not None and default is not False and default is not MISSING and default not in ("", {})
    return choices + (f" (default: {'on' if default is True else default})" if is_said else "")


def _entry(name: str, text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2
    wrapped = textwrap.wrap(" ".join(text.split()), width - HELP_COLUMN) or [""]
    first = f"  {name:<{HELP_COLUMN - 4}}  "
    if len(first) > HELP_COLUMN:
        return [first.rstrip(), *(" " * HELP_COLUMN + line for line in wrapped)]
    return [first + wrapped[0], *(" " * HELP_COLUMN + line for line in wrapped[1:])]
