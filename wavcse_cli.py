"""The console script `wavcse`: one name for the command lines of the packages.

It lives outside the package so that `wavcse --help` does not wait for PyTorch to load.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "corpora": ("wavcse.data.corpora.__main__", "write the manifest of a public corpus from its official folders and lists"),
    "synthesize": ("wavcse.data.synthetic.__main__", "make a labelled corpus of synthetic speech"),
    "pretrain": ("wavcse.pretrain_accelerate", "pre-train an upstream on speech without labels, or with some"),
    "cache": ("wavcse.data.cache", "run a frozen upstream once over a corpus and keep its pooled layers"),
    "train": ("wavcse.train_accelerate", "train an embedding on the cache (one process; else `accelerate launch`)"),
    "search": ("wavcse.search.__main__", "choose layers, pooling or sizes: many models on one cache"),
    "embed": ("wavcse.embed", "embed every clip of a manifest or folder into one Parquet file"),
    "eval": ("wavcse.eval.__main__", "judge a model on tasks, beside baselines"),
    "finetune": ("wavcse.finetuning.__main__", "train a whole upstream on a task, as the papers of its pre-training do"),
    "push": ("wavcse.hub.push", "publish a run on the Hugging Face Hub, with a card made from its results"),
}


def usage() -> str:
    """The help text."""
    commands = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: wavcse COMMAND [options]\n\nFixed-size, unified speech embeddings.\n\ncommands:\n"
        f"{commands}\n\n`wavcse COMMAND --help` explains a command. Example:\n"
        "  wavcse cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit code is returned."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in COMMANDS:
        print(f"wavcse: there is no command {argv[0]!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except KeyboardInterrupt:  # while libraries load; a program's own `main` deals with it afterwards
        return 130


if __name__ == "__main__":
    sys.exit(main())
