"""`python -m wavcse.data.corpora`: from a corpus on disk, or a copy of it on the Hub, to its manifest."""

from __future__ import annotations

import sys

from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.arguments import CORPORA_PROGRAM, CorporaArguments
from wavcse.data.corpora.corpus import write_manifest
from wavcse.settings.command import DONE, SOME_SKIPPED


@CORPORA_PROGRAM.main
def main(args: CorporaArguments) -> int:
    """The command line; returns 0, or 3 for a part of a corpus."""
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


if __name__ == "__main__":
    sys.exit(main())
