"""The console script `wavcse`: one name for all command lines. It loads no large library before a command runs."""

from __future__ import annotations

import sys

from wavcse import __version__
from wavcse.settings.command import DONE, Command, commands_help, run_command

COMMANDS = {
    "corpora": Command(
        "wavcse.data.corpora.__main__",
        "wavcse.data.corpora.arguments:CORPORA_PROGRAM",
        "write the manifest of a public corpus from its official folders and lists",
    ),
    "synthesize": Command(
        "wavcse.data.synthetic.__main__",
        "wavcse.data.synthetic.arguments:SYNTHESIZE",
        "make a labelled corpus of synthetic speech",
    ),
    "pretrain": Command(
        "wavcse.pretrain_accelerate",
        "wavcse.pretraining.arguments:PRETRAIN",
        "pre-train an upstream on speech without labels, or with some",
    ),
    "cache": Command(
        "wavcse.data.cache",
        "wavcse.data.arguments:CACHE",
        "run a frozen upstream once over a corpus and keep its pooled layers",
    ),
    "train": Command(
        "wavcse.train_accelerate",
        "wavcse.training.arguments:TRAIN",
        "train an embedding on the cache (one process; else `accelerate launch`)",
    ),
    "pca": Command(
        "wavcse.pca.__main__",
        "wavcse.pca.arguments:PCA",
        "make an embedding without labels: principal components of the layers",
    ),
    "words": Command(
        "wavcse.words.__main__",
        "wavcse.words.arguments:WORDS",
        "train a small model that turns a spoken word into a vector",
    ),
    "transcribe": Command(
        "wavcse.transcribe",
        "wavcse.data.arguments:TRANSCRIBE",
        "write down what is said in a corpus, by a speech recogniser of transformers",
    ),
    "trials": Command(
        "wavcse.data.trials",
        "wavcse.data.arguments:TRIALS",
        "make a list of verification trials from a manifest",
    ),
    "search": Command("wavcse.search.__main__", "", "choose layers, pooling or sizes: many models on one cache"),
    "embed": Command(
        "wavcse.embed",
        "wavcse.data.arguments:EMBED",
        "embed every clip of a manifest or folder into one Parquet file",
    ),
    "similar": Command(
        "wavcse.retrieval.similar",
        "wavcse.retrieval.arguments:SIMILAR",
        "find the clips of a table of embeddings that are nearest to a recording",
    ),
    "compare": Command(
        "wavcse.retrieval.compare",
        "wavcse.retrieval.arguments:COMPARE",
        "print how similar two recordings are",
    ),
    "calibrate": Command(
        "wavcse.retrieval.calibration",
        "wavcse.retrieval.arguments:CALIBRATE",
        "measure what a similarity says of two clips, on labelled pairs",
    ),
    "app": Command(
        "wavcse.app.page",
        "wavcse.app.arguments:APP",
        "open a web page that labels, compares and finds recordings",
    ),
    "map": Command(
        "wavcse.retrieval.map",
        "wavcse.retrieval.arguments:MAP",
        "draw a table of embeddings as one web page that works offline",
    ),
    "eval": Command("wavcse.eval.__main__", "wavcse.eval.arguments:EVAL", "judge a model on tasks, beside baselines"),
    "analyze": Command(
        "wavcse.analysis.__main__",
        "wavcse.analysis.arguments:ANALYZE",
        "see what embeddings hold: in which layer, which dimensions, at what cost",
    ),
    "finetune": Command(
        "wavcse.finetuning.__main__",
        "wavcse.finetuning.arguments:FINETUNING",
        "train a whole upstream on a task, as the papers of its pre-training do",
    ),
    "reduce": Command(
        "wavcse.retrieval.reduce",
        "wavcse.retrieval.arguments:REDUCE",
        "make a model with a smaller embedding: principal components of a table",
    ),
    "export": Command(
        "wavcse.doors.export",
        "wavcse.doors.arguments:EXPORT",
        "write a model as an ONNX file or a torch.export program",
    ),
    "push": Command(
        "wavcse.hub.push",
        "wavcse.hub.arguments:PUSH",
        "publish a run on the Hugging Face Hub, with a card made from its results",
    ),
}


HELP = commands_help(
    "wavcse",
    "Fixed-size, unified speech embeddings.",
    COMMANDS,
    "wavcse cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches",
    "`wavcse --version` names the version.",
)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit code is returned."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        print(f"wavcse {__version__}")
        return DONE
    return run_command("wavcse", COMMANDS, argv, HELP)


if __name__ == "__main__":
    sys.exit(main())
