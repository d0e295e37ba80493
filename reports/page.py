"""A report as two files: Markdown with links to its pictures, and one HTML page with the pictures in it.

What a report shows was partly written by others: notes, labels, titles, file names. `inert` takes what could act out of such a
text before it gets into Markdown, and the page is made without HTML of its own text and with links of known kinds only.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.files import write_atomically
from wavcse.hub_repository_wavcse import inert

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["fenced", "html_page", "inert", "made_by", "markdown_table", "opening", "write_page"]

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
LINKS = ("http:", "https:", "mailto:")
MOST_SENTENCES = 5
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; }
td, th { border: 1px solid #ccc; padding: 2px 8px; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: 1em; overflow-x: auto; }
"""


def opening(title: str, picture: tuple[str, str] | None, answer: Sequence[str]) -> list[str]:
    """How every report begins: its title, its most telling picture, and the answer to the reader's question.

    Args:
        picture: title and file, relative to the report's folder; `None` where there is nothing to draw.
        answer: up to `MOST_SENTENCES` sentences. How the figures were made belongs below the tables, not here.

    Returns:
        Blocks of Markdown.

    Raises:
        ValueError: there are more sentences.
    """
    if len(answer) > MOST_SENTENCES:
        raise ValueError(f"{title}: {len(answer)} sentences before the first table; {MOST_SENTENCES} at most.")
    shown = ["![{}]({})".format(*picture)] if picture else []
    return [f"# {title}", *shown, " ".join(answer)]


def made_by(command: str, files: str = "the result files beside it") -> str:
    """The line that every report ends with: the command that makes it again, and what from."""
    return f"Made by `{command}` from {files}; no figure is typed by hand."


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped, and a cell stays on its line."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    # A backslash before a bar would escape the backslash that escapes the bar.
    return re.sub(r"(\\*)\|", r"\1\1\\|", " ".join(str(value).splitlines()))


def fenced(text: str, language: str = "") -> str:
    """A block of code, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def write_page(path: Path, title: str, text: str) -> Path:
    """Write Markdown `text` to `path`, and the same beside it as .html that needs no other file; returns `path`.

    Links to pictures in `text` are relative to the folder of `path`.
    """
    write_atomically(path, text)
    write_atomically(path.with_suffix(".html"), html_page(title, text, path.parent))
    return path


def html_page(title: str, text: str, folder: Path) -> str:
    """Markdown as a page of its own: the pictures, links below `folder`, are part of it.

    HTML in the Markdown is shown as text; links other than to the web, to mail or into the folder become plain text.
    """
    import markdown

    converter = markdown.Markdown(extensions=["tables", "fenced_code"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    converter.treeprocessors.register(_harmless(folder), "harmless", -1)  # the last: after it nothing changes a link
    body = converter.convert(text)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _harmless(folder: Path):
    from markdown.treeprocessors import Treeprocessor

    class Harmless(Treeprocessor):
        """Pictures into the page, other links away."""

        def run(self, root: Element) -> None:
            for element in root.iter():
                if element.tag == "img":
                    _embed(element, folder)
                elif element.tag == "a" and not _is_harmless(element.get("href", "")):
                    del element.attrib["href"]

    return Harmless()


def _is_harmless(link: str) -> bool:
    # As a browser reads it: entities resolved, blanks and control characters left out.
    link = re.sub(r"[\x00-\x20]", "", html.unescape(link)).lower()
    return link.startswith(LINKS) or ":" not in link.partition("/")[0]


def _embed(image: Element, folder: Path) -> None:
    """Put the file into the element: the drawing if there is one beside the PNG; only its title if it is not a picture."""
    picture = folder / html.unescape(image.get("src", ""))
    drawing = picture.with_suffix(".svg") if picture.name else picture
    picture = (drawing if drawing.is_file() else picture).resolve()
    if picture.suffix in MEDIA_TYPES and picture.is_file() and picture.is_relative_to(folder.resolve()):
        data = base64.b64encode(picture.read_bytes()).decode()
        image.set("src", f"data:{MEDIA_TYPES[picture.suffix]};base64,{data}")
    else:
        image.tag, image.text, image.attrib = "span", image.get("alt"), {}
