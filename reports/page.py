"""A report as two files: Markdown with links to its pictures, and one HTML page with the pictures in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from wavcse.data.files import write_atomically

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; }
td, th { border: 1px solid #ccc; padding: 2px 8px; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: 1em; overflow-x: auto; }
"""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_page(path: Path, title: str, text: str) -> Path:
    """Write Markdown `text` to `path`, and the same beside it as .html that needs no other file; returns `path`.

    Links to pictures in `text` are relative to the folder of `path`.
    """
    write_atomically(path, text)
    write_atomically(path.with_suffix(".html"), html_page(title, text, path.parent))
    return path


def html_page(title: str, text: str, folder: Path) -> str:
    """Markdown as a page of its own: the pictures, links below `folder`, are part of it."""
    import markdown

    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'src="([^"]+)"', lambda match: f'src="{_data_uri(folder / match[1])}"', body)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _data_uri(picture: Path) -> str:
    """The picture itself; the drawing, where there is one beside the PNG."""
    drawing = picture.with_suffix(".svg")
    picture = drawing if drawing.exists() else picture
    return f"data:{MEDIA_TYPES[picture.suffix]};base64,{base64.b64encode(picture.read_bytes()).decode()}"
