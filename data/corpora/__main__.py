"""`python -m wavcse.data.corpora`: from a corpus on disk, or a copy of it on the Hub, to its manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.corpus import write_manifest
from wavcse.settings.command import DONE, SOME_SKIPPED, command_line

DESCRIPTION = """\
Write the manifest of a public corpus from its official folders and lists. Nothing is downloaded, unless --hub_id names a
copy. The numbers of clips are checked against the complete corpus.
"""
EXAMPLE = """\
example:
  python -m wavcse.data.corpora voxceleb1 --root /data/voxceleb1 --out manifests/voxceleb1.csv --protocol superb

exit code: 0 = done; 2 = refused, see the message; 3 = done with --allow_partial, but the corpus is not complete
"""


@command_line("wavcse corpora", continues=True)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 3 for a part of a corpus."""
    args = _parser().parse_args(argv)
    corpus = CORPORA[args.corpus]
    if args.hub_id:
        from wavcse.data.corpora.hub import write_hub_copy  # which loads PyTorch; `--help` needs none

        write_hub_copy(corpus, args.hub_id, args.root, args.protocol, args.hub_config, args.hub_revision)
    written = write_manifest(corpus, args.root, args.out, args.protocol, args.allow_partial)
    found = ", ".join(f"{name} {count:,}" for name, count in written.found.items())
    files = f"{args.out} and {written.trials}" if written.trials else args.out
    print(f"{files}: {written.clips:,} clips of {corpus.facts.title} ({found}); licence: {corpus.facts.licence}")
    if written.problems:
        print(f"wavcse corpora: this is a part of the corpus: {'; '.join(written.problems)}", file=sys.stderr)
        return SOME_SKIPPED
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wavcse corpora",
        description=DESCRIPTION,
        epilog=f"{_described()}\n\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("corpus", choices=CORPORA, metavar="CORPUS", help=", ".join(CORPORA))
    add(
        "--root", required=True, metavar="DIR", help="folder of the unpacked corpus (with --hub_id: where the copy is written)"
    )
    add("--out", required=True, metavar="M.csv", help="the manifest; paths in it are relative to it")
    add("--protocol", metavar="P", help="how it is labelled and split; see below (default: the first)")
    add("--allow_partial", action="store_true", help="write what is there of an incomplete corpus, and say what is missing")
    add(
        "--hub_id",
        metavar="ID",
        help="first write a Hub copy (Parquet with a column audio) below --root in the official layout",
    )
    add("--hub_config", metavar="NAME", help="its configuration")
    add("--hub_revision", metavar="REV", help="its branch or commit, for example refs/convert/parquet")
    return parser


def _described() -> str:
    lines = ["corpora, the layout below --root, and protocols:"]
    for name, corpus in CORPORA.items():
        facts = corpus.facts
        lines += [f"  {name}: {corpus.layout}", f"    from {facts.source}; licence: {facts.licence}"]
        lines += [f"    {protocol}: {text}" for protocol, text in facts.protocols.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
