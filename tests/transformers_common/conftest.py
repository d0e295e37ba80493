"""Keeps transformers' own suites out of an ordinary run: importing their test module fetches them."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect only for `pytest -m transformers_common`."""
    return None if config.getoption("markexpr") == "transformers_common" else True
