"""`python -m wavcse.finetuning`: read the settings, train, test, show the table; `--help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wavcse.finetuning.arguments import parse_arguments
from wavcse.settings.command import SOME_SKIPPED, command_line


@command_line("wavcse finetune", continues=True)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    args = parse_arguments(argv)
    from wavcse.finetuning.program import finetune  # after parsing: PyTorch takes seconds to load

    evaluation = finetune(args)
    print(evaluation.table, end="")
    if evaluation.skipped:
        where = f"{args.output_dir}/skipped.csv"
        print(f"{len(evaluation.skipped)} clips were skipped, see {where}; the first: {evaluation.skipped[0].reason}")
    return SOME_SKIPPED if evaluation.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
