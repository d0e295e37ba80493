"""Write corpora of synthesised speech: `wavcse synthesize --help`."""

from __future__ import annotations

import sys

from wavcse.settings.command import DONE

from .arguments import SYNTHESIZE, SynthesizeArguments
from .corpus import write_plan


@SYNTHESIZE.main
def main(args: SynthesizeArguments) -> int:
    """Plan and write."""
    for out, plan in list(args.plans()):  # all are checked before the first is written
        print(write_plan(plan, out, args.workers))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
