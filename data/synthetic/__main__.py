"""Write a corpus of synthesised speech: `python -m wavcse.data.synthetic --help`."""

import argparse
import sys

from .corpus import write_corpus
from .espeak import EspeakError
from .table import MIN_CLIPS

DESCRIPTION = f"""\
Write a corpus of synthesised speech, made offline by espeak-ng, for keyword
spotting, speaker identification and emotion recognition.

The folder gets audio/*.flac (16 kHz, mono) and metadata.csv, one row per clip
with labels and splits. The same clips and seed give the same bytes, whatever
the number of workers. Killed? Run the same command again, and it continues.
At least {MIN_CLIPS} clips, so that every class occurs in every split.
"""
EXAMPLE = """\
example, 4,000 clips of 0.8 s each in about 15 seconds on two cores:
  python -m wavcse.data.synthetic --out corpora/synthetic --clips 4000 --seed 0
"""


def main(argv: list[str] | None = None) -> int:
    """Parse, write, and return the exit status: 0, 2 after an error message, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.data.synthetic",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", "--output_dir", required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--clips", type=int, default=4000, metavar="N", help="number of clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all random draws (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="K", help="processes (default: the number of CPUs)")
    args = parser.parse_args(argv)
    try:
        metadata = write_corpus(args.out, args.clips, args.seed, workers=args.workers)
    except (ValueError, ImportError, EspeakError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print(metadata)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
