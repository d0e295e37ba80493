"""The README of this repository is also the model card of the weights in its root: the parts of it that follow from files.

    python -m wavcse.hub.readme             # write the header and the part between the marks anew
    python -m wavcse.hub.readme --check     # exit code 2 if README.md is not what the files give

Files: `config.json` and `model.safetensors` of the root, and results/tiny (`hub/install.py` puts them there). All else in
README.md is written by hand and kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import wavcse
from wavcse.card_wavcse import card_header
from wavcse.data.files import write_atomically
from wavcse.hub.card import metadata_of
from wavcse.hub.figures import figures_of, model_index
from wavcse.hub.tiny import TinySource, read_tiny
from wavcse.hub.tiny_sections import languages_in, tiny_sections
from wavcse.hub.training_data import SYNTHETIC
from wavcse.settings.command import DONE, command_line

ROOT = Path(wavcse.__file__).parent
README = "README.md"
NAME = "wavcse-tiny"
BEGIN, END = f"<!-- {NAME}: begin -->", f"<!-- {NAME}: end -->"
HEADER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def render(readme: str, source: TinySource) -> str:
    """`readme` with today's header, and today's model card between its marks.

    Raises:
        ValueError: it has not exactly one pair of marks, in order.
    """
    text = HEADER.sub("", readme)
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{README} needs one line {BEGIN!r} and after it one line {END!r}; between them the card is written.")
    sections = "\n\n".join(f"### {title}\n\n{body}" for title, body in tiny_sections(source).items())
    return f"---\n{header(source)}\n---\n\n{before}{BEGIN}\n\n{sections}\n\n{END}{after}"


def header(source: TinySource) -> str:
    """The YAML: as of every card, with the primary metric of each task, and the corpora and languages of the training."""
    primary = {figure.task: figure for figure in reversed(figures_of(source.push.own))}
    stated = {
        "language": languages_in(source.data["rows"]),
        "datasets": sorted({row["corpus"] for row in source.data["rows"] if row["licence"] != SYNTHETIC}),
        "eval_results": model_index(list(reversed(primary.values()))),
        "tags": [NAME],
    }
    return card_header(source.push.config, metadata_of(source.push, NAME, **stated)).strip()


@command_line("wavcse readme")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.hub.readme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if README.md is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one that this package lies in)")
    args = parser.parse_args(argv)
    update(args.root, args.check)
    return DONE


def update(root: Path, check: bool = False) -> None:
    """Write README.md of `root` anew; with `check` only compare, and raise ValueError if it is out of date."""
    path = root / README
    found = path.read_text(encoding="utf-8")
    wanted = render(found, read_tiny(root))
    if check and wanted != found:
        raise ValueError(f"{path.name} is not what the result files give; run `python -m wavcse.hub.readme`.")
    if wanted != found:
        write_atomically(path, wanted)


if __name__ == "__main__":
    sys.exit(main())
