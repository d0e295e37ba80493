"""Libraries that only some commands need: imported where they are used, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {  # libraries that are imported as any other, as Python calls them -> the extra of setup.py that installs them
    "datasets": "hub",
    "jiwer": "eval",
    "markdown": "eval",
    "matplotlib": "eval",
    "optuna": "search",
    "scipy": "eval",
    "sklearn": "eval",
}


def optional_library(name: str, extra: str) -> ModuleType:
    """The module `name`, imported now.

    Args:
        extra: of setup.py, which installs the library.

    Raises:
        ImportError: the library, or one that it needs, is not installed; the message says what to type.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ImportError(f'{missing} is not installed: pip install "wavcse[{extra}]"', name=missing) from error


def what_to_install(error: ImportError) -> str | None:
    """What to say of a library of `EXTRAS` that is missing; `None` where something else could not be imported."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS or "pip install" in str(error):
        return None
    return f'{library} is not installed: pip install "wavcse[{EXTRAS[library]}]"'
