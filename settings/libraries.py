"""Libraries that only some commands need: imported where they are used, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


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
