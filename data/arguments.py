"""The command lines of `wavcse cache` and `wavcse embed`. Nothing here loads PyTorch, so `--help` is answered at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

# As in configuration_wavcse.py, which loads PyTorch; a test holds them equal.
TEMPORAL_POOLINGS = ("mean", "mean_std")
PRECISIONS = ("float32", "bfloat16", "int8")
WORKERS = (
    'processes of one thread each on a CPU (default "auto": one per core that may be used); the result does not depend on it'
)
CACHE = """\
Build the feature cache: every layer of a frozen upstream, pooled over time, once per clip.

    wavcse cache --manifest corpus/metadata.csv --upstream microsoft/wavlm-large --out caches

Afterwards training, layer selection, pooling comparison and probes read the cache and never run the upstream again.
"""
EMBED = """\
Embed a corpus: every clip of a manifest, or every audio file below a folder, into one Parquet file.

    wavcse embed recordings/ --model runs/quickstart/hub --out recordings.parquet

Of a folder every file is taken whose suffix names a format that can be read (wav, flac, ogg, opus, mp3, aiff, au, caf and the
like), below linked folders too; what is hidden is not. One row per clip, in the order of the manifest (or of the sorted
paths): id, path, seconds, embedding. Read it with

    pandas.read_parquet("recordings.parquet")
    datasets.load_dataset("parquet", data_files="recordings.parquet")

A killed run goes on where it was: give the same command again. Clips that cannot be used are listed in recordings.skipped.csv,
and very quiet ones, whose embeddings drift to that of silence, in recordings.quiet.csv; --scale_quiet helps those.
With --window_s 2 --hop_s 1 a clip has a row for every two seconds of it, one second apart, with start_s and end_s.
On a CPU a worker of one thread runs on every core. On several GPUs or machines: accelerate launch -m wavcse.embed ...; all
processes must see the same disk. Exit codes: 0 done, 2 refused, 3 done but some clips were skipped.
"""


def worker_count(text: str) -> int | str:
    """A number of workers as written on a command line, or "auto"."""
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f'{text!r} is no number of workers: a whole number from 1 on, or "auto"')
    return text if text == "auto" else int(text)


def parse_cache(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `wavcse cache`."""
    parser = argparse.ArgumentParser(prog="wavcse cache", description=CACHE, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--manifest", nargs="+", required=True, help="CSV or Parquet manifests, one row per clip")
    parser.add_argument("--upstream", required=True, help="Hub id or folder: WavLM, wav2vec2, HuBERT, Whisper, or wavCSE")
    parser.add_argument("--out", required=True, help="root folder; each upstream and pooling gets its own folder in it")
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="seconds of audio per batch (default 60)")
    parser.add_argument(
        "--temporal_pooling",
        choices=TEMPORAL_POOLINGS,
        default="mean",
        help="mean over the frames (default), or mean and standard deviation; a model trained on the cache pools the same way",
    )
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the stored numbers")
    parser.add_argument(
        "--shard_mb", type=float, default=64.0, help="megabytes per file (default 64), or five minutes of work"
    )
    parser.add_argument("--revision", help="commit of the upstream on the Hub")
    parser.add_argument("--workers", type=worker_count, default="auto", metavar="N", help=WORKERS)
    return parser.parse_args(argv)


def parse_embed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `wavcse embed`."""
    parser = argparse.ArgumentParser(prog="wavcse embed", description=EMBED, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("corpus", help="CSV or Parquet manifest, or a folder: every audio file below it, hidden ones not")
    parser.add_argument("--model", required=True, help="folder or Hub id of a wavCSE model; its Python files are run")
    parser.add_argument(
        "--out", required=True, help="the Parquet file to make; while it is made, OUT.parts holds what is done"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the upstream's matrix products (default: the model's own)")
    parser.add_argument("--truncate_dim", type=int, metavar="D", help="keep the first D numbers of every embedding")
    parser.add_argument("--normalize", action="store_true", help="scale every embedding to length 1, after --truncate_dim")
    parser.add_argument("--window_s", type=float, metavar="S", help="a row for every window of this many seconds")
    parser.add_argument("--hop_s", type=float, metavar="S", help="distance of the windows' starts (default: --window_s)")
    parser.add_argument(
        "--scale_quiet", action="store_true", help="bring clips below -60 dB of full scale to the level of usual speech first"
    )
    parser.add_argument("--batch_seconds", type=float, default=60.0, metavar="S", help="audio per batch (default 60)")
    parser.add_argument("--device", default="auto", help='torch device (default "auto": an accelerator if there is one)')
    parser.add_argument("--workers", type=worker_count, default="auto", metavar="N", help=WORKERS)
    return parser.parse_args(argv)
