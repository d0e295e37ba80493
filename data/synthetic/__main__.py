"""Write corpora of synthesised speech: `wavcse synthesize --help`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from wavcse.settings.command import DONE, command_line

from .corpus import write_plan
from .plan import Plan
from .table import MIN_CLIPS, plan_multitask
from .twins import TWINS, plan_twin

DEFAULT_CLIPS = 4000
MIN_TWIN_CLIPS = sorted(twin.min_clips for twin in TWINS.values())
DESCRIPTION = f"""\
Write speech made offline by espeak-ng, with labels and splits: a corpus for
keyword spotting, speaker identification and emotion recognition, or with
--twins a stand-in for each corpus of the twelve downstream tasks.

The folder gets audio/*.flac (16 kHz, mono) and metadata.csv, one row per clip.
The same clips and seed give the same bytes, whatever the number of workers.
Killed? Run the same command again, and it continues. At least {MIN_CLIPS} clips
(a twin: {MIN_TWIN_CLIPS[0]} to {MIN_TWIN_CLIPS[-1]}), so that every class occurs in every split.
"""
EXAMPLE = f"""\
twins:
{chr(10).join(f"  {name:<10} {twin.title}, {twin.clips} clips" for name, twin in TWINS.items())}

examples, 4,000 clips of 0.8 s each in about 15 seconds on two cores; all twins,
one folder each (DIR/football/metadata.csv, ...); two of them, smaller:
  wavcse synthesize --out corpora/synthetic --clips 4000 --seed 0
  wavcse synthesize --out corpora/twins --twins
  wavcse synthesize --out corpora/twins --twins football timit --clips 200
"""


def plans(args: argparse.Namespace) -> Iterator[tuple[Path, Plan]]:
    """Folder and plan of every corpus that was asked for."""
    if args.twins is None:
        yield args.out, plan_multitask(DEFAULT_CLIPS if args.clips is None else args.clips, args.seed)
        return
    for name in args.twins or TWINS:
        yield args.out / name, plan_twin(TWINS[name], args.clips, args.seed)


@command_line("wavcse synthesize", continues=True)
def main(argv: list[str] | None = None) -> int:
    """Parse and write."""
    parser = argparse.ArgumentParser(
        prog="wavcse synthesize",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", "--output_dir", required=True, type=Path, metavar="DIR", help="folder to write into")
    parser.add_argument(
        *("--twins",),
        nargs="*",
        choices=TWINS,
        metavar="NAME",
        help="write these twins, or all if none is named, each into DIR/NAME",
    )
    parser.add_argument("--clips", type=int, metavar="N", help=f"of each corpus (default: {DEFAULT_CLIPS}; twins: see below)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all random draws (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="K", help="processes (default: the number of CPUs)")
    args = parser.parse_args(argv)
    for out, plan in list(plans(args)):  # all are checked before the first is written
        print(write_plan(plan, out, args.workers))
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
