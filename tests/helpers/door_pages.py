"""The code that a page of docs/doors begins with, run as a reader would type it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wavcse_cli
from wavcse.hub_repository_wavcse import HANDLER, SENTENCE_TRANSFORMERS

ROOT = Path(__file__).parents[2]
DOORS = ROOT / "docs/doors"
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", HANDLER, *SENTENCE_TRANSFORMERS)
MOST_LINES = 30


def link_root(folder: Path) -> None:
    """Make a folder the model in the root, so that "." there means it."""
    for path in (*ROOT.glob("*_wavcse.py"), *(ROOT / name for name in MODEL_FILES)):
        (folder / path.name).symlink_to(path)


def run_first_block(name: str, paths: Mapping[str, str | Path] | None = None, **names: Any) -> dict:
    """Run the first block of code of a page in the working directory; of Python its names are returned.

    Of a block of the shell the lines that call `wavcse` are run. A page is at most `MOST_LINES` long and begins with its code.

    Args:
        paths: what stands in quotes in Python code, such as "clips.parquet" -> where that is, for workers that have another
            working directory.
        names: what Python code finds defined.
    """
    text = (DOORS / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES, name
    block = re.match(r"# [^\n]+\n\n```(python|bash)\n(.*?)\n```\n", text, re.DOTALL)
    assert block, f"{name} does not begin with code"
    if block[1] == "python":
        code = block[2]
        for written, path in (paths or {}).items():
            assert f'"{written}"' in code, written
            code = code.replace(f'"{written}"', repr(str(path)))
        exec(compile(code, name, "exec"), names)
        return names
    commands = [shlex.split(line, comments=True) for line in block[2].splitlines() if line.startswith("wavcse ")]
    assert commands, name
    for _, *words in commands:
        assert wavcse_cli.main(words) == 0, words
    return names
