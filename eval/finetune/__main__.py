"""`python -m wavcse.eval.finetune`: read the settings, train, test, show the table; `--help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wavcse.data.corpus_pass import EXIT_SOME_SKIPPED
from wavcse.eval.finetune.arguments import parse_arguments
from wavcse.eval.finetune.program import finetune

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 3 if clips were skipped, 2 with one line if settings or data do not fit or training goes astray."""
    try:
        args = parse_arguments(argv)
        evaluation = finetune(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"wavcse finetune: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    print(evaluation.table, end="")
    if evaluation.skipped:
        where = f"{args.output_dir}/skipped.csv"
        print(f"{len(evaluation.skipped)} clips were skipped, see {where}; the first: {evaluation.skipped[0].reason}")
    return EXIT_SOME_SKIPPED if evaluation.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
