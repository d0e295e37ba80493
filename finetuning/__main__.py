"""`python -m wavcse.finetuning`: read the settings, train, test, show the table; `--help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wavcse.finetuning.arguments import parse_arguments
from wavcse.settings.command import command_line


@command_line("wavcse finetune", continues=True)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    args = parse_arguments(argv)
    from wavcse.finetuning.program import finetune  # after parsing: PyTorch takes seconds to load

    return finetune(args).announce(args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
