"""`wavcse search PROGRAM ...`: the searches by their names; the same as `python -m wavcse.search.PROGRAM ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from wavcse.search.arguments import PARSERS
from wavcse.settings.command import answer_help

PROGRAMS = {
    "layers": "choose layers by recursive elimination, beside its rivals",
    "poolings": "compare the ten layer poolings with their constants",
    "hparams": "search batch size and learning rate, then sizes, penalties and dropouts",
    "phase1": "all of them from corpus to trained model, with one report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search; its exit code is returned."""
    parser = argparse.ArgumentParser(
        prog="wavcse search",
        description="Many models trained on one feature cache, from a training recipe.",
        epilog="programs: " + "; ".join(f"{name}: {text}" for name, text in PROGRAMS.items()) + ". "
        "Example: wavcse search layers conf/quickstart.yaml --out runs/layers",
    )
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the program; --help after its name shows them")
    own = parser.parse_args(argv)
    answer_help(PARSERS[own.program], own.options)
    return importlib.import_module(f"wavcse.search.{own.program}").main(own.options)


if __name__ == "__main__":
    sys.exit(main())
