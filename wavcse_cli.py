"""The console script `wavcse`: one name for all command lines. It loads no large library before a command runs."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from wavcse import __version__
from wavcse.settings.command import answer_help


class Command(NamedTuple):
    """One command.

    Attributes:
        module: has `main(argv) -> exit code`.
        parser: `module:function` that reads its options, where `module` loads PyTorch before it could answer `--help`.
        text: what it does.
    """

    module: str
    parser: str | None
    text: str


COMMANDS = {
    "corpora": Command(
        "wavcse.data.corpora.__main__", None, "write the manifest of a public corpus from its official folders and lists"
    ),
    "synthesize": Command("wavcse.data.synthetic.__main__", None, "make a labelled corpus of synthetic speech"),
    "pretrain": Command(
        "wavcse.pretrain_accelerate",
        "wavcse.pretraining.arguments:parse_arguments",
        "pre-train an upstream on speech without labels, or with some",
    ),
    "cache": Command(
        "wavcse.data.cache",
        "wavcse.data.arguments:parse_cache",
        "run a frozen upstream once over a corpus and keep its pooled layers",
    ),
    "train": Command(
        "wavcse.train_accelerate",
        "wavcse.training.arguments:parse_arguments",
        "train an embedding on the cache (one process; else `accelerate launch`)",
    ),
    "search": Command("wavcse.search.__main__", None, "choose layers, pooling or sizes: many models on one cache"),
    "embed": Command(
        "wavcse.embed",
        "wavcse.data.arguments:parse_embed",
        "embed every clip of a manifest or folder into one Parquet file",
    ),
    "eval": Command("wavcse.eval.__main__", None, "judge a model on tasks, beside baselines"),
    "finetune": Command(
        "wavcse.finetuning.__main__", None, "train a whole upstream on a task, as the papers of its pre-training do"
    ),
    "push": Command(
        "wavcse.hub.push",
        "wavcse.hub.arguments:parse_push",
        "publish a run on the Hugging Face Hub, with a card made from its results",
    ),
}


def usage() -> str:
    """The help text."""
    commands = "\n".join(f"  {name:<12} {command.text}" for name, command in COMMANDS.items())
    return (
        "usage: wavcse COMMAND [options]\n\nFixed-size, unified speech embeddings.\n\ncommands:\n"
        f"{commands}\n\n`wavcse COMMAND --help` explains a command; `wavcse --version` names the version. Example:\n"
        "  wavcse cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit code is returned."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"wavcse {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"wavcse: there is no command {argv[0]!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    command, options = COMMANDS[argv[0]], argv[1:]
    try:
        if command.parser:
            module, _, parse = command.parser.partition(":")
            answer_help(getattr(importlib.import_module(module), parse), options)
        return importlib.import_module(command.module).main(options)
    except KeyboardInterrupt:  # while libraries load; a program's own `main` deals with it afterwards
        return 130


if __name__ == "__main__":
    sys.exit(main())
