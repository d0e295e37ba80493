"""`python -m wavcse.finetuning`: read the settings, train, test, show the table; `--help` lists the settings."""

from __future__ import annotations

import sys

from wavcse.finetuning.arguments import FINETUNE, FinetuneArguments


@FINETUNE.main
def main(args: FinetuneArguments) -> int:
    """The command line; returns 0, or 3 if some clips had to be skipped."""
    from wavcse.finetuning.program import finetune  # after parsing: PyTorch takes seconds to load

    return finetune(args).announce(args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
