"""`python -m wavcse.finetuning`: read the settings, train, test, show the table; `--help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wavcse.finetuning.arguments import (
    FINETUNE,
    FINETUNE_TASKS,
    FINETUNING,
    TASK_STUDY,
    FinetuneArguments,
    MultiTaskArguments,
)
from wavcse.settings.command import DONE


@FINETUNE.main
def main_of_upstreams(args: FinetuneArguments) -> int:
    """Upstreams on one task; returns 0, or 3 if some clips had to be skipped."""
    from wavcse.finetuning.program import finetune  # after parsing: PyTorch takes seconds to load

    return finetune(args).announce(args.output_dir)


@FINETUNE_TASKS.main
def main_of_tasks(args: MultiTaskArguments) -> int:
    """A network on several tasks."""
    from wavcse.finetuning.multi_task import finetune_tasks

    finetune_tasks(args)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, for whichever of the three its recipe is."""
    program = FINETUNING.of(argv)
    if program is TASK_STUDY:
        from wavcse.finetuning.study import main as main_of_study

        return main_of_study(argv)
    return (main_of_tasks if program is FINETUNE_TASKS else main_of_upstreams)(argv)


if __name__ == "__main__":
    sys.exit(main())
