"""`wavcse search PROGRAM ...`: the searches by their names; the same as `python -m wavcse.search.PROGRAM ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wavcse.settings.command import Command, commands_help, run_command

PROGRAMS = {
    "layers": Command(
        "wavcse.search.layers",
        "wavcse.search.arguments:LAYERS",
        "choose layers by recursive elimination, beside its rivals",
    ),
    "poolings": Command(
        "wavcse.search.poolings", "wavcse.search.arguments:POOLS", "compare the ten layer poolings with their constants"
    ),
    "hparams": Command(
        "wavcse.search.hparams",
        "wavcse.search.arguments:HPARAMS",
        "search batch size and learning rate, then sizes, penalties and dropouts",
    ),
    "transfer": Command(
        "wavcse.search.transfer",
        "wavcse.search.arguments:TRANSFER",
        "leave tasks out of training, and see what embeddings keep for them",
    ),
    "phase1": Command(
        "wavcse.search.phase1",
        "wavcse.search.arguments:PHASE1",
        "all of them from corpus to trained model, with one report",
    ),
}
HELP = commands_help(
    "wavcse search",
    "Many models trained on one feature cache, from a training recipe.",
    PROGRAMS,
    "wavcse search layers conf/quickstart.yaml --out runs/layers",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search; its exit code is returned."""
    return run_command("wavcse search", PROGRAMS, sys.argv[1:] if argv is None else argv, HELP)


if __name__ == "__main__":
    sys.exit(main())
