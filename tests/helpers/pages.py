"""Code in pages of docs/, run as readers would run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def run_first_block(page: str, paths: Mapping[str, str | Path], **names: Any) -> dict[str, Any]:
    """Run the Python code that a page of docs/ starts with; returns the names that it leaves.

    Args:
        paths: name in the code, such as "clips.parquet" -> where that is; each must occur.
        names: what the code finds defined.
    """
    code = (DOCS / page).read_text(encoding="utf-8").split("```python\n", 1)[1].split("\n```", 1)[0]
    for name, path in paths.items():
        assert f'"{name}"' in code, name
        code = code.replace(f'"{name}"', repr(str(path)))
    exec(compile(code, page, "exec"), names)
    return names
